"""Lesson 1: slots are counted one by one."""

from fractions import Fraction

from hypothesis import strategies as st

from minipage.learn.graders.common import QUICK, every, expect, expect_number
from minipage.learn.graders.drawn import given
from minipage.learn.judge import Wrong

lengths_up_to = {most: st.lists(st.integers(0, most), max_size=5) for most in (4, 5000)}


def check_share(impl, name, lengths, argument, reserved):
    """`reserved`: the slots that are taken, counted by us."""
    used = sum(lengths)
    due = Fraction(reserved - used, reserved) if reserved else Fraction(0)
    call = f"{name}({lengths}, {argument})"
    impl.diary.begin()
    impl.diary.note(call)
    why = f"{reserved} slots are taken and {used} of them used, so the share that is wasted is (taken - used) / taken."
    given_list = list(lengths)
    try:
        got = getattr(impl, name)(given_list, argument)
    except ZeroDivisionError as error:
        if reserved:
            raise
        raise Wrong(nothing_taken(lengths), 0.0, error, call) from error
    if not reserved:
        why = nothing_taken(lengths)
    elif isinstance(got, int | float) and abs(got - used / reserved) < 1e-9 < abs(got - due):
        why = "This is the share that is used. Asked for is the share that is wasted."
    elif isinstance(got, int | float) and abs(got - 100 * due) < 1e-6 < abs(got - due):
        why = "This is in per cent. Asked for is a share, from 0.0 to 1.0."
    expect_number(call, got, due, why, size=1)
    expect("the list afterwards", given_list, lengths, "The list that was handed in belongs to somebody else: copy it.")


def nothing_taken(lengths):
    who = "With no request" if not lengths else "When no request ever stores a token"
    return f"{who} no slot is taken, and nothing is wasted: 0.0, not a division by 0."


def check_reserved(impl, lengths, max_len):
    check_share(impl, "reserved_waste", lengths, max_len, max_len * len(lengths))


def check_paged(impl, lengths, size):
    check_share(impl, "paged_waste", lengths, size, sum(len(range(0, n, size)) * size for n in lengths))


def check_fit(impl, needed, num_slots):
    due, left = 0, num_slots
    for slots in needed:
        if slots > left:
            break
        due, left = due + 1, left - slots
    call = f"how_many_fit({needed}, num_slots={num_slots})"
    impl.diary.begin()
    impl.diary.note(call)
    why = (
        "First come, first served: each takes its slots from what is left (exactly full is still a fit), and when one "
        "does not fit, nobody behind it may overtake."
    )
    given_list = list(needed)
    got = impl.how_many_fit(given_list, num_slots)
    expect(call, got, due, why if needed else "Nobody came, so nobody fits.")
    expect("the list afterwards", given_list, needed, "The list that was handed in belongs to somebody else: copy it.")


def test_1_1_the_example(impl):
    check_reserved(impl, [100, 300], 400)


@QUICK
@given(data=st.data(), max_len=st.integers(1, 5) | st.integers(1, 5000))
def test_1_1_reserved_waste(impl, data, max_len):
    check_reserved(impl, data.draw(st.lists(st.integers(0, max_len), max_size=5)), max_len)


def test_1_2_the_example(impl):
    check_paged(impl, [5, 8], 4)


@every(size=(128, 1000, 4096), more=(-1, 0, 1), full=(1, 3))
def test_1_2_large_blocks(impl, size, more, full):
    check_paged(impl, [full * size + more, size], size)


@QUICK
@given(lengths=lengths_up_to[4] | lengths_up_to[5000], size=st.integers(1, 5) | st.integers(1, 64))
def test_1_2_paged_waste(impl, lengths, size):
    check_paged(impl, lengths, size)


def test_1_3_the_example(impl):
    check_fit(impl, [400, 400, 400, 10], 1000)


@QUICK
@given(needed=lengths_up_to[4] | lengths_up_to[5000], data=st.data())
def test_1_3_how_many_fit(impl, needed, data):
    """The slots are just enough for some of them, or a few more, or fewer."""
    some = sum(needed[: data.draw(st.integers(0, len(needed)))])
    check_fit(impl, needed, max(0, some + data.draw(st.integers(-2, 2))))
