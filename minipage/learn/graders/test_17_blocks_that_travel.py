"""Lesson 17: a tier against a list in order of use, and tables that move between two pools."""

from hypothesis import strategies as st

from minipage.errors import OutOfBlocksError
from minipage.learn.graders.common import every, expect, must_raise
from minipage.learn.graders.drawn import given, programs
from minipage.learn.graders.pools import scattered_pool, state_of
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable

QUICK = programs(200)


class DiskError(Exception):
    """What a full disk raises."""


class Store:
    """Slots that remember whose K and V they hold, and notice what is done to them."""

    def __init__(self, num_slots):
        self.num_slots = num_slots
        self.held = [None] * num_slots
        self.blocks = {}  # block of the pool -> the hash of what it holds
        self.calls = []
        self.is_full = False
        self.damaged = set()

    def check(self, slot):
        if type(slot) is not int or not 0 <= slot < self.num_slots:
            raise Wrong(f"A slot is a whole number from 0 to {self.num_slots - 1}.", "a slot that there is", slot)

    def save(self, slot, block):
        self.check(slot)
        self.calls.append(("save", slot, block))
        self.held[slot] = None  # a copy that stops half way leaves nothing of use
        if self.is_full:
            raise DiskError("the disk is full")
        self.held[slot] = self.blocks.get(block)
        self.damaged.discard(slot)

    def load(self, slot, block):
        self.check(slot)
        self.calls.append(("load", slot, block))
        if slot in self.damaged:
            return False
        self.blocks[block] = self.held[slot]
        return True


class Model:
    """What a tier should hold: hashes, the least recently wanted first."""

    def __init__(self, num_slots):
        self.num_slots, self.order = num_slots, []

    def touch(self, name):
        self.order.remove(name)
        self.order.append(name)


class Pair:
    """A learner's tier, and what it should be."""

    def __init__(self, impl, num_slots):
        impl.diary.begin()
        impl.diary.note(f"tier = Tier(store), with {num_slots} slots")
        self.impl, self.store, self.model = impl, Store(num_slots), Model(num_slots)
        self.tier = impl.Tier(self.store)

    def save(self, name, block, fails=False):
        note = "; the disk is full, and store.save raises" if fails else ""
        self.impl.diary.note(f"tier.save({name!r}, block={block}){note}")
        store, model = self.store, self.model
        store.blocks[block], store.calls, before = name, [], list(store.held)
        known, will_copy = name in model.order, name not in model.order and model.num_slots > 0
        store.is_full = fails and will_copy
        oldest = model.order[0] if will_copy and len(model.order) == model.num_slots else None
        if store.is_full:
            must_raise(
                DiskError, lambda: self.tier.save(name, block), "The error of store.save comes out of tier.save."
            )
        else:
            self.tier.save(name, block)
        store.is_full = False
        copies = [call for call in store.calls if call[0] == "save"]
        if known:
            expect("the copies made", copies, [], f"{name!r} is in the tier already: equal hashes, equal contents.")
            model.touch(name)
        elif not will_copy:
            expect("the copies made", copies, [], "There is no slot to copy into.")
        else:
            expect(
                "the number of copies", len(copies), 1, f"{name!r} is not in the tier, so its block is copied, once."
            )
            [(_, slot, copied)] = copies
            expect("the block that was copied", copied, block, "It is this block that is evicted.")
            self.check_slot(before[slot], oldest)
            if oldest:
                model.order.remove(oldest)
            if not fails:
                model.order.append(name)
        expect("store.load was called", [call for call in store.calls if call[0] == "load"], [], "Nothing is loaded.")

    def check_slot(self, overwritten, oldest):
        if overwritten not in self.model.order:
            overwritten = None
        if oldest is None:
            why = "There is a slot that holds nothing of use. Nothing is overwritten while there is one."
            expect("what was overwritten", overwritten, None, why)
        else:
            why = f"All slots are taken, and {oldest!r} was not wanted for the longest time."
            expect("what was overwritten", overwritten, oldest, why)

    def load(self, name, block, is_damaged=False):
        store, model = self.store, self.model
        known = name in model.order
        if is_damaged and known:
            store.damaged.add(store.held.index(name))
        note = "; its slot is damaged, and store.load returns False" if is_damaged and known else ""
        self.impl.diary.note(f"tier.load({name!r}, block={block}){note}")
        store.blocks[block], store.calls = "nothing", []
        got = self.tier.load(name, block)
        if not known:
            why = f"{name!r} is not in the tier: it was never saved, or it is lost."
            expect("tier.load", got, False, why)
            expect(
                "the slots that were loaded", [call[1] for call in store.calls], [], "What is not there is not read."
            )
        elif is_damaged:
            expect("tier.load", got, False, "The slot is damaged, so there is nothing to be had.")
            store.held[store.held.index(name)] = None
            model.order.remove(name)
        else:
            expect("tier.load", got, True, f"{name!r} was saved, and nothing has overwritten it.")
            expect("what the block holds then", store.blocks[block], name, "These K and V were asked for.")
            model.touch(name)


def test_17_1_an_example(impl):
    pair = Pair(impl, 2)
    pair.save(b"a", 7)
    pair.save(b"b", 1)
    pair.load(b"a", 3)
    pair.save(b"c", 5)
    pair.load(b"b", 4)
    pair.load(b"a", 6)


def test_17_1_without_slots(impl):
    pair = Pair(impl, 0)
    pair.save(b"a", 7)
    pair.load(b"a", 7)


def test_17_1_slot_0_and_block_0_are_as_good_as_others(impl):
    pair = Pair(impl, 1)
    for name in (b"a", b"b", b"a"):
        pair.save(name, 0)
        pair.load(name, 0)
    pair.load(b"a", 0, is_damaged=True)
    pair.save(b"a", 0)
    pair.load(b"a", 2)


