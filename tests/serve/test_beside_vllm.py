"""What the server of vLLM 0.32 answered when both were asked the same, and clients of it rely on."""

import json
import math

import httpx
import pytest

from minipage.model.chat_template import ChatTemplate
from minipage.serve.command import read_settings

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


@pytest.mark.parametrize("n", [1, 2])
def test_a_chat_tells_the_tokens_of_its_prompt_once_for_each_text(http, offline, n):
    ids = offline.tokenizer.encode("user: the sea\nassistant:", add_special_tokens=False)
    options = {"messages": MESSAGES, "return_token_ids": True, "n": n}
    assert ask(http, **options)["prompt_token_ids"] == ids
    chunks = ask(http, **options, stream=True)
    told = [
        (chunk["choices"][0]["index"], chunk["prompt_token_ids"]) for chunk in chunks if "prompt_token_ids" in chunk
    ]
    assert sorted(told) == [(i, ids) for i in range(n)]
    assert all("role" in chunk["choices"][0]["delta"] for chunk in chunks if "prompt_token_ids" in chunk)
    assert "prompt_token_ids" not in ask(http, messages=MESSAGES)


@pytest.mark.parametrize("echo", [False, True])
def test_tokens_are_spelled_as_ids_for_those_who_want_to_know_which_they_are(http, echo):
    plain = ask(http, logprobs=2, echo=echo, return_token_ids=True)["choices"][0]
    spelled = ask(http, logprobs=2, echo=echo, return_tokens_as_token_ids=True)["choices"][0]
    ids = (plain["prompt_token_ids"] if echo else []) + plain["token_ids"]
    assert spelled["text"] == plain["text"]
    assert spelled["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids]
    assert spelled["logprobs"]["token_logprobs"] == plain["logprobs"]["token_logprobs"]
    for token, top in zip(ids, spelled["logprobs"]["top_logprobs"]):
        assert top is None or (f"token_id:{token}" in top and all(text.startswith("token_id:") for text in top))


def test_so_are_those_of_chats(http):
    options = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    plain = ask(http, return_token_ids=True, **options)["choices"][0]
    spelled = ask(http, return_tokens_as_token_ids=True, **options)["choices"][0]
    content = spelled["logprobs"]["content"]
    assert [each["token"] for each in content] == [f"token_id:{token}" for token in plain["token_ids"]]
    assert [each["bytes"] for each in content] == [each["bytes"] for each in plain["logprobs"]["content"]]
    assert content[0]["token"] == content[0]["top_logprobs"][0]["token"]


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_choice_the_logprobs_say_how_likely_each_is(http, stream):
    """A judge that answers yes or no, for example: the two share the whole probability."""
    answer = ask(http, structured_outputs={"choice": ["a", "b"]}, logprobs=2, stream=stream)
    (top,) = (answer[0] if stream else answer)["choices"][0]["logprobs"]["top_logprobs"]
    assert set(top) == {"a", "b"}
    assert sum(map(math.exp, top.values())) == pytest.approx(1)


def test_what_is_too_long_is_said_in_the_words_that_clients_look_for(http):
    """litellm's ContextWindowExceededError, which has another model asked, is raised for this phrase."""
    for prompt in "sea " * 300, "sea " * 10**5, [5] * 300:
        answer = http.post("/v1/completions", json={"prompt": prompt})
        assert answer.status_code == 400
        assert "this model's maximum context length is 256 tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", [{"logprob_token_ids": [5]}, {"repetition_detection": {"max_pattern_size": 2}}])
def test_what_would_change_the_answer_is_not_ignored(http, field):
    answer = http.post("/v1/completions", json={"prompt": "a", "logprobs": 1} | field)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, *field)


@pytest.mark.parametrize("field", [{"tools": [{"type": "function"}]}, {"chat_template": "{{ messages }}"}])
def test_nor_is_it_where_tokens_are_counted(http, field):
    answer = http.post("/tokenize", json={"messages": MESSAGES} | field)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, *field)
    assert http.post("/tokenize", json={"messages": MESSAGES, "tools": None}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "- -"),
        ({"reasoning_effort": "low"}, "low True"),
        ({"reasoning_effort": "none"}, "none False"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, "low False"),
    ],
)
def test_templates_hear_of_the_effort(serve, asked, told):
    template = ChatTemplate("{{ reasoning_effort | default('-') }} {{ enable_thinking | default('-') }}").render
    with httpx.Client(base_url=serve(settings={"chat_template": template}).url, timeout=30) as http:
        ids = ask(http, messages=MESSAGES, return_token_ids=True, **asked)["prompt_token_ids"]
        assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": told}


def test_no_name_is_every_model(http):
    assert ask(http, model="")["model"] == "tiny"


def test_load_testers_find_the_tokenizer(serve, folder):
    """`vllm bench serve` takes the first model's root for its tokenizer, if it is given none."""
    root = read_settings({"served_model_name": ["tiny"]}, str(folder)).root
    with httpx.Client(base_url=serve(settings={"root": root}).url, timeout=30) as http:
        (card,) = http.get("/v1/models").json()["data"]
        assert (card["id"], card["root"]) == ("tiny", str(folder))
