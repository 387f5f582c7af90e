"""The command line: `python -m minipage demo | generate | learn | info`.

Only argparse is imported here. Whatever takes time (numba, NumPy, rich, the tokenizer) is imported by the command that
needs it, so `--help` answers at once.

Exit codes: 0 fine; 1 something failed on the way; 2 bad input, one sentence says what; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from minipage import __version__
from minipage.errors import InvalidRequestError, MinipageError
from minipage.learn.cli import add_learn

if TYPE_CHECKING:
    from minipage.engine import LLM
    from minipage.request import RequestOutput
    from minipage.sampling import SamplingParams

Options: TypeAlias = dict[str, tuple[type, str]]  # name: the type of its value, and what it means

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
BYTE_ORDER_MARK = "\ufeff"  # before the first line of a file that was written on Windows
MAX_TOKENS = 100  # what `generate` makes, if it is not told


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare_streams()
    try:
        code = run(argv)
        sys.stdout.flush()
        return code
    except MinipageError as error:
        complain(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough: `| head`
        forget_output()
        return 0
    except (OSError, MemoryError) as error:
        complain(str(error) or "out of memory")
        forget_output()
        return FAILED


def run(argv: list[str] | None) -> int:
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
    finally:
        sys.stdout.flush()  # after --help, too, what goes wrong here is ours to handle
    if args.command is None:
        parser.print_help()
        return BAD_INPUT
    return int(args.command(args) or 0)


# ---- standard streams


def prepare_streams() -> None:
    """Let each take any text; one that is closed, as under cron or with `<&-`, has nothing, and leads nowhere."""
    for name, mode, errors in (
        ("stdin", "r", "replace"),  # what is not UTF-8 becomes U+FFFD
        ("stdout", "w", "backslashreplace"),  # a text may hold letters that the terminal has not
        ("stderr", "w", "backslashreplace"),
    ):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            # Opened in this order each gets the number that is missing, which no other file should have.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open until the end)
        elif hasattr(stream, "reconfigure") and stream.errors != errors:
            stream.reconfigure(errors=errors)


def complain(message: str) -> None:
    with suppress(OSError):  # on a full disk, for example
        print(f"minipage: {message}", file=sys.stderr, flush=True)


def forget_output() -> None:
    """Drop what could not be written, or Python would try again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minipage", description="PagedAttention, small enough to read.")
    parser.add_argument("--version", action="version", version=f"minipage {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="{demo,generate,learn,info}")
    add_demo(commands.add_parser("demo", help="watch three requests share a small paged memory, step by step"))
    add_generate(commands.add_parser("generate", help="continue one text, or many as one batch"))
    add_learn(commands.add_parser("learn", help="rebuild PagedAttention yourself: exercises that check themselves"))
    info = commands.add_parser("info", help="versions, devices, caches, and the sizes of the shipped model")
    info.set_defaults(command=run_info)
    return parser


# Options that are handed on under their own names; without one the default of what receives it holds.
MODEL: Options = {"model": (str, "a folder, or a GPT-2 on the hub, such as gpt2 (default: the shipped model)")}
DEMO: Options = MODEL | {
    "max_tokens": (int, "tokens to generate for each text"),
    "block_size": (int, "tokens in a block (default 4)"),
    "num_blocks": (int, "blocks in the pool (default: as the scenario needs)"),
    "memory": (str, 'memory for the pool, such as "1MiB", instead of num-blocks'),
    "max_model_len": (int, "longest text in tokens (default: the model's context)"),
    "max_num_batched_tokens": (int, "most tokens computed in a step (default 8 or 16)"),
    "max_num_seqs": (int, "most texts that run at once"),
    "preemption": (str, "recompute, swap or auto"),
    "swap_space": (str, 'memory for swapped blocks, such as "1MiB"'),
    "policy": (str, "fcfs, or priority: who comes later is more urgent"),
    "watermark": (float, "share of the pool that admission leaves free"),
    "kv_cache_dtype": (str, "float32, bfloat16, float16, int8 or fp8"),
    "seed": (int, "another seed, other texts"),
    "steps": (int, "stop after N steps"),
}
FILES: Options = {  # written instead of showing the run
    "html": (str, "a page to step through in a browser"),
    "svg": (str, "a folder, with one picture a step"),
    "json": (str, "the trace itself, as JSON lines"),
    "cast": (str, "a terminal recording, for asciinema"),
    "timeline": (str, "what each text did when, for ui.perfetto.dev"),
}
ENGINE: Options = MODEL | {
    "block_size": (int, "tokens in a block (default 16)"),
    "num_blocks": (int, "blocks in the pool"),
    "memory": (str, 'memory for the pool, such as "512MiB", instead of num-blocks (default 1 GiB)'),
    "device": (str, "cpu, or cuda for an NVIDIA GPU (default cpu)"),
    "dtype": (str, "float32, or with a GPU also bfloat16 or float16 (default float32)"),
}
SAMPLING: Options = {
    "max_tokens": (int, f"tokens to generate for each text (default {MAX_TOKENS})"),
    "temperature": (float, "0: always the most likely token; the higher, the wilder (default 1)"),
    "top_k": (int, "choose among so many most likely tokens"),
    "top_p": (float, "choose among the most likely tokens that together have this probability"),
    "min_p": (float, "drop tokens less likely than this share of the most likely one"),
    "seed": (int, "makes the text repeatable"),
}


def add_options(parser: argparse._ActionsContainer, options: Options) -> None:
    for name, (kind, meaning) in options.items():
        flag, value = "--" + name.replace("_", "-"), "TEXT" if kind is str else "N"
        parser.add_argument(flag, type=kind, metavar=value, help=meaning, default=argparse.SUPPRESS)


def given(args: argparse.Namespace, options: Options) -> dict[str, Any]:
    """Those of `options` that are on the command line."""
    return {name: value for name, value in vars(args).items() if name in options}


# ---- demo


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", help="which story; see --list. `all`, to write every one into a folder")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--replay", metavar="FILE", help="show a trace that was written with --json")
    parser.add_argument("--enable-prefix-caching", action="store_true", help="equal beginnings are computed once",
                        default=argparse.SUPPRESS)  # fmt: skip
    parser.add_argument("--mine", metavar="DIR", help="with the parts that you wrote there (see `learn`)")
    parser.add_argument("--plain", action="store_true", help="print every step, even in a terminal")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a text of your own (may be repeated)")
    add_options(parser, DEMO)
    add_options(parser.add_argument_group("instead of showing it, write"), FILES)
    parser.set_defaults(command=run_demo)


