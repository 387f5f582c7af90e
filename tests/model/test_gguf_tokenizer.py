"""The tokenizer inside a GGUF file cuts texts as the tokenizer does that it was written from, and as transformers'."""

import json
import random

import pytest
from gguf_writing import random_model, write_gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from minipage.errors import ModelError
from minipage.model.gguf_files import packaged_model, read_gguf
from minipage.model.gguf_tokenizer import LLAMA3, QWEN2, SPLITS, special_tokens, tokenizer_of, word_cutter

LINES = """The sea is a wide grey field and nobody mows it. It's 12 or 345 miles; 1,234 in 2026.
Every wave begins again where another wave began,  and   every gull says so: HE'LL say 12 345.

Naïve café owners bring £5 to the señor; 你好 says one, 🙂 says the other. ²½ ٣٤ Ⅷ
"""
PIECES = [
    "The sea",
    " wave",
    "every",
    "'s",
    "'LL",
    "café",
    "cafe\u0301",
    "你好",
    "🙂",
    "1",
    "12",
    " 345",
    "2026",
    "²½",
    "٣٤",
]
PIECES += [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u200b", "\u00a0", "\x00", "--", "_", "▁"]
PIECES += ["<|im_start|>", "<|im_end|>", "<think>", "<s>", "</s>"]


def texts(number=300):
    rng = random.Random(0)
    return ["", " ", *("".join(rng.choices(PIECES, k=rng.randrange(1, 12))) for _ in range(number))]


def byte_level(pre_tokenizer):
    """A small tokenizer of the kind that GPT-2, Llama 3, Qwen and SmolLM have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([LINES], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def sentence_piece():
    """A small tokenizer of the kind that Llama 1 and 2 and Mistral have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([LINES.replace("🙂", "")], trainer)
    return tokenizer


def merges_of(tokenizer):
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def byte_level_entries(tokenizer, cut):
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [4 if t == "<think>" else 3 if t.startswith("<|") else 1 for t in tokens],
        "tokenizer.ggml.merges": merges_of(tokenizer),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def sentence_piece_entries(tokenizer):
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    made = {merge.replace(" ", ""): -float(rank) for rank, merge in enumerate(merges_of(tokenizer))}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [made.get(token, -1e6) for token in tokens],
        "tokenizer.ggml.token_type": [2] + [3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def split(regex):
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), in_bytes])


CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
}


@pytest.mark.parametrize("cut", CUTS)
def test_byte_level_tokenizers_cut_as_the_one_they_were_written_from(cut):
    original = byte_level(CUTS[cut])
    ours = tokenizer_of(byte_level_entries(original, cut))
    if cut == "qwen2":
        original.normalizer = normalizers.NFC()
    for text in texts():
        token_ids = ours.encode(text, add_special_tokens=False)
        assert token_ids == original.encode(text).ids, text
        assert ours.decode(token_ids) == original.decode(original.encode(text).ids, skip_special_tokens=False)
    assert ours.vocab_size == original.get_vocab_size()


@pytest.mark.parametrize("cut", ["gpt-2", "llama-bpe", "qwen2", "tekken"])  # it does not know smollm's
def test_byte_level_tokenizers_cut_as_transformers_says(tmp_path, cut):
    entries = byte_level_entries(byte_level(CUTS.get(cut, CUTS["gpt-2"])), cut)
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), tokenizer=entries)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = read_gguf(path).tokenizer
    for text in texts():
        if cut == "qwen2":  # the model's own tokenizer normalizes, and transformers leaves it out
            text = normalizers.NFC().normalize_str(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text


def test_sentence_piece_cuts_as_the_one_it_was_written_from():
    original = sentence_piece()
    ours = tokenizer_of(sentence_piece_entries(original))
    original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    for text in texts():
        expected = original.encode(text).ids
        assert ours.encode(text) == [1, *expected], text
    assert ours.is_byte(3) and not ours.is_byte(300)


def test_sentence_piece_cuts_as_transformers_says(tmp_path):
    entries = sentence_piece_entries(sentence_piece())
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), tokenizer=entries)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = read_gguf(path).tokenizer
    for text in texts():
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text


def test_the_better_of_two_tokens_is_made_first():
    entries = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "▁", "a", "b", "c", "ab", "bc"],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert tokenizer_of(entries | {"tokenizer.ggml.scores": [0.0] * 5 + [-1.0, -2.0]}).encode("abc") == [5, 4]
    assert tokenizer_of(entries | {"tokenizer.ggml.scores": [0.0] * 5 + [-2.0, -1.0]}).encode("abc") == [2, 6]


