"""The GPU's own kernels for layers compute what plain layers do, in every kind of numbers."""

from itertools import product

import numpy as np
import pytest
import torch
from where import SIMULATOR

from minipage.attention.cuda.cache import launch_write_kv
from minipage.attention.cuda.device_arrays import View
from minipage.model.architecture import Weight, heads
from minipage.model.layers.plain import PlainLayers
from minipage.model.layers.torch import TorchLayers
from minipage.worker.gpu import few_rows, fused
from minipage.worker.gpu.fused import FusedLayers, launch_rotate
from minipage.worker.gpu.turned import launch_turn_and_write
from minipage.worker.gpu.views import for_kernels

ROUNDOFF = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DEVICE = "cpu" if SIMULATOR else "cuda"
dtypes = pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)


# One line of 128 bytes; some for each of 4 warps, of 12; more than 8 warps have under way at once; no whole lines.
MATRICES = (64, 8), (320, 13), (2112, 3), (3264, 2), (65, 4)


class Some:
    together, head = (), "none"

    def weights(self):
        yield "norm.weight", Weight((48,))
        yield "odd_norm.weight", Weight((5,))
        yield "large_norm.weight", Weight((1100,))
        yield "huge_norm.weight", Weight((8200,))
        for size in 48, 1100:
            yield f"centered_{size}.weight", Weight((size,))
            yield f"centered_{size}.bias", Weight((size,))
        for n_in, n_out in MATRICES:
            yield f"matrix_{n_in}.weight", Weight((n_in, n_out))
            yield f"matrix_{n_in}.bias", Weight((n_out,))
        yield "plain.weight", Weight((128, 16))
        yield "none.weight", Weight((11, 64))


def seen_by_kernels(array):
    return array if isinstance(array, View) else for_kernels(array)


@pytest.fixture
def layers(dtype, monkeypatch):
    """Layers whose kernels take PyTorch's tensors, in the simulator too."""
    if SIMULATOR:
        monkeypatch.setattr(fused, "current_stream", lambda: 0)
        for kernels, name in product((fused, few_rows), ("layout", "elements", "words", "view")):
            seen = getattr(kernels, name)
            monkeypatch.setattr(kernels, name, lambda array, of=seen: of(seen_by_kernels(array)))
    own = {name: numbers(*weight.shape, dtype=dtype) for name, weight in Some().weights()}
    for name in own:
        if own[name].ndim == 2:
            own[name] = own[name].T.contiguous().T  # as they lie on a GPU
    return FusedLayers(TorchLayers(Some(), own))


@pytest.fixture
def exact(dtype):
    return PlainLayers(Some(), {name: wide(numbers(*w.shape, dtype=dtype)) for name, w in Some().weights()})


def wide(tensor):
    return tensor.double().cpu().numpy()


def check(found, expected, dtype, size=4):
    """size: of the numbers, about."""
    np.testing.assert_allclose(wide(found), expected, rtol=2 * ROUNDOFF[dtype], atol=size * ROUNDOFF[dtype])


def numbers(*shape, dtype):
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=rng).to(DEVICE, dtype)


