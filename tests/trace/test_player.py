"""The player, without a terminal: a position among frames, and what the keys do to it."""

from dataclasses import replace

import pytest

from minipage.trace.drawing.glyphs import UNICODE
from minipage.trace.playing.help import BESIDE, HELP, KEYS, WALK, help_for
from minipage.trace.playing.player import SECONDS_PER_STEP, Player


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


@pytest.mark.parametrize("text", [HELP, BESIDE, WALK])
def test_the_help_fits(text):
    lines = (text + KEYS).split("\n")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and text.isascii()


def test_the_help_is_about_what_is_seen(demo_frames):
    assert "block table" in help_for(demo_frames[0])
    assert "oracle" in help_for(replace(demo_frames[0], contiguous=(object(),)))
    assert "softmax" in help_for(replace(demo_frames[0], attention=object()))


def test_a_jump_needs_no_frame_between(demo_frames):
    """Of a recorded run only the frames on the way of a search are made: ten thousand steps are no matter."""

    class Recorded(list):
        made = 0

        def __getitem__(self, index):
            self.made += 1
            return super().__getitem__(index)

    frames = Recorded(demo_frames * 500)
    frames[:] = [replace(frame, step=i) for i, frame in enumerate(frames, 1)]
    player = Player(frames, iter(()), UNICODE)
    for key in "9000\r":
        player.press(key)
    assert player.frame.step == 9000
    player.press("end")
    assert player.frame.step == len(frames) and player.finished
    for key in "7\r":
        player.press(key)
    assert player.frame.step == 7 and not player.finished
    assert frames.made < 200


def test_a_jump_computes_what_is_not_there_yet(player, demo_frames):
    for key in "12\r":
        player.press(key)
    assert player.frame is demo_frames[11] and len(player.frames) == 12
    for key in "4\r":
        player.press(key)
    assert player.frame is demo_frames[3]
    for key in "99\r":
        player.press(key)
    assert player.frame is demo_frames[-1] and player.finished
    player.press("5")
    player.press("left")
    player.press("\n")  # nothing was typed since
    assert player.frame is demo_frames[-2]
