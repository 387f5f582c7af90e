"""The ten projects: each starting file runs, one solution of each is better, and a benchmark is not easily fooled."""

import json
import re
import types
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.errors import BlockError, LearnError
from minipage.learn.projects.commands import STARTERS, about, scored
from minipage.learn.projects.scores import SCORES
from minipage.learn.projects.server import Job, Server

SOLUTIONS = Path(__file__).parent / "projects"
INSTRUCTORS = Path(__file__).parent.parent.parent / "INSTRUCTORS.md"


def mean(scores):
    return sum(scores.values()) / len(scores)


def test_there_are_ten_and_instructors_names_them():
    assert len(SCORES) == 10
    text = INSTRUCTORS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in SCORES)
    assert all(about(name).endswith((".", "?")) for name in SCORES)


def test_the_plan_for_a_term_has_every_lesson():
    [plan] = re.findall(r"some with two: ([^.]+)\.", INSTRUCTORS.read_text(encoding="utf-8"))
    taught = sorted(int(lesson) for lesson in re.findall(r"\d+", plan))
    lessons = sorted(int(folder.name[:2]) for folder in (INSTRUCTORS.parent / "lessons").glob("[0-9][0-9]_*"))
    assert plan.count(";") == 9 - 1 and taught == lessons


@pytest.mark.parametrize("name", SCORES)
def test_a_solution_is_better_than_the_starting_file_and_scores_are_repeatable(name):
    start, solved = scored(name, STARTERS / f"{name}.py"), scored(name, SOLUTIONS / f"{name}.py")
    assert len(start) == 3 and start.keys() == solved.keys()
    assert mean(solved) > mean(start)
    if name in ("router", "drafts", "victim"):
        assert scored(name, SOLUTIONS / f"{name}.py") == solved


def test_a_file_is_begun_scored_and_entered(tmp_path, capsys):
    path, board = tmp_path / "mine.py", tmp_path / "board.json"
    assert main(["learn", "project", "window", str(path)]) == 0
    assert path.read_text() == (STARTERS / "window.py").read_text()
    assert main(["learn", "project", "window", str(path), "--board", str(board)]) == 0
    path.write_text((SOLUTIONS / "window.py").read_text())
    main(["learn", "project", "window", str(path), "--board", str(board), "--name", "ann"])
    said = capsys.readouterr()
    table = said.err.strip().splitlines()[-2:]
    assert table[0].startswith("| ann |") and table[1].startswith("| mine | 0.00")
    assert [entry["name"] for entry in json.loads(board.read_text())] == ["ann", "mine"]
    main(["learn", "project", "window", str(path), "--board", str(board), "--name", "ann"])
    assert len(json.loads(board.read_text())) == 2
    capsys.readouterr()
    assert main(["learn", "project"]) == 0 and capsys.readouterr().out.count("\n") == 10
    main(["learn", "project", "window", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["scores"]["short"] > 50


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nothing"], "there is no project"), (["window", "broken.py"], "stops with ZeroDivisionError")],
)
def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert main(["learn", "project", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_what_breaks_the_rules_scores_nothing():
    assert mean(SCORES["window"](types.SimpleNamespace(to_free=lambda n, held, window, size: held[:-1]))) == 0

    class Endless:
        def __init__(self, capacity):
            self.seen = 0

        def find(self, tokens):
            return len(tokens)

        def insert(self, tokens):
            self.seen += len(tokens)

        def num_tokens(self):
            return self.seen

    assert mean(SCORES["tree"](types.SimpleNamespace(Index=Endless))) == 0
    thief = types.SimpleNamespace(choose=lambda free, known: 63 if 63 not in free else free[0], found=lambda b: 0)
    thief.evicted = thief.found
    with pytest.raises(BlockError):
        SCORES["eviction"](types.SimpleNamespace(Eviction=lambda: thief))
    wrong = types.SimpleNamespace(propose=lambda tokens: [0, 0, 0, 0])
    assert set(SCORES["drafts"](wrong).values()) == {1.0}


def test_the_server_computes_every_token_once_if_there_is_room_and_more_if_not():
    for num_blocks, again in ((100, False), (6, True)):
        server = Server(num_blocks, block_size=4)
        load = [Job(f"r{i}", 0.0, [1] * 6, 10) for i in range(4)]
        server.run(load)
        assert all(len(job.times) == 10 and job.times == sorted(job.times) for job in load)
        assert (server.num_computed > 4 * 15) == again and server.pool.num_free == num_blocks


def test_a_file_that_is_no_python_is_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LearnError, match="is no Python file"):
        scored("window", tmp_path / "notes.txt")
