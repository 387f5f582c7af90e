"""Files beside tokenizer.json count as in transformers, and so do GPT-2's older vocab.json and merges.txt."""

import json

import pytest
from engine.checkpoints import save_gpt2, save_tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer

from minipage.engine.llm import LLM
from minipage.errors import ModelError
from minipage.model.checkpoint import load_model
from minipage.model.tokenizer_files import read_tokenizer
from minipage.sampling import SamplingParams

TEXTS = ["Every wave", " the  café,\n£5 你好🙂", "the<|endoftext|> sea", "a [PAD]b <s> c", "", "# #", "\u2028\x85 x"]


@pytest.fixture
def folder(tmp_path):
    """Only vocab.json and merges.txt."""
    tokenizer = save_tokenizer(tmp_path)
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    return tmp_path


def write(folder, file, content):
    (folder / file).write_text(json.dumps(content))


def described(content, special=True, **settings):
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": content, "special": special} | plain | settings


OTHERS = {
    "nothing else": {},
    "an added token": {"added_tokens.json": {"<s>": 301, "[PAD]": 300}},
    "one of them special": {
        "added_tokens.json": {"<s>": 301, "[PAD]": 300},
        "special_tokens_map.json": {"pad_token": "[PAD]"},
    },
    "special tokens without ids": {
        "special_tokens_map.json": {"eos_token": {"content": "<s>"}, "additional_special_tokens": ["[PAD]"]}
    },
    "in another order": {"special_tokens_map.json": {"pad_token": "[PAD]", "eos_token": "<s>", "image_token": "wave"}},
    "described in the settings": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": described("<|endoftext|>"),
                "301": described("[PAD]", lstrip=True),
                "300": described("<s>", special=False),
            },
            "pad_token": "[PAD]",
            "add_prefix_space": True,
            "model_max_length": 2,
        }
    },
    "a known token described in another way": {
        "tokenizer_config.json": {"added_tokens_decoder": {"0": described("<|endoftext|>", rstrip=True)}}
    },
    "what is named is special, whatever is described": {
        "tokenizer_config.json": {"added_tokens_decoder": {"300": described("<s>", special=False)}, "eos_token": "<s>"}
    },
    "what once was special stays so": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"0": described("<|endoftext|>", special=False)},
            **dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<s>"),
        }
    },
    "other files name all that <|endoftext|> was": {
        "special_tokens_map.json": dict.fromkeys(["bos_token", "eos_token", "unk_token"], "wave")
    },
    "where tokens are described, older files do not count": {
        "tokenizer_config.json": {"added_tokens_decoder": {"0": described("<|endoftext|>")}},
        "added_tokens.json": {"<s>": 300},
        "special_tokens_map.json": {"pad_token": "[PAD]"},
    },
    "each text begins with a token, as OPT's": {
        "tokenizer_config.json": {"add_bos_token": True, "bos_token": described("</s>") | {"__type": "AddedToken"}}
    },
    "and ends with one": {"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True, "eos_token": "<s>"}},
    "begins with none": {"tokenizer_config.json": {"add_bos_token": True, "bos_token": None}},
    "begins with what another file says": {
        "tokenizer_config.json": {"add_bos_token": True},
        "special_tokens_map.json": {"bos_token": "<s>"},
    },
    "begins with what the other file says": {
        "tokenizer_config.json": {"add_bos_token": True, "bos_token": "</s>"},
        "special_tokens_map.json": {"bos_token": {"content": "<s>"}},
    },
}


@pytest.mark.parametrize("make", [GPT2Tokenizer, AutoTokenizer], ids=["older files", "tokenizer.json"])
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_they_make_the_tokenizer_that_transformers_makes(folder, others, make):
    if make is AutoTokenizer:
        save_tokenizer(folder)
        for file in "vocab.json", "merges.txt":
            (folder / file).unlink()
    for file, content in others.items():
        write(folder, file, content)
    ours, theirs = read_tokenizer(folder), make.from_pretrained(str(folder)).backend_tokenizer
    assert ours is not None
    for text in TEXTS:
        token_ids = theirs.encode(text).ids
        assert ours.encode(text) == token_ids, f"{text!r}: {theirs.encode(text).tokens}"
        for skip in (True, False):
            assert ours.decode(token_ids, skip) == theirs.decode(token_ids, skip_special_tokens=skip)
        silent = [token_id for token_id in set(token_ids) if not theirs.decode([token_id], skip_special_tokens=True)]
        assert all(ours.is_silent(token_id, True) for token_id in silent)


def test_a_model_with_these_files_reads_and_writes_texts(folder):
    save_gpt2(folder, seed=1, vocab_size=300, eos_token_id=0)
    output = LLM(folder, num_blocks=8, attention="reference").generate("Every wave", SamplingParams(max_tokens=3))[0]
    assert output.prompt == "Every wave" and output.prompt_token_ids == read_tokenizer(folder).encode("Every wave")


def test_tokenizer_json_counts_before_all_others(folder):
    save_tokenizer(folder, vocab_size=257)
    assert read_tokenizer(folder).base_vocab_size == 257


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_one_without_the_other_is_no_tokenizer(folder, file):
    (folder / file).unlink()
    assert read_tokenizer(folder) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_the_file_with_the_tokens_of_another_model_is_named(folder, file):
    save_gpt2(folder, vocab_size=60, eos_token_id=0)
    if file == "tokenizer.json":
        save_tokenizer(folder)
    with pytest.raises(ModelError, match=rf"{file} knows \d+ tokens.*the model's own {file}"):
        load_model(folder)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_of_another_class_than_gpt2_it_is_not_guessed(folder, name):
    """Qwen's older files have the same names, but its texts are cut in another way."""
    write(folder, "tokenizer_config.json", {"tokenizer_class": name})
    assert (read_tokenizer(folder) is None) == (name == "Qwen2Tokenizer")


def test_null_describes_no_tokens(folder):
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": None})
    assert read_tokenizer(folder).vocab_size == 300


def test_lines_may_end_as_on_windows(folder):
    expected = read_tokenizer(folder).encode(TEXTS[1])
    merges = folder / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert read_tokenizer(folder).encode(TEXTS[1]) == expected


DAMAGED = {
    "no JSON": ("vocab.json", b"{"),
    "a list": ("vocab.json", b"[]"),
    "ids that are none": ("vocab.json", b'{"a": "b"}'),
    "too few words": ("vocab.json", b'{"a": 0}'),
    "a pointer for words": ("vocab.json", b"version https://git-lfs.github.com/spec/v1\n"),
    "a pointer for merges": ("merges.txt", b"version https://git-lfs.github.com/spec/v1\noid 0\nsize 1\n"),
    "a web page": ("merges.txt", b"<html>404</html>"),
    "no UTF-8": ("merges.txt", b"\xff\xfe \xff"),
    "merges of three": ("merges.txt", b"#version: 0.2\na b c\n"),
    "unknown letters": ("merges.txt", "你 好\n".encode()),
    "added ids that are none": ("added_tokens.json", b'{"[PAD]": "x"}'),
    "an added id that leaves a gap": ("added_tokens.json", b'{"[PAD]": 310}'),
    "an added id of another token": ("added_tokens.json", b'{"[PAD]": 5}'),
    "added tokens without a name": ("tokenizer_config.json", b'{"added_tokens_decoder": {"300": {}}}'),
    "added tokens in a list": ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
    "no map": ("special_tokens_map.json", b"null"),
}


@pytest.mark.parametrize(("file", "content"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=file) as error:
        read_tokenizer(folder)
    assert "Fetch" in str(error.value) or "fetch" in str(error.value)
