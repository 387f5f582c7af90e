"""Every architecture computes what transformers computes, in each variant, on every kind of layers."""

import json

import numpy as np
import pytest
import torch
import transformers as hf

from minipage.engine.llm import LLM
from minipage.errors import ModelError
from minipage.model.checkpoint import load_model, read_architecture
from minipage.model.dense import dense_attend
from minipage.model.llama import Llama
from minipage.model.place import place_model
from minipage.model.rope import read_rotary
from minipage.sampling import SamplingParams

VOCAB, CONTEXT = 97, 128
FULL, SLIDING = "full_attention", "sliding_attention"
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": CONTEXT,
}  # fmt: skip
GATED = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2}


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": 10_000.0} | parameters}


LLAMA3 = rope(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
VARIANTS = {
    "OPT": (hf.OPTConfig, SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "OPT, norms behind, projected": (
        hf.OPTConfig, SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "OPT without biases, GELU": (
        hf.OPTConfig,
        SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "enable_bias": False, "activation_function": "gelu"},
    ),
    "Llama": (hf.LlamaConfig, GATED),
    "Llama, tied, no groups": (hf.LlamaConfig, GATED | {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "Llama, biases": (hf.LlamaConfig, GATED | {"attention_bias": True, "mlp_bias": True}),
    "Llama, head_dim": (hf.LlamaConfig, GATED | {"head_dim": 24}),
    "Llama, linear": (hf.LlamaConfig, GATED | rope(rope_type="linear", factor=4.0)),
    "Llama, llama3": (hf.LlamaConfig, GATED | LLAMA3),
    "Llama, yarn": (hf.LlamaConfig, GATED | YARN),
    "Llama, yarn, factors": (
        hf.LlamaConfig,
        GATED | rope(**YARN["rope_parameters"], beta_fast=16, beta_slow=2, truncate=False, attention_factor=0.9),
    ),
    "Mistral": (hf.MistralConfig, GATED | {"sliding_window": None}),
    "Qwen2": (hf.Qwen2Config, GATED | {"attention_bias": True}),  # which changes nothing
    "Qwen3": (hf.Qwen3Config, GATED | {"head_dim": 16, "tie_word_embeddings": True}),
    "Phi-3": (hf.Phi3Config, GATED),
    "Phi-3, partial rotary": (hf.Phi3Config, GATED | rope(rope_type="default", partial_rotary_factor=0.5)),
    "Falcon 7B's layout": (hf.FalconConfig, SMALL | {"multi_query": True}),
    "Falcon 40B's layout": (hf.FalconConfig, SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon 11B's layout": (
        hf.FalconConfig,
        SMALL
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 40},
    ),
    "Falcon, one after the other, biases": (
        hf.FalconConfig,
        SMALL | {"multi_query": False, "parallel_attn": False, "bias": True, "tie_word_embeddings": False},
    ),
}  # fmt: skip


def save(folder, config_class, settings, dtype=torch.float32, **how):
    """A random checkpoint; its matrices are drawn large, so that a text depends on every token of its prompt."""
    model = hf.AutoModelForCausalLM.from_config(config_class(**settings)).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(float("bias" not in name), 0.15, generator=rng)
            elif "embed" in name or "lm_head" in name:
                weight.normal_(0, 0.15 if model.config.model_type == "falcon" else 0.4, generator=rng)
            else:
                weight.normal_(0, 3 / weight.shape[1] ** 0.5, generator=rng)
    model.to(dtype).save_pretrained(folder, **how)
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("variant")
    return save(folder, *request.param), folder


TOKEN_IDS = [(5 * i * i + 3 * i + 1) % VOCAB for i in range(100)]


def logits_of(theirs):
    with torch.no_grad():
        return theirs(torch.tensor([TOKEN_IDS])).logits[0].numpy()


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_logits_are_those_of_transformers(both, arrays):
    theirs, folder = both
    loaded = load_model(folder)
    model = place_model(loaded.architecture, loaded.weights, arrays)
    asarray = np.asarray if arrays == "numpy" else torch.tensor
    hidden = model.forward(asarray(TOKEN_IDS), asarray(range(len(TOKEN_IDS))), dense_attend)
    expected = logits_of(theirs)
    assert expected.std() > 0.1, "this test compares next to nothing: all logits are about the same"
    np.testing.assert_allclose(
        np.asarray(model.logits(hidden)), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def test_64_greedy_tokens_are_those_of_transformers(both):
    theirs, folder = both
    prompt = TOKEN_IDS[:12]
    expected = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=64, min_new_tokens=64, pad_token_id=0
    )[0, len(prompt) :].tolist()
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    assert len(set(expected)) > 8, "this test compares a text of hardly any different tokens"
    for arrays in "numpy", "torch":
        llm = LLM(folder, num_blocks=16, block_size=8, arrays=arrays)
        assert llm.generate(prompt, params)[0].outputs[0].token_ids == expected, arrays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_several_files_and_of_two_bytes(tmp_path, dtype):
    config, settings = VARIANTS["Llama"]
    theirs = save(tmp_path, config, settings, dtype, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load_model(tmp_path)
    model = place_model(loaded.architecture, loaded.weights, "numpy")
    hidden = model.forward(np.array(TOKEN_IDS), np.arange(len(TOKEN_IDS)), dense_attend)
    np.testing.assert_allclose(model.logits(hidden), logits_of(theirs), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mamba"}, "gpt2, .*llama"),
        ({"rope_parameters": {"rope_type": "spiral", "factor": 2.0}}, "'spiral'.*default, linear"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "makes no sense"),
        ({"rope_parameters": [1, 2]}, "should be an object"),
        ({"rope_parameters": {"rope_theta": -500.0}}, "rope_theta is -500.0, which is not above 0"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta is nan"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5, which is no share"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "transformers ignores.* vLLM heeds",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "whole heads"),
        ({"rope.dimension_count": 9}, "9 of the 8 numbers of a head are to be turned"),
        ({"rope.dimension_count": "all"}, "makes no sense"),
        ({"layer_types": True}, "layer_types are True; it should be a list"),
        ({"layer_types": ["linear_attention", FULL]}, "'linear_attention', but minipage computes only full_attention"),
        ({"layer_types": [FULL] * 3}, "layer_types are 3, but it has 2 layers"),
        ({"sliding_window": "9"}, "sliding_window is '9', no number of tokens"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers is 'all'"),
        ({"partial_rotary_factor": -0.5}, "partial_rotary_factor is -0.5, which is no share"),
        ({"hidden_act": "swiglu-oai"}, "computes only 'silu'"),
        ({"num_key_value_heads": 3}, "cannot be"),
        ({"head_dim": 10**9}, "heads have 1,000,000,000 numbers"),  # each two of which have a frequency
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),  # whose weights nobody can list
    ],
)
def test_a_config_that_is_not_computed_is_a_sentence(tmp_path, change, words):
    config, settings = VARIANTS["Llama"]
    save(tmp_path, config, settings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path)


def test_a_llama_that_does_not_say_so_is_no_gpt2(tmp_path):
    """Of which some of the sizes have the same names; a GPT-2 is known by one of its own."""
    settings = GATED | {"rms_norm_eps": 1e-6}
    with pytest.raises(ModelError, match="model_type = None"):
        read_architecture(tmp_path, settings)
    gpt2 = {"vocab_size": 9, "n_positions": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    assert read_architecture(tmp_path, gpt2).num_heads == 2


STRETCHED = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("overrides", "same_as"),
    [
        ({"rope_theta": 500.0}, STRETCHED | {"factor": 2.0, "rope_theta": 500.0}),
        ({"rope_scaling": STRETCHED}, STRETCHED | {"rope_theta": 9_000.0}),
        ({"rope_scaling": STRETCHED, "rope_theta": 500.0}, STRETCHED | {"rope_theta": 500.0}),
        ({"rope_scaling": None}, {"rope_theta": 9_000.0}),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 7.0}, {"rope_theta": 500.0}),
    ],
    ids=str,
)
def test_overrides_by_the_names_of_before_count_as_well(tmp_path, overrides, same_as):
    config, settings = VARIANTS["Llama"]
    save(
        tmp_path, config, settings | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9_000.0}}
    )
    changed, expected = (load_model(tmp_path, hf_overrides=o) for o in (overrides, {"rope_parameters": same_as}))
    assert changed.architecture.rotary == expected.architecture.rotary != load_model(tmp_path).architecture.rotary


