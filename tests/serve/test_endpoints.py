"""Every address but those of generation; keys, ids, and what browsers may do."""

import json
import re
import socket
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve.lookers import until

from minipage import AsyncLLM, __version__
from minipage.engine.stats import METRICS
from minipage.sampling import Logprob
from minipage.serve.app import Settings
from minipage.serve.logprobs import for_chats, for_texts
from minipage.serve.main import make_server, take_port

DASHBOARD = Path(__file__).parents[2] / "docs/grafana.json"


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def ask(http, **body):
    return http.post("/v1/completions", json={"prompt": "The sea", "max_tokens": 3, "temperature": 0} | body)


def test_small_ones(http):
    assert (http.get("/health").status_code, http.get("/health").content) == (200, b"")
    assert http.get("/ping").status_code == 200
    assert http.get("/version").json() == {"version": __version__}
    assert http.get("/load").json() == {"server_load": 0}
    assert http.post("/reset_prefix_cache").status_code == 200


def test_all_names_are_understood_and_the_first_is_told(serve):
    server = serve(settings={"served_model_name": ["a", "b"]})
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for name in "a", "b", None:
            for stream in False, True:
                assert '"model":"a"' in ask(http, model=name, stream=stream).text.replace(": ", ":")
        assert ask(http, model="c").json()["error"]["code"] == "model_not_found"
        assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["a", "b"]
        assert http.get("/v1/models/b").json()["id"] == "b"
        assert http.get("/v1/models/").status_code == 404
        assert 'model_name="a"' in http.get("/metrics").text and 'model_name="b"' not in http.get("/metrics").text


def test_tokenize_and_back(http, offline):
    text = "Naïve 🙂 café"
    answer = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    ids = offline.tokenizer.encode(text)
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 256)
    assert answer["token_strs"] == [offline.tokenizer.token(token) for token in ids]
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "Sea"}]}).json()
    assert chat["tokens"] == offline.tokenizer.encode("user: Sea\nassistant:")
    assert http.post("/tokenize", json={}).json()["error"]["param"] == "prompt"
    assert http.post("/detokenize", json={"tokens": [-1]}).json()["error"]["param"] == "tokens"
    assert http.post("/detokenize", json={"tokens": ["a"]}).json()["error"]["param"] == "tokens"


def test_nobody_waits_while_tokens_are_spelled(http, served, monkeypatch):
    """There may be a million of them."""
    others_are_served = threading.Event()
    monkeypatch.setattr(served.llm.tokenizer, "token", lambda token_id: others_are_served.wait(10) and "x")
    asking = threading.Thread(
        target=http.post, args=["/tokenize"], kwargs={"json": {"prompt": "The sea", "return_token_strs": True}}
    )
    asking.start()
    try:
        assert httpx.get(f"{served.url}/health", timeout=5).status_code == 200
    finally:
        others_are_served.set()
        asking.join()


