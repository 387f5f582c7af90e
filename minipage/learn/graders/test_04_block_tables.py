"""Lesson 4: a BlockTable over minipage's own pool. Which blocks it has is its affair; that they are its own is ours."""

from hypothesis import strategies as st

from minipage.errors import ConfigurationError, OutOfBlocksError
from minipage.learn.graders.common import QUICK, every, expect, must_raise, passes, remembered, run_machine
from minipage.learn.graders.drawn import given
from minipage.learn.graders.pools import scattered_pool, state_of
from minipage.learn.graders.window_tables import (  # noqa: F401 (4.5 is judged there)
    test_4_5_blocks_that_others_hold_too,
    test_4_5_slide_after_every_step,
    test_4_5_slide_once,
    test_4_5_the_example,
    test_4_5_windows_that_are_never_left,
)
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool
from minipage.promises.memory_machine import MemoryMachine

appends = st.lists(st.integers(0, 9), min_size=1, max_size=8)
sizes = st.integers(1, 4)


def blocks_for(num_tokens, size):
    """What the oracle says: a block begins at token 0, size, 2 * size, ..."""
    return len(range(0, num_tokens, size))


@every(size=(128, 1000, 4096, 2**20), full=(1, 2, 9), more=(-1, 0, 1))
def test_4_1_of_large_blocks(impl, size, full, more):
    check_blocks_needed(impl, full * size + more, size)


def test_4_1_the_examples(impl):
    for num_tokens in (8, 9):
        check_blocks_needed(impl, num_tokens, 4)


@every(num_tokens=[*range(40), 4096, 100_001], size=range(1, 18))
def test_4_1_blocks_needed(impl, num_tokens, size):
    check_blocks_needed(impl, num_tokens, size)


def check_blocks_needed(impl, num_tokens, size):
    impl.diary.begin()
    impl.diary.note(f"blocks_needed({num_tokens}, block_size={size})")
    why = (
        "Every started block counts, but no block is needed before it is started: 4 tokens fit in one block of 4, and "
        "0 tokens need none."
    )
    expect(
        f"blocks_needed({num_tokens}, {size})", impl.blocks_needed(num_tokens, size), blocks_for(num_tokens, size), why
    )


def blocks_of(table):
    if not isinstance(table.blocks, list):
        raise Wrong("table.blocks is a list of block numbers: others of minipage read it.", list, table.blocks)
    return list(table.blocks)


def state(pool, table):
    return blocks_of(table), table.num_tokens, *state_of(pool), list(table.block_hashes)


STATE = "[blocks, num_tokens, free queue, counts, hashes]"


def table_over(impl, num_free, size, seed=0):
    """A scattered pool, and a new table over it."""
    impl.diary.begin()
    pool = scattered_pool(num_free, size, seed)
    queue = list(pool.free_queue) if num_free < 99 else f"of {num_free} blocks"
    impl.diary.note(f"pool: blocks of {size}; free queue, next first, {queue}")
    return pool, impl.BlockTable(pool)


@remembered
@QUICK
@given(num_blocks=st.integers(1, 6), size=sizes, appends=appends, seed=st.integers(0, 5))
def test_4_2_append(impl, num_blocks, size, appends, seed):
    pool, table = table_over(impl, num_blocks, size, seed)
    with impl.diary.watching(BlockPool, impl.BlockTable):
        bystander, total = impl.BlockTable(pool), 0
        for count in appends:
            before, told = state(pool, table), list(pool.told)
            if blocks_for(total + count, size) > num_blocks:
                why = "The pool has too few free blocks for that many tokens, so append has to raise OutOfBlocksError."
                must_raise(OutOfBlocksError, lambda: table.append(count), why)  # noqa: B023
                why = "An append that fails changes nothing: no block is taken, no token is counted."
                expect(STATE, state(pool, table), before, why)
                why = (
                    "An append that fails takes no block, not even to give it back: `on_evict` is called with every "
                    "block that is handed out, and a prefix cache has forgotten what it held. Find out before whether "
                    "there are enough (allocate_many takes all or none)."
                )
                expect("what on_evict was called with", pool.told[len(told) :], [], why)
                continue
            copies = table.append(count)
            total += count
            expect("the result of append", copies, [], "Nothing is shared yet, so nothing is copied: return [].")
            check_grown(pool, table, total, before[0], before[2])
            expect(
                "table.block_hashes",
                table.block_hashes,
                [],
                "The block hashes are lesson 8's; append leaves them alone.",
            )
            why = "Only what is needed is taken from the pool (allocate, allocate_many), each block once."
            expect("what on_evict was called with, sorted", sorted(pool.told), sorted(table.blocks), why)
        why = "Each table has a list of its own: keep it in self, not in the class."
        expect("(blocks, num_tokens) of another table", (blocks_of(bystander), bystander.num_tokens), ([], 0), why)


def test_4_2_append_very_many(impl):
    """More tokens than fit into 8 or 16 bits, some at a time."""
    pool, table = table_over(impl, 180, 200)
    impl.diary.note("table.append(100), again and again")
    for total in range(100, 33_100, 100):
        before = blocks_of(table), list(pool.free_queue)
        table.append(100)
        if total < 500 or total > 32_500:
            check_grown(pool, table, total, *before)


