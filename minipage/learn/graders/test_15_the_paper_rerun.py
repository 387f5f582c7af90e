"""Lesson 15: sums, a roofline and Little's law, worked out in fractions."""

from fractions import Fraction

from hypothesis import strategies as st

from minipage.learn.graders.common import every, expect, expect_number
from minipage.learn.graders.drawn import given, programs

QUICK = programs(120)
LENT = "It belongs to somebody else: leave the list of contexts as it is."
exactly = Fraction


def read(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens):
    return num_parameters * exactly(bytes_per_parameter) + kv_bytes_per_token * sum(context_lens)


def check_bytes(impl, *sizes, context_lens):
    impl.diary.begin()
    call = f"bytes_read({', '.join(map(str, sizes))}, {context_lens})"
    impl.diary.note(call)
    lent = list(context_lens)
    weights = sizes[0] * exactly(sizes[1])
    why = (
        f"The weights are {float(weights):g} bytes, and are read once for all {len(context_lens)} sequences. K and V "
        f"are {sizes[2]} bytes a token, in all layers, and there are {sum(context_lens)} tokens in the contexts."
    )
    expect_number(call, impl.bytes_read(*sizes, lent), read(*sizes, context_lens), why)
    expect("the contexts afterwards", lent, list(context_lens), LENT)


def test_15_1_the_example(impl):
    check_bytes(impl, 1000, 2, 10, context_lens=[5, 7])


sizes = st.tuples(st.integers(1, 50) | st.integers(10**8, 10**11), st.sampled_from([4, 2, 1, 0.5]), st.integers(1, 50))
contexts = st.lists(st.integers(1, 9) | st.integers(1, 10**5), min_size=1, max_size=6)


@QUICK
@given(sizes=sizes, context_lens=contexts)
def test_15_1_bytes_read(impl, sizes, context_lens):
    check_bytes(impl, *sizes, context_lens=context_lens)


def check_seconds(impl, *sizes, context_lens, bandwidth, flops):
    impl.diary.begin()
    call = f"step_seconds({', '.join(map(str, sizes))}, {context_lens}, bandwidth={bandwidth}, flops={flops})"
    impl.diary.note(call)
    lent = list(context_lens)
    reading = read(*sizes, context_lens) / exactly(bandwidth)
    computing = 2 * sizes[0] * len(context_lens) / exactly(flops)
    why = (
        f"Reading takes {float(reading):g} s, and computing {float(computing):g} s: for each of {len(context_lens)} "
        f"tokens a multiplication and an addition with each of {sizes[0]} parameters. They overlap: "
        "the longer one counts."
    )
    got = impl.step_seconds(*sizes, lent, bandwidth, flops)
    expect_number(call, got, max(reading, computing), why)
    expect("the contexts afterwards", lent, list(context_lens), LENT)


def test_15_2_the_examples(impl):
    check_seconds(impl, 1000, 2, 10, context_lens=[5, 7], bandwidth=100, flops=1000)
    check_seconds(impl, 1000, 2, 10, context_lens=[5, 7], bandwidth=100, flops=100)


@QUICK
@given(sizes=sizes, context_lens=contexts, bandwidth=st.integers(1, 40), flops=st.integers(1, 200))
def test_15_2_step_seconds(impl, sizes, context_lens, bandwidth, flops):
    check_seconds(impl, *sizes, context_lens=context_lens, bandwidth=bandwidth, flops=flops)


@every(batch=(1, 30, 182, 400), context=(1, 443, 2048))
def test_15_2_of_an_a100(impl, batch, context):
    check_seconds(impl, 12_853_473_280, 2, 819_200, context_lens=[context] * batch, bandwidth=1.368e12, flops=2.5e14)


def check_rate(impl, num_slots, tokens_held, seconds_per_step, num_output_tokens):
    impl.diary.begin()
    call = f"sustained_rate({num_slots}, {tokens_held}, {seconds_per_step}, {num_output_tokens})"
    impl.diary.note(call)
    running = num_slots / exactly(tokens_held)
    each = exactly(seconds_per_step) * exactly(num_output_tokens)
    why = (
        f"{float(running):g} requests run at a time, parts of them included, and each runs for {num_output_tokens} "
        f"steps of {seconds_per_step} s, which is {float(each):g} s. In that time all of them leave; as many may come."
    )
    expect_number(
        call, impl.sustained_rate(num_slots, tokens_held, seconds_per_step, num_output_tokens), running / each, why
    )


def test_15_3_the_example(impl):
    check_rate(impl, 1000, 100, 0.05, 200)


@every(
    num_slots=(7, 1000, 15_728), tokens_held=(3, 443, 2048.5), seconds_per_step=(0.05, 0.25), num_output_tokens=(1, 338)
)
def test_15_3_sustained_rate(impl, num_slots, tokens_held, seconds_per_step, num_output_tokens):
    check_rate(impl, num_slots, tokens_held, seconds_per_step, num_output_tokens)
