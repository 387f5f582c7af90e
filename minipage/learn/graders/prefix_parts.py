"""Beginnings of blocks: exercise 8.7, against a dictionary of texts."""

from hypothesis import strategies as st

from minipage.errors import OutOfBlocksError
from minipage.learn.graders.common import QUICK, every, expect, must_raise, remembered
from minipage.learn.graders.drawn import given
from minipage.learn.graders.pools import state_of
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable

ROOT = b"what came before"
sizes = st.sampled_from([(4, 1), (4, 2), (6, 2), (8, 2), (2, 1), (3, 1), (4, 4), (1, 1)])
pieces = st.lists(st.integers(0, 1), min_size=0, max_size=9)


def plain_hash(parent, token_ids):
    """Long, but nothing can collide."""
    return parent + b"|" + b",".join(b"%d" % token for token in token_ids)


def make(impl, size, unit, num_blocks=6):
    impl.diary.begin()
    pool = BlockPool(num_blocks, size)
    impl.diary.note(f"a pool of {num_blocks} blocks of {size}; Parts(pool, unit={unit}, ...)")
    return pool, impl.Parts(pool, unit, plain_hash)


def due_part(known, parent, tokens, size, unit):
    """(block, number of tokens) of the longest that is known, or None."""
    lengths = [n for n in range(unit, size, unit) if n < len(tokens) and (parent, *tokens[:n]) in known]
    return (known[parent, *tokens[: lengths[-1]]], lengths[-1]) if lengths else None


def publish(impl, parts, known, block, tokens, size, unit, parent=ROOT):
    impl.diary.note(f"publish(block {block}, {tokens})" + (" after another text" if parent != ROOT else ""))
    lent = list(tokens)
    parts.publish(block, parent, lent)
    expect("token_ids afterwards", lent, list(tokens), "They belong to somebody else: leave them as they are.")
    for n in range(unit, min(len(tokens), size - 1) + 1, unit):
        known[parent, *tokens[:n]] = block


def look(impl, parts, known, tokens, size, unit, parent=ROOT):
    before, lent = state_of(parts.pool), list(tokens)
    impl.diary.note(f"find({tokens})" + (" after another text" if parent != ROOT else ""))
    due = due_part(known, parent, tokens, size, unit)
    got = parts.find(parent, lent)
    expect("(free queue, counts)", state_of(parts.pool), before, "Looking takes no block.")
    expect("token_ids afterwards", lent, list(tokens), "They belong to somebody else: leave them as they are.")
    why = (
        f"The longest beginning of {tokens} that is known, in steps of {unit}: shorter than a block of {size}, and at "
        "least the last token is left to compute. Of equal beginnings the newest block counts."
    )
    if due and any((parent, *tokens[:n]) not in known for n in range(unit, due[1], unit)):
        why += " A longer one may be known where a shorter one is not any more."
    if got is None or due is None:
        if got is not due:
            raise Wrong(why, due, got, "the result of find")
        return
    expect("the result of find", got, due, why)


def forget(impl, parts, known, block):
    before = state_of(parts.pool)
    impl.diary.note(f"forget(block {block})")
    parts.forget(block)
    expect("(free queue, counts)", state_of(parts.pool), before, "Forgetting is not freeing: leave the pool alone.")
    for text in [text for text, other in known.items() if other == block]:
        del known[text]


def test_8_7_the_example(impl):
    """Blocks of 4, in steps of 2: six tokens of e f g h ... are known."""
    _, parts = make(impl, 4, 2)
    known = {}
    publish(impl, parts, known, 1, [5, 6, 7, 8], 4, 2)
    for tokens in ([5, 6, 0, 0], [5, 6, 7, 8, 9], [5, 0], [5, 6], [5, 6, 7], [6, 5, 7], [], [5]):
        look(impl, parts, known, tokens, 4, 2)


@every(size=(2, 3, 4, 6), unit=(1, 2, 3), held=range(7), wanted=range(9))
def test_8_7_as_far_as_it_is_written(impl, size, unit, held, wanted):
    if size % unit or held > size:
        return
    _, parts = make(impl, size, unit)
    known = {}
    publish(impl, parts, known, 2, list(range(held)), size, unit)
    look(impl, parts, known, list(range(wanted)), size, unit)


def test_8_7_what_came_before_counts(impl):
    _, parts = make(impl, 4, 1)
    known = {}
    publish(impl, parts, known, 0, [1, 2, 3], 4, 1)
    publish(impl, parts, known, 1, [1, 2, 3], 4, 1, parent=b"something else")
    look(impl, parts, known, [1, 2, 3, 4], 4, 1)
    look(impl, parts, known, [1, 2, 3, 4], 4, 1, parent=b"something else")
    look(impl, parts, known, [1, 2, 3, 4], 4, 1, parent=b"a third")


