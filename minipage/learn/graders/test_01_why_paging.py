"""Lesson 1: slots are counted one by one."""

from minipage.learn.graders.common import every, expect
from minipage.learn.judge import Wrong


def check_share(impl, name, argument, lengths, reserved):
    used = sum(lengths)
    due = (reserved - used) / reserved if reserved else 0.0
    impl.diary.begin()
    impl.diary.note(f"{name}({lengths}, {argument})")
    got = getattr(impl, name)(list(lengths), argument)
    why = f"{reserved} slots are taken and {used} of them used, so the share that is wasted is (taken - used) / taken."
    if not reserved:
        why = "With no request no slot is taken, and nothing is wasted: 0.0, not a division by 0."
    elif isinstance(got, float | int) and abs(got - used / reserved) < 1e-9:
        why = "This is the share that is used. Asked for is the share that is wasted."
    if not isinstance(got, float | int) or abs(got - due) > 1e-9:
        raise Wrong(why, due, got, f"{name}({lengths}, {argument})")


@every(first=range(5), second=range(5))
def test_1_1_reserved_waste(impl, first, second):
    lengths = [n for n in (first, second) if n]
    check_share(impl, "reserved_waste", 4, lengths, 4 * len(lengths))


@every(first=range(7), second=range(7), size=range(1, 5))
def test_1_2_paged_waste(impl, first, second, size):
    lengths = [n for n in (first, second) if n]
    check_share(impl, "paged_waste", size, lengths, sum(len(range(0, n, size)) * size for n in lengths))


@every(first=range(1, 5), second=range(1, 5), third=range(1, 5), num_slots=range(10))
def test_1_3_how_many_fit(impl, first, second, third, num_slots):
    needed, due, left = [first, second, third], 0, num_slots
    for slots in needed:
        if slots > left:
            break
        due, left = due + 1, left - slots
    impl.diary.begin()
    impl.diary.note(f"how_many_fit({needed}, num_slots={num_slots})")
    why = (
        "First come, first served: each takes its slots from what is left (exactly full is still a fit), and when one "
        "does not fit, nobody behind it may overtake."
    )
    expect(f"how_many_fit({needed}, {num_slots})", impl.how_many_fit(list(needed), num_slots), due, why)


def test_1_3_nobody_comes(impl):
    expect("how_many_fit([], 10)", impl.how_many_fit([], 10), 0, "Nobody came, so nobody fits.")
