"""Models and caches of two bytes a number: close to float32, and refused where they cannot be computed."""

import numpy as np
import pytest
import torch
from engine.checkpoints import every_model
from engine.test_quantized_runs import all_logits

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
# The unit roundoff of each: half the distance from 1 to the next number.
ROUNDOFF = {"bfloat16": 2**-8, "float16": 2**-11}
TOKENS = [(7 * i * i + 3 * i + 5) % 59 for i in range(24)]


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("attention", ["cpu", "loops", "reference"])
@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_a_model_in_two_bytes_is_off_by_a_few_roundoffs(tiny, dtype, attention):
    exact = LLM(tiny, num_blocks=32)
    llm = LLM(tiny, num_blocks=32, arrays="torch", dtype=dtype, attention=attention)
    assert llm.kv_cache.nbytes == exact.kv_cache.nbytes / 2, "kv_cache_dtype is 'auto', which is like dtype"
    got = all_logits(llm, TOKENS)
    assert got.dtype == np.float32, "the logits are float32 whatever the model computes in"
    error = relative_error(got, all_logits(exact, TOKENS))
    assert ROUNDOFF[dtype] / 10 < error < 20 * ROUNDOFF[dtype], f"off by {error:.1e}"


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16", "float16", "int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_cache_goes_with_every_model(tiny, dtype, kv_cache_dtype):
    exact = LLM(tiny, num_blocks=32)
    llm = LLM(tiny, num_blocks=32, arrays="torch", dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    assert len(llm.generate([1, 2, 3], GREEDY)[0].outputs[0].token_ids) == 12
    allowed = {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.1, "int8": 0.1, "fp8": 0.5}
    error = relative_error(all_logits(llm, TOKENS), all_logits(exact, TOKENS))
    assert error < max(allowed[dtype], allowed[kv_cache_dtype]), f"off by {error:.1e}"


def test_what_the_model_computes_is_what_the_cache_holds(tiny):
    """K and V of a bfloat16 model go into a bfloat16 cache as they are; of a float32 model, rounded once."""
    sizes = {"block_size": 4, "num_blocks": 8, "device": "cpu"}
    wide, narrow = (LLM(tiny, kv_cache_dtype=name, **sizes) for name in ("float32", "bfloat16"))
    for llm in (wide, narrow):
        llm.generate(TOKENS, SamplingParams(temperature=0, max_tokens=1))
    assert narrow.kv_cache.k.dtype == np.uint16
    held = torch.from_numpy(narrow.kv_cache.k[0]).view(torch.bfloat16)  # the first layer has attended to nothing yet
    assert held.float().abs().sum() > 0
    assert torch.equal(held, torch.from_numpy(wide.kv_cache.k[0]).bfloat16())


@every_model
@pytest.mark.parametrize(
    "options", [{"preemption": "swap", "swap_space": "1MiB", "num_blocks": 9}, {"num_blocks": 9}, {"num_blocks": 99}]
)
def test_swapping_and_recomputation_change_nothing_in_bfloat16(tiny, options):
    bfloat16 = {"block_size": 4, "arrays": "torch", "dtype": "bfloat16", "attention": "reference"}
    prompts = [TOKENS[:7], TOKENS[3:8], TOKENS[10:16], TOKENS[2:5]]
    alone = [LLM(tiny, num_blocks=99, **bfloat16).generate(p, GREEDY)[0].outputs[0].token_ids for p in prompts]
    outputs = LLM(tiny, **bfloat16, **options).generate(prompts, GREEDY)
    if options["num_blocks"] == 9:
        assert sum(output.metrics.num_preemptions for output in outputs) > 0, "the pool was too large to test this"
    if options.get("preemption") == "swap":  # swapped blocks come back bit by bit
        assert [output.outputs[0].token_ids for output in outputs] == alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"device": "cpu", "dtype": "bfloat16"},
            "dtype is 'bfloat16', but arrays is 'numpy'.*only float32.*arrays='torch'",
        ),
        ({"device": "cpu", "dtype": "float16"}, "dtype is 'float16', but arrays is 'numpy'.*Use arrays='torch'"),
        ({"dtype": "float64"}, "dtype is 'float64'; it must be one of float32, bfloat16, float16"),
        ({"arrays": "torch", "dtype": "int8"}, "dtype is 'int8'"),
        ({"arrays": "torch", "device": "tpu"}, "device is 'tpu'; it must be one of cpu, cuda"),
        ({"arrays": "numpy", "device": "cuda"}, "device is 'cuda', but arrays is 'numpy'.*arrays='torch' or 'cupy'"),
        ({"arrays": "cupy", "device": "cpu"}, "device is 'cpu', but arrays is 'cupy'"),
        ({"arrays": "cupy", "dtype": "bfloat16", "device": "cuda"}, "dtype is 'bfloat16', but arrays is 'cupy'"),
        ({"kv_cache_dtype": "float8"}, "kv_cache_dtype is 'float8'; it must be one of auto, float32, bfloat16"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(tiny, options, words):
    with pytest.raises(ConfigurationError, match=words):
        LLM(tiny, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "but PyTorch .*(was built without CUDA|finds no NVIDIA GPU).* leave device out"),
        ({"device": "cuda", "arrays": "cupy"}, "pip install cupy|CuPy finds no NVIDIA GPU"),
        ({"attention": "cuda"}, "attention is 'cuda', which needs an NVIDIA GPU and device='cuda'"),
    ],
    ids=str,
)
def test_without_a_gpu_a_sentence_says_what_is_missing(tiny, options, words):
    with pytest.raises(ConfigurationError, match=words):
        LLM(tiny, **options)
