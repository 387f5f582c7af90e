"""The demo on a real pseudo-terminal: every key, interrupts, crashes, and how the terminal is left."""

import os
import re
import signal
import sys
import time

import pytest

MINIPAGE = [sys.executable, "-m", "minipage"]
QUIET = {"OPENBLAS_NUM_THREADS": "1"}  # tests share their cores with other tests
LAST_STEP = 23  # of the demo; if the model or the story changes, so does this
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")


class Terminal:
    """minipage in a pseudo-terminal, started by a shell that reports how it left the terminal."""

    def __init__(self, columns, lines, arguments="", env=None):
        import pexpect

        command = f"trap : INT TERM; stty -g; {' '.join(MINIPAGE)} demo {arguments}; echo code=$?; stty -g; echo over"
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.child = pexpect.spawn(
            "sh", ["-c", command], dimensions=(lines, columns), encoding="utf-8", timeout=30,
            env={**environ, **QUIET, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})},
        )  # fmt: skip
        self.child.delaybeforesend = 0
        self.before = self.line()

    def line(self):
        return self.child.readline().strip()

    def expect(self, text):
        """Wait until `text` is drawn; returns all that was drawn until then, without its styles."""
        self.child.expect(r"(?:\x1b\[[0-9;]*m)*".join(map(re.escape, text)))
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.child.before + self.child.after)

    def press(self, keys, text):
        self.child.send(keys)
        return self.expect(text)

    def close(self):
        """What was printed after the full screen, and the exit code; checks that the terminal is as it was."""
        self.child.expect(r"\x1b\[\?1049l")  # back from the alternate screen
        self.child.expect(r"(?s)(.*)code=(\d+)\r\n(\S+)\r\nover")
        printed, code, after = self.child.match.groups()
        assert after == self.before, "the terminal was not restored"
        self.child.close()
        return printed, int(code)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (160, 48)])
def test_every_key(columns, lines):
    began = time.monotonic()
    terminal = Terminal(columns, lines)
    first = terminal.expect("step 1")
    assert time.monotonic() - began < 20  # a machine that has just compiled the kernels needs much less
    assert "A starts" not in first
    terminal.press(" ", "paused")
    terminal.press("n", "step 2") if "step 2" not in first else None
    for number, key in [(3, "n"), (4, "\x1b[C"), (5, "\x1bOC"), (4, "b"), (3, "\x1b[D"), (2, "\x1bOD"), (3, "n")]:
        drawn = terminal.press(key, f"step {number}")
        terminal.expect("paused")
    assert drawn
    terminal.press(" ", "0.7 s a step")
    terminal.press("+", "0.5 s a step")
    terminal.press("-", "0.7 s a step")
    terminal.press("?", "How to read this")
    terminal.press("x", "requests")
    terminal.press(" ", "paused")
    terminal.press("n" * 30, f"step {LAST_STEP}")
    terminal.expect("the end")
    terminal.child.send("q")
    printed, code = terminal.close()
    assert code == 0
    assert "block table" in printed and "KING RICHARD III" in printed and printed.count("what happened") == 1


def test_left_alone_it_plays_and_ends():
    terminal = Terminal(80, 24, "--steps 2")
    for number in (1, 2):
        terminal.expect(f"step {number}")
    printed, code = terminal.close()
    assert code == 0 and "block table" in printed


@pytest.mark.parametrize(("how", "code"), [("Ctrl-C", 130), ("kill", 143)])
def test_an_interrupt_restores_the_terminal(how, code):
    terminal = Terminal(80, 24)
    terminal.expect("step 1")
    if how == "Ctrl-C":
        terminal.child.sendintr()
    else:
        os.killpg(os.tcgetpgrp(terminal.child.child_fd), signal.SIGTERM)
    assert terminal.close()[1] == code


def test_a_crash_restores_the_terminal(tmp_path):
    """An engine that fails at its third step."""
    (tmp_path / "sitecustomize.py").write_text(
        "import minipage.engine as engine, itertools\n"
        "step, steps = engine.LLM.step, itertools.count()\n"
        "def failing(llm):\n"
        "    assert next(steps) < 2, 'a bug'\n"
        "    return step(llm)\n"
        "engine.LLM.step = failing\n"
    )
    terminal = Terminal(80, 24, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])})
    terminal.expect("step 2")
    printed, code = terminal.close()
    assert code == 1 and "a bug" in printed


def test_a_small_terminal_says_what_it_needs_and_may_grow():
    terminal = Terminal(30, 10)
    terminal.expect("40 columns")
    terminal.press(" ", "40 columns")  # paused: from here on only its size makes it draw again
    terminal.child.setwinsize(20, 60)
    terminal.expect("memory: 16 blocks")
    terminal.child.send("q")
    assert terminal.close()[1] == 0


def test_bad_input_in_a_terminal():
    terminal = Terminal(80, 24, "--num-blocks 2")
    terminal.child.expect(r"minipage: [^\n]*num_blocks.*code=2\r\n(\S+)\r\nover")
    assert terminal.child.match[1] == terminal.before


def test_plain_in_a_terminal():
    terminal = Terminal(80, 24, "--plain --steps 2", env={"NO_COLOR": "1"})
    terminal.child.expect(r"(?s)(.*)code=0")
    text = terminal.child.match[1]
    assert "\x1b[?1049h" not in text and text.count("what happened") == 2
    assert not re.search(r"\x1b\[[0-9;]*[345]8;", text)
