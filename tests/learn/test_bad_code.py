"""Whatever is wrong with a learner's file: a sentence with its line, and never a wrong grade."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.learn.check import Keeper, Limits, check
from minipage.learn.child import MARK, end_family
from minipage.learn.course import chosen
from minipage.learn.judge import FAILED, PASSED, TODO, Verdict
from minipage.learn.originals import Originals
from minipage.learn.workspace import init

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
    assert "something that does not end" in second.message
    assert third.status == FAILED and "is not there" in third.message  # the next file is looked at, too


def a_link_to_itself(path):
    path.symlink_to(path)


def a_pipe(path):
    os.mkfifo(path)


def far_too_much(path):
    path.write_bytes(b"#" * 50_000_000)


def zeros(path):
    path.write_bytes(bytes(10_000))


def nested_without_end(path):
    path.write_text("(" * 100_000)


def nested_as_far_as_it_goes(path):
    path.write_text("-" * 100_000 + "1")


ODD_FILES = {
    "a folder": (Path.mkdir, "is no file"),
    "a link to itself": (a_link_to_itself, "cannot be read: "),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "is not there"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "is no file"),
    "a pipe": (a_pipe, "is no file"),
    "far too much": (far_too_much, "has 50000 kB"),
    "nothing": (Path.touch, "there is no BlockPool"),
    "zeros": (zeros, "Python cannot read this file"),
    "not a text": (
        lambda path: path.write_bytes(bytes(range(128, 256))),
        "Python cannot read this file|cannot be read",
    ),
    "an encoding that is none of texts": (
        lambda path: path.write_text("# coding: rot13\n"),
        "rot13.* Save it as UTF-8",
    ),
    "an encoding that reads nothing": (lambda path: path.write_text("# coding: undefined\n"), "Save it as UTF-8"),
    "an encoding that there is not": (lambda path: path.write_text("# coding: klingon\n"), "unknown encoding.*klingon"),
    "nested without end": (nested_without_end, "too many nested parentheses"),
    "nested as far as it goes": (nested_as_far_as_it_goes, "Python cannot read this file|RecursionError|MemoryError"),
}


QUICK = "a link to itself", "a pipe", "far too much", "nested without end"  # of each sort one


@pytest.mark.skipif(os.name == "nt", reason="pipes and links are made here")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ODD_FILES]
)
def test_whatever_lies_there_is_named_in_a_sentence(tmp_path, monkeypatch, capsys, name):
    make, words = ODD_FILES[name]
    init(tmp_path)
    path = tmp_path / "03_block_pool" / "exercise.py"
    path.unlink()
    make(path)
    assert main(["learn", "grade", str(tmp_path), "3.2", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["exercises"]
    assert row["status"] == FAILED and row["points"] == 0 and re.search(words, row["message"]), row
    assert "\n" not in row["message"] and "Traceback" not in row["message"] and len(row["message"]) < 1000
    monkeypatch.chdir(tmp_path)
    for command in ("list", "next"), ("list", "3"):
        assert main(["learn", *command[:1]]) == 0
    assert main(["learn", "reset", "3"]) == 0
    assert path.read_text() == chosen(["3"])[0].lesson.stub.read_text()
    capsys.readouterr()


def test_a_helper_beside_the_exercise_is_said_to_be_left_out(tmp_path):
    (tmp_path / "03_block_pool").mkdir()
    (tmp_path / "03_block_pool" / "helper.py").write_text("")
    [verdict] = checked(tmp_path, at_start("import helper"), ["3.1"])
    assert verdict.status == FAILED and "helper.py is not looked at: everything has to be in" in verdict.message


def test_a_file_that_never_ends_loading_costs_its_time_once(tmp_path):
    verdicts = checked(tmp_path, at_start("import time; time.sleep(1000)"), ["3", "4.1"], limit=1)
    assert len({verdict.message for verdict in verdicts[:6]}) == 1
    assert "still running after 1 s, at line" in verdicts[0].message and "is not there" in verdicts[6].message


def test_each_that_does_not_end_leaves_the_others_less_time():
    limits = Limits(10.0)
    given = []
    for _ in range(51):
        given.append(limits.now())
        limits.note(Verdict("3.2", FAILED, f"still running after {given[-1]:g} s"))
    assert given[:3] == [10, 5, 2.5] and given[-1] == 1 and sum(given) < 70


def test_a_killed_keeper_costs_the_exercise_that_it_was_at(tmp_path, monkeypatch):
    """Should somebody find a way to kill it: here the test does, in the middle of an exercise."""
    [exercise] = chosen(["3.2"])
    path = tmp_path / "exercise.py"
    path.write_text(RIGHT)
    with Keeper() as keeper:
        assert keeper.judged(exercise, path, 10.0)[0].status == PASSED
        os.kill(keeper.process.pid, 9)
        verdict, _ = keeper.judged(exercise, path, 10.0)
        assert verdict.status == FAILED and "it killed the process that judges it" in verdict.message
        assert keeper.judged(exercise, path, 10.0)[0].status == PASSED
        monkeypatch.setattr("minipage.learn.check.PATIENCE", -4)  # the alarm rings at once
        assert "still running" in keeper.judged(exercise, path, 10.0)[0].message


def test_a_family_is_found_wherever_it_has_gone(tmp_path):
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc")
    program = (
        "import os, time\nos.fork() or (os.setsid(), os.fork(), os.chdir('/'))\nprint(1, flush=True)\ntime.sleep(1000)"
    )
    mark = "a-mark-of-this-test"
    started = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {MARK: mark}, stdout=subprocess.PIPE)
    for _ in range(3):
        started.stdout.readline()
    end_family(mark)
    assert started.stdout.read() == b""  # all that could write to it are gone
    assert started.wait() == -9


def test_what_was_written_over_minipage_is_put_back(tmp_path):
    package = tmp_path / "package"
    (package / "graders").mkdir(parents=True)
    grader, text, lost = package / "graders" / "test_1.py", package / "text.md", package / "lost.py"
    for file in (grader, text, lost):
        file.write_text(file.name)
    originals = Originals(package)
    assert originals.put_back() == ""
    grader.write_text("def test_1_1(impl): pass")
    lost.unlink()
    (package / "numpy.py").write_text("added")
    assert originals.put_back() == "lost.py, numpy.py, test_1.py"
    assert [grader.read_text(), lost.read_text()] == [grader.name, lost.name] and not (package / "numpy.py").exists()
    assert (package / "graders" / "test_1.py.changed").read_text() == "def test_1_1(impl): pass"
    assert originals.put_back() == ""


SPOILT = RIGHT.replace("def allocate_many(self, count):\n", "def allocate_many(self, count):\n        return []\n")


def test_a_failure_is_shown_under_its_own_exercise(tmp_path):
    """3.6 is checked with allocate_many, too, which is 3.5."""
    stub = "raise NotImplementedError('Exercise 3.6: from wherever it is')"
    unwritten = re.sub(
        r"(def revive\(self, block\):\n).*?(?=\n    def |\Z)", rf"\1        {stub}\n", SPOILT, flags=re.DOTALL
    )
    fifth, sixth = checked(tmp_path, unwritten, ["3.5", "3.6"])
    assert fifth.status == FAILED and fifth.calls
    assert (sixth.status, sixth.message) == (TODO, "from wherever it is")
    fifth, sixth = checked(tmp_path, SPOILT, ["3.5", "3.6"])
    assert fifth.calls and (sixth.status == PASSED or "Mend 3.5 first" in sixth.message)


@pytest.mark.parametrize("line", ["    def allocate(self):", "class BlockPool:"])
def test_something_deleted_is_named(tmp_path, line):
    verdict = checked(tmp_path, RIGHT.replace(line, line.replace("(", "_other(").replace("Pool:", "Pond:")), ["3.2"])[0]
    assert verdict.status == FAILED and "there is no BlockPool.allocate in this file any more" in verdict.message


def test_a_missing_file_is_named(tmp_path):
    [verdict] = check(chosen(["3.1"]), tmp_path)
    assert (
        verdict.status == FAILED
        and "`learn reset" in verdict.message
        and verdict.message.count("03_block_pool/exercise.py") == 1
    )


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
