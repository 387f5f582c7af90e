"""Whatever is sent, the answer has the right status, and the next request is served."""

import json
import shutil
import socket
import ssl
import sys
import threading
from contextlib import suppress
from types import ModuleType

import httpx
import pytest
from serve.lookers import until
from serve.tls_files import make_tls_files, needs_openssl

from minipage.serve import limits

GOOD = {"prompt": "The sea", "max_tokens": 2, "temperature": 0}


@pytest.fixture
def http(served):
    with httpx.Client(base_url=served.url, timeout=30, verify=False) as client:  # to read certificates takes a while
        yield client
        assert client.post("/v1/completions", json=GOOD).status_code == 200
        assert client.get("/load").json() == {"server_load": 0}


def refused(answer, status, param=None):
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["message"] and answer.headers["x-request-id"]
    return error["message"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"no", b"[]", b"null", b'"text"', b'{"prompt": "\xff\xfe"}', b'{"prompt": "a"} x', b"\x00" * 9),
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' + b'{"a":' * 50_000,
        b"[" * 200_000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_is_no_request(http, path, body):
    refused(http.post(path, content=body), 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", {"a": 1}),
        ("prompt", ["text", 5]),
        ("prompt", [True]),
        ("max_tokens", "5"),
        ("max_tokens", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -(10**30)),
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_k", -2),
        ("min_p", 2),
        ("n", True),
        ("n", 10**9),
        ("seed", -(2**63) - 1),
        ("seed", 2**64),
        ("stop", [""]),
        ("stop", {"a": "b"}),
        ("stop", ["x"] * 129),
        ("bad_words", ["x"] * 1025),
        ("guided_choice", ["x"] * 10_001),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("stream", "yes"),
        ("stream_options", []),
        ("stream_options", {"include_usage": True}),  # and no stream
        ("suffix", "end"),
        ("best_of", 5),
        ("presence_penalty", "x"),
        ("stop_token_ids", [10**9]),
        ("cache_salt", 5),
        ("priority", "high"),
        ("response_format", {"type": "no such"}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "no such"}}}),
        ("guided_regex", "("),
        ("guided_regex", "[^\\s\\S]"),
        ("guided_json", "{"),
        ("structured_outputs", {"regex": "a{1000000}"}),
        ("logit_bias", {"5": 1e308}),
        ("repetition_penalty", 1e-300),
        ("model", 5),
    ],
)
def test_wrong_values_are_refused_by_name(http, field, value):
    refused(http.post("/v1/completions", json=GOOD | {field: value}), 400, field)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("stop", ["a", 1], "stop.1: Input should be a valid string."),
        ("stop", 5, "stop: Input should be a valid string."),
        ("guided_json", True, "guided_json: Input should be an object."),
        ("logit_bias", {"5": None}, "logit_bias.5: Input should be a valid number."),
        ("n", 300, "the request lets 300 sequences go on together"),
    ],
)
def test_what_is_wrong_is_said_of_the_type_that_was_meant(http, field, value, sentence):
    assert refused(http.post("/v1/completions", json=GOOD | {field: value}), 400, field).startswith(sentence)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"guided_choice": ["yes"], "allowed_token_ids": [5]}, "guided_choice"),
        ({"guided_choice": ["yes"], "min_tokens": 2, "allowed_token_ids": [0]}, "guided_choice"),
        ({"allowed_token_ids": [0], "min_tokens": 2}, "allowed_token_ids"),  # the one that ends a text
        ({"guided_regex": "", "min_tokens": 1}, "guided_regex"),
    ],
)
def test_wishes_that_leave_no_token_are_the_clients_own_fault(http, asked, param, stream):
    message = refused(http.post("/v1/completions", json=GOOD | asked | {"stream": stream}), 400, param)
    assert "no token is left" in message


def test_the_field_to_blame_is_named_as_the_client_has_named_it(http):
    body = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 0}
    for longest in None, 5:
        answer = http.post("/v1/chat/completions", json=body | {"max_tokens": longest})
        refused(answer, 400, "max_completion_tokens")
    refused(http.post("/v1/completions", json=GOOD | {"use_beam_search": True, "n": 301}), 400, "n")


