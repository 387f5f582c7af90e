"""Checkpoints as the world writes them are read, and whatever is wrong with one is said in a sentence."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from engine.checkpoints import EOS, VOCAB, save_gpt2, save_tokenizer
from safetensors.torch import load_file, save_file

from minipage.engine import LLM
from minipage.errors import InvalidRequestError, ModelError
from minipage.model.weights import load_model
from minipage.sampling import SamplingParams


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    save_gpt2(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the checkpoint that the test may spoil."""
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nobody here may ask the hub, unless the test says what it answers."""

    def snapshot_download(*args, **kwargs):
        pytest.fail(f"the hub was asked for {args}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def rewrite(folder, change):
    """Save the weights again as `change` makes them: name, tensor -> name, tensor, or None to leave one out."""
    tensors = load_file(folder / "model.safetensors")
    changed = [change(name, tensor) for name, tensor in tensors.items()]
    save_file(dict(pair for pair in changed if pair), folder / "model.safetensors")


def configure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def assert_same_weights(folder, original, dtype=torch.float32):
    ours, expected = load_model(folder).weights, load_model(original).weights
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        rounded = torch.tensor(expected[name]).to(dtype).float().numpy()
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, rounded, err_msg=name)


# ---- what is read


def test_a_folder_holds_config_weights_and_tokenizer(folder):
    save_tokenizer(folder, vocab_size=257)
    save_gpt2(folder, vocab_size=257, eos_token_id=256)
    model = load_model(folder)
    assert model.config.vocab_size == 257 and model.eos_token_ids == {256}
    assert model.tokenizer is not None and model.tokenizer.decode(model.tokenizer.encode("a café")) == "a café"
    assert load_model(str(folder)).config == model.config, "a folder may be given as a text, too"


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_names_may_or_may_not_begin_with_transformer(folder, original, prefix):
    rewrite(folder, lambda name, tensor: (prefix + name.removeprefix("transformer."), tensor))
    assert_same_weights(folder, original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_becomes_float32(folder, original, dtype):
    rewrite(folder, lambda name, tensor: (name, tensor.to(dtype)))
    assert_same_weights(folder, original, dtype)


def test_masks_stored_along_with_the_weights_are_ignored(folder, original):
    tensors = load_file(folder / "model.safetensors")
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8) for i in range(2)}
    masks |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    save_file(tensors | masks, folder / "model.safetensors")
    assert_same_weights(folder, original)


def shard(folder, num_files=3):
    """Split the one file as large checkpoints are split; returns the files' names."""
    tensors = list(load_file(folder / "model.safetensors").items())
    files = [f"model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]
    for i, file in enumerate(files):
        save_file(dict(tensors[i::num_files]), folder / file)
    weight_map = {name: files[i % num_files] for i, (name, _) in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return files


def test_weights_may_be_spread_over_several_files(folder, original):
    shard(folder)
    assert_same_weights(folder, original)


def test_an_untied_head_is_read_and_a_tied_one_needs_none(tmp_path, original):
    theirs = save_gpt2(tmp_path, tie_word_embeddings=False)
    np.testing.assert_array_equal(load_model(tmp_path).weights["lm_head.weight"], theirs.lm_head.weight.detach())
    assert "lm_head.weight" not in load_model(original).weights


@pytest.mark.parametrize(
    ("eos", "expected"), [(EOS, {EOS}), ([3, 5], {3, 5}), (None, set()), (50256, set()), ([3, 50256], {3})]
)
def test_the_end_of_text_may_be_one_token_or_several_or_none(folder, eos, expected):
    configure(folder, eos_token_id=eos)  # 50256 is GPT-2's own, which small vocabularies do not have
    assert load_model(folder).eos_token_ids == expected


# ---- where it is looked for


def test_a_name_on_the_hub_is_fetched_from_there(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert load_model("somebody/tiny-gpt2").config.vocab_size == VOCAB
    assert asked == ["somebody/tiny-gpt2"]


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("we are not online"),
        huggingface_hub.errors.HFValidationError("repo id must have letters"),
        ConnectionError("no route"),
        TimeoutError(),  # its message is empty
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_a_hub_name_ends_in_a_sentence(monkeypatch, error):
    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"no folder 'distilgpt2', and it could not be fetched.*Give a folder"):
        load_model("distilgpt2")


@pytest.mark.parametrize("path", ["./gpt2", "/no/such/folder", "~/no-such-gpt2", "../gpt2", "a/b/c", "models\\gpt2"])
def test_what_looks_like_a_path_never_goes_to_the_network(path):
    with pytest.raises(ModelError, match=r"there is no folder.*Give a folder with config.json"):
        load_model(path)


def test_a_file_is_not_a_model(folder):
    with pytest.raises(ModelError, match="there is no folder"):
        load_model(folder / "model.safetensors")


# ---- what is wrong with it


def assert_refused(folder, *words):
    """Loading raises ModelError, and its sentence has these words; so has that of the engine."""
    for load in (load_model, LLM):
        with pytest.raises(ModelError) as error:
            load(folder)
        for word in words:
            assert word in str(error.value), f"{word!r} is not in the message: {error.value}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(file.read_bytes()[:50]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"<html>404 Not Found</html>"),
        lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 999\n"),
        lambda file: file.unlink(),
    ],
    ids=["tail cut off", "header cut off", "empty", "a web page", "a Git LFS pointer", "missing"],
)
def test_damaged_weights_are_named(folder, damage):
    damage(folder / "model.safetensors")
    assert_refused(folder, "model.safetensors", "missing or damaged", "Fetch it again")


