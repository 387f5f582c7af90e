"""The GPT computes what transformers' GPT-2 computes, whatever the array library, and paging changes nothing."""

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from engine.checkpoints import CONTEXT, VOCAB, save_gpt2

from minipage.attention import KVCache, paged_attention, reference
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, shown
from minipage.memory import BlockPool, BlockTable
from minipage.model.arrays import as_arrays, place_model
from minipage.model.gpt import GPT, dense_attend, gelu
from minipage.model.weights import load_model
from minipage.sampling import SamplingParams
from minipage.scheduling import Chunk, Sequence, SequenceGroup
from minipage.worker.batch import make_batch, paged_attend

VARIATIONS = {
    "as published": {},
    "untied lm_head": {"tie_word_embeddings": False},
    "narrow MLP": {"n_inner": 24},
    "one head": {"n_head": 1},
    "one layer": {"n_layer": 1},
    "coarse layer norm": {"layer_norm_epsilon": 0.1},
}
TOKEN_IDS = [(5 * i * i + 3 * i + 1) % VOCAB for i in range(CONTEXT)]


@pytest.fixture(scope="module", params=VARIATIONS.values(), ids=VARIATIONS)
def both(request, tmp_path_factory):
    """(transformers' model, minipage's LoadedModel) of one checkpoint."""
    folder = tmp_path_factory.mktemp("variation")
    return save_gpt2(folder, **request.param), load_model(folder)


def logits(gpt, token_ids, attend=dense_attend):
    xp = array_namespace(gpt.weights["wte.weight"])
    return np.asarray(gpt.logits(gpt.forward(xp.asarray(token_ids), xp.arange(len(token_ids)), attend)))


def expected_logits(theirs, token_ids):
    with torch.no_grad():
        return theirs(torch.tensor([token_ids])).logits[0].numpy()


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_logits_are_those_of_transformers(both, arrays):
    theirs, loaded = both
    ours = place_model(loaded.config, loaded.weights, arrays)
    expected = expected_logits(theirs, TOKEN_IDS)
    assert expected.std() > 0.3, "this test compares next to nothing: all logits are about the same"
    np.testing.assert_allclose(logits(ours, TOKEN_IDS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [paged_attention, reference.paged_attention])
@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_a_forward_pass_over_scattered_blocks_is_the_dense_one(both, arrays, attention):
    _, loaded = both
    config = loaded.config
    ours = place_model(config, loaded.weights, arrays)
    pool = BlockPool(40, block_size=3)
    texts = [TOKEN_IDS[:1], TOKEN_IDS[5:40], TOKEN_IDS[20:31]]
    seqs = [Sequence(str(i), text, BlockTable(pool)) for i, text in enumerate(texts)]
    for length in range(max(map(len, texts))):  # token by token in turn, so that the blocks of the three interleave
        for seq in seqs:
            if length < len(seq.token_ids):
                seq.block_table.append(1)
    groups = [SequenceGroup(seq.seq_id, [seq], CONTEXT) for seq in seqs]
    batch = make_batch([Chunk(group, group.leader, 0, len(group.leader.token_ids)) for group in groups])
    cache = KVCache(config.n_layer, pool.num_blocks, pool.block_size, config.n_head, config.head_size)
    cache.k[:], cache.v[:] = np.nan, np.nan  # what no token owns must not be looked at
    xp = array_namespace(ours.weights["wte.weight"])
    attend = paged_attend(batch, cache, attention)
    paged = np.asarray(ours.logits(ours.forward(xp.asarray(batch.token_ids), xp.asarray(batch.positions), attend)))
    dense = np.concatenate([logits(ours, text) for text in texts])
    np.testing.assert_allclose(paged, dense, rtol=1e-4, atol=1e-4)


def test_no_token_sees_a_later_one(both):
    _, loaded = both
    ours = GPT(loaded.config, loaded.weights)
    changed = [*TOKEN_IDS[:20], (TOKEN_IDS[20] + 1) % VOCAB, *TOKEN_IDS[21:]]
    difference = np.abs(logits(ours, changed) - logits(ours, TOKEN_IDS)).max(axis=1)  # [T]
    assert difference[:20].max() < 1e-5, "a token changed what came before it"
    assert difference[21:].max() > 1e-2, "a token changed nothing in what came after it"


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_64_greedy_tokens_are_those_of_transformers(tmp_path, arrays):
    theirs = save_gpt2(tmp_path, n_positions=80)
    prompt = TOKEN_IDS[:12]
    expected = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=64, min_new_tokens=64, pad_token_id=0
    )[0, len(prompt) :].tolist()
    params = SamplingParams(temperature=0, max_tokens=64, min_tokens=64)
    ours = LLM(tmp_path, num_blocks=8, arrays=arrays).generate(prompt, params)[0].outputs[0].token_ids
    assert len(set(expected)) > 8, "this test compares a text of hardly any different tokens"
    assert ours == expected


def test_gelu_is_the_tanh_form():
    x = np.linspace(-6, 6, 1001)
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    np.testing.assert_allclose(gelu(x), expected, atol=1e-12)


def test_dense_attention_is_an_average_of_what_came_before():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 9, 2, 4))  # [T, H, D] each
    out = dense_attend(0, q, k, v)
    for t in range(9):
        for h in range(2):
            weights = np.exp([q[t, h] @ k[s, h] / 2 for s in range(t + 1)])  # 2 = sqrt(D)
            np.testing.assert_allclose(out[t, h], weights / weights.sum() @ v[: t + 1, h], rtol=1e-12)


@pytest.mark.parametrize("name", ["arrays", "dtype", "device"])
@pytest.mark.parametrize("value", [None, np.zeros(3), np.float32, 10**5000, ["numpy"]], ids=shown)
def test_a_place_that_is_no_name_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} is .*; it must be one of"):
        as_arrays({}, **{"arrays": "numpy"} | {name: value})
