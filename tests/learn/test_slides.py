"""`learn slides`: every number is computed, every slide has notes, and the deck asks the network for nothing."""

import re
import shutil
from pathlib import Path

import pytest

from minipage.cli import main
from minipage.learn.slides import deck
from minipage.trace.playing.scenarios import SCENARIOS

LECTURE = (deck.HERE / "lecture.html").read_text(encoding="utf-8")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def facts():
    return deck.computed(deck.run_story("kernel")[0])


@pytest.mark.slow
def test_what_is_to_be_filled_in_is_computed(facts):
    places = set(re.findall(r"\[\[([a-z_]+)\]\]", LECTURE.partition("-->")[2]))
    assert places <= set(facts)
    assert set(re.findall(r"\[\[trace ([a-z-]+)\]\]", LECTURE)) <= set(SCENARIOS)
    assert facts["naive"] == "48" and abs(int(facts["simulated"]) - int(facts["right"])) <= 2
    assert (facts["slot"], facts["slot_block"], facts["slot_offset"]) == ("13", "3", "1")
    assert facts["bars"].count("class='bar'") == 4 and "token states 97 %" in facts["bars"]
    assert facts["softmax"].count("<tr>") >= 4


def test_every_slide_has_notes_and_the_parts_of_the_lecture_are_those_of_instructors():
    slides = LECTURE.partition("-->")[2].split("<section>")[1:]
    assert len(slides) >= 15 and all('<aside class="notes">' in slide for slide in slides)
    instructors = (ROOT / "INSTRUCTORS.md").read_text(encoding="utf-8").partition("## One lecture")[2]
    for first, last in re.findall(r"^\| (\d+)–(\d+) \|", instructors, re.MULTILINE):
        assert f"{first} to {last} minutes" in LECTURE, f"the part from minute {first}"


def test_what_is_vendored_says_whose_it_is():
    folder = deck.HERE / "reveal"
    assert "MIT" in (folder / "README.md").read_text() and "Hakim El Hattab" in (folder / "LICENSE").read_text()
    [version] = re.findall(r"reveal\.js (\d+\.\d+\.\d+)", (folder / "README.md").read_text())
    assert version in (folder / "reveal.js").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_deck_offline(tmp_path):
    assert main(["learn", "slides", str(tmp_path / "slides")]) == 0
    folder = tmp_path / "slides"
    for name in SCENARIOS:
        assert (folder / "traces" / f"{name}.html").exists() and list((folder / "pictures" / name).glob("*.svg"))
    assert not re.search(r"\[\[|https?://", (folder / "index.html").read_text(encoding="utf-8"))
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab, complaints = browser.new_page(viewport={"width": 1280, "height": 720}), []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda ask: ask.url.startswith((folder.as_uri(), "data:")) or complaints.append(ask.url))
        tab.goto((folder / "index.html").as_uri())
        for number in range(tab.evaluate("Reveal.getTotalSlides()")):
            tab.evaluate(f"Reveal.slide({number})")
            tab.wait_for_timeout(300)
            if story := tab.query_selector("section.present iframe"):
                tab.wait_for_selector("section.present iframe[src]")
                source = story.get_attribute("src")
                assert any(source in frame.url for frame in tab.frames), "the story is there"
            assert tab.evaluate("Reveal.getSlideNotes()").strip()
            height = tab.evaluate("Reveal.getCurrentSlide().scrollHeight")
            assert height <= 700, f"slide {number} does not fit: {height} pixels"
        assert complaints == []
        browser.close()
