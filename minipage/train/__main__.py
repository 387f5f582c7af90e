"""The command: `python -m minipage.train TEXT --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minipage.errors import ConfigurationError, shown
from minipage.output import INTERRUPTED, run_command
from minipage.train.settings import Settings

if TYPE_CHECKING:
    from minipage.train.training import Training


def show(training: Training) -> None:
    """Train, with a progress bar on a terminal, and a line for each validation everywhere."""
    columns = BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, expand=True, disable=not (sys.stdout and sys.stdout.isatty())) as progress:
        bar = progress.add_task("", total=training.settings.steps)
        for loss, validation in training.run():
            progress.update(bar, completed=training.step, description=f"loss {loss:.3f}")
            if validation is not None:
                print(f"step {training.step}: {loss:.3f} nats/token, validation {validation:.4f} nats/char", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(lambda: run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser("python -m minipage.train", description="Train a small GPT on a text file.")
    parser.add_argument("text", type=Path, help="a UTF-8 text file; its last tenth is kept for validation")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; a run begun there goes on")
    for f in fields(Settings):
        parser.add_argument("--" + f.name.replace("_", "-"), type=type(f.default), default=f.default, **f.metadata)
    args = vars(parser.parse_args(arguments))
    file, out = args.pop("text"), args.pop("out")
    settings, text = Settings(**args), read(file)
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out is {str(out)!r}, which is a file; it must be a folder.")
    from minipage.trace.playing.spinner import spinner

    try:
        with spinner("loading PyTorch"):
            import torch

            from minipage.train.training import Training
        with spinner("reading the text"):  # another one, which names the kernel that is compiled
            training = Training(text, out, settings, "cuda" if torch.cuda.is_available() else "cpu")
        show(training)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last validation", file=sys.stderr)
        return INTERRUPTED
    except ImportError as error:
        raise ConfigurationError(f"{error}. Training needs PyTorch: pip install 'minipage[torch]'.") from error
    except RuntimeError as error:  # of PyTorch, which has no other for too little memory
        if "memory" not in str(error):
            raise
        raise MemoryError(f"there is no memory for such a network: {shown(str(error))}") from error
    print(f"validation loss {training.best:.4f} nats per character; the model is in {out}")
    return 0


def read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text.") from error
    except OSError as error:
        raise ConfigurationError(f"{str(file)!r} cannot be read: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