def test_a_missing_shard_is_named(folder):
    files = shard(folder)
    (folder / files[1]).unlink()
    assert_refused(folder, files[1], "missing or damaged")


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, "config.json", "cannot be read")


@pytest.mark.parametrize("text", ["", "{", "no json", '"text"', "[1, 2]", "null"])
def test_a_config_that_is_no_json_object_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert_refused(folder, "config.json")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_a_model_that_is_not_quite_a_gpt2_is_refused(folder, setting, value):
    configure(folder, **{setting: value})
    assert_refused(folder, setting, repr(value), "config.json")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_embd", None), ("n_embd", "wide"), ("n_layer", 0), ("n_head", 3), ("n_head", 0), ("n_positions", -1)],
)
def test_sizes_that_no_gpt2_has_are_refused(folder, setting, value):
    configure(folder, **{setting: value})
    assert_refused(folder, "config.json", "sizes")


@pytest.mark.parametrize("setting", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_config_without_a_size_is_refused(folder, setting):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != setting}))
    assert_refused(folder, "config.json", "lacks", setting)


def test_a_missing_weight_is_named(folder):
    rewrite(folder, lambda name, tensor: None if "h.1.mlp.c_fc.weight" in name else (name, tensor))
    assert_refused(folder, "h.1.mlp.c_fc.weight", "lacks 1 weights")


def test_a_weight_of_another_shape_is_named(folder):
    rewrite(folder, lambda name, tensor: (name, tensor.T.contiguous() if "h.0.attn.c_attn.weight" in name else tensor))
    assert_refused(folder, "h.0.attn.c_attn.weight", "(48, 16)", "(16, 48)")


@pytest.mark.parametrize("setting", ["n_embd", "n_positions", "vocab_size", "n_inner", "n_layer"])
def test_a_config_of_another_checkpoint_is_noticed(folder, setting):
    configure(folder, **{setting: 128})
    assert_refused(folder, str(folder))


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"model": {"type": "Nonsense"}}'])
def test_a_damaged_tokenizer_is_named(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert_refused(folder, "tokenizer.json", "not a readable tokenizer")


def test_the_tokenizer_of_another_model_is_noticed(folder):
    save_tokenizer(folder, vocab_size=300)
    assert_refused(folder, "tokenizer.json", "knows 300 tokens", "the model has 60", "another model")


def test_without_a_tokenizer_texts_are_refused_and_token_ids_work(folder):
    llm = LLM(folder, num_blocks=4)
    with pytest.raises(InvalidRequestError, match=r"no tokenizer.json; give the prompt as a list of token ids"):
        llm.generate("To be")
    output = llm.generate([1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True))[0].outputs[0]
    assert len(output.token_ids) == 2 and output.text == ""
