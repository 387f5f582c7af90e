"""What published checkpoints say beside the usual: computed as transformers does, or refused, and never otherwise."""

import json

import numpy as np
import pytest
import transformers as hf
from model.test_architectures import CONTEXT, FULL, GATED, SLIDING, SMALL, TOKEN_IDS, logits_of, save
from safetensors.numpy import load_file, save_file

from minipage.errors import ModelError
from minipage.model.checkpoint import describe_model, load_model
from minipage.model.dense import dense_attend
from minipage.model.place import place_model

GPT2 = {"vocab_size": 97, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
MODELS = {
    "gpt2": (hf.GPT2Config, GPT2),
    "opt": (hf.OPTConfig, SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "llama": (hf.LlamaConfig, GATED),
    "mistral": (hf.MistralConfig, GATED | {"sliding_window": 20}),
    "phi3": (hf.Phi3Config, GATED | {"sliding_window": 20}),
    "qwen2": (hf.Qwen2Config, GATED),
    "falcon": (hf.FalconConfig, SMALL),
}


def published(folder, kind, change=(), without=()):
    """A checkpoint whose config.json was changed by hand, and transformers' model of it."""
    save(folder, *MODELS[kind])
    path = folder / "config.json"
    config = json.loads(path.read_text()) | dict(change)
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in without}))
    return hf.AutoModelForCausalLM.from_pretrained(folder).eval()


def assert_same_logits(folder, theirs, overrides=None):
    loaded = load_model(folder, hf_overrides=overrides)
    model = place_model(loaded.architecture, loaded.weights, "numpy")
    windows = model.kv.windows or (None,) * model.kv.num_layers
    ids, positions = np.array(TOKEN_IDS), np.arange(len(TOKEN_IDS))
    hidden = model.forward(ids, positions, lambda i, q, k, v: dense_attend(i, q, k, v, windows[i]))
    expected = logits_of(theirs)
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["llama", "mistral", "phi3", "qwen2"])
def test_an_epsilon_that_is_left_out_is_that_of_transformers(tmp_path, kind):
    assert_same_logits(tmp_path, published(tmp_path, kind, without=["rms_norm_eps"]))


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_whose_tokens_see_later_ones_is_refused(tmp_path, kind):
    """Embedding models are saved as such, and transformers computes them so."""
    published(tmp_path, kind, {"is_causal": False})
    with pytest.raises(ModelError, match="is_causal = False, but minipage computes only True"):
        load_model(tmp_path)


DISPUTED = {
    ("llama", "sliding_window"): {"sliding_window": 20},
    ("phi3", "layer_types"): {"layer_types": [FULL, SLIDING]},
    ("phi3", "layer_types", "all"): {"layer_types": [FULL, FULL]},
}


@pytest.mark.parametrize(("case", "change"), DISPUTED.items(), ids=map(str, DISPUTED))
def test_what_transformers_ignores_and_vllm_heeds_is_refused_until_somebody_says_what_is_meant(tmp_path, case, change):
    kind, name, *_ = case
    theirs = published(tmp_path, kind, change)
    with pytest.raises(
        ModelError, match=rf"its {name} is .*, which transformers ignores.* hf_overrides={{'{name}': None}}"
    ):
        load_model(tmp_path)
    assert_same_logits(tmp_path, theirs, {name: None})
    ignored = load_model(tmp_path, hf_overrides={name: None}).architecture.kv.windows
    heeded = load_model(tmp_path, hf_overrides=change).architecture.kv.windows
    assert heeded != ignored == describe_model(tmp_path, {name: None})[0].kv.windows


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", {"sliding_window": CONTEXT}),
        ("llama", {"sliding_window": 20, "layer_types": [FULL, FULL]}),
        ("mistral", {"sliding_window": None, "use_sliding_window": False}),
        ("mistral", {"use_sliding_window": False}),
        ("phi3", {"use_sliding_window": False}),
        ("mistral", {"layer_types": [FULL, SLIDING]}),
        ("phi3", {"layer_types": [SLIDING, SLIDING]}),
    ],
    ids=str,
)
def test_what_makes_no_difference_is_not_disputed(tmp_path, kind, change):
    assert_same_logits(tmp_path, published(tmp_path, kind, change))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("qwen2", {"full_attention": {"rope_type": "default", "rope_theta": 100.0}}, "are of full_attention, but"),
        (
            "phi3",
            {"type": "yarn", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            "is 'longrope', but minipage computes only",
        ),
    ],
)
def test_a_rotation_that_is_not_computed_is_not_taken_for_another(tmp_path, kind, change, words):
    save(tmp_path, *MODELS[kind])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": change}))
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path)


def test_a_number_of_turned_numbers_is_of_gguf_files_alone(tmp_path):
    assert_same_logits(tmp_path, published(tmp_path, "llama", {"rotary_dim": 4}))


def add_weights(folder, **shapes):
    path = folder / "model.safetensors"
    further = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(load_file(path) | further, path, {"format": "pt"})


LAYER, BLOCK = "model.layers.1.", "transformer.h.1."
FURTHER = {
    "a bias": ("llama", {LAYER + "self_attn.q_proj.bias": 32}),
    "a norm": ("llama", {LAYER + "self_attn.q_norm.weight": 8}),
    "an adapter": ("qwen2", {LAYER + "mlp.up_proj.lora_A.weight": (4, 32)}),
    "a fused bias": ("phi3", {LAYER + "self_attn.qkv_proj.bias": 64}),
    "cross-attention": ("gpt2", {BLOCK + "crossattention.c_proj.weight": (32, 32)}),
    "another layer": ("opt", {"model.decoder.layers.1.fc3.weight": (32, 64)}),
}


@pytest.mark.parametrize(("kind", "shapes"), FURTHER.values(), ids=FURTHER)
def test_weights_inside_a_block_that_would_not_be_computed_with_are_named(tmp_path, kind, shapes):
    """They were trained along, so that without them it is another model."""
    save(tmp_path, *MODELS[kind])
    add_weights(tmp_path, **shapes)
    (name,) = shapes
    with pytest.raises(ModelError, match="has 1 weight that minipage cannot place") as error:
        load_model(tmp_path)
    assert name.removeprefix("model.").removeprefix("transformer.").removeprefix("decoder.") in str(error.value)


def test_a_weight_under_two_names_is_not_chosen_by_chance(tmp_path):
    save(tmp_path, *MODELS["llama"])
    add_weights(tmp_path, **{"norm.weight": 32})
    with pytest.raises(ModelError, match=r"both '(model\.)?norm.weight' and '(model\.)?norm.weight'"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.layers.0.self_attn.k_scale"),
        ("llama", "model.layers.2.self_attn.q_proj.weight"),  # of layers that predict one token more
        ("llama", "score.weight"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "v_head.summary.weight"),
    ],
)
def test_what_is_no_weight_of_a_block_may_lie_beside_them(tmp_path, kind, name):
    theirs = save(tmp_path, *MODELS[kind])
    add_weights(tmp_path, **{name: 4})
    assert_same_logits(tmp_path, theirs)
