"""Every error that minipage raises on purpose. Each message says what was wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from reprlib import Repr


class MinipageError(Exception):
    """The root of all of them: `except MinipageError` catches every mistake that is not a bug of ours."""


class InvalidRequestError(MinipageError, ValueError):
    """A prompt or its sampling parameters cannot be served. Only this request is refused; the others go on."""


class RequestError(MinipageError):
    """A request that was being served cannot go on. It ends with finish_reason "error"; the others never notice."""


class EngineDeadError(MinipageError):
    """The engine has stopped: it was shut down, or something failed that it could not mend. It serves nobody more."""


class RankError(EngineDeadError):
    """A rank of tensor parallelism was lost: it ended, hangs, or ran out of memory. The others have a part each of the
    model, so the engine serves nobody more, and all its requests end with this error."""


class ConfigurationError(MinipageError, ValueError):
    """An engine, a pool or a block table was set up, or asked for something, with a value that makes no sense."""


class ModelError(MinipageError):
    """A model could not be found, read or understood."""


class TraceError(MinipageError):
    """A recorded trace cannot be read: it is damaged, no trace at all, or of a newer version."""


class LearnError(MinipageError):
    """Something about the exercises: no workspace, no such exercise, or code of the learner's that does not run."""


class OutOfBlocksError(MinipageError):
    """The block pool has fewer free blocks than were asked for. Nothing was allocated."""


class BlockError(MinipageError):
    """A block was freed twice, or shared while free, or does not exist: the caller's bookkeeping is wrong."""


class IntegrityError(MinipageError):
    """`check_integrity()` found that reference counts, free queue and block tables disagree."""


class KernelArgumentError(MinipageError, ValueError):
    """The arrays handed to an attention kernel do not fit together. Nothing was read or written."""


def count(number: int, noun: str) -> str:
    """1 block, 2 blocks: for every sentence with a number in it."""
    try:
        return f"{number:,} {noun}{'' if number == 1 else 's'}"
    except ValueError:  # Python writes no integers of over 4,300 digits
        return f"far too many {noun}s"


SHORT = Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = LONGEST = 80  # characters


def shown(value: object) -> str:
    """A value in a sentence, as one short line. Whatever it is, this raises nothing: the sentence has to come out."""
    try:
        text = " ".join(map(str.strip, SHORT.repr(value).splitlines()))  # of an array, each row has a line
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    except Exception:  # an integer of over 4,300 digits, or an object with a repr of its own
        return f"a value of type {type(value).__name__} that cannot be written out"


def require_positive(**settings: object) -> None:
    """Raise ConfigurationError unless each setting is a whole number of at least 1."""
    for name, value in settings.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name} is {shown(value)}; it must be a whole number of at least 1.")


def require(condition: object, message: str | Callable[[], str]) -> None:
    """Raise KernelArgumentError unless `condition` holds. Costly messages are functions, called only on failure."""
    if not condition:
        raise KernelArgumentError(message if isinstance(message, str) else message())
