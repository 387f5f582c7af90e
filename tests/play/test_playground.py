"""The playground without a browser: pages of cardboard (serve/lookers.py), and acts as a page asks for them."""

import json
import socket
import threading

import httpx
import pytest
from serve.lookers import HTTP, Looker, looks_like, until

from minipage import LLM, SamplingParams
from minipage.errors import ConfigurationError
from minipage.play import main
from minipage.play.challenges import ALL, BASE, are_for
from minipage.play.main import BEGIN, Table, builder, check_sizes, play, run
from minipage.play.run import Ask, Run

TWO = ["O Romeo,", "My kingdom for a"]
SOLUTIONS = {
    "nine-blocks": {"max_num_seqs": 2},
    "hit-rate": {"enable_prefix_caching": True, "block_size": 4},
    "little-waste": {"block_size": 4},
    "nothing-twice": {"preemption": "swap"},
    "in-a-hurry": {"max_num_seqs": 8, "max_num_batched_tokens": 64},
    "last-is-first": {"policy": "priority"},
}


@pytest.fixture(scope="module")
def build():
    return builder(LLM(num_blocks=8))


@pytest.fixture
def table(build):
    with Table(build, BEGIN) as table:
        yield table


class Page(Looker):
    """A page that is open, and asks for acts."""

    def __init__(self, table):
        self.table = table
        super().__init__(table.url)
        until(lambda: self.error or self.thread.is_alive() is False or (self.tree and "mode" in self.facts))
        assert self.tree, (self.status, self.error, self.raw)

    def act(self, name, /, **more):
        answer = HTTP.post(f"{self.table.url}/act", json={"act": name} | more, timeout=60)
        self.said = "" if answer.is_success else answer.json()["error"]["message"]
        return answer.status_code

    @property
    def llm(self):
        return self.table.playground.run.llm

    def settle(self):
        """Until the frame that is shown says what is so in the engine, and everything that pages are told is here."""
        until(lambda: looks_like(self.tree, self.llm) and self.facts == self.told())

    def told(self):
        """What somebody who opens a page now is told beside frames."""
        feed = self.table.playground.feed
        newcomer = feed.join(lambda: None)
        feed.leave(newcomer)
        return json.loads(newcomer.take())["facts"]

    def step(self, num_steps=1):
        for _ in range(num_steps):
            done = self.table.playground.run.steps_done
            assert self.act("step") == 200
            until(lambda done=done: self.table.playground.run.steps_done > done)
            until(lambda: not self.table.playground._to_end)
        self.table.playground.call(lambda: None).result(60)  # the thread has told all about the step
        self.settle()


@pytest.fixture
def page(table):
    with Page(table) as page:
        yield page


def test_what_is_shown_is_so_after_each_act(page, table):
    page.settle()
    assert page.act("add", prompts=TWO, n=2, max_tokens=9) == 200
    page.settle()
    assert len(page.tree["waiting"]) == 4
    page.step(3)
    assert page.act("add", prompts=["Speak"], beam_width=2, max_tokens=5) == 200
    page.settle()
    page.step(2)
    assert page.act("abort", request_id="1") == 200
    page.settle()
    assert "is aborted" in " ".join(page.tree["events"])
    assert page.act("configure", options={"block_size": 8, "num_blocks": 12}) == 200
    page.settle()
    assert table.playground.run.steps_done == 5 and page.tree["block_size"] == 8
    assert page.act("run") == 200 and page.act("pace", seconds=0.05) == 200
    until(lambda: not table.playground.run.has_work)
    page.settle()
    assert page.act("clear") == 200
    page.settle()
    until(lambda: not page.tree.get("sequences") and page.facts["requests"] == [])


def test_a_request_that_was_tried_first_is_not_aborted(page, table):
    for num_asked in (2, 4):  # the second two come while the first two run
        assert page.act("add", prompts=TWO, max_tokens=9) == 200
        page.step(2)
        until(lambda num=num_asked: len(page.facts["requests"]) == num)
        assert [request["done"] for request in page.facts["requests"]] == [""] * num_asked
    assert table.playground.run.reasons == {}


@pytest.mark.parametrize("order", ["run", "step"])
def test_an_order_to_an_engine_that_has_nothing_to_do_is_void(order, page, table):
    """It does not wait for whatever is sent later."""
    assert page.act(order) == 200
    assert not page.told()["mode"]["runs"]
    assert page.act("add", prompts=TWO, max_tokens=4) == 200
    for _ in range(2):  # the first may come before it could begin a step, the second comes after that
        table.playground.call(lambda: None).result(60)
    assert table.playground.run.steps_done == 0 and len(page.told()["requests"]) == 2
    page.settle()
    assert page.tree["phase"] == "schedule" and not page.tree.get("chunks")


