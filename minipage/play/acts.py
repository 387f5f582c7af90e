"""What a page may ask for. Everything is checked here or by the engine, and what is wrong is said in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from minipage.errors import ConfigurationError, InvalidRequestError, shown
from minipage.play.playground import Playground
from minipage.sampling import SamplingParams

MOST = {"block_size": 128, "num_blocks": 1024, "max_num_batched_tokens": 2048, "max_num_seqs": 64}  # that a page shows
CHOICES = {"policy": ("fcfs", "priority"), "preemption": ("recompute", "swap")}
SWITCHES = ("enable_prefix_caching",)
MOST_TOKENS = 200  # of a text
MOST_TEXTS = 8  # of a request
MOST_PROMPTS = 16  # at once
LONGEST_PROMPT = 2000  # characters


def act(playground: Playground, body: bytes) -> Future[Any] | None:
    """Do what a page asks for; the answer, if there is one to wait for.

    Raises ConfigurationError or InvalidRequestError, here or in the answer.
    """
    try:
        asked = json.loads(body)
        name = asked.pop("act")
        do = ACTS[name]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(
            f"an act is JSON with its name, one of {', '.join(ACTS)}; not {shown(body)}."
        ) from error
    try:
        return do(playground, **asked)
    except TypeError as error:
        raise ConfigurationError(
            f"{name} was asked for with {shown(asked)}, which it does not take ({error})."
        ) from error


def add(
    playground: Playground,
    prompts: Any,
    max_tokens: Any = 16,
    n: Any = 1,
    beam_width: Any = None,
    temperature: Any = 0.8,
    priority: Any = 0,
    seed: Any = None,
) -> Future[Any]:
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequestError("prompts must be a list of texts.")
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise InvalidRequestError("there is no prompt; write one on each line.")
    if len(prompts) > MOST_PROMPTS or max(map(len, prompts)) > LONGEST_PROMPT:
        raise InvalidRequestError(
            f"at most {MOST_PROMPTS} prompts at once, and each of at most {LONGEST_PROMPT:,} characters."
        )
    check_whole("max_tokens", max_tokens, MOST_TOKENS)
    check_whole("n", n, MOST_TEXTS)
    drawn = {"n": n, "temperature": temperature, "seed": seed}
    if beam_width is not None:
        check_whole("beam_width", beam_width, MOST_TEXTS)
        drawn = {"beam_width": beam_width, "temperature": 0}
    params = {"max_tokens": max_tokens} | drawn
    SamplingParams(**params)  # which says what is wrong
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 1000:
        raise InvalidRequestError(f"priority is {shown(priority)}; it must be a whole number from -1000 to 1000.")
    return playground.call(lambda: playground.add(prompts, params, priority))


def configure(playground: Playground, options: Any) -> Future[Any]:
    if not isinstance(options, dict) or not options:
        raise ConfigurationError("options must be an object of names and values.")
    for name, value in options.items():
        if name in MOST:
            check_whole(name, value, MOST[name])
        elif name in CHOICES and value not in CHOICES[name]:
            raise ConfigurationError(f"{name} is {shown(value)}; it must be {' or '.join(CHOICES[name])}.")
        elif name in SWITCHES and not isinstance(value, bool):
            raise ConfigurationError(f"{name} is {shown(value)}; it must be true or false.")
        elif name not in (*MOST, *CHOICES, *SWITCHES):
            raise ConfigurationError(f"{shown(name)} is no option that the page can change.")
    return playground.call(lambda: playground.configure(**options))


def check_whole(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigurationError(f"{name} is {shown(value)}; here it must be a whole number from 1 to {most:,}.")


def pace(playground: Playground, seconds: Any) -> None:
    playground.set_pace(seconds)


def abort(playground: Playground, request_id: Any) -> Future[Any]:
    return playground.call(lambda: playground.abort(str(request_id)))


def challenge(playground: Playground, name: Any) -> Future[Any]:
    return playground.call(lambda: playground.take_up(str(name)))


ACTS: dict[str, Callable[..., Future[Any] | None]] = {
    "add": add,
    "abort": abort,
    "configure": configure,
    "clear": lambda playground: playground.call(playground.clear),
    "challenge": challenge,
    "run": lambda playground: playground.go(),
    "pause": lambda playground: playground.pause(),
    "step": lambda playground: playground.step(),
    "phase": lambda playground: playground.phase(),
    "pace": pace,
}
