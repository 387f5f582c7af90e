"""Lesson 13: small tables of requests, and sums done the long way."""

from fractions import Fraction
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import every, expect, expect_number, must_raise, programs
from minipage.learn.judge import Wrong

QUICK = programs(120)


class Served(NamedTuple):
    arrival: float
    first_token: float
    finished: float
    num_tokens: int


LENT = "It belongs to somebody else, and values.sort() changes somebody else's list; sorted(values) makes a new one."
exactly = Fraction  # of a float: what it stands for, to the last bit


def check_percentile(impl, values, percent):
    impl.diary.begin()
    call = f"percentile({values}, {percent})"
    impl.diary.note(call)
    lent = list(values)
    place, in_order = (len(values) - 1) * exactly(percent) / 100, sorted(map(exactly, values))
    below, above = in_order[int(place)], in_order[min(int(place) + 1, len(values) - 1)]
    due = below + (above - below) * (place - int(place))
    why = (
        f"Sorted: {sorted(values)}. Its members have the places 0 to {len(values) - 1}, and {percent} % of the way is "
        f"place {float(place):g}."
    )
    expect_number(call, impl.percentile(lent, percent), due, why, size=max(abs(in_order[0]), abs(in_order[-1])))
    expect("the list afterwards", lent, values, LENT)


def test_13_1_the_example(impl):
    check_percentile(impl, [10, 20], 50)


small, large = st.integers(-20, 20), st.floats(-1e6, 1e6, width=32)
numbers = st.lists(small, min_size=1, max_size=6) | st.lists(large, min_size=1, max_size=12)


@QUICK
@given(
    values=numbers,
    percent=st.sampled_from([0, 10, 25, 50, 75, 90, 99, 99.9, 100])
    | st.integers(0, 100)
    | st.sampled_from([12.5, 0.5]),
)
def test_13_1_percentile(impl, values, percent):
    check_percentile(impl, values, percent)


def test_13_1_times_of_a_clock(impl):
    """Seconds since 1970 need more digits than float32 has."""
    impl.diary.begin()
    values = [1.7e9 + i / 8 for i in range(9)]
    impl.diary.note(f"percentile({values}, 50)")
    got = impl.percentile(list(values), 50)
    why = "Times of a clock are large numbers that differ by little: float32 has 7 digits, which are too few for them."
    expect_number("the percentile", got, exactly(values[4]), why)
    if not abs(float(got) - values[4]) < 0.01:
        raise Wrong(why, values[4], float(got), "the percentile")


def test_13_1_no_values(impl):
    impl.diary.begin()
    must_raise(ValueError, lambda: impl.percentile([], 50), "No values have no percentile: raise ValueError.")


def served_at(unit):
    """Requests whose times are whole numbers of `unit` seconds, some of which lie long after the clock began."""
    return st.builds(
        lambda start, arrival, wait, more, tokens: Served(
            *((start + t) * unit for t in (arrival, arrival + wait, arrival + wait + more)), tokens
        ),
        st.sampled_from([0, 0, 5, int(1.7e9 / unit)]), st.integers(0, 8), st.integers(1, 4), st.integers(0, 8),
        st.integers(1, 10) | st.integers(1, 3000),
    )  # fmt: skip


tables = st.one_of(*(st.lists(served_at(unit), min_size=1, max_size=5) for unit in (1, 0.125, 1000)))


def note(impl, function, served):
    impl.diary.begin()
    impl.diary.note(f"{function}(served) with (arrival, first_token, finished, num_tokens) =")
    for request in served:
        impl.diary.note(f"    {tuple(request)}")


@QUICK
@given(served=tables)
def test_13_2_throughput(impl, served):
    note(impl, "throughput", served)
    begin, end = min(r.arrival for r in served), max(r.finished for r in served)
    tokens, lent = sum(r.num_tokens for r in served), list(served)
    why = (
        f"{tokens} tokens went out between the first arrival ({begin}) and the last token of all ({end}). Requests "
        "run at the same time, so their times are not added, and their rates are not averaged."
    )
    expect_number("the throughput", impl.throughput(lent), tokens / (exactly(end) - exactly(begin)), why)
    expect("the list afterwards", lent, served, LENT)


@QUICK
@given(served=tables)
def test_13_3_normalised_latency(impl, served):
    note(impl, "normalised_latency", served)
    due, lent = (
        sum((exactly(r.finished) - exactly(r.arrival)) / r.num_tokens for r in served) / len(served),
        list(served),
    )
    why = (
        "Each request has its own seconds a token, from its arrival (waiting counts) to its last token; the mean "
        "is over requests, so that a short one counts as much as a long one."
    )
    expect_number("the normalised latency", impl.normalised_latency(lent), due, why)
    expect("the list afterwards", lent, served, LENT)


def check_capacity(impl, memory, bytes_per_token, block_size, num_tokens):
    impl.diary.begin()
    sizes = f"bytes_per_token={bytes_per_token}, block_size={block_size}, num_tokens={num_tokens}"
    impl.diary.note(f"capacity(memory={memory}, {sizes})")
    there, each = memory // (bytes_per_token * block_size), len(range(0, num_tokens, block_size))
    why = (
        f"A block takes {bytes_per_token * block_size} bytes, so there are {there} whole blocks; a request takes "
        f"{each}, the last one part empty perhaps. Requests count whole, too."
    )
    expect("the capacity", impl.capacity(memory, bytes_per_token, block_size, num_tokens), there // each, why)


def test_13_4_the_example(impl):
    check_capacity(impl, 1000, 10, 16, 20)


@every(memory=range(0, 60, 5), bytes_per_token=range(1, 4), block_size=range(1, 4), num_tokens=range(1, 6))
def test_13_4_capacity(impl, memory, bytes_per_token, block_size, num_tokens):
    check_capacity(impl, memory, bytes_per_token, block_size, num_tokens)


@every(block_size=(128, 1000, 4096), more=(-1, 0, 1), full=(1, 3))
def test_13_4_of_large_blocks(impl, block_size, more, full):
    check_capacity(impl, 100 * block_size, 1, block_size, full * block_size + more)


@every(
    memory=(2**34, 10**10 + 7, 2**34 - 1), bytes_per_token=(36_864, 131_072), block_size=(16, 31), num_tokens=(1, 700)
)
def test_13_4_of_a_real_machine(impl, memory, bytes_per_token, block_size, num_tokens):
    check_capacity(impl, memory, bytes_per_token, block_size, num_tokens)
