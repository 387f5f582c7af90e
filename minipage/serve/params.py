"""From a client's fields to SamplingParams. A field that SamplingParams knows by the same name is simply handed on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from minipage.sampling import SamplingParams
from minipage.sampling.structured import StructuredOutputsParams
from minipage.serve.errors import ApiError
from minipage.serve.protocol import Body, GenerationBody

KNOWN = {field.name for field in fields(SamplingParams)}
# Each of these texts is looked for in every step, or compiled: what one may ask without the others having to wait.
MOST_TEXTS = {"stop": 128, "bad_words": 1024, "choice": 10_000}
# vLLM's older names of what structured_outputs asks for.
GUIDED = {"guided_choice": "choice", "guided_regex": "regex", "guided_json": "json", "guided_grammar": "grammar"}
UNSERVED = (
    "guided_whitespace_pattern",
    "logits_processors",
    "prompt_embeds",
    "truncate_prompt_tokens",
    "logprob_token_ids",
    "repetition_detection",
)


def refuse(body: Body, names: Iterable[str]) -> None:
    """Raise ApiError for fields that would change the answer if they did what they say."""
    for name in names:
        if getattr(body, name):
            raise ApiError(400, f"{name} is not supported by this server. Leave it out.", name)


def sampling_params(body: GenerationBody, max_logprobs: int, **more: Any) -> SamplingParams:
    """The SamplingParams of a request; `more` are those that texts and chats spell in ways of their own, and count
    even if they are None. `max_logprobs`: at each place.

    Raises:
        ApiError: a field asks for what cannot be done here.
        InvalidRequestError: a value makes no sense.
    """
    given = {name: value for name in type(body).model_fields if (value := getattr(body, name)) is not None}
    refuse(body, UNSERVED)
    if not 0 <= (body.prompt_logprobs or 0) <= max_logprobs:
        message = f"prompt_logprobs is {body.prompt_logprobs}; it must be from 0 to {max_logprobs}."
        raise ApiError(400, message, "prompt_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options are for streams: ask for one, or leave them out.", "stream_options")
    if body.stream and (body.use_beam_search or body.prompt_logprobs is not None):
        what, name = ("beams", "use_beam_search") if body.use_beam_search else ("prompt_logprobs",) * 2
        raise ApiError(400, f"{what} are told only at the end: leave out stream or {name}.", "stream")
    for name in "stop", "bad_words":
        check_number(name, given.get(name, ()), name)
    given["structured_outputs"] = structure(body)
    given["seed"] = read_seed(body.seed)
    if "logit_bias" in given:
        given["logit_bias"] = by_token_id(given["logit_bias"])
    if body.use_beam_search:
        more |= {"beam_width": given.pop("n", 1), "temperature": 0}
    return SamplingParams(**{name: value for name, value in (given | more).items() if name in KNOWN})


def structure(body: GenerationBody) -> StructuredOutputsParams | None:
    """What the text has to look like, by whichever name the client says it."""
    asked: dict[str, dict[str, Any]] = {}
    if body.structured_outputs is not None:
        asked["structured_outputs"] = body.structured_outputs
    if body.response_format is not None and body.response_format.get("type") != "text":
        asked["response_format"] = read_response_format(body.response_format)
    for name, kind in GUIDED.items():
        if getattr(body, name) is not None:
            asked[name] = {kind: getattr(body, name)}
    if not asked:
        return None
    (name, options), *others = asked.items()
    if others:
        raise ApiError(400, f"{' and '.join(asked)} ask for the same thing: give one of them.", others[0][0])
    known = {field.name for field in fields(StructuredOutputsParams)}
    if unknown := [option for option in sorted(options.keys() - known) if options[option]]:
        raise ApiError(400, f"{name} has no {', '.join(unknown)}.", name)
    options = {option: value for option, value in options.items() if option in known}  # others are off: None or False
    check_number("choice", options.get("choice") or (), name)
    try:
        return StructuredOutputsParams(**options)
    except ValueError as error:
        raise ApiError(400, str(error), name) from error


def check_number(what: str, texts: Any, param: str) -> None:
    if isinstance(texts, list) and len(texts) > MOST_TEXTS[what]:
        raise ApiError(400, f"{what} has {len(texts):,} texts; there may be {MOST_TEXTS[what]:,}.", param)


def read_response_format(form: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's way to ask for JSON."""
    kind, schema = form.get("type"), form.get("json_schema")
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema" and isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        return {"json": schema["schema"]}
    message = 'response_format must have the type "text", "json_object", or "json_schema" with a json_schema.schema.'
    raise ApiError(400, message, "response_format")


def read_seed(seed: int | None) -> int | None:
    """OpenAI's seeds have a sign, and vLLM takes -1 for none."""
    if seed is None or seed == -1:
        return None
    return seed % 2**64 if -(2**63) <= seed < 0 else seed


def by_token_id(logit_bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in logit_bias.items()}
    except ValueError:
        raise ApiError(400, "logit_bias: its keys must be token ids.", "logit_bias") from None