@dtypes
@pytest.mark.parametrize("num_tokens", [0, 1, 3])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_size", "turned"),
    [(4, 2, 8, 8), (3, 1, 10, 6), (1, 1, 2, 2), (40, 8, 16, 16)],
)
def test_q_and_k_are_turned_where_they_are(
    layers, exact, dtype, num_tokens, num_heads, num_kv_heads, head_size, turned
):
    sizes = [num_heads * head_size, num_kv_heads * head_size, num_kv_heads * head_size]
    qkv = numbers(num_tokens, sum(sizes), dtype=dtype)
    q, k, v = (heads(x, head_size) for x in qkv.split(sizes, 1))
    before = [x.double().cpu().numpy() for x in (q, k, v)]
    positions = torch.arange(num_tokens, device=DEVICE) * 7
    frequencies = [0.5**i for i in range(turned // 2)]
    turn = layers.rotation(positions, frequencies, 1.25)
    got = layers.at("anywhere").rotate_both(q, k, turn)
    rounded = [x.double().cpu().numpy() for x in turn]
    for one, old in zip(got, before, strict=False):
        check(one, exact.rotate(old, rounded), dtype)
    assert np.array_equal(v.double().cpu().numpy(), before[2]), "V is not turned"


@dtypes
def test_a_rotation_along_with_the_writing_of_k_and_v(layers, dtype):
    heads, kv_heads, size, num_tokens = 4, 2, 16, 3
    x = numbers(num_tokens, (heads + 2 * kv_heads) * size, dtype=dtype).unflatten(-1, (-1, size))  # rows of a product
    turn = layers.rotation(torch.arange(num_tokens, device=DEVICE) * 7, [0.5**i for i in range(size // 2)], 1.0)
    slots = torch.tensor([6, -1, 1], device=DEVICE)
    found = []
    for at_once in (False, True):
        q, k, v = x.clone().split((heads, kv_heads, kv_heads), 1)
        k_cache, v_cache = (torch.full((2, 4, kv_heads, size), 9, dtype=dtype, device=DEVICE) for _ in "kv")
        given = [for_kernels(a) for a in (k_cache, v_cache, slots)]
        if at_once:
            seen = tuple(map(for_kernels, turn))
            launch_turn_and_write(for_kernels(q), seen, for_kernels(k), for_kernels(v), *given)
        else:
            launch_rotate(q, k, *turn)
            launch_write_kv(for_kernels(k), for_kernels(v), *given)
        found.append((q, k_cache, v_cache))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert (found[1][1].view(8, -1) == 9).all(1).sum() == 6, "two slots are written"


@dtypes
@pytest.mark.parametrize(("num_tokens", "size"), [(0, 4), (1, 1), (2, 300)])
def test_a_gate_is_one_launch(layers, exact, dtype, num_tokens, size):
    both = 3 * numbers(num_tokens, 2 * size, dtype=dtype)
    if num_tokens > 1:
        both[0, :2] = torch.tensor([-200.0, 200.0])
    gate, up = both.split(size, 1)
    expected = exact.gated(*(x.double().cpu().numpy() for x in (gate, up)))
    found = layers.gated(gate, up)
    assert found.is_contiguous()
    np.testing.assert_allclose(found.double().cpu().numpy(), expected, rtol=2 * ROUNDOFF[dtype], atol=1e-6)


@dtypes
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (3, 2, 48)])
def test_a_norm_of_rows_and_of_heads(layers, exact, dtype, shape):
    x = 5 * numbers(*shape, dtype=dtype)
    check(layers.rms_norm("norm", x, 0.1), exact.rms_norm("norm", wide(x), 0.1), dtype)


@dtypes
def test_a_norm_of_any_size_or_of_rows_that_lie_apart(layers, exact, dtype):
    x = numbers(2, 2, 96, dtype=dtype)
    check(layers.rms_norm("norm", x[:, 1:, :48], 0.1), exact.rms_norm("norm", wide(x[:, 1:, :48]), 0.1), dtype, 16)
    for name, size in ("odd_norm", 5), ("large_norm", 1100), ("huge_norm", 8200):
        x = numbers(2, size, dtype=dtype)
        check(layers.rms_norm(name, x, 0.1), exact.rms_norm(name, wide(x), 0.1), dtype, 16)


@dtypes
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (3, 48), (2, 1100)])
def test_a_layer_norm(layers, exact, dtype, shape):
    x = 5 * numbers(*shape, dtype=dtype) + 3
    name = f"centered_{shape[1]}"
    check(layers.layer_norm(name, x, 0.1), exact.layer_norm(name, wide(x), 0.1), dtype, 16)


@dtypes
@pytest.mark.parametrize("matrix", MATRICES, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "then", "is_onto"), [(1, "gelu", False), (5, None, True), (8, "relu", True), (11, "gelu_exact", False)]
)
def test_a_product_of_few_rows_ends_with_all_that_is_done_to_it(layers, exact, dtype, matrix, num_rows, then, is_onto):
    x = numbers(num_rows, matrix[0], dtype=dtype) / 8
    onto = numbers(num_rows, matrix[1], dtype=dtype) if is_onto else None
    name, under = f"matrix_{matrix[0]}", wide(onto) if is_onto else None
    expected = exact.linear(name, wide(x), then, under)
    is_ours = matrix[0] % 64 == 0 and dtype != torch.float32
    assert few_rows.can_multiply(x, layers._parts[name].weight.T) == is_ours
    found = layers.linear(name, x, then, onto)
    assert found.is_contiguous() and found.shape == expected.shape
    check(found, expected, dtype, 8)


@dtypes
def test_a_product_without_a_bias_and_scores(layers, exact, dtype):
    x = numbers(16, 128, dtype=dtype)
    check(layers.linear("plain", x), exact.linear("plain", wide(x)), dtype, 64)
    x = numbers(2, 64, dtype=dtype)
    check(layers.scores("none", x), exact.scores("none", wide(x)), dtype, 64)