def test_smollm_cuts_off_each_digit():
    pieces = [piece for piece, _ in word_cutter("smollm").pre_tokenize_str("in  12 seas")]
    assert pieces == ["in", "ĠĠ", "1", "2", "Ġseas"]


def test_what_texts_begin_and_end_with():
    entries = byte_level_entries(byte_level(CUTS["gpt-2"]), "gpt-2")
    plain = tokenizer_of(entries).encode("The sea")
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert tokenizer_of(entries | flags).encode("The sea") == [1, *plain, 2]
    assert tokenizer_of(entries | flags).encode("The sea", add_special_tokens=False) == plain
    entries = sentence_piece_entries(sentence_piece())
    begun = tokenizer_of(entries).encode("The sea")
    assert begun[0] == 1 and begun[-1] != 2
    assert tokenizer_of(entries | {"tokenizer.ggml.add_bos_token": False}).encode("The sea") == begun[1:]
    assert tokenizer_of(entries | {"tokenizer.ggml.add_space_prefix": False}).encode("The sea") != begun
    for yes in True, 1, 10**9:  # a number for a yes costs nothing
        assert tokenizer_of(entries | {"tokenizer.ggml.add_space_prefix": yes}).encode("The sea") == begun


@pytest.mark.parametrize(
    ("cut", "begins"), [("llama-bpe", True), ("tekken", True), ("gpt-2", False), ("qwen2", False), ("smollm", False)]
)
def test_texts_for_llama_3_begin_with_a_token_though_its_files_do_not_say_so(cut, begins):
    """Files that were made before converters wrote add_bos_token: llama.cpp knows these models by how they cut."""
    entries = byte_level_entries(byte_level(CUTS["gpt-2"]), cut)
    assert (tokenizer_of(entries).encode("The sea")[0] == 1) == begins
    for said in True, False:
        assert (tokenizer_of(entries | {"tokenizer.ggml.add_bos_token": said}).encode("The sea")[0] == 1) == said


def test_special_tokens_have_the_names_that_templates_use():
    entries = sentence_piece_entries(sentence_piece())
    assert special_tokens(entries) == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert special_tokens({}) == {}
    assert "bos_token" not in special_tokens(entries | {"tokenizer.ggml.bos_token_id": 10**6})


def test_special_tokens_are_found_in_texts_and_may_be_left_out():
    ours = tokenizer_of(byte_level_entries(byte_level(CUTS["smollm"]), "smollm"))
    token_ids = ours.encode("<|im_start|>user<think>")
    assert token_ids[0] == 1 and ours.token(token_ids[-1]) == "<think>"
    assert ours.decode(token_ids, skip_special_tokens=True) == "user<think>"


def test_no_tokenizer_at_all():
    assert tokenizer_of({}) is None
    assert tokenizer_of({"tokenizer.ggml.model": "none", "tokenizer.ggml.tokens": ["a"]}) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "of the kind 'rwkv'; minipage makes those of gpt2 and llama"),
        ({"tokenizer.ggml.pre": "a-new-one"}, "the way of 'a-new-one'; minipage knows default, gpt-2, smollm"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "cannot be made"),
        ({"tokenizer.ggml.merges": ["never seen"]}, "cannot be made"),
        ({"tokenizer.ggml.merges": None}, "cannot be made"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 10**6}, "cannot be made"),
    ],
)
def test_a_tokenizer_that_cannot_be_made(change, reason):
    entries = byte_level_entries(byte_level(CUTS["gpt-2"]), "gpt-2") | change
    with pytest.raises(ModelError, match=reason):
        tokenizer_of(entries)


def test_every_way_of_cutting_is_a_regular_expression_that_the_library_takes():
    for regex in SPLITS.values():
        assert pre_tokenizers.Split(Regex(regex), "isolated").pre_tokenize_str("It's 12")


@pytest.fixture(scope="module")
def smollm2():
    try:
        return packaged_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))


def test_smollm2_gives_the_ids_that_llama_cpp_gives(smollm2):
    ours = read_gguf(smollm2).tokenizer
    assert ours.encode("    return\u200b你好  7") == [333, 1003, 321, 229, 18645, 250, 48392, 138, 256, 39]
    assert ours.encode("==  'LL  7½--") == [1189, 216, 637, 16421, 256, 39, 16738, 423]


@pytest.mark.slow
def test_smollm2_tokenizes_as_transformers_does(smollm2):
    """transformers' reading of the file does not know that digits stand alone, and differs after two spaces."""
    ours = read_gguf(smollm2).tokenizer
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    theirs.backend_tokenizer.pre_tokenizer = CUTS["smollm"]
    for text in texts(1000):
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == text
