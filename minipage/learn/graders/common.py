"""What the graders have in common: ways to run them, and to say what is wrong."""

import math
import operator
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import wraps
from itertools import product
from numbers import Integral, Real
from typing import Any

import numpy as np
from hypothesis.stateful import run_state_machine_as_test

from minipage.learn.graders.drawn import programs, settings
from minipage.learn.judge import Wrong

QUICK = programs(80)


def every(**ranges):
    """Run a grader with every combination of these numbers, the small ones first: the first failure is small."""

    def decorate(grader):
        @wraps(grader)
        def graded(impl):
            for numbers in sorted(product(*ranges.values()), key=sum):
                grader(impl, **dict(zip(ranges, numbers)))

        del graded.__wrapped__  # or pytest would ask for the numbers as fixtures
        return graded

    return decorate


# ---- comparing, so that nothing but the value decides: not its type's own idea of equality

PLAIN = {int, bool, str, bytes}  # types of which nobody can have an own idea
NOTHING = "Nothing came back (None): is there a `return`?"


class Words(str):
    """Shown as it is, where other strings are shown in quotes."""

    __slots__ = ()

    def __repr__(self):
        return str(self)


def expect(what: str, got: Any, expected: Any, why: str) -> None:
    """`what` names what is looked at, for example "pool.free_queue"."""
    if is_same(got, expected):
        return
    if kind := wrong_kind(got, expected):
        raise Wrong(f"{why} {kind}", expected, got, what)
    if differs(got, expected):
        raise Wrong(why, expected, got, what)


def is_same(got: Any, expected: Any) -> bool:
    """Whether both are the same, and Python's own types through and through, as nearly all values are. A quick look."""
    kind = type(expected)
    if type(got) is not kind:
        return False
    if kind in PLAIN:
        return bool(got == expected)
    if kind not in (list, tuple, dict) or len(got) != len(expected):
        return False
    if kind is dict:
        return all(key in got and is_same(got[key], value) for key, value in expected.items())
    return all(map(is_same, got, expected))


def wrong_kind(got: Any, expected: Any) -> str:
    """A sentence if `got` is another kind of thing than what is expected, else nothing."""
    if got is None and expected is not None:
        return NOTHING
    if isinstance(expected, list | tuple):
        kind = list if isinstance(expected, list) else tuple
        if not isinstance(got, kind):
            return f"It has to be a {kind.__name__}, not {name_of(got)}."
        return next((kind for pair in zip(got, expected) if (kind := wrong_kind(*pair))), "")
    if isinstance(expected, Integral):
        if not isinstance(got, Integral | np.bool_):
            return f"It has to be a whole number, an int, not {name_of(got)}."
    elif isinstance(expected, Real) and number_of(got) is None:
        return f"It has to be a number, not {name_of(got)}."
    elif isinstance(expected, str | bytes | dict) and not isinstance(got, type(expected)):
        return f"It has to be {type(expected).__name__}, not {name_of(got)}."
    return ""


def differs(got: Any, expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        return len(got) != len(expected) or any(differs(*pair) for pair in zip(got, expected))
    if isinstance(expected, dict):
        return len(got) != len(expected) or any(k not in got or differs(got[k], expected[k]) for k in expected)
    if isinstance(expected, Integral):
        number = bool(got) if isinstance(got, np.bool_) else operator.index(got)
        return int.__add__(number, 0) != int(expected)
    if isinstance(expected, str | bytes):
        return bool(type(expected).__ne__(expected, got))
    if isinstance(expected, Real):
        return bool(number_of(got) != expected)
    return got is not expected and (type(got) is not type(expected) or bool(expected != got))


def name_of(thing: Any) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    kind = type(thing).__name__
    return ("an " if kind[0] in "aeiou" else "a ") + kind


# ---- numbers


def number_of(got: Any) -> Fraction | float | None:
    """Whatever is one number (of Python's, NumPy's, a Fraction, a Decimal), exactly; None if it is none."""
    if isinstance(got, np.ndarray) and got.shape == ():
        got = got[()]
    if isinstance(got, bool | np.bool_) or not isinstance(got, Real | Decimal):
        return None
    return Fraction(got) if isinstance(got, Integral | Fraction) else exact(float(got))


def exact(number: float) -> Fraction | float:
    return Fraction(number) if math.isfinite(number) else number


def expect_number(what: str, got: Any, due: Fraction | float, why: str, size: float = 0) -> None:
    """As near as arithmetic can be; `size`: of the largest number that was computed with, if more than `due`."""
    number = number_of(got)
    if number is None:
        kind = f"It has to be one number, not {name_of(got)}." if got is not None else NOTHING
        raise Wrong(f"{why} {kind}", shown(due), got, what)
    precision = 1e-6 if isinstance(got, np.floating) and got.itemsize < 8 else 1e-13
    if not abs(number - due) <= precision * max(abs(due), size):
        raise Wrong(why, shown(due), shown(number), what)


def shown(number: Fraction | float) -> Any:
    return int(number) if number == number // 1 and abs(number) < 2**53 else float(number)


# ---- running


def must_raise(error: type[BaseException], operation: Callable[[], Any], why: str) -> None:
    """The operation has to raise this error, and no other."""
    due = Words(f"raise {error.__name__}")
    try:
        result = operation()
    except error:
        return
    except NotImplementedError:
        raise
    except Exception as other:
        raise Wrong(why, due, Words(f"{type(other).__name__}: {other}")) from other
    raise Wrong(why, due, Words(f"no error; it returned {result!r}"))


def passes(solution, grader) -> bool:
    """Whether a grader of another exercise has nothing to say: what was said there is not said again."""
    known = solution.known_outcomes
    if grader not in known:
        try:
            grader(solution)
        except NotImplementedError:
            raise
        except Exception:
            known[grader] = False
        else:
            known[grader] = True
    return known[grader]


def remembered(grader):
    """A grader that notes how it ended, for `passes`."""

    @wraps(grader)
    def graded(impl):
        known = impl.known_outcomes
        try:
            grader(impl)
        except NotImplementedError:
            raise
        except Exception:
            known[graded] = False
            raise
        known[graded] = True

    return graded


def run_machine(solution, machine, count=60, num_steps=15):
    """Run a state machine, and begin the diary anew with each of its programs."""

    class WithDiary(machine):
        def __init__(self):
            solution.diary.begin()
            super().__init__()

        def note(self, line):
            solution.diary.note(line)

    run_state_machine_as_test(WithDiary, settings=settings(count, num_steps))
