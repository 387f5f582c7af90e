"""`learn export`: what services are given does there what it says, as far as that can be tried without the services."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.learn.course import HERE, chosen, exercises

ALTERNATIVES = Path(__file__).parent.parent / "alternatives"
RIGHT = (ALTERNATIVES / "03_block_pool.py").read_text(encoding="utf-8")
WRONG = RIGHT.replace("self.unused.append(block)", "pass")
SCHEMA = json.loads((Path(__file__).parent / "gradescope.schema.json").read_text(encoding="utf-8"))
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="these are shell scripts")


def export(folder, *words):
    assert main(["learn", "export", *words[:1], str(folder), *words[1:]]) == 0
    return folder


def hand_in(folder, source=WRONG):
    path = folder / "03_block_pool" / "exercise.py"
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")


def run(script, root, **environment):
    """A script as on a machine that knows nothing of this one: nothing but PATH, and a HOME that is empty."""
    home = root / "home"
    home.mkdir(exist_ok=True)
    given = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "AUTOGRADER": str(root)} | environment
    return subprocess.run(["bash", script], env=given, cwd="/", capture_output=True, text=True, timeout=900)


@posix
def test_gradescopes_script_writes_its_results(tmp_path):
    """In a folder in the place of /autograder, with this Python in the place of the one that setup.sh installs."""
    jsonschema = pytest.importorskip("jsonschema")
    root = tmp_path / "autograder"
    export(root / "source", "gradescope", "3.2", "3.3", "3.4")
    for name in ("setup.sh", "run_autograder"):
        assert (root / "source" / name).stat().st_mode & stat.S_IXUSR
        subprocess.run(["bash", "-n", root / "source" / name], check=True)
    (root / "venv" / "bin").mkdir(parents=True)
    launcher = root / "venv" / "bin" / "python"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    hand_in(root / "submission" / "my-minipage")
    done = run(root / "source" / "run_autograder", root, LEARNER="nobody-of-this-name")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    results = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(results, SCHEMA)
    assert [(test["number"], test["score"], test["max_score"]) for test in results["tests"]] == [
        ("3.2", 1, 1), ("3.3", 0, 1), ("3.4", 0, 1)
    ]  # fmt: skip
    assert "end of the free queue" in results["tests"][1]["output"] and "pool.free" in results["tests"][1]["output"]
    (root / "source" / "package" / "minipage" / "__main__.py").write_text("raise SystemExit('broken')\n")
    assert run(root / "source" / "run_autograder", root, LEARNER="nobody-of-this-name").returncode == 0
    results = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(results, SCHEMA)
    assert results["score"] == 0 and "could not be graded" in results["output"]


@pytest.fixture
def open_folder():
    """Anybody may read what is in it: pytest's own folders are closed, time and again, and a learner is another."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@posix
@pytest.mark.slow
def test_gradescope_from_nothing(open_folder):
    """setup.sh installs what is needed from the package index, and run_autograder grades with it."""
    jsonschema = pytest.importorskip("jsonschema")
    root = open_folder / "autograder"
    export(root / "source", "gradescope", "3")
    done = run(root / "source" / "setup.sh", root, LEARNER="nobody")
    if "No matching distribution" in done.stderr or "Temporary failure in name resolution" in done.stderr:
        pytest.skip("there is no package index here")
    assert done.returncode == 0 and "minipage can grade here" in done.stdout, done.stderr
    hand_in(root / "submission", RIGHT)
    assert run(root / "source" / "run_autograder", root, LEARNER="nobody").returncode == 0
    results = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(results, SCHEMA)
    assert sum(test["score"] for test in results["tests"]) == 7
    assert "root" not in results["extra_data"]["note"]


