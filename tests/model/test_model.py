"""The GPT computes what transformers' GPT-2 computes, whatever the array library, and paging changes nothing."""

import numpy as np
import pytest
import torch
from engine.checkpoints import CONTEXT, VOCAB, save_gpt2

from minipage.attention import KVCache, paged_attention, reference
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, shown
from minipage.memory import BlockPool, BlockTable
from minipage.model.architecture import Model
from minipage.model.checkpoint import load_model
from minipage.model.dense import dense_attend
from minipage.model.layers.plain import PlainLayers, gelu
from minipage.model.place import as_arrays, place_model
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


KINDS = {
    "plain": lambda loaded: Model(loaded.architecture, PlainLayers(loaded.architecture, loaded.weights)),
    "compiled": lambda loaded: place_model(loaded.architecture, loaded.weights, "numpy"),
    "torch": lambda loaded: place_model(loaded.architecture, loaded.weights, "torch"),
}
every_kind = pytest.mark.parametrize("place", KINDS.values(), ids=KINDS)


def logits(model, token_ids, attend=dense_attend):
    token_ids, positions = map(model.layers.asarray, (np.array(token_ids), np.arange(len(token_ids))))
    return np.asarray(model.logits(model.forward(token_ids, positions, attend)))


def expected_logits(theirs, token_ids):
    with torch.no_grad():
        return theirs(torch.tensor([token_ids])).logits[0].numpy()


@every_kind
def test_logits_are_those_of_transformers(both, place):
    theirs, loaded = both
    expected = expected_logits(theirs, TOKEN_IDS)
    assert expected.std() > 0.3, "this test compares next to nothing: all logits are about the same"
    np.testing.assert_allclose(logits(place(loaded), TOKEN_IDS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [paged_attention, reference.paged_attention])
@every_kind
def test_a_forward_pass_over_scattered_blocks_is_the_dense_one(both, place, attention):
    ours = place(both[1])
    pool = BlockPool(40, block_size=3)
    texts = [TOKEN_IDS[:1], TOKEN_IDS[5:40], TOKEN_IDS[20:31]]
    seqs = [Sequence(str(i), text, BlockTable(pool)) for i, text in enumerate(texts)]
    for length in range(max(map(len, texts))):  # token by token in turn, so that the blocks of the three interleave
        for seq in seqs:
            if length < len(seq.token_ids):
                seq.block_table.append(1)
    groups = [SequenceGroup(seq.seq_id, [seq], CONTEXT) for seq in seqs]
    batch = make_batch([Chunk(group, group.leader, 0, len(group.leader.token_ids)) for group in groups])
    cache = KVCache(ours.kv.num_layers, pool.num_blocks, pool.block_size, ours.kv.num_kv_heads, ours.kv.head_size)
    cache.k[:], cache.v[:] = np.nan, np.nan  # what no token owns must not be looked at
    token_ids, positions = map(ours.layers.asarray, (batch.token_ids, batch.positions))
    attend = paged_attend(batch, cache, attention)
    paged = np.asarray(ours.logits(ours.forward(token_ids, positions, attend)))
    dense = np.concatenate([logits(ours, text) for text in texts])
    np.testing.assert_allclose(paged, dense, rtol=1e-4, atol=1e-4)


def test_no_token_sees_a_later_one(both):
    _, loaded = both
    ours = KINDS["plain"](loaded)
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


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        (("numpy", "float16", "cpu"), "dtype is 'float16', .* Use arrays='torch'."),
        (("cupy", "float32", "cpu"), "device is 'cpu', .* Use arrays='numpy' or 'plain' or 'torch'."),
        (("cupy", "bfloat16", "cpu"), "dtype is 'bfloat16', .* Use arrays='torch'."),
        (("numpy", "float16", "cuda"), "dtype is 'float16', .* Use arrays='torch' or 'cupy'."),
    ],
)
def test_the_library_that_is_advised_has_both_the_dtype_and_the_device(place, advice):
    with pytest.raises(ConfigurationError, match=f"^{advice}$"):
        as_arrays({}, *place)


@pytest.mark.parametrize("value", [np.array(["int8", "x"]), np.zeros(3), ["int8"], 8], ids=shown)
def test_a_quantization_that_is_no_name_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"quantization is .*; it must be None or int8"):
        place_model(None, {}, quantization=value)
