"""The demo on a real pseudo-terminal: every key, interrupts, crashes, and how the terminal is left."""

import json
import os
import re
import signal
import sys
import time

import pytest

MINIPAGE = [sys.executable, "-m", "minipage"]
QUIET = {"OPENBLAS_NUM_THREADS": "1"}  # tests share their cores with other tests
LAST_STEP = 23  # of the demo; if the model or the story changes, so does this
PATIENCE = 90  # seconds; a machine that compiles the kernels first needs some of them
SIZES = [(80, 24), (160, 48)]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")


class Terminal:
    """minipage in a pseudo-terminal, started by a shell that reports how it left the terminal."""

    def __init__(self, columns, lines, arguments="", env=None):
        import pexpect

        command = (
            f"trap : INT TERM; stty -g; {' '.join(MINIPAGE)} demo {arguments}; echo code=$?; stty -g; echo all-over"
        )
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.child = pexpect.spawn(
            "sh", ["-c", command], dimensions=(lines, columns), encoding="utf-8", timeout=PATIENCE,
            env={**environ, **QUIET, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})},
        )  # fmt: skip
        self.child.delaybeforesend = 0
        self.before = self.child.readline().strip()
        self.columns, self.lines = columns, lines
        self.drawn = ""

    def screen(self):
        """The lines of the newest picture, once all of it is there; each begins where the last one did."""
        *_, newest = self.drawn.rpartition("\x1b[H")
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", newest).split("\r\n")
        return [line.rstrip() for line in lines] if len(lines) >= self.lines else []

    def until(self, *wanted):
        """Read until all of `wanted` are on the screen; returns it."""
        import pexpect

        deadline = time.monotonic() + PATIENCE
        while True:
            is_there = all(text in "\n".join(self.screen()) for text in wanted)
            assert is_there or time.monotonic() < deadline, f"{wanted} did not come:\n" + "\n".join(self.screen())
            try:
                self.drawn += self.child.read_nonblocking(100_000, timeout=0.05 if is_there else 0.2)
            except pexpect.TIMEOUT:
                if is_there:  # and nothing more is being drawn
                    return self.screen()

    def press(self, keys, *wanted):
        self.child.send(keys)
        return self.until(*wanted)

    def resize(self, columns, lines):
        self.columns, self.lines, self.drawn = columns, lines, ""
        self.child.setwinsize(lines, columns)

    def close(self):
        """What was printed after the full screen, and the exit code; checks that the terminal is as it was."""
        self.child.expect(r"\x1b\[\?1049l")  # back from the alternate screen
        self.drawn += self.child.before
        printed, code = self.end()
        everything = self.drawn + printed
        assert everything.rfind("\x1b[?25h") > everything.rfind("\x1b[?25l"), "the cursor is still hidden"
        return printed, code

    def end(self):
        """What was printed from here on, and the exit code; checks that the terminal is as it was."""
        self.child.expect_exact("all-over")
        printed, code, after = re.fullmatch(r"(?s)(.*)code=(\d+)\r\n(\S+)\r\n", self.child.before).groups()
        assert after == self.before, "the terminal was not restored"
        self.child.close()
        return printed, int(code)


def step_of(screen):
    return int(re.search(r"step (\d+)", screen[0])[1])


def phase_of(screen):
    found = re.search(r"step \d+ • (\w+)", screen[0])
    return found[1] if found else "update"


