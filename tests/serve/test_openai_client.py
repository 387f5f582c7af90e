"""The `openai` package, as its users use it, against the server; the texts are those of LLM.generate."""

import asyncio
import json
import shutil

import openai
import pytest
import tokenizers
from openai.types.chat import ChatCompletionMessage
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minipage import SamplingParams
from minipage.model.chat_template import ChatTemplate
from minipage.model.tokenizer import Tokenizer
from minipage.serve.logprobs import Places

PROMPTS = ["The sea is", "Every wave", "Naïve 🙂 café", "grey field"]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def greedy(offline, prompt, max_tokens=12, **more):
    return offline.generate(prompt, SamplingParams(temperature=0, max_tokens=max_tokens, **more))[0]


def test_completion(client, offline):
    answer = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=12, temperature=0)
    expected = greedy(offline, PROMPTS[0])
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == (expected.outputs[0].text, "length", 0)
    assert answer.object == "text_completion" and answer.model == "tiny" and answer.id.startswith("cmpl-")
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 12 + len(expected.prompt_token_ids)


@pytest.mark.parametrize("kind", ["texts", "ids", "lists of ids"])
def test_prompts_of_every_kind(client, offline, kind):
    ids = [offline.tokenizer.encode(prompt) for prompt in PROMPTS]
    prompt = {"texts": PROMPTS, "ids": ids[0], "lists of ids": ids}[kind]
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
    expected = [greedy(offline, each, 8).outputs[0].text for each in (PROMPTS if kind != "ids" else PROMPTS[:1])]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS])
