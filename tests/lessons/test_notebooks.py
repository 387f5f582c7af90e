"""The lessons: a script and its notebook say the same, the notebook has no outputs, and all of it runs."""

import json
import re
from pathlib import Path

import pytest

from minipage import LLM, SamplingParams

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
def test_a_lesson_begins_with_one_line_that_is_folded(folder):
    assert first_code_cell(folder) == first_code_cell(FOLDERS[0]), "the first cell is the same in all lessons"
    first, *others = [line for line in first_code_cell(folder).splitlines() if line]
    assert first.startswith("from minipage.lesson import setup") and "pip install" in first
    assert others == ["plt, np = setup()"]
    cell = next(cell for cell in notebook(folder)["cells"] if cell["cell_type"] == "code")
    assert cell["metadata"]["jupyter"]["source_hidden"] and "hide-input" in cell["metadata"]["tags"]


@by_name
def test_what_vllm_does_was_checked_and_says_where(folder):
    script = (folder / "lesson.py").read_text(encoding="utf-8")
    section = script.partition("## What vLLM does")[2].partition("## Your turn")[0]
    checked = re.search(r"\*Checked against vLLM (\d+\.\d+\.\d+): (.*)\.\*", section)
    assert checked and re.search(r"`vllm/[\w/]+(\.py|/)`", checked[2]), "name the version and the files"


@by_name
def test_a_shape_stays_on_the_line_that_makes_the_array(folder):
    """ruff moves a comment behind the bracket that it closes, where nobody sees what it belongs to."""
    script = (folder / "lesson.py").read_text(encoding="utf-8")
    assert not re.findall(r"^ *[\])}]+[.\w()=0-9, -]*  # .*$", script, re.MULTILINE)


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
    """CI does this too, when it builds the book. No lesson teaches a name that is on its way out (renamed.py)."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    document = nbformat.read(folder / "lesson.ipynb", 4)
    nbclient.NotebookClient(document, timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    warnings = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not any("DeprecationWarning" in text for text in warnings), warnings


def test_where_lesson_13_looks_at_too_little_memory_there_is_too_little():
    code = [text for kind, text, _ in cells(notebook(LESSONS / "13_measuring")["cells"]) if kind == "code"]
    [watched] = [text for text in code if "room for two or three" in text]
    seen = {"LLM": LLM, "SamplingParams": SamplingParams}
    exec(watched, seen)
    assert max(len(frame.running) for frame in seen["trace"].steps) == 3
    assert max(len(frame.waiting) for frame in seen["trace"].steps) > 1
