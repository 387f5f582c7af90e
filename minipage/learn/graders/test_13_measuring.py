"""Lesson 13: small tables of requests, and sums done the long way; a router beside a list of what was told."""

from fractions import Fraction
from typing import NamedTuple

from hypothesis import strategies as st

from minipage.learn.graders.common import every, expect, expect_number, must_raise
from minipage.learn.graders.drawn import given, programs
from minipage.learn.graders.routers import Told
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


INFINITE = float("inf")


def check_histogram(impl, buckets, percent):
    impl.diary.begin()
    call = f"histogram_percentile({buckets}, {percent})"
    impl.diary.note(call)
    lent, total = list(buckets), buckets[-1][1]
    place = exactly(percent) * total / 100
    i = next(i for i, (_, count) in enumerate(buckets) if count >= place)
    low, passed = buckets[i - 1] if i else (0, 0)
    high, count = buckets[i]
    if high == INFINITE:
        due = exactly(low)
        why = (
            f"{float(place):g} values are passed only in the last bucket, of which nothing is known but where it "
            f"begins: {low}."
        )
    else:
        due = exactly(low) + (exactly(high) - exactly(low)) * (place - passed) / (count - passed)
        why = (
            f"{percent} % of {total} values are {float(place):g}. {passed} do not exceed {low}, and {count} do not "
            f"exceed {high}: so it lies between these bounds, {float(place - passed):g} / {count - passed} of the way."
        )
    expect_number(call, impl.histogram_percentile(lent, percent), due, why, size=float(due))
    expect("the buckets afterwards", lent, buckets, LENT)


def test_13_5_the_example(impl):
    check_histogram(impl, [(0.1, 6), (0.3, 10), (INFINITE, 10)], 80)


def histograms(counts):
    """Bounds as vLLM has them, and counts that rise; some buckets are empty."""
    bounds = st.lists(
        st.sampled_from([0.001, 0.005, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10, 160.0]),
        min_size=1,
        max_size=6,
        unique=True,
    )
    return st.tuples(bounds, st.lists(counts, min_size=7, max_size=7)).map(
        lambda both: [(bound, sum(both[1][: i + 1])) for i, bound in enumerate([*sorted(both[0]), INFINITE])]
    )


@QUICK
@given(
    buckets=histograms(st.sampled_from([0, 1, 2, 5]) | st.integers(0, 10_000)).filter(lambda buckets: buckets[-1][1]),
    percent=st.sampled_from([100, 50, 99, 25, 99.9]) | st.integers(1, 100),
)
def test_13_5_histogram_percentile(impl, buckets, percent):
    check_histogram(impl, buckets, percent)


@every(empty=range(3), percent=(1, 50, 100))
def test_13_5_empty_buckets(impl, empty, percent):
    check_histogram(impl, [(i + 1.0, 0) for i in range(empty)] + [(5.0, 4), (6.0, 4), (INFINITE, 4)], percent)


def test_13_5_no_values(impl):
    impl.diary.begin()
    buckets = [(1.0, 0), (INFINITE, 0)]
    must_raise(
        ValueError, lambda: impl.histogram_percentile(buckets, 50), "No values have no percentile: raise ValueError."
    )


LATENCY = "vllm:e2e_request_latency_seconds"


def check_law(impl, ended, took, seconds, earlier=(0, 0)):
    impl.diary.begin()
    impl.diary.note(
        f"littles_law(before, after, {seconds}), the count {earlier[0]} and then {earlier[0] + ended}, the sum "
    )
    impl.diary.note(f"    {earlier[1]} and then {earlier[1] + took}")
    before, after = (
        {LATENCY + "_count": count, LATENCY + "_sum": total, "vllm:num_requests_running": 3.0}
        for count, total in (earlier, (earlier[0] + ended, earlier[1] + took))
    )
    lent = dict(before), dict(after)
    got = impl.littles_law(*lent, seconds)
    why = "Three numbers come back: the rate, the mean time, and how many were inside."
    try:
        rate, mean_time, inside = got
    except (TypeError, ValueError):
        raise Wrong(why, "three numbers", got, "what came back") from None
    since = "Both counters run since the server's start: what was added between the looks is what counts."
    if not ended:
        since += " None ended: all three numbers are 0."
    gone, spent = exactly(ended), exactly(earlier[1] + took) - exactly(earlier[1])
    size = float(earlier[1] + took)
    expect_number("the rate", rate, gone / exactly(seconds), f"{ended} ended in {seconds} s. {since}")
    why = f"{ended} took {took} s together. {since}"
    expect_number("the mean time", mean_time, spent / gone if gone else 0, why, size=size)
    why = "Little's law: how many are inside = how many come and go a second, times the seconds that each stays."
    expect_number("how many were inside", inside, spent / exactly(seconds), f"{why} {since}", size=size)
    expect("the numbers of the first look afterwards", lent[0], before, LENT)
    expect("the numbers of the second look afterwards", lent[1], after, LENT)


