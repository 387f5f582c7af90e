"""The command line: `python -m minipage demo | play | generate | chat | serve | plan | learn | info`.

Only argparse is imported here. Whatever takes time (numba, NumPy, rich, the tokenizer) is imported by the command that
needs it, so `--help` answers at once.

Exit codes: 0 fine; 1 something failed on the way; 2 bad input, one sentence says what; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from minipage import __version__
from minipage.chat.cli import add_chat
from minipage.cli_defaults import DEFAULTS, DEFAULTS_OF_DEMO, DEFAULTS_OF_SERVER, MAX_TOKENS, TOKENS_OF_A_STEP
from minipage.cli_options import DEMO, ENGINE, FILES, SAMPLING, SERVER, add_options, given, is_follower
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.learn.cli import add_learn
from minipage.output import BAD_INPUT, FAILED, by_token_id, run_command
from minipage.plan.cli import add_plan
from minipage.play.cli import add_play

if TYPE_CHECKING:
    from minipage.engine.completion import CompletionOutput
    from minipage.engine.llm import LLM
    from minipage.engine.request import RequestOutput
    from minipage.sampling import SamplingParams

BYTE_ORDER_MARK = "\ufeff"  # before the first line of a file that was written on Windows


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(lambda: run(argv))


def run(argv: list[str] | None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return BAD_INPUT
    if args.command in WITH_RANKS and is_follower(args):
        from minipage import LLM

        LLM(**engine_options(args))  # does what rank 0 says, and then ends
    return int(args.command(args) or 0)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minipage", description="PagedAttention, small enough to read.")
    parser.add_argument("--version", action="version", version=f"minipage {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="{demo,play,generate,chat,serve,plan,learn,info}")
    add_demo(commands.add_parser("demo", help="watch three requests share a small paged memory, step by step"))
    add_play(commands.add_parser("play", help="a page to play with a live engine"), DEFAULTS)
    add_generate(commands.add_parser("generate", help="continue one text, or many as one batch"))
    add_chat(commands.add_parser("chat", help="talk with a chat model, and see what the prefix cache finds"), DEFAULTS)
    add_serve(commands.add_parser("serve", help="a server that clients of OpenAI and vLLM can talk to"))
    add_plan(commands.add_parser("plan", help="how many requests will fit on your GPU, and how fast they will be"))
    add_learn(commands.add_parser("learn", help="rebuild PagedAttention yourself: exercises that check themselves"))
    info = commands.add_parser("info", help="versions, devices, caches, and the sizes of the shipped model")
    info.set_defaults(command=run_info)
    return parser


# ---- demo


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", help="which story; see --list. `all`, to write every one into a folder")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--replay", metavar="FILE", help="show a trace that was written with --json")
    parser.add_argument("--mine", metavar="DIR", help="with the parts that you wrote there (see `learn`)")
    parser.add_argument("--plain", action="store_true", help="print every step, even in a terminal")
    parser.add_argument("--prompt", action="append", metavar="TEXT",
                        help="a text of your own in place of one of the story's (may be repeated)")  # fmt: skip
    add_options(parser, DEMO, DEFAULTS_OF_DEMO)
    add_options(parser.add_argument_group("instead of showing it, write"), FILES)
    parser.set_defaults(command=run_demo)


def run_demo(args: argparse.Namespace) -> None:
    from minipage.trace.playing.spinner import spinner

    with spinner("starting"):
        from minipage.trace.playing import demo
    if args.list:
        return demo.list_scenarios()
    name = {"name": args.scenario} if args.scenario else {}
    options = name | given(args, DEMO)
    if args.replay is not None and (name or args.prompt or args.mine or options.keys() - {"steps"}):
        raise ConfigurationError(
            "--replay shows what was recorded: give it no story, no text and no option of the engine."
        )
    if args.scenario == demo.EVERY:
        from minipage.learn.course import cards

        options["lessons"] = cards()
    options |= {"replay": args.replay, "prompts": args.prompt, "plain": args.plain, "files": given(args, FILES)}
    if args.mine is None:
        from minipage.trace.recording.trace import shown_from

        with shown_from(args.replay):
            return demo.run(**options)
    from minipage.learn.your_engine import Mine

    mine = Mine(args.mine)
    print(*mine.lines(), "", sep="\n")
    with mine.blamed():
        demo.run(**options, build=mine.build, note=mine.note)
    print("", *mine.lines(), sep="\n")


# ---- generate


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="a text to continue; - for one per line of input")
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    parser.add_argument("--mine", metavar="DIR", help="with the parts that you wrote there (see `learn`)")
    add_options(parser.add_argument_group("what is written"), SAMPLING, DEFAULTS)
    add_options(parser.add_argument_group("the engine"), ENGINE, DEFAULTS)
    parser.set_defaults(command=run_generate, max_tokens=MAX_TOKENS)


def run_generate(args: argparse.Namespace) -> int:
    prompts = list(read_prompts(args.prompt))
    if not prompts:
        raise InvalidRequestError("standard input has no lines; give one prompt on each.")
    if args.mine is None:
        return generate(args, prompts)
    from minipage.learn.your_engine import Mine

    mine = Mine(args.mine)
    print(*mine.lines(), sep="\n", file=sys.stderr)
    with mine.blamed():
        return generate(args, prompts, mine.build)


def generate(args: argparse.Namespace, prompts: list[str], build: Callable[..., LLM] | None = None) -> int:
    """Continue the prompts with the engine that `build` makes, or else an LLM; returns the exit code."""
    from minipage.trace.playing.spinner import loading, spinner

    with spinner("loading the model") as say:
        from minipage import LLM, SamplingParams

        params = SamplingParams(**given(args, SAMPLING))
        if {params.logprobs, params.prompt_logprobs} != {None} and not args.json:
            raise InvalidRequestError(
                "log probabilities are printed with --json only: add it, or drop --logprobs and --prompt-logprobs."
            )
        llm = build(**given(args, ENGINE)) if build else LLM(**given(args, ENGINE), progress=loading(say))
    num_texts = params.beam_width or params.n
    if len(prompts) == 1 and num_texts == 1 and not params.beam_width and not args.json:
        outputs = [stream_one(llm, prompts[0], params)]
    else:
        outputs = generate_all(llm, prompts, params)
        for i, output in enumerate(outputs, 1):
            for completion in output.outputs:
                which = f", text {completion.index + 1} of {len(output.outputs)}" if num_texts > 1 else ""
                title = f"=== {i} of {len(prompts)}{which} ==="
                print(as_json(output, completion) if args.json else f"{title}\n{output.prompt}{completion.text}\n")
    tell_what_was_cut(outputs, params, llm)
    errors = [output.error for output in outputs if output.error]
    for error in errors:
        print(f"minipage: {error}", file=sys.stderr)
    return FAILED if errors else 0


def tell_what_was_cut(outputs: list[RequestOutput], params: SamplingParams, llm: LLM) -> None:
    """Say which texts have fewer tokens than were asked for, because they came to the end of the context."""
    for i, output in enumerate(outputs, 1):
        longest = max(len(completion.token_ids) for completion in output.outputs)
        if params.max_tokens is None or longest >= params.max_tokens:
            continue
        if len(output.prompt_token_ids) + longest == llm.max_model_len:
            which = f"text {i}" if len(outputs) > 1 else "the text"
            told = (
                f"{which} ends after {longest} of {params.max_tokens} tokens, with the context of {llm.max_model_len}."
            )
            print(f"minipage: {told}", file=sys.stderr)


def read_prompts(arguments: list[str]) -> Iterator[str]:
    """The prompts as they are, and for a `-` each line of standard input that is not empty."""
    from minipage.model.tokenizer import without_surrogates

    for argument in arguments:
        if argument == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from filter(None, (line.removeprefix(BYTE_ORDER_MARK) for line in lines))
        else:
            yield without_surrogates(argument)  # which stand for bytes that are not UTF-8


def stream_one(llm: LLM, prompt: str, params: SamplingParams) -> RequestOutput:
    """Print the prompt, and each word after it as it comes; returns the last of what is known of it."""
    from minipage.trace.playing.spinner import spinner

    outputs = llm.stream(prompt, params)
    with spinner("computing the prompt"):
        first = next(outputs)
    with spinner("computing the first word"):  # by another kernel; nothing is printed yet that a sign could damage
        second = next(outputs, first)
    print(prompt, end="")
    num_printed = 0
    for output in chain([second], outputs):
        print(output.outputs[0].text[num_printed:], end="", flush=True)
        num_printed = len(output.outputs[0].text)
    print()
    return output


def generate_all(llm: LLM, prompts: list[str], params: SamplingParams) -> list[RequestOutput]:
    """All prompts as one batch, with a progress bar where somebody watches; in the order of the prompts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from minipage.trace.playing.spinner import signs_of_life

    request_ids = [add(llm, prompt, params, i, len(prompts)) for i, prompt in enumerate(prompts, 1)]
    finished: dict[str, RequestOutput] = {}
    console = Console(stderr=True)
    what = TextColumn("texts {task.description}", markup=False)
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), what, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(prompts))

        def show(text: str) -> None:
            progress.update(task, description=text)

        while llm.has_unfinished_requests():
            with signs_of_life("", show):
                finished |= {output.request_id: output for output in llm.step() if output.finished}
            progress.update(task, completed=len(finished), description="")
    return [finished[request_id] for request_id in request_ids]


