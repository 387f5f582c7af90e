"""The memory, live: what `GET /live` tells is what the engine does, and the engine never notices who looks."""

import json
import socket
import threading

import pytest
from serve.lookers import HTTP, Looker, looks_like, until

from minipage import LLM, AsyncLLM, SamplingParams
from minipage.serve.access import Keys
from minipage.serve.live import is_loopback

LONG = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
PROMPTS = ["The sea", "Every wave is grey", "grey", "A ship", "and the sea again"]
WATCHED = "schedule", "copy", "forward", "sample", "update"


def is_watched(llm):
    """Whether methods of this one engine have been replaced."""
    return [name in vars(llm) for name in WATCHED] + [name in vars(llm.block_pool) for name in ("free", "allocate")]


class Reins:
    """Lets an engine make a step only when it is told to."""

    def __init__(self, llm):
        self.permits, self.asked, self.done, step = threading.Semaphore(0), 0, 0, llm.step

        def one_step():
            self.permits.acquire()
            try:
                return step()
            finally:
                self.done += 1

        llm.step = one_step

    def go(self, num_steps=1):
        self.asked += num_steps
        for _ in range(num_steps):
            self.permits.release()
        until(lambda: self.done >= self.asked)

    def let_loose(self):
        for _ in range(10_000):
            self.permits.release()


@pytest.fixture
def hold(serve):
    """Takes the reins of engines; in the end these run free, or the server could not stop."""
    held = []

    def take(llm):
        held.append(Reins(llm))
        return held[-1]

    yield take
    for reins in held:
        reins.let_loose()


def ask(server, answers, prompt, **more):
    def post():
        answers[prompt] = HTTP.post(f"{server.url}/v1/completions", json=LONG | {"prompt": prompt} | more, timeout=60)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


@pytest.mark.parametrize("preemption", ["recompute", pytest.param("swap", marks=pytest.mark.slow)])
def test_every_look_shows_the_engine_as_it_is(serve, hold, preemption):
    """Step by step, through preemptions, for one who came before everybody, and one who comes in the middle."""
    server = serve(num_blocks=12, block_size=4, preemption=preemption, enable_prefix_caching=True, max_num_seqs=4)
    llm, answers = server.llm, {}
    reins = hold(llm)
    with Looker(server.url) as first:
        until(lambda: first.trees)
        assert looks_like(first.tree, llm) and first.tree["num_free"] == 12
        threads = [ask(server, answers, prompt, max_tokens=20) for prompt in PROMPTS]
        until(lambda: server.engine.num_unfinished_requests == len(PROMPTS))
        reins.go()  # with the first of them; the others come before the next step
        for _ in range(8):
            reins.go()
            until(lambda: looks_like(first.tree, llm))
        with Looker(server.url) as second:
            for _ in range(8):
                reins.go()
                until(lambda: looks_like(first.tree, llm) and looks_like(second.tree, llm))
                assert first.tree == second.tree
        assert llm.stats()["vllm:num_preemptions"] > 0
        said = [sentence for _, sentence in first.tree["remembered"]]
        assert any("needs room, but the pool is dry" in sentence and "is preempted" in sentence for sentence in said)
        reins.let_loose()
        for thread in threads:
            thread.join()
        until(lambda: looks_like(first.tree, llm))
    assert {answer.status_code for answer in answers.values()} == {200}


def test_nobody_looks_nothing_is_recorded(serve):
    server = serve()
    assert not any(is_watched(server.llm))
    for _ in range(3):
        with Looker(server.url) as one:
            until(lambda: one.trees and all(is_watched(server.llm)))
            with Looker(server.url) as two:
                until(lambda: two.trees)
            until(lambda: server.server.config.app.state.live.watch.feed.num_viewers == 1)
            HTTP.post(f"{server.url}/v1/completions", json=LONG | {"prompt": "grey", "max_tokens": 2})
            assert all(is_watched(server.llm))
        until(lambda: not any(is_watched(server.llm)))
    until(lambda: "minipage live" not in {thread.name for thread in threading.enumerate()})


def test_texts_stay_what_they_are_whoever_comes_and_goes(serve, offline):
    server = serve(num_blocks=40, block_size=4)
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]
    expected = offline.generate(prompts, SamplingParams(max_tokens=60, temperature=0, ignore_eos=True))
    answers = {}
    threads = [ask(server, answers, prompt) for prompt in prompts]
    while any(thread.is_alive() for thread in threads):
        with Looker(server.url) as one, Looker(server.url) as two:
            until(lambda: one.trees and two.trees)
    for thread in threads:
        thread.join()
    assert [answers[prompt].json()["choices"][0]["text"] for prompt in prompts] == [o.outputs[0].text for o in expected]