def test_a_broken_chat_template_is_told_of_to_those_who_chat(serve, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{% if"}')
    server = serve(model=tmp_path, settings={"chat_template": None})
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for path in "/v1/chat/completions", "/tokenize":
            message = refused(http.post(path, json={"messages": [{"role": "user", "content": "a"}]}), 400, "messages")
            assert "is not valid (line 1" in message
        assert http.post("/v1/completions", json=GOOD).status_code == 200


def test_infinities_are_no_numbers(http):
    for value in "NaN", "Infinity", "1e999":
        answer = http.post("/v1/completions", content=f'{{"prompt": "a", "temperature": {value}}}')
        assert answer.status_code == 400


def test_prompts_that_are_too_long(http):
    for prompt in [1] * 256, "sea " * 10_000, ["The", [1] * 300]:
        assert "256" in refused(http.post("/v1/completions", json=GOOD | {"prompt": prompt}), 400, "prompt")
    assert "characters" in refused(
        http.post("/v1/completions", json=GOOD | {"prompt": "sea " * 500_000}), 400, "prompt"
    )
    assert "299" in refused(http.post("/v1/completions", json=GOOD | {"prompt": [1, 300]}), 400, "prompt")


def test_unknown_models(http):
    assert "tiny" in refused(http.post("/v1/completions", json=GOOD | {"model": "huge"}), 404, "model")
    assert len(refused(http.post("/v1/completions", json=GOOD | {"model": "huge" * 9_999}), 404, "model")) < 200


def test_bodies_that_are_too_long(serve):
    server = serve(settings={"max_body_size": 10_000})
    with httpx.Client(base_url=server.url, timeout=30) as http:
        refused(http.post("/v1/completions", content=b"x" * 10_001), 413)

        def pieces():  # of which nobody has said how many there are
            for _ in range(200):
                yield b" " * 1000

        refused(http.post("/v1/completions", content=pieces()), 413)
        answer = talk(server, b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n{")
        assert b" 413 " in answer.splitlines()[0]
        assert http.post("/v1/completions", json=GOOD).status_code == 200


def test_who_is_still_sending_hears_why_it_is_refused(serve, monkeypatch):
    """And is not cut off, although it wants the connection to be closed: not until it has had some time."""
    server = serve(settings={"max_body_size": 10_000})
    head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
    for seconds in 10, 0.1:
        monkeypatch.setattr(limits, "HEADER_SECONDS", seconds)
        with socket.create_connection(server.address, timeout=5) as sock:
            sock.sendall(head + b"x" * 100_000)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
            assert b" 413 " in answer.splitlines()[0] and b"longer than" in answer
            if seconds == 10:
                for _ in range(9):
                    sock.sendall(b"x" * 100_000)
            else:
                until(lambda: not server.server.server_state.connections)


def talk(server, data, shut=False):
    """Send bytes and return what comes back until the other side is silent or has closed."""
    with socket.create_connection(server.address, timeout=5) as sock:
        sock.sendall(data)
        if shut:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = sock.recv(65536)
            if not more:
                break
            answer += more
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),  # without a Host
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 50_000 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n", b"400"),
        (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
def test_what_is_no_http(http, served, data, status):
    assert status in talk(served, data).split(b"\r\n")[0]


def test_half_requests_are_not_waited_for(serve, monkeypatch):
    for name in "HEADER_SECONDS", "BODY_SECONDS":
        monkeypatch.setattr(limits, name, 0.1)
    server = serve()
    halves = [
        b"",
        b"GET /hea",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Le",
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health",  # the second of two
    ]
    for data in halves:
        with socket.create_connection(server.address, timeout=5) as sock:
            sock.sendall(data)
            while sock.recv(65536):  # until it is closed
                pass
    late = talk(server, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
    assert b" 408 " in late.splitlines()[0]
    assert httpx.post(f"{server.url}/v1/completions", json=GOOD).status_code == 200


@needs_openssl
def test_nor_are_clients_that_do_not_even_greet_in_tls(serve, tmp_path, monkeypatch):
    key, certificate = make_tls_files(tmp_path)
    monkeypatch.setattr(limits, "HEADER_SECONDS", 1.0)
    server = serve(tls={"ssl_keyfile": str(key), "ssl_certfile": str(certificate)})
    with socket.create_connection(server.address, timeout=5) as sock, suppress(ConnectionResetError):
        assert sock.recv(1) == b""  # it is closed, and not silent: that would be a TimeoutError
    trust = ssl.create_default_context(cafile=certificate)
    assert httpx.post(f"{server.url}/v1/completions", json=GOOD, verify=trust).status_code == 200


def test_connections_are_limited(serve, monkeypatch):
    """Of many who say nothing, those who came first have to go, and whoever asks is served."""
    monkeypatch.setattr(limits, "most_connections", lambda: 20)
    server = serve()
    held = [socket.create_connection(server.address, timeout=5) for _ in range(60)]
    for sock in held[::2]:
        with suppress(ConnectionError):
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHos")
    for sock in held[1::2]:
        with suppress(ConnectionError):
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
    assert httpx.post(f"{server.url}/v1/completions", json=GOOD).status_code == 200
    assert len(server.server.server_state.connections) <= 20
    with suppress(ConnectionResetError):
        assert held[0].recv(1) == b""  # it is closed, and not silent: that would be a TimeoutError
    for sock in held:
        sock.close()


def test_the_limits_are_those_of_the_loop_that_runs(serve, monkeypatch):
    """They are made for asyncio's; uvicorn would take another one where it is installed."""
    monkeypatch.setitem(sys.modules, "uvloop", ModuleType("uvloop"))
    assert serve().server.config.get_loop_factory().__module__.startswith("asyncio")


def test_files_are_left_for_others():
    assert 0 < limits.most_connections() <= limits.MOST_CONNECTIONS


def test_a_full_queue_answers_429(serve, monkeypatch):
    server = serve(max_num_seqs=2, settings={"max_queued_requests": 1})
    go, step = threading.Event(), server.llm.step
    monkeypatch.setattr(server.llm, "step", lambda: go.wait(20) and step())
    with httpx.Client(base_url=server.url, timeout=30) as http:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(http.post("/v1/completions", json=GOOD))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while http.get("/load").json()["server_load"] < 3:
            pass
        answer = http.post("/v1/completions", json=GOOD)
        refused(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        refused(http.post("/v1/completions", json=GOOD | {"prompt": ["a"] * 4}), 413)
        go.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3
        assert http.post("/v1/completions", json=GOOD).status_code == 200


def test_surrogates_and_other_strange_texts(http, offline):
    body = json.dumps(GOOD | {"prompt": "a\x00b\u2028c"})
    assert http.post("/v1/completions", content=body).status_code == 200
    assert http.post("/v1/completions", content=rb'{"prompt": "a\ud800b", "max_tokens": 1}').status_code in (200, 400)
