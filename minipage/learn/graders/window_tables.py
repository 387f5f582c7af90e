"""What a window leaves of a block table: exercise 4.5, token by token."""

from minipage.learn.graders.common import every, expect
from minipage.learn.graders.pools import scattered_pool, state_of
from minipage.memory import BlockTable


def seen_by(place, window):
    """The tokens that the token at this place sees, itself included."""
    return [i for i in range(place + 1) if place - i < window]


def check_slid(impl, table, window, due_table):
    """due_table: what table.blocks should be before the call; it is brought up to date."""
    pool, size, num_tokens = table.pool, table.pool.block_size, table.num_tokens
    first = seen_by(num_tokens, window)[0]
    due = []
    for i, block in enumerate(due_table):
        if block >= 0 and (i + 1) * size <= first:
            due.append(block)
            due_table[i] = -1
    queue, counts = state_of(pool)
    for block in due:
        counts[block] -= 1
    queue += [block for block in due if counts[block] == 0]
    impl.diary.note(
        f"slide(table, {window}), when it has {num_tokens} tokens in blocks of {size}: {list(table.blocks)}"
    )
    why = (
        f"Token {num_tokens} comes next, and with a window of {window} it sees the tokens from {first} on. A block "
        "goes home if it ends before that, and if it has not gone already."
    )
    expect("the result of slide", impl.slide(table, window), due, why)
    why = f"{why} NULL_BLOCK, -1, takes its place, so that every other block keeps its own."
    expect("table.blocks", list(table.blocks), due_table, why)
    expect("table.num_tokens", table.num_tokens, num_tokens, "A token behind the window is still one of the text.")
    why = "Each block that goes home loses one reference (pool.free), the first block first."
    expect("(free queue, counts)", state_of(pool), (queue, counts), why)
    check_seen(impl, table, window)


def check_seen(impl, table, window):
    num_tokens, size = table.num_tokens, table.pool.block_size
    before, blocks = state_of(table.pool), list(table.blocks)
    due = [blocks[i // size] * size + i % size for i in seen_by(num_tokens, window)[:-1]]
    impl.diary.note(f"visible_slots(table, {window}), of the blocks {blocks}")
    why = (
        f"Token {num_tokens} comes next, and sees {window} tokens, itself included: read the slots of the others. "
        "Token i is in slot blocks[i // block_size] * block_size + i % block_size."
    )
    expect("the result of visible_slots", impl.visible_slots(table, window), due, why)
    after = state_of(table.pool), list(table.blocks)
    expect("the pool and the table", after, (before, blocks), "visible_slots only looks.")


def grown(impl, num_tokens, size, seed=0):
    impl.diary.begin()
    pool = scattered_pool(40, size, seed)
    table = BlockTable(pool)
    table.append(num_tokens)
    return table


def test_4_5_the_example(impl):
    impl.diary.begin()
    pool = scattered_pool(8, 4)
    table = BlockTable(pool)
    table.append(9)
    check_slid(impl, table, 4, list(table.blocks))


@every(size=range(1, 5), window=range(1, 10), num_tokens=range(12))
def test_4_5_slide_once(impl, size, window, num_tokens):
    table = grown(impl, num_tokens, size, seed=num_tokens)
    check_slid(impl, table, window, list(table.blocks))


@every(size=range(1, 5), window=(1, 2, 3, 5, 8), at_once=(1, 2, 3, 7))
def test_4_5_slide_after_every_step(impl, size, window, at_once):
    table, due = grown(impl, 0, size, seed=window), []
    for _ in range(24 // at_once):
        table.append(at_once)
        due += table.blocks[len(due) :]
        check_slid(impl, table, window, due)
        most = (window - 1 + at_once + size - 2) // size + 1
        held = [block for block in table.blocks if block >= 0]
        assert len(held) <= most


@every(size=range(1, 4), window=range(1, 5), num_tokens=range(1, 9))
def test_4_5_blocks_that_others_hold_too(impl, size, window, num_tokens):
    table = grown(impl, num_tokens, size)
    twin = table.fork()
    impl.diary.note("another table has the same blocks")
    before = list(twin.blocks), twin.num_tokens
    check_slid(impl, table, window, list(table.blocks))
    expect("the other table", (list(twin.blocks), twin.num_tokens), before, "The other table keeps what it has.")


def test_4_5_windows_that_are_never_left(impl):
    for num_tokens in (0, 1, 9):
        table = grown(impl, num_tokens, 4)
        check_slid(impl, table, 10**6, list(table.blocks))
