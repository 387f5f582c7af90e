"""The live page in a real browser: it shows the engine as it is, follows it, and asks for the key."""

import httpx
import pytest
from axe import serious
from serve.lookers import until

LONG = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def opened(browser):
    tabs = []

    def open_page(url, width=1280, **options):
        tab = browser.new_page(viewport={"width": width, "height": 800}, **options)
        tab.complaints = []
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("request", lambda ask: ask.url.startswith((url, "data:")) or tab.complaints.append(ask.url))
        tab.goto(url)
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        assert tab.complaints == []
        if not tab.is_closed():
            tab.close()


@pytest.mark.slow
def test_it_follows_and_lets_go(serve, opened):
    server = serve(num_blocks=24, block_size=4)
    tab, other = opened(server.url), opened(server.url, width=390)
    until(lambda: "Live" in tab.inner_text("#live-state"))
    prompts = [f"{word} wave" for word in ("one", "two", "three")]
    answer = httpx.post(f"{server.url}/v1/completions", json=LONG | {"prompt": prompts}, timeout=60).json()
    for page in tab, other:
        until(lambda page=page: page.locator("#texts .text.finished").count() == 3)
        until(lambda page=page: page.locator("#pool .cell.used").count() == 0)
        assert page.locator("#pool .cell").count() == 24
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    said = tab.evaluate("Object.values(now.frame.sequences).map((text) => text.text)")
    assert sorted(said) == sorted(choice["text"] for choice in answer["choices"])
    preemptions = server.llm.stats()["vllm:num_preemptions"]
    assert f"{preemptions} preemptions" in tab.inner_text("#numbers")
    assert tab.locator("#remembered li").count() > 0 and preemptions > 0
    tab.close()
    other.close()
    until(lambda: "schedule" not in vars(server.llm))


@pytest.mark.slow
def test_many_texts_are_told_in_two_lines_each(serve, opened):
    server = serve(num_blocks=400, block_size=4, max_num_seqs=64)
    tab = opened(server.url)
    until(lambda: "Live" in tab.inner_text("#live-state"))
    prompts = [f"{number} waves of the sea" for number in range(40)]
    for asked in (prompts, ["one more"]):  # after whom few are left, of those who finished last
        httpx.post(f"{server.url}/v1/completions", json=LONG | {"prompt": asked}, timeout=120)
    crowded = "trees.findLastIndex((tree) => Object.keys(tree.sequences ?? {}).length > 8)"
    until(lambda: tab.evaluate(crowded) >= 0 and "crowded" not in tab.evaluate("document.body.className"))
    until(lambda: tab.locator("#pool .cell.used").count() == 0 and tab.evaluate("!live.follows"))  # all is drawn
    assert tab.locator("#pool .cell").count() == 400
    tab.evaluate(f"show({crowded})")  # whoever goes back sees it as it was
    assert "crowded" in tab.evaluate("document.body.className")
    assert tab.evaluate("[...document.querySelectorAll('#texts .logical')].every((box) => box.matches('.small'))")


@pytest.mark.slow
def test_tokens_a_second_are_those_of_this_server_now(serve, opened):
    """Not fewer than none after another server has begun, and none when nothing comes."""
    tab = opened(serve().url)
    until(lambda: "Live" in tab.inner_text("#live-state"))
    speeds = []
    for at, made in ((1e9, 0), (1e9 + 2, 3000), (1e9 + 4, 10), (1e9 + 6, 30)):
        stats = {"num_requests_running": 1, "num_requests_waiting": 0, "num_preemptions": 0, "generation_tokens": made}
        tab.evaluate("([stats, seconds]) => tellFacts({ stats, seconds })", [stats, at])
        speeds.append(tab.locator("#numbers b").last.inner_text())
    assert speeds == ["0", "1,500", "1,500", "10"]
    until(lambda: tab.locator("#numbers b").last.inner_text() == "0")


@pytest.mark.slow
def test_it_asks_for_the_key(serve, opened):
    server = serve(settings={"api_key": ["sesame"]})
    tab = opened(server.url)
    until(lambda: tab.is_visible("#key"))
    assert tab.locator("#pool .cell").count() == 0
    tab.fill("#key-field", "wrong")
    tab.press("#key-field", "Enter")
    until(lambda: "not the key" in tab.inner_text("#live-state"))
    tab.fill("#key-field", "sesame")
    tab.press("#key-field", "Enter")
    until(lambda: tab.locator("#pool .cell").count() > 0)
    assert "sesame" not in tab.url and not tab.is_visible("#key")
    assert (
        tab.evaluate("[...Object.keys(localStorage), ...Object.keys(sessionStorage), document.cookie].join('')") == ""
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(serve, opened, scheme):
    server = serve(num_blocks=24, block_size=4)
    for width in (1280, 390):
        tab = opened(server.url, width, color_scheme=scheme, reduced_motion="reduce")
        until(lambda tab=tab: "Live" in tab.inner_text("#live-state"))
        httpx.post(
            f"{server.url}/v1/completions", json=LONG | {"prompt": ["one wave", "two waves", "three"]}, timeout=60
        )
        until(lambda tab=tab: tab.locator("#texts .text.finished").count() >= 3)
        assert tab.locator("#remembered li").count() > 0
        assert serious(tab) == []


@pytest.mark.slow
def test_axe_finds_nothing_serious_where_the_key_is_asked_for(serve, opened):
    tab = opened(serve(settings={"api_key": ["sesame"]}).url)
    until(lambda: tab.is_visible("#key"))
    assert serious(tab) == []
