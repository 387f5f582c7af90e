"""`learn export`: the files with which a service grades the exercises.

gradescope   a folder to zip: setup.sh, run_autograder, and all of minipage
github       a starter repository for GitHub Classroom, with its workflow
nbgrader     a course folder: a notebook for each lesson, with a graded cell for each exercise
container    a Containerfile that grades as another user, to whom minipage is read-only
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from minipage.errors import LearnError
from minipage.learn.course import HERE, Exercise, Lesson, lessons
from minipage.learn.workspace import init

TEMPLATES = Path(__file__).parent / "templates"
PACKAGE = HERE.parent
NEEDED = "learn"  # the extra without which nothing can be graded
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.changed")


def export(service: str, folder: Path, exercises: list[Exercise], source: str) -> list[Path]:
    """Write the files; returns them, the most important first. Raises LearnError, OSError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LearnError(f"{folder} is there already, and not an empty folder; give a new name.")
    folder.mkdir(parents=True, exist_ok=True)
    return SERVICES[service](folder, exercises, source)


def gradescope(folder: Path, exercises: list[Exercise], source: str) -> list[Path]:
    bundle(folder)
    return [from_template(folder, name, exercises, 0o755) for name in ("setup.sh", "run_autograder")]


def container(folder: Path, exercises: list[Exercise], source: str) -> list[Path]:
    bundle(folder)
    scripts = (
        from_template(folder, "Containerfile", exercises, 0o644),
        from_template(folder, "grade-all.sh", exercises, 0o755),
    )
    return list(scripts)


def from_template(folder: Path, name: str, exercises: list[Exercise], mode: int) -> Path:
    text = (TEMPLATES / name).read_text(encoding="utf-8").replace("@NUMBERS@", " ".join(in_short(exercises)))
    (folder / name).write_text(text.replace("\r\n", "\n"), encoding="utf-8", newline="\n")
    (folder / name).chmod(mode)
    return folder / name


def in_short(exercises: list[Exercise]) -> list[str]:
    """Numbers as `learn grade` takes them: 3 for all of a lesson."""
    numbers: list[str] = []
    for lesson in lessons_of(exercises):
        chosen = [exercise for exercise in exercises if exercise.lesson == lesson]
        numbers += [lesson.number] if chosen == lesson.exercises else [exercise.number for exercise in chosen]
    return numbers


def lessons_of(exercises: list[Exercise]) -> list[Lesson]:
    return list(dict.fromkeys(exercise.lesson for exercise in exercises))


# ---- minipage itself, and what it needs


def bundle(folder: Path) -> None:
    """All of minipage, in the folder `package`, and requirements.txt."""
    shutil.copytree(PACKAGE, folder / "package" / PACKAGE.name, ignore=NOT_COPIED)
    inside = folder / "package" / PACKAGE.name / "learn" / "lessons"  # where a wheel has them
    for lesson in lessons():
        (inside / lesson.name).mkdir(parents=True, exist_ok=True)
        for name in ("exercise.py", "lesson.ipynb"):
            if (lesson.stub.with_name(name)).exists():
                shutil.copy(lesson.stub.with_name(name), inside / lesson.name / name)
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")


def requirements() -> list[str]:
    """What has to be installed to grade, as pip reads it: from pyproject.toml in a checkout, or from what pip keeps."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.exists():
        import tomllib

        facts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return sorted([*facts["dependencies"], *facts["optional-dependencies"][NEEDED]])
    try:
        found = metadata.requires("minipage") or []
    except metadata.PackageNotFoundError:
        raise LearnError("what minipage needs is not known: it is neither a checkout nor installed by pip.") from None
    plain = [each for each in found if "extra ==" not in each]
    return sorted(
        [
            *plain,
            *(each.partition(";")[0].strip() for each in found if f'extra == "{NEEDED}"' in each.replace("'", '"')),
        ]
    )


# ---- GitHub Classroom


def github(folder: Path, exercises: list[Exercise], source: str) -> list[Path]:
    init(folder, lessons_of(exercises))
    workflow = folder / ".github" / "workflows" / "classroom.yml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text(workflow_text(exercises, source), encoding="utf-8")
    (folder / ".gitignore").write_text(
        ".venv/\n__pycache__/\n.ipynb_checkpoints/\n.minipage-learn.json.new\n", encoding="utf-8"
    )
    readme = folder / "README.md"
    readme.write_text(README.format(install=source), encoding="utf-8")
    return [workflow, readme]


README = """# minipage: exercises

