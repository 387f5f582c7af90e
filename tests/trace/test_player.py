"""The player, without a terminal: a position among frames, and what the keys do to it."""

import pytest

from minipage.trace.glyphs import UNICODE
from minipage.trace.player import HELP, SECONDS_PER_STEP, Player


@pytest.fixture
def player(demo_frames):
    return Player(demo_frames[0], iter(demo_frames[1:]), UNICODE)


def test_back_shows_what_was_shown_before(player, demo_frames):
    for key in "nnnnn":
        player.press(key)
    assert player.frame is demo_frames[5]
    for key in ("b", "left"):
        player.press(key)
    assert player.frame is demo_frames[3]
    player.press("right")
    assert player.frame is demo_frames[4]
    for _ in range(6):
        player.press("left")
    assert player.frame is demo_frames[0]


def test_it_plays_by_itself_and_leaves(player, demo_frames):
    for _ in demo_frames:
        assert player.playing and not player.left
        player.tick()
    assert player.frame is demo_frames[-1] and player.at_end and not player.left
    player.tick()
    assert player.left


def test_once_touched_it_waits_at_the_end(player, demo_frames):
    player.press("+")
    for _ in range(len(demo_frames) + 5):
        player.tick()
    assert player.frame is demo_frames[-1] and not player.left
    player.press("q")
    assert player.left


def test_pause_speed_and_help(player, demo_frames):
    player.press(" ")
    player.tick()
    assert player.frame is demo_frames[0]
    player.press(" ")
    player.tick()
    assert player.frame is demo_frames[1]
    player.press("+")
    assert player.seconds < SECONDS_PER_STEP
    player.press("-")
    assert player.seconds == pytest.approx(SECONDS_PER_STEP)
    player.press("?")
    player.tick()
    assert player.helping and player.frame is demo_frames[1]
    player.press("q")  # any key closes the help, and does nothing else
    assert not player.helping and not player.left


def test_the_help_fits():
    lines = HELP.split("\n")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and HELP.isascii()
