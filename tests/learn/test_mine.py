"""demo --mine: every scenario runs on solutions of another style, part by part and all together."""

import shutil
from functools import cache
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.errors import ConfigurationError, LearnError
from minipage.learn.check import check, check_all
from minipage.learn.course import chosen, lessons
from minipage.learn.judge import FAILED, PASSED
from minipage.learn.workspace import init
from minipage.learn.your_engine import Mine
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import SCENARIOS, find_scenario

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


@cache
def due(name):
    """What minipage's own parts generate."""
    return texts(name)


LONG = pytest.param("fragmentation", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return workspace(tmp_path_factory.mktemp("mine"), *PARTS)


@pytest.mark.parametrize("name", [*(name for name in SCENARIOS if name != "fragmentation"), LONG])
def test_every_scenario_says_the_same_with_all_parts(everything, name):
    mine = Mine(everything)
    assert mine.solutions.keys() == PARTS.keys() and not mine.unwritten
    if name in ("admission", "offload"):  # what they show is no part of the exercises
        with pytest.raises(ConfigurationError, match=r"handed in|hand in no scheduler|minipage's own prefix cache"):
            texts(name, mine.build)
    else:
        assert texts(name, mine.build) == due(name)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_runs_on_its_own(tmp_path, part):
    mine = Mine(workspace(tmp_path, part))
    assert [*mine.solutions] == [part]
    for name in ("copy-on-write", "prefix", "swap"):
        assert texts(name, mine.build) == due(name)


def test_the_engine_has_their_parts(everything):
    mine = Mine(everything)
    llm = make_engine(find_scenario("prefix"), {}, mine.build)
    ours = "minipage."
    for thing in (llm.block_pool, llm.scheduler.prefix_cache, *type(llm.scheduler).__mro__[1:3]):
        module = thing.__module__ if isinstance(thing, type) else type(thing).__module__
        assert not module.startswith(ours), thing
    assert "exercise" in llm._intake.block_table.__mro__[1].__module__


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


# ---- what `learn check` accepts, `--mine` runs

NUMPY_POOL = '''
import numpy as np

from minipage.errors import BlockError, ConfigurationError, OutOfBlocksError


class Counting:
    """A base class in the same file."""

    def ref_count(self, block):
        if not 0 <= block < self.num_blocks:
            raise BlockError(block)
        return self.counts[block]

    @property
    def num_free(self):
        return np.int64(len(self.queue))

    @property
    def num_used(self):
        return np.int64(self.num_blocks - len(self.queue))


class BlockPool(Counting):
    def __init__(self, num_blocks, block_size=16):
        if num_blocks < 1 or block_size < 1:
            raise ConfigurationError("too small")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.queue, self.counts = np.arange(num_blocks), np.zeros(num_blocks, np.int64)
        self.on_evict = None

    free_queue = property(lambda self: tuple(self.queue))

    def allocate(self):
        return self.allocate_many(1)[0]

    def allocate_many(self, count):
        if count < 0:
            raise ConfigurationError("fewer than none")
        if count > len(self.queue):
            raise OutOfBlocksError("too few")
        blocks, self.queue = self.queue[:count], self.queue[count:]
        self.counts[blocks] = 1
        for block in blocks:
            if self.on_evict:
                self.on_evict(block)
        return list(blocks)

    def free(self, block):
        if self.ref_count(block) == 0:
            raise BlockError(block)
        self.counts[block] -= 1
        if self.counts[block] == 0:
            self.queue = np.append(self.queue, block)

    def share(self, block):
        if self.ref_count(block) == 0:
            raise BlockError(block)
        self.counts[block] += 1

    def revive(self, block):
        if self.ref_count(block) > 0:
            raise BlockError(block)
        self.queue = self.queue[self.queue != block]
        self.counts[block] = 1

    def check_integrity(self, block_tables):
        pass
'''
POOL = (ALTERNATIVES / "03_block_pool.py").read_text(encoding="utf-8")
MIXIN = POOL.replace("class BlockPool:", "class Given:") + "\n\nclass BlockPool(Given):\n    pass\n"
DATACLASS = "from dataclasses import dataclass\n" + POOL.replace(
    "class BlockPool:\n    def __init__(self, num_blocks: int, block_size: int = 16) -> None:\n",
    "@dataclass(eq=False)\nclass BlockPool:\n    num_blocks: int\n    block_size: int = 16\n\n"
    "    def __post_init__(self):\n        num_blocks, block_size = self.num_blocks, self.block_size\n",
)
STYLES = {
    "numpy": NUMPY_POOL,
    "a base class": MIXIN,
    "a dataclass": DATACLASS,
    "a function": POOL.replace("def allocate(", "def take(")
    + "\n\ndef allocate(self):\n    return self.take()\n\n\nBlockPool.allocate = allocate\n",
    "saved by Notepad": "\ufeff" + POOL.replace("\n", "\r\n"),
    "in an encoding of its own": "# -*- coding: latin-1 -*-\n# caf\xe9\n" + POOL,
}


assert "__post_init__" in DATACLASS


@pytest.mark.parametrize(
    "style",
    [style if style == "a dataclass" else pytest.param(style, marks=pytest.mark.slow) for style in STYLES],
)
def test_what_check_accepts_the_engine_runs(tmp_path, style, capsys):
    path = workspace(tmp_path) / PARTS["block pool"] / "exercise.py"
    encoding = "latin-1" if "encoding" in style else "utf-8"
    path.write_bytes(STYLES[style].encode(encoding))
    exercises = chosen(["3"] if style == "numpy" else ["3.2"])
    assert {verdict.status for verdict in check(exercises, tmp_path)} == {PASSED}
    assert [*Mine(tmp_path).solutions] == ["block pool"]
    for way in ("--json", "--html", "--timeline") if style == "numpy" else ("--json",):
        assert main(["demo", "prefix", "--mine", str(tmp_path), way, str(tmp_path / "run")]) == 0, capsys.readouterr()
        assert (tmp_path / "run").stat().st_size > 1000


@pytest.mark.slow
def test_check_grade_and_mine_say_the_same(tmp_path):
    """Of the reference and of another style in turn: test_exercises.py has both of every lesson."""
    init(tmp_path)
    for i, lesson in enumerate(lessons()):
        source = lesson.solution if i % 2 else ALTERNATIVES / f"{lesson.name}.py"
        shutil.copy(source, tmp_path / lesson.name / "exercise.py")
    checked = list(check(chosen([]), tmp_path))
    assert checked == check_all(chosen([]), tmp_path)
    assert {verdict.status for verdict in checked} == {PASSED}
    assert Mine(tmp_path).solutions.keys() == PARTS.keys()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def allocate(self):", "def allocate(self:"),
        ("def allocate(self):", "def alocate(self):"),
        ("class BlockPool:", "from minipage.memory import BlockPool as Given\n\n\nclass BlockPool(Given):"),
        ("class BlockPool:", "import no_such_module\n\n\nclass BlockPool:"),
        ("class BlockPool:", "import helper\n\n\nclass BlockPool:"),
    ],
)
def test_mine_says_what_check_says(tmp_path, old, new):
    path, _ = broken(tmp_path, "block pool", old, new)
    path.with_name("helper.py").write_text("")
    [verdict] = check(chosen(["3.2"]), tmp_path)
    assert verdict.status == FAILED
    with pytest.raises(LearnError) as raised:
        Mine(tmp_path)
    assert verdict.message.removeprefix("0 points: ") in str(raised.value) and str(path) in str(raised.value)
