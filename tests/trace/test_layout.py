"""Every story, every frame, as a browser lays it out: nothing is cut off, nothing overlaps, on any screen."""

import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from stories import document_of

from minipage.trace.drawing.html import page
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import SCENARIOS

FAULTS = (Path(__file__).parent / "faults.js").read_text("utf-8").split("\n", 1)[1]  # without its comment
SIZES = {390: 844, 768: 1024, 1280: 800, 1920: 1080}
PROMPTS = ["To be, or not to be, that is the question", "Antidisestablishmentarianism, 道可道非常道 👩‍🚀"]


def document_with(name, prompts=None, **options):
    """A story's page, of other texts or on another engine."""
    scenario = SCENARIOS[name].with_prompts(prompts and list(prompts), None)
    demo = Demo(make_engine(scenario, options), scenario)
    return page(demo.frames(), scenario.title)


def look_at(tab, every):
    """What is wrong with every so-manieth frame, {sentence: frame}. All are laid out, and only the last is painted."""
    return tab.evaluate(f"""() => {{
      const found = {{}}, faults = {FAULTS.strip()};
      for (let i = 0; i < trees.length; i += {every}) {{
        show(i);
        for (const fault of faults()) found[fault] = i;
      }}
      return found;
    }}""")


def at_all_sizes(opened, document, every, sizes=SIZES, **options):
    with opened([], document=document, reduced_motion="reduce", **options) as tab:
        for width in sizes:
            tab.set_viewport_size({"width": width, "height": SIZES[width]})
            assert look_at(tab, every) == {}, width


def test_the_check_finds_what_is_cut_off_and_what_overlaps(opened):
    with opened([], document=document_of("copy-on-write"), reduced_motion="reduce") as tab:
        assert look_at(tab, 100) == {}
        tab.add_style_tag(content=".number { max-width: 3px; overflow: hidden } #pool { width: 2000px }")
        found = " ".join(tab.evaluate(FAULTS))
        assert "is cut off by span.number" in found and "has to be scrolled sideways" in found
        tab.add_style_tag(content=".cell { margin-right: -30px }")
        assert "overlaps" in " ".join(tab.evaluate(FAULTS))
        tab.evaluate("show(indexOf('step2-copy'))")
        tab.evaluate("detour = (from, to) => [[from.x, from.y], [from.x, to.y], [to.x, to.y]]; drawWires(now.frame)")
        assert "an arrow runs over block" in " ".join(tab.evaluate(FAULTS))


def test_the_lines_of_two_texts_never_run_along_each_other(opened):
    """Each has a track of its own, between the panes and above a row of cells, and ends in a cell that is its own."""
    corners = """[...document.querySelectorAll("#wires .wire")].map((wire) => [wire.getAttribute("style"),
      wire.getAttribute("d").match(/Q[^L]*/g).map((bend) => bend.slice(1).split(" ").slice(0, 2).map(Number))])"""
    with opened([], "#step2-copy", document=document_of("copy-on-write"), reduced_motion="reduce") as tab:
        upright, level = {}, {}
        for style, ((column, _), (_, row), (_, same_row)) in tab.evaluate(corners):
            assert row == same_row
            upright.setdefault(column, set()).add(style)
            level.setdefault(row, set()).add(style)
        assert len(upright) == len(level) == 3 and all(
            len(styles) == 1 for styles in [*upright.values(), *level.values()]
        )


def test_no_arrow_runs_along_another(opened):
    """Four blocks go to the swap space, and come back: each arrow can be followed from its end to its head."""
    corners = """[...document.querySelectorAll("#arrows .arrow")].map((arrow) => arrow.getAttribute("d")
      .match(/(M|Q|L(?=[^L]*$))[^MQL]*/g).map((bend) => bend.slice(1).trim().split(" ").slice(0, 2).map(Number)))"""
    with opened([], document=document_of("swap"), reduced_motion="reduce") as tab:
        for width, frame in [(1280, "step13-copy"), (1280, "step18-copy"), (768, "step13-copy")]:
            tab.set_viewport_size({"width": width, "height": SIZES[width]})
            tab.evaluate(f"show(indexOf('{frame}'))")
            arrows = tab.evaluate(corners)
            assert len(arrows) == 4
            for one, other in combinations(arrows, 2):
                assert not any(run_along(a, b) for a in pairwise(one) for b in pairwise(other)), (width, frame)


