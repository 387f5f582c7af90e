"""The log probabilities of a prompt are those of one dense forward pass of transformers', however the engine came by
them: in chunks, in a batch, with prefixes that others have computed, and after preemptions.
"""

import numpy as np
import pytest
import torch
from engine.checkpoints import save_gpt2
from transformers import GPT2LMHeadModel

from minipage.engine.llm import LLM
from minipage.sampling import SamplingParams

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [2, 7, 1, 8, 2, 8, 1], [3, 1, 4, 1, 5, 9, 2, 6, 1], [5]]
CALM = {"block_size": 4, "num_blocks": 64, "attention": "reference"}
WAYS = {
    "calm": {},
    "chunks of 1": {"max_num_batched_tokens": 1, "max_num_seqs": 1},
    "chunks of 3": {"max_num_batched_tokens": 3, "max_num_seqs": 3},
    "prefix caching": {"enable_prefix_caching": True, "max_num_seqs": 1},
    "recompute": {"num_blocks": 7, "max_num_batched_tokens": 6, "max_num_seqs": 4},
    "swap": {
        "num_blocks": 7,
        "max_num_batched_tokens": 6,
        "max_num_seqs": 4,
        "preemption": "swap",
        "swap_space": "1MiB",
    },
    "recompute and prefix caching": {"num_blocks": 7, "max_num_seqs": 4, "enable_prefix_caching": True},
}


@pytest.fixture(scope="module")
def expected(tiny):
    """For each prompt [T - 1, V] log probabilities of its second token, its third, ..."""
    model = GPT2LMHeadModel.from_pretrained(tiny).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([prompt])).logits[0].double().log_softmax(-1).numpy() for prompt in PROMPTS]
    return [row[:-1] for row in rows]


def check(prompt, told, expected, count):
    assert len(told) == len(prompt) and told[0] is None
    for token, top, row in zip(prompt[1:], told[1:], expected, strict=True):
        assert next(iter(top)) == token, "the prompt's own token comes first"
        assert set(top) == {token, *np.argsort(-row, kind="stable")[:count].tolist()}
        for other, (logprob, rank, _) in top.items():
            assert logprob == pytest.approx(row[other], abs=1e-4) and rank == 1 + (row > row[other]).sum()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_they_are_those_of_transformers_however_the_prompt_was_computed(tiny, expected, way):
    llm = LLM(tiny, **(CALM | way))
    params = [SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, prompt_logprobs=i) for i in range(4)]
    plain = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(PROMPTS + PROMPTS, [*params, *[plain] * 4])
    for prompt, output, rows, count in zip(PROMPTS, outputs, expected, range(4)):
        check(prompt, output.prompt_logprobs, rows, count)
    assert [output.prompt_logprobs for output in outputs[4:]] == [None] * 4
    texts = [output.outputs[0].token_ids for output in outputs]
    assert texts[:4] == texts[4:], "who asks for log probabilities gets another text"
    preempted = sum(output.metrics.num_preemptions for output in outputs)
    assert (preempted > 0) == ("num_blocks" in way), f"{preempted} preemptions"
    if "enable_prefix_caching" in way:
        assert llm.scheduler.num_hit_tokens > 0, "those who ask for none find what others have computed"
    llm.scheduler.check_integrity()


def test_a_preemption_in_the_middle_of_a_prompt_loses_none(tiny, expected):
    """The urgent one grows while the other's prompt is computed two tokens at a time, and takes its blocks."""
    llm = LLM(tiny, **(CALM | {"num_blocks": 6, "max_num_batched_tokens": 3, "max_num_seqs": 3, "policy": "priority"}))
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, prompt_logprobs=2)
    llm.add_request(PROMPTS[1], SamplingParams(max_tokens=12, ignore_eos=True), "urgent", priority=0)
    llm.add_request(PROMPTS[0], params, "slow", priority=1)
    outputs, in_the_middle = {}, False
    while llm.has_unfinished_requests():
        outputs |= {output.request_id: output for output in llm.step()}
        slow = llm.requests.get("slow")
        in_the_middle |= bool(slow and slow.group.num_preemptions and 0 < slow.group.to_score.start < 13)
    check(PROMPTS[0], outputs["slow"].prompt_logprobs, expected[0], 2)
    assert in_the_middle, "it was not preempted while its prompt was computed"


def test_the_prompt_is_computed_though_all_of_it_is_known(tiny, expected):
    llm = LLM(tiny, **CALM, enable_prefix_caching=True)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=1)
    for _ in range(2):
        (output,) = llm.generate([PROMPTS[0]], params)
        check(PROMPTS[0], output.prompt_logprobs, expected[0], 1)
    assert llm.scheduler.num_hit_tokens == llm.scheduler.num_queried_tokens == 0
    llm.generate([PROMPTS[0]], SamplingParams(temperature=0, max_tokens=1))
    assert (llm.scheduler.num_hit_tokens, llm.scheduler.num_queried_tokens) == (12, 14)


def test_n_samples_share_one_prompt_and_its_log_probabilities(tiny, expected):
    params = SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True, prompt_logprobs=2, logprobs=1)
    for way in WAYS.values():
        if way.get("max_num_seqs", 3) >= 3:
            (output,) = LLM(tiny, **(CALM | way | {"num_blocks": 64})).generate([PROMPTS[0]], params)
            check(PROMPTS[0], output.prompt_logprobs, expected[0], 2)
            assert len(output.outputs) == 3


def test_whoever_takes_a_step_back_has_them_all_the_same(tiny, expected):
    """A step that raises is taken back and done again, after some of the prompt was told of."""
    llm = LLM(tiny, **CALM, max_num_batched_tokens=4, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=3)
    llm.add_request(PROMPTS[0], params)
    real, calls = llm.update, []

    def update(plan, tokens):
        calls.append(1)
        if len(calls) in (1, 3, 4):
            raise KeyboardInterrupt
        real(plan, tokens)

    llm.update = update
    outputs = []
    for _ in range(20):
        try:
            outputs += llm.step()
        except KeyboardInterrupt:
            llm.scheduler.check_integrity()
    check(PROMPTS[0], outputs[-1].prompt_logprobs, expected[0], 3)


def test_logits_that_are_no_numbers_end_only_the_request_that_has_them(tmp_path):
    model = save_gpt2(tmp_path)
    with torch.no_grad():
        model.transformer.wpe.weight[5] = np.nan  # who has six tokens, is lost
    model.save_pretrained(tmp_path)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=1)
    bad, good = LLM(tmp_path, **CALM).generate([PROMPTS[0], [3, 4, 5]], params)
    assert bad.outputs[0].finish_reason == "error" and "not finite" in bad.error
    assert good.error is None and all(np.isfinite(p.logprob) for top in good.prompt_logprobs[1:] for p in top.values())