def test_phase_by_phase_the_engine_stands_in_the_middle_of_a_step(page, table):
    page.act("add", prompts=TWO, max_tokens=4)
    steps_done = table.playground.run.steps_done
    for phase in ("schedule", "forward", "sample"):
        page.act("phase")
        until(lambda phase=phase: page.tree["phase"] == phase and page.tree.get("chunks"))
        page.settle()
        assert table.playground.run.steps_done == steps_done  # the step is not over
    assert not any(text.get("text") for text in page.tree["sequences"].values())  # drawn, but not taken yet
    page.act("phase")
    until(lambda: page.tree["phase"] == "update" and table.playground.run.steps_done == steps_done + 1)
    page.settle()
    page.act("phase")
    until(lambda: page.tree["phase"] == "schedule")
    page.act("add", prompts=["Speak"])  # a step that has begun is brought to its end first
    page.settle()
    assert len(page.tree["sequences"]) == 3 and table.playground.run.steps_done == steps_done + 2


@pytest.mark.slow
def test_two_pages_see_the_same_and_one_that_comes_later_too(page, table):
    with Page(table) as other:
        page.act("add", prompts=TWO, max_tokens=6)
        page.step(2)
        other.settle()
        assert other.tree == page.tree and other.facts["requests"] == page.facts["requests"]
        other.act("abort", request_id="2")
        page.settle()
        with Page(table) as third:
            third.settle()
            assert third.trees == other.trees  # with all that has been
    until(lambda: table.playground.num_pages == 1)


def test_nothing_goes_on_while_no_page_is_open(table):
    with Page(table) as page:
        page.act("pace", seconds=0.05)
        page.act("add", prompts=TWO, max_tokens=60)
        page.act("run")
        until(lambda: table.playground.run.steps_done > 2)
    until(lambda: table.playground.num_pages == 0)
    threads = [thread for thread in threading.enumerate() if thread.name == "minipage play"]
    steps = len(table.playground.run.trace.changes)
    for _ in range(3):
        table.playground.call(lambda: None).result(20)  # the thread has been there, and has gone to rest
    assert len(threads) == 1 and len(table.playground.run.trace.changes) <= steps + 5
    steps = table.playground.run.steps_done
    table.playground.call(lambda: None).result(20)
    assert table.playground.run.steps_done == steps
    with Page(table) as page:
        until(lambda: table.playground.run.steps_done > steps)  # it was running, and goes on


def test_served_again_with_other_options(page, table):
    page.act("add", prompts=TWO, max_tokens=12)
    page.step(4)
    page.act("add", prompts=["Speak"], max_tokens=4)
    page.settle()
    old = {text["prompt"]: text.get("text", "") for text in page.tree["sequences"].values()}
    assert page.act("configure", options={"block_size": 16}) == 200
    page.settle()
    until(lambda: page.facts.get("compare"))
    new = {text["prompt"]: text.get("text", "") for text in page.tree["sequences"].values()}
    assert new == old  # the same texts, as far as they were
    before, after = page.facts["compare"]["figures"]
    assert page.facts["compare"]["changed"] == {"block_size": [4, 16]}
    assert before["waste"] < after["waste"] and before["most_blocks"] > after["most_blocks"]
    assert before["served"] == after["served"] == 3 and before["steps"] == after["steps"]
    assert page.facts["before"]["deltas"]


@pytest.mark.slow
def test_a_smaller_pool_until_somebody_gives_way(page):
    page.act("add", prompts=TWO, max_tokens=16)
    preemptions = []
    for num_blocks in (20, 10, 8, 6):
        assert page.act("configure", options={"num_blocks": num_blocks}) == 200
        until(lambda num_blocks=num_blocks: page.facts["options"]["num_blocks"] == num_blocks)
        preemptions.append(page.facts["compare"]["figures"][1]["preemptions"])
        page.settle()
    assert preemptions[0] == 0 and preemptions[-1] > 0
    assert page.act("configure", options={"num_blocks": 2}) == 400  # it could not even hold one of them
    assert "request 1" in page.said and "2" in page.said
    assert page.facts["options"]["num_blocks"] == 6
    page.settle()


EACH = [pytest.param(each, id=each.name, marks=[pytest.mark.slow] * (number > 0)) for number, each in enumerate(ALL)]


