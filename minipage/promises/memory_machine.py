"""BlockPool and BlockTable against a plain dictionary, under random programs.

The dictionary stands for the KV cache. K and V of a token depend on all the tokens before it, so what a slot holds is
described exactly by a prefix: the tokens up to and including its own, after the salt of their request.

    slots = {28: ("", t0), 29: ("", t0, t1), 30: ("", t0, t1, t2), ...}

The machine allocates, appends, forks and frees at random, writes prefixes to the slots that the block tables name,
carries out the copies that they order, and after every step reads each table back: a slot that holds anything but the
prefix of exactly that table would have made the model read somebody else's text. Nothing here looks behind the public
methods, so the machine runs on any BlockPool and BlockTable: `machine(Pool=Mine, Table=Mine)`. `prefix_machine.py` adds
the prefix cache, and a second pool to swap to.

There are two kinds of check. The one that matters is `assert_every_table_reads_its_own_prefixes`. Everything said with
`self.audit` finds the same mistakes earlier and names them better (wrong count, wrong block, wrong copy); it can be
switched off, to show that the reading back alone catches whatever corrupts memory.
"""

import sys
from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from minipage.errors import BlockError, OutOfBlocksError
from minipage.memory import BlockPool, BlockTable


def machine(Pool=BlockPool, Table=BlockTable, audited=True):
    """A MemoryMachine that drives these two classes."""
    return type("MemoryMachine", (MemoryMachine,), {"Pool": Pool, "Table": Table, "audited": audited})


def text(max_size, min_size=0):
    """Some tokens. There are so few different texts, and all of zeros and ones, that many begin alike."""
    repeated = [[0], [0, 0, 1], [0, 1], [0, 1, 1], [1, 0, 0], [1, 0], [1, 1, 0], [1]]
    lengths, choices = st.integers(min_size, max_size), st.sampled_from(repeated)
    return st.builds(lambda length, tokens: (tokens * length)[:length], lengths, choices)