def run_along(one, other):
    """Whether two pieces of lines, each level or upright, lie on each other for more than a crossing."""
    for along, across in [(0, 1), (1, 0)]:
        if all(abs(piece[0][across] - piece[1][across]) < 0.5 for piece in (one, other)):
            (start, end), (begin, stop) = [sorted(point[along] for point in piece) for piece in (one, other)]
            return abs(one[0][across] - other[0][across]) < 2.5 and min(end, stop) - max(start, begin) > 4
    return False


@pytest.mark.parametrize(("name", "width"), [("copy-on-write", 390), ("prefix", 1280)])
def test_some_frames(name, width, opened):
    at_all_sizes(opened, document_of(name), 7, [width])


def test_slots_of_large_blocks_can_be_seen(opened):
    at_all_sizes(opened, document_with("basics", block_size=128), 7)


def test_a_sign_is_never_cut_in_two(opened):
    """Only the end of a long text is shown; some of its signs are two units of JavaScript's."""
    document = document_with("basics", ["👍" * 90, "a" + "👍" * 90])
    torn = "Array.from(trees, (_, i) => (show(i), document.body.innerText)).filter((seen) => !seen.isWellFormed())"
    with opened([], document=document, reduced_motion="reduce") as tab:
        tab.set_viewport_size({"width": 390, "height": 844})
        assert tab.evaluate(f"({torn}).length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_frame_at_four_widths(name, opened):
    at_all_sizes(opened, document_of(name), 1)


@pytest.mark.slow
def test_every_frame_of_two_ranks(opened, tmp_path):
    pytest.importorskip("torch", reason="pip install torch")
    story = tmp_path / "ranks.html"
    subprocess.run(
        [sys.executable, "-m", "minipage", "demo", "ranks", "--html", story], check=True, capture_output=True
    )
    at_all_sizes(opened, story.read_text("utf-8"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "fragmentation"])
@pytest.mark.parametrize("options", [{"block_size": 2}, {"block_size": 16}, {"prompts": tuple(PROMPTS)}], ids=str)
def test_other_texts_and_sizes(name, options, opened):
    at_all_sizes(opened, document_with(name, **options), 5, [390, 1280])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix", "beam"])
def test_letters_twice_as_large_dark_and_forced_colours(name, opened):
    """A zoom of 200 % is a window of half the size with twice the pixels."""
    for looks in ({"color_scheme": "dark"}, {"forced_colors": "active"}):
        with opened([], document=document_of(name), reduced_motion="reduce", device_scale_factor=2, **looks) as tab:
            tab.set_viewport_size({"width": 640, "height": 400})
            assert look_at(tab, 5) == {}


@pytest.mark.parametrize("options", [{}, {"block_size": 16}], ids=str)
def test_with_colours_of_the_system_as_much_can_be_seen(opened, options):
    """A full slot of memory is told from an empty one, and an empty one from none; texts are as long as without."""
    looks = """[".empty", ":not(.empty, .promised)"].map((kind) => {
      const slot = getComputedStyle(document.querySelector(`#pool .slot${kind}`));
      return [slot.backgroundColor, slot.borderTopStyle];
    })"""
    texts = "[...document.querySelectorAll('#texts .finished .running-text')].map((line) => line.textContent)"
    document, seen = document_with("prefix", **options), []
    for colours in "none", "active":
        with opened([], document=document, reduced_motion="reduce", forced_colors=colours) as tab:
            tab.evaluate("show(Infinity)")
            seen.append(tab.evaluate(texts))
            tab.evaluate("show(indexOf('step3-forward'))")
            empty, full = tab.evaluate(looks)
    assert seen[0] == seen[1]
    assert empty[1] == "solid" and (options == {} or empty[0] != full[0])


@pytest.mark.slow
def test_where_only_letters_are_larger_no_control_is_out_of_the_window(opened):
    with opened([], document=document_of("prefix")) as tab:
        tab.set_viewport_size({"width": 1280, "height": 800})
        tab.evaluate("document.documentElement.style.fontSize = '30px'")
        for control in tab.locator("#controls > *").all():
            box = control.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
