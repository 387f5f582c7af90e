"""Many clients at once, each with wishes of its own, and too few blocks: every text is that of LLM.generate."""

import asyncio

import httpx
import pytest

from minipage import SamplingParams
from minipage.sampling import StructuredOutputsParams

SCHEMA = {"type": "object", "properties": {"sea": {"enum": ["grey", "wide"]}, "n": {"type": "integer"}}}
WISHES = [
    {},
    {"presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.3},
    {"stop": ["e", "zz"]},
    {"logit_bias": {70: 3.0}, "bad_words": ["sea"]},
    {"logprobs": 2},
    {"min_tokens": 9, "stop_token_ids": list(range(60, 140))},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"regex": "[a-f]{3,30}"}},
    {"structured_outputs": {"choice": ["a gull", "a gulf"]}},
]
PROMPTS = ["The sea is a wide", "Every wave begins", "Naïve café", "grey field and nobody", "gull"]


def requests():
    for i in range(60):
        chosen = {"temperature": 0} if i % 3 else {"temperature": 0.9, "seed": i}
        yield PROMPTS[i % 5], WISHES[i % 10] | chosen | {"max_tokens": 9 + i % 23}


def offline_params(wishes):
    structure = wishes.get("structured_outputs")
    more = {"structured_outputs": StructuredOutputsParams(**structure)} if structure else {}
    return SamplingParams(**wishes | more)


def test_every_text_is_the_one_without_a_server(serve, offline):
    pytest.importorskip("llguidance")
    server = serve(num_blocks=60, block_size=4, max_num_seqs=16)

    async def one(http, prompt, wishes):
        body = wishes | {"prompt": prompt, "logit_bias": {str(k): v for k, v in wishes.get("logit_bias", {}).items()}}
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]

    async def all_of_them():
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            return await asyncio.gather(*(one(http, *request) for request in requests()))

    choices = asyncio.run(all_of_them())
    assert server.llm.stats()["vllm:num_preemptions"] > 0, "there should have been too few blocks"
    prompts, wishes = zip(*requests())
    for choice, output, wish in zip(
        choices, offline.generate(list(prompts), list(map(offline_params, wishes))), wishes
    ):
        expected = output.outputs[0]
        assert (choice["text"], choice["finish_reason"]) == (expected.text, expected.finish_reason), wish
        if "logprobs" in wish:
            known = [each[token].logprob for token, each in zip(expected.token_ids, expected.logprobs)]
            assert choice["logprobs"]["token_logprobs"] == pytest.approx(known, abs=1e-4)
