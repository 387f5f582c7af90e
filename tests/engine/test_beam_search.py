"""Beam search finds what transformers finds: the same texts, in the same order, with the same scores."""

import numpy as np
import pytest
import torch
from engine.checkpoints import VOCAB, every_model
from transformers import AutoModelForCausalLM

from minipage.engine.llm import LLM
from minipage.sampling import SamplingParams


@pytest.fixture(scope="module")
def judge(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny).eval()


def by_transformers(model, prompt, params):
    """[(token ids up to the stop token, score), ...], best first."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        num_beams=params.beam_width,
        num_return_sequences=params.beam_width,
        max_new_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        eos_token_id=list(params.stop_token_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = []
    for sequence, score in zip(found.sequences[:, len(prompt) :].tolist(), found.sequences_scores.tolist()):
        ends = [i + 1 for i, token in enumerate(sequence) if token in params.stop_token_ids]
        texts.append((sequence[: min(ends, default=len(sequence))], score))
    return texts


@every_model
@pytest.mark.parametrize("num_stop_tokens", [0, 5, 15])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -0.5])
def test_texts_and_scores_are_those_of_transformers(tiny, judge, length_penalty, early_stopping, num_stop_tokens):
    rng = np.random.default_rng(num_stop_tokens)
    llm = LLM(tiny, block_size=3, num_blocks=128)
    for width, num_tokens in ((2, 6), (4, 9), (5, 3)):
        params = SamplingParams(
            beam_width=width,
            max_tokens=num_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            stop_token_ids=rng.choice(VOCAB, num_stop_tokens, replace=False).tolist(),
            ignore_eos=True,
        )
        prompt = rng.integers(0, VOCAB, rng.integers(1, 20)).tolist()
        expected = by_transformers(judge, prompt, params)
        outputs = llm.generate(prompt, params)[0].outputs
        assert [output.token_ids for output in outputs] == [text for text, _ in expected]
        np.testing.assert_allclose([output.score for output in outputs], [score for _, score in expected], atol=1e-4)


def test_one_beam_is_greedy(tiny, dense, make_prompt):
    params = SamplingParams(beam_width=1, max_tokens=8, ignore_eos=True)
    assert LLM(tiny, num_blocks=64).generate(make_prompt(0), params)[0].outputs[0].token_ids == dense.greedy(
        make_prompt(0), 8
    )


def test_beams_share_blocks_and_leave_none_behind(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64)
    llm.add_request(make_prompt(0, 20), SamplingParams(beam_width=4, max_tokens=12, ignore_eos=True))
    logical = physical = 0
    while llm.has_unfinished_requests():
        llm.step()
        llm.scheduler.check_integrity()
        for group in llm.scheduler.running:
            logical += sum(len(seq.block_table) for seq in group.sequences)
            physical += group.num_blocks
    assert physical < 0.6 * logical
    assert llm.block_pool.num_used == 0


def test_a_beam_search_that_is_aborted_shows_its_beams_and_frees_its_blocks(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64)
    request_id = llm.add_request(make_prompt(0), SamplingParams(beam_width=3, max_tokens=12, ignore_eos=True))
    for _ in range(4):
        (output,) = llm.step()
    assert [len(text.token_ids) for text in output.outputs] == [4, 4, 4] and not output.finished
    llm.abort(request_id)
    (output,) = llm.step()
    assert output.finished and {text.finish_reason for text in output.outputs} == {"abort"}
    assert llm.block_pool.num_used == 0


def test_min_tokens_keeps_beams_from_ending(tiny, judge, make_prompt):
    stop = list(range(0, VOCAB, 2))
    params = SamplingParams(beam_width=3, max_tokens=6, min_tokens=4, stop_token_ids=stop, ignore_eos=True)
    for output in LLM(tiny, num_blocks=64).generate(make_prompt(0), params)[0].outputs:
        assert len(output.token_ids) > 4 or not set(output.token_ids) & set(stop)
