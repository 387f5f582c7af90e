"""The tokenizer of a model folder: tokenizer.json, or the files that GPT-2 had before there was one.

vocab.json               each token's id. A token is spelt in letters that stand for bytes
merges.txt               which two tokens become one, the most common first
added_tokens.json        tokens that came later, with their ids; often missing, like the other two:
special_tokens_map.json  which of all tokens are signs for the model, and no text
tokenizer_config.json    the same, and a few settings
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from minipage.errors import ModelError
from minipage.model.settings import read_json, why
from minipage.model.tokenizer import Tokenizer, ask

OPTIONAL_FILES = ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"]
TOKENIZER_FILES = ["tokenizer.json", "vocab.json", "merges.txt", *OPTIONAL_FILES]

END_OF_TEXT = "<|endoftext|>"  # a token of every GPT-2, whether or not a file says so
ADDED_TOKEN_SETTINGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder; None if it has none. ModelError if it cannot be read."""
    path = folder / "tokenizer.json"
    if path.exists():
        return Tokenizer(path)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return Tokenizer(byte_pair_tokenizer(folder))
    return None


def byte_pair_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE, from vocab.json and merges.txt, as transformers makes it."""
    vocab, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    ids, special, config = (read_json(folder / f) if (folder / f).exists() else {} for f in OPTIONAL_FILES)
    try:
        tokenizer = tokenizers.Tokenizer(ask(models.BPE, vocab, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
        tokenizer.decoder = decoders.ByteLevel()
        names = special_names(special) | special_names(config) | {END_OF_TEXT: None}
        add_tokens(tokenizer, ids, config.get("added_tokens_decoder") or {}, names)
    except Exception as error:  # the library raises bare Exceptions
        files = f"vocab.json, merges.txt and, if they are there, {', '.join(OPTIONAL_FILES)}"
        raise ModelError(f"{folder}: {files} do not go together ({error!r}). Fetch them again.") from error
    return tokenizer


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of merges.txt; its first line may say a version."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return [(first, second) for first, second in pairs]
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} does not hold two tokens a line ({why(path, error)}). Fetch it again.") from error


def special_names(settings: dict[str, Any]) -> dict[str, None]:
    """The tokens that settings such as eos_token and additional_special_tokens name, in their order."""
    named = [value for name, value in settings.items() if name.endswith(("_token", "_special_tokens"))]
    flat = [each for value in named for each in (value if isinstance(value, list) else [value])]
    names = [each.get("content") if isinstance(each, dict) else each for each in flat]
    return dict.fromkeys(name for name in names if isinstance(name, str) and name)


def add_tokens(
    tokenizer: tokenizers.Tokenizer,
    ids: dict[str, int],
    described: dict[str, dict[str, Any]],
    special: dict[str, None],
) -> None:
    """Add what is found in a text before it is cut into words: tokens with ids in their order, then those without."""
    found = {int(token_id): facts for token_id, facts in described.items()}
    for name, number in ids.items():
        found.setdefault(int(number), {"content": name, "special": name in special, "normalized": name not in special})
    for token_id, facts in sorted(found.items()):
        settings = {name: value for name, value in facts.items() if name in ADDED_TOKEN_SETTINGS}
        tokenizer.add_tokens([tokenizers.AddedToken(facts["content"], **settings)])
        if tokenizer.token_to_id(facts["content"]) != token_id:
            raise ValueError(f"{facts['content']!r} is to have the id {token_id}, which is another's or leaves a gap")
    known = {facts["content"] for facts in found.values()}
    tokenizer.add_special_tokens([name for name in special if name not in known])
