"""The page of every scenario in a real browser: each frame drawn, with keys, slider and hover, and no complaint."""

import pytest
from stories import stops_of

from minipage.trace.drawing.lane_lines import lanes_of
from minipage.trace.playing.scenarios import SCENARIOS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario(name, opened):
    frames = stops_of(name)
    with opened(frames) as tab:
        tab.keyboard.press("End")
        assert tab.inner_text("#where") == f"{len(frames)} / {len(frames)}"
        for i in range(len(frames)):
            tab.get_by_label("Frame").fill(str(i))
            assert tab.inner_text("#where") == f"{i + 1} / {len(frames)}"
            assert tab.inner_text("#step") == f"Step {frames[i].step}"
            assert tab.locator("#pool .cell.used").count() == frames[i].num_used_blocks
            assert tab.is_visible("#beside") == bool(frames[i].contiguous or frames[i].attention)
        used = tab.locator("#pool .cell.used, #pool .cell").first
        used.hover()
        assert tab.inner_text("#looked-at").startswith("Block ")
        tab.keyboard.press("Home")
        assert tab.inner_text("#where") == f"1 / {len(frames)}"
        shown = tab.inner_text("#stage")
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft"):
            tab.keyboard.press(key)
        assert tab.inner_text("#stage") == shown


@pytest.mark.slow
def test_memories_side_by_side(opened):
    frames = stops_of("fragmentation")
    with opened(frames) as tab:
        for i in (0, len(frames) // 2, len(frames) - 1):
            tab.get_by_label("Frame").fill(str(i))
            lanes = tab.locator("#beside .lane")
            assert lanes.count() == 4
            for lane, drawn in zip(lanes_of(frames[i]), lanes.all(), strict=True):
                assert f"{lane.num_running} run" in drawn.inner_text()
            piece = lanes.first.locator("[data-owner]").first
            piece.hover(force=True)
            assert f"{piece.get_attribute('data-owner')} " in tab.inner_text("#looked-at")


def test_inside_attention(opened):
    frames = stops_of("kernel")
    looks = [i for i, frame in enumerate(frames) if frame.attention]
    with opened(frames) as tab:
        for i in looks:
            walk = frames[i].attention
            tab.get_by_label("Frame").fill(str(i))
            shown = tab.inner_text("#beside")
            for step in walk.steps:
                assert f"after block {step.physical}" in shown
            if walk.kernel:
                assert "The walk is over" in shown and "the kernel" in shown
            else:
                assert f"Block {walk.steps[-1].physical} is read" in shown
                assert tab.locator("#beside .weight").count() == len(walk.steps[-1].weights)
        assert frames[looks[-1]].attention.kernel
