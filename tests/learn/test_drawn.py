"""Graders' random examples: drawn once, the same for everybody, and small for whoever fails one."""

import random

import pytest
from hypothesis import strategies as st

from minipage.learn.graders.drawn import given, programs

lists = st.lists(st.integers(0, 99), max_size=6)


def grader(body):
    def graded(impl, numbers):
        body(impl, numbers)

    return programs(40)(given(numbers=lists)(graded))


def test_everybody_is_asked_the_same_and_hypothesis_draws_once():
    judged = grader(lambda impl, numbers: impl.append(list(numbers)))
    ann, ben = [], []
    judged(ann)
    drawn = judged.draw()
    judged(ben)
    assert ann == ben == [example["numbers"] for example in drawn] and len(ann) == 40
    assert judged.draw() is drawn and len({tuple(numbers) for numbers in ann}) > 20


def test_what_somebody_does_to_an_example_no_one_else_sees():
    def spoil(impl, numbers):
        impl.append(list(numbers))
        numbers.append(-1)

    judged = grader(spoil)
    first, second = [], []
    judged(first)
    judged(second)
    assert first == second and all(-1 not in numbers for numbers in first)


def test_who_fails_one_is_shown_the_smallest():
    seen = []

    def check(impl, numbers):
        seen.append(list(numbers))
        assert sum(numbers) < 50

    with pytest.raises(AssertionError):
        grader(check)(None)
    assert seen[-1] == [50]


def test_who_answers_otherwise_the_second_time_is_told_so():
    calls = []

    def check(impl, numbers):
        calls.append(numbers)
        assert len(calls) != 7

    with pytest.raises(AssertionError, match="went well the second time"):
        grader(check)(None)


def test_random_numbers_are_the_same_for_everybody():
    judged = grader(lambda impl, numbers: impl.append(random.random()))
    first, second = [], []
    judged(first)
    random.seed(5)
    judged(second)
    assert first == second


def test_what_asks_back_is_drawn_anew():
    def graded(impl, data):
        impl.append(data.draw(lists))

    judged, seen = programs(10)(given(data=st.data())(graded)), []
    judged(seen)
    assert not hasattr(judged, "draw") and len(seen) >= 10
