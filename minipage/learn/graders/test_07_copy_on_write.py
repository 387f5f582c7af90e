"""Lesson 7: CopyOnWrite, laid over a plain block table, must keep everybody's K and V apart."""

from functools import cache

from minipage.errors import OutOfBlocksError
from minipage.learn.course import chosen
from minipage.learn.graders.common import every, expect, must_raise, run_machine
from minipage.learn.graders.memory_machine import machine
from minipage.learn.judge import Wrong
from minipage.learn.load import load
from minipage.memory import BlockPool


@cache
def plain_table():
    """A block table that knows nothing of sharing: the solution of lesson 4."""
    lesson = chosen(["4"])[0].lesson
    return load(lesson, lesson.solution).BlockTable


def table_class(solution):
    return type("BlockTable", (solution.CopyOnWrite, plain_table()), {})


def fill(table, num_tokens):
    """Give tokens to a new table, without asking it."""
    table.blocks = table.pool.allocate_many(len(range(0, num_tokens, table.pool.block_size)))
    table.num_tokens = num_tokens


SIZES = range(1, 4)


@every(size=SIZES, num_tokens=range(7))
def test_7_1_fork(impl, size, num_tokens):
    impl.diary.begin()
    Table = table_class(impl)
    with impl.diary.watching(BlockPool, Table):
        pool = BlockPool(12, size)
        parent = Table(pool)
        fill(parent, num_tokens)
        impl.diary.note(f"table has {num_tokens} tokens")
        parent.keys = [b"root"]
        child = parent.fork()
        if not isinstance(child, Table):
            raise Wrong("fork returns another block table, of the same class.", Table, child)
        blocks = list(parent.blocks)
        expect("the child's blocks", list(child.blocks), blocks, "Parent and child point to the same blocks.")
        expect("the child's num_tokens", child.num_tokens, num_tokens, "The child has all of the parent's tokens.")
        expect("the child's keys", list(child.keys), [b"root"], "The notes of the prefix cache go along, in a copy.")
        counts = [pool.ref_count(block) for block in blocks]
        why = "Two tables hold each block now, so each needs a second reference (pool.share), or it is freed too early."
        expect("the reference counts", counts, [2] * len(blocks), why)
        expect("pool.num_used", pool.num_used, len(blocks), "A fork takes no block from the pool, and copies nothing.")
        for name in ("blocks", "keys"):
            if getattr(child, name) is getattr(parent, name):
                raise Wrong(f"Parent and child have one and the same list of {name}: what one appends, the other has.")


def forked(solution, num_blocks, size, num_tokens, num_forks):
    """Tables over one pool with the same tokens; their references are counted by us, not by fork()."""
    Table = table_class(solution)
    pool = BlockPool(num_blocks, size)
    parent = Table(pool)
    fill(parent, num_tokens)
    tables = [parent]
    for _ in range(num_forks):
        twin = Table(pool)
        twin.blocks, twin.num_tokens, twin.keys = list(parent.blocks), num_tokens, []
        for block in parent.blocks:
            pool.share(block)
        tables.append(twin)
    return pool, tables


def set_up(solution, size, num_tokens, num_forks):
    solution.diary.begin()
    solution.diary.note(f"{num_forks + 1} table(s) share {num_tokens} tokens, in blocks of {size}")


@every(size=SIZES, num_tokens=range(7), num_forks=range(3))
def test_7_2_shared_tail(impl, size, num_tokens, num_forks):
    set_up(impl, size, num_tokens, num_forks)
    _, tables = forked(impl, 20, size, num_tokens, num_forks)
    part_full = num_tokens % size > 0
    due = tables[0].blocks[-1] if part_full and num_forks else None
    if due is not None:
        why = "The last block is part full, so the next token is written into it, and another table holds it too."
    elif not part_full:
        why = "The last block is full (or there is none): the next token begins a block of its own, and none is shared."
    else:
        why = "Nobody else holds the last block: it can be written in place."
    expect("shared_tail()", tables[0].shared_tail(), due, why)


@every(size=SIZES, num_tokens=range(7), num_forks=range(3), more=range(5))
def test_7_3_blocks_to_allocate(impl, size, num_tokens, num_forks, more):
    set_up(impl, size, num_tokens, num_forks)
    _, tables = forked(impl, 20, size, num_tokens, num_forks)
    new = len(range(0, num_tokens + more, size)) - len(tables[0].blocks)
    copy = int(more > 0 and num_forks > 0 and num_tokens % size > 0)
    why = f"{more} more tokens take {new} new blocks" + (" and one to copy the shared tail into." if copy else ".")
    if more == 0:
        why = "Appending 0 tokens writes nothing, so it takes nothing."
    expect(f"blocks_to_allocate({more})", tables[0].blocks_to_allocate(more), new + copy, why)


@every(size=SIZES, num_tokens=range(5), forks=range(3), more=range(5), num_free=range(4))
def test_7_4_append(impl, size, num_tokens, forks, more, num_free):
    num_blocks = max(1, len(range(0, num_tokens, size)) + num_free)
    set_up(impl, size, num_tokens, forks)
    with impl.diary.watching(BlockPool, table_class(impl)):
        pool, tables = forked(impl, num_blocks, size, num_tokens, forks)
        impl.diary.note(f"append({more}) to the first of them")
        first, old = tables[0], list(tables[0].blocks)
        before = [list(t.blocks) for t in tables], [t.num_tokens for t in tables], pool.free_queue
        copy = more > 0 and forks > 0 and num_tokens % size > 0
        wanted = len(range(0, num_tokens + more, size)) - len(old) + copy
        if wanted > pool.num_free:
            why = (
                f"{wanted} blocks are needed, the copy included, and {pool.num_free} are free: raise OutOfBlocksError."
            )
            must_raise(OutOfBlocksError, lambda: first.append(more), why)
            after = [list(t.blocks) for t in tables], [t.num_tokens for t in tables], pool.free_queue
            expect("(blocks, num_tokens, free queue)", after, before, "An append that fails changes nothing at all.")
            return
        copies = [tuple(pair) for pair in first.append(more)]
        now = list(first.blocks)
        due = [(old[-1], now[len(old) - 1])] if copy else []
        why = (
            "The shared block has to be copied before it is written: return [BlockCopy(shared, copy)], with the block "
            "that the table has now." if copy else "Nothing has to be copied: the tail is full, or nobody shares it."
        )  # fmt: skip
        expect("the copies", copies, due, why)
        if copy and now[len(old) - 1] == old[-1]:
            raise Wrong("The table still points to the shared block: its next token overwrites the others' K and V.")
        for other in tables[1:]:
            expect("another table's blocks", list(other.blocks), old, "append changes its own table, and no other.")
        holders = [sum(block in table.blocks for table in tables) for block in range(num_blocks)]
        counts = [pool.ref_count(block) for block in range(num_blocks)]
        why = (
            "Every block's count is the number of tables that hold it. A table that takes a copy gives its own "
            "reference to the shared block back (pool.free)."
        )
        expect("the reference counts", counts, holders, why)
        expect("num_tokens", first.num_tokens, num_tokens + more, "append counts the tokens that now have a slot.")


def test_7_4_all_together(impl):
    """Random programs of appends, forks and frees; the K and V of every token are read back."""
    Table = table_class(impl)
    with impl.diary.watching(BlockPool, Table):
        run_machine(impl, machine(Table=Table))
