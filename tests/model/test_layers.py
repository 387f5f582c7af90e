"""Each operation of each kind of layers against the plain one in float64, with odd sizes; and what is refused."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from minipage.errors import KernelArgumentError
from minipage.model.architecture import Model, Weight
from minipage.model.dense import dense_attend
from minipage.model.gpt2 import GPT2
from minipage.model.layers import onednn
from minipage.model.layers.bfloat16 import BFloat16Layers
from minipage.model.layers.compiled import CompiledLayers, Linear, gelu
from minipage.model.layers.int8 import Int8Layers
from minipage.model.layers.onednn import OneDNNLayers
from minipage.model.layers.plain import PlainLayers
from minipage.model.layers.torch import TorchLayers


def as_torch(dtype):
    return lambda array: torch.from_numpy(array).to(dtype)


# Kind -> its class, how arrays become its own, and how far off it may be.
KINDS = {
    "plain": (PlainLayers, lambda array: array.astype(np.float32), 1e-5),
    "plain on torch": (PlainLayers, as_torch(torch.float32), 1e-5),
    "compiled": (CompiledLayers, lambda array: array.astype(np.float32), 1e-5),
    "int8": (Int8Layers, lambda array: array.astype(np.float32), 0.03),
    "torch": (TorchLayers, as_torch(torch.float32), 1e-5),
    "torch in bfloat16": (TorchLayers, as_torch(torch.bfloat16), 0.03),
    "torch in float16": (TorchLayers, as_torch(torch.float16), 0.005),
    "onednn": (OneDNNLayers, as_torch(torch.bfloat16), 0.03),
    "bfloat16": (BFloat16Layers, as_torch(torch.bfloat16), 0.03),
}
SIZES = {  # in, and out of two or three matrices
    "wide": (33, 7, 12), "one of each": (1, 1, 1), "even": (64, 32, 96), "many": (20, 5, 288),
}  # fmt: skip
V, D = 37, 10


class OneOfEach:
    """All that an architecture may have, in two blocks: a table, a head of its own, norms and matrices."""

    together = (("q", "k", "v"), ("mlp.gate", "mlp.up"))
    head = "lm_head"

    def __init__(self, sizes):
        self.C, self.small, self.large = sizes

    def weights(self):
        C, small, large = self.C, self.small, self.large
        yield "table.weight", Weight((V, C), is_table=True)
        for block in ("h.0.", "h.1.", ""):
            shapes = {"q": large, "k": small, "v": small, "o": small, "mlp.gate": large, "mlp.up": large, "equal": C}
            for name, size in shapes.items():
                yield f"{block}{name}.weight", Weight((C, size))
                if name in "qkvo":
                    yield f"{block}{name}.bias", Weight((size,))
            yield f"{block}norm.weight", Weight((C,))
            yield f"{block}norm.bias", Weight((C,))
            yield f"{block}of_heads.weight", Weight((D,))
        yield "lm_head.weight", Weight((V, C))


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def sizes(request):
    return request.param


@pytest.fixture(params=KINDS)
def pair(request, sizes):
    if request.param == "onednn" and not onednn.able():
        pytest.skip("this PyTorch cannot keep matrices in oneDNN's order")
    return pair_of(request.param, sizes)


@cache
def pair_of(kind, sizes):
    """Two of the same: of this kind, and the plain one in float64, with what turns arrays into its own."""
    make, own, tolerance = KINDS[kind]
    architecture, rng = OneOfEach(sizes), np.random.default_rng(0)
    weights = {name: rng.normal(0, weight.shape[0] ** -0.5, weight.shape) for name, weight in architecture.weights()}
    exact = {name: np.asarray(back(own(weight))) for name, weight in weights.items()}
    return Pair(make(architecture, {name: own(weight) for name, weight in weights.items()}),
                PlainLayers(architecture, exact), own, tolerance)  # fmt: skip


def back(array):
    return array.double().numpy() if isinstance(array, torch.Tensor) else np.asarray(array, np.float64)


class Pair:
    def __init__(self, layers, exact, own, tolerance):
        self.layers, self.exact, self.own, self.tolerance = layers, exact, own, tolerance

    def check(self, compute, *arrays):
        """compute(layers, *arrays) is the same of both."""
        mine = [self.own(a) if a.dtype.kind == "f" else self.layers.asarray(a) for a in arrays]
        exact = [back(own) if a.dtype.kind == "f" else a for own, a in zip(mine, arrays, strict=True)]
        found, expected = compute(self.layers, *mine), compute(self.exact, *exact)
        for one, other in zip(*(a if isinstance(a, tuple) else (a,) for a in (found, expected)), strict=True):
            assert one.shape == other.shape
            largest = np.abs(other).max(initial=1)
            np.testing.assert_allclose(back(one), other, rtol=self.tolerance, atol=self.tolerance * largest)


rows = pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 97])


def numbers(*shape, size=1.0):
    return np.random.default_rng(sum(shape)).normal(0, size, shape)


@rows
@pytest.mark.parametrize("then", [None, "gelu", "gelu_exact", "relu"])
def test_a_product_and_a_function_of_it(pair, sizes, num_rows, then):
    pair.check(lambda layers, x: layers.linear("o", x, then), numbers(num_rows, sizes[0], size=4))
    pair.check(lambda layers, x: layers.at("h.1").linear("equal", x, then), numbers(num_rows, sizes[0]))


@rows
def test_matrices_that_read_the_same_input_are_one_product_cut_at_the_right_places(pair, sizes, num_rows):
    C, small, large = sizes
    x = numbers(num_rows, C)
    pair.check(lambda layers, x: layers.linears(("q", "k", "v"), x), x)
    pair.check(lambda layers, x: layers.at("h.0").linears(("mlp.gate", "mlp.up"), x), x)
    shapes = [tuple(a.shape) for a in pair.layers.at("h.1").linears(("q", "k", "v"), pair.own(x))]
    assert shapes == [(num_rows, large), (num_rows, small), (num_rows, small)]


@rows
def test_norms_of_tokens_and_of_heads(pair, sizes, num_rows):
    for epsilon in (1e-5, 0.5):
        x = numbers(num_rows, sizes[0]) + 1
        pair.check(lambda layers, x, e=epsilon: layers.layer_norm("norm", x, e), x)
        pair.check(lambda layers, x, e=epsilon: layers.at("h.1").rms_norm("norm", x, e), x)
        pair.check(lambda layers, x, e=epsilon: layers.rms_norm("of_heads", x, e), numbers(num_rows, 3, D))
        pair.check(lambda layers, x, e=epsilon: layers.layer_norm("of_heads", x, e), numbers(num_rows, 3, D))


@rows
def test_a_gate(pair, num_rows):
    pair.check(lambda layers, gate, up: layers.gated(gate, up), numbers(num_rows, 33, size=9), numbers(num_rows, 33))
    gate = np.repeat([[-60.0, -20.0, 0.0, 20.0, 60.0]], num_rows, 0)
    pair.check(lambda layers, gate, up: layers.gated(gate, up), gate, np.ones_like(gate))


@rows
def test_two_products_of_which_one_is_the_gate_of_the_other(pair, sizes, num_rows):
    names = "mlp.gate", "mlp.up"
    pair.check(lambda layers, x: layers.at("h.0").gated_linear(names, x), numbers(num_rows, sizes[0], size=3))
    x = pair.own(numbers(num_rows, sizes[0], size=9))
    block = pair.layers.at("h.1")
    both = block.gated_linear(names, x), block.gated(*block.linears(names, x))
    np.testing.assert_array_equal(*map(back, both))  # to the last bit


@rows
@pytest.mark.parametrize("turned", [D, 6, 2])
def test_heads_are_turned_by_their_position_wholly_or_in_part(pair, num_rows, turned):
    frequencies = tuple(100.0 ** (-2 * i / turned) for i in range(turned // 2))

    def turn(layers, positions, x):
        return layers.rotate(x, layers.rotation(positions, frequencies, 1.25))

    pair.check(turn, np.arange(num_rows) * 3, numbers(num_rows, 3, D))


def test_a_head_is_turned_as_complex_numbers_are():
    layers = PlainLayers(OneOfEach((3, 2, 1)), {name: np.ones(w.shape) for name, w in OneOfEach((3, 2, 1)).weights()})
    x, positions, frequencies = numbers(4, 2, D), np.array([0, 1, 7, 1000]), (1.0, 0.1, 0.01)
    out = layers.rotate(x, layers.rotation(positions, frequencies))
    turned = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * positions[:, None, None] * frequencies)
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag, x[..., 6:]], -1), atol=1e-12)


@rows
def test_rows_are_looked_up_and_scored(pair, sizes, num_rows):
    pair.check(lambda layers, ids: layers.embed("table", ids), np.arange(num_rows) * 5 % V)
    pair.check(lambda layers, x: layers.scores("lm_head", x), numbers(num_rows, sizes[0]))


def test_a_prefix_is_looked_for_once(pair):
    assert pair.layers.at("h.0") is pair.layers.at("h.0")
    assert pair.layers.at("h").at("1") is not pair.layers.at("h.1")
    x = pair.own(numbers(3, pair.exact._parts["norm"].weight.shape[0]))
    both = pair.layers.at("h").at("1").linear("o", x), pair.layers.linear("h.1.o", x)
    np.testing.assert_array_equal(*map(back, both))
    assert not np.array_equal(back(both[0]), back(pair.layers.at("h.0").linear("o", x)))


# ---- a whole model


TINY = dict(vocab_size=61, n_positions=40, n_embd=24, n_layer=2, n_head=3)


@pytest.mark.parametrize("num_tokens", [0, 1, 6, 40])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_plain_one_does(kind, num_tokens, tied):
    if kind == "onednn" and not onednn.able():
        pytest.skip("this PyTorch cannot keep matrices in oneDNN's order")
    make, own, tolerance = KINDS[kind]
    gpt2, rng = GPT2(**TINY, tie_word_embeddings=tied), np.random.default_rng(num_tokens)
    scale = 1 if tolerance < 1e-3 else 0.25
    weights = {name: own(rng.standard_normal(weight.shape) * scale) for name, weight in gpt2.weights()}
    exact = Model(gpt2, PlainLayers(gpt2, {name: back(weight) for name, weight in weights.items()}))
    model = Model(gpt2, make(gpt2, weights))
    tokens, positions = rng.integers(0, 61, num_tokens), np.arange(num_tokens)
    attend = dense_attend if num_tokens else lambda layer, q, k, v: v
    expected = exact.forward(tokens, positions, attend)
    found = model.forward(model.layers.asarray(tokens), model.layers.asarray(positions), attend)
    for mine, theirs in (found, expected), (model.logits(found), exact.logits(expected)):
        assert mine.shape == theirs.shape
        largest = np.abs(theirs).max(initial=1)
        np.testing.assert_allclose(back(mine), theirs, rtol=1e-3 * (scale == 1), atol=max(1e-3, tolerance) * largest)


# ---- products in panels


@rows
@pytest.mark.parametrize("kind", ["compiled", "int8", "onednn", "bfloat16", "torch"])
@pytest.mark.parametrize("sizes", [(64, 32, 96), (33, 7, 12)], ids=["whole panels", "others"])
def test_a_product_is_added_to_what_was_there(kind, sizes, num_rows):
    if kind == "onednn" and not onednn.able():
        pytest.skip("this PyTorch cannot keep matrices in oneDNN's order")
    make, own, tolerance = KINDS[kind]
    architecture, rng = OneOfEach(sizes), np.random.default_rng(0)
    weights = {name: rng.normal(0, weight.shape[0] ** -0.5, weight.shape) for name, weight in architecture.weights()}
    exact = PlainLayers(architecture, {name: back(own(weight)) for name, weight in weights.items()})
    pair = Pair(make(architecture, {name: own(weight) for name, weight in weights.items()}), exact, own, tolerance)
    for name, then in (("equal", None), ("h.0.equal", "relu")):
        x, onto = numbers(num_rows, sizes[0]), numbers(num_rows, sizes[0], size=3)
        pair.check(lambda layers, x, onto, n=name, t=then: layers.linear(n, x, t, onto=onto), x, onto)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 97])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (3, 2), (16, 4), (33, 7), (3, 32), (768, 50), (20, 96)])
def test_a_linear_layer_is_that_of_numpy(num_rows, n_in, n_out):
    rng = np.random.default_rng(num_rows)
    x = rng.standard_normal((num_rows, n_in), np.float32)
    w = rng.standard_normal((n_in, n_out), np.float32)
    bias = rng.standard_normal(n_out, np.float32)
    exact = x.astype(np.float64) @ w.astype(np.float64) + bias
    for linear in Linear(w, bias), Linear(np.asfortranarray(w), bias):
        assert linear(x).shape == (num_rows, n_out)
        np.testing.assert_allclose(linear(x), exact, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(linear(np.asfortranarray(x)), exact, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(linear(x, "gelu"), exact_gelu(exact), rtol=1e-3, atol=1e-4)


def test_rows_and_weights_of_the_wrong_size_are_refused_instead_of_read_beyond_their_ends():
    ones = np.ones((3, 4), np.float32)
    linear = Linear(ones, ones[0])
    for x in (ones, ones.T[:, :2], ones.T[0], ones.T.astype(np.float64), ones.T.astype(int), ones.T[None]):
        with pytest.raises(KernelArgumentError, match=r"\[T, 3\]"):
            linear(x)
    for weight, bias in ((ones, ones[0, :3]), (ones[0], ones[0]), (ones.astype(np.float64), ones[0]), (ones, ones)):
        with pytest.raises(KernelArgumentError, match=r"\[in, out\]"):
            Linear(weight, bias)
    gpt2 = GPT2(**TINY)
    weights = {name: np.ones(weight.shape, np.float32) for name, weight in gpt2.weights()}
    for name in ("ln_f.weight", "h.1.ln_2.bias", "wte.weight"):
        for wrong in (weights[name][:-1], weights[name].astype(np.float64)):
            with pytest.raises(KernelArgumentError, match=name):
                CompiledLayers(gpt2, weights | {name: wrong})
    layers = CompiledLayers(gpt2, weights)
    x, heads = np.ones((2, 24), np.float32), np.ones((2, 3, 8), np.float32)
    turn = layers.rotation(np.arange(2), (1.0,) * 5)
    for name, compute in {
        "norm": lambda: layers.layer_norm("ln_f", x[:, :-1], 1e-5),
        "rms": lambda: layers.rms_norm("ln_f", np.ones((2, 25), np.float32), 1e-5),
        "gate": lambda: layers.gated(x, x[:1]),
        "too wide": lambda: layers.rotate(heads, turn),
        "too long": lambda: layers.rotate(np.ones((3, 3, 16), np.float32), turn),
    }.items():
        with pytest.raises(KernelArgumentError):
            pytest.fail(f"{name}: {compute()}")


@pytest.mark.parametrize("kind", ["plain", "compiled", "torch"])
def test_a_weight_that_is_missing_or_of_another_shape_is_named_by_every_kind(kind):
    make, own, _ = KINDS[kind]
    gpt2 = GPT2(**TINY)
    weights = {name: own(np.ones(weight.shape)) for name, weight in gpt2.weights()}
    for name in ("wpe.weight", "h.0.attn.k.bias", "h.1.mlp.c_proj.weight"):
        with pytest.raises(KernelArgumentError, match=name):
            make(gpt2, weights | {name: weights[name][1:]})
        with pytest.raises(KernelArgumentError, match=name):
            make(gpt2, {other: weight for other, weight in weights.items() if other != name})


def test_gelu_is_right_far_out():
    x = np.array([-1e20, -100.0, -10.0, -1e-3, 0.0, 1e-3, 10.0, 100.0, 1e20], np.float32)
    expected = exact_gelu(x.astype(np.float64))
    gelu(x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "compiled", "torch"])
def test_what_is_no_number_stays_none(kind):
    make, own, _ = KINDS[kind]
    architecture = OneOfEach((3, 2, 1))
    layers = make(architecture, {name: own(np.ones(weight.shape)) for name, weight in architecture.weights()})
    x = own(np.array([[math.nan, 1.0, 1.0]]))
    for then in (None, "gelu", "gelu_exact", "relu"):
        assert np.isnan(back(layers.linear("o", x, then))).all()
    assert np.isnan(back(layers.gated(x, x)))[0].tolist() == [True, False, False]
    assert np.isnan(back(layers.rms_norm("norm", x, 1e-5))).all()


def exact_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