def seconds_of(screen):
    return float(re.search(r"([\d.]+) s a step", screen[-1])[1])


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_every_key(columns, lines):
    terminal = Terminal(columns, lines)
    terminal.until("step 1")
    seen = {}
    screen = terminal.press(" ", "paused")
    assert len(screen) == lines and max(map(len, screen)) <= columns

    # home; next and back, in every way that a terminal may send them
    seen[1] = terminal.press("\x1b[H", "step 1 ", "paused")
    for number, key in [(2, "n"), (3, "\x1b[C"), (4, "\x1bOC")]:
        seen[number] = terminal.press(key, f"step {number} ", "paused")
    for number, key in [(3, "b"), (2, "\x1b[D"), (1, "\x1bOD")]:
        assert terminal.press(key, f"step {number} ") == seen[number], "back shows something else than before"
    assert terminal.press("b", "step 1 ") == seen[1]  # there is nothing before the first

    # phase by phase, and back to whole steps
    terminal.press("n", "step 2 ")
    terminal.press("p", "step 2 ")
    phases = [phase_of(terminal.press("n", "step 3 • schedule"))]
    for phase in ("forward", "sample"):
        phases.append(phase_of(terminal.press("n", f"step 3 • {phase}")))
    assert terminal.press("n", "step 3  ") == seen[3]
    assert phase_of(terminal.press("b", "step 3 • sample")) == "sample"
    assert terminal.press("p", "step 3  ") == seen[3], "a step is shown whole again"

    # jump: to a step, to the ends
    terminal.press("12", "step 12: enter jumps there")
    seen[12] = terminal.press("\r", "step 12 ", "paused")
    terminal.press("7", "step 7: enter")
    assert terminal.press("\n", "step 7 ")[0].startswith("minipage • step 7 ")
    terminal.press("9", "step 9: enter")
    assert step_of(terminal.press("b", "step 6 ", "paused")) == 6  # another key, and the jump is off
    last = terminal.press("\x1b[F", f"step {LAST_STEP} ", "the end")
    for there, here in [("\x1bOH", "\x1bOF"), ("\x1b[1~", "\x1b[4~")]:
        assert terminal.press(there, "step 1 ", "paused") == seen[1]
        assert terminal.press(here, f"step {LAST_STEP} ", "the end") == last
    assert terminal.press("n", f"step {LAST_STEP} ", "the end") == last
    assert terminal.press("999\r", f"step {LAST_STEP} ", "the end") == last
    assert terminal.press("12\r", "step 12 ", "paused") == seen[12]

    # play, pause, faster, slower
    normal = seconds_of(terminal.press(" ", "s a step"))
    assert seconds_of(terminal.press("-", "1.0 s a step")) > normal
    assert seconds_of(terminal.press("_", "1.6 s a step")) > normal
    for key, speed in [("+", "1.0"), ("=", "0.7"), ("+", "0.5"), ("+", "0.3")]:
        terminal.press(key, f"{speed} s a step")
    terminal.until("step 14 ")  # by itself
    stopped = step_of(terminal.press(" ", "paused"))
    time.sleep(0.7)
    assert step_of(terminal.press("x", "paused")) == stopped, "it went on, or an unknown key did something"

    # help, from which every key leads back
    assert max(map(len, terminal.press("?", "How to read this"))) <= columns
    assert step_of(terminal.press("q", "requests", "paused")) == stopped
    terminal.press("?", "How to read this")
    terminal.press("\x1b[C", "requests", f"step {stopped} ")

    terminal.child.send("q")
    printed, code = terminal.close()
    assert code == 0
    assert "block table" in printed and "KING RICHARD III" in printed and printed.count("what happened") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "lines"), SIZES)
@pytest.mark.parametrize(
    ("name", "sights"),
    [
        ("fragmentation", {4: ["longest case", "power of two", "oracle", "in blocks", "25 wait"], 8: ["64 run"]}),
        ("copy-on-write", {2: ["want to write into block"]}),
    ],
)
def test_stories(name, sights, columns, lines):
    terminal = Terminal(columns, lines, name)
    terminal.until("step 1")
    terminal.press(" ", "paused")
    for step, texts in sights.items():
        screen = terminal.press(f"{step}\r", f"step {step} ", *texts)
        assert len(screen) == lines and max(map(len, screen)) <= columns
    if name == "copy-on-write":  # its step has three pictures: before, the copy, the write
        terminal.press("\x1b[C", "step 2 ", "is copied to block")
    terminal.child.send("q")
    assert terminal.close()[1] == 0


@pytest.mark.parametrize(("columns", "lines"), [SIZES[0], pytest.param(*SIZES[1], marks=pytest.mark.slow)])
def test_inside_the_kernel(columns, lines):
    """Going step by step stops at each block; going back shows the same again."""
    terminal = Terminal(columns, lines, "kernel")
    terminal.until("step 1")
    terminal.press(" ", "paused")
    seen = [terminal.press("3\r", "step 3 ", "paused")]
    sights = ["block 0 is read", "block 1 is read", "block 2 is read", "block 5 is read", "largest difference"]
    for sight in sights:
        seen.append(terminal.press("n", "attend", sight))
    terminal.press("n", "step 4  ")
    for before, sight in zip(seen[:0:-1], sights[::-1], strict=True):
        assert terminal.press("b", "attend", sight) == before
    assert terminal.press("b", "step 3 ") == seen[0]
    terminal.child.send("q")
    assert terminal.close()[1] == 0


