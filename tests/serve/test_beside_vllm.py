"""What the server of vLLM 0.32 answered when both were asked the same, and clients of it rely on."""

import json

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "the sea"}]


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def ask(http, **body):
    chats = "messages" in body
    body = {"max_tokens": 4, "temperature": 0} | ({} if chats else {"prompt": "The sea"}) | body
    answer = http.post("/v1/chat/completions" if chats else "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        return [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
    return answer.json()


@pytest.mark.parametrize("kind", [{}, {"messages": MESSAGES}], ids=["text", "chat"])
def test_the_models_own_end_is_no_stop_reason(http, kind):
    ends = ask(http, logit_bias={"0": 1e4}, **kind)["choices"][0]
    assert (ends["finish_reason"], ends["stop_reason"]) == ("stop", None)
    *_, ends = ask(http, logit_bias={"0": 1e4}, stream=True, **kind)
    assert (ends["choices"][0]["finish_reason"], ends["choices"][0]["stop_reason"]) == ("stop", None)
    asked = ask(http, logit_bias={"0": 1e4}, stop_token_ids=[0], ignore_eos=True, **kind)["choices"][0]
    assert (asked["finish_reason"], asked["stop_reason"]) == ("stop", 0)
    asked = ask(http, logit_bias={"7": 1e4}, stop_token_ids=[7], **kind)["choices"][0]
    assert (asked["finish_reason"], asked["stop_reason"]) == ("stop", 7)


def test_a_stop_string_ends_after_min_tokens(http, offline):
    (first,) = offline.tokenizer.encode("a")
    for min_tokens, length in (0, 1), (1, 2), (2, 3), (3, 4):
        choice = ask(http, logit_bias={str(first): 1e4}, stop="a", min_tokens=min_tokens, return_token_ids=True)
        assert choice["choices"][0]["token_ids"] == [first] * length
