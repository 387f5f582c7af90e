"""Lesson 7: CopyOnWrite, laid over a plain block table, must keep everybody's K and V apart."""

from collections import Counter
from functools import cache

from minipage.errors import OutOfBlocksError
from minipage.learn.course import chosen
from minipage.learn.graders.common import every, expect, must_raise, passes, remembered, run_machine
from minipage.learn.graders.pools import counts_of, scattered_pool, state_of
from minipage.learn.judge import Wrong
from minipage.learn.load import laid_over, load
from minipage.memory import BlockPool
from minipage.promises.memory_machine import machine


@cache
def plain_table():
    """A block table that knows nothing of sharing: the solution of lesson 4."""
    lesson = chosen(["4"])[0].lesson
    return load(lesson, lesson.solution).BlockTable


def table_class(solution):
    return laid_over(solution.CopyOnWrite, plain_table())


def table_over(impl, Table, size, num_tokens, head=0, tail=0, num_free=20):
    """A pool in disorder, and a table of this many tokens over it, filled by us. `head` others hold its blocks except
    the last one, and `tail` others the last one."""
    num_blocks = len(range(0, num_tokens, size))
    impl.diary.begin()
    pool = scattered_pool(num_blocks + num_free, size, seed=num_tokens)
    table = Table(pool)
    blocks = sorted(pool.allocate_many(num_blocks), key=lambda block: block == 0 and num_tokens % 2 == 0)
    table.blocks, table.num_tokens = blocks, num_tokens  # block 0 is among them, and often the last
    table.block_hashes = [b"root", *(b"hash of block %d" % block for block in blocks[: num_tokens // size])]
    for i, block in enumerate(table.blocks):
        for _ in range(tail if i == num_blocks - 1 else head):
            pool.share(block)
    pool.told.clear()
    shared = f"; {head} others hold each of its blocks but the last, {tail} the last one" if num_blocks else ""
    impl.diary.note(f"table: {num_tokens} tokens in the blocks {table.blocks} of {size}{shared}")
    return pool, table


SIZES, TOKENS, OTHERS = range(1, 4), range(7), range(3)


@remembered
@every(size=SIZES, num_tokens=TOKENS, head=range(2), tail=range(2))
def test_7_1_fork(impl, size, num_tokens, head, tail):
    Table = table_class(impl)
    with impl.diary.watching(BlockPool, Table):
        pool, parent = table_over(impl, Table, size, num_tokens, head, tail)
        blocks, hashes, before, queue = list(parent.blocks), list(parent.block_hashes), counts_of(pool), pool.free_queue
        child = parent.fork()
        if not isinstance(child, Table):
            raise Wrong("fork returns another block table, of the same class.", Table, child)
        if child is parent:
            raise Wrong("fork returns another table, not the same one once more.")
        expect("the child's blocks", child.blocks, blocks, "Parent and child point to the same blocks.")
        expect("the child's num_tokens", child.num_tokens, num_tokens, "The child has all of the parent's tokens.")
        expect(
            "the child's block_hashes", child.block_hashes, hashes, "The notes of the prefix cache go along, in a copy."
        )
        parents = parent.blocks, parent.num_tokens, parent.block_hashes
        expect("the parent's (blocks, num_tokens, hashes)", parents, (blocks, num_tokens, hashes), "It stays as it is.")
        counts = [count + (block in blocks) for block, count in enumerate(before)]
        why = (
            "Two tables hold each block now, so each needs a second reference (pool.share), or it is freed too early; "
            "where others hold it already, one more."
        )
        expect("the reference counts of all blocks", counts_of(pool), counts, why)
        why = "A fork takes no block from the pool, and copies nothing."
        expect("(free queue, what on_evict was told)", (pool.free_queue, pool.told), (queue, []), why)
        if child.pool is not pool:
            raise Wrong("The child's blocks are in the parent's pool: type(self)(self.pool).")
        for name in ("blocks", "block_hashes"):
            if getattr(child, name) is getattr(parent, name):
                raise Wrong(f"Parent and child have one and the same list of {name}: what one appends, the other has.")


@remembered
@every(size=SIZES, num_tokens=TOKENS, head=range(2), tail=OTHERS)
def test_7_2_shared_tail(impl, size, num_tokens, head, tail):
    pool, table = table_over(impl, table_class(impl), size, num_tokens, head, tail)
    before, part_full = state_of(pool), num_tokens % size > 0
    due = table.blocks[-1] if part_full and tail else None
    if due is not None:
        why = (
            "The last block is part full, so the next token is written into it, and another table holds it too: its "
            "number in the pool is wanted, not its place in the table."
        )
    elif not part_full:
        why = "The last block is full (or there is none): the next token begins a block of its own, and none is shared."
    else:
        why = "Nobody else holds the last block: it can be written in place."
    got = table.shared_tail()
    if due is None and got is not None:
        raise Wrong(f"{why} So it is None.", due, got, "shared_tail()")
    if due == 0 and got is None:
        why += " Block 0 is a block like any other, and counts as False: ask for `is None`, not for `not`."
    if got is None and due is not None:
        raise Wrong(why, due, got, "shared_tail()")
    expect("shared_tail()", got, due, why)
    expect("(free queue, counts)", state_of(pool), before, "shared_tail only looks, and changes nothing.")


@remembered
@every(size=SIZES, num_tokens=TOKENS, head=range(2), tail=OTHERS, more=range(6))
def test_7_3_blocks_to_allocate(impl, size, num_tokens, head, tail, more):
    pool, table = table_over(impl, table_class(impl), size, num_tokens, head, tail)
    before = state_of(pool)
    new = len(range(0, num_tokens + more, size)) - len(table.blocks)
    copy = int(more > 0 and tail > 0 and num_tokens % size > 0)
    why = f"{more} more tokens take {new} new blocks" + (" and one to copy the shared tail into." if copy else ".")
    if more == 0:
        why = "Appending 0 tokens writes nothing, so it takes nothing."
    expect(f"blocks_to_allocate({more})", table.blocks_to_allocate(more), new + copy, why)
    expect("(free queue, counts)", state_of(pool), before, "It only counts, and changes nothing.")


@every(size=SIZES, num_tokens=range(6), head=range(2), tail=OTHERS, more=range(5), num_free=range(4))
def test_7_4_append(impl, size, num_tokens, head, tail, more, num_free):
    Table = table_class(impl)
    with impl.diary.watching(BlockPool, Table):
        pool, table = table_over(impl, Table, size, num_tokens, head, tail, num_free)
        old = list(table.blocks)
        before = old, table.num_tokens, *state_of(pool)
        copy = more > 0 and tail > 0 and num_tokens % size > 0
        wanted = len(range(0, num_tokens + more, size)) - len(old) + copy
        if wanted > num_free:
            why = f"{wanted} blocks are needed, the copy included, and {num_free} are free: raise OutOfBlocksError."
            must_raise(OutOfBlocksError, lambda: table.append(more), why)
            after = list(table.blocks), table.num_tokens, *state_of(pool)
            why = "An append that fails changes nothing at all."
            expect("(blocks, num_tokens, free queue, counts)", after, before, why)
            why += " No block is taken, not even to give it back: a prefix cache would have forgotten what it held."
            expect("what on_evict was called with", pool.told, [], why)
            return
        copies = table.append(more)
        check_copies(copies, old, list(table.blocks), copy)
        new = [block for block in table.blocks if block not in old]
        due = Counter({block: count for block, count in enumerate(before[3]) if count})
        due.update(new)
        due.subtract(old[-1:] if copy else [])
        counts = dict(enumerate(counts_of(pool)))
        why = (
            "Every block's count is the number of tables that hold it. A table that takes a copy gives its own "
            "reference to the shared block back (pool.free)."
        )
        expect("the reference counts", counts, {block: due[block] for block in counts}, why)
        expect("num_tokens", table.num_tokens, num_tokens + more, "append counts the tokens that now have a slot.")
        why = "The table keeps its other blocks, and has one for every started block of tokens."
        kept = old[:-1] if copy else old
        expect("its first blocks", table.blocks[: len(kept)], kept, why)
        expect("the number of its blocks", len(table.blocks), len(range(0, num_tokens + more, size)), why)
        why = "Only what is needed is taken from the pool: the new blocks, and one to copy into, each once."
        expect("what on_evict was called with, sorted", sorted(pool.told), sorted(new), why)


def check_copies(copies, old, now, is_due):
    why = (
        "The shared block has to be copied before it is written: return [BlockCopy(shared, copy)], with the block that "
        "the table has now." if is_due else "Nothing has to be copied (the tail is full, or nobody shares it): []."
    )  # fmt: skip
    place = now[len(old) - 1] if is_due and len(now) >= len(old) else None
    due = [(old[-1], place)] if is_due else []
    if not isinstance(copies, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in copies):
        raise Wrong(f"{why} It has to be a list of pairs.", due, copies, "the result of append")
    expect("the copies", copies, due, why)
    if is_due and place == old[-1]:
        raise Wrong("The table still points to the shared block: its next token overwrites the others' K and V.")


def test_7_4_all_together(impl):
    """Random programs of appends, forks and frees; the K and V of every token are read back."""
    others = test_7_1_fork, test_7_2_shared_tail, test_7_3_blocks_to_allocate
    if all(passes(impl, grader) for grader in others):  # otherwise it has been said what is wrong
        Table = table_class(impl)
        with impl.diary.watching(BlockPool, Table):
            run_machine(impl, machine(Table=Table))
