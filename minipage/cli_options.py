"""The options of the commands: what each is called, what it takes, what it means. One table for all of them.

They are handed on under their own names, which are those of LLM and SamplingParams; without one, the default of what
receives it holds. Tests compare the table with the signatures.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from minipage.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from minipage.sampling import StructuredOutputsParams


class Option(NamedTuple):
    kind: Callable[[str], Any]  # makes a value of what was typed
    value: str  # what stands for it in the help; empty: the option is a switch
    meaning: str
    repeats: bool = False  # may be given several times, and all of them count
    vllm: str = ""  # what vLLM's command calls it, if not by the same name
    several: bool = False  # it takes all the values that follow, as vLLM's command does


Options: TypeAlias = dict[str, Option]
Defaults: TypeAlias = dict[str, object]  # for the help


def truth(text: str) -> bool:
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def early_stopping(text: str) -> bool | str:
    values: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true, false nor never")
    return values[text.lower()]


def bias(text: str) -> tuple[int, float]:
    token, _, added = text.partition(":")
    try:
        return int(token), float(added)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a token id and a number, such as 262:-5") from None


def settings(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        what = f"{shown(text)} is not settings in JSON, such as " + """'{"sliding_window": 64}'"""
        raise argparse.ArgumentTypeError(f"{what} ({error})") from None


def structure(text: str) -> StructuredOutputsParams:
    from minipage.sampling import StructuredOutputsParams

    try:
        return StructuredOutputsParams(**json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        what = f"{shown(text)} is not such as " + """'{"choice": ["yes", "no"]}' or '{"json": {"type": "object"}}'"""
        raise argparse.ArgumentTypeError(f"{what} ({error})") from None


ENGINE: Options = {  # of LLM
    "model": Option(str, "NAME", "a folder, a .gguf file, smollm2, or a model on the hub, such as gpt2"),
    "block_size": Option(int, "N", "tokens in a block"),
    "num_blocks": Option(int, "N", "blocks in the pool", vllm="num_gpu_blocks_override"),
    "memory": Option(
        str, "BYTES", "memory for the pool, such as 512MiB, in place of --num-blocks", vllm="kv_cache_memory_bytes"
    ),
    "max_model_len": Option(int, "N", "longest text in tokens, its prompt included"),
    "max_num_seqs": Option(int, "N", "most texts that run at once"),
    "max_num_batched_tokens": Option(int, "N", "most tokens computed in a step"),
    "enable_prefix_caching": Option(bool, "", "equal beginnings are computed once"),
    "prefix_match_unit": Option(int, "N", "equal beginnings are told apart in steps of N tokens; divides --block-size"),
    "preemption": Option(str, "NAME", "what happens when the pool runs dry: recompute, swap or auto"),
    "swap_space": Option(str, "BYTES", "memory for swapped blocks, such as 1MiB"),
    "policy": Option(str, "NAME", "who is served first: fcfs or priority", vllm="scheduling_policy"),
    "eviction": Option(str, "NAME", "whose contents are lost first: lru, tails-first, lfu or scan-resistant"),
    "watermark": Option(float, "SHARE", "of the pool, which is left free when a text is admitted, such as 0.1"),
    "scheduler_reserve_full_isl": Option(bool, "", "admit a prompt if all of it fits, rather than its first chunk"),
    "kv_cache_dtype": Option(str, "NAME", "of keys and values: auto, float32, bfloat16, float16, int8 or fp8"),
    "tensor_parallel_size": Option(int, "N", "processes, or GPUs, that share the model"),
    "dtype": Option(str, "NAME", "of what is computed: float32, or with PyTorch bfloat16 or float16"),
    "kv_offloading_size": Option(float, "GIB", "a second memory, which evicted blocks go to and come back from"),
    "kv_offloading_path": Option(str, "FILE", "which it is in, on a CPU, and which the next engine goes on with"),
    "speculative_config": Option(
        settings, "JSON", 'guess several tokens ahead, such as {"method": "ngram", "num_speculative_tokens": 7}'
    ),
    "kv_events_config": Option(
        settings,
        "JSON",
        'say which blocks are stored and removed: {"enable_kv_cache_events": true}; see GET /kv_events',
    ),
    "arrays": Option(str, "NAME", "numpy, plain (NumPy without compiled layers), torch or cupy"),
    "quantization": Option(str, "NAME", "of the weights, on a CPU: int8"),
    "attention": Option(str, "NAME", "the kernel: cpu, loops (plain and slow), reference (in NumPy), or cuda"),
    "device": Option(str, "NAME", "cpu, or cuda for an NVIDIA GPU"),
    "gpu_memory_utilization": Option(float, "SHARE", "of a GPU's memory, which may be used"),
    "async_scheduling": Option(truth, "true|false", "plan the next step while this one is computed"),
    "enforce_eager": Option(bool, "", "no CUDA graphs"),
    "hf_overrides": Option(settings, "JSON", "instead of what config.json says, such as '{\"sliding_window\": 64}'"),
    "load_format": Option(str, "NAME", "auto, or dummy: random weights of the sizes in config.json, to measure speed"),
}
SAMPLING: Options = {  # of SamplingParams
    "max_tokens": Option(int, "N", "tokens to generate for each text"),
    "min_tokens": Option(int, "N", "this many tokens come before one that may end a text"),
    "n": Option(int, "N", "texts for each prompt"),
    "temperature": Option(float, "X", "0: always the most likely token; the higher, the wilder"),
    "top_k": Option(int, "N", "choose among this many most likely tokens; 0: among all"),
    "top_p": Option(float, "SHARE", "choose among the most likely tokens that together have this probability"),
    "min_p": Option(float, "SHARE", "drop tokens less likely than this share of the most likely one"),
    "presence_penalty": Option(float, "X", "makes tokens that the text has less likely; below 0, more"),
    "frequency_penalty": Option(float, "X", "the same, the more often the text has them"),
    "repetition_penalty": Option(float, "X", "above 1, makes tokens of prompt and text less likely; below 1, more"),
    "logit_bias": Option(bias, "ID:X", "makes this token more likely, or less (may be repeated)", repeats=True),
    "bad_words": Option(str, "WORD", "never say this (may be repeated)", repeats=True),
    "allowed_token_ids": Option(int, "ID", "choose only this token (may be repeated)", repeats=True),
    "structured_outputs": Option(structure, "JSON", "the text matches a json, regex, grammar or one choice"),
    "seed": Option(int, "N", "makes the text repeatable"),
    "stop": Option(str, "TEXT", "end when this appears in the text (may be repeated)", repeats=True),
    "stop_token_ids": Option(int, "ID", "end after this token (may be repeated)", repeats=True),
    "include_stop_str_in_output": Option(bool, "", "keep what ended the text at its end"),
    "skip_special_tokens": Option(truth, "WHETHER", "leave out tokens such as <|endoftext|>: true or false"),
    "ignore_eos": Option(bool, "", "go on after the model's end of text"),
    "beam_width": Option(int, "N", "search for this many best texts, in place of drawing tokens"),
    "length_penalty": Option(float, "X", "of beams: above 0 favours long texts, below 0 short ones"),
    "early_stopping": Option(early_stopping, "WHEN", "of beams: true, false or never"),
    "logprobs": Option(int, "N", "with --json: log probabilities, of this many most likely tokens too"),
    "prompt_logprobs": Option(int, "N", "with --json: the same for the tokens of the prompt"),
}
SERVER: Options = {  # of the server, beside those of the engine
    "host": Option(str, "ADDRESS", "where to listen; 0.0.0.0: on all of this machine's addresses"),
    "port": Option(int, "N", "0: any that is free"),
    "served_model_name": Option(
        str,
        "NAME",
        "what clients may call MODEL, which comes before; the first is in answers and metrics",
        repeats=True,
        several=True,
    ),
    "api_key": Option(str, "KEY", "clients must send it (may be repeated); or set MINIPAGE_API_KEY", repeats=True),
    "chat_template": Option(str, "FILE", "of Jinja, in place of the model's own"),
    "max_queued_requests": Option(
        int, "N", "most prompts that wait; beyond these, clients get status 429", vllm="max_num_queued_reqs"
    ),
    "max_body_size": Option(int, "BYTES", "longest request"),
    "max_logprobs": Option(int, "N", "most log probabilities for each token that a client may ask for"),
    "drain_timeout": Option(
        float, "SECONDS", "when told to stop: how long those who are here may go on", vllm="shutdown_timeout"
    ),
    "data_parallel_size": Option(int, "N", "replicas behind one port, on Ray Serve"),
    "router": Option(str, "NAME", "which replica gets a request: prefix (that has its beginning), ray or round-robin"),
    "router_load_limit": Option(int, "N", "requests that one may have more than another, for the sake of a prefix"),
    "autoscaling_config": Option(
        settings, "JSON", 'of Ray: \'{"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}\''
    ),
    "seed": Option(int, "N", "makes the requests that have no seed of their own repeatable, too"),
    "log_level": Option(
        str, "LEVEL", "debug, info (a line for each request), warning, error or critical", vllm="uvicorn_log_level"
    ),
    "enable_log_requests": Option(bool, "", "log prompts, too"),
    "disable_live_page": Option(bool, "", "no page at / that shows the memory live"),
    "hide_live_texts": Option(bool, "", "on that page, a dot for each token in place of words"),
    "root_path": Option(str, "PATH", "where a proxy has put this server, such as /llm"),
    "allowed_origins": Option(
        str, "ORIGIN", "pages in browsers that may ask; * for all (may be repeated)", repeats=True
    ),
    "allowed_methods": Option(str, "METHOD", "with which methods (may be repeated)", repeats=True),
    "allowed_headers": Option(str, "HEADER", "with which headers (may be repeated)", repeats=True),
    "allow_credentials": Option(bool, "", "and with cookies"),
    "ssl_keyfile": Option(str, "FILE", "for https: the key"),
    "ssl_certfile": Option(str, "FILE", "and the certificate"),
    "ssl_ca_certs": Option(str, "FILE", "whose certificates clients must have"),
}
DEMO: Options = ENGINE | {
    "max_tokens": SAMPLING["max_tokens"],
    "seed": Option(int, "N", "another seed, other texts"),
    "steps": Option(int, "N", "stop after N steps"),
}
NOT_TO_PLAY_WITH = (  # engines there come and go
    "device", "gpu_memory_utilization", "enforce_eager", "async_scheduling", "load_format", "kv_offloading_size",
    "kv_offloading_path",
)  # fmt: skip
PLAY: Options = {name: option for name, option in ENGINE.items() if name not in NOT_TO_PLAY_WITH}
NOT_IN_A_CHAT = "n", "logprobs", "prompt_logprobs"  # one answer is what the conversation goes on with
CHAT: Options = {name: option for name, option in SAMPLING.items() if name not in NOT_IN_A_CHAT}
FILES: Options = {  # what the demo writes in place of showing the run
    "html": Option(str, "FILE", "a page to step through in a browser"),
    "svg": Option(str, "FOLDER", "one picture a step"),
    "json": Option(str, "FILE", "the trace itself, as JSON lines"),
    "cast": Option(str, "FILE", "a terminal recording, for asciinema"),
    "timeline": Option(str, "FILE", "what each text did when, for ui.perfetto.dev"),
}


def add_options(parser: argparse._ActionsContainer, options: Options, defaults: Defaults | None = None) -> None:
    """Let `parser` know them; `defaults` are told in the help, and are not given to anybody."""
    sizes = {"num_blocks", "memory"}  # of the pool: one of them is enough
    either = parser.add_mutually_exclusive_group() if sizes <= options.keys() else parser
    for name, (kind, value, meaning, repeats, vllm, several) in options.items():
        default = (defaults or {}).get(name)
        how: dict[str, Any] = {"help": meaning if default is None else f"{meaning} (default {default})"}
        how |= {"type": kind, "metavar": value} if value else {}
        how["action"] = "append" if repeats else "store" if value else argparse.BooleanOptionalAction
        how |= {"action": "extend", "nargs": "+"} if several else {}
        group = either if name in sizes else parser
        names = ["--" + each.replace("_", "-") for each in (name, vllm) if each]
        group.add_argument(*names, default=argparse.SUPPRESS, **how)


def given(args: argparse.Namespace, options: Options) -> dict[str, Any]:
    """Those of `options` that are on the command line."""
    return {name: value for name, value in vars(args).items() if name in options}


def is_follower(args: argparse.Namespace) -> bool:
    """Whether torchrun has started this process as another rank than 0. All that it has started share the model."""
    if getattr(args, "served", None) is not None:
        if hasattr(args, "model"):
            raise ConfigurationError("the model is given twice; leave out MODEL or --model.")
        args.model = args.served
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from minipage.engine.features import check_ranks

    check_ranks(1)  # PyTorch is there
    from minipage.worker.ranks.meeting import rank_by_torchrun

    rank, num_ranks = rank_by_torchrun()
    if not hasattr(args, "tensor_parallel_size"):
        args.tensor_parallel_size = num_ranks
    return rank > 0
