"""The page of a playground, driven in a real browser: what it shows after each act is so in the engine."""

from contextlib import contextmanager

import pytest
from axe import serious
from serve.lookers import until

from minipage import LLM
from minipage.play.main import BEGIN, Table, builder

DRAWN = "!live.follows && now.index === trees.length - 1"  # the newest frame is what is seen, and none waits
WIDTHS = (390, 768, 1280, 1920)


@pytest.fixture(scope="module")
def table():
    with Table(builder(LLM(num_blocks=8)), BEGIN) as table:
        yield table


@pytest.fixture
def opened(browser, table):
    """Opens the page; in the end there must have been no complaint, and no request to anybody else."""

    @contextmanager
    def open_page(width=1280, **options):
        tab = browser.new_page(viewport={"width": width, "height": 800}, reduced_motion="reduce", **options)
        complaints = []
        tab.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda ask: ask.url.startswith((table.url, "data:")) or complaints.append(ask.url))
        tab.goto(table.url)
        wait(tab, "document.getElementById('pool').children.length")
        yield tab
        tab.close()
        assert [text for text in complaints if "400 (Bad Request)" not in text] == []

    return open_page


def wait(tab, condition, arg=None):
    """Until a condition holds on the page, whose policy lets no text be run as a script."""
    until(lambda: tab.evaluate(f"(arg) => Boolean({condition})", arg))


def check(tab, table):
    """The pool, the queues, the tables and the texts on the page are those of the engine."""
    llm = table.playground.run.llm
    pool, scheduler = llm.block_pool, llm.scheduler
    wait(tab, f"document.querySelectorAll('#pool .cell.used').length === {pool.num_used}")
    assert tab.locator("#pool .cell").count() == pool.num_blocks
    for block in range(pool.num_blocks):
        cell = tab.locator(f'#pool .cell[data-block="{block}"]')
        assert ("used" in cell.get_attribute("class").split()) == (pool.ref_count(block) > 0)
        references = cell.locator(".refs")
        assert (references.count() and references.inner_text()) == (
            f"×{pool.ref_count(block)}" if pool.ref_count(block) > 1 else 0
        )
    shown = tab.locator("#texts .text:not(.finished)").all()
    seqs = [seq for group in scheduler.groups for seq in group.sequences]
    assert len(shown) == len(seqs)
    tables = sorted([int(box.get_attribute("data-block")) for box in text.locator(".logical").all()] for text in shown)
    assert tables == sorted(list(seq.block_table.blocks) for seq in seqs)


def settled(tab, table, act=None):
    """Do something, and wait until the engine has done it and the page says so."""
    if act:
        with tab.expect_response(f"{table.url}/act"):
            act()
    table.playground.call(lambda: None).result(30)
    until(lambda: tab.evaluate("trees.length") == len(table.playground.feed._kept))
    wait(tab, DRAWN)
    check(tab, table)