def check_grown(pool, table, total, old, queue):
    size, blocks = pool.block_size, blocks_of(table)
    expect("table.num_tokens", table.num_tokens, total, "append counts the tokens that now have a slot.")
    due, num_blocks = blocks_for(total, size), len(blocks)
    why = (
        f"{total} tokens in blocks of {size} take {due} blocks. A new block is taken when the last one is full and one "
        "more token comes: not before, not after, and however many tokens come at once."
    )
    expect("the number of blocks", num_blocks, due, why)
    expect("the first blocks", blocks[: len(old)], old, "Blocks that hold tokens already stay where they are.")
    new = sorted(blocks[len(old) :])
    why = "New blocks come from the pool, each once."
    expect("the new blocks, sorted", new, sorted(queue[: len(new)]), why)
    counts = [pool.ref_count(block) for block in blocks]
    expect("the reference counts of its blocks", counts, [1] * due, "Every block of the table has one reference.")
    why = "No block is taken that does not end up in the table: it would leak. (2 are others'.)"
    expect("pool.num_used", pool.num_used, due + 2, why)


def test_4_2_a_negative_number_cannot_be_appended(impl):
    pool, table = table_over(impl, 3, 4)
    with impl.diary.watching(BlockPool, impl.BlockTable):
        table.append(6)
        before = state(pool, table)
        for count in (-1, -5, -6, -100):
            why = f"append({count}) makes no sense: raise ConfigurationError."
            must_raise(ConfigurationError, lambda: table.append(count), why)  # noqa: B023
            expect(STATE, state(pool, table), before, "A failed append changes nothing.")


@remembered
@every(size=range(1, 4), total=range(8), start=range(-1, 8), length=range(-1, 8))
def test_4_3_slot_mapping(impl, size, total, start, length):
    pool, table = table_over(impl, 13, size)
    with impl.diary.watching(BlockPool, impl.BlockTable):
        table.append(total)
        before = state(pool, table)
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
        got = table.slot_mapping(start, stop)
        expect(f"slot_mapping({start}, {stop}) with the blocks {blocks}", got, due, why)
        expect(STATE, state(pool, table), before, "slot_mapping only looks, and changes nothing.")


def test_4_3_slots_have_large_numbers(impl):
    """More than fit into 8 or into 16 bits, of the blocks and of the slots."""
    _, table = table_over(impl, 300, 200)
    impl.diary.note("table.append(100), 600 times")
    for _ in range(600):
        table.append(100)
    blocks = blocks_of(table)
    why = "Token i is in logical block i // 200, at offset i % 200, and there are 300 blocks here, so 60000 slots."
    for start in range(0, 60_000, 2_000):
        due = [blocks[start // 200] * 200 + offset for offset in (0, 1)]
        expect(f"slot_mapping({start}, {start + 2})", table.slot_mapping(start, start + 2), due, why)


@QUICK
@given(size=sizes, appends=appends, seed=st.integers(0, 5))
def test_4_4_free(impl, size, appends, seed):
    pool, table = table_over(impl, 80, size, seed)
    with impl.diary.watching(BlockPool, impl.BlockTable):
        bystander = impl.BlockTable(pool)
        bystander.append(1)
        for count in appends:
            table.append(count)
        blocks, taken = list(table.blocks), len(pool.told)
        table.block_hashes = [b"root"]
        table.free()
        empty = blocks_of(table), table.num_tokens, list(table.block_hashes)
        expect(
            "(blocks, num_tokens, hashes)",
            empty,
            ([], 0, []),
            "A table that was freed is empty, and can be used again.",
        )
        leaked = [block for block in blocks if pool.ref_count(block)]
        expect("the blocks that were not given back", leaked, [], "Every block goes back to the pool; this is a leak.")
        given_back = list(pool.free_queue)[pool.num_free - len(blocks) :]
        why = "The last block goes back first: the head of a text, which others may share, is the last to be reused."
        expect("the end of the free queue", given_back, blocks[::-1], why)
        expect("what on_evict was called with", pool.told[taken:], [], "Giving blocks back hands none out.")
        why = "Another table keeps its blocks and tokens."
        expect("num_tokens of another table", (len(blocks_of(bystander)), bystander.num_tokens), (1, 1), why)
        table.free()  # again: there is nothing to give back
        table.append(1)
        again = len(blocks_of(table)), table.num_tokens
        expect("(number of blocks, num_tokens) after append(1)", again, (1, 1), "A freed table can be used again.")


def test_4_4_all_together(impl):
    """Random programs; the K and V of every token are found where the table says they are."""
    table = impl.BlockTable

    class WithoutSharing(MemoryMachine):
        Table = table
        fork = take_some_block = None  # rules that share blocks

    if all(passes(impl, grader) for grader in (test_4_2_append, test_4_3_slot_mapping)):  # or it has been said
        with impl.diary.watching(BlockPool, impl.BlockTable):
            run_machine(impl, WithoutSharing)
