"""Lesson 13: small tables of requests, and sums done the long way."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import every, expect, must_raise, programs
from minipage.learn.judge import Wrong

QUICK = programs(80)


class Served(NamedTuple):
    arrival: float
    first_token: float
    finished: float
    num_tokens: int


def close(what, got, due, why):
    if not isinstance(got, int | float) or abs(got - due) > 1e-9 * (1 + abs(due)):
        raise Wrong(why, due, got, what)


@QUICK
@given(
    values=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    percent=st.sampled_from([0, 10, 25, 50, 75, 90, 99, 100]),
)
def test_13_1_percentile(impl, values, percent):
    impl.diary.begin()
    impl.diary.note(f"percentile({values}, {percent})")
    handed_in = list(values)
    place, in_order = (len(values) - 1) * percent / 100, sorted(values)
    below, above = in_order[int(place)], in_order[min(int(place) + 1, len(values) - 1)]
    due = below + (above - below) * (place - int(place))
    why = (
        f"Sorted: {in_order}. Its members have the places 0 to {len(values) - 1}, and {percent} % of the way is place "
        f"{place:g}."
    )
    close(f"percentile({values}, {percent})", impl.percentile(handed_in, percent), due, why)
    expect(
        "the list afterwards", handed_in, values, "values.sort() changes somebody else's list; sorted(values) does not."
    )


def test_13_1_no_values(impl):
    must_raise(ValueError, lambda: impl.percentile([], 50), "No values have no percentile: raise ValueError.")


requests = st.builds(
    lambda arrival, wait, more, tokens: Served(arrival, arrival + wait, arrival + wait + more, tokens),
    st.integers(0, 8), st.integers(1, 4), st.integers(0, 8), st.integers(1, 10),
)  # fmt: skip
tables = st.lists(requests, min_size=1, max_size=4)


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
    tokens = sum(r.num_tokens for r in served)
    why = (
        f"{tokens} tokens went out between the first arrival ({begin}) and the last token of all ({end}). Requests "
        "run at the same time, so their times are not added, and their rates are not averaged."
    )
    close("the throughput", impl.throughput(list(served)), tokens / (end - begin), why)


@QUICK
@given(served=tables)
def test_13_3_normalised_latency(impl, served):
    note(impl, "normalised_latency", served)
    due = sum((r.finished - r.arrival) / r.num_tokens for r in served) / len(served)
    why = (
        "Each request has its own seconds a token, from its arrival (waiting counts) to its last token; the mean "
        "is over requests, so that a short one counts as much as a long one."
    )
    close("the normalised latency", impl.normalised_latency(list(served)), due, why)


@every(memory=range(0, 60, 5), bytes_per_token=range(1, 4), block_size=range(1, 4), num_tokens=range(1, 6))
def test_13_4_capacity(impl, memory, bytes_per_token, block_size, num_tokens):
    impl.diary.begin()
    sizes = f"bytes_per_token={bytes_per_token}, block_size={block_size}, num_tokens={num_tokens}"
    impl.diary.note(f"capacity(memory={memory}, {sizes})")
    there, each = memory // (bytes_per_token * block_size), len(range(0, num_tokens, block_size))
    why = (
        f"A block takes {bytes_per_token * block_size} bytes, so there are {there} whole blocks; a request takes "
        f"{each}, the last one part empty perhaps. Requests count whole, too."
    )
    expect("the capacity", impl.capacity(memory, bytes_per_token, block_size, num_tokens), there // each, why)
