"""`minipage plan MODEL`: how many requests fit, and how fast they will be, from sizes alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OPTIONS: dict[str, tuple[Any, str, str]] = {  # of Deployment: kind, what stands for the value, meaning
    "gpu": (str, "NAME", "A100-40GB, A100-80GB, H100, H200 or EPYC-2-cores (default: H100)"),
    "memory": (str, "BYTES", "memory of a device, such as 24GiB, in place of the GPU's own"),
    "kv_cache_memory": (str, "BYTES", "memory for K and V on each device, in place of what is left"),
    "num_blocks": (int, "N", "blocks in the pool, in place of both"),
    "tensor_parallel_size": (int, "N", "devices that share the model (default: 1)"),
    "dtype": (str, "NAME", "of the weights: bfloat16 (the default), float16, float32, fp8, int8 or int4"),
    "kv_cache_dtype": (str, "NAME", "of keys and values: auto, float32, bfloat16, float16, int8 or fp8"),
    "block_size": (int, "N", "tokens in a block (default: 16)"),
    "gpu_memory_utilization": (float, "SHARE", "of the memory that may be used (default: 0.9)"),
    "max_model_len": (int, "N", "longest text in tokens, its prompt included (default: the model's context)"),
    "max_num_seqs": (int, "N", "most texts that run at once (default: 256)"),
    "max_num_batched_tokens": (int, "N", "most tokens computed in a step (default: 2048)"),
}


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a well-known model, a config.json, a folder, or a model on the hub")
    for name, (kind, value, meaning) in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar=value, help=meaning, default=argparse.SUPPRESS)
    parser.add_argument(
        "--lengths", metavar="WHAT", help="sharegpt (the default), alpaca, tokens in and out (512:128), or a .csv file"
    )
    parser.add_argument(
        "--rate", type=float, metavar="N", help="requests a second (default: as the file says, or 80 %% of the most)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other requests (default: 0)")
    parser.add_argument("--sizes-only", action="store_true", help="only bytes and blocks: nothing is simulated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, with the simulated minute")
    parser.set_defaults(command=run_plan)


def run_plan(args: argparse.Namespace) -> None:
    from minipage.errors import ConfigurationError
    from minipage.output import writing
    from minipage.trace.playing.spinner import spinner

    if args.seed < 0:
        raise ConfigurationError(f"the seed is {args.seed}; it must not be negative.")
    simulated = [name for name in ("lengths", "rate", "html") if getattr(args, name) is not None]
    if args.sizes_only and simulated:
        raise ConfigurationError(f"--{simulated[0]} is about what is simulated: leave it out, or --sizes-only.")
    if args.html and (args.html.is_dir() or not args.html.parent.is_dir()):
        raise ConfigurationError(f"--html is {str(args.html)!r}; it must be a file, in a folder that is there.")
    with spinner("reading the sizes of the model") as say:
        from minipage.plan.deployment import Deployment
        from minipage.plan.forecast import Workload, forecast
        from minipage.plan.report import numbers, page

        deployment = Deployment(args.model, **{name: value for name, value in vars(args).items() if name in OPTIONS})
        found = None
        if not args.sizes_only:
            say("simulating")
            lengths = "sharegpt" if args.lengths is None else args.lengths
            found = forecast(deployment, Workload(lengths, args.seed), args.rate)
    if args.html and found:
        with writing(args.html):
            args.html.write_text(page(deployment, found), encoding="utf-8")
    if args.json:
        import json

        print(json.dumps(finite(numbers(deployment, found))))
    else:
        show(deployment, found)


def finite(value: Any) -> Any:
    """JSON has no numbers that are none."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if value != value else value


def show(deployment: Any, found: Any) -> None:
    from rich import box
    from rich.table import Table

    from minipage.output import output_console
    from minipage.plan.report import advice_lines, rows

    console = output_console()
    title = f"{deployment.model} on {deployment.tensor_parallel_size} x {deployment.gpu}"
    table = Table(title=title, box=box.SIMPLE, show_header=False)
    for name, value in rows(deployment, found):
        table.add_row(name, value)
    console.print(table)
    if refusal := deployment.refusal():
        console.print(refusal)
    if found:
        console.print("What to change first:", *advice_lines(deployment, found), sep="\n  ")