@pytest.mark.slow
def test_a_whole_afternoon(opened, table):
    """Send, step, change the block size, compare, abort, make the pool smaller, solve two challenges; two browsers."""
    with opened() as tab, opened() as other:
        tab.locator("#panel").get_by_label("Prompts, one on each line").fill("O Romeo,\nMy kingdom for a\nSpeak")
        tab.locator("#panel").get_by_label("Texts", exact=True).fill("2")
        settled(tab, table, tab.get_by_role("button", name="Send").click)
        assert tab.locator("#requests li").count() == 3
        for _ in range(4):
            done = table.playground.run.steps_done
            tab.get_by_role("button", name="Step", exact=True).click()
            until(lambda done=done: table.playground.run.steps_done == done + 1)
            settled(tab, table)
        settled(other, table)
        assert other.inner_text("#stage") == tab.inner_text("#stage")
        tab.get_by_role("button", name="Phase", exact=True).click()
        wait(tab, "trees.at(-1).phase === 'schedule' && trees.at(-1).chunks.length")
        tab.locator("#panel").get_by_label("Block size").fill("8")
        settled(tab, table, lambda: tab.locator("#panel").get_by_label("Block size").press("Enter"))
        tab.wait_for_selector("#compare:not([hidden])")
        assert "block size: 4 → 8" in tab.inner_text("#changed")
        assert tab.locator("#beside .lane").count() == 2
        figures = table.playground._whole.figures()
        cells = tab.locator('[data-figure="most_blocks"] td').all_inner_texts()
        assert cells[1] == str(figures.most_blocks) and cells[0] != cells[1]
        settled(tab, table, tab.get_by_role("button", name="Abort request 1").click)
        assert "1" not in table.playground.run.llm.requests
        slider = tab.locator("#blocks")
        while table.playground._whole is None or not table.playground._whole.figures().preemptions:
            blocks = int(slider.input_value())
            slider.press("ArrowLeft")
            until(lambda blocks=blocks: table.playground.run.options["num_blocks"] < blocks or tab.inner_text("#alert"))
            assert not tab.inner_text("#alert"), tab.inner_text("#alert")
        settled(tab, table)
        assert int(tab.locator('[data-figure="preemptions"] td').last.inner_text()) > 0
        for goal, option, value in (("nine blocks", "Texts at once", "2"), ("10 %", "Block size", "4")):
            tab.locator(f'#challenges button[aria-label*="{goal}"]').click()
            wait(tab, "document.getElementById('goal').textContent.includes(arg)", goal)
            assert not tab.inner_text("#goal").startswith("Solved")
            tab.locator("#panel").get_by_label(option).fill(value)
            tab.locator("#panel").get_by_label(option).press("Enter")
            wait(tab, "document.getElementById('goal').textContent.startsWith('Solved')")
            settled(tab, table)
        assert tab.inner_text("#num-solved") == other.inner_text("#num-solved") == "2 of 6 solved"
        tab.get_by_role("button", name="Clear").click()
    until(lambda: table.playground.num_pages == 0)


@pytest.mark.slow
def test_with_keys_only(opened, table):
    table.playground.call(table.playground.clear).result(20)
    with opened() as tab:

        def tab_to(label, backwards=False):
            for _ in range(60):
                tab.keyboard.press("Shift+Tab" if backwards else "Tab")
                here = "(e) => e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || ''"
                if tab.evaluate(f"({here})(document.activeElement)").startswith(label):
                    return
            raise AssertionError(f"no way to {label}")

        tab_to("Prompts")
        tab.keyboard.press("Control+A")
        tab.keyboard.type("Speak, p and s are letters here")
        tab_to("Send")
        settled(tab, table, lambda: tab.keyboard.press("Enter"))
        assert "letters here" in tab.inner_text("#requests")
        tab.evaluate("document.activeElement.blur()")
        for phase in ("schedule", "forward", "sample", "update"):
            tab.keyboard.press("ArrowRight")
            wait(tab, f"trees.at(-1).phase === arg && trees.at(-1).chunks?.length && {DRAWN}", phase)
        settled(tab, table)
        tab.keyboard.press("ArrowLeft")  # back in what has been
        assert tab.inner_text("#phases [aria-current]") == "sample"
        tab.keyboard.press("End")
        tab.keyboard.press("Space")
        wait(tab, "live.facts.mode.runs")
        assert table.playground._runs
        tab.keyboard.press("Space")
        until(lambda: not table.playground._runs)
        tab_to("Abort request")
        settled(tab, table, lambda: tab.keyboard.press("Space"))
        assert not table.playground.run.llm.requests


@pytest.mark.slow
def test_whoever_lets_it_go_on_sees_it(opened, table):
    """Also after having gone back; and the button that plays says what it will do."""
    table.playground.call(table.playground.clear).result(20)
    with opened() as tab:
        settled(tab, table, tab.get_by_role("button", name="Send").click)
        assert tab.get_attribute("#next", "aria-disabled") == "false"  # from here on, it is the engine that goes on

        def press(button, phase):
            seen = tab.evaluate("trees.length")
            tab.locator("#engine-buttons").get_by_role("button", name=button, exact=True).click()
            wait(tab, f"trees.length > arg && trees.at(-1).phase === {phase} && {DRAWN}", seen)

        for button, phase in ("Step", "'update'"), ("Phase", "'schedule'"), ("Run", "trees.at(-1).phase"):
            press("Step", "'update'")
            tab.keyboard.press("ArrowLeft")  # with the focus on a button of the panel
            tab.keyboard.press("ArrowLeft")
            wait(tab, "now.index === trees.length - 3")
            press(button, phase)
        wait(tab, "document.getElementById('play').ariaLabel === 'Pause'")
        assert tab.locator("#play .if-playing").is_visible() and not tab.locator("#play .if-paused").is_visible()
        tab.locator("#play").click()
        wait(tab, "document.getElementById('play').ariaLabel === 'Play'")
    table.playground.call(table.playground.clear).result(20)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 1024])
