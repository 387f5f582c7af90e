"""The contract of Architecture and Layers: an architecture that minipage does not have runs on every kind of layers."""

import sys

import numpy as np
import pytest
import torch
from model import small_llama
from transformers import LlamaConfig, LlamaForCausalLM

from minipage import LLM, SamplingParams
from minipage.model import checkpoint
from minipage.model.architecture import Model
from minipage.model.checkpoint import load_model
from minipage.model.dense import dense_attend
from minipage.model.layers.plain import PlainLayers
from minipage.model.place import place_model

VOCAB, CONTEXT = 97, 64
TOKEN_IDS = [(5 * i * i + 3 * i + 1) % VOCAB for i in range(CONTEXT)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' model, and the folder with its checkpoint."""
    config = LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=48, intermediate_size=44, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=4, rope_theta=300.0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_norm, is_layer = weight.ndim == 1, ".layers." in name
            weight.normal_(float(is_norm), 0.15 if is_norm or not is_layer else weight.shape[1] ** -0.5, generator=rng)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """To LLM, too, in place of minipage's own Llama."""
    monkeypatch.setitem(sys.modules, "minipage.model.small_llama", small_llama)
    monkeypatch.setitem(checkpoint.ARCHITECTURES, "llama", "small_llama.SmallLlama")


def plain(architecture, weights):
    return Model(architecture, PlainLayers(architecture, weights))


def compiled(architecture, weights):
    return place_model(architecture, weights, "numpy")


def on_torch(architecture, weights):
    return place_model(architecture, weights, "torch")


@pytest.mark.parametrize("place", [plain, compiled, on_torch])
def test_logits_are_those_of_transformers(theirs, place):
    model, folder = theirs
    ours = place(*load_model(folder)[:2])
    assert isinstance(ours.architecture, small_llama.SmallLlama)
    hidden = ours.forward(*map(ours.layers.asarray, (np.array(TOKEN_IDS), np.arange(CONTEXT))), dense_attend)
    with torch.no_grad():
        expected = model(torch.tensor([TOKEN_IDS])).logits[0].numpy()
    assert expected.std() > 0.3, "this test compares next to nothing: all logits are about the same"
    np.testing.assert_allclose(np.asarray(ours.logits(hidden)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_it_decodes_through_the_paged_cache_of_an_engine(theirs, arrays):
    model, folder = theirs
    prompts = [TOKEN_IDS[:1], TOKEN_IDS[3:20], TOKEN_IDS[30:39]]
    llm = LLM(folder, arrays=arrays, num_blocks=40, block_size=4, max_num_batched_tokens=8)
    assert llm.kv_cache.k.shape == (3, 40, 4, 4, 6)  # [num_layers, num_blocks, block_size, num_kv_heads, head_size]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32, min_tokens=32))
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, do_sample=False, max_new_tokens=32, pad_token_id=0)[0, len(prompt) :].tolist()
        assert len(set(expected)) > 4, "this test compares a text of hardly any different tokens"
        assert output.outputs[0].token_ids == expected
