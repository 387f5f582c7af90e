"""The tokenizer inside a GGUF file, made as the model's own tokenizer.json would make it.

Two kinds are read, by tokenizer.ggml.model:

gpt2    byte-level BPE. tokenizer.ggml.pre names how a text is cut into words first (SPLITS)
llama   SentencePiece's BPE: a space is spelt ▁, what has no token is spelt in bytes, <0xE2>. Where a file has no
        merges, these follow from the scores: of all neighbours, those become one that make the best token
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from minipage.errors import ModelError, shown
from minipage.model.tokenizer import Tokenizer, add_ends, ask

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the types of tokens
WORD = "\u2581"  # ▁, SentencePiece's space

# How texts are cut before merging, as the models' own tokenizer.json have it: `\p{L}` are letters, `\p{N}` digits.
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    **dict.fromkeys(["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"], LLAMA3),
    **dict.fromkeys(["qwen2", "deepseek-r1-qwen"], QWEN2),
    "tekken": TEKKEN,
}
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell")  # each digit, and then as GPT-2 does
PLAIN = ("default", "gpt-2")
BEGINNING = ("llama-bpe", "llama3", "llama-v3", "pixtral", "tekken")  # texts begin with a token


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that chat templates call bos_token, eos_token, ..."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{kind}_token": metadata.get(f"tokenizer.ggml.{theirs}_token_id") for kind, theirs in kinds.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a GGUF's metadata describe; None if they have none.

    Raises:
        ModelError: it is of a kind that minipage cannot make, or damaged.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if kind is None or kind == "none" or not tokens:
        return None
    makers = {"gpt2": byte_level, "llama": sentence_piece}
    if kind not in makers:
        raise ModelError(f"its tokenizer is of the kind {shown(kind)}; minipage makes those of {' and '.join(makers)}.")
    try:
        backend = makers[kind](metadata)
        add_special(backend, metadata)
        add_wanted_ends(backend, metadata, begins=kind == "llama" or metadata.get("tokenizer.ggml.pre") in BEGINNING)
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"its tokenizer cannot be made ({error!r}). Fetch it again.") from error
    return Tokenizer(backend)


def byte_level(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE: tokens are spelt in 256 letters, one for each byte."""
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    cut = metadata.get("tokenizer.ggml.pre", "default")
    tokenizer = tokenizers.Tokenizer(ask(models.BPE, vocab, merges, ignore_merges=SPLITS.get(cut) in (LLAMA3, TEKKEN)))
    tokenizer.pre_tokenizer = word_cutter(cut)
    tokenizer.decoder = decoders.ByteLevel()
    if SPLITS.get(cut) == QWEN2:
        tokenizer.normalizer = normalizers.NFC()  # é may be written in two ways: here it becomes one character
    return tokenizer


def word_cutter(cut: str) -> pre_tokenizers.PreTokenizer:
    if cut in PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut in DIGITS_ALONE:
        first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if cut not in SPLITS:
        known = ", ".join([*PLAIN, *DIGITS_ALONE, *SPLITS])
        raise ModelError(f"its tokenizer cuts texts in the way of {shown(cut)}; minipage knows {known}.")
    first = pre_tokenizers.Split(Regex(SPLITS[cut]), "isolated")
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentence_piece(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE, with bytes for what has no token."""
    tokens = metadata["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    listed = metadata.get("tokenizer.ggml.merges")
    merges = [tuple(merge.split(" ")) for merge in listed] if listed else merges_by_score(vocab, metadata)
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    model = ask(models.BPE, vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    starts_with_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    scheme = "first" if starts_with_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(WORD, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", left=1)] * starts_with_space)
    return tokenizer


def merges_by_score(vocab: Mapping[str, int], metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every way to make a token of two, those with the best scores first."""
    scores = metadata["tokenizer.ggml.scores"]
    pairs = [
        (scores[i], token[:cut], token[cut:])
        for token, i in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    pairs.sort(key=lambda pair: (-pair[0], -len(pair[1]), -len(pair[2])))
    return [(left, right) for _, left, right in pairs]


def add_special(tokenizer: tokenizers.Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Tokens that are found in a text before it is cut: signs for the model, and what its makers listed."""
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    added: dict[int, list[tokenizers.AddedToken]] = {CONTROL: [], USER_DEFINED: []}
    for token, kind in zip(metadata["tokenizer.ggml.tokens"], kinds):
        if kind in added:
            added[kind].append(tokenizers.AddedToken(token, normalized=False, special=kind == CONTROL))
    tokenizer.add_special_tokens(added[CONTROL])
    tokenizer.add_tokens(added[USER_DEFINED])


def add_wanted_ends(tokenizer: tokenizers.Tokenizer, metadata: Mapping[str, Any], begins: bool) -> None:
    """What every text begins or ends with; `begins` is of files that do not say it. llama.cpp assumes the same, and
    also a beginning for Falcon 3, whose own tokenizer has none."""
    tokens = metadata["tokenizer.ggml.tokens"]
    wanted = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", begins),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    ids = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") if add else None for kind, add in wanted.items()}
    first, last = (None if i is None else tokens[i] for i in ids.values())
    add_ends(tokenizer, first, last)