def test_8_7_a_longer_one_outlives_a_shorter_one(impl):
    """Both blocks begin with 1, of which the newer counts. It is evicted; the older has 1 2 and 1 2 3."""
    _, parts = make(impl, 4, 1)
    known = {}
    publish(impl, parts, known, 0, [1, 2, 3], 4, 1)
    publish(impl, parts, known, 1, [1, 5], 4, 1)
    forget(impl, parts, known, 1)
    look(impl, parts, known, [1, 2, 3, 4], 4, 1)


@remembered
@QUICK
@given(
    sizes=sizes,
    steps=st.lists(
        st.tuples(st.sampled_from(["publish", "publish", "look", "forget"]), st.integers(0, 3), pieces), max_size=8
    ),
)
def test_8_7_find_what_is_known(impl, sizes, steps):
    size, unit = sizes
    _, parts = make(impl, size, unit)
    known, held = {}, {}
    for what, block, tokens in steps:
        if what == "publish":
            if block in held:  # it holds more by now, or the pool has handed it out
                tokens = (held[block] + tokens)[:size]
            held[block] = tokens[:size]
            publish(impl, parts, known, block, held[block], size, unit)
        elif what == "forget":
            forget(impl, parts, known, block)
            held.pop(block, None)
        look(impl, parts, known, tokens, size, unit)
    for tokens in ([0] * 9, [0, 1] * 5, [1, 0, 0] * 3, [1] * 9):
        look(impl, parts, known, tokens, size, unit)


def adopt(impl, parts, table, source, num_tokens):
    pool = parts.pool
    queue, counts = state_of(pool)
    blocks, total = list(table.blocks), table.num_tokens
    impl.diary.note(f"adopt(table, source={source}, num_tokens={num_tokens}); the free queue is {queue}")
    copies = parts.adopt(table, source, num_tokens)
    if source in queue:
        queue = [block for block in queue if block != source] + [source]
    why = (
        "The table gets a new block from the pool, the first in the free queue, at its end. If the source is free, it "
        "goes to the end of the queue before that: it was just wanted."
    )
    expect("table.blocks", list(table.blocks), [*blocks, queue[0]], why)
    expect("table.num_tokens", table.num_tokens, total + num_tokens, "It has the tokens of the part, too.")
    why = "What the new block should hold is in the source: [BlockCopy(source, new)]."
    expect("the result of adopt", [tuple(copy) for copy in copies], [(source, queue[0])], why)
    counts[queue[0]] = 1
    why = "The new block has one reference, and the source as many as before: the table does not hold it."
    expect("(free queue, counts)", state_of(pool), (queue[1:], counts), why)


@every(others=(0, 1, 2), whole=(0, 1, 2))
def test_8_7_adopt_from_a_block_in_use(impl, others, whole):
    pool, parts = make(impl, 4, 2, num_blocks=9)
    [source, *_] = pool.allocate_many(1 + others)
    for _ in range(others):
        pool.share(source)
    table = BlockTable(pool)
    table.append(4 * whole)
    adopt(impl, parts, table, source, 2)


@every(place=(0, 1, 2), whole=(0, 1))
def test_8_7_adopt_from_a_free_block(impl, place, whole):
    """Wherever it lies in the queue; if it comes first, it must not be the block that the pool hands out."""
    pool, parts = make(impl, 4, 2, num_blocks=5)
    table = BlockTable(pool)
    table.append(4 * whole)
    adopt(impl, parts, table, pool.free_queue[place], 2)


def test_8_7_adopt_the_last_free_block(impl):
    """It is the only one: what it holds beyond the part is lost, and the part need not move."""
    pool, parts = make(impl, 4, 2, num_blocks=3)
    pool.allocate_many(2)
    [source] = pool.free_queue
    table = BlockTable(pool)
    impl.diary.note(f"only block {source} is free. adopt(table, source={source}, num_tokens=2)")
    parts.adopt(table, source, 2)
    why = "Only the source is free, so the table gets that very block."
    expect("(table.blocks, num_tokens)", (list(table.blocks), table.num_tokens), ([source], 2), why)
    expect("the reference count", pool.ref_count(source), 1, why)


def test_8_7_adopt_when_nothing_is_free(impl):
    pool, parts = make(impl, 4, 2, num_blocks=2)
    pool.allocate_many(2)
    table = BlockTable(pool)
    why = "No block is free: the pool's OutOfBlocksError comes through."
    must_raise(OutOfBlocksError, lambda: parts.adopt(table, 0, 2), why)
    expect("(table.blocks, num_tokens)", (list(table.blocks), table.num_tokens), ([], 0), "What fails changes nothing.")