class MemoryMachine(RuleBasedStateMachine):
    Pool, Table, audited = BlockPool, BlockTable, True
    names = Bundle("names")

    @initialize(target=names, num_blocks=st.integers(1, 16), block_size=st.integers(1, 5), tokens=text(12))
    def start(self, num_blocks, block_size, tokens):
        self.set_up(num_blocks, block_size)
        return self.new_table(tokens)

    def set_up(self, num_blocks, block_size):
        self.pool = self.Pool(num_blocks=num_blocks, block_size=block_size)
        self.block_size = block_size
        self.slots = {self.pool: {}}  # of each pool: slot -> the prefix that was written there
        self.tables = {}  # name -> block table
        self.texts = {}  # name -> the salt, and then the tokens stored through that table
        self.home = {}  # name -> the pool that its blocks are in
        self.loose = []  # blocks taken straight from the pool, one entry for each reference
        self.num_named = 0  # every table gets a new name

    # ---- what the dictionary knows -----------------------------------------------------------------------------------

    def holders(self, pool=None):
        """How many entries, of block tables and of loose blocks, name each block of a pool."""
        pool = pool or self.pool
        tables = [table for name, table in self.tables.items() if self.home[name] is pool]
        loose = self.loose if pool is self.pool else []
        return Counter(loose) + Counter(block for table in tables for block in table)

    def free_blocks(self, pool=None):
        return set(range((pool or self.pool).num_blocks)) - set(self.holders(pool))

    def observed(self):
        tables = {name: (list(table), table.num_tokens) for name, table in self.tables.items()}
        counts = [[pool.ref_count(block) for block in range(pool.num_blocks)] for pool in self.slots]
        return [pool.free_queue for pool in self.slots], counts, tables

    def audit(self, condition, message):
        assert condition or not self.audited, message

    def must_fail(self, error, operation, what):
        if not self.audited:
            return
        before = self.observed()
        try:
            operation()
        except error:
            assert self.observed() == before, f"{what} failed, as it must, but left something changed behind"
        else:
            raise AssertionError(f"{what} must raise {error.__name__}")

    # ---- rules: block tables -----------------------------------------------------------------------------------------

    @rule(target=names, tokens=text(12))
    def new_table(self, tokens):
        return self.add_table(self.Table(self.pool), tokens)

    @rule(target=names, parent=names, tokens=text(3))
    def fork(self, parent, tokens):
        return self.add_table(self.tables[parent].fork(), tokens, parent)

    def add_table(self, table, tokens, parent=None, known=("",)):
        """Name a table, which holds the text of its parent or one that is `known`, and append tokens to it."""
        name = f"T{self.num_named}"
        self.num_named += 1
        self.tables[name], self.home[name] = table, self.home[parent] if parent else self.pool
        self.texts[name] = self.texts[parent] if parent else known
        self.check()
        self.append_and_write(name, tokens)
        return name

    @rule(name=names, tokens=text(6))
    def append_and_write(self, name, tokens):
        table, size, pool = self.tables[name], self.block_size, self.home[name]
        old_length, new_length = len(self.texts[name]) - 1, len(self.texts[name]) - 1 + len(tokens)
        old, queue, free = list(table), pool.free_queue, self.free_blocks(pool)
        num_new = len(range(0, new_length, size)) - len(old)  # a block begins at token 0, size, 2 * size, ...
        tail_is_shared = len(tokens) > 0 and old_length % size > 0 and self.holders(pool)[old[-1]] > 1
        wanted = num_new + tail_is_shared
        self.audit(
            table.blocks_to_allocate(len(tokens)) == wanted,
            f"{len(tokens)} tokens after {old_length}, in blocks of {size}, take {num_new} new blocks and "
            f"{int(tail_is_shared)} to copy into, but blocks_to_allocate says {table.blocks_to_allocate(len(tokens))}",
        )
        if wanted > len(free):
            what = f"an append that takes {wanted} blocks when {len(free)} are free"
            self.must_fail(OutOfBlocksError, lambda: table.append(len(tokens)), what)
            return
        copies = table.append(len(tokens))
        new = list(table)
        self.audit(
            (len(new), table.num_tokens) == (len(old) + num_new, new_length),
            f"{new_length} tokens in blocks of {size} take {len(old) + num_new} blocks; the table says that it has "
            f"{table.num_tokens} tokens and {len(new)} blocks",
        )
        expected = [(old[-1], new[len(old) - 1])] if tail_is_shared else []
        self.audit(
            [tuple(copy) for copy in copies] == expected,
            f"the copies (source, destination) for copy-on-write should be {expected}, not {[*map(tuple, copies)]}: "
            f"the last block of {old} was {'part full and shared' if tail_is_shared else 'full, or not shared'}",
        )
        self.handed_out(pool, [block for block in new if block not in old], queue[:wanted])
        self.carry_out(copies, pool, pool)
        self.write(name, tokens)

    @rule(name=names, extra=st.integers(1, 8))
    def append_too_much(self, name, extra):
        num_blocks = len(self.tables[name]) + len(self.free_blocks(self.home[name]))
        room = num_blocks * self.block_size - (len(self.texts[name]) - 1)
        what = f"an append of {room + extra} tokens where {room} have room at most"
        self.must_fail(OutOfBlocksError, lambda: self.tables[name].append(room + extra), what)

    @rule(name=consumes(names))
    def free_table(self, name):
        table, pool = self.tables.pop(name), self.home.pop(name)
        blocks, queue = list(table), pool.free_queue
        del self.texts[name]
        table.free()
        self.audit((list(table), table.num_tokens) == ([], 0), f"{name} was freed but still holds {list(table)}")
        if self.free_blocks(pool) == set(pool.free_queue):  # else check() will say what is wrong
            given_back = tuple(block for block in reversed(blocks) if block in pool.free_queue)
            self.audit(
                pool.free_queue == queue + given_back,
                f"a table of the blocks {blocks} was freed, and the free queue went from {queue} to {pool.free_queue}: "
                "the tail of a text should be reused before its head, because without the head nobody can use the tail",
            )

    def handed_out(self, pool, blocks, expected):
        """These blocks have left the free queue for new contents: what they held is lost."""
        self.audit(
            sorted(blocks) == sorted(expected),
            f"the blocks {list(expected)}, first in the free queue, should have been taken, each once; taken were "
            f"{blocks}",
        )
        for block in blocks:
            for offset in range(self.block_size):
                self.slots[pool].pop(block * self.block_size + offset, None)

    def carry_out(self, copies, source_pool, destination_pool):
        size = self.block_size
        contents = [[self.slots[source_pool].get(source * size + i) for i in range(size)] for source, _ in copies]
        for (_, destination), prefixes in zip(copies, contents):
            self.slots[destination_pool].update((destination * size + i, prefix) for i, prefix in enumerate(prefixes))

    def write(self, name, tokens):
        for token in tokens:
            position = len(self.texts[name]) - 1
            self.texts[name] += (token,)
            [slot] = self.tables[name].slot_mapping(position, position + 1)
            num_holders = self.holders(self.home[name])[slot // self.block_size]
            self.audit(
                num_holders == 1,
                f"token {position} of {name} is to be written to slot {slot}, in block {slot // self.block_size}, "
                f"which {num_holders} block-table entries name: only a block of one's own may be written",
            )
            self.slots[self.home[name]][slot] = self.texts[name]

    # ---- rules: blocks straight from the pool ------------------------------------------------------------------------

    @rule(count=st.integers(0, 4))
    def allocate_many(self, count):
        queue = self.pool.free_queue
        if count > len(self.free_blocks()):
            what = f"an allocation of {count} blocks when {len(self.free_blocks())} are free"
            self.must_fail(OutOfBlocksError, lambda: self.pool.allocate_many(count), what)
            return
        blocks = self.pool.allocate_many(count)
        self.handed_out(self.pool, blocks, queue[:count])
        self.loose += blocks

    @rule(number=st.integers(0, 99), revive=st.booleans())
    def take_some_block(self, number, revive):
        block = number % self.pool.num_blocks
        if block not in self.free_blocks():
            self.must_fail(BlockError, lambda: self.pool.revive(block), f"reviving block {block}, which is in use,")
            self.pool.share(block)
            self.loose.append(block)
        elif revive:
            self.pool.revive(block)  # what it holds is still there
            self.loose.append(block)
        else:
            self.must_fail(BlockError, lambda: self.pool.free(block), f"freeing block {block}, which is free,")
            self.must_fail(BlockError, lambda: self.pool.share(block), f"sharing block {block}, which is free,")

    @rule()
    def free_loose_blocks(self):
        while self.loose:
            self.pool.free(self.loose.pop())

    # ---- after every step --------------------------------------------------------------------------------------------

    @invariant()
    def check(self):
        for pool in self.slots:
            self.audit_counts_and_free_queue(pool)
        self.assert_every_table_reads_its_own_prefixes()

    def audit_counts_and_free_queue(self, pool):
        holders, free = self.holders(pool), self.free_blocks(pool)
        for block in range(pool.num_blocks):
            self.audit(
                pool.ref_count(block) == holders[block],
                f"{holders[block]} block-table entries name block {block}, but its reference count is "
                f"{pool.ref_count(block)}",
            )
        self.audit(
            sorted(pool.free_queue) == sorted(free) and pool.num_free == len(free),
            f"nobody names blocks {sorted(free)}, but the free queue is {pool.free_queue}",
        )
        if self.audited:
            tables = [table for name, table in self.tables.items() if self.home[name] is pool]
            pool.check_integrity([*tables, self.loose] if pool is self.pool else tables)

    def assert_every_table_reads_its_own_prefixes(self):
        for name, table in self.tables.items():
            text, blocks = self.texts[name], list(table)
            for position, slot in enumerate(table.slot_mapping(0, len(text) - 1)):
                index, offset = divmod(position, self.block_size)
                self.audit(
                    slot == blocks[index] * self.block_size + offset,
                    f"token {position} of {name} belongs in block {blocks[index]}, offset {offset}, not in slot {slot}",
                )
                found = self.slots[self.home[name]].get(slot)
                assert found == text[: position + 2], (
                    f"token {position} of {name} is read from slot {slot}. It should find the K and V of the prefix "
                    f"{text[: position + 2]} there, but finds {found}: somebody else wrote into this block, or it was "
                    "never written or copied"
                )

    def teardown(self):
        if sys.exc_info()[0] or not hasattr(self, "pool"):
            return  # the machine has found something already
        self.free_loose_blocks()
        for table in self.tables.values():
            table.free()
        for pool in self.slots:
            num_lost = pool.num_blocks - pool.num_free
            self.audit(num_lost == 0, f"every table was freed, but {num_lost} blocks are still in use: a leak")