def test_unknown_pages_and_methods(http):
    for answer, status in ((http.get("/v1/nothing"), 404), (http.get("/v1/completions"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_ids_are_echoed(http):
    answer = http.post("/v1/completions", json={"prompt": "The", "max_tokens": 1}, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["id"] == "cmpl-mine-1"
    strange = http.get("/health", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", strange)


def test_two_requests_of_one_id(http):
    """A retry may come while the first is still being served."""
    answers = [ask(http, request_id="twice") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


def samples(http):
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (s.name, s.labels.get("finished_reason") or s.labels.get("le")): s.value for f in families for s in f.samples
    }


def test_metrics_have_the_names_and_types_of_the_list(http):
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    kinds = {"info": "gauge"}
    assert {name: f.type for name, f in families.items()} == {m.name: kinds.get(m.kind, m.kind) for m in METRICS}
    for metric in METRICS:
        for sample in families[metric.name].samples:
            labels = sample.labels.keys() - {"le"}
            if metric.kind == "info":
                assert {"engine", "block_size", "num_gpu_blocks"} <= labels and sample.value == 1
            else:
                reason = {"finished_reason"} if metric.name == "vllm:request_success" else set()
                assert labels == {"model_name", "engine"} | reason
                assert (sample.labels["model_name"], sample.labels["engine"]) == ("tiny", "0")
            if metric.kind == "counter":
                assert sample.name == f"{metric.name}_total"


def test_metrics_count_what_the_client_counts(http):
    http.post("/reset_prefix_cache")
    before = samples(http)
    usages = [ask(http, max_tokens=5 + i, ignore_eos=True).json()["usage"] for i in range(4)]
    after = samples(http)

    def grown(name, label=None):
        return after[name, label] - before[name, label]

    generated = sum(usage["completion_tokens"] for usage in usages)
    prompts = sum(usage["prompt_tokens"] for usage in usages)
    assert generated == 5 + 6 + 7 + 8
    assert grown("vllm:generation_tokens_total") == generated
    assert grown("vllm:prompt_tokens_total") == prompts
    assert grown("vllm:request_success_total", "length") == 4
    assert grown("vllm:request_success_total", "abort") == 0
    for name in "e2e_request_latency_seconds", "time_to_first_token_seconds", "request_params_max_tokens":
        assert grown(f"vllm:{name}_count") == 4 == grown(f"vllm:{name}_bucket", "+Inf")
    assert grown("vllm:inter_token_latency_seconds_count") == generated - 4
    assert grown("vllm:request_generation_tokens_sum") == generated
    assert grown("vllm:request_generation_tokens_bucket", "5.0") == 1
    assert after["vllm:num_requests_running", None] == 0


def test_the_dashboard_asks_for_what_there_is():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len(panels) == 8
    known = {metric.name: metric.kind for metric in METRICS}
    for panel in panels:
        for target in panel["targets"]:
            names = re.findall(r"vllm:\w+", target["expr"])
            assert names
            for name in names:
                endings = ("_bucket", "_sum", "_count", "_total")
                stem = next((name.removesuffix(end) for end in endings if name.removesuffix(end) in known), name)
                ending = name.removeprefix(stem)
                right = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(known[stem], [""])
                assert ending in right, f"{name} in panel {panel['title']!r}"


def test_keys(serve):
    server = serve(settings={"api_key": ["right", "also right", "ключ"]})
    with httpx.Client(base_url=server.url) as http:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}, {"Authorization": "Bearer"}):
            for path in "/v1/models", "/tokenize", "/reset_prefix_cache", "/nowhere":
                answer = http.post(path, json={}, headers=header)
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        for key in "right", "also right", "ключ":
            assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()}).status_code == 200
        for path in "/health", "/metrics", "/version":
            assert http.get(path).status_code == 200


def test_browsers(serve):
    server = serve(settings={"allowed_origins": ["http://mine"], "api_key": ["k"]})
    permission = {"Origin": "http://mine", "Access-Control-Request-Method": "POST"}
    with httpx.Client(base_url=server.url) as http:
        asked = http.options("/v1/completions", headers=permission)
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "http://mine"
        other = http.options("/v1/completions", headers=permission | {"Origin": "http://evil"})
        assert "access-control-allow-origin" not in other.headers
        refused = http.get("/v1/models", headers={"Origin": "http://mine"})  # which the page may read
        evil = http.post("/tokenize", json={}, headers={"Origin": "http://evil", "Authorization": "Bearer k"})
        assert evil.status_code == 403 and evil.json()["error"]["code"] == "origin_not_allowed"
        for origin in "http://mine", server.url:
            answer = http.post(
                "/tokenize", json={"prompt": "a"}, headers={"Origin": origin, "Authorization": "Bearer k"}
            )
            assert answer.status_code == 200
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "http://mine"


def test_log_has_a_line_for_each_request_and_no_prompt(http, caplog):
    caplog.set_level("INFO", "minipage.serve")
    secret = "every gull says so"
    asked = {"prompt": secret, "max_tokens": 4, "ignore_eos": True}
    http.post("/v1/completions", json=asked, headers={"X-Request-Id": "logged"})
    http.post("/v1/completions", json={"prompt": secret, "temperature": -1}, headers={"X-Request-Id": "refused"})
    http.get("/v1%0aINFO forged%1b[2J")

    def lines():  # the last one of the test before may come late
        return [line for line in caplog.messages if re.search("logged|refused|forged", line)]

    until(lambda: len(lines()) == 3)
    http.get("/health")
    first, second, third = lines()
    assert "logged POST /v1/completions 200, " in first and "4 generated" in first and " s, length" in first
    assert "POST /v1/completions 400 (temperature), " in second
    assert " GET /v1%0AINFO%20forged%1B%5B2J 404" in third and third.isprintable()
    assert secret not in caplog.text and "/health" not in caplog.text


@pytest.mark.parametrize("root_path", ["/llm/", "llm"])
def test_behind_a_proxy(folder, root_path):
    """--root-path: whether the proxy takes its prefix off or leaves it, pages are found as ever."""
    llm = AsyncLLM(folder, num_blocks=50)
    sock = take_port("127.0.0.1", 0)
    answers = threading.Event()
    settings = Settings(api_key=["k"])
    server = make_server(llm, settings, root_path=root_path, log_level="warning", tell=lambda where: answers.set())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)  # so that a failure ends
    thread.start()
    assert answers.wait(20)
    with httpx.Client(base_url="http://{}:{}".format(*sock.getsockname())) as http:
        for prefix in "", "/llm":
            assert http.get(f"{prefix}/health").status_code == 200
            assert http.get(f"{prefix}/v1/models").status_code == 401
            assert http.get(f"{prefix}/v1/models", headers={"Authorization": "Bearer k"}).status_code == 200
            moved = http.post(f"{prefix}/tokenize/", headers={"Authorization": "Bearer k"}).headers["location"]
            assert moved.endswith("/llm/tokenize") and "/llm/llm" not in moved
        assert http.get("/llmhealth", headers={"Authorization": "Bearer k"}).status_code == 404
    server.should_exit = True
    thread.join()
    llm.shutdown()


def test_of_tokens_that_look_alike_the_likeliest_is_told():
    """Parts of characters do. Whoever asks whether a token was the likeliest (lm-eval does) has to find it so."""
    part = "\N{REPLACEMENT CHARACTER}"
    known = {5: Logprob(-0.1, 1, part), 6: Logprob(-2.5, 2, "a"), 7: Logprob(-3.0, 3, part)}
    assert for_texts([5], [known], [0])["top_logprobs"] == [{part: -0.1, "a": -2.5}]


def test_minus_infinity_is_a_number_in_json():
    never = Logprob(float("-inf"), 300, "x")
    text = for_texts([5], [{5: never}], [0])
    assert text["token_logprobs"] == [-9999.0] and text["top_logprobs"] == [{"x": -9999.0}]
    assert for_chats([5], [{5: never}], 1, None)["content"][0]["logprob"] == -9999.0


def test_prompts_are_logged_for_those_who_ask(serve, caplog):
    server = serve(settings={"enable_log_requests": True})
    caplog.set_level("INFO", "minipage.serve")
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "every gull", "max_tokens": 1})
    assert "every gull" in caplog.text


def test_answers_wait_for_no_acknowledgement(serve):
    """Without TCP_NODELAY each answer but the first of a connection takes about 40 ms longer."""
    server = serve()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200
        [connection] = server.server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
