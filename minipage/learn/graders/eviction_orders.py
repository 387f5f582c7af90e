"""A free queue against two plain lists, and against LRU on texts of which some come again: exercise 8.8."""

from random import Random

from hypothesis import strategies as st

from minipage.learn.graders.common import QUICK, expect, passes, remembered
from minipage.learn.graders.drawn import given
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.memory.eviction import lru

RULE = (
    "First those that were never found again since they were written, then the others; of each, what was freed longest "
    "ago comes first."
)


class Expected:
    """The two queues as lists."""

    def __init__(self, num_blocks):
        self.most = num_blocks // 2
        self.new, self.found, self.again = list(range(num_blocks)), [], set()

    def take(self, block):
        (self.found if block in self.found else self.new).remove(block)

    def freed(self, block):
        (self.found if block in self.again else self.new).append(block)
        if len(self.found) > self.most:
            oldest = self.found.pop(0)
            self.again.remove(oldest)
            self.new.append(oldest)


def compare(queue, due, what):
    why = f"{RULE} {what}"
    expect("the queue", list(queue), due.new + due.found, why)
    expect("len(queue)", len(queue), len(due.new) + len(due.found), why)


@remembered
@QUICK
@given(num_blocks=st.integers(1, 7), steps=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=24))
def test_8_8_the_order(impl, num_blocks, steps):
    impl.diary.begin()
    pool = BlockPool(num_blocks, 4)
    queue, due = impl.ScanResistant(pool), Expected(num_blocks)
    impl.diary.note(f"a pool of {num_blocks} blocks; all are freed: 0, 1, 2, ...")
    for block in range(num_blocks):
        queue[block] = None
    compare(queue, due, "Nothing was found yet.")
    for is_found, number in steps:
        block = number % num_blocks
        if block not in due.new + due.found:
            impl.diary.note(f"queue[{block}] = None")
            queue[block] = None
            due.freed(block)
            what = f"If `found` has more than {due.most} of {num_blocks} blocks, its first goes to the end of `new`."
        elif is_found:
            impl.diary.note(f"queue.pop({block})")
            queue.pop(block)
            due.take(block)
            due.again.add(block)
            what = f"Block {block} was found, and is in use."
        else:
            block = (due.new + due.found)[0]
            impl.diary.note(f"del queue[{block}]")
            del queue[block]
            due.take(block)
            due.again.discard(block)
            what = f"Block {block} was handed out: what it holds from now on is new."
        compare(queue, due, what)
        expect(f"{block} in queue", block in queue, block in due.new + due.found, what)


def follow(impl, num_blocks, script, what):
    impl.diary.begin()
    queue, due = impl.ScanResistant(BlockPool(num_blocks, 4)), Expected(num_blocks)
    impl.diary.note(f"a pool of {num_blocks} blocks; all are freed: 0, 1, 2, ...")
    for block in range(num_blocks):
        queue[block] = None
    for word, number in zip(script.split()[::2], script.split()[1::2]):
        block = int(number)
        calls = {"found": f"queue.pop({block})", "out": f"del queue[{block}]", "freed": f"queue[{block}] = None"}
        impl.diary.note(calls[word])
        if word == "freed":
            queue[block] = None
            due.freed(block)
        elif word == "found":
            queue.pop(block)
            due.take(block)
            due.again.add(block)
        else:
            del queue[block]
            due.take(block)
            due.again.discard(block)
        compare(queue, due, what)


def test_8_8_at_most_half_of_the_pool(impl):
    what = "If `found` has more than 2 of 4 blocks, its first goes to the end of `new`."
    follow(impl, 4, "found 0 freed 0 out 3 freed 3 found 1 freed 1 found 2 freed 2 out 3 freed 3", what)
    follow(impl, 4, "found 0 freed 0 found 1 freed 1 found 2 freed 2 out 3 freed 3 out 0 freed 0 found 0 freed 0", what)
    follow(impl, 4, "found 0 freed 0 found 1 freed 1 found 2 freed 2 found 3 out 0 freed 0 freed 3 out 0 freed 0", what)


def test_8_8_what_was_found_is_remembered_until_it_is_handed_out(impl):
    what = "What was found is remembered until the block is handed out, and no longer."
    follow(impl, 4, "found 1 freed 1 out 0 freed 0 out 2 freed 2 out 3 freed 3", what)
    follow(impl, 3, "found 1 freed 1 out 0 out 2 out 1 freed 1 freed 0 freed 2", what)


def found_tokens(eviction, texts):
    """How many tokens the prefix cache finds, in a pool of 40 blocks of 4."""
    pool = BlockPool(40, 4, eviction)
    cache, found = PrefixCache(pool), 0
    for token_ids in texts:
        table = BlockTable(pool)
        cache.adopt(table, *cache.find(token_ids))
        found += table.num_tokens
        table.append(len(token_ids) - table.num_tokens)
        cache.publish(table, token_ids)
        table.free()
    pool.check_integrity([])
    return found


def scans():
    """Four sets of instructions that come again and again, between documents that come once."""
    rng = Random(0)
    for i in range(150):
        if i < 8 or rng.random() < 0.4:
            yield [*range(100 * (i % 4), 100 * (i % 4) + 16), 1000 + i]
        else:
            yield [10_000 + 100 * i + j for j in range(100)]


def test_8_8_where_lru_loses(impl):
    if not passes(impl, test_8_8_the_order):  # it has been said what is wrong
        return
    impl.diary.begin()
    impl.diary.note(
        "BlockPool(40, 4, eviction=ScanResistant); four texts of 16 tokens, and documents of 100 between them"
    )
    theirs, plain = found_tokens(impl.ScanResistant, scans()), found_tokens(lru, scans())
    if not theirs > 2 * plain:
        why = "In the real pool, what comes again should survive the documents: several times what LRU finds."
        raise Wrong(why, f"more than {2 * plain}", theirs, "tokens found")