def test_the_package_that_goes_along_is_whole_and_the_requirements_are_ours(tmp_path):
    export(tmp_path / "out", "container", "3")
    package = tmp_path / "out" / "package" / "minipage"
    ours = {path.relative_to(HERE.parent) for path in HERE.parent.rglob("*.py")}
    assert ours <= {path.relative_to(package) for path in package.rglob("*.py")}
    assert (package / "learn" / "lessons" / "03_block_pool" / "exercise.py").exists()
    needed = (tmp_path / "out" / "requirements.txt").read_text(encoding="utf-8")
    assert re.search("^hypothesis>=", needed, re.MULTILINE) and re.search("^numba>=", needed, re.MULTILINE)
    container = (tmp_path / "out" / "Containerfile").read_text(encoding="utf-8")
    order = [container.index(word) for word in ("COPY package", "chmod -R a+rX,go-w", "USER 1000", "ENTRYPOINT")]
    assert order == sorted(order), "the package belongs to root before somebody else takes over"
    assert "learn grade" not in container or " 3 " in (tmp_path / "out" / "grade-all.sh").read_text(encoding="utf-8")


def test_the_workflow_has_a_step_and_points_for_each_exercise(tmp_path):
    yaml = pytest.importorskip("yaml")
    export(tmp_path / "out", "github")
    workflow = yaml.safe_load((tmp_path / "out" / ".github" / "workflows" / "classroom.yml").read_text())
    steps = workflow["jobs"]["run-autograding-tests"]["steps"]
    graded = {step["with"]["command"]: step for step in steps if "command-grader" in step.get("uses", "")}
    assert len(graded) == len(exercises())
    for exercise in exercises():
        step = graded[f"python -m minipage learn check {exercise.number} --dir ."]
        assert step["with"]["max-score"] == exercise.points
    reporter = steps[-1]
    assert reporter["with"]["runners"].split(",") == [step["id"] for step in graded.values()]
    assert reporter["env"] == {
        f"{step['id'].upper()}_RESULTS": f"${{{{ steps.{step['id']}.outputs.result }}}}" for step in graded.values()
    }
    assert main(["learn", "check", "3.1", "--dir", str(tmp_path / "out")]) == 1  # what the step runs, where it runs it


def test_a_published_linter_has_nothing_to_say_about_the_workflow(tmp_path):
    linter = shutil.which("check-jsonschema", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not linter:
        pytest.skip("check-jsonschema is not installed")
    export(tmp_path / "out", "github")
    workflow = tmp_path / "out" / ".github" / "workflows" / "classroom.yml"
    said = subprocess.run(
        [linter, "--builtin-schema", "vendor.github-workflows", workflow], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout


def test_nbgraders_notebooks_are_valid_and_worth_their_points(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    export(tmp_path / "out", "nbgrader", "3", "12")
    for lesson in ("03_block_pool", "12_tensor_parallelism"):
        notebook = nbformat.read(tmp_path / "out" / "source" / lesson / "exercise.ipynb", 4)
        nbformat.validate(notebook)
        roles = [cell.metadata.nbgrader for cell in notebook.cells]
        assert len({role.grade_id for role in roles}) == len(roles)
        points = sum(role.points for role in roles if role.grade)
        assert points == sum(exercise.points for exercise in chosen([lesson]))
        assert [role.locked for role in roles].count(False) == 1 and roles[1].solution
        assert notebook.cells[1].source.startswith("%%writefile exercise.py\n")


def test_a_graded_cell_raises_what_is_wrong(tmp_path):
    from minipage.learn.notebook import check

    (tmp_path / "exercise.py").write_text(WRONG, encoding="utf-8")
    check("3.2", tmp_path)
    with pytest.raises(AssertionError, match=r"3\.3: .*end of the free queue[\s\S]*pool\.free"):
        check("3.3", tmp_path)


@pytest.mark.parametrize(("words", "said"), [(["3.99"], "there is no exercise"), ([], "is there already")])
def test_bad_input_is_a_sentence(tmp_path, capsys, words, said):
    (tmp_path / "a file").write_text("")
    assert main(["learn", "export", "github", str(tmp_path), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
