"""GGUF files: the weights and settings that a model was written from come back, and damage is a sentence."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_writing import SIZES, random_model, tensors_of, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from minipage.errors import ModelError
from minipage.model import gguf_files
from minipage.model.gguf_files import packaged_model, read_gguf
from minipage.model.gguf_names import halves_from_pairs

TOKEN_IDS = torch.arange(7, 47)[None]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5e5}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 5e5,
}
MODELS = {
    "llama": ("llama", {}),
    "llama with an output matrix": ("llama", {"tie_word_embeddings": False}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with small heads": ("llama", {"head_dim": 32, "rms_norm_eps": 1e-6}),
    "llama stretched by yarn": ("llama", {"rope_parameters": YARN}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 32768}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gpt2": ("gpt2", {}),
}


def scaling_of(model):
    """What the converter writes of a model's rotation: entries, and the tensor of factors."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "yarn":
        names = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
        return {f"ARCH.rope.scaling.{name}": value for name, value in names.items()}, {}
    if parameters.get("rope_type") == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()  # by transformers, not by the formula that is tested
        plain = 5e5 ** (-np.arange(0, len(scaled)) / len(scaled))
        return {}, {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    return {}, {}


def written(case, path):
    """(a random model of a kind, in transformers; the GGUF file that it is written to, with its scaling)."""
    architecture, settings = MODELS[case]
    model = random_model(architecture, **settings)
    entries, tensors = scaling_of(model)
    return model, write_gguf(path, model, extra_tensors=tensors, **entries)


def rebuilt(loaded):
    """transformers' model of the settings and weights that were read."""
    settings = {name: value for name, value in loaded.config.items() if value is not None}
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config)
    state = {name: torch.from_numpy(np.array(loaded.weights[name])) for name in loaded.weights}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if loaded.config["tie_word_embeddings"] else set())
    model.tie_weights()
    return model.eval()


@pytest.fixture(scope="module")
def llama():
    return random_model("llama")


@pytest.mark.parametrize("case", MODELS)
def test_a_model_comes_back_as_it_was_written(tmp_path, case):
    model, path = written(case, tmp_path / "model.gguf")
    loaded = read_gguf(path)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(loaded)(TOKEN_IDS).logits, model(TOKEN_IDS).logits, rtol=1e-6, atol=1e-6)
    for name, weight in model.state_dict().items():
        if name in loaded.weights:
            assert loaded.weights[name].dtype == np.float32 and loaded.weights[name].flags.c_contiguous
            assert loaded.weights.shape(name) == tuple(weight.shape)
            np.testing.assert_array_equal(loaded.weights[name], weight.numpy(), err_msg=name)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K], ids=str)
def test_quantized_weights_are_what_the_package_makes_of_them(tmp_path, llama, kind):
    path = write_gguf(tmp_path / "model.gguf", llama, kind)
    loaded = read_gguf(path)
    theirs = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    for ours, name in loaded.weights.names.items():
        heads = 4 if "attn_q." in name else 2
        is_rotated = "attn_q." in name or "attn_k." in name
        expected = halves_from_pairs(theirs[name], heads) if is_rotated else theirs[name]
        np.testing.assert_array_equal(loaded.weights[ours], expected, err_msg=name)


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q4_K], ids=str)
def test_transformers_reads_the_same_from_the_file(tmp_path, llama, kind):
    path = write_gguf(tmp_path / "model.gguf", llama, kind)
    same_as_transformers(path, read_gguf(path), llama)


def same_as_transformers(path, loaded, model):
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    assert theirs["tensors"].keys() == loaded.weights.keys()
    for name, tensor in theirs["tensors"].items():
        torch.testing.assert_close(torch.from_numpy(loaded.weights[name]), tensor, rtol=1e-6, atol=1e-7, msg=name)
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rope_theta", "rms_norm_eps"):
        assert loaded.config[name] == pytest.approx(theirs["config"][name])


def test_settings_are_those_of_a_config_json(tmp_path, llama):
    config = read_gguf(write_gguf(tmp_path / "model.gguf", llama, **{"tokenizer.ggml.eos_token_id": 3})).config
    expected = LlamaConfig(**SIZES, tie_word_embeddings=True).to_dict()
    others = "model_type rms_norm_eps tie_word_embeddings head_dim attention_bias mlp_bias hidden_act".split()
    for name in [*SIZES, *others]:
        assert config[name] == expected[name], name
    assert config["rope_theta"] == 10_000.0 and config["rope_scaling"] is None
    assert config["eos_token_id"] == [3]


