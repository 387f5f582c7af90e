"""Between two frames things move, and afterwards everything is exactly where the new frame has it."""

import pytest
from stories import document_of

PLACES = """[...document.querySelectorAll("#stage [data-fly], #pool .cell, #free b")].map((element) => {
  const {left, top, width, height} = element.getBoundingClientRect();
  return [element.dataset.fly, left, top, width, height, getComputedStyle(element).opacity];
})"""
FLYING = """[...byId("flights").children].map((double) => double.textContent)"""
FREEZE = "for (const motion of moving) { motion.pause(); motion.currentTime = MOTION / 2; }"
AT_REST = "moving.size === 0 && byId('flights').childElementCount === 0"


@pytest.fixture(scope="module")
def swap():
    return document_of("swap")


@pytest.fixture(scope="module")
def samples():
    return document_of("copy-on-write")


def go(tab, name):
    """To a frame, and what flies on the way to it."""
    tab.evaluate(f"show(indexOf('{name}'))")
    tab.evaluate(FREEZE)
    return tab.evaluate(FLYING)


def rest(tab):
    tab.evaluate("(async () => { for (const motion of [...moving]) { motion.finish(); await motion.finished; } })()")
    assert tab.evaluate(AT_REST)


def test_what_flies_is_what_happens(opened, samples):
    with opened([], document=samples, address="#step2-before") as tab:
        rest(tab)
        assert set(go(tab, "step2-schedule")) >= {"A", "B"}, "references appear"
        rest(tab)
        assert sorted(go(tab, "step2-copy"), key=str.strip) == [" a", " a", " for", " for"], "a copy travels, twice"
        rest(tab)
        assert go(tab, "step2-forward") == [" villain", " horse", " de"], "words fly into their slots"
        rest(tab)
        assert go(tab, "step2-copy") == [" villain", " horse", " de"], "and home again"


def test_blocks_leave_the_free_queue_and_return_to_its_end(opened, samples):
    with opened([], document=samples, address="#step4-update") as tab:
        rest(tab)
        tab.evaluate("show(indexOf('step4-schedule') - 1)")
        rest(tab)
        flying = go(tab, "step4-schedule")
        assert any("→ 5" in double for double in flying), flying
        last = tab.evaluate("trees.length - 1")
        tab.evaluate(f"show({last - 1})")
        rest(tab)
        tab.evaluate(f"show({last})")
        tab.evaluate(FREEZE)
        assert {"0", "1", "2"} <= set(tab.evaluate(FLYING))


def test_a_swapped_block_slides_to_the_other_memory_and_back(opened, swap):
    with opened([], document=swap, address="#step13-schedule") as tab:
        rest(tab)
        assert sum(double.endswith("B") for double in go(tab, "step13-copy")) == 4
        tab.evaluate("show(indexOf('step18-schedule'))")
        rest(tab)
        assert len(go(tab, "step18-copy")) >= 16, "the words of four blocks"


def places_of(tab):
    """Where things are, once they are there: on a busy machine a page may still be laid out."""
    last, now = None, tab.evaluate(PLACES)
    while now != last:
        tab.wait_for_timeout(150)
        last, now = now, tab.evaluate(PLACES)
    return now


def test_it_ends_exactly_where_a_page_without_motion_is(opened, samples):
    names = [f"step2-{phase}" for phase in ("before", "copy", "update")]
    with opened([], document=samples, reduced_motion="reduce") as tab:
        still = []
        for name in names:
            assert go(tab, name) == [] and tab.evaluate(AT_REST)
            still.append(places_of(tab))
    with opened([], document=samples) as tab:
        for name, places in zip(names, still, strict=True):
            go(tab, name)
            tab.evaluate("show(now.index - 1); show(now.index + 1)")  # interrupted, there and back
            rest(tab)
            assert places_of(tab) == places


def test_a_fixed_place_stays_when_words_arrive(opened, samples):
    """Blocks and chips do not move from phase to phase of a step in which nobody comes or goes."""
    cells = """[...document.querySelectorAll("#pool .cell, #phases button, .text > .chip")].map((element) => {
      const {left, top, width, height} = element.getBoundingClientRect();
      return [left, top, width, height];
    })"""
    with opened([], document=samples, reduced_motion="reduce") as tab:
        seen = []
        for phase in ("before", "schedule", "copy", "forward", "sample", "update"):
            go(tab, f"step2-{phase}")
            seen.append(tab.evaluate(cells))
        assert all(places == seen[0] for places in seen)


SHIFTS = """window.shifts = [];
new PerformanceObserver((list) => shifts.push(...list.getEntries().map((each) => each.value)))
  .observe({type: "layout-shift", buffered: true})"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_frame_stands_where_it_stays(browser, width, tmp_path, samples):
    path = tmp_path / "samples.html"
    path.write_text(samples, "utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800}, reduced_motion="reduce")
    tab.add_init_script(SHIFTS)
    tab.goto(path.as_uri())
    tab.wait_for_timeout(500)
    assert tab.evaluate("shifts") == []
    tab.close()