@pytest.mark.parametrize("challenge", EACH)
def test_challenges_are_not_solved_until_they_are(page, challenge):
    assert page.act("challenge", name=challenge.name) == 200
    until(lambda: page.facts["challenges"]["here"] == challenge.name)
    page.settle()
    assert page.facts["challenges"]["missing"]
    assert page.act("add", prompts=["more"]) == 400 and "challenge" in page.said
    assert page.act("abort", request_id="1") == 400
    for name in challenge.locked:
        assert page.act("configure", options={name: BASE[name]}) == 400 and "part of the challenge" in page.said
    assert page.act("configure", options=SOLUTIONS[challenge.name]) == 200
    until(lambda: not page.facts["challenges"]["missing"])
    assert [each["name"] for each in page.facts["challenges"]["all"] if each["solved"]] == [challenge.name]
    assert page.act("clear") == 200
    until(lambda: page.facts["challenges"]["here"] == "")


def test_challenges_are_for_the_model_that_they_were_made_for(build):
    assert are_for(build(num_blocks=8).tokenizer) and not are_for(None)
    assert 4 <= len(ALL) == len(SOLUTIONS)


BAD = [
    ({"act": "add", "prompts": []}, "there is no prompt"),
    ({"act": "add", "prompts": ["  "]}, "there is no prompt"),
    ({"act": "add", "prompts": "To be"}, "list of texts"),
    ({"act": "add", "prompts": [1]}, "list of texts"),
    ({"act": "add", "prompts": ["a"] * 17}, "at most 16 prompts"),
    ({"act": "add", "prompts": ["a" * 2001]}, "2,000 characters"),
    ({"act": "add", "prompts": ["a"], "max_tokens": 0}, "max_tokens is 0"),
    ({"act": "add", "prompts": ["a"], "max_tokens": True}, "max_tokens is True"),
    ({"act": "add", "prompts": ["a"], "n": 99}, "n is 99"),
    ({"act": "add", "prompts": ["a"], "beam_width": "x"}, "beam_width is 'x'"),
    ({"act": "add", "prompts": ["a"], "temperature": -1}, "temperature"),
    ({"act": "add", "prompts": ["a"], "priority": "high"}, "priority is 'high'"),
    ({"act": "add", "prompts": ["a"], "colour": "red"}, "does not take"),
    ({"act": "add", "prompts": ["to be or not " * 60]}, "tokens"),
    ({"act": "abort", "request_id": "7"}, "request 7 is not there"),
    ({"act": "configure", "options": {}}, "names and values"),
    ({"act": "configure", "options": {"model": "gpt2"}}, "no option that the page can change"),
    ({"act": "configure", "options": {"block_size": 0}}, "block_size is 0"),
    ({"act": "configure", "options": {"num_blocks": 10**9}}, "num_blocks is 1000000000"),
    ({"act": "configure", "options": {"policy": "mine"}}, "policy is 'mine'"),
    ({"act": "configure", "options": {"enable_prefix_caching": 1}}, "true or false"),
    ({"act": "pace", "seconds": 0}, "pace is 0"),
    ({"act": "pace", "seconds": "x"}, "pace is 'x'"),
    ({"act": "challenge", "name": "none"}, "there is no challenge"),
    ({"act": "dance"}, "an act is JSON"),
    ({}, "an act is JSON"),
    ([], "an act is JSON"),
]