@pytest.mark.parametrize(
    ("entries", "factor"),
    [({"factor": 4.0}, 4.0), ({"type": "linear", "factor": 4.0}, 4.0), ({"type": "none", "factor": 4.0}, None)],
)
def test_a_factor_without_a_kind_is_linear_as_in_llama_cpp(tmp_path, llama, entries, factor):
    said = {f"llama.rope.scaling.{name}": value for name, value in entries.items()}
    older = {"llama.rope.scale_linear": 4.0} if entries == {"factor": 4.0} else said
    for each in said, older:
        scaling = read_gguf(write_gguf(tmp_path / "model.gguf", llama, **each)).config["rope_scaling"]
        assert scaling == (factor and {"rope_type": "linear", "factor": factor})


def test_weights_are_read_one_at_a_time(tmp_path, llama):
    weights = read_gguf(write_gguf(tmp_path / "model.gguf", llama, Kind.Q8_0)).weights
    largest = max(np.prod(weights.shape(name)) for name in weights) * 4
    total = sum(np.prod(weights.shape(name)) for name in weights) * 4
    tracemalloc.start()
    for name in weights:
        weights[name]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * largest < total


# ---- What is wrong with a file is said in a sentence.


def test_a_file_that_ends_too_early(tmp_path, llama):
    whole = write_gguf(tmp_path / "model.gguf", llama, tokenizer={"tokenizer.ggml.tokens": ["a", "b"]}).read_bytes()
    path = tmp_path / "part.gguf"
    data_begins = min(place.offset for place in read_gguf(tmp_path / "model.gguf").weights.places.values())
    for length in [*range(1, data_begins, 97), data_begins, data_begins + 1, len(whole) // 2, len(whole) - 64]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"part\.gguf.*Fetch it again"):
            read_gguf(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not a model at all, but a text", "does not begin with the letters GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "ends before"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 2**62, 0) + b"\xff" * 64, "type that is not known"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**62), "ends before"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"a", 9) + struct.pack("<IQ", 9, 1) * 5000, "recursion"),
    ],
)
def test_a_file_that_is_no_gguf(tmp_path, content, reason):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        read_gguf(path)
    with pytest.raises(ModelError, match=r"No such file"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(ModelError):
        read_gguf(tmp_path)


WRONG = {
    "another architecture": ({"general.architecture": "mamba"}, "'mamba'.*llama, qwen2, qwen3, gpt2"),
    "a mixture of experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "a part of a model": ({"split.count": 3}, "--merge"),
    "a scaling that nobody knows": ({"llama.rope.scaling.type": "spiral"}, "'spiral'.*linear and plain yarn"),
    "a part of each head": ({"llama.rope.dimension_count": 32}, "turns 32 of the 64 numbers"),
    "no size": ({"llama.embedding_length": 0}, "embedding_length = 0"),
    "more layers than it has": ({"llama.block_count": 3}, r"lacks 9 weights, 'blk\.2"),
    "other heads": ({"llama.attention.head_count": 7}, "7 heads"),
    "heads of nothing": ({"llama.attention.key_length": 0, "llama.rope.dimension_count": 4}, "key_length = 0"),
    "a text for a number": ({"split.count": "many"}, "makes no sense"),
    "texts for token ids": ({"tokenizer.ggml.eos_token_id": "x", "tokenizer.ggml.eot_token_id": 2}, "makes no sense"),
    "another alignment": ({"general.alignment": 0}, "alignment is 0"),
    "an unknown tokenizer": (
        {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a"]},
        "tokenizer is of the kind 'rwkv'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_cannot_be_served(tmp_path, monkeypatch, llama, case):
    entries, reason = WRONG[case]
    path = tmp_path / "model.gguf"
    if architecture := entries.get("general.architecture"):
        monkeypatch.setattr(llama.config, "model_type", architecture)
        entries = {}
    write_gguf(path, llama, **entries)
    with pytest.raises(ModelError, match=reason):
        loaded = read_gguf(path)
        loaded.weights["model.layers.0.self_attn.q_proj.weight"]


def test_missing_and_unknown_weights(tmp_path, llama):
    path = write_gguf(tmp_path / "model.gguf", llama, drop=["blk.1.ffn_up.weight", "blk.1.attn_q.weight"])
    with pytest.raises(ModelError, match=r"lacks 2 weights, 'blk\.1\.attn_q\.weight' first"):
        read_gguf(path)
    strange = {"blk.0.attn_rel_b.weight": np.zeros((2, 32), np.float32)}
    path = write_gguf(tmp_path / "model.gguf", llama, extra_tensors=strange)
    with pytest.raises(ModelError, match=r"cannot place in a llama, 'blk\.0\.attn_rel_b\.weight'"):
        read_gguf(path)
    strange = {"rope_freqs.weight": np.linspace(1, 9, 32, dtype=np.float32)}
    path = write_gguf(tmp_path / "model.gguf", llama, extra_tensors=strange)
    with pytest.raises(ModelError, match="rope_freqs"):
        read_gguf(path)


@pytest.mark.parametrize("type_id", [4, 27, 4000])  # a quantization that is gone, whole numbers, and nothing at all
def test_an_unknown_quantization(tmp_path, llama, type_id):
    path = write_gguf(tmp_path / "model.gguf", llama)
    content = path.read_bytes()
    name = b"blk.0.attn_norm.weight" + struct.pack("<IQ", 1, 256)
    assert content.count(name + struct.pack("<I", 0)) == 1
    path.write_bytes(content.replace(name + struct.pack("<I", 0), name + struct.pack("<I", type_id)))
    with pytest.raises(ModelError, match=r"in a form that cannot be read.*Q8_0"):
        read_gguf(path)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch, llama):
    path = write_gguf(tmp_path / "model.gguf", llama)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install .minipage\[gguf\]"):
        read_gguf(path)


# ---- The model that comes as a Python package.


def test_a_packaged_model_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(gguf_files.PACKAGED, "nothing", "a-package-that-nobody-has")
    with pytest.raises(ModelError, match=r"'nothing' is not installed.* --no-deps a-package-that-nobody-has"):
        packaged_model("nothing")
    assert packaged_model("gpt2") is None  # none of ours: a folder, or of the hub


def test_a_package_whose_model_is_gone(tmp_path, monkeypatch):
    info = tmp_path / "emptied-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: emptied\nVersion: 1.0\n")
    (info / "RECORD").write_text("emptied/model.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(gguf_files.PACKAGED, "nothing", "emptied")
    with pytest.raises(ModelError, match="--force-reinstall --no-deps emptied"):
        packaged_model("nothing")
    (tmp_path / "emptied").mkdir()
    (tmp_path / "emptied" / "model.gguf").touch()
    assert packaged_model("nothing") == tmp_path / "emptied" / "model.gguf"


@pytest.fixture(scope="module")
def smollm2():
    try:
        return packaged_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))


def test_smollm2_is_what_its_makers_say(smollm2):
    loaded = read_gguf(smollm2)
    assert len(loaded.weights) == 272 and loaded.config["hidden_size"] == 576 and loaded.config["rope_theta"] == 1e5
    assert loaded.config["eos_token_id"] == [2] and loaded.tokenizer.token(2) == "<|im_end|>"
    assert sum(np.prod(loaded.weights.shape(name)) for name in loaded.weights) == 134_515_008


@pytest.mark.slow
def test_smollm2_knows_where_paris_is(smollm2):
    loaded = read_gguf(smollm2)
    model = rebuilt(loaded)
    prompt = loaded.chat_template.render([{"role": "user", "content": "What is the capital of France?"}])
    token_ids = torch.tensor([loaded.tokenizer.encode(prompt)])
    answer = model.generate(token_ids, max_new_tokens=12, do_sample=False)[0, token_ids.shape[1] :]
    assert loaded.tokenizer.decode(answer.tolist()).startswith("The capital of France is Paris.")
    same_as_transformers(smollm2, loaded, model)


def test_a_tensor_of_the_writer_is_in_pairs():
    """The helper that writes files for these tests does as llama.cpp does: rows i and i + half become neighbours."""
    model = random_model("llama")
    written = dict(tensors_of(model))["blk.0.attn_q.weight"]
    original = model.state_dict()["model.layers.0.self_attn.q_proj.weight"].numpy()
    np.testing.assert_array_equal(written[:4], original[[0, 32, 1, 33]])