def run_demo(args: argparse.Namespace) -> None:
    from minipage.trace import demo

    if args.list:
        return demo.list_scenarios()
    name = {"name": args.scenario} if args.scenario else {}
    options = name | given(args, DEMO | {"enable_prefix_caching": (bool, "")})
    options |= {"replay": args.replay, "prompts": args.prompt, "plain": args.plain, "files": given(args, FILES)}
    if args.mine is None:
        return demo.run(**options)
    from minipage.learn.mine import Mine

    mine = Mine(args.mine)
    print(*mine.lines(), "", sep="\n")
    with mine.blamed():
        demo.run(**options, build=mine.build, note=mine.note)
    print("", *mine.lines(), sep="\n")


# ---- generate


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="a text to continue; - for one per line of input")
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT",
                        help="end when this appears in the text (may be repeated)")  # fmt: skip
    parser.add_argument("--mine", metavar="DIR", help="with the parts that you wrote there (see `learn`)")
    add_options(parser, SAMPLING | ENGINE)
    parser.set_defaults(command=run_generate, max_tokens=MAX_TOKENS)


def run_generate(args: argparse.Namespace) -> None:
    prompts = list(read_prompts(args.prompt))
    if not prompts:
        raise InvalidRequestError("standard input has no lines; give one prompt on each.")
    if args.mine is None:
        return generate(args, prompts)
    from minipage.learn.mine import Mine

    mine = Mine(args.mine)
    print(*mine.lines(), sep="\n", file=sys.stderr)
    with mine.blamed():
        generate(args, prompts, mine.build)


def generate(args: argparse.Namespace, prompts: list[str], build: Callable[..., LLM] | None = None) -> None:
    """Continue the prompts with the engine that `build` makes, or else an LLM."""
    from minipage.trace.spinner import spinner

    with spinner("loading the model"):
        from minipage import LLM, SamplingParams

        params = SamplingParams(stop=args.stop, **given(args, SAMPLING))
        llm = (build or LLM)(**given(args, ENGINE))
    if len(prompts) == 1 and not args.json:
        stream_one(llm, prompts[0], params)
        return
    for i, output in enumerate(generate_all(llm, prompts, params), 1):
        if args.json:
            print(as_json(output))
        else:
            print(f"=== {i} of {len(prompts)} ===\n{output.prompt}{output.outputs[0].text}\n")


def read_prompts(arguments: list[str]) -> Iterator[str]:
    """The prompts as they are, and for a `-` each line of standard input that is not empty."""
    from minipage.model.tokenizer import without_surrogates

    for argument in arguments:
        if argument == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from filter(None, (line.removeprefix(BYTE_ORDER_MARK) for line in lines))
        else:
            yield without_surrogates(argument)  # which stand for bytes that are not UTF-8


def stream_one(llm: LLM, prompt: str, params: SamplingParams) -> None:
    """Print the prompt, and each word after it as it comes."""
    from minipage.trace.spinner import spinner

    outputs = llm.stream(prompt, params)
    with spinner("computing the prompt (on a new machine this compiles the kernels, once)"):
        text = next(outputs).outputs[0].text
    print(prompt + text, end="", flush=True)
    for output in outputs:
        print(output.outputs[0].text[len(text) :], end="", flush=True)
        text = output.outputs[0].text
    print()


def generate_all(llm: LLM, prompts: list[str], params: SamplingParams) -> list[RequestOutput]:
    """All prompts as one batch, with a progress bar where somebody watches; in the order of the prompts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    request_ids = [add(llm, prompt, params, i, len(prompts)) for i, prompt in enumerate(prompts, 1)]
    finished: dict[str, RequestOutput] = {}
    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), "texts", TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("texts", total=len(prompts))
        while llm.has_unfinished_requests():
            finished |= {output.request_id: output for output in llm.step() if output.finished}
            progress.update(task, completed=len(finished))
    return [finished[request_id] for request_id in request_ids]


def add(llm: LLM, prompt: str, params: SamplingParams, number: int, total: int) -> str:
    """Add one of several requests; an error says which one it was."""
    try:
        return llm.add_request(prompt, params)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"prompt {number} of {total}: {error}" if total > 1 else str(error)) from None


def as_json(output: RequestOutput) -> str:
    """Everything about one result in a line; times in seconds since it arrived."""
    import json
    from dataclasses import asdict

    facts = asdict(output)
    completion, metrics = facts.pop("outputs")[0], facts.pop("metrics")
    arrival, num_preemptions = metrics.pop("arrival_time"), metrics.pop("num_preemptions")
    seconds = {name.removesuffix("_time"): round(time - arrival, 6) for name, time in metrics.items()}
    return json.dumps(facts | completion | {"seconds_to": seconds, "num_preemptions": num_preemptions})


# ---- info


def run_info(_: argparse.Namespace) -> None:
    from minipage.info import print_info

    print_info()
