"""The tokenizer of a model folder: tokenizer.json, or the files that GPT-2 had before there was one.

vocab.json               each token's id. A token is spelt in letters that stand for bytes
merges.txt               which two tokens become one, the most common first

Beside either there may be tokens that only these files know:

added_tokens.json        tokens that came later, with their ids
special_tokens_map.json  which of all tokens are signs for the model, and no text
tokenizer_config.json    the same, and a few settings
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from minipage.errors import ModelError
from minipage.model.settings import OPTIONAL_FILES, read_json, read_token_files, why
from minipage.model.tokenizer import Tokenizer, add_ends, ask, read_backend

TOKENIZER_FILES = ["tokenizer.json", "vocab.json", "merges.txt", *OPTIONAL_FILES]

CLASSES = None, "GPT2Tokenizer", "GPT2TokenizerFast"  # tokenizer_class, where vocab.json and merges.txt make a GPT-2's
GPT2 = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>")  # where its files say nothing else
ENDS = "bos_token", "eos_token"  # of every text, if tokenizer_config.json says so, as OPT's does
FIRST = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]  # of special tokens
ADDED_TOKEN_SETTINGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder; None if it has none. ModelError if it cannot be read."""
    path = folder / "tokenizer.json"
    if path.exists():
        tokenizer = read_backend(path)
        add_tokens(tokenizer, folder, *read_token_files(folder))  # with whatever ids, as transformers does
        return Tokenizer(tokenizer)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        ids, named, config = read_token_files(folder)
        if config.get("tokenizer_class") in CLASSES:  # a Qwen cuts texts otherwise
            return Tokenizer(byte_pair_tokenizer(folder, ids, named, GPT2 | config))
    return None


def byte_pair_tokenizer(
    folder: Path, ids: dict[str, Any], named: dict[str, Any], config: dict[str, Any]
) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE, from vocab.json and merges.txt, as transformers makes it; the rest as of `add_tokens`."""
    vocab, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    try:
        tokenizer = tokenizers.Tokenizer(ask(models.BPE, vocab, merges))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(
            f"{folder}: vocab.json and merges.txt do not go together ({error!r}). Fetch them again."
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
    tokenizer.decoder = decoders.ByteLevel()
    for token_id, token in add_tokens(tokenizer, folder, ids, named, config).items():
        if tokenizer.token_to_id(token) != token_id:
            raise ModelError(
                f"{folder}: {token!r} is to have the id {token_id}, which is another's or leaves a gap. Fetch "
                f"{', '.join(OPTIONAL_FILES)} again."
            )
    chosen = config | named
    ends = [chosen[name] if config.get(f"add_{name}") else None for name in ENDS]
    add_ends(tokenizer, *(token.get("content") if isinstance(token, dict) else token for token in ends))
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
    """The tokens that settings such as eos_token and additional_special_tokens name, in transformers' order."""
    ordered = {name: settings[name] for name in [*FIRST, *settings] if name in settings}
    named = [value for name, value in ordered.items() if name.endswith(("_token", "_special_tokens"))]
    flat = [each for value in named for each in (value if isinstance(value, list) else [value])]
    names = [each.get("content") if isinstance(each, dict) else each for each in flat]
    return dict.fromkeys(name for name in names if isinstance(name, str) and name)


def add_tokens(
    tokenizer: tokenizers.Tokenizer, folder: Path, ids: dict[str, Any], named: dict[str, Any], config: dict[str, Any]
) -> dict[int, str]:
    """Add what is found in a text before it is cut into words: tokens with ids in their order, then those without.

    ids, named, config: what OPTIONAL_FILES say, one each. Returns the tokens with ids as the files have them.
    """
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    try:
        chosen = config | named
        names = special_names(chosen)
        signs = special_names({name: token for name, token in chosen.items() if name.endswith("_token")})
        described = {int(token_id): facts for token_id, facts in (config.get("added_tokens_decoder") or {}).items()}
        found = dict(described)
        for name, number in ids.items():
            found.setdefault(int(number), {"content": name, "special": name in names, "normalized": name not in names})
        contents = {token_id: facts["content"] for token_id, facts in sorted(found.items())}
        added = dict(known)
        for token_id, token in contents.items():
            if token not in known or token_id in described:
                settings = {name: found[token_id][name] for name in ADDED_TOKEN_SETTINGS if name in found[token_id]}
                added[token] = tokenizers.AddedToken(token, **settings)
        for name, token in added.items():  # special, too, is what a setting names, and for ever what once was
            token.special |= name in signs or (name in known and known[name].special)
        tokenizer.add_tokens(list(added.values()))  # those that are the same it ignores
        tokenizer.add_special_tokens([name for name in names if name not in added])
    except Exception as error:  # the library raises bare Exceptions
        files = ", ".join(OPTIONAL_FILES)
        raise ModelError(
            f"{folder}: what {files} say of tokens makes no sense ({error!r}). Fetch them again."
        ) from error
    return contents
