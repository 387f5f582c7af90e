"""The compiled GPT computes what the plain one does, whatever the shapes."""

import numpy as np
import pytest

from minipage.compiled_gpt import CompiledGPT, Linear, gelu
from minipage.model.gpt import GPT, GPTConfig, dense_attend


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
    for name, weight in compiled.weights.items():
        np.testing.assert_array_equal(weight, before[name])


def test_gelu_is_right_far_out():
    x = np.array([[-1e20, -100.0, -10.0, -1e-3, 0.0, 1e-3, 10.0, 100.0, 1e20]], np.float32)
    expected = exact_gelu(x.astype(np.float64))
    gelu(x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def exact_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