@pytest.mark.slow
def test_left_alone_it_plays_and_ends():
    terminal = Terminal(80, 24, "--steps 2")
    for number in (1, 2):
        terminal.until(f"step {number}")
    printed, code = terminal.close()
    assert code == 0 and "block table" in printed


@pytest.mark.slow
def test_it_follows_the_size_of_the_terminal():
    terminal = Terminal(80, 24)
    terminal.until("step 1")
    first = terminal.press(" ", "paused")
    for columns, lines in [(160, 48), (100, 30), (40, 16)]:
        terminal.resize(columns, lines)
        screen = terminal.until("minipage", "memory")
        assert len(screen) == lines and max(map(len, screen)) <= columns
    terminal.resize(30, 10)
    terminal.until("40", "columns", "here are 30")
    terminal.resize(80, 24)
    assert terminal.until("memory: 16 blocks") == first
    terminal.child.send("q")
    assert terminal.close()[1] == 0


@pytest.mark.parametrize(("how", "code"), [("Ctrl-C", 130), pytest.param("kill", 143, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arguments", ["", pytest.param("kernel", marks=pytest.mark.slow)])
def test_an_interrupt_restores_the_terminal(how, code, arguments):
    terminal = Terminal(80, 24, arguments)
    terminal.until("step 1")
    if how == "Ctrl-C":
        terminal.child.sendintr()
    else:
        os.killpg(os.tcgetpgrp(terminal.child.child_fd), signal.SIGTERM)
    assert terminal.close()[1] == code


@pytest.mark.slow
def test_a_crash_restores_the_terminal(tmp_path):
    """An engine that fails at its third step."""
    (tmp_path / "sitecustomize.py").write_text(
        "import minipage.engine.llm as engine, itertools\n"
        "step, steps = engine.LLM.step, itertools.count()\n"
        "def failing(llm):\n"
        "    assert next(steps) < 2, 'a bug'\n"
        "    return step(llm)\n"
        "engine.LLM.step = failing\n"
    )
    terminal = Terminal(80, 24, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])})
    terminal.until("step 2")
    printed, code = terminal.close()
    assert code == 1 and "a bug" in printed


OTHERS = [  # who asks for nothing that can be shown
    ("copyonwrite", "did you mean 'copy-on-write'"),
    ("--num-blocks 20 --prompt '" + "word " * 200 + "'", "takes"),
    ("kernel --max-model-len 5", "5"),
    ("--replay /no/such/file", "No such file"),
    ("--replay DAMAGED", "damaged"),
    ("--replay NEWER", "newer minipage"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--num-blocks 2", "num_blocks"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS),
    ],
)
def test_bad_input_leaves_the_terminal_as_it_was(arguments, sentence, tmp_path):
    (tmp_path / "DAMAGED").write_text('{"minipage_trace": 1}\n')
    (tmp_path / "NEWER").write_text(json.dumps({"minipage_trace": 99}) + "\n")
    for name in ("DAMAGED", "NEWER"):
        arguments = arguments.replace(name, str(tmp_path / name))
    terminal = Terminal(80, 24, arguments)
    printed, code = terminal.end()
    assert "\x1b[?1049h" not in printed
    without_signs = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed)  # a spinner may have been there before
    told = [line for line in re.split(r"[\r\n]+", without_signs) if line.startswith("minipage: ")]
    assert len(told) == 1 and sentence in told[0]
    assert code == (1 if "no/such" in arguments else 2)


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "lines"), [(39, 24), (80, 15), (1, 1)])
def test_too_small_a_terminal_says_what_it_needs(columns, lines):
    terminal = Terminal(columns, lines, "basics")
    printed, code = terminal.end()
    assert code == 2 and "\x1b[?1049h" not in printed
    assert f"needs 40 columns and 16 lines, and here are {columns} and {lines}." in printed


@pytest.mark.slow
def test_plain_in_a_terminal():
    terminal = Terminal(80, 24, "--plain --steps 2", env={"NO_COLOR": "1"})
    text, code = terminal.end()
    assert code == 0 and "\x1b[?1049h" not in text and text.count("what happened") == 2
    assert not re.search(r"\x1b\[[0-9;]*[345]8;", text)
