"""Every exercise: the stub is to do, solutions of any style pass, and wrong ones are caught by name."""

import re
from collections import Counter
from pathlib import Path

import pytest

from minipage.learn import graders
from minipage.learn.check import check
from minipage.learn.course import chosen, exercises
from minipage.learn.judge import FAILED, PASSED, TODO, judge
from minipage.learn.load import definitions, load
from minipage.learn.workspace import init
from tests.learn.mistakes import MISTAKES
from tests.learn.subtle_mistakes import SUBTLE

ALTERNATIVES = Path(__file__).parent / "alternatives"
every_exercise = pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.number)


def judged(exercise, path):
    return judge(exercise, load(exercise.lesson, path))


@every_exercise
def test_the_stub_is_to_do(exercise):
    verdict = judged(exercise, exercise.lesson.stub)
    assert verdict.status == TODO and verdict.message and verdict.line, verdict


def in_short(exercise):
    """The last of each lesson. By default the graders judge all of the reference by themselves (pytest_plugin.py)."""
    return exercise == exercise.lesson.exercises[-1]


@pytest.mark.parametrize(
    "exercise",
    [pytest.param(e, id=e.number, marks=[] if in_short(e) else pytest.mark.slow) for e in exercises()],
)
def test_the_reference_passes(exercise):
    verdict = judged(exercise, exercise.lesson.solution)
    assert verdict.status == PASSED, verdict


@pytest.mark.slow  # these and the subtle mistakes are a step of their own in .ci/run
@pytest.mark.parametrize(
    "exercise, path",
    [(e, path) for e in exercises() for path in sorted(ALTERNATIVES.rglob(f"{e.lesson.name}.py"))],
    ids=lambda thing: getattr(thing, "number", "") or thing.parent.name,
)
def test_a_solution_in_another_style_passes(exercise, path):
    verdict = judged(exercise, path)
    assert verdict.status == PASSED, verdict


OLD_WORDS = {
    "on_evict": "on_reuse", "block_hashes": "keys", "block_hash": "key", "root_hash": "root",
    "max_blocks": "most_blocks", "GroupStatus": "Status", "blocks_for": "blocks_to_allocate",
}  # fmt: skip


def in_old_words(lesson):
    source = (ALTERNATIVES / f"{lesson.name}.py").read_text(encoding="utf-8")
    for new, old in OLD_WORDS.items():
        source = re.sub(rf"\b{new}\b", old, source)
    return source.replace("minipage.scheduling.chunks", "minipage.scheduling.group")


@pytest.mark.slow
def test_solutions_written_with_the_old_names_still_pass(tmp_path):
    init(tmp_path)
    exercises = chosen(["3.2", "4.4", "8.2", "9.4"])
    for exercise in exercises:
        path = tmp_path / exercise.lesson.name / "exercise.py"
        path.write_text(in_old_words(exercise.lesson), encoding="utf-8")
    assert [(verdict.status, verdict.message) for verdict in check(exercises, tmp_path)] == [(PASSED, "")] * 4


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES, *(pytest.param(mistake, marks=pytest.mark.slow) for mistake in SUBTLE)],
    ids=lambda m: f"{m.exercise}: {' '.join(m.new.split())[:50] or 'nothing'}",
)
def test_the_mistake_is_caught_and_named(mistake, tmp_path):
    [exercise] = chosen([mistake.exercise])
    right = (ALTERNATIVES / f"{exercise.lesson.name}.py").read_text(encoding="utf-8")
    assert right.count(mistake.old) == 1, f"{mistake.old!r} is there {right.count(mistake.old)} times"
    path = tmp_path / "exercise.py"
    path.write_text(right.replace(mistake.old, mistake.new), encoding="utf-8")
    verdict = judged(exercise, path)
    assert verdict.status == FAILED, verdict
    assert re.search(mistake.words, verdict.message), verdict


def test_every_exercise_has_three_mistakes_three_hints_and_a_reason():
    counts = Counter(mistake.exercise for mistake in MISTAKES)
    for exercise in exercises():
        assert counts[exercise.number] >= 3, f"{exercise.number} has {counts[exercise.number]} wrong solutions"
        assert len(exercise.hints) == 3 and exercise.why and exercise.points > 0, exercise.number


def test_every_grader_that_is_written_is_asked():
    """Some lie in files of their own, and are imported one by one."""
    written, asked = set(), set()
    for path in Path(graders.__file__).parent.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        written |= set(re.findall(r"^def (test_\d+_\d+_\w+)", source, re.MULTILINE))
        if path.name.startswith("test_"):
            asked |= set(re.findall(r"\btest_\d+_\d+_\w+", source))
    assert written <= asked, written - asked


@every_exercise
def test_stub_and_solution_agree_on_names_and_arguments(exercise):
    """What the graders call is in the stub, under the same name and with the same arguments."""
    stub = definitions(exercise.lesson.stub.read_text(encoding="utf-8"))
    assert all(name in stub for name in exercise.names), exercise.names
    solution = definitions(exercise.lesson.solution.read_text(encoding="utf-8"))
    for name in set(exercise.names) & solution.keys():
        assert arguments(stub[name]) == arguments(solution[name]), name


def arguments(node):
    return [argument.arg for argument in node.args.args], len(node.args.defaults)
