"""`learn grade` for a class: right grades, whatever some of them hand in; late, missing and alike ones are said."""

import csv
import json
import os
import re
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.learn.course import HERE, chosen
from minipage.learn.judge import FAILED
from minipage.learn.originals import Originals
from tests.learn.classroom.a_class import HOSTILE, hash_of, installation, make

ALTERNATIVE = (Path(__file__).parent.parent / "alternatives" / "03_block_pool.py").read_text(encoding="utf-8")
SECOND = (Path(__file__).parent.parent / "alternatives" / "second" / "03_block_pool.py").read_text(encoding="utf-8")


def hand_in(folder, source=ALTERNATIVE, lesson="03_block_pool"):
    path = folder / lesson / "exercise.py"
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    return path


def grade(capsys, *words):
    code = main(["learn", "grade", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows_of(path):
    return {row["learner"]: row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_class_becomes_rows_and_pages(room, capsys):
    """A right one, a wrong one, one that runs for ever, one that is nowhere, one that is a zip file."""
    hand_in(room / "in" / "alice")
    hand_in(room / "in" / "bob" / "my-minipage", ALTERNATIVE.replace("self.unused.pop(0)", "self.unused.pop()"))
    hand_in(room / "in" / "eve", HOSTILE["a page"])
    (room / "in" / "zed.zip").write_text("PK")
    (room / "roster.csv").write_text("learner,submitted\nalice,2026-12-02T08:00\nbob,2026-12-01T08:00\ncarol,\n")
    words = [*sorted(room.glob("in/*")), "3.1", "3.2", "--csv", "g.csv", "--json", "--roster", "roster.csv"]
    code, out, err = grade(capsys, *words, "--due", "2026-12-01T23:59")
    rows, facts = rows_of(room / "g.csv"), json.loads(out)
    assert code == 0 and "wrote g.csv" in err
    assert {name: (row["status"], row["points"], row["3.2"]) for name, row in rows.items()} == {
        "alice": ("late", "2", "1"), "bob": ("graded", "1", "0"), "eve": ("graded", "1", "0"),
        "zed.zip": ("missing", "0", ""), "carol": ("missing", "0", ""),
    }  # fmt: skip
    assert "unpack it" in rows["zed.zip"]["note"] and "no folder of this name" in rows["carol"]["note"]
    assert [each["learner"] for each in facts["folders"]] == list(rows)
    failed = facts["folders"][1]["exercises"][1]
    assert failed["status"] == FAILED and "front of the free queue" in failed["message"] and failed["picture"]
    page = (room / "g" / "bob.html").read_text(encoding="utf-8")
    for piece in ("1 of 2 points", "The smallest case", "pool.allocate()", "free queue, next first", 'class="mark"'):
        assert piece in page
    assert "alice" not in page and "<script>" not in (room / "g" / "eve.html").read_text(encoding="utf-8")
    assert 'href="bob.html"' in (room / "g" / "index.html").read_text(encoding="utf-8")


def test_the_line_that_is_lit_is_the_one_that_python_names(room, capsys):
    """A U+2028, as comes along when text is pasted, ends no line."""
    hand_in(
        room / "in" / "bob",
        f"# pasted\u2028from a page\n{ALTERNATIVE.replace('self.unused.pop(0)', 'self.no_such.pop(0)')}",
    )
    assert grade(capsys, room / "in" / "bob", "3.2", "--csv", "g.csv")[0] == 0
    lit = re.findall('class="mark">(.*?)<', (room / "g" / "bob.html").read_text(encoding="utf-8"))
    assert len(lit) == 1 and "self.no_such.pop(0)" in lit[0]


def test_the_same_command_goes_on_where_it_stopped(room, capsys, monkeypatch):
    for name in ("a", "b", "c"):
        hand_in(room / "in" / name, f"# {name}\n{ALTERNATIVE}")
    words = [*sorted(room.glob("in/*")), "3.1", "--csv", "g.csv", "--jobs", "1"]
    from minipage.learn.classroom import grade as module

    asked, really = [], module.Grader.folder

    def stops_at_b(self, submission, *others, **named):
        asked.append(submission.learner)
        if submission.learner == "b" and len(asked) < 3:
            raise KeyboardInterrupt
        return really(self, submission, *others, **named)

    monkeypatch.setattr(module.Grader, "folder", stops_at_b)
    code, _, err = grade(capsys, *words)
    assert code == 130 and "The same command goes on" in err
    with open(room / "g.csv.journal", "a", encoding="utf-8") as file:
        file.write('{"key": "half a li')
    before = len(asked)
    assert grade(capsys, *words)[0] == 0
    assert asked[0] == "a" and "a" not in asked[before:] and set(asked[before:]) == {"b", "c"}
    hand_in(room / "in2" / "a", ALTERNATIVE.replace("[*range(num_blocks)]", "[*range(1, num_blocks + 1)]"))
    (room / "in2" / "a" / "03_block_pool" / "exercise.py").replace(room / "in" / "a" / "03_block_pool" / "exercise.py")
    assert grade(capsys, *words)[0] == 0
    assert asked[-1] == "a" and rows_of(room / "g.csv")["a"]["points"] == "0"  # another file, another verdict
    grade(capsys, *words, "--again")
    assert sorted(asked[-3:]) == ["a", "b", "c"]


def test_who_is_alike_is_said_with_the_lines(room, capsys):
    renamed = ALTERNATIVE.replace("unused", "vacant").replace("holders", "owners").replace("left", "others")
    for name, source in {"ann": ALTERNATIVE, "ben": "# mine!\n" + ALTERNATIVE, "cat": renamed, "dan": SECOND}.items():
        hand_in(room / "in" / name, source)
    _, out, _ = grade(capsys, *sorted(room.glob("in/*")), "3.1", "--csv", "g.csv", "--json")
    [same, disguised] = json.loads(out)["similar"]
    assert (same["learners"], same["same"], same["share"]) == (["ann", "ben"], True, 1)
    assert disguised["learners"] == ["ann", "cat"] and not disguised["same"] and disguised["share"] > 0.9
    source = ALTERNATIVE.splitlines()
    first, last = same["lines"][-1]
    assert "    def revive(self, block):" in source[first - 1 : last]
    assert rows_of(room / "g.csv")["dan"]["similar"] == "" and "ben" in rows_of(room / "g.csv")["ann"]["similar"]


def test_untouched_files_are_alike_and_nobody_says_so(room, capsys):
    stub = chosen(["3"])[0].lesson.stub.read_text(encoding="utf-8")
    for name in ("ann", "ben"):
        hand_in(room / "in" / name, stub)
    hand_in(room / "in" / "cat", stub + "\n")
    _, out, _ = grade(capsys, *sorted(room.glob("in/*")), "3.1", "--json")
    assert json.loads(out)["similar"] == []


def test_a_link_to_the_neighbours_file_earns_nothing(room, capsys):
    path = hand_in(room / "in" / "ann")
    (room / "in" / "ben" / "03_block_pool").mkdir(parents=True)
    os.symlink(path, room / "in" / "ben" / "03_block_pool" / "exercise.py")
    _, out, _ = grade(capsys, *sorted(room.glob("in/*")), "3.1", "--json")
    ann, ben = json.loads(out)["folders"]
    assert ann["points"] == 1 and ben["points"] == 0 and "is a link" in ben["exercises"][0]["message"]


def test_of_two_copies_in_one_folder_the_newer_one_counts(room, capsys):
    old = hand_in(room / "in" / "ann" / "a", ALTERNATIVE.replace("[*range(num_blocks)]", "[]"))
    hand_in(room / "in" / "ann" / "b")
    os.utime(old, (0, 0))
    _, out, _ = grade(capsys, room / "in" / "ann", "3.1", "--csv", "g.csv", "--json")
    assert json.loads(out)["folders"][0]["points"] == 1


def test_a_folder_has_only_this_much_time(room, capsys):
    hand_in(room / "in" / "ann")
    hand_in(room / "in" / "eve", HOSTILE["a loop"])
    words = [*sorted(room.glob("in/*")), "3.2", "3.3", "3.4", "--json", "--time-limit", "1", "--folder-limit", "0.9"]
    _, out, _ = grade(capsys, *words)
    eve = json.loads(out)["folders"][1]["exercises"]
    assert "still running" in eve[0]["message"] and "used up the time" in eve[2]["message"]


def test_if_minipage_is_changed_the_others_are_graded_again_and_who_did_it_gets_nothing(room, capsys, monkeypatch):
    for name in ("ann", "ben", "eve"):
        hand_in(room / "in" / name)
    from minipage.learn.classroom import grade as module

    really = module.check_file

    def judged(group, folder, *others):
        if folder.name == "eve":
            (HERE / "added_by_eve.py").write_text("")
        return really(group, folder, *others)

    monkeypatch.setattr(module, "check_file", judged)
    monkeypatch.setattr(module, "contents", lambda folder: None)  # each is judged by itself
    _, out, _ = grade(capsys, *sorted(room.glob("in/*")), "3.1", "--json", "--jobs", "2")
    for left in HERE.glob("added_by_eve.py*"):
        left.unlink()
    points = {each["learner"]: each["points"] for each in json.loads(out)["folders"]}
    assert points == {"ann": 1, "ben": 1, "eve": 0}
    assert "added_by_eve.py changed" in json.loads(out)["folders"][2]["exercises"][0]["message"]


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "../up", "index", "ä ö", "a/b", "x" * 300])
def test_whatever_a_folder_is_called_pages_and_sheets_are_harmless(name):
    from minipage.learn.classroom.pages import file_name
    from minipage.learn.classroom.tables import harmless

    page = file_name(name)
    assert "/" not in page and page not in ("index.html", ".html") and not page.startswith(".") and len(page) < 110
    assert not str(harmless(name)).startswith("=")
    assert file_name(name + " ") != page


def test_who_declares_an_encoding_that_reads_no_text_stops_nobody(room, capsys):
    hand_in(room / "in" / "ann")
    hand_in(room / "in" / "eve", f"# coding: rot13\n{ALTERNATIVE}")
    code, out, _ = grade(capsys, *sorted(room.glob("in/*")), "3.1", "--csv", "g.csv", "--json")
    ann, eve = json.loads(out)["folders"]
    assert code == 0 and ann["points"] == 1 and "Save it as UTF-8" in eve["exercises"][0]["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="such names and links are Linux's")
def test_names_that_are_no_text_and_links_that_lead_nowhere_are_rows(room, capsys):
    for name in (b"bad\xff", b"bad\xfe", b"new\nline"):
        os.mkdir(os.fsencode(room) + b"/" + name)
    os.symlink("itself", room / "itself")
    code, out, _ = grade(capsys, *sorted(room.iterdir()), "3.1", "--csv", room / "g.csv")
    rows = rows_of(room / "g.csv")
    assert code == 0 and list(rows) == ["bad\\udcfe", "bad\\udcff", "itself", "new\\nline"] and "itself" in out
    assert "leads nowhere" in rows["itself"]["note"] and "none of the lessons" in rows["bad\\udcff"]["note"]
    assert len([*(room / "g").glob("bad*.html")]) == 2


def test_the_pages_have_a_folder_of_their_own_if_the_sheet_has_no_ending(room, capsys):
    (room / "in" / "a").mkdir(parents=True)
    assert grade(capsys, room / "in" / "a", "3.1", "--csv", "grades")[0] == 0
    assert (room / "grades").is_file() and (room / "grades-pages" / "a.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "in"], "there is no folder nowhere"),
        (["in", "--due", "tomorrow", "--csv", "g.csv"], "2026-12-01T23:59"),
        (["in", "--csv", "no/such/g.csv"], "cannot be written"),
        (["in", "--csv", "in"], "in is a folder"),
        (["in", "--csv", "g.csv", "--pages", "file"], "file is a file"),
        (["in/a", "--csv", "in.csv"], "among the learners' folders"),
        (["in", "--roster", "none.csv"], "roster none.csv cannot be read"),
        (["in", "--folder-limit", "0"], "more than 0"),
        (["in", "in", "--format", "gradescope"], "for one folder"),
    ],
)
def test_bad_input_is_a_sentence(room, capsys, words, said):
    (room / "in" / "a").mkdir(parents=True)
    (room / "file").touch()
    code, _, err = grade(capsys, *words)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["alike", "all different"])
