"""Which sampling parameters make no sense for a beam search."""

from __future__ import annotations

from typing import Any

NOTHING = (None, ())
WITH_BEAMS: dict[str, tuple[Any, ...]] = {  # the only values that go together with one
    "n": (1,),
    "temperature": (0, 1),
    "top_k": (0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": NOTHING,
    "bad_words": NOTHING,
    "allowed_token_ids": NOTHING,
    "structured_outputs": NOTHING,
    "stop": NOTHING,
    "logprobs": NOTHING,
    "prompt_logprobs": NOTHING,
}


def unfit_for_beams(params: object) -> list[str]:
    """The names of those that ask for what a beam search does not do."""
    return [name for name, values in WITH_BEAMS.items() if getattr(params, name) not in values]