```bash
python3 -m venv .venv && .venv/bin/pip install "{install}"
.venv/bin/python -m minipage learn next       # what to do
.venv/bin/python -m minipage learn check      # whether it is right
```

Write in `*/exercise.py`, commit and push: each push is graded, and the points are in the tab *Actions*.
"""
HEAD = """# GitHub Classroom runs this at each push; its graders and its reporter are those of classroom-resources.
# A learner can change this file in their own repository: for grades that count, run `learn grade` on what they have.
name: Autograding Tests
on: [push, workflow_dispatch, repository_dispatch]

permissions:
  checks: write
  actions: read
  contents: read

jobs:
  run-autograding-tests:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - name: Checkout code
        uses: actions/checkout@v4
      - name: Python
        uses: actions/setup-python@v5
        with:
          python-version: "3.12"
          cache: pip
          cache-dependency-path: .github/workflows/classroom.yml
      - name: minipage
        run: python -m pip install {source}
"""
STEP = """      - name: {title}
        id: {step}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: {title}
          command: python -m minipage learn check {number} --dir .
          timeout: 10
          max-score: {points}
"""


REPORTER = """      - name: Autograding Reporter
        uses: classroom-resources/autograding-grading-reporter@v1
        env:
"""


def workflow_text(exercises: list[Exercise], source: str) -> str:
    steps = {f"exercise_{exercise.number.replace('.', '_')}": exercise for exercise in exercises}
    lines = [HEAD.format(source=json.dumps(source))]
    lines += [
        STEP.format(title=json.dumps(f"{e.number} {e.title}"), step=step, number=e.number, points=e.points)
        for step, e in steps.items()
    ]
    lines.append(REPORTER)
    lines += [f'          {step.upper()}_RESULTS: "${{{{ steps.{step}.outputs.result }}}}"\n' for step in steps]
    lines += [f"        with:\n          runners: {','.join(steps)}\n"]
    return "".join(lines)


# ---- nbgrader


def nbgrader(folder: Path, exercises: list[Exercise], source: str) -> list[Path]:
    config = from_template(folder, "nbgrader_config.txt", exercises, 0o644).rename(folder / "nbgrader_config.py")
    written = [config]
    for lesson in lessons_of(exercises):
        path = folder / "source" / lesson.name / "exercise.ipynb"
        path.parent.mkdir(parents=True)
        chosen = [exercise for exercise in exercises if exercise.lesson == lesson]
        path.write_text(json.dumps(notebook(lesson, chosen), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(path)
    return written


def notebook(lesson: Lesson, exercises: list[Exercise]) -> dict[str, Any]:
    """The exercise in a cell that writes it to a file, and then a cell for each number, which is worth its points."""
    stub = lesson.stub.read_text(encoding="utf-8")
    todo = "Write in the next cell and run it, then the cells below: each says whether it is right."
    intro = f"# {lesson.number}. {lesson.title}\n\n{todo}"
    cells = [
        cell("markdown", intro, "intro"),
        cell("code", f"%%writefile exercise.py\n{stub}", "exercise", solution=True),
    ]
    for exercise in exercises:
        code = f'from minipage.learn.notebook import check\n\ncheck("{exercise.number}")  # {exercise.title}'
        name = f"exercise-{exercise.number.replace('.', '-')}"
        cells.append(cell("code", code, name, points=exercise.points))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def cell(kind: str, text: str, name: str, points: int | None = None, solution: bool = False) -> dict[str, Any]:
    """A cell with the metadata that nbgrader reads (version 3 of its schema)."""
    role: dict[str, Any] = {
        "schema_version": 3, "grade_id": name, "grade": points is not None, "solution": solution,
        "locked": not solution, "task": False,
    }  # fmt: skip
    if points is not None:
        role["points"] = points
    made: dict[str, Any] = {
        "cell_type": kind,
        "id": name,
        "metadata": {"nbgrader": role},
        "source": text.splitlines(True),
    }
    return made | {"outputs": [], "execution_count": None} if kind == "code" else made


SERVICES: dict[str, Callable[[Path, list[Exercise], str], list[Path]]] = {
    "gradescope": gradescope,
    "github": github,
    "nbgrader": nbgrader,
    "container": container,
}
