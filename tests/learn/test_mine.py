"""demo --mine: every scenario runs on solutions of another style, part by part and all together."""

import shutil
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.errors import LearnError
from minipage.learn.course import lessons
from minipage.learn.mine import Mine
from minipage.learn.workspace import init
from minipage.trace.demo import Demo, make_engine
from minipage.trace.scenarios import SCENARIOS, find_scenario

ALTERNATIVES = Path(__file__).parent / "alternatives"
PARTS = {lesson.part: lesson.name for lesson in lessons() if lesson.part}


def workspace(folder, *parts):
    init(folder)
    for part in parts:
        shutil.copy(ALTERNATIVES / f"{PARTS[part]}.py", folder / PARTS[part] / "exercise.py")
    return folder


def texts(name, build=None):
    """What the scenario generates."""
    scenario = find_scenario(name)
    demo = Demo(make_engine(scenario, {}, build), scenario)
    for frame in demo.frames():
        last = frame
    demo.llm.scheduler.check_integrity()
    return {seq.label: seq.tokens for seq in last.all_sequences}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return workspace(tmp_path_factory.mktemp("mine"), *PARTS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_says_the_same_with_all_parts(everything, name):
    mine = Mine(everything)
    assert mine.solutions.keys() == PARTS.keys() and not mine.unwritten
    assert texts(name, mine.build) == texts(name)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_runs_on_its_own(tmp_path, part):
    mine = Mine(workspace(tmp_path, part))
    assert [*mine.solutions] == [part]
    for name in ("copy-on-write", "prefix", "swap"):
        assert texts(name, mine.build) == texts(name)


def test_the_engine_has_their_parts(everything):
    mine = Mine(everything)
    llm = make_engine(find_scenario("prefix"), {}, mine.build)
    ours = "minipage."
    for thing in (llm.block_pool, llm.scheduler.prefix_cache, *type(llm.scheduler).__mro__[1:3]):
        module = thing.__module__ if isinstance(thing, type) else type(thing).__module__
        assert not module.startswith(ours), thing
    assert "exercise" in llm._block_table.__mro__[1].__module__


def test_the_demo_says_whose_parts_run(tmp_path, capsys):
    workspace(tmp_path, "block pool", "attention")
    assert main(["demo", "basics", "--steps", "1", "--mine", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Your parts: block pool (lesson 3), attention (lesson 5)." in out
    assert "block table (next: 4.1)" in out


def test_generate_runs_on_them_too(tmp_path, capsys):
    workspace(tmp_path, "block pool")
    command = ["generate", "To be", "--max-tokens", "5", "--seed", "1"]
    assert main(command) == main([*command, "--mine", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    first, second = captured.out.split("To be")[1:]
    assert first == second and "Your parts: block pool" in captured.err


def broken(folder, part, old, new):
    path = workspace(folder, part) / PARTS[part] / "exercise.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(old, new), encoding="utf-8")
    return path, source[: source.index(old)].count("\n") + 1


def test_a_part_that_raises_is_named_with_its_line(tmp_path, capsys):
    path, line = broken(tmp_path, "block pool", "block = self.unused.pop(0)", "block = self.unused.pop(0) + None")
    assert main(["demo", "basics", "--mine", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"your block pool stopped the engine: {path}, line {line}: TypeError" in err and "Traceback" not in err


def test_a_part_that_breaks_the_engine_elsewhere_says_how_to_find_it(tmp_path, capsys):
    broken(tmp_path, "block table", "return slots[start:stop]", "return slots[start + 1 : stop]")
    assert main(["demo", "basics", "--mine", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "learn check 4" in err and "Traceback" not in err


def test_a_part_that_does_not_load_is_named_with_its_line(tmp_path, capsys):
    path, line = broken(tmp_path, "block pool", "class BlockPool:", "import no_such_module\n\n\nclass BlockPool:")
    assert main(["generate", "To be", "--mine", str(tmp_path)]) == 2
    assert f"{path}, line {line}: the file does not run: ModuleNotFoundError" in capsys.readouterr().err


def test_without_any_part_it_says_what_to_write(tmp_path):
    init(tmp_path)
    with pytest.raises(LearnError, match=r"no part in .* is written yet.*block pool \(3\.1\)"):
        Mine(tmp_path)
    with pytest.raises(LearnError, match="there is no folder"):
        Mine(tmp_path / "nowhere")
