"""Whatever takes long has a sign of life that says what it is."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numba.core.event as event
import pytest
from test_pseudo_terminal import Terminal

from minipage.trace.drawing.glyphs import ASCII, UNICODE
from minipage.trace.playing.player import Player
from minipage.trace.playing.spinner import patiently, signs_of_life, spinner

PATIENCE = 60  # seconds, at most


class Screen:
    """Where signs appear; whoever waits for one goes on when it is there."""

    def __init__(self):
        self.seen, self.news = [], threading.Condition()

    def show(self, text):
        with self.news:
            self.seen.append(text)
            self.news.notify()

    def until(self, wanted):
        with self.news:
            assert self.news.wait_for(lambda: any(wanted in text for text in self.seen), PATIENCE), self.seen


def test_what_takes_long_is_said_and_so_is_a_kernel_that_is_compiled():
    screen = Screen()
    with signs_of_life("computing step 7", screen.show):
        screen.until("computing step 7")
        for name in ("_decode", "_helper_of_decode"):
            event.start_event("numba:compile", {"dispatcher": SimpleNamespace(py_func=SimpleNamespace(__name__=name))})
        screen.seen.clear()
        screen.until("the kernel `decode`")
        event.end_event("numba:compile")
        event.end_event("numba:compile")
        screen.seen.clear()
        screen.until("computing step 7")
    num_seen = len(screen.seen)
    time.sleep(0.3)
    assert len(screen.seen) == num_seen, "it goes on after the end"


def test_a_sign_says_names_as_they_are(monkeypatch, capsys):
    """As markup, `[/x]` would end the command with a traceback, and `[bold]` would be left out."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with spinner("writing [/x].html") as say:
        time.sleep(0.8)
        say("writing [bold].html")
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "[/x].html" in err and "[bold].html" in err


def test_what_is_quick_is_not_spoken_of():
    screen = Screen()
    for _ in range(100):
        with signs_of_life("never seen", screen.show):
            pass
    assert screen.seen == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("follows", [RuntimeError, None])
def test_an_interrupt_that_was_dropped_is_an_interrupt_all_the_same(follows):
    """A KeyboardInterrupt in a callback of LLVM's is printed and dropped; then another error comes, or none."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signs_of_life("", lambda _: None):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)
        except KeyboardInterrupt:
            pass
        if follows:
            raise follows("no compiled object yet")
    assert signal.getsignal(signal.SIGINT) is before


def test_patience_changes_nothing():
    assert list(patiently(iter("abc"), "waiting")) == list("abc")


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_the_player_does_not_claim_to_play_while_it_waits(demo_frames, glyphs):
    player = Player(demo_frames[0], iter(demo_frames[1:]), glyphs)
    assert "s a step" in str(player._footer(80))
    player.waits_for = "compiling the kernel `decode`, once on each machine"
    footer = str(player._footer(80))
    assert "s a step" not in footer and player.waits_for in footer and footer[0] in glyphs.turning


SLOW = """
import minipage.engine.llm as engine, itertools, os, time
step, numbers = engine.LLM.step, itertools.count(1)
def slow(llm):
    number = next(numbers)
    while number == int(os.environ.get("SLOW_STEP", "2")) and not os.path.exists(os.environ["GO_ON"]):
        time.sleep(0.02)
    return step(llm)
engine.LLM.step = slow
"""


@pytest.fixture
def slow(tmp_path):
    """A terminal with a demo whose second step takes as long as `go_on` does not exist."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    go_on = tmp_path / "go_on"
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    terminal = Terminal(80, 24, env={"PYTHONPATH": path, "GO_ON": str(go_on)})
    terminal.until("step 1 ")
    terminal.until("computing step 2", "q quit")
    return terminal, go_on


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_a_slow_step_is_waited_for_in_sight(slow):
    terminal, go_on = slow
    assert "s a step" not in terminal.screen()[-1]
    terminal.resize(100, 30)
    terminal.until("computing step 2")
    terminal.child.send(" ")  # not lost
    go_on.touch()
    terminal.until("step 2 ", "paused")
    terminal.child.send("q")
    assert terminal.close()[1] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
@pytest.mark.slow
@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 130)])
def test_a_slow_step_can_be_left(slow, key, code):
    terminal, _ = slow
    terminal.child.send(key)
    assert terminal.close()[1] == code


@pytest.fixture
def stuck(tmp_path):
    """What is needed for a demo whose first step is never over."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    return {"PYTHONPATH": path, "GO_ON": str(tmp_path / "never"), "SLOW_STEP": "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
@pytest.mark.slow
@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 130)])
def test_a_first_step_that_never_ends_can_be_left(stuck, key, code):
    terminal = Terminal(80, 24, env=stuck)
    terminal.child.expect_exact("computing the first step")
    terminal.child.send(key)
    assert terminal.end()[1] == code


@pytest.mark.slow
def test_a_pipe_is_told_that_a_step_takes_long(stuck):
    """On the error stream, and once."""
    command = [sys.executable, "-m", "minipage", "demo", "basics"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | stuck,
    ) as child:  # fmt: skip
        lines = iter(child.stderr.readline, "")
        told = next(line for line in lines if "first step" in line)
        child.kill()
        assert told == "minipage: still computing the first step ...\n"
        assert not list(lines)


def test_ctrl_c_while_the_sign_is_taken_away():
    """It ends the block all the same, but not before the sign is gone."""
    hidden = []

    def hide():
        signal.raise_signal(signal.SIGINT)
        hidden.append(True)

    with pytest.raises(KeyboardInterrupt), signs_of_life("", lambda _: None, hide):
        pass
    assert hidden == [True]
