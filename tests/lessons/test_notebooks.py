"""The lessons: a script and its notebook say the same, the notebook has no outputs, and all of it runs."""

import json
import re
from pathlib import Path

import pytest

LESSONS = Path(__file__).parent.parent.parent / "lessons"
FOLDERS = sorted(path.parent for path in LESSONS.glob("*/lesson.py"))
by_name = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def notebook(folder: Path) -> dict:
    return json.loads((folder / "lesson.ipynb").read_text(encoding="utf-8"))


def cells(nodes) -> list[tuple[str, str, list[str]]]:
    """(kind, text, tags) of each cell."""
    return [(c["cell_type"], "".join(c["source"]).strip("\n"), c["metadata"].get("tags", [])) for c in nodes]


def first_code_cell(folder: Path) -> str:
    return next(text for kind, text, _ in cells(notebook(folder)["cells"]) if kind == "code")


@by_name
def test_the_notebook_says_what_the_script_says(folder):
    jupytext = pytest.importorskip("jupytext")
    script = jupytext.read(folder / "lesson.py", fmt="py:percent")
    hint = f"run: jupytext --sync {folder.relative_to(LESSONS.parent)}/lesson.py"
    assert cells(notebook(folder)["cells"]) == cells(script.cells), hint


@by_name
def test_the_notebook_has_no_outputs_and_each_cell_has_a_name_of_its_own(folder):
    nodes = notebook(folder)["cells"]
    for cell in nodes:
        assert not cell.get("outputs"), "clear all outputs before committing"
        assert cell.get("execution_count") is None
    names = [cell["id"] for cell in nodes]
    assert len(set(names)) == len(names)


@by_name
def test_a_lesson_begins_by_installing_what_is_missing(folder):
    assert first_code_cell(folder) == first_code_cell(FOLDERS[0]), "the first cell is the same in all lessons"
    assert "pip" in first_code_cell(folder)


@by_name
def test_a_lesson_has_a_question_a_trace_or_a_plot_an_exercise_and_vllm(folder):
    script = (folder / "lesson.py").read_text(encoding="utf-8")
    number = int(folder.name[:2])
    assert re.search(rf"^# # {number}\. ", script, re.MULTILINE), "the title has the lesson's number"
    assert re.search(r"^# > ", script, re.MULTILINE), "it begins with a question"
    assert "plt.subplots" in script
    assert "## What vLLM does" in script
    assert f"learn check {number}" in script


@by_name
def test_a_lesson_names_the_exercises_that_there_are(folder):
    exercise = folder / "exercise.py"
    if not exercise.exists():
        pytest.skip("no exercise yet")
    there_are = set(re.findall(r"Exercise (\d+\.\d+)", exercise.read_text(encoding="utf-8")))
    your_turn = (folder / "lesson.py").read_text(encoding="utf-8").partition("## Your turn")[2]
    named = set(re.findall(rf"\b{int(folder.name[:2])}\.\d+\b", your_turn))
    assert named and named <= there_are
    last = max(there_are, key=lambda name: int(name.split(".")[1]))
    assert last in named, f"the lesson does not speak of exercise {last}"


@pytest.mark.slow
@by_name
def test_a_lesson_runs_from_top_to_bottom(folder):
    """CI does this too, when it builds the book."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    document = nbformat.read(folder / "lesson.ipynb", 4)
    nbclient.NotebookClient(document, timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
