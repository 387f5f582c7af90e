"""From a client's fields to SamplingParams. A field that SamplingParams knows by the same name is simply handed on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from minipage.sampling import SamplingParams
from minipage.serve.errors import ApiError
from minipage.serve.protocol import GenerationBody

KNOWN = {field.name for field in fields(SamplingParams)}
# Fields that change what is sampled, and the values at which they change nothing. One that SamplingParams does not know
# is refused at any other value: to ignore it would give other texts than were asked for.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_choice": (),
    "guided_regex": (),
    "guided_json": (),
    "guided_grammar": (),
}


def sampling_params(body: GenerationBody, **more: Any) -> SamplingParams:
    """The SamplingParams of a request; `more` are those that texts and chats spell in ways of their own, and count
    even if they are None.

    Raises:
        ApiError: a field asks for what cannot be done here.
        InvalidRequestError: a value makes no sense.
    """
    given = {name: value for name in type(body).model_fields if (value := getattr(body, name)) is not None}
    for name, values in WITHOUT_EFFECT.items():
        if name in given and name not in KNOWN and given[name] not in values:
            raise ApiError(400, f"{name} is not supported by this server: leave it out.", name)
    if "logit_bias" in given:
        more["logit_bias"] = by_token_id(given["logit_bias"])
    if body.use_beam_search:
        more |= {"beam_width": given.pop("n", 1), "temperature": 0}
    return SamplingParams(**{name: value for name, value in (given | more).items() if name in KNOWN})


def by_token_id(logit_bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in logit_bias.items()}
    except ValueError:
        raise ApiError(400, "logit_bias: its keys must be token ids.", "logit_bias") from None