def test_three_hundred_learners(room, capsys, own):
    """Right grades for all, some of them hostile; and nothing of minipage is touched. It prints what it took."""
    before = installation()
    expected = {f"learner-{i:03}": make(room / "in" / f"learner-{i:03}", i, own=own) for i in range(300)}
    for name in expected:
        (room / "in" / name).mkdir(parents=True, exist_ok=True)  # whoever has nothing to hand in
    start, used = time.monotonic(), os.times()
    code, out, _ = grade(capsys, *sorted(room.glob("in/*")), "--csv", "g.csv", "--json")
    seconds, facts, after = time.monotonic() - start, json.loads(out), installation()
    wrong, known = [], 0
    for each in facts["folders"]:
        got = {row["exercise"]: row["status"] for row in each["exercises"]}
        known += len(expected[each["learner"]])
        wrong += [(each["learner"], n, s) for n, s in expected[each["learner"]].items() if got.get(n, FAILED) != s]
    with capsys.disabled():
        now = os.times()
        processor = now.children_user + now.children_system - used.children_user - used.children_system
        print(
            f"\n{len(facts['folders'])} folders in {seconds / 60:.1f} minutes ({processor:.0f} s of processor time): "
            f"{known} verdicts were known, {len(wrong)} are wrong.\n"
            f"minipage's {len(before)} files before: {hash_of(before)}\n{'and after:':>24} {hash_of(after)}"
        )
    assert code == 0 and before == after and not Originals(HERE.parent).put_back()
    assert wrong == [] and len(facts["folders"]) == 300
    assert datetime.fromisoformat(facts["folders"][0]["handed_in"])
    shutil.rmtree(room / "in")