def test_17_1_a_full_disk_loses_one_slot_and_nothing_else(impl):
    pair = Pair(impl, 2)
    pair.save(b"a", 1)
    pair.save(b"b", 2)
    pair.save(b"c", 3, fails=True)
    pair.load(b"c", 4)
    pair.load(b"a", 4)
    pair.load(b"b", 4)
    pair.save(b"d", 5)
    pair.load(b"b", 6)
    pair.load(b"d", 6)


steps = st.lists(
    st.tuples(
        st.sampled_from(["save", "load", "save", "load", "disk", "damage"]), st.integers(0, 5), st.integers(0, 3)
    ),
    min_size=1,
    max_size=25,
)


@QUICK
@given(num_slots=st.integers(0, 4), steps=steps)
def test_17_1_any_history(impl, num_slots, steps):
    pair = Pair(impl, num_slots)
    for what, number, block in steps:
        name = bytes([97 + number])
        if what in ("save", "disk"):
            pair.save(name, block, fails=what == "disk")
        else:
            pair.load(name, block, is_damaged=what == "damage")


# ---- 17.2


def tables(impl, total, size, seed, num_free):
    """A table of `total` tokens, what its blocks hold, and another pool."""
    impl.diary.begin()
    here = scattered_pool(12, size, seed)
    table = BlockTable(here)
    table.append(total)
    impl.diary.note(f"a table of {total} tokens in the blocks {table.blocks}, of {size} tokens each")
    return here, table, scattered_pool(num_free, size, seed + 1)


def contents_of(block):
    return f"K and V of block {block}"


def packed(impl, here, table):
    before, told = (list(table.blocks), table.num_tokens, state_of(here)), []
    impl.diary.note("hand_over(table, read)")

    def read(block):
        told.append(block)
        return contents_of(block)

    handover = impl.hand_over(table, read)
    expect("the table afterwards", (list(table.blocks), table.num_tokens, state_of(here)), before, "It stays as it is.")
    if not hasattr(handover, "num_tokens") or not hasattr(handover, "contents"):
        raise Wrong("A Handover comes back.", "Handover(num_tokens, contents)", handover)
    expect("num_tokens", handover.num_tokens, table.num_tokens, "The new table will have as many tokens.")
    due = [contents_of(block) for block in table.blocks]
    expect("contents", list(handover.contents), due, "What each block holds, in the order of the table.")
    return handover


@every(size=range(1, 5), total=range(10), seed=range(3))
def test_17_2_a_table_moves(impl, size, total, seed):
    here, table, there = tables(impl, total, size, seed, num_free=10)
    handover = packed(impl, here, table)
    memory, num_free = {}, there.num_free
    before = {block for block in range(there.num_blocks) if there.ref_count(block)}
    impl.diary.note("take_over(pool of another engine, handover, write)")
    with impl.diary.watching(BlockPool):
        new = impl.take_over(there, handover, memory.__setitem__)
    if not isinstance(new, BlockTable) or new.pool is not there:
        raise Wrong("A BlockTable over the pool that was handed in comes back.", BlockTable, new)
    expect("num_tokens of the new table", new.num_tokens, total, "It has the same tokens.")
    expect("its number of blocks", len(new.blocks), len(table.blocks), "As many tokens take as many blocks.")
    expect("blocks of others that are in it", before & set(new.blocks), set(), "Others hold these.")
    expect("free blocks", there.num_free, num_free - len(new.blocks), "Each block of the table was taken once.")
    due = {block: contents_of(old) for block, old in zip(new.blocks, table.blocks)}
    expect(
        "what was written, by block", memory, due, "Block i of the new table holds what block i of the old one does."
    )


@every(size=range(1, 4), total=range(2, 9), short=range(1, 3))
def test_17_2_without_room_nothing_is_written(impl, size, total, short):
    num_blocks = -(-total // size)
    if num_blocks < short:
        return
    here, table, there = tables(impl, total, size, total, num_free=num_blocks - short)
    handover = packed(impl, here, table)
    before, written = state_of(there), []
    impl.diary.note(f"take_over(a pool with {there.num_free} free blocks, handover, write)")
    why = f"{num_blocks} blocks are wanted, and {there.num_free} are free: `append` raises, and you let it."
    must_raise(OutOfBlocksError, lambda: impl.take_over(there, handover, lambda *what: written.append(what)), why)
    expect("what was written", written, [], "These blocks are somebody else's.")
    expect("[free queue, counts]", state_of(there), before, "Nothing has changed.")


@every(size=range(1, 4), total=range(1, 8), fails_at=range(4), stopped=range(2))
def test_17_2_a_write_that_fails_loses_no_block(impl, size, total, fails_at, stopped):
    error = KeyboardInterrupt if stopped else DiskError
    here, table, there = tables(impl, total, size, total, num_free=10)
    if fails_at >= len(table.blocks):
        return
    handover = packed(impl, here, table)
    counts, num_free, written = state_of(there)[1], there.num_free, []

    def write(block, contents):
        written.append(block)
        if len(written) > fails_at:
            raise error("the connection is gone")

    impl.diary.note(f"take_over(pool, handover, write), where write number {fails_at} raises {error.__name__}")
    must_raise(error, lambda: impl.take_over(there, handover, write), "What `write` raises comes out of take_over.")
    why = "All blocks that were taken go back: nobody will ever have this table."
    if stopped:
        why += " That goes for Ctrl-C, too, which is no Exception: `except Exception` does not see it."
    expect("free blocks", there.num_free, num_free, why)
    expect("the reference counts", state_of(there)[1], counts, why)
