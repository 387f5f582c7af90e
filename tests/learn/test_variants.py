"""`learn init --seed NAME`: other numbers in the examples, all of them right, and graded like everybody's."""

import re

import pytest

from minipage.cli import main
from minipage.learn.check import check
from minipage.learn.course import chosen, lessons
from minipage.learn.judge import PASSED, TODO, judge
from minipage.learn.load import is_untouched, load
from minipage.learn.variants import EXAMPLES, check_examples, stub_text
from minipage.learn.workspace import Workspace, init

VARIED = [lesson for lesson in lessons() if lesson.number in {example.lesson for example in EXAMPLES}]


def test_each_example_is_in_its_stub_once_and_says_what_the_solution_says():
    assert check_examples() == []


@pytest.mark.parametrize("lesson", VARIED, ids=lambda lesson: lesson.name)
def test_learners_get_other_numbers_and_one_learner_always_the_same(lesson):
    texts = [stub_text(lesson, seed) for seed in map(str, range(12))]
    assert len({*texts}) >= 8 and stub_text(lesson, "3") == texts[3]
    assert all(len(text.splitlines()) == len(lesson.stub.read_text(encoding="utf-8").splitlines()) for text in texts)


@pytest.mark.parametrize("seed", ["ann", "ben", "cat"])
def test_what_the_examples_say_is_so(seed):
    """Every call in a docstring is made, on the solution, and compared with what is written behind it."""
    num_calls = 0
    for lesson in VARIED:
        solution = load(lesson, lesson.solution)
        text = " ".join(stub_text(lesson, seed).split())
        for call, said in re.findall(r"\b(\w+\(\[?[^()]*\)) is (\[[^\]]*\]|[-\d.]*\d)", text):
            if hasattr(solution.module, call.partition("(")[0]):
                assert eval(call, vars(solution.module)) == eval(said), (call, said)
                num_calls += 1
    assert num_calls >= 8
    cache = load(chosen(["8"])[0].lesson, chosen(["8"])[0].lesson.solution)
    byte, salt, digest = re.search(
        r'bytes\(\[(\d+)\]\) \* 32, root_hash\("(\w+)"\).hex\(\) begins with (\w{12})', stub_text(VARIED[5], seed)
    ).groups()
    from minipage.memory import BlockPool

    own = cache.PrefixCache(BlockPool(2, 2))
    own._secret = bytes([int(byte)]) * 32
    assert own.root_hash(salt).hex().startswith(digest)


def test_a_seeded_folder_is_used_and_graded_as_any(tmp_path, capsys):
    folder = tmp_path / "ann"
    assert main(["learn", "init", str(folder), "--seed", "ann"]) == 0
    space = Workspace(folder)
    assert space.seed == "ann" and not any(map(space.is_begun, lessons()))
    [exercise] = chosen(["1.1"])
    path = space.file(exercise.lesson)
    assert judge(exercise, load(exercise.lesson, path)).status == TODO
    own = path.read_text(encoding="utf-8")
    capsys.readouterr()
    main(["learn", "next", "--dir", str(folder)])
    [example] = re.findall(r"reserved_waste\(\[.*\) is", own)
    assert example.split("(")[1] in " ".join(capsys.readouterr().out.split())
    solution = exercise.lesson.solution.read_text(encoding="utf-8")
    path.write_text(solution, encoding="utf-8")
    assert [verdict.status for verdict in check([exercise], folder)] == [PASSED] and space.is_begun(exercise.lesson)
    space.reset([exercise], whole_file=True)
    assert path.read_text(encoding="utf-8") == own
    assert Workspace(folder).seed == "ann"


def test_another_seed_needs_another_folder(tmp_path, capsys):
    init(tmp_path / "a", seed="ann")
    assert main(["learn", "init", str(tmp_path / "a"), "--seed", "ben"]) == 2
    assert "the seed 'ann'" in capsys.readouterr().err
    assert main(["learn", "init", str(tmp_path / "a")]) == 0


def test_comments_and_docstrings_are_no_work(tmp_path):
    lesson = lessons()[2]
    stub = lesson.stub.read_text(encoding="utf-8")
    path = tmp_path / "exercise.py"
    path.write_text("# later\n" + stub.replace("4 0 2", "4 1 2"), encoding="utf-8")
    assert is_untouched(path, lesson)
    path.write_text(stub.replace("return self.num_blocks - self.num_free", "return 0"), encoding="utf-8")
    assert not is_untouched(path, lesson)
