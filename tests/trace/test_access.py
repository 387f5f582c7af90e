"""What a screen reader and a keyboard find on the pages of stories: axe has nothing serious to say."""

import pytest
from axe import serious
from stories import document_of

from minipage.trace.drawing.front import Card, front_page
from minipage.trace.playing.scenarios import SCENARIOS

NUM_LOOKS = 6  # at a story
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def test_axe_finds_nothing_serious(opened):
    with opened([], "#step2-copy", document=document_of("copy-on-write"), reduced_motion="reduce") as tab:
        assert serious(tab) == []
        tab.add_style_tag(content="#story { color: #ccc; background: #fff }")
        assert [name for name, _ in serious(tab)] == ["color-contrast"]  # it looks


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_axe_finds_nothing_serious_in_any_story(name, opened):
    for scheme in ("light", "dark"):
        with opened([], document=document_of(name), color_scheme=scheme, reduced_motion="reduce") as tab:
            num_frames = tab.evaluate("trees.length")
            for i in range(0, num_frames, 1 + num_frames // NUM_LOOKS):
                tab.evaluate(f"show({i})")
                assert serious(tab) == [], (scheme, i)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_the_front_page(opened, scheme):
    cards = [
        Card("Beams branch and die", "beam search", "#beam", picture=PIXEL),
        Card("Giving way", "preemption", "#p"),
    ]
    lessons = [Card("The block pool", number="3", command="python -m minipage learn check 3")]
    with opened([], document=front_page(cards, lessons, "about:blank"), color_scheme=scheme) as tab:
        tab.evaluate("document.querySelector('.living').remove()")  # a page of its own, which is looked at above
        assert serious(tab) == []
        assert tab.get_by_role("link").all_inner_texts() == ["Beams branch and die", "Giving way"]
        tab.set_viewport_size({"width": 390, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
