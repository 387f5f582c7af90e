"""`learn quiz`: every answer is the engine's, follows from what is told, and no two sheets are alike."""

import json
import random
import re
from collections import Counter

import pytest

from minipage.attention import reference
from minipage.attention.kv_cache import KVCache
from minipage.cli import main
from minipage.learn.quiz import frames, questions
from minipage.learn.quiz.frames import recorded_steps
from minipage.learn.quiz.paper import NUM_FRAMES, quiz
from minipage.learn.quiz.questions import KINDS
from minipage.memory import BlockPool, BlockTable, PrefixCache, block_table
from minipage.model import shard
from minipage.scheduling import SequenceGroup


def test_a_sheet_has_thirty_questions_with_answers_and_sources():
    questions = quiz("ann")
    assert len(questions) == 30 and sum(question.is_frame for question in questions) == NUM_FRAMES == 10
    assert len({question.text for question in questions}) == 30
    assert all(question.text and question.answer.strip() and question.source for question in questions)
    assert quiz("ann") == questions != quiz("ben")
    kinds = Counter(question.text.rsplit("\n\n", 1)[1].split()[0] for question in questions if question.is_frame)
    assert len(kinds) >= 3


def test_one_is_no_plural():
    texts = [kind(random.Random(seed)).text for kind in KINDS for seed in range(30)]
    assert not [text for text in texts if re.search(r"\b1 (?!is\b|has\b)(more )?[a-z]+s\b", text)]


STATE = re.compile(
    r"(running|waiting|arrives)  (\w+): (\d+) tokens(?:, (\d+) of them stored in blocks (\[.*?\]))?; .*to (\d+)"
)


