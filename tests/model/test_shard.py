"""A model in parts computes what the whole one computes: every architecture, any number of ranks (threads, here)."""

import threading

import numpy as np
import pytest
from model.small_llama import SmallLlama

from minipage.errors import ConfigurationError
from minipage.model.dense import dense_attend
from minipage.model.falcon import Falcon
from minipage.model.gpt2 import GPT2
from minipage.model.llama import Llama
from minipage.model.opt import OPT
from minipage.model.place import place_model
from minipage.model.rope import Rotary
from minipage.model.shard import Shard, heads_of, share
from minipage.model.stored_weights import Weights

TURN = Rotary((1.0, 0.3), 1.0)
LLAMA = Llama(61, 36, 50, 2, 9, 3, 4, 64, TURN, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
ARCHITECTURES = {
    "gpt2": GPT2(61, 64, 24, 2, 6, tie_word_embeddings=False),
    "opt": OPT(61, 24, 2, 6, 50, 64, 24),
    "opt-projected": OPT(61, 24, 2, 6, 50, 64, 12, do_layer_norm_before=False, has_final_norm=False),
    "llama": LLAMA,  # 9 heads of q on 3 of K and V, as SmolLM2 has
    "falcon": Falcon(61, 32, 2, 8, 1, 50, 64, TURN, bias=True),  # all heads read one of K and V
    "falcon-new": Falcon(61, 32, 2, 8, 2, 50, 64, TURN, attention_norm="ln_attn", mlp_norm="ln_mlp"),
}


class RandomWeights(Weights):
    """Large enough for every part to be noticed."""

    def __init__(self, architecture):
        super().__init__(architecture, None)

    def stored(self):
        rng = np.random.default_rng(1)
        for name, spec in self._architecture.weights():
            mean = float(len(spec.shape) == 1 and name.endswith(".weight"))
            yield name, self.part(name, rng.normal(mean, 0.3, spec.shape).astype(np.float32))


class Threads:
    """What several threads say to each other."""

    def __init__(self, size):
        self.size, self.parts, self.barrier = size, [None] * size, threading.Barrier(size, timeout=60)

    def exchange(self, rank, part):
        self.parts[rank] = part
        self.barrier.wait()
        parts = self.parts.copy()
        self.barrier.wait()
        return parts


class Talk:
    def __init__(self, threads, rank):
        self.threads, self.rank, self.size = threads, rank, threads.size
        self.num_reduced = 0

    def all_reduce(self, part):
        self.num_reduced += 1
        first, *others = self.threads.exchange(self.rank, part)
        return sum(others, first)

    def gather(self, part, sizes):
        parts = self.threads.exchange(self.rank, part)
        assert [each.shape[1] for each in parts] == sizes
        return np.concatenate([np.asarray(each) for each in parts], axis=1)


def logits(architecture, size, arrays="numpy"):
    """[T, V], what one process computes, or what rank 0 of several has in the end; and how often it has added up."""
    token_ids, found = np.arange(12) * 5 % 61, {}
    threads = Threads(size)

    def compute(rank):
        talk = Talk(threads, rank) if size > 1 else None
        model = place_model(architecture, RandomWeights(architecture), arrays, talk=talk)
        ids, positions = (model.layers.asarray(each) for each in (token_ids, np.arange(12)))
        found[rank] = np.asarray(model.logits(model.forward(ids, positions, dense_attend))), talk

    ranks = [threading.Thread(target=compute, args=(rank,)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return found[0]


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_number_of_ranks_computes_what_one_computes(name, arrays):
    whole, _ = logits(ARCHITECTURES[name], 1)
    for size in (2, 3, 4):
        parts, talk = logits(ARCHITECTURES[name], size, arrays)
        np.testing.assert_allclose(parts, whole, atol=3e-4 * np.abs(whole).max())
        assert talk.num_reduced == 1 + 2 * 2  # for the embedding, and two for each of two layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_int8_the_ranks_together_have_the_weights_of_one(name):
    """A rank with some rows of a matrix rounds by what is largest in whole columns, and not in its rows."""
    architecture, size = ARCHITECTURES[name], 3
    weights = RandomWeights(architecture)
    whole = place_model(architecture, weights, quantization="int8").layers
    for rank in range(size):
        talk = Talk(Threads(size), rank)  # to which nothing is said
        layers = place_model(architecture, weights, quantization="int8", talk=talk).layers
        for matrix, spec in architecture.weights():
            if spec.split == "in" and not spec.is_table and matrix != f"{architecture.head}.weight":
                layer, eye = matrix.removesuffix(".weight"), np.eye(spec.shape[0], dtype=np.float32)  # [in, in]
                rows = layers.rows(layer)
                found = layers.layers.linear(layer, eye[rows, rows])  # [some of in, out]
                bias = whole.linear(layer, 0 * eye[:1]) if rank else 0  # [1, out], which only rank 0 adds
                np.testing.assert_allclose(found, whole.linear(layer, eye)[rows] - bias, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_every_head_of_q_is_in_one_rank_beside_its_own_of_k_and_v(size):
    heads = [heads_of(rank, size, 9, 3) for rank in range(size)]
    assert [head for q, _ in heads for head in range(q.start, q.stop)] == list(range(9))
    for q, kv in heads:
        group = (q.stop - q.start) // (kv.stop - kv.start)
        assert [kv.start + i // group for i in range(q.stop - q.start)] == [
            head // 3 for head in range(q.start, q.stop)
        ]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_each_thing_is_in_one_rank(size):
    assert [i for rank in range(size) for i in range(10)[share(10, rank, size)]] == list(range(10))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_parts_together_are_as_large_as_the_whole_except_for_what_everybody_needs(name):
    architecture = ARCHITECTURES[name]
    shards = [Shard(architecture, rank, 2) for rank in range(2)]
    for weight, spec in architecture.weights():
        shapes = [dict(shard.weights())[weight].shape for shard in shards if weight in dict(shard.weights())]
        if spec.split and not (spec.heads == "kv" and architecture.kv.num_kv_heads < 2):
            assert sum(map(np.prod, shapes)) == np.prod(spec.shape), weight
        elif spec.split is None:
            assert set(shapes) == {spec.shape}, weight


def test_what_cannot_be_cut_is_refused_in_a_sentence():
    with pytest.raises(ConfigurationError, match="the model has 6 heads, of which every rank needs one"):
        Shard(ARCHITECTURES["gpt2"], 0, 7)
    with pytest.raises(ConfigurationError, match="has only 3 to share"):
        Shard(Llama(61, 36, 3, 2, 9, 3, 4, 64, TURN), 0, 4)
    silent = SmallLlama(61, 64, 32, 48, 2, 6, 3, 1e-5, 1e4)  # it says of no weight that it belongs to heads
    with pytest.raises(ConfigurationError, match="must say which weights belong to heads"):
        Shard(silent, 0, 2)
    assert Shard(silent, 0, 3).num_heads == 2