def test_13_6_from_the_start(impl):
    check_law(impl, ended=10, took=20, seconds=5)


def test_13_6_none_ended(impl):
    check_law(impl, ended=0, took=0, seconds=5, earlier=(7, 3.5))


@QUICK
@given(
    ended=st.integers(1, 10_000), took=st.integers(1, 4000).map(lambda n: n / 8),
    seconds=st.sampled_from([1, 5, 15, 0.5, 60]),
    earlier=st.tuples(st.integers(0, 50), st.integers(0, 400).map(lambda n: n / 4)),
)  # fmt: skip
def test_13_6_littles_law(impl, ended, took, seconds, earlier):
    check_law(impl, ended, took, seconds, earlier)


def test_13_7_the_longest_prefix_wins(impl):
    told = Told(impl, 2, 4)
    for server, text in [("A", (1, 1)), ("B", (1, 1)), ("B", (1, 1, 2, 2)), ("C", (3, 3))]:
        told.store(server, text)
    told.choose((1, 1, 2, 2, 5), {"A": 0, "B": 3, "C": 0})
    told.choose((1, 1, 2, 5), {"A": 0, "B": 3, "C": 0})
    told.choose((1, 1), {"A": 0, "B": 3, "C": 0})
    told.choose((1, 1, 2), {"A": 0, "B": 3, "C": 0})  # 2 alone is no block
    told.choose((1, 1, 2, 2, 5), {"A": 0, "B": 4, "C": 0})
    told.choose((1, 1, 2, 2, 5), {"A": 0, "B": 5, "C": 0})
    told.choose((7, 7), {"C": 1, "B": 1, "A": 1})


def test_13_7_a_block_counts_only_after_its_parent(impl):
    told = Told(impl, 2, 4)
    for text in [(9, 9), (9, 9, 2, 2), (1, 1), (1, 1, 2, 2, 3, 3)]:
        told.store("A", text)
    told.store("B", (1, 1))
    for prompt in [(2, 2), (1, 1, 2, 2), (1, 1, 3, 3), (1, 1, 2, 2, 3, 3)]:
        told.choose(prompt, {"A": 1, "B": 0})
    told.choose((9, 9, 2, 2), {"A": 1, "B": 0})
    told.store("B", (1, 1, 2, 2))
    told.store("A", (1, 1, 2, 2))  # now it is told of the parent, too
    told.choose((1, 1, 2, 2, 3, 3), {"A": 1, "B": 0})


def test_13_7_what_is_removed_may_come_back(impl):
    told = Told(impl, 1, 9)
    told.store("A", (1,))
    told.store("A", (1, 2))
    told.store("B", (1,))
    told.remove("A", (1,))
    told.choose((1, 2), {"A": 0, "B": 1})
    told.store("A", (1,))
    told.choose((1, 2), {"A": 1, "B": 0})


blocks = st.tuples(st.sampled_from("AB"), st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple))
acts = st.tuples(st.sampled_from(["store", "store", "remove"]), blocks) | st.tuples(
    st.just("choose"),
    st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple),
        st.dictionaries(st.sampled_from("ABC"), st.integers(0, 4), min_size=1),
    ),
)


@QUICK
@given(block_size=st.sampled_from([1, 2]), most_ahead=st.integers(0, 3), history=st.lists(acts, max_size=14))
def test_13_7_router(impl, block_size, most_ahead, history):
    told = Told(impl, block_size, most_ahead)
    for act, (first, second) in history:
        if act == "choose":
            told.choose(in_blocks(first, block_size) + first[:1], second)
        else:
            getattr(told, act)(first, in_blocks(second, block_size))
    for text in sorted({text for _, text in told.hashes}):
        for end in range(block_size, len(text) + 1, block_size):  # who has more of it than C, which gets more and more?
            told.store("C", text[:end])
            told.choose(text, {"A": 1, "C": 0})
            told.choose(text, {"B": 1, "C": 0})


def in_blocks(text, block_size):
    """Each token as often as a block is long, so that texts have beginnings in common, whatever the size."""
    return tuple(token for token in text for _ in range(block_size))