def by_the_rules(text):
    """The next step from what the question tells, by hand: first come, first served, and blocks from the queue's front.

    {label: slots written}, tables, and the free queue; None where somebody would have to give way or copy.
    """
    size, _, budget = map(int, re.search(r"blocks of (\d+) tokens, (\d+) in the pool, at most (\d+)", text).groups())
    free = re.search(r"next first: (.*)", text)[1]
    free = [] if free == "empty" else [int(block) for block in free.split()]
    rows = STATE.findall(text)
    held = Counter(block for row in rows for block in json.loads(row[4] or "[]"))
    slots, tables, blocked = {}, {}, False
    for status, label, tokens, stored, table, most in rows:
        if not most or held.total() != len(held):
            return None  # shared blocks: copies and groups are other questions
        blocks, start = json.loads(table or "[]"), int(stored or 0)
        count = min(int(tokens) - start, budget)
        if status != "running":  # a newcomer needs room for the whole prompt, and nobody overtakes
            blocked |= -(-int(tokens) // size) > len(free)
            count = 0 if blocked else count
        missing = max(0, -(-(start + count) // size) - len(blocks))
        if missing > len(free):
            return None
        blocks += [free.pop(0) for _ in range(missing)]
        budget -= count
        tables[label] = blocks
        slots[label] = [blocks[i // size] * size + i % size for i in range(start, start + count)]
    return slots, tables, free


def check_by_hand(question):
    """1 if the answer could be worked out by the rules above, and is the same; 0 if it is of another kind."""
    known = by_the_rules(question.text)
    asked = question.text.rsplit("\n\n", 1)[1]
    if known is None or "sample of the same" in question.text or "preempted" in question.source:
        return 0
    slots, tables, free = known
    if match := re.match(r"Into which slots .* for (\w+)\?", asked):
        assert question.answer == " ".join(map(str, slots[match[1]])), question
    elif match := re.match(r"What is the block table of (\w+) ", asked):
        assert question.answer == str(tables[match[1]]), question
    elif asked.startswith("What is the free queue"):
        assert question.answer == (" ".join(map(str, free)) or "empty"), question
    elif asked.startswith("For whom"):
        assert question.answer == ", ".join(f"{label} {len(own)}" for label, own in slots.items() if own), question
    else:
        return 0
    return 1


def test_what_the_next_step_does_follows_from_what_is_told():
    checked = 0
    for seed in range(7):
        for step in recorded_steps(random.Random(seed)):
            for kind in frames.KINDS:
                if question := kind(step, random.Random(0)):
                    checked += check_by_hand(question)
    assert checked > 60


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_of_question_is_another_for_each_seed(kind):
    questions = [kind(random.Random(f"{seed}/{kind.__name__}")) for seed in range(60)]
    assert len({question.text for question in questions}) >= 40
    assert len({question.answer for question in questions}) >= 5, "the answer depends on what is asked"


def copied_at_once(table):
    copy = BlockTable(table.pool)
    copy.append(table.num_tokens)
    return copy


def a_block_less(find):
    return lambda *args: (found := find(*args))._replace(blocks=found.blocks[:-1])


def more(real):
    return lambda *args: real(*args) + 1


OTHER_ENGINES = {  # kind of question: (where the engine is changed, the name, what is there instead of what there was)
    "blocks_of_a_text": (block_table, "blocks_needed", more),
    "next_block": (block_table, "blocks_needed", lambda real: lambda n, size: real(n + size, size)),
    "slot_of_a_token": (BlockTable, "slot_mapping", lambda real: lambda *args: [7 + slot for slot in real(*args)]),
    "wasted_by_reserving": (questions, "worked_example", lambda real: lambda *args: real(*args)._replace(paged=9999)),
    "how_many_fit": (questions, "blocks_that_fit", lambda real: lambda *args: real(*args) // 2),
    "bytes_of_a_token": (KVCache, "arrays", lambda real: property(lambda cache: [cache.k])),
    "bytes_of_a_block": (KVCache, "arrays", lambda real: property(lambda cache: [cache.k])),
    "queue_after_calls": (BlockPool, "free_queue", lambda real: property(lambda pool: real.fget(pool)[::-1])),
    "references_after_forks": (BlockTable, "fork", lambda real: copied_at_once),
    "copy_on_write": (BlockTable, "fork", lambda real: copied_at_once),
    "found_in_the_cache": (PrefixCache, "find", a_block_less),
    "one_token_differs": (PrefixCache, "find", a_block_less),
    "evicted_first": (PrefixCache, "find", a_block_less),
    "attention_by_hand": (reference, "paged_attention", more),
    "shared_budget": (SequenceGroup, "next_chunks", lambda real: lambda group, budget: real(group, min(budget, 3))),
    "scaled_to_int8": (questions, "quantize", lambda real: lambda x, dtype: real(2 * x, dtype)),
    "heads_of_a_rank": (shard, "heads_of", lambda real: lambda rank, size, *heads: real(0, 1, *heads)),
    "steps_in_buckets": (SequenceGroup, "next_chunks", lambda real: lambda group, budget: real(group, min(budget, 3))),
    "held_while_running": (questions, "mean_held", more),
    "samples_of_a_prompt": (BlockTable, "fork", lambda real: copied_at_once),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_another_engine_would_give_other_answers(kind, monkeypatch):
    def answers():
        return [kind(random.Random(f"{seed}/{kind.__name__}")).answer for seed in range(12)]

    before = answers()
    place, name, other = OTHER_ENGINES[kind.__name__]
    monkeypatch.setattr(place, name, other(vars(place)[name]))
    assert sum(old != new for old, new in zip(before, answers())) >= 6


@pytest.mark.parametrize("what", ["blocks from the end of the queue", "a token at a time"])
def test_an_engine_with_other_rules_is_found_out(what, monkeypatch):
    """The answers about the next step are the engine's: by the rules that are taught, they would be wrong."""
    if what == "a token at a time":
        other = OTHER_ENGINES["shared_budget"][2](SequenceGroup.next_chunks)
        monkeypatch.setattr(SequenceGroup, "next_chunks", other)
    else:
        take = BlockPool.allocate_many

        def from_the_end(pool, count):
            pool._free_queue = dict(reversed(pool._free_queue.items()))
            return take(pool, count)

        monkeypatch.setattr(BlockPool, "allocate_many", from_the_end)
    with pytest.raises(AssertionError):
        test_what_the_next_step_does_follows_from_what_is_told()


def test_on_screen_and_in_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["learn", "quiz", "--seed", "1", "--to", "exam.md"]) == 0
    exam, answers = (tmp_path / name for name in ("exam.md", "exam-answers.md"))
    assert exam.read_text(encoding="utf-8").count("**30.**") == 1 and "\n> " not in exam.read_text(encoding="utf-8")
    assert answers.read_text(encoding="utf-8").count("\n> **") == 30
    capsys.readouterr()
    assert main(["learn", "quiz", "--seed", "1", "--frames", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown) == 10 and all(each["answer"] and each["is_frame"] for each in shown)


@pytest.mark.slow
def test_a_thousand_seeds_give_a_thousand_sheets():
    sheets, asked, checked = set(), set(), 0
    for seed in range(1000):
        questions = quiz(str(seed))
        assert len({question.text for question in questions}) == 30 and all(q.answer.strip() for q in questions)
        sheets.add(tuple(question.text for question in questions))
        asked |= {question.text for question in questions if question.is_frame}
        checked += sum(check_by_hand(question) for question in questions if question.is_frame)
    assert len(sheets) == 1000 and len(asked) > 9900 and checked > 1000
