"""Clients that go away or never read, steps that raise, an engine that is gone, and a server that is told to stop."""

import json
import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest

LONG = {"prompt": "The sea", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
SHORT = LONG | {"max_tokens": 3}


class SlowSteps:
    """Each step of an engine waits for a permit, or for a little while."""

    def __init__(self, llm, monkeypatch, pause=0.003):
        step = llm.step
        monkeypatch.setattr(llm, "step", lambda: (time.sleep(pause), step())[1])


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "that took too long"
        time.sleep(0.002)


def post(sock, body):
    raw = json.dumps(body).encode()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["The sea", ["The sea", "Every wave", "grey"]])
def test_who_goes_away_is_aborted(serve, monkeypatch, stream, prompt):
    server = serve()
    SlowSteps(server.llm, monkeypatch)
    sock = socket.create_connection(server.address, timeout=5)
    post(sock, LONG | {"stream": stream, "prompt": prompt, "n": 2, "seed": 1, "temperature": 1})
    until(lambda: len(server.llm.requests) == (1 if isinstance(prompt, str) else 3))
    until(lambda: server.llm.block_pool.num_used > 0)
    if stream:
        assert sock.recv(100)
    sock.close()
    until(lambda: not server.llm.requests)
    assert server.llm.block_pool.num_used == 0
    aborted = server.llm.stats()["vllm:request_success"]["abort"]
    assert aborted == (1 if isinstance(prompt, str) else 3)
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 200


def test_who_never_reads_costs_nothing(serve, offline):
    """Much more is generated than fits into the buffers of the connection; the others are served meanwhile."""
    server = serve()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(server.address)
    post(sock, LONG | {"stream": True, "n": 8, "temperature": 1, "logprobs": 20})
    until(lambda: server.llm.stats()["vllm:request_success"]["length"] == 1, seconds=60)
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 200
    assert server.engine.num_unfinished_requests == 0
    assert httpx.get(f"{server.url}/load").json()["server_load"] == 1  # it is still being written to
    sock.close()
    until(lambda: httpx.get(f"{server.url}/load").json()["server_load"] == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_raises_is_a_500(serve, monkeypatch, stream):
    server = serve()
    forward, calls, go = server.llm.runner.forward, [], threading.Event()
    if not stream:
        go.set()

    def fail_at_third(plan):
        calls.append(plan)
        if len(calls) == (3 if stream else 1):
            assert go.wait(20)
            raise RuntimeError("the device is on fire")
        return forward(plan)

    monkeypatch.setattr(server.llm.runner, "forward", fail_at_third)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": stream}) as answer:
        if stream:
            text = answer.iter_text()
            begin = next(text)
            go.set()
            answered = begin + "".join(text)
        else:
            answer.read()
    if stream:  # the status was sent before
        *_, error, done, _ = answered.split("\n\n")
        assert done == "data: [DONE]"
        error = json.loads(error.removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
    assert "the device is on fire" in error["message"] and error["type"] == "server_error"
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 200


def test_an_engine_that_is_gone(serve, monkeypatch):
    server = serve()

    def step():
        raise SystemExit("gone")

    monkeypatch.setattr(server.llm, "step", step)
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 500
    assert httpx.get(f"{server.url}/health").status_code == 503
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 503
    assert httpx.get(f"{server.url}/metrics").status_code == 200


def test_a_request_that_cannot_go_on_is_a_500(serve, monkeypatch):
    server = serve()
    forward = server.llm.runner.forward
    monkeypatch.setattr(server.llm.runner, "forward", lambda plan: forward(plan) * float("nan"))
    answer = httpx.post(f"{server.url}/v1/completions", json=SHORT)
    assert answer.status_code == 500 and "not finite" in answer.json()["error"]["message"]
    monkeypatch.undo()
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 200


@pytest.mark.parametrize(("drain_timeout", "reason"), [(60.0, "length"), (0.0, "abort")])
def test_told_to_stop(serve, monkeypatch, drain_timeout, reason):
    """Those who are here may finish in time, or get what there is; nobody new comes in."""
    server = serve(drain_timeout=drain_timeout)
    SlowSteps(server.llm, monkeypatch)
    answers = []
    bodies = [LONG, LONG | {"stream": True}]
    url = f"{server.url}/v1/completions"
    threads = [
        threading.Thread(target=lambda body=body: answers.append(httpx.post(url, json=body, timeout=60)))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(server.llm.requests) == 2 and server.llm.stats()["vllm:generation_tokens"] > 4)
    server.server.should_exit = True
    for thread in threads:
        thread.join()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    whole, streamed = sorted(answers, key=lambda answer: "event-stream" in answer.headers["content-type"])
    assert whole.json()["choices"][0]["finish_reason"] == reason
    *_, last, done, _ = streamed.text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == reason
    assert done == "data: [DONE]"
    assert whole.json()["usage"]["completion_tokens"] == 200 or reason == "abort"


def test_who_owes_a_request_is_not_waited_for_in_the_end(serve):
    """Some have said nothing, or half of something, when the server is told to stop."""
    server = serve()
    halves = [b"", b"GET /hea", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{"]
    socks = [socket.create_connection(server.address, timeout=5) for _ in halves]
    for sock, half in zip(socks, halves):
        sock.sendall(half)
    until(lambda: len(server.server.server_state.connections) == 3)
    server.server.config.timeout_graceful_shutdown = 1000  # which is how long uvicorn would wait; `stop` does not
    server.stop()
    for sock in socks:
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        sock.close()


def test_the_event_loop_does_not_wait_for_a_step(serve, monkeypatch):
    """While a step is held up, everything that needs none is answered."""
    server = serve()
    go, held, step = threading.Event(), threading.Event(), server.llm.step
    monkeypatch.setattr(server.llm, "step", lambda: (held.set(), go.wait(20), step())[2])
    with httpx.Client(base_url=server.url, timeout=10) as http:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(http.post("/v1/completions", json=SHORT)))
        thread.start()
        assert held.wait(10)
        for path in "/health", "/load", "/metrics", "/v1/models":
            assert http.get(path).status_code == 200
        assert http.post("/tokenize", json={"prompt": "The sea"}).status_code == 200
        assert http.post("/v1/completions", json=SHORT | {"temperature": -1}).status_code == 400
        go.set()
        thread.join()
        assert answers[0].status_code == 200


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions"])
def test_the_event_loop_does_not_wait_for_a_template(serve, path):
    go, held, told = threading.Event(), threading.Event(), []

    def template(messages, **options):
        told.append(options)
        held.set()
        go.wait(20)
        return "The sea"

    server = serve(settings={"chat_template": template})
    chat = {"messages": [{"role": "user", "content": "The sea"}], "chat_template_kwargs": {"enable_thinking": False}}
    with httpx.Client(base_url=server.url, timeout=10) as http:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(http.post(path, json=chat)))
        thread.start()
        assert held.wait(10)
        assert http.get("/health").status_code == 200
        go.set()
        thread.join()
    assert answers[0].status_code == 200
    assert told == [{"add_generation_prompt": True, "enable_thinking": False}]
