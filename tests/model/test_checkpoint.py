"""Checkpoints as the world writes them are read, and whatever is wrong with one is said in a sentence."""

import json
import pickle
import shlex
import shutil
import sys
import tracemalloc
from codecs import BOM_UTF8, BOM_UTF16_LE
from fnmatch import fnmatch

import huggingface_hub
import numpy as np
import pytest
import torch
from engine.checkpoints import EOS, VOCAB, save_gpt2, save_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from minipage.engine.llm import LLM
from minipage.errors import InvalidRequestError, ModelError, shown
from minipage.model.checkpoint import describe_model, load_model
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
    save_file(dict(pair for pair in changed if pair and pair[1] is not None), folder / "model.safetensors")


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
    assert model.architecture.vocab_size == 257 and model.eos_token_ids == {256}
    assert model.tokenizer is not None and model.tokenizer.decode(model.tokenizer.encode("a café")) == "a café"
    assert load_model(str(folder)).architecture == model.architecture, "a folder may be given as a text, too"


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


ENDS = [
    (EOS, {EOS}),
    ([3, 5], {3, 5}),
    (None, set()),
    (50256, set()),  # GPT-2's own, which small vocabularies do not have
    ([3, 50256], {3}),
    (-1, set()),
    ([-1, 0], {0}),
    ([None, 3], {3}),
    ("3", {3}),
    (["3", "</s>", ""], {3}),
    (True, set()),  # and not token 1
    ([False, True, 3.0, {}], set()),
    ([[3], [4, [5]]], {3, 4, 5}),
    ("9" * 5000, set()),
]


@pytest.mark.parametrize(("eos", "expected"), ENDS, ids=lambda value: str(value)[:20])
def test_the_end_of_text_may_be_one_token_or_several_or_none(folder, eos, expected):
    (folder / "generation_config.json").unlink()
    configure(folder, eos_token_id=eos)
    assert load_model(folder).eos_token_ids == expected
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    assert load_model(folder).eos_token_ids == expected | {7}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    configure(folder, eos_token_id=[7])
    assert load_model(folder).eos_token_ids == expected | {7}


def test_a_text_ends_where_transformers_ends_it(folder, original):
    theirs = AutoModelForCausalLM.from_pretrained(original)
    free = greedy(theirs, eos_token_id=[])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, free[3]]}))
    configure(folder, eos_token_id=None)
    with_end = greedy(AutoModelForCausalLM.from_pretrained(folder))
    assert with_end == free[: free.index(free[3]) + 1] == our_greedy(folder)


# ---- what transformers reads


def greedy(model, **options):
    prompt = torch.tensor([[1, 2, 3]])
    return model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, **options)[0, 3:].tolist()


def our_greedy(folder):
    params = SamplingParams(max_tokens=8, temperature=0)
    return LLM(folder, num_blocks=16, attention="reference").generate([1, 2, 3], params)[0].outputs[0].token_ids


def save_bare(folder):
    theirs = GPT2LMHeadModel.from_pretrained(folder)
    shutil.rmtree(folder)
    theirs.transformer.save_pretrained(folder)


def rename_sizes(folder):
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({names.get(name, name): value for name, value in settings.items()}))


def untie(folder):
    configure(folder, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["transformer.wte.weight"].flip(0)}, folder / "model.safetensors")