def test_pools_of_any_size_are_told_as_they_are(opened, table, blocks):
    table.playground.call(table.playground.clear).result(20)
    usual = table.playground.run.options["num_blocks"]
    table.playground.call(lambda: table.playground.configure(num_blocks=blocks)).result(30)
    with opened() as tab:
        wait(tab, f"trees.at(-1)?.num_blocks === {blocks}")
        assert tab.locator("#blocks").input_value() == tab.inner_text("#blocks-shown") == str(blocks)
    table.playground.call(lambda: table.playground.configure(num_blocks=usual)).result(30)


@pytest.mark.slow
def test_what_was_changed_does_not_jump_back(opened, table):
    """The answer to an act may come before the stream has told of it."""
    table.playground.call(table.playground.clear).result(20)
    with opened() as tab:
        wait(tab, "live.facts.options")
        tab.evaluate("() => void (receive = () => {})")
        blocks = int(tab.locator("#blocks").input_value())
        for fewer in 1, 2:
            with tab.expect_response(f"{table.url}/act"):
                tab.locator("#blocks").press("ArrowLeft")
            tab.wait_for_timeout(200)
            assert int(tab.locator("#blocks").input_value()) == blocks - fewer
        assert table.playground.run.options["num_blocks"] == blocks - 2
    table.playground.call(lambda: table.playground.configure(num_blocks=blocks)).result(30)


@pytest.mark.slow
def test_only_who_goes_elsewhere_stays_there_while_a_frame_waits(opened, table):
    """A browser that takes long to draw shows the newest frame a little later; letters that are typed meanwhile are not
    a wish to see an older one."""
    table.playground.call(table.playground.clear).result(20)
    with opened() as tab:
        settled(tab, table, tab.get_by_role("button", name="Send").click)
        for act, stays in ((lambda: tab.keyboard.type("p and s"), False), (lambda: go_back(tab), True)):
            tab.evaluate("() => void (live.nextDrawing = performance.now() + 3000)")
            seen = tab.evaluate("trees.length")
            tab.get_by_role("button", name="Step", exact=True).click()
            wait(tab, "trees.length > arg && live.follows", seen)
            tab.locator("#panel").get_by_label("Prompts").focus()
            act()
            wait(tab, "performance.now() > live.nextDrawing + 500")
            assert tab.evaluate(f"() => {DRAWN}") != stays
    table.playground.call(table.playground.clear).result(20)


def go_back(tab):
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("ArrowLeft")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_told_of_a_change_is_in_sight_of_it(opened, table, width):
    table.playground.call(table.playground.clear).result(20)
    with opened(width) as tab:
        tab.locator("#challenges button").first.click()
        wait(tab, "document.getElementById('goal').textContent")
        tab.evaluate("document.getElementById('panel').scrollTop = 1e6")
        tab.evaluate("document.querySelector('[data-option=max_num_seqs]').scrollIntoView({ block: 'end' })")
        field = tab.locator("#panel").get_by_label("Texts at once")
        field.fill("0")
        field.press("Enter")
        wait(tab, "document.getElementById('alert').textContent.includes('max_num_seqs is 0')")
        edge = tab.locator("#panel").bounding_box()
        for told in "#alert", "#goal":
            box = tab.locator(told).bounding_box()
            assert edge["y"] <= box["y"] and box["y"] + box["height"] <= min(800, edge["y"] + edge["height"])
        field.fill("2")
        settled(tab, table, lambda: field.press("Enter"))
        tab.wait_for_selector("#compare:not([hidden])")
        assert tab.locator("#beside svg").last.bounding_box()["width"] > 0.35 * width
    table.playground.call(table.playground.clear).result(20)


