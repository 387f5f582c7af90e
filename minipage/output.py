"""What every command prints to, and how it ends: standard streams that take any text, and an exit code.

0 fine; 1 something failed on the way; 2 bad input, one sentence says what; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from minipage.errors import MinipageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from minipage.sampling import Logprob

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def run_command(run: Callable[[], int]) -> int:
    """The exit code of what `run` does, which may raise."""
    prepare_streams()
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # after --help, too, what goes wrong here is ours to handle
    except MinipageError as error:
        complain(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        if sys.stderr.isatty():  # it has just written ^C, and what comes next should begin a line
            with suppress(OSError):
                print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough: `| head`
        return 0
    except OverflowError as error:
        complain(f"a number is too large ({error}).")
        return BAD_INPUT
    except (OSError, MemoryError) as error:
        complain(str(error) or "out of memory")
        return FAILED
    finally:
        for stream in sys.stdout, sys.stderr:
            write_or_drop(stream)


def complain(message: str) -> None:
    with suppress(OSError):  # on a full disk, for example
        print(f"minipage: {message}", file=sys.stderr)


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Whatever keeps a file or a folder from being written, is said with its name."""
    try:
        yield
    except FileExistsError as error:
        raise OSError(f"{str(path)!r} is no folder; give a folder, or a new name.") from error
    except OSError as error:
        raise OSError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def write_or_drop(stream: TextIO) -> None:
    """What cannot be written, Python would try again when it ends, and complain."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def finite(logprob: float) -> float:
    """JSON has no number for minus infinity; in its place is what vLLM says."""
    return max(logprob, -9999.0)


def by_token_id(logprobs: Iterable[dict[int, Logprob] | None]) -> list[dict[int, dict[str, Any]] | None]:
    """Log probabilities as JSON, in vLLM's format: for each token, itself and the likeliest by their ids."""
    return [
        {token: each._asdict() | {"logprob": finite(each.logprob)} for token, each in known.items()} if known else None
        for known in logprobs
    ]


def output_console(**options: Any) -> Console:
    """On standard output. When the reader of a pipe has seen enough, rich ends the process; here the caller decides.

    What is printed is no markup: a model or a file may well be called `[/x]`.
    """
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(highlight=False, markup=False, **options)


def print_whole(console: Console, table: Table) -> None:
    """With all its numbers: rich leaves out those without room. A terminal that is too narrow breaks the lines."""
    for column in table.columns:
        if column.no_wrap:  # which rich forgets when it measures
            column.min_width = max(len(str(cell)) for cell in [column.header, *column.cells])
    least = console.measure(table, options=console.options.update(width=1000)).minimum
    if least > console.width:
        table.width = least
    console.print(table, crop=False)


def prepare_streams() -> None:
    """Let each take any text; one that is closed, as under cron or with `<&-`, has nothing, and leads nowhere."""
    for size in {"COLUMNS", "LINES"} & os.environ.keys():
        if os.environ[size] not in map(str, range(2, 10_001)):  # 0, of terminals that do not know, or no size at all
            del os.environ[size]
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