def old_index(folder):
    weight_map = {"transformer.wte.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


LAYOUTS = {
    "as saved": lambda folder: None,
    "saved without a head": save_bare,
    "several files": lambda folder: shard(folder),
    "a whole file beside an old index": old_index,
    "another model's weights beside an index": lambda folder: (
        shard(folder),
        save_file({"lm_head.weight": torch.ones(1)}, folder / "consolidated.safetensors"),
    ),
    "the usual names of sizes": rename_sizes,
    "two names of a size": lambda folder: configure(folder, n_embd=128, hidden_size=16),
    "null for a size that has another name": lambda folder: configure(folder, n_inner=None),
    "gelu_fast": lambda folder: configure(folder, activation_function="gelu_fast"),
    "gelu_pytorch_tanh": lambda folder: configure(folder, activation_function="gelu_pytorch_tanh"),
    "an untied head": untie,
    "another epsilon": lambda folder: configure(folder, layer_norm_epsilon=0.5),
    "no end token": lambda folder: configure(folder, eos_token_id=-1),
    "bf16": lambda folder: rewrite(folder, lambda name, tensor: (name, tensor.to(torch.bfloat16))),
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_as_the_world_has_it_means_what_it_means_to_transformers(folder, change):
    change(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    expected = greedy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert our_greedy(folder) == expected


# ---- how it is read


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Four megabytes."""
    folder = tmp_path_factory.mktemp("large")
    save_gpt2(folder, n_embd=128, n_layer=4, vocab_size=1000)
    return folder


def peak_of(action):
    """Bytes that Python and NumPy take, at most, while it runs."""
    action()
    tracemalloc.start()
    try:
        kept = action()
        return tracemalloc.get_traced_memory()[1], kept
    finally:
        tracemalloc.stop()


def test_weights_are_not_read_before_they_are_used(large):
    size = (large / "model.safetensors").stat().st_size
    peak, model = peak_of(lambda: load_model(large))
    assert peak < size / 4, f"{peak:,} bytes for a file of {size:,}"
    assert sum(weight.nbytes for weight in model.weights.values()) > 0.9 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_in_memory_once(large, tmp_path, dtype):
    folder = shutil.copytree(large, tmp_path / "model")
    rewrite(folder, lambda name, tensor: (name, tensor.to(dtype)))
    peak, weights = peak_of(lambda: list(load_model(folder).weights.values()))
    assert peak < sum(weight.nbytes for weight in weights) + 3 * max(weight.nbytes for weight in weights)


def test_what_is_written_into_weights_does_not_change_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    weights = dict(load_model(folder).weights.items())
    for weight in weights.values():
        weight *= 2
    assert (folder / "model.safetensors").read_bytes() == before
    np.testing.assert_array_equal(load_model(folder).weights["wte.weight"] * 2, weights["wte.weight"])


@pytest.mark.parametrize("num_odd", [1, 2, 3])
def test_weights_that_begin_at_an_odd_byte_are_aligned(folder, original, num_odd):
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip() + b" " * (num_odd - len(content[8 : 8 + size].rstrip()) % 4 + 4)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    assert_same_weights(folder, original)
    assert all(weight.flags.aligned for weight in load_model(folder).weights.values())


# ---- where it is looked for


def test_a_name_on_the_hub_is_fetched_from_there(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert load_model("somebody/tiny-gpt2").architecture.vocab_size == VOCAB
    assert asked == ["somebody/tiny-gpt2"]


def test_of_a_model_on_the_hub_all_is_fetched_that_is_read(folder, monkeypatch):
    patterns = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: patterns.extend(allow_patterns) or folder
    )
    load_model("somebody/tiny-gpt2")
    files = ["config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    files += ["model.safetensors.index.json", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"]
    files += ["special_tokens_map.json", "tokenizer_config.json"]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    others = ["pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.onnx"]
    assert [file for file in others if any(fnmatch(file, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("ask", [describe_model, lambda name: load_model(name, "dummy")], ids=["sizes", "dummy"])
def test_of_a_model_on_the_hub_no_weights_are_fetched_that_nobody_reads(folder, monkeypatch, ask):
    patterns = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: patterns.extend(allow_patterns) or folder
    )
    ask("somebody/tiny-gpt2")
    assert "config.json" in patterns and "tokenizer.json" in patterns
    assert [pattern for pattern in patterns if "safetensors" in pattern] == []


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


PATHS = [
    "./gpt2",
    "/no/such/folder",
    "~/no-such-gpt2",
    "../gpt2",
    "a/b/c",
    "models\\gpt2",
    "~no-such-user/gpt2",
    "a\0b",
]


@pytest.mark.parametrize("path", [*PATHS, "/" + "x" * 5000])
def test_what_looks_like_a_path_never_goes_to_the_network(path):
    with pytest.raises(ModelError, match=r"there is no folder.*Give a folder with config.json"):
        load_model(path)


def test_a_folder_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    """As it is for whoever is not root."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "model").mkdir()
    monkeypatch.setattr("os.stat", refuse)
    with pytest.raises(ModelError, match=r"model' cannot be read: Permission denied"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "model", [None, 5, b"gpt2", "", ["gpt2"], True, np.zeros(3), torch.zeros(3), 10**5000], ids=shown
)
def test_what_is_no_name_at_all_is_no_model(model):
    with pytest.raises(ModelError, match=r"model is .*Give a folder"):
        load_model(model)


def test_a_file_is_not_a_model(folder):
    with pytest.raises(ModelError, match=r"model\.safetensors' is a file, and no folder\. Give a folder"):
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


def test_a_pointer_of_git_lfs_is_called_one(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 999\n"
    for file in ("tokenizer.json", "model.safetensors", "generation_config.json", "config.json"):
        (folder / file).write_bytes(pointer)
        assert_refused(folder, file, "Git LFS", "git lfs pull")
        (folder / file).unlink()
        if file == "model.safetensors":
            save_gpt2(folder)


def test_pytorchs_own_format_takes_pytorch_or_the_command_that_converts_it(folder, original, monkeypatch):
    bins = folder.rename(folder.with_name("it's a $model"))
    tensors = load_file(bins / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]  # the same memory, as PyTorch keeps a tied head
    names = sorted(tensors)
    torch.save({name: tensors[name] for name in names[::2]}, bins / "pytorch_model-00001-of-00002.bin")
    torch.save(
        {name: tensors[name].mT.contiguous().mT if tensors[name].ndim == 2 else tensors[name] for name in names[1::2]},
        bins / "pytorch_model-00002-of-00002.bin",
    )
    (bins / "model.safetensors").unlink()
    expected = load_model(original).weights
    ours = load_model(bins).weights
    assert all(np.array_equal(ours[name], weight) for name, weight in expected.items())
    with monkeypatch.context() as without_torch:
        without_torch.setitem(sys.modules, "torch", None)
        assert_refused(bins, "pytorch_model.bin", "takes PyTorch", "convert it")
        with pytest.raises(ModelError) as error:
            load_model(bins)
    python, option, code = shlex.split(str(error.value).partition("installed: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    ours = load_model(bins).weights
    assert all(np.array_equal(ours[name], weight) for name, weight in expected.items())


def test_pytorchs_own_format_is_read_beside_safetensors_of_something_else(folder, original):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    expected = load_model(original).weights
    assert all(np.array_equal(load_model(folder).weights[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04", pickle.dumps(print)], ids=str)
def test_a_damaged_or_hostile_pickle_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert_refused(folder, "pytorch_model.bin", "damaged, or holds more than weights")


ODD_TENSORS = {
    "sparse": torch.ones(257, 16).to_sparse(),
    "conjugate": torch.ones(257, 16, dtype=torch.complex64).conj(),
    "without memory": torch.ones(257, 16, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


def save_pickled(folder, **others):
    tensors = load_file(folder / "model.safetensors") | others
    torch.save({7: torch.ones(3), (1, 2): "text", None: None} | tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("odd", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_an_odd_tensor_is_named_and_counts_only_if_it_is_a_weight(folder, odd, original):
    expected = load_model(original).weights
    save_pickled(folder, buffer=odd)
    ours = load_model(folder).weights
    assert ours.keys() == expected.keys() and all(np.array_equal(ours[name], expected[name]) for name in ours)
    save_gpt2(folder)
    save_pickled(folder, **{"transformer.wte.weight": odd})
    assert_refused(folder, "wte.weight")


def test_a_pickle_of_no_dict_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.ones(3)], folder / "pytorch_model.bin")
    assert_refused(folder, "pytorch_model.bin", "damaged, or holds more than weights")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 10_000])
def test_an_index_that_names_what_no_file_can_be_called_is_refused(folder, name):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    assert_refused(folder, "missing or damaged")


BAD_INDICES = {
    "a list": {"weight_map": ["model.safetensors"]},
    "no map": {"metadata": {}},
    "an empty map": {"weight_map": {}},
    "no names": {"weight_map": {"transformer.wte.weight": 3}},
    "a file outside": {"weight_map": {"transformer.wte.weight": "../model.safetensors"}},
    "an absolute path": {"weight_map": {"transformer.wte.weight": "/etc/passwd"}},
    "one file outside": {"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "sub/../../b.safetensors"}},
}


@pytest.mark.parametrize("index", BAD_INDICES.values(), ids=BAD_INDICES)
def test_an_index_that_is_none_is_named_and_nothing_outside_the_folder_is_read(folder, index):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "model.safetensors.index.json", "which file")


def test_a_missing_shard_is_named(folder):
    files = shard(folder)
    (folder / files[1]).unlink()
    assert_refused(folder, files[1], "missing or damaged")


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, "config.json", "so it is no folder of a model")


@pytest.mark.parametrize(
    ("file", "words"),
    [("a-Q8_0.gguf", "Give the file itself: .*a-Q8_0.gguf"), ("adapter_config.json", "merge_and_unload")],
)
def test_what_is_not_a_folder_of_a_model_but_may_be_taken_for_one(folder, file, words):
    (folder / file).write_text("{}")
    load_model(folder)
    (folder / "config.json").unlink()
    for read in load_model, describe_model:
        with pytest.raises(ModelError, match=words):
            read(folder)


@pytest.mark.parametrize("text", ["", "{", "no json", '"text"', "[1, 2]", "null", "[" * 100_000, "9" * 5000])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_config_that_is_no_json_object_is_named(folder, file, text):
    (folder / file).write_text(text)
    assert_refused(folder, f"/{file}")


@pytest.mark.parametrize("bytes_before", [BOM_UTF8, BOM_UTF16_LE])
def test_a_byte_order_mark_is_named(folder, bytes_before):
    path = folder / "config.json"
    path.write_bytes(bytes_before + path.read_bytes())
    assert_refused(folder, "config.json", "byte order mark", "without one")


@pytest.mark.parametrize("value", [None, "gelu_new", ["gelu_new"]])
def test_an_activation_function_that_is_no_name_is_refused(folder, value):
    configure(folder, activation_function=value)
    if value == "gelu_new":
        load_model(folder)
    else:
        assert_refused(folder, "activation_function", repr(value))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "mamba"),
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
    [
        *[("n_embd", None), ("n_embd", "wide"), ("n_layer", 0), ("n_head", 3), ("n_head", 0), ("n_positions", -1)],
        *[("n_embd", 16.5), ("n_layer", True), ("n_head", [2]), ("n_inner", "64"), ("n_inner", 0), ("n_inner", 64.0)],
        *[("layer_norm_epsilon", value) for value in ("1e-5", -1, True, [1e-5], 10**400)],
        *[("n_layer", 10**400), ("vocab_size", 10**4200), ("n_inner", 2**31)],
        ("hidden_size", "wide"),
    ],
)
def test_sizes_that_no_gpt2_has_are_refused(folder, setting, value):
    configure(folder, **{setting: value})
    assert_refused(folder, "config.json", "sizes")


@pytest.mark.parametrize("setting", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_config_without_a_size_is_refused(folder, setting):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != setting}))
    assert_refused(folder, "config.json", "lacks", setting)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("depth", [17, 700])
def test_an_end_of_text_in_lists_in_lists_in_lists_is_refused(folder, file, depth):
    config = json.loads((folder / "config.json").read_text())
    text = "[" * depth + "1" + "]" * depth
    (folder / file).write_text(json.dumps(config | {"eos_token_id": "it"}).replace('"it"', text))
    assert_refused(folder, file, "eos_token_id")


@pytest.mark.parametrize("setting", ["model_type", "n_embd"])
def test_a_setting_of_many_lists_in_lists_is_refused(folder, setting):
    config = json.loads((folder / "config.json").read_text())
    text = "[" * 700 + "]" * 700
    (folder / "config.json").write_text(json.dumps(config | {setting: "it"}).replace('"it"', text))
    assert_refused(folder, "config.json", setting)


@pytest.mark.parametrize("untied", [False, 0, None])
def test_whatever_is_not_true_says_that_the_head_is_untied(tmp_path, folder, untied):
    configure(folder, tie_word_embeddings=untied)
    assert_refused(folder, "lm_head.weight", "lacks 1 weight")


def test_a_missing_weight_is_named(folder):
    rewrite(folder, lambda name, tensor: None if "h.1.mlp.c_fc.weight" in name else (name, tensor))
    assert_refused(folder, "h.1.mlp.c_fc.weight", "lacks 1 weight")


def test_a_head_that_is_missing_is_not_guessed(folder):
    configure(folder, tie_word_embeddings=False)
    assert_refused(folder, "lm_head.weight", "lacks 1 weight")


def test_a_weight_of_another_type_is_named(folder):
    whole = "transformer.h.0.mlp.c_fc.weight"
    rewrite(folder, lambda name, tensor: (name, tensor.to(torch.int8) if name == whole else tensor))
    assert_refused(folder, "h.0.mlp.c_fc.weight", "I8", "F32")


@pytest.mark.parametrize("change", [lambda t: None, lambda t: t.to(torch.int8), lambda t: t.reshape(-1, 1)])
def test_weights_that_are_quantized_are_called_so(folder, change):
    """As GPTQ and AWQ leave them out for others, and bitsandbytes and FP8 store them in another type or shape."""
    configure(folder, quantization_config={"quant_method": "some"})
    load_model(folder)  # left from training, and the weights are whole
    whole = "transformer.h.0.mlp.c_fc.weight"
    rewrite(folder, lambda name, tensor: (name, tensor) if name != whole else (name, change(tensor)))
    assert_refused(folder, "weights that are quantized", "GGUF")


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


def test_a_token_added_without_a_row_of_weights_is_refused_only_where_it_is_used(folder):
    tokenizer = save_tokenizer(folder)
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_gpt2(folder, vocab_size=300, eos_token_id=0)
    llm = LLM(folder, num_blocks=4)
    assert len(llm.generate("Every wave", SamplingParams(max_tokens=2))) == 1
    with pytest.raises(InvalidRequestError, match="token id 300; this model has 0 to 299"):
        llm.generate("Every[PAD] wave")


def test_without_a_tokenizer_texts_are_refused_and_token_ids_work(folder):
    llm = LLM(folder, num_blocks=4)
    with pytest.raises(InvalidRequestError, match=r"no tokenizer.json; give the prompt as a list of token ids"):
        llm.generate("To be")
    output = llm.generate([1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True))[0].outputs[0]
    assert len(output.token_ids) == 2 and output.text == ""
