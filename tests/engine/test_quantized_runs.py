"""How far a whole model strays when its K and V are kept in one byte a number: bounded here, on the shipped model."""

import numpy as np
import pytest

from minipage.engine.llm import LLM
from minipage.sampling import SamplingParams

PROMPTS = [
    "KING RICHARD III:\nMy kingdom for a",
    "JULIET:\nO Romeo,",
    "First Citizen:\nBefore we proceed any further, hear me",
]
GREEDY = SamplingParams(temperature=0, max_tokens=40)
# Largest error of a logit, and the least share of greedy tokens that stay the same. Logits here lie some 20 apart.
BOUNDS = {"int8": (0.1, 0.9), "fp8": (0.4, 0.5)}


def all_logits(llm, token_ids):
    """[T, V]: a row for each token, decoded one by one, so that every row reads K and V from the cache."""
    rows = []
    forward = llm.forward
    llm.forward = lambda plan: rows.extend(llm.runner.rows(forward(plan), [0]).values())
    llm.sample = lambda plan, logits: {}  # nobody chooses: the next token is put there by hand
    llm.add_request(token_ids[:1], SamplingParams(max_tokens=len(token_ids)), "forced")
    seq = llm.requests["forced"].group.leader
    for token in [*token_ids[1:], None]:
        llm.step()
        seq.token_ids += [token] if token is not None else []
    return np.stack(rows)


def greedy_texts(llm):
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.fixture(scope="module")
def exact():
    """What float32 makes of it: the texts, all tokens of the first, and their logits."""
    llm = LLM(num_blocks=64)
    texts = greedy_texts(llm)
    forced = llm.tokenizer.encode(PROMPTS[0]) + texts[0]
    return texts, forced, all_logits(llm, forced)


@pytest.mark.parametrize("dtype", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_logits_and_greedy_texts_stay_close(dtype, exact, record_property):
    most_error, least_agreement = BOUNDS[dtype]
    texts, forced, logits = exact
    llm = LLM(num_blocks=64, kv_cache_dtype=dtype)
    pairs = zip(texts, greedy_texts(llm), strict=True)
    same = np.mean([a == b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)])
    error = np.abs(logits - all_logits(llm, forced)).max()
    record_property(f"{dtype}: largest error of a logit", float(error))
    record_property(f"{dtype}: greedy tokens that agree", float(same))
    print(f"{dtype}: largest error of a logit {error:.3f}, greedy tokens that agree {same:.0%}")
    assert 0 < error <= most_error, f"a logit is off by {error:.3f}"
    assert same >= least_agreement, f"only {same:.0%} of the greedy tokens agree"