def test_streamed_texts_are_the_whole_ones(client, offline, prompt):
    stream = client.completions.create(
        model="tiny", prompt=prompt, n=2, seed=7, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts, reasons = {}, {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        [choice] = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        reasons[choice.index] = choice.finish_reason
    prompts = [prompt] if isinstance(prompt, str) else prompt
    params = SamplingParams(n=2, seed=7, max_tokens=9)
    outputs = offline.generate(prompts, params)
    expected = [text.text for output in outputs for text in output.outputs]
    assert [texts[i] for i in sorted(texts)] == expected
    assert all(reason in ("length", "stop") for reason in reasons.values())
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage.prompt_tokens == sum(len(output.prompt_token_ids) for output in outputs)
    assert usage.completion_tokens == sum(len(text.token_ids) for output in outputs for text in output.outputs)
    assert len({chunk.id for chunk in chunks}) == 1


def test_echo_and_stop(client, offline):
    whole = greedy(offline, PROMPTS[1], 20).outputs[0].text
    stop = whole[5:7]
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[1], max_tokens=20, temperature=0, echo=True, stop=[stop]
    )
    assert answer.choices[0].text == PROMPTS[1] + whole[: whole.find(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.completions.create(
        model="tiny", prompt=PROMPTS[1], max_tokens=20, temperature=0, echo=True, stop=[stop], stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


@pytest.mark.parametrize("more", [{"logit_bias": {"0": 100}}, {"stop": ["e"]}, {"guided_choice": ["x"]}])
def test_a_token_that_nobody_asked_for_ends_nothing(client, more):
    options = {"max_tokens": 0, "echo": True, "temperature": 0}
    [choice] = client.completions.create(model="tiny", prompt="The sea", **options, extra_body=more).choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("The sea", "length", None)


def test_only_the_prompt(client):
    answer = client.completions.create(model="tiny", prompt="The sea", max_tokens=0, echo=True)
    assert answer.choices[0].text == "The sea"
    assert answer.usage.completion_tokens == 0
    options = {"max_tokens": 0, "echo": True, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.completions.create(model="tiny", prompt="The sea", **options)
    assert [chunk.choices[0].text for chunk in chunks] == ["The sea"] * 2
    assert last.usage.completion_tokens == 0 and last.usage.total_tokens == answer.usage.total_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_texts(client, offline, stream):
    options = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 6, "temperature": 0, "logprobs": 3}
    if stream:
        parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    else:
        parts = [client.completions.create(**options).choices[0].logprobs]
    expected = greedy(offline, PROMPTS[0], 6, logprobs=3).outputs[0]
    found = [x for part in parts for x in part.token_logprobs]
    wanted = [each[token].logprob for token, each in zip(expected.token_ids, expected.logprobs)]
    assert found == pytest.approx(wanted)
    assert [x for part in parts for x in part.tokens] == [
        each[token].decoded_token for token, each in zip(expected.token_ids, expected.logprobs)
    ]
    assert all(len(top) <= 4 for part in parts for top in part.top_logprobs)
    assert parts[0].text_offset[0] == 0


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_do_not_depend_on_what_is_held_back(client, echo):
    """In a stream, characters wait for their other tokens, and for a stop string to be none."""
    options = {"model": "tiny", "prompt": PROMPTS[2], "max_tokens": 9, "temperature": 0, "logprobs": 0, "echo": echo}
    options |= {"stop": ["no such end of a text"]}
    whole = client.completions.create(**options).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    assert [offset for part in parts for offset in part.text_offset] == whole.text_offset
    assert whole.text_offset[-9] == (len(PROMPTS[2]) if echo else 0)


LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("body", [{"guided_choice": ["Naïve 🙂 caf é你好"]}, {"logit_bias": {"0": 100}}])
def test_offsets_are_places_in_the_text(client, body):
    """What lies between two of them is a token's text, if it is text; and nothing, if it is left out (token 0)."""
    prompt, more = "<|endoftext|>The 🙂 sea<|endoftext|> é", {"ignore_eos": True} | body
    [choice] = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=25, seed=1, logprobs=0, echo=True, extra_body=more
    ).choices
    told = choice.logprobs
    assert len(prompt) in told.text_offset and choice.text.startswith(prompt)
    for token, begin, end in zip(told.tokens, told.text_offset, [*told.text_offset[1:], len(choice.text)]):
        is_left_out = token == "<|endoftext|>" and begin >= len(prompt)
        assert LOST in token or choice.text[begin:end] == ("" if is_left_out else token)
        assert begin <= end <= begin + len(token)


def test_offsets_of_a_tokenizer_like_llamas(serve, folder, tmp_path):
    """It begins with a token that nobody has spelled, drops the first space, and says by bytes what it lacks."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁The", "▁sea", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"{i}" for i in range(300 - len(words))]
    backend = tokenizers.Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, ignore_merges=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence(list(steps))
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    with openai.OpenAI(base_url=f"{serve(model=tmp_path).url}/v1", api_key="none", max_retries=0) as client:
        [choice] = client.completions.create(
            model="tiny", prompt="The sea é<s>你", max_tokens=1, logprobs=0, echo=True,
            extra_body={"allowed_token_ids": [words.index("▁sea")]},
        ).choices  # fmt: skip
    assert choice.text == "The sea é<s>你 sea"
    assert choice.logprobs.tokens == ["<s>", " The", " sea", " ", LOST, LOST, "<s>", *[LOST] * 3, " sea"]
    assert choice.logprobs.text_offset == [0, 0, 3, 7, 8, 8, 9, 12, 12, 12, 13]
    begin, left_out, end, word = (words.index(word) for word in ("<0xC3>", "<s>", "<0xA9>", "▁sea"))
    assert Places(Tokenizer(backend), True, [], 0).of([begin, left_out, end, word, word]) == [0, 0, 0, 1, 5]


@pytest.mark.parametrize(
    ("prompt", "template", "offsets"),
    [
        ("The sea", "[CLS] $A [SEP]", [0, 0, 3, 7]),
        ("The cafe\u0301 sea", "$A", [0, 3, 8]),  # the letter and its accent become one
    ],
)
def test_offsets_in_a_prompt_that_is_not_what_its_tokens_say(serve, folder, tmp_path, prompt, template, offsets):
    words = ["[CLS]", "[SEP]", "The", "café", "sea", *(f"{i}" for i in range(295))]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "0"))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFC(), pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    special = [(word, words.index(word)) for word in words[:2]]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    options = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "logprobs": 0, "echo": True}
    with openai.OpenAI(base_url=f"{serve(model=tmp_path).url}/v1", api_key="none", max_retries=0) as client:
        told = client.completions.create(**options).choices[0].logprobs
    assert told.text_offset == [*offsets, len(prompt)]


def test_logprobs_of_the_prompt(client, offline):
    """As lm-eval scores texts: echo, logprobs, and nothing generated."""
    answer = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=0, echo=True, logprobs=1)
    output = offline.generate(PROMPTS[0], SamplingParams(max_tokens=1, prompt_logprobs=1))[0]
    found = answer.choices[0].logprobs
    ids = output.prompt_token_ids
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx(
        [k[t].logprob for t, k in zip(ids[1:], output.prompt_logprobs[1:])]
    )
    assert "".join(found.tokens) == PROMPTS[0]
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(ids))]


def test_prompt_logprobs_as_in_vllm(client, offline):
    """Of a text they are told in its choice, of a chat beside the choices; token ids are texts, as JSON has them."""
    body = {"prompt_logprobs": 2}
    answer = client.completions.create(model="tiny", prompt=PROMPTS[:2], max_tokens=1, temperature=0, extra_body=body)
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, temperature=0, extra_body=body)
    told = [*(choice.prompt_logprobs for choice in answer.choices), chat.prompt_logprobs]
    for prompt, found in zip([*PROMPTS[:2], RENDERED], told, strict=True):
        expected = greedy(offline, prompt, 1, prompt_logprobs=2).prompt_logprobs
        assert found[0] is None
        for known, said in zip(expected[1:], found[1:], strict=True):
            assert said == {
                str(token): {
                    "logprob": pytest.approx(each.logprob),
                    "rank": each.rank,
                    "decoded_token": each.decoded_token,
                }
                for token, each in known.items()
            }


PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.3}


def test_penalties_and_biases(client, offline):
    more = {"repetition_penalty": 1.2, "min_p": 0.01, "bad_words": ["sea"]}
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[0], max_tokens=15, seed=3, logit_bias={"70": 4}, **PENALTIES, extra_body=more
    )
    params = SamplingParams(max_tokens=15, seed=3, logit_bias={70: 4}, **PENALTIES, **more)
    assert answer.choices[0].text == offline.generate(PROMPTS[0], params)[0].outputs[0].text


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["sea", "gull"]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"extra_body": {"guided_json": SCHEMA}},
        {"extra_body": {"structured_outputs": {"json": SCHEMA}}},
        {"extra_body": {"guided_choice": ['{"a": "sea"}', '{"a":"gull"}']}},
        {"extra_body": {"guided_regex": r'\{"a": "(sea|gull)"\}'}},
    ],
)
def test_structured_output(client, asked):
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=100, seed=1, **asked)
    assert json.loads(answer.choices[0].message.content)["a"] in ("sea", "gull")


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The sea?"}]
RENDERED = "system: Be brief.\nuser: The sea?\nassistant:"


def test_chat(client, offline):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=10, temperature=0, logprobs=True, top_logprobs=2
    )
    expected = greedy(offline, RENDERED, 10, logprobs=2)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == expected.outputs[0].text
    assert choice.finish_reason == "length" and answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert len(choice.logprobs.content) == 10
    for token, known, said in zip(expected.outputs[0].token_ids, expected.outputs[0].logprobs, choice.logprobs.content):
        assert said.logprob == pytest.approx(known[token].logprob)
        assert bytes(said.bytes).decode(errors="replace") == said.token == known[token].decoded_token
        assert len(said.top_logprobs) == 2 and said.top_logprobs[0].logprob >= said.top_logprobs[1].logprob


def test_streamed_chat(client, offline):
    parts = [{"role": "user", "content": [{"type": "text", "text": "The"}, {"type": "text", "text": "sea?"}]}]
    chunks = list(
        client.chat.completions.create(model="tiny", messages=parts, max_tokens=9, temperature=0, stream=True)
    )
    expected = greedy(offline, "user: The\nsea?\nassistant:", 9).outputs[0]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_a_message_that_has_begun_goes_on(serve, offline):
    """As in vLLM, where add_generation_prompt has to be turned off for that."""
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n{% endfor %}").render
    begun = [{"role": "user", "content": "The sea?"}, {"role": "assistant", "content": "The sea"}]
    expected = greedy(offline, "user: The sea?<end>\nassistant: The sea", 9).outputs[0].text
    url = serve(settings={"chat_template": template}).url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for field in {"continue_final_message": True}, {"chat_template_kwargs": {"continue_final_message": True}}:
            body = field | {"add_generation_prompt": False}
            answer = client.chat.completions.create(
                model="tiny", messages=begun, max_tokens=9, temperature=0, extra_body=body
            )
            assert answer.choices[0].message.content == expected


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_with_logprobs(client, offline, stream):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 7, "n": 2, "seed": 5, "logprobs": True}
    answer = client.chat.completions.create(**options, top_logprobs=1, stream=stream)
    texts, found = ["", ""], [[], []]
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta if stream else choice.message).content
            found[choice.index] += choice.logprobs.content
    expected = offline.generate(RENDERED, SamplingParams(n=2, seed=5, max_tokens=7, logprobs=1))[0].outputs
    assert texts == [text.text for text in expected] and texts[0] != texts[1]
    for text, said in zip(expected, found):
        assert [each.token for each in said] == [
            known[token].decoded_token for token, known in zip(text.token_ids, text.logprobs)
        ]
        assert all(len(each.top_logprobs) == 1 >= each.top_logprobs[0].logprob for each in said)


def test_the_bytes_of_tokens_are_those_of_the_text(client):
    """What they are for: characters that are split over tokens."""
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=1, max_tokens=40,
        extra_body={"guided_choice": ["Naïve 🙂 café"]},
    )  # fmt: skip
    [choice] = answer.choices
    assert choice.message.content == "Naïve 🙂 café"
    assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content


def test_a_chat_goes_on_as_long_as_there_is_room(client, offline):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    expected = greedy(offline, RENDERED, None)
    assert answer.choices[0].message.content == expected.outputs[0].text
    assert answer.usage.completion_tokens > 16


def test_asynchronous_clients_side_by_side(served, offline):
    async def one(client, i):
        text = ""
        stream = await client.completions.create(
            model="tiny", prompt=PROMPTS[i % 4], max_tokens=5 + i, temperature=0, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].text
        return text

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(12)))

    expected = [greedy(offline, PROMPTS[i % 4], 5 + i).outputs[0].text for i in range(12)]
    assert asyncio.run(all_of_them()) == expected


def test_cached_tokens_are_told(client):
    prompt = "Every wave begins again where another wave began, and every gull says so. " * 2
    options = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "extra_body": {"cache_salt": "of this test"}}
    first, second = (client.completions.create(**options).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second.prompt_tokens_details.cached_tokens == (second.prompt_tokens - 1) // 16 * 16 > 0


def test_beams(client, offline):
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[0], n=3, max_tokens=6, extra_body={"use_beam_search": True}
    )
    expected = offline.generate(PROMPTS[0], SamplingParams(beam_width=3, max_tokens=6, temperature=0))[0]
    assert [choice.text for choice in answer.choices] == [text.text for text in expected.outputs]


def test_models(client, served):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 256
    with pytest.raises(openai.NotFoundError, match="no model 'huge'"):
        client.models.retrieve("huge")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("options", "param", "sentence"),
    [
        ({"tools": [TOOL]}, "tools", "tools are not supported"),
        ({"extra_body": {"truncate_prompt_tokens": 5}}, "truncate_prompt_tokens", "not supported"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template", "not supported"),
        ({"extra_body": {"echo": True}}, "echo", "not supported"),
        ({"temperature": -1}, "temperature", "at least 0"),
        ({"n": 0}, "n", "from 1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"extra_body": {"prompt_logprobs": 21}}, "prompt_logprobs", "0 to 20"),
        ({"extra_body": {"prompt_logprobs": 1}, "stream": True}, "stream", "at the end"),
        ({"extra_body": {"seed": "x"}}, "seed", "integer"),
        ({"extra_body": {"stop": [1]}}, "stop", "string"),
        ({"messages": [{"role": "user"}]}, "messages", "has no content"),
        ({"messages": []}, "messages", "at least 1"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, "guided_regex", "give one of them"),
        ({"extra_body": {"structured_outputs": {"shape": 1}}}, "structured_outputs", "has no shape"),
        ({"extra_body": {"guided_choice": []}}, "guided_choice", "at least one"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "299"),
        ({"extra_body": {"min_tokens": 9, "max_tokens": 8}}, "min_tokens", "max_tokens"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages", "has the role"),
        ({"messages": [{"role": "user", "content": "nothing"}]}, "messages", "there is nothing to say"),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "chat_template_kwargs", "not for"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            "reads no images",
        ),
        ({"messages": [{"role": "user", "content": "sea " * 300}]}, "messages", "maximum context length is 256 tokens"),
    ],
)
def test_refusals_name_the_field(client, options, param, sentence):
    with pytest.raises(openai.BadRequestError, match=sentence) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES} | options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_what_vllm_sends_is_understood_where_it_asks_for_nothing(client):
    """Its classes and answers, sent as they are."""
    off = {"regex": None, "disable_fallback": False, "disable_additional_properties": False, "structural_tag": None}
    message = {"role": "assistant", "content": "Yes.", "tool_calls": [], "reasoning_content": None}
    body = {"structured_outputs": off | {"choice": ["sea"]}, "echo": False, "truncate_prompt_tokens": None}
    answer = client.chat.completions.create(
        model="tiny", messages=[*MESSAGES, message, *MESSAGES], logprobs=False, top_logprobs=0, extra_body=body
    )
    assert answer.choices[0].message.content == "sea"


def test_what_another_server_answered_is_taken_back(client, offline):
    """Also an answer without words, with what no template knows; the openai package sends it as it came."""
    question, result = {"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "c", "content": "17"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    given = {"role": "assistant", "content": None, "refusal": None, "annotations": [],
        "audio": {"id": "a", "data": "", "expires_at": 9, "transcript": ""}}  # fmt: skip
    answer = ChatCompletionMessage(**given | {"tool_calls": [call], "reasoning_content": "hm"})
    for messages in [question, answer, result], [question, given, result], [question, {"role": "assistant"}, result]:
        told = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9)
        expected = greedy(offline, "user: x\nassistant: \ntool: 17\nassistant:", 9).outputs[0].text
        assert told.choices[0].message.content == expected


def test_seeds_have_a_sign(client):
    """As OpenAI's have; and -1, which vLLM's clients send, is none."""

    def text(seed):
        answer = client.completions.create(
            model="tiny", prompt="The sea", max_tokens=20, seed=seed, extra_body={"ignore_eos": True}
        )
        return answer.choices[0].text

    assert text(-5) == text(-5) != text(5)
    assert text(-1) != text(-1)


def test_what_nobody_knows_is_ignored(client):
    answer = client.completions.create(
        model="tiny", prompt="The", max_tokens=2, user="me", extra_body={"to_come": {"a": [1]}, "presence_penalty": 0}
    )
    assert answer.usage.completion_tokens <= 2
