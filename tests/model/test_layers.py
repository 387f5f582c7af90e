"""The compiled GPT computes what the plain one does, whatever the shapes."""

import numpy as np
import pytest
import torch
from minipage.compiled_gpt import CompiledGPT, Linear, gelu
from minipage.model.gpt import GPT, GPTConfig, dense_attend
from minipage.model.torch_gpt import PackedTorchGPT

from minipage.errors import KernelArgumentError


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
        np.testing.assert_allclose(linear(x, with_gelu=True), exact_gelu(exact), rtol=1e-3, atol=1e-4)


def test_rows_and_weights_of_the_wrong_size_are_refused_instead_of_read_beyond_their_ends():
    ones = np.ones((3, 4), np.float32)
    linear = Linear(ones, ones[0])
    for x in (ones, ones.T[:, :2], ones.T[0], ones.T.astype(np.float64), ones.T.astype(int), ones.T[None]):
        with pytest.raises(KernelArgumentError, match=r"\[T, 3\]"):
            linear(x)
    for weight, bias in ((ones, ones[0, :3]), (ones[0], ones[0]), (ones.astype(np.float64), ones[0]), (ones, ones)):
        with pytest.raises(KernelArgumentError, match=r"\[in, out\]"):
            Linear(weight, bias)
    config = GPTConfig(vocab_size=61, n_positions=40, n_embd=24, n_layer=2, n_head=3)
    weights = {name: np.ones(shape, np.float32) for name, shape in config.weight_shapes().items()}
    for name in ("ln_f.weight", "h.1.ln_2.bias", "wte.weight"):
        for wrong in (weights[name][:-1], weights[name].astype(np.float64)):
            with pytest.raises(KernelArgumentError, match=name):
                CompiledGPT(config, weights | {name: wrong})


@pytest.mark.parametrize("num_tokens", [1, 6, 40])
@pytest.mark.parametrize("tied", [True, False])
def test_it_computes_what_the_plain_one_does(num_tokens, tied):
    config = GPTConfig(vocab_size=61, n_positions=40, n_embd=24, n_layer=2, n_head=3)
    rng = np.random.default_rng(num_tokens)
    shapes = config.weight_shapes() | ({} if tied else {"lm_head.weight": (61, 24)})
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    double = GPT(config, {name: weight.astype(np.float64) for name, weight in weights.items()})
    tokens, positions = rng.integers(0, 61, num_tokens), np.arange(num_tokens)
    before = {name: weight.copy() for name, weight in weights.items()}
    compiled = CompiledGPT(config, weights)
    expected = double.logits(double.forward(tokens, positions, dense_attend))
    found = compiled.logits(compiled.forward(tokens, positions, dense_attend))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert set(compiled.weights) == set(before) and len(compiled.weights) == len(before)
    for name, weight in compiled.weights.items():
        np.testing.assert_array_equal(weight, before[name])


def test_gelu_is_right_far_out():
    x = np.array([[-1e20, -100.0, -10.0, -1e-3, 0.0, 1e-3, 10.0, 100.0, 1e20]], np.float32)
    expected = exact_gelu(x.astype(np.float64))
    gelu(x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def exact_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.skipif(not PackedTorchGPT.able(), reason="this PyTorch cannot keep matrices in oneDNN's order")
@pytest.mark.parametrize("num_tokens", [0, 1, 6, 40])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_compute_what_plain_ones_do(num_tokens, tied):
    config = GPTConfig(vocab_size=61, n_positions=40, n_embd=24, n_layer=2, n_head=3)
    rng = np.random.default_rng(num_tokens)
    shapes = config.weight_shapes() | ({} if tied else {"lm_head.weight": (61, 24)})
    weights = {
        name: torch.from_numpy(rng.standard_normal(shape, np.float32) / 4).bfloat16() for name, shape in shapes.items()
    }
    double = GPT(config, {name: weight.double().numpy() for name, weight in weights.items()})
    tokens, positions = rng.integers(0, 61, num_tokens), np.arange(num_tokens)
    hidden = rng.standard_normal((num_tokens, 24))
    packed = PackedTorchGPT(config, weights)
    x = torch.from_numpy(hidden).bfloat16()
    assert set(packed.weights) == set(weights)
    assert all(torch.equal(weight, weights[name]) for name, weight in packed.weights.items())
    pairs = [
        (packed.logits(x), double.logits(x.double().numpy())),
        (packed._mlp("h.1.mlp", x), double._mlp("h.1.mlp", x.double().numpy())),
        (packed._linear("h.0.attn.c_attn", x), double._linear("h.0.attn.c_attn", x.double().numpy())),
    ]
    if num_tokens:
        there = map(torch.from_numpy, (tokens, positions))
        pairs += [(packed.forward(*there, dense_attend), double.forward(tokens, positions, dense_attend))]
    for found, expected in pairs:
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.double().numpy(), expected, atol=0.03 * np.abs(expected).max(initial=1))