def add(llm: LLM, prompt: str, params: SamplingParams, number: int, total: int) -> str:
    """Add one of several requests; an error says which one it was."""
    try:
        return llm.add_request(prompt, params)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"prompt {number} of {total}: {error}" if total > 1 else str(error)) from None


def as_json(output: RequestOutput, completion: CompletionOutput) -> str:
    """Everything about one text in a line; times in seconds since its request arrived."""
    import json
    from dataclasses import asdict

    facts, text = asdict(output), asdict(completion)
    if output.prompt_logprobs is not None:
        facts["prompt_logprobs"] = by_token_id(output.prompt_logprobs)
    if completion.logprobs is not None:
        text["logprobs"] = by_token_id(completion.logprobs)
    del facts["outputs"]
    metrics = facts.pop("metrics")
    arrival, num_preemptions = metrics.pop("arrival_time"), metrics.pop("num_preemptions")
    seconds = {name.removesuffix("_time"): round(time - arrival, 6) for name, time in metrics.items()}
    return json.dumps(facts | text | {"seconds_to": seconds, "num_preemptions": num_preemptions})


# ---- serve


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("served", nargs="?", metavar="MODEL", help="what --model takes; default: the shipped one")
    add_options(parser.add_argument_group("the server"), SERVER, DEFAULTS_OF_SERVER)
    add_options(parser.add_argument_group("the engine"), ENGINE, DEFAULTS | DEFAULTS_OF_SERVER)
    parser.set_defaults(command=run_serve)


def run_serve(args: argparse.Namespace) -> None:
    from minipage.trace.playing.spinner import spinner

    try:
        with spinner("loading the server"):
            from minipage.serve.command import run
    except ImportError as error:
        message = f"{error}. The server needs more than the engine does: pip install 'minipage[serve]'."
        raise ConfigurationError(message) from error
    run(engine_options(args), given(args, SERVER), spinner)


WITH_RANKS = run_generate, run_serve  # what torchrun may start


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of LLM, of which all ranks need the same."""
    options = given(args, ENGINE)
    if args.command is run_serve and options.get("device", "cpu") == "cpu":
        options.setdefault("max_num_batched_tokens", max(TOKENS_OF_A_STEP, options.get("max_num_seqs", 0)))
    return options


# ---- info


def run_info(_: argparse.Namespace) -> None:
    from minipage.trace.playing.spinner import spinner

    with spinner("looking around"):
        from minipage.info import print_info
    print_info()