@pytest.mark.slow
def test_another_playground_at_the_same_address(browser, table):
    """Nothing stays of the one that was there."""
    with Table(table.playground.build, BEGIN) as first:
        port = int(first.url.rpartition(":")[2])
        tab = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        tab.goto(first.url)
        wait(tab, "document.getElementById('pool').children.length")
        tab.get_by_role("button", name="Send").click()
        wait(tab, "live.facts.requests.length")
        first.playground.call(lambda: first.playground.configure(block_size=8)).result(30)
        tab.wait_for_selector("#compare:not([hidden])")
    tab.get_by_role("button", name="Clear").click()
    wait(tab, "document.getElementById('alert').textContent.includes('does not answer')")
    with Table(table.playground.build, BEGIN, port=port):
        wait(tab, "!live.facts.requests.length")
        assert not tab.locator("#alert").is_visible()
        assert not tab.locator("#compare").is_visible() and not tab.locator("#beside").is_visible()
        tab.close()


@pytest.mark.slow
def test_a_mistake_is_a_sentence(opened, table):
    with opened() as tab:
        tab.locator("#panel").get_by_label("Prompts").fill("   ")
        tab.get_by_role("button", name="Send").click()
        wait(tab, "document.getElementById('alert').textContent.includes('there is no prompt')")
        tab.locator("#panel").get_by_label("Prompts").fill("to be or not " * 60)
        tab.get_by_role("button", name="Send").click()
        wait(tab, "document.getElementById('alert').textContent.includes('tokens')")
        tab.locator("#panel").get_by_label("Block size").fill("0")
        tab.locator("#panel").get_by_label("Block size").press("Enter")
        wait(tab, "document.getElementById('alert').textContent.includes('block_size is 0')")
        assert tab.locator("#panel").get_by_label("Block size").input_value() == str(
            table.playground.run.options["block_size"]
        )


STICKS_OUT = """() => {
  const edge = document.getElementById('panel').getBoundingClientRect().right + 1;
  const seen = [...document.querySelectorAll('#panel *')].filter((e) => e.offsetParent);
  return seen.filter((e) => e.getBoundingClientRect().right > edge).map((e) => e.outerHTML);
}"""
NAMELESS = """() => {
  const fields = 'button, input:not([hidden]), select, textarea';
  const hasName = (e) => e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim();
  const all = [...document.querySelectorAll('#panel :is(' + fields + ')')];
  return all.filter((e) => !hasName(e)).map((e) => e.outerHTML);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_all_has_a_name(opened, width, scheme):
    with opened(width, color_scheme=scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(STICKS_OUT) == []
        assert tab.evaluate(NAMELESS) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, table, scheme):
    """Empty, while it runs, with a mistake, beside another run, and in a challenge."""
    table.playground.call(table.playground.clear).result(20)
    with opened(color_scheme=scheme) as tab:
        assert serious(tab) == []
        tab.locator("#panel").get_by_label("Prompts, one on each line").fill("O Romeo,\nSpeak")
        settled(tab, table, tab.get_by_role("button", name="Send").click)
        tab.get_by_role("button", name="Step", exact=True).click()
        wait(tab, "trees.at(-1).phase === 'update'")
        assert serious(tab) == []
        tab.locator("#panel").get_by_label("Block size").fill("0")
        tab.locator("#panel").get_by_label("Block size").press("Enter")
        wait(tab, "document.getElementById('alert').textContent.includes('block_size is 0')")
        assert serious(tab) == []
        tab.locator("#panel").get_by_label("Block size").fill("8")
        settled(tab, table, lambda: tab.locator("#panel").get_by_label("Block size").press("Enter"))
        tab.wait_for_selector("#compare:not([hidden])")
        assert serious(tab) == []
        tab.locator("#challenges button").first.click()
        wait(tab, "document.getElementById('goal').textContent")
        assert serious(tab) == []
        tab.get_by_role("button", name="Clear").click()
