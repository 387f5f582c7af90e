"""Who guesses the next tokens of a text: its own past, or a smaller model.

    NGrams        ... the king of France and the ... the king of      what followed "king of" the first time?
                          ▔▔▔▔▔▔▔ ▔▔▔▔▔▔ ▔▔▔ ▔▔▔       ▔▔▔▔▔▔▔        France and the
    DraftModel    a model of the same tokenizer that is several times quicker, with a pool of blocks of its own: its K
                  and V have other sizes, and their number should not take blocks from those who are served

Both are cheap beside a step of the large model. Neither needs to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from minipage.errors import ConfigurationError, require_positive, shown
from minipage.sampling import SamplingParams
from minipage.simd.options import compiled

# Of several rules, these gain most, and lose least (docs/performance.md). With the text's last token, seven drafts are
# eight rows: as many as GPUs and CPUs multiply at once.
DEFAULTS = {"method": None, "model": None, "num_speculative_tokens": 7, "prompt_lookup_min": 1, "prompt_lookup_max": 16}
DEFAULTS |= {"only_if_quicker": True}


class Proposer(Protocol):
    def propose(self, texts: list[list[int]], counts: list[int]) -> list[list[int]]:
        """For each text a guess how it goes on: at most this many tokens, or none."""


def read(config: Mapping[str, Any], make_llm: Callable[..., Any], vocab_size: int) -> tuple[int, Proposer, bool]:
    """How many tokens to draft, who does, and whether only where it is quicker (account.py).

    config: vLLM's `speculative_config`. {"method": "ngram", "num_speculative_tokens": 7} looks in the text itself for
        what has followed its last `prompt_lookup_max` (16) to `prompt_lookup_min` (1) tokens before;
        {"model": NAME, "num_speculative_tokens": 4} asks a smaller model of the same tokenizer.
    """
    if not isinstance(config, Mapping) or not config or config.keys() - DEFAULTS.keys():
        raise ConfigurationError(
            f"speculative_config is {shown(config)}; it must be such as "
            '{"method": "ngram", "num_speculative_tokens": 7}, and may have ' + ", ".join(sorted(DEFAULTS)) + "."
        )
    options = DEFAULTS | dict(config)
    method, model, is_kept = (options.pop(name) for name in ("method", "model", "only_if_quicker"))
    if method not in (None, "draft_model" if model else "ngram"):
        raise ConfigurationError(
            f"speculative_config has method {shown(method)} and model {shown(model)}; give method 'ngram', or a model."
        )
    require_positive(**options)
    num_tokens = options.pop("num_speculative_tokens")
    return num_tokens, DraftModel(model, make_llm, vocab_size) if model else NGrams(**options), bool(is_kept)


class NGrams:
    """Looks for the first time that the end of the text was in the text: of `longest` tokens, or fewer."""

    def __init__(self, prompt_lookup_min: int, prompt_lookup_max: int) -> None:
        self.shortest, self.longest = shortest, longest = prompt_lookup_min, prompt_lookup_max
        if shortest > longest:
            raise ConfigurationError(f"prompt_lookup_min is {shortest}, more than prompt_lookup_max, {longest}.")

    def propose(self, texts: list[list[int]], counts: list[int]) -> list[list[int]]:
        found = []
        for token_ids, count in zip(texts, counts):
            start = find(np.array(token_ids), min(self.shortest, len(token_ids)), min(self.longest, len(token_ids)))
            period = len(token_ids) - start  # what follows runs into the end: then the text goes round, and goes on so
            found.append([] if start < 0 else [token_ids[start + i % period] for i in range(count)])
        return found


@compiled
def find(token_ids, shortest, longest):  # type: ignore[no-untyped-def]
    """Where the text [n] went on when its last `longest` tokens, or fewer, were there before; -1: they never were.

    The longest end counts, and of several places the first one.
    """
    n, best, best_length = len(token_ids), -1, shortest - 1
    for stop in range(1, n):  # what ends there is compared with the end of the text, from back to front
        length = 0
        while length < longest and length < stop and token_ids[stop - 1 - length] == token_ids[n - 1 - length]:
            length += 1
        if length > best_length:
            best, best_length = stop, length
        if length == longest:
            break
    return best


class DraftModel:
    """Asks an engine of its own, which finds what it has computed of a text in its prefix cache.

    Args:
        make_llm: the class LLM, with the device.
        vocab_size: of the model that is served.
    """

    def __init__(self, model: str, make_llm: Callable[..., Any], vocab_size: int) -> None:
        self.llm = make_llm(model, enable_prefix_caching=True, block_size=4)
        if self.llm.config.vocab_size != vocab_size:
            raise ConfigurationError(
                f"the draft model {model!r} has {self.llm.config.vocab_size:,} tokens, and the model itself "
                f"{vocab_size:,}: they must have the same tokenizer."
            )

    def propose(self, texts: list[list[int]], counts: list[int]) -> list[list[int]]:
        asked = [i for i, text in enumerate(texts) if len(text) + counts[i] <= self.llm.max_model_len]
        params = [SamplingParams(temperature=0, max_tokens=counts[i], ignore_eos=True) for i in asked]
        outputs = self.llm.generate([{"prompt_token_ids": texts[i]} for i in asked], params) if asked else []
        said = {i: output.outputs[0].token_ids for i, output in zip(asked, outputs)}
        return [said.get(i, []) for i in range(len(texts))]