def test_a_scaling_that_is_written_into_todays_config_as_models_cards_say_counts(tmp_path):
    """ "Add this to config.json": a rope_scaling, beside the rope_parameters that transformers 5 has saved."""
    config, settings = VARIANTS["Llama"]
    save(tmp_path, config, settings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_scaling": YARN["rope_parameters"]}))
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    loaded = load_model(tmp_path)
    model = place_model(loaded.architecture, loaded.weights, "numpy")
    hidden = model.forward(np.array(TOKEN_IDS), np.arange(len(TOKEN_IDS)), dense_attend)
    expected = logits_of(theirs)
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert loaded.architecture.rotary.magnitude > 1
    overridden = load_model(tmp_path, hf_overrides={"rope_parameters": {"rope_theta": 10_000.0}}).architecture
    assert overridden.rotary.magnitude == 1


@pytest.mark.parametrize(
    ("config", "settings", "windows"),
    [
        (hf.MistralConfig, {"sliding_window": 40}, (40, 40, 40)),
        (hf.MistralConfig, {"sliding_window": None}, ()),
        (hf.MistralConfig, {"sliding_window": CONTEXT}, ()),
        (hf.Phi3Config, {"sliding_window": 40}, (40, 40, 40)),
        (hf.Qwen2Config, {"sliding_window": 40}, ()),
        (hf.Qwen2Config, {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 2}, (None, None, 40)),
        (hf.Qwen3Config, {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 0}, (40, 40, 40)),
        (hf.Qwen3Config, {"sliding_window": 40, "layer_types": [SLIDING, FULL, SLIDING]}, ()),
        (
            hf.Qwen3Config,
            {"sliding_window": 9, "use_sliding_window": True, "layer_types": [SLIDING, FULL, SLIDING]},
            (9, None, 9),
        ),
    ],
)
def test_which_layers_have_a_window(config, settings, windows):
    said = config(**(GATED | {"num_hidden_layers": 3} | settings)).to_dict()
    for each in said, {name: value for name, value in said.items() if name != "layer_types" or SLIDING in str(value)}:
        assert Llama.of(each).kv.windows == windows
        assert Llama.of(each).max_model_len == CONTEXT


@pytest.mark.parametrize("config", [hf.MistralConfig, hf.Qwen2Config, hf.Qwen3Config, hf.LlamaConfig, hf.Phi3Config])
def test_a_window_that_is_left_out_is_that_of_transformers(config):
    more = {"max_position_embeddings": 8192, "num_hidden_layers": 3, "use_sliding_window": True, "max_window_layers": 1}
    theirs = config(**(GATED | more))
    settings = {name: value for name, value in theirs.to_dict().items() if "sliding_window" != name != "layer_types"}
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", [SLIDING] * 3)
    expected = tuple(window if kind == SLIDING else None for kind in kinds) if window else ()
    assert Llama.of(settings).kv.windows == expected


def test_a_kind_for_each_layer_or_the_sizes_are_wrong():
    settings = GATED | {"model_type": "qwen3", "sliding_window": 9, "layer_types": [SLIDING], "rms_norm_eps": 1e-6}
    with pytest.raises(ModelError, match="1, but it has 2 layers"):
        Llama.of(settings)


@pytest.mark.parametrize(("name", "more"), [("Llama", {}), ("Qwen3", {}), ("Falcon 7B's layout", {"alibi": False})])
def test_of_a_share_that_transformers_ignores_whole_heads_are_turned_if_one_says_so(tmp_path, name, more):
    """In a Llama of transformers 5 a share counts only where it cannot be computed: with a scaling."""
    config, settings = VARIANTS[name]
    theirs = save(tmp_path, config, settings | more | rope(rope_type="default", partial_rotary_factor=0.5))
    with pytest.raises(ModelError, match=r"partial_rotary_factor is 0.5.*hf_overrides"):
        load_model(tmp_path)
    loaded = load_model(tmp_path, hf_overrides={"partial_rotary_factor": 1.0})
    model = place_model(loaded.architecture, loaded.weights, "numpy")
    hidden = model.forward(np.array(TOKEN_IDS), np.arange(len(TOKEN_IDS)), dense_attend)
    expected = logits_of(theirs)
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_number_of_turned_numbers_is_as_good_as_a_share():
    assert read_rotary({"rope.dimension_count": 4}, 16, may_be_partial=False) == read_rotary(
        {"partial_rotary_factor": 0.25}, 16
    )
    assert len(read_rotary({}, 16).frequencies) == 8