@pytest.mark.slow
def test_who_never_reads_is_dropped_frames_and_nothing_else(serve, offline):
    """Its connection is full; what happens is forgotten all the same, and others see it."""
    server = serve()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(server.address)
    sock.sendall(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    feed = server.server.config.app.state.live.watch.feed
    until(lambda: feed.num_viewers == 1)
    [expected] = offline.generate("The sea", SamplingParams(max_tokens=200, temperature=0, ignore_eos=True))
    for _ in range(4):
        answer = HTTP.post(
            f"{server.url}/v1/completions", json=LONG | {"prompt": "The sea", "max_tokens": 200}, timeout=60
        )
        assert answer.json()["choices"][0]["text"] == expected.outputs[0].text
    assert len(feed._kept) == 1 and len(feed._texts) <= 2
    with Looker(server.url) as other:
        until(lambda: other.trees and looks_like(other.tree, server.llm))
    sock.close()
    until(lambda: feed.num_viewers == 0)


@pytest.mark.slow
def test_what_is_over_is_forgotten(serve):
    """An engine may be watched for weeks."""
    server = serve(enable_prefix_caching=True, num_blocks=64)
    with Looker(server.url) as one:
        until(lambda: one.trees)
        recorder = vars(server.llm)["schedule"].__self__
        for i in range(30):
            HTTP.post(f"{server.url}/v1/completions", json=LONG | {"prompt": f"{i} waves", "max_tokens": 2})
        until(lambda: "AD" in one.tree["sequences"])
        until(lambda: len(recorder.trace.changes) < 10)
        assert not recorder._labels and not recorder._group_of and not recorder._live
        assert len(one.tree["sequences"]) <= 7 and looks_like(one.tree, server.llm)


def test_who_is_aborted_is_gone_although_nothing_else_happens(serve, hold):
    server = serve()
    reins = hold(server.llm)
    with Looker(server.url) as one:
        reins.go()
        sock = socket.create_connection(server.address)
        body = json.dumps(LONG | {"prompt": "The sea"}).encode()
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: server.llm.requests)
        reins.go(3)
        until(lambda: one.tree.get("running"))
        sock.close()
        reins.let_loose()
        until(lambda: not one.tree.get("running") and looks_like(one.tree, server.llm))
        assert "is aborted" in str(one.tree["remembered"])


@pytest.mark.slow
def test_a_long_queue_is_told_by_its_length(serve, hold):
    server = serve(max_num_seqs=2)
    reins, answers = hold(server.llm), {}
    threads = [ask(server, answers, f"wave {i}", max_tokens=2) for i in range(40)]
    until(lambda: server.engine.num_unfinished_requests == 40)
    with Looker(server.url) as one:
        reins.go(2)  # with one, and then with two
        until(lambda: one.tree.get("num_more_waiting") == 40 - 2 - 24)
        assert len(one.tree["waiting"]) == 24
        reins.let_loose()
        for thread in threads:
            thread.join()
        until(lambda: "num_more_waiting" not in one.tree and not one.tree.get("running"))


# ---- who may look


def test_the_page(served):
    answer = HTTP.get(served.url)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in answer.text and "Whoever can open this page reads" in answer.text
    assert "//" not in answer.text.split("<script")[0].replace("http://www.w3.org", "")  # it asks nobody else


def test_with_a_key_only_who_has_it(serve):
    server = serve(settings={"api_key": ["open sesame", "second"]})
    page = HTTP.get(server.url)
    assert page.status_code == 401 and 'id="key"' in page.text  # it asks for the key
    assert HTTP.get(f"{server.url}/live").status_code == 401
    for key, status in (("wrong", 401), ("open sesame", 200), ("second", 200)):
        with Looker(server.url, {"Authorization": f"Bearer {key}"}) as one:
            assert one.status == status
            if status == 200:
                until(lambda: one.trees)
    assert not Keys([]) and Keys(["a"])


def test_pages_of_others_may_not(served, serve):
    url = f"{served.url}/live"
    assert HTTP.get(url, headers={"Host": "evil.example"}).status_code == 403  # a name that was led to this machine
    assert HTTP.get(url, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert HTTP.get(url, headers={"Sec-Fetch-Site": "same-site"}).status_code == 403  # another port of this machine
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:80"):
        with HTTP.stream("GET", url, headers={"Host": host, "Sec-Fetch-Site": "same-origin"}) as answer:
            assert answer.status_code == 200
    proxied = serve(settings={"api_key": ["sesame"]})
    headers = {"Host": "llm.example", "Authorization": "Bearer sesame"}
    with HTTP.stream("GET", f"{proxied.url}/live", headers=headers) as answer:
        assert answer.status_code == 200
    assert not is_loopback("127.0.0.1.evil.example") and not is_loopback("10.0.0.1")


def test_words_can_be_hidden_and_the_page_taken_away(serve):
    server = serve(settings={"hide_live_texts": True})
    assert "dot is a token" in HTTP.get(server.url).text
    with Looker(server.url) as one:
        text = HTTP.post(f"{server.url}/v1/completions", json=LONG | {"prompt": "Every wave is grey"}).json()
        until(lambda: one.tree.get("sequences", {}).get("A", {}).get("finish_reason"))
        assert one.tree["sequences"]["A"]["prompt"].strip("·") == ""
        assert "wave" not in one.raw and text["choices"][0]["text"].strip() not in one.raw
    server = serve(settings={"disable_live_page": True})
    assert HTTP.get(server.url).status_code == 404 and HTTP.get(f"{server.url}/live").status_code == 404


def test_not_more_than_a_few_look(serve, monkeypatch):
    monkeypatch.setattr("minipage.serve.live.MOST_VIEWERS", 1)
    server = serve()
    with Looker(server.url) as one:
        until(lambda: one.trees)
        assert HTTP.get(f"{server.url}/live").status_code == 429


# ---- the end


def test_a_server_that_stops_does_not_wait_for_those_who_look(serve):
    server = serve(drain_timeout=60)
    with Looker(server.url) as one:
        until(lambda: one.trees)
        server.stop()
    assert one.error is None  # the stream came to its end


def test_an_engine_that_is_gone_says_so(serve):
    server = serve()
    with Looker(server.url) as one:
        until(lambda: one.trees)
        server.engine.shutdown()
        until(lambda: one.facts.get("end"))
    assert HTTP.get(f"{server.url}/live").status_code in (500, 503)


def test_between_steps(folder):
    with AsyncLLM(LLM(folder, num_blocks=8)) as llm:
        assert llm.between_steps(lambda: llm.engine.block_pool.num_free).result(10) == 8
