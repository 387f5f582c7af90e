"""Lesson 4: a BlockTable over minipage's own pool. Which blocks it has is its affair; that they are its own is ours."""

from hypothesis import given
from hypothesis import strategies as st

from minipage.errors import ConfigurationError, OutOfBlocksError
from minipage.learn.graders.common import QUICK, every, expect, must_raise, run_machine
from minipage.learn.graders.memory_machine import MemoryMachine
from minipage.memory import BlockPool

appends = st.lists(st.integers(0, 9), min_size=1, max_size=8)
sizes = st.integers(1, 4)


def blocks_for(num_tokens, size):
    """What the oracle says: a block begins at token 0, size, 2 * size, ..."""
    return len(range(0, num_tokens, size))


@every(num_tokens=range(40), size=range(1, 18))
def test_4_1_blocks_needed(impl, num_tokens, size):
    impl.diary.begin()
    impl.diary.note(f"blocks_needed({num_tokens}, block_size={size})")
    why = (
        "Every started block counts, but no block is needed before it is started: 4 tokens fit in one block of 4, and "
        "0 tokens need none."
    )
    expect(
        f"blocks_needed({num_tokens}, {size})", impl.blocks_needed(num_tokens, size), blocks_for(num_tokens, size), why
    )


def state(pool, table):
    return (
        list(table.blocks),
        table.num_tokens,
        list(pool.free_queue),
        [pool.ref_count(b) for b in range(pool.num_blocks)],
    )


def scattered(solution, num_blocks, size):
    """A pool whose free queue is out of order, as it is in real life, and a new table over it."""
    pool = BlockPool(num_blocks, size)
    for block in reversed(pool.allocate_many(num_blocks)):
        pool.free(block)
    return pool, solution.BlockTable(pool)


@QUICK
@given(num_blocks=st.integers(1, 6), size=sizes, appends=appends)
def test_4_2_append(impl, num_blocks, size, appends):
    impl.diary.begin()
    with impl.diary.watching(BlockPool, impl.BlockTable):
        pool, table = scattered(impl, num_blocks, size)
        total = 0
        for count in appends:
            before = state(pool, table)
            if blocks_for(total + count, size) > num_blocks:
                why = "The pool has too few free blocks for so many tokens, so append has to raise OutOfBlocksError."
                must_raise(OutOfBlocksError, lambda: table.append(count), why)  # noqa: B023
                why = "An append that fails changes nothing: no block is taken, no token is counted."
                expect("[blocks, num_tokens, free queue, counts]", state(pool, table), before, why)
                continue
            copies = table.append(count)
            total += count
            expect("the result of append", copies, [], "Nothing is shared yet, so nothing is copied: return [].")
            check_grown(pool, table, total, before[0], before[2])


def check_grown(pool, table, total, old, queue):
    size, blocks = pool.block_size, list(table.blocks)
    expect("table.num_tokens", table.num_tokens, total, "append counts the tokens that now have a slot.")
    due, num_blocks = blocks_for(total, size), len(blocks)
    why = (
        f"{total} tokens in blocks of {size} take {due} blocks. A new block is taken when the last one is full and one "
        "more token comes: not before, not after, and however many tokens come at once."
    )
    expect("the number of blocks", num_blocks, due, why)
    expect("the first blocks", blocks[: len(old)], old, "Blocks that hold tokens already stay where they are.")
    new = sorted(blocks[len(old) :])
    expect("the new blocks, sorted", new, sorted(queue[: len(new)]), "New blocks come from the pool, each once.")
    counts = [pool.ref_count(block) for block in blocks]
    expect("the reference counts of its blocks", counts, [1] * due, "Every block of the table has one reference.")
    expect("pool.num_used", pool.num_used, due, "No block is taken that does not end up in the table: it would leak.")


def test_4_2_a_negative_number_cannot_be_appended(impl):
    impl.diary.begin()
    with impl.diary.watching(BlockPool, impl.BlockTable):
        pool, table = scattered(impl, 3, 4)
        table.append(6)
        before = state(pool, table)
        must_raise(ConfigurationError, lambda: table.append(-1), "append(-1) makes no sense: raise ConfigurationError.")
        expect(
            "[blocks, num_tokens, free queue, counts]", state(pool, table), before, "A failed append changes nothing."
        )


@every(size=range(1, 4), total=range(8), start=range(-1, 8), length=range(-1, 8))
def test_4_3_slot_mapping(impl, size, total, start, length):
    impl.diary.begin()
    with impl.diary.watching(BlockPool, impl.BlockTable):
        _, table = scattered(impl, 13, size)
        table.append(total)
        stop = start + length
        if not 0 <= start <= stop <= total:
            why = f"Only tokens 0 to {total - 1} have a slot, although the last block may have room for more."
            must_raise(ConfigurationError, lambda: table.slot_mapping(start, stop), why)
            return
        blocks = list(table.blocks)
        due = [blocks[i // size] * size + i % size for i in range(start, stop)]
        why = (
            f"Token i is in logical block i // {size}, at offset i % {size}. That block's place in the pool is "
            f"blocks[i // {size}], and the slot is place * {size} + offset."
        )
        expect(f"slot_mapping({start}, {stop}) with the blocks {blocks}", table.slot_mapping(start, stop), due, why)


@QUICK
@given(size=sizes, appends=appends)
def test_4_4_free(impl, size, appends):
    impl.diary.begin()
    with impl.diary.watching(BlockPool, impl.BlockTable):
        pool, table = scattered(impl, 80, size)
        for count in appends:
            table.append(count)
        blocks = list(table.blocks)
        table.keys = [b"root"]
        table.free()
        empty = list(table.blocks), table.num_tokens, list(table.keys)
        expect(
            "(blocks, num_tokens, keys)", empty, ([], 0, []), "A table that was freed is empty, and can be used again."
        )
        leaked = [block for block in blocks if pool.ref_count(block)]
        expect("the blocks that were not given back", leaked, [], "Every block goes back to the pool; this is a leak.")
        given_back = list(pool.free_queue)[pool.num_free - len(blocks) :]
        why = "The last block goes back first: the head of a text, which others may share, is the last to be reused."
        expect("the end of the free queue", given_back, blocks[::-1], why)
        table.free()  # again: there is nothing to give back
        table.append(1)


def test_4_4_all_together(impl):
    """Random programs; the K and V of every token are found where the table says they are."""
    table = impl.BlockTable

    class WithoutSharing(MemoryMachine):
        Table = table
        fork = take_some_block = None  # rules that share blocks

    with impl.diary.watching(BlockPool, impl.BlockTable):
        run_machine(impl, WithoutSharing)
