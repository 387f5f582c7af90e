"""`learn`, command by command, as a learner uses it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.learn.course import chosen
from minipage.learn.workspace import Workspace

ALTERNATIVE = Path(__file__).parent / "alternatives" / "03_block_pool.py"


@pytest.fixture
def space(tmp_path, monkeypatch, capsys):
    assert main(["learn", "init", str(tmp_path / "my")]) == 0
    monkeypatch.chdir(tmp_path / "my")
    capsys.readouterr()
    return tmp_path / "my"


def solve(space, old="", new=""):
    text = ALTERNATIVE.read_text(encoding="utf-8")
    assert old in text
    (space / "03_block_pool" / "exercise.py").write_text(text.replace(old, new) if old else text, encoding="utf-8")


def learn(capsys, *arguments):
    code = main(["learn", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", [["init"], ["slides"], ["export", "github"]])
def test_a_folder_without_a_name_is_not_the_one_where_one_is(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = learn(capsys, *command, "", *["3"] * (command[0] == "export"))
    assert (code, out, err) == (2, "", "minipage: the name of the folder is empty; give it one.\n")
    assert not list(tmp_path.iterdir())


def test_a_new_folder_lists_everything_and_says_what_is_next(space, capsys):
    code, out, _ = learn(capsys)
    assert code == 0 and "0 of " in out and "3 The block pool" in out and "Next is " in out
    code, out, _ = learn(capsys, "list", "3")
    assert "3.2 Allocate, 1 point" in out


def test_an_untouched_exercise_is_to_do_and_the_exit_code_is_1(space, capsys):
    code, out, _ = learn(capsys, "check", "3.1")
    lines = (space / "03_block_pool" / "exercise.py").read_text(encoding="utf-8").splitlines()
    first = 1 + next(i for i, line in enumerate(lines) if "raise NotImplementedError(" in line and "`" not in line)
    assert code == 1 and "to do  3.1 A new pool" in out and f"03_block_pool/exercise.py:{first}" in out


def test_passing_is_remembered_and_opens_the_solution(space, capsys):
    code, _, err = learn(capsys, "solution", "3.2")
    assert code == 2 and "you have not passed 3.2 yet" in err
    solve(space)
    code, out, _ = learn(capsys, "check")
    assert code == 0 and out.count("passed") == 6 and "demo --mine" in out
    code, out, _ = learn(capsys, "solution", "3.2")
    assert code == 0 and "def allocate(self)" in out and "def allocate_many" in out and "one piece of code" in out
    assert not re.search(r"6 of 6\b", learn(capsys)[1]) and "done" in learn(capsys)[1]


def test_check_stops_at_the_first_step_that_fails_and_shows_it(space, capsys):
    solve(space, "self.unused.append(block)", "self.unused.insert(0, block)")
    code, out, _ = learn(capsys, "check")
    assert code == 1 and "passed  3.2" in out and "failed  3.3" in out and "3.4" not in out
    for piece in ("pool.free(0)", "expected  the free queue: [1, 0]", "but got  the free queue: [0, 1]",
                  "free queue, next first: 0 1", "freed longest ago is reused first", "learn hint 3.3"):  # fmt: skip
        assert piece in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_fails_again_is_no_longer_passed(space, capsys):
    solve(space)
    learn(capsys, "check", "3.3")
    solve(space, "self.unused.append(block)", "pass")
    assert "the file has changed since" in learn(capsys, "list", "3")[1]
    learn(capsys, "check", "3.3")
    assert learn(capsys, "solution", "3.3")[0] == 2


def test_what_another_terminal_has_noted_meanwhile_stays(space, capsys):
    """`learn watch` in one terminal, and in another `learn check` and `learn hint`."""
    watching = Workspace(space)
    solve(space)
    learn(capsys, "check", "3.1")
    learn(capsys, "hint", "3.4")
    watching.record(chosen(["3.2"])[0], True)
    assert learn(capsys, "list")[1].count("█") == 2
    assert "hint 2 of 3" in learn(capsys, "hint", "3.4")[1]


def test_two_terminals_may_write_at_the_same_moment(space):
    program = (
        "import sys; from pathlib import Path; from minipage.learn.course import exercises; "
        "from minipage.learn.workspace import Workspace; it = Workspace(Path()); "
        "[it.record(exercise, True) for exercise in exercises() * 10]"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert Workspace(space).next() is None and len(list(space.glob(".minipage-learn*"))) == 1


def test_three_hints_one_after_the_other(space, capsys):
    hints = [learn(capsys, "hint", "3.3")[1] for _ in range(4)]
    assert ["hint 1 of 3" in hints[0], "hint 2 of 3" in hints[1], "hint 3 of 3" in hints[2]] == [True] * 3
    assert "self._free.append(block)" in hints[2] and hints[3] == hints[0]


def test_next_says_what_to_write_and_where(space, capsys):
    solve(space)
    learn(capsys, "check")
    out = learn(capsys, "next")[1]
    assert "4.1 Blocks needed" in out and "04_block_tables/exercise.py:" in out and "how many blocks hold" in out
    assert "04_block_tables/lesson.ipynb" in out


def test_reset_puts_one_exercise_or_the_whole_file_back(space, capsys):
    path = space / "03_block_pool" / "exercise.py"
    stub = path.read_text(encoding="utf-8")
    solved = stub.replace('raise NotImplementedError("Exercise 3.3: drop one reference")', "return 33").replace(
        'raise NotImplementedError("Exercise 3.4: add one reference")', "return 34"
    )
    path.write_text(solved, encoding="utf-8")
    assert learn(capsys, "reset", "3.3")[0] == 0
    now = path.read_text(encoding="utf-8")
    assert "return 33" not in now and "return 34" in now
    assert (space / "03_block_pool" / "exercise.1.bak").read_text(encoding="utf-8") == solved
    assert learn(capsys, "reset", "3")[0] == 0
    assert path.read_text(encoding="utf-8") == stub
    assert (space / "03_block_pool" / "exercise.2.bak").read_text(encoding="utf-8") == now


@pytest.mark.parametrize("letter", ["\u2028", "\x0c", "\x85"])
def test_reset_takes_the_lines_that_python_sees(space, capsys, letter):
    """Some of what comes along when text is pasted ends a line elsewhere, but not to Python."""
    path = space / "03_block_pool" / "exercise.py"
    stub = f"# pasted{letter}from a page\n" + path.read_text(encoding="utf-8")
    path.write_text(
        stub.replace('raise NotImplementedError("Exercise 3.3: drop one reference")', "pass"), encoding="utf-8"
    )
    assert learn(capsys, "reset", "3.3")[0] == 0
    assert path.read_text(encoding="utf-8") == stub


def test_a_file_that_is_gone_is_put_back_by_the_command_that_is_told(space, capsys):
    path = space / "03_block_pool" / "exercise.py"
    stub = path.read_text(encoding="utf-8")
    path.unlink()
    for said in (learn(capsys, "check", "3.1")[1], learn(capsys, "reset", "3.1")[2]):
        assert "`learn reset 03_block_pool` puts it back" in " ".join(said.split())
    code, out, _ = learn(capsys, "reset", "03_block_pool")
    assert code == 0 and path.read_text(encoding="utf-8") == stub and "what you had" not in out


def test_where_there_is_no_line_to_write_none_is_named(space, capsys):
    (space / "01_why_paging" / "exercise.py").write_text("def reserved_waste(:\n", encoding="utf-8")
    assert "reserved_waste  in 01_why_paging/exercise.py\n" in learn(capsys, "next")[1]


def test_init_again_keeps_what_was_written(space, capsys):
    solve(space)
    learn(capsys, "init", str(space))
    assert (space / "03_block_pool" / "exercise.py").read_text() == ALTERNATIVE.read_text()


def test_grade_gives_points_for_what_passes(space, capsys):
    solve(space, "self.unused.append(block)", "pass")
    shutil.rmtree(space / "04_block_tables")
    code, out, _ = learn(capsys, "grade", str(space), "3", "4.1", "--json")
    result = json.loads(out)
    assert code == 0 and (result["points"], result["max_points"]) == (2, 8)
    by_number = {row["exercise"]: row for row in result["exercises"]}
    assert by_number["3.1"]["status"] == "passed" and by_number["3.1"]["points"] == 1
    assert by_number["3.3"]["status"] == "failed" and "end of the free queue" in by_number["3.3"]["message"]
    assert by_number["4.1"]["points"] == 0 and "is not there" in by_number["4.1"]["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "3.9"], "there is no exercise '3.9'"),
        (["check", "--time-limit", "0"], "more than 0"),
        (["hint", "3"], "name one exercise"),
        (["reset"], "say what to reset"),
        (["grade", "nowhere"], "there is no folder"),
        (["list", "--dir", "nowhere"], "is no workspace"),
    ],
)
def test_bad_input_is_a_sentence(space, capsys, arguments, words):
    code, _, err = learn(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1


def test_outside_of_a_workspace_it_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = learn(capsys, "next")
    assert code == 2 and "learn init my-minipage" in err
    code, out, _ = learn(capsys)
    assert code == 0 and "3 The block pool" in out and "learn init my-minipage" in out


def test_a_damaged_state_file_is_a_sentence(space, capsys):
    (space / ".minipage-learn.json").write_text("{")
    code, _, err = learn(capsys)
    assert code == 2 and "is damaged" in err


def test_a_folder_without_exercises_is_noted_when_it_is_graded(tmp_path, capsys):
    code, out, _ = learn(capsys, "grade", str(tmp_path), "3.1", "--json")
    assert code == 0 and json.loads(out)["points"] == 0
    assert "is it the right folder?" in json.loads(out)["note"]