def test_bad_input_is_a_sentence_and_changes_nothing(page, table):
    page.act("add", prompts=["Speak"], max_tokens=3)
    page.settle()
    before = page.tree, page.facts["options"], page.facts["requests"]
    for body, sentence in BAD:
        answer = HTTP.post(f"{table.url}/act", json=body, timeout=60)
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], (body, answer.text)
    for raw in (b"", b"{", b"\xff", b"[" * 10_000):
        answer = HTTP.post(f"{table.url}/act", content=raw, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, raw
    assert (
        HTTP.post(f"{table.url}/act", content=b"x" * 70_000, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    page.settle()
    assert (page.tree, page.facts["options"], page.facts["requests"]) == before
    page.act("add", prompts=["Speak"])
    until(lambda: [request["id"] for request in page.facts["requests"]] == ["1", "2"])  # none was used up


def test_who_is_still_sending_hears_why_it_is_refused(table):
    """Whatever it is refused for, and although it wants the connection to be closed."""
    host, port = table.url.removeprefix("http://").split(":")
    for headers, said in (
        ("Content-Type: application/json", b" 413 "),
        ("Content-Type: text/plain", b" 415 "),
        ("Content-Type: application/json\r\nOrigin: http://evil.example", b" 403 "),
    ):
        head = f"POST /act HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: 1000000\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(f"{head}{headers}\r\n\r\n".encode() + b"x" * 100_000)
            answer = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
            assert said in answer.splitlines()[0], headers
            for _ in range(9):
                sock.sendall(b"x" * 100_000)


def test_only_the_page_itself_may_act(table):
    act, json = f"{table.url}/act", {"act": "run"}
    assert table.url.startswith("http://127.0.0.1:")
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert HTTP.post(act, json=json, headers=headers).status_code == 403, headers
        assert HTTP.get(f"{table.url}/live", headers=headers).status_code == 403, headers
    assert HTTP.get(table.url, headers={"Host": "evil.example"}).status_code == 403
    assert HTTP.post(act, content=b'{"act": "run"}', headers={"Content-Type": "text/plain"}).status_code == 415
    assert HTTP.post(act, json=json, headers={"Origin": table.url, "Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.slow
def test_a_part_that_raises_is_said_and_the_playground_goes_on(build):
    wrong = []

    def build_wrong(**options):
        llm = build(**options)
        forward = llm.runner.forward

        def sometimes(plan):
            if wrong:
                raise ZeroDivisionError("a part of yours")
            return forward(plan)

        llm.runner.forward = sometimes
        return llm

    with Table(build_wrong, BEGIN) as table, Page(table) as page:
        page.act("add", prompts=["Speak"], max_tokens=3)
        wrong.append(True)
        page.act("run")
        until(lambda: "a part of yours" in page.facts["failure"])
        assert page.facts["mode"]["runs"] is False
        wrong.clear()
        page.step(3)
        assert next(iter(page.tree["sequences"].values()))["finish_reason"] == "length"


# ---- runs


def test_a_run_can_be_repeated(build):
    asks = [Ask("1", TWO[0], {"max_tokens": 8, "seed": 1}), Ask("2", TWO[1], {"max_tokens": 20, "seed": 2}, step=3)]
    run = Run(build, BEGIN | {"num_blocks": 8}, asks)
    run.go_on()
    again = Run(build, BEGIN | {"num_blocks": 8}, run.asks)
    again.go_on()
    assert run.figures() == again.figures() and run.figures().served == 2
    expected = LLM().generate(TWO, [SamplingParams(max_tokens=8, seed=1), SamplingParams(max_tokens=20, seed=2)])
    texts = {seq.prompt: seq.text for seq in run.trace.steps[-1].all_sequences}
    assert texts == {output.prompt: output.outputs[0].text for output in expected}


def test_figures_count_what_happened(build):
    run = Run(
        build,
        BEGIN | {"num_blocks": 7},
        [Ask(str(i), text, {"max_tokens": 14, "seed": i}) for i, text in enumerate(TWO)],
    )
    run.go_on()
    figures, frames = run.figures(), [frame for frame in run.trace if frame.phase == "update"]
    assert figures.preemptions == sum(bool(frame.preempted) for frame in frames) > 0
    assert figures.computed == sum(frame.num_computed_tokens for frame in frames)
    longest = sum(len(seq.tokens) - 1 for seq in run.trace.steps[-1].all_sequences)
    assert figures.recomputed == figures.computed - longest > 0
    assert figures.most_blocks == max(frame.num_used_blocks for frame in frames)


# ---- from a notebook and from the command line


def test_from_a_notebook():
    llm = LLM(block_size=8, num_blocks=40, policy="priority", enable_prefix_caching=True)
    with llm.play() as table:
        assert f'src="{table.url}/?embed"' in table._repr_html_()
        with Page(table) as page:
            assert (
                page.facts["options"] | {"block_size": 8, "num_blocks": 40, "policy": "priority"}
                == page.facts["options"]
            )
            page.act("add", prompts=["Speak"], max_tokens=3)
            page.step(3)
        assert not llm.requests and llm.block_pool.num_free == 40 and not vars(llm).get("schedule")
    with pytest.raises(httpx.ConnectError):
        HTTP.get(table.url)
    with play(LLM(num_blocks=5000)) as table:
        assert table.playground.run.llm.block_pool.num_blocks == 1024  # what a page can show
    with pytest.raises(ConfigurationError, match="shows at most"):
        check_sizes(BEGIN | {"num_blocks": 5000})


def test_what_is_slow_the_first_time_is_done_before_the_page_is_there(monkeypatch):
    """Kernels are compiled while the command line can say so; a page would only stand still."""
    done = []
    generate = LLM.generate
    monkeypatch.setattr(LLM, "generate", lambda *args: (done.append("generate"), generate(*args))[1])
    monkeypatch.setattr(main, "Table", lambda *_: (done.append("page"), 1 / 0)[1])
    with pytest.raises(ZeroDivisionError):
        run({})
    assert done[0] == "generate" and done[-1] == "page"
