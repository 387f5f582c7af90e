"""What is said to somebody who has just made a mistake: no insides of Python or NumPy, and numbers that differ."""

import re
from pathlib import Path

import pytest

from minipage.learn.course import chosen
from minipage.learn.judge import FAILED, judge
from minipage.learn.load import laid_over, load
from minipage.memory import BlockPool

ALTERNATIVES = Path(__file__).parent / "alternatives"


def judged(number, tmp_path, old, new, count=1):
    [exercise] = chosen([number])
    right = (ALTERNATIVES / f"{exercise.lesson.name}.py").read_text(encoding="utf-8")
    assert right.count(old) == count
    path = tmp_path / "exercise.py"
    path.write_text(right.replace(old, new), encoding="utf-8")
    verdict = judge(exercise, load(exercise.lesson, path))
    assert verdict.status == FAILED, verdict
    return verdict


INIT = "class Preempting(Scheduler):\n    def __init__(self):\n        pass\n"
ARRAY = "    import numpy\n    return numpy.array([]) + sum(total"
KINDS = [
    ("1.3", "    return sum(total", ARRAY, "whole number, an int, not a ndarray"),
    ("2.1", "    return out\n\n\nKEPT", "    return out.tolist()\n\n\nKEPT", "an array of NumPy's, not a list"),
    ("3.1", "tuple(self.unused)", "iter(self.unused)", "free_queue is a tuple"),
    ("6.2", "return Admission.NOW if left >= must_stay else Admission.LATER", "pass", "has to return Admission.NOW"),
    ("9.1", "class Preempting(Scheduler)", "class Preempting", "class Preempting.Scheduler."),
    ("9.1", "class Preempting(Scheduler):", INIT, "hand them on, super...__init__"),
    ("9.4", "        return budget\n", "", "how much of the budget is left"),
    ("13.2", "    return sum(tokens) / (max(ends) - min(arrivals))", "    pass", "is there a `return`"),
    ("13.2", "sum(tokens) / (max(ends) - min(arrivals))", "[1.0]", "one number, not a list"),
]


@pytest.mark.parametrize("number, old, new, words", KINDS)
def test_a_result_of_the_wrong_kind_is_told_what_it_should_be(tmp_path, number, old, new, words):
    verdict = judged(number, tmp_path, old, new)
    assert re.search(words, verdict.message), verdict
    assert not re.search("ambiguous|Error|positional|subscriptable|iterable", verdict.message), verdict


def test_numbers_are_shown_with_the_digits_in_which_they_differ(tmp_path):
    verdict = judged("2.1", tmp_path, "/ weights.sum()", "/ (weights.sum() * 1.00004)")
    assert verdict.expected != verdict.got and re.search(r"the result\[0, 0, 0\]: -?[\d.]+", verdict.got), verdict


def test_the_example_of_the_docstring_is_tried_first(tmp_path):
    verdict = judged(
        "1.1", tmp_path, "    if not lengths:\n        return 0.0\n    return float(1", "    return float(2"
    )
    assert verdict.calls == ["reserved_waste([100, 300], 400)"], verdict
    assert (verdict.expected, verdict.got) == tuple(f"reserved_waste([100, 300], 400): {n}" for n in (0.5, 1.5))


def test_plans_are_told_by_name_and_step_by_step(tmp_path):
    verdict = judged("9.2", tmp_path, "        plan.preempted.append(group)\n", "")
    assert verdict.expected.startswith("plan.preempted: ['") and verdict.got == "plan.preempted: []"
    assert any(line.startswith("step 1: A tokens 0-") for line in verdict.calls), verdict.calls


def test_a_scheduler_that_only_fails_with_everything_is_told_by_its_calls(tmp_path):
    """What only random programs find: those that break, abort, and empty the prefix cache."""
    wrong = "        if self.swapped == [] and not self.running[6:]:"
    verdict = judged("6.4", tmp_path, "        if self.swapped == []:", wrong)
    assert "SequenceGroup(" not in verdict.message + verdict.expected + verdict.got
    assert any(line.startswith("step") for line in verdict.calls), verdict


def test_a_mistake_is_told_under_one_number(tmp_path):
    """3.6 builds on 3.5, and has nothing to add to what 3.5 has said."""
    [exercise] = chosen(["3.6"])
    right = (ALTERNATIVES / "03_block_pool.py").read_text(encoding="utf-8")
    path = tmp_path / "exercise.py"
    path.write_text(right.replace("if len(self.unused) < count:", "if count > 99:"), encoding="utf-8")
    solution = load(exercise.lesson, path)
    numbers = [each.number for each in exercise.lesson.exercises if judge(each, solution).status == FAILED]
    assert numbers == ["3.5"]


def test_super_is_no_answer(tmp_path):
    verdict = judged(
        "9.2",
        tmp_path,
        "        self.running.remove(group)\n        plan.preempted",
        "        return super().preempt(group, plan)\n        plan.preempted",
    )
    assert "minipage's own answer" in verdict.message


def test_lesson_4_goes_on_counting_as_it_did(tmp_path):
    """Under lesson 7, whose blocks_to_allocate counts the copy, too: whichever is called first."""
    lesson = chosen(["4"])[0].lesson
    plain = load(lesson, lesson.solution).BlockTable

    class AppendFirst:
        def blocks_to_allocate(self, num_tokens):
            return super().blocks_to_allocate(num_tokens) + 1  # as if there were always something to copy

    table = laid_over(AppendFirst, plain)(BlockPool(4, 2))
    table.append(3)
    assert len(table.blocks) == 2 and table.blocks_to_allocate(1) == 1
