"""`pytest --impl=reference|student|DIR`: whose code the tests judge.

    reference   minipage's own (the default)
    student     lessons/*/exercise.py of this checkout
    DIR         a learner's folder (`learn init DIR`)

With another than the reference, and no tests named, only the graders run (minipage/learn/graders/test_*.py), which get
the solution as the fixture `impl`. Any other tests may be named: they find the learner's block pool, block table and
prefix cache in the place of minipage's, which are put there before anything else of minipage is imported. (Some of them
ask for more than the exercises do, such as certain words in a message.) What is to be written is reported as TODO, and
the run fails.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from minipage.errors import LearnError
from minipage.learn.course import HERE, Lesson, lessons
from minipage.learn.load import Solution, laid_over, load, stubs

PLACES = {"BlockPool": "block_pool", "BlockTable": "block_table", "PrefixCache": "prefix_cache"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--impl", default="reference", metavar="reference|student|DIR", help="whose code is judged")


def file_of(lesson: Lesson, impl: str) -> Path:
    if impl == "reference":
        return lesson.solution
    return lesson.stub if impl == "student" else (Path(impl) / lesson.name / "exercise.py").resolve()


def pytest_configure(config: pytest.Config) -> None:
    impl = config.getoption("--impl")
    if impl == "reference":
        return
    if impl != "student" and not Path(impl).is_dir():
        raise pytest.UsageError(f"--impl must be reference, student or a folder; there is no folder {impl}.")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(HERE / "graders")]
    try:
        solutions = {n.number: load(n, file_of(n, impl)) for n in lessons() if n.number in "3478"}
    except LearnError as error:
        raise pytest.UsageError(str(error)) from None
    put_in_place(solutions)


def put_in_place(solutions: dict[str, Solution]) -> None:
    """Let the learner's classes be minipage.memory's."""
    memory = importlib.import_module("minipage.memory")
    theirs = {"BlockPool": solutions["3"].BlockPool, "PrefixCache": solutions["8"].PrefixCache}
    plain = solutions["4"].BlockTable
    sharing = [e for e in solutions["7"].lesson.exercises if stubs(solutions["7"], e.names)]
    theirs["BlockTable"] = plain if sharing else laid_over(solutions["7"].CopyOnWrite, plain)
    for name, cls in theirs.items():
        for module in (memory, sys.modules[f"minipage.memory.{PLACES[name]}"]):
            setattr(module, name, cls)


@pytest.fixture(scope="module")
def impl(request: pytest.FixtureRequest) -> Solution:
    """The solution that the graders of a lesson judge."""
    name = request.module.__name__.rpartition("test_")[2]
    [lesson] = [lesson for lesson in lessons() if lesson.name == name]
    return load(lesson, file_of(lesson, request.config.getoption("--impl")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    todo = call.excinfo is not None and call.excinfo.errisinstance(NotImplementedError)
    if todo and item.config.getoption("--impl") != "reference":
        report.longrepr = f"TODO {call.excinfo.value}" if call.excinfo else "TODO"
        report.todo = True
    return report


def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    return ("failed", "T", "TODO") if getattr(report, "todo", False) else None
