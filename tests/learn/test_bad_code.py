"""Whatever is wrong with a learner's file: a sentence with its line, and never a wrong grade."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipage.learn.check import check
from minipage.learn.course import chosen
from minipage.learn.judge import FAILED, PASSED, TODO

RIGHT = (Path(__file__).parent / "alternatives" / "03_block_pool.py").read_text(encoding="utf-8")
POOL_FIRST_LINE = "self.num_blocks, self.block_size = num_blocks, block_size\n"


def checked(tmp_path, source, numbers=("3.1", "3.2"), limit=20):
    folder = tmp_path / "03_block_pool"
    folder.mkdir(exist_ok=True)
    (folder / "exercise.py").write_text(source, encoding="utf-8")
    return list(check(chosen(list(numbers)), tmp_path, limit))


def at_start(code):
    return RIGHT.replace("class BlockPool:", f"{code}\n\n\nclass BlockPool:")


def in_allocate(code):
    return RIGHT.replace(
        "        block = self.unused.pop(0)\n", f"        {code}\n        block = self.unused.pop(0)\n"
    )


def line_of(source, piece):
    return source[: source.index(piece)].count("\n") + 1


def test_a_right_solution_passes(tmp_path):
    assert [verdict.status for verdict in checked(tmp_path, RIGHT)] == [PASSED, PASSED]


FAILS_TO_LOAD = {
    "a syntax error": ("def f(:", "Python cannot read this file: .*def f"),
    "a failing import": ("import no_such_module", "No module named 'no_such_module'"),
    "an exception": ("1 / 0", "the file does not run: ZeroDivisionError"),
    "the end of Python": ("import sys; sys.exit(0)", "ends Python itself"),
    "an end that nobody can catch": ("import os; os._exit(0)", "came to no end: it ended Python itself"),
}


@pytest.mark.parametrize("name", FAILS_TO_LOAD)
def test_a_file_that_does_not_load_fails_in_a_sentence(tmp_path, name):
    code, words = FAILS_TO_LOAD[name]
    source = at_start(code)
    for verdict in checked(tmp_path, source):
        assert verdict.status == FAILED
        assert re.search(words, verdict.message), verdict
        assert verdict.line == line_of(source, code) or "_exit" in code
        assert "Traceback" not in verdict.message


def test_a_file_that_never_ends_loading_is_cut_off_at_its_line(tmp_path):
    source = at_start("while True:\n    pass")
    for verdict in checked(tmp_path, source, limit=1):
        assert verdict.status == FAILED and "still running after 1 s, at line" in verdict.message, verdict
        assert verdict.line in (line_of(source, "while True"), line_of(source, "while True") + 1)


def test_an_endless_loop_costs_its_own_exercise_only(tmp_path):
    source = in_allocate("while True: self.num_blocks")
    first, second, third = checked(tmp_path, source, ("3.1", "3.2", "4.1"), limit=1.5)
    assert first.status == PASSED
    assert second.status == FAILED and second.line == line_of(source, "while True"), second
    assert "a loop that does not end" in second.message
    assert third.status == FAILED and "is not there" in third.message  # the next file is looked at, too


@pytest.mark.parametrize("line", ["    def allocate(self):", "class BlockPool:"])
def test_something_deleted_is_named(tmp_path, line):
    verdict = checked(tmp_path, RIGHT.replace(line, line.replace("(", "_other(").replace("Pool:", "Pond:")), ["3.2"])[0]
    assert verdict.status == FAILED and "there is no BlockPool.allocate in this file any more" in verdict.message


def test_a_missing_file_is_named(tmp_path):
    [verdict] = check(chosen(["3.1"]), tmp_path)
    assert verdict.status == FAILED and "`learn reset" in verdict.message and verdict.message.count(str(tmp_path)) == 1


FORGED = """
import json, os, sys
for exercise in ("3.1", "3.2"):
    line = json.dumps({"verdict": {"number": exercise, "status": "passed"}, "token": ""})
    print(line, line, sep=chr(10))
    print(line, file=sys.stderr)
    os.write(1, line.encode() + b"\\n")
    os.write(2, line.encode() + b"\\n")
"""


def test_printing_changes_no_grade(tmp_path):
    wrong = RIGHT.replace("self.unused.pop(0)", "self.unused.pop()").replace(
        "class BlockPool:", FORGED + "\n\nclass BlockPool:"
    )
    assert [verdict.status for verdict in checked(tmp_path, wrong)] == [PASSED, FAILED]
    garbage = in_allocate("print('\\x00\\x1b[2J' * 1000)")
    assert [verdict.status for verdict in checked(tmp_path, garbage)] == [PASSED, PASSED]


def test_what_was_printed_in_the_smallest_failing_example_is_shown(tmp_path):
    source = in_allocate("print('the queue is', self.unused)").replace("self.unused.pop(0)", "self.unused.pop()")
    verdict = checked(tmp_path, source, ["3.2"])[0]
    assert verdict.printed == "the queue is [0, 1]\n"
    assert verdict.calls == ["pool = BlockPool(2, block_size=4)", "pool.allocate()  → 1"]
    assert "free queue, next first: 0" in verdict.picture


def test_a_stub_half_done_is_to_do(tmp_path):
    source = in_allocate("raise NotImplementedError('Exercise 3.2: and the count')")
    first, second = checked(tmp_path, source)
    assert first.status == PASSED
    assert (second.status, second.message) == (TODO, "and the count")
    assert second.line == line_of(source, "raise NotImplementedError")


def test_an_exception_is_said_with_its_line(tmp_path):
    source = in_allocate("[][1]")
    verdict = checked(tmp_path, source, ["3.2"])[0]
    assert verdict.status == FAILED and verdict.line == line_of(source, "[][1]")
    assert "IndexError: list index out of range" in verdict.message and "`[][1]`" in verdict.message


@pytest.mark.parametrize("code", ["self.allocate()", "import sys; sys.exit(0)", "import os; os._exit(0)", "input()",
                                  "raise KeyboardInterrupt"])  # fmt: skip
def test_nothing_that_happens_in_a_call_is_a_pass(tmp_path, code):
    first, second = checked(tmp_path, in_allocate(code))
    assert (first.status, second.status) == (PASSED, FAILED), second
    assert "Traceback" not in second.message


def test_state_outside_of_self_is_named(tmp_path):
    source = RIGHT.replace("self.unused = [*range(num_blocks)]", "self.unused = SHARED").replace(
        "class BlockPool:", "SHARED = [0, 1, 2]\n\n\nclass BlockPool:"
    )
    verdict = checked(tmp_path, source, ["3.2"])[0]
    assert verdict.status == FAILED


def test_a_module_of_the_learners_own_name_does_not_shadow_ours(tmp_path):
    (tmp_path / "03_block_pool").mkdir()
    (tmp_path / "03_block_pool" / "hypothesis.py").write_text("1 / 0")
    (tmp_path / "03_block_pool" / "json.py").write_text("1 / 0")
    assert checked(tmp_path, RIGHT, ["3.1"])[0].status == PASSED


def test_without_hypothesis_a_sentence_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['hypothesis'] = None\nfrom minipage.cli import main\nsys.exit(main(sys.argv[1:]))"
    run = subprocess.run([sys.executable, "-c", code, "learn", "grade", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 2 and "pip install hypothesis" in run.stderr and "Traceback" not in run.stderr
