"""BlockPool and BlockTable against a plain dictionary, under random programs.

The dictionary stands for the KV cache. K and V of a token depend on all the tokens before it, so what a slot holds is
described exactly by a prefix: the tuple of the tokens up to and including its own.

    slots = {28: (t0,), 29: (t0, t1), 30: (t0, t1, t2), ...}

The machine allocates, appends, forks and frees at random, writes prefixes to the slots that the block tables name,
carries out the copies that they order, and after every step reads each table back: a slot that holds anything but the
prefix of exactly that table would have made the model read somebody else's text. Nothing here looks behind the public
methods, so the machine runs on any BlockPool and BlockTable: `machine(MyPool, MyTable)`.

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


def machine(pool_class=BlockPool, table_class=BlockTable, audited=True):
    """A MemoryMachine that drives these two classes."""
    choices = {"Pool": pool_class, "Table": table_class, "audited": audited}
    return type("MemoryMachine", (MemoryMachine,), choices)


class MemoryMachine(RuleBasedStateMachine):
    Pool, Table, audited = BlockPool, BlockTable, True
    names = Bundle("names")

    @initialize(num_blocks=st.integers(1, 16), block_size=st.integers(1, 5))
    def start(self, num_blocks, block_size):
        self.pool = self.Pool(num_blocks=num_blocks, block_size=block_size)
        self.block_size = block_size
        self.all_blocks = set(range(num_blocks))
        self.tables = {}  # name -> block table
        self.tokens = {}  # name -> the tokens stored through that table
        self.loose = []  # blocks taken straight from the pool, one entry for each reference
        self.slots = {}  # slot -> the prefix that was written there
        self.num_named = self.num_written = 0  # every table gets a new name, every token a new number

    # ---- what the dictionary knows -----------------------------------------------------------------------------------

    def holders(self):
        """How many entries, of block tables and of loose blocks, name each block."""
        return Counter(self.loose) + Counter(block for table in self.tables.values() for block in table)

    def free_blocks(self):
        return self.all_blocks - set(self.holders())

    def observed(self):
        tables = {name: (list(table), table.num_tokens) for name, table in self.tables.items()}
        return self.pool.free_queue, [self.pool.ref_count(block) for block in sorted(self.all_blocks)], tables

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

    @rule(target=names, num_tokens=st.integers(0, 12))
    def new_table(self, num_tokens):
        return self.add_table(self.Table(self.pool), (), num_tokens)

    @rule(target=names, parent=names, num_tokens=st.integers(0, 3))
    def fork(self, parent, num_tokens):
        return self.add_table(self.tables[parent].fork(), self.tokens[parent], num_tokens)

    def add_table(self, table, tokens, num_tokens):
        name = f"T{self.num_named}"
        self.num_named += 1
        self.tables[name], self.tokens[name] = table, tokens
        self.check()
        self.append_and_write(name, num_tokens)
        return name

    @rule(name=names, num_tokens=st.integers(0, 6))
    def append_and_write(self, name, num_tokens):
        table, size = self.tables[name], self.block_size
        old_length, new_length = len(self.tokens[name]), len(self.tokens[name]) + num_tokens
        old, free = list(table), self.free_blocks()
        num_new = len(range(0, new_length, size)) - len(old)  # a block begins at token 0, size, 2 * size, ...
        tail_is_shared = num_tokens > 0 and old_length % size > 0 and self.holders()[old[-1]] > 1
        wanted = num_new + tail_is_shared
        self.audit(
            table.blocks_to_allocate(num_tokens) == wanted,
            f"{num_tokens} tokens after {old_length}, in blocks of {size}, take {num_new} new blocks and "
            f"{int(tail_is_shared)} to copy into, but blocks_to_allocate says {table.blocks_to_allocate(num_tokens)}",
        )
        if wanted > len(free):
            what = f"an append that takes {wanted} blocks when {len(free)} are free"
            self.must_fail(OutOfBlocksError, lambda: table.append(num_tokens), what)
            return
        copies = table.append(num_tokens)
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
        taken = [block for block in new if block not in old]
        self.audit(
            len(taken) == len(set(taken)) == wanted and free.issuperset(taken),
            f"{wanted} of the free blocks {sorted(free)} should have been taken, each once; taken were {taken}",
        )
        self.carry_out(copies)
        self.write(name, num_tokens)

    @rule(name=names, extra=st.integers(1, 8))
    def append_too_much(self, name, extra):
        room = (len(self.tables[name]) + len(self.free_blocks())) * self.block_size - len(self.tokens[name])
        what = f"an append of {room + extra} tokens where {room} have room at most"
        self.must_fail(OutOfBlocksError, lambda: self.tables[name].append(room + extra), what)

    @rule(name=consumes(names))
    def free_table(self, name):
        table = self.tables.pop(name)
        self.tokens.pop(name)
        table.free()
        self.audit((list(table), table.num_tokens) == ([], 0), f"{name} was freed but still holds {list(table)}")

    def carry_out(self, copies):
        for source, destination in copies:
            for offset in range(self.block_size):
                prefix = self.slots.get(source * self.block_size + offset)
                self.slots[destination * self.block_size + offset] = prefix

    def write(self, name, num_tokens):
        for _ in range(num_tokens):
            position = len(self.tokens[name])
            self.tokens[name] += (self.num_written,)
            self.num_written += 1
            [slot] = self.tables[name].slot_mapping(position, position + 1)
            num_holders = self.holders()[slot // self.block_size]
            self.audit(
                num_holders == 1,
                f"token {position} of {name} is to be written to slot {slot}, in block {slot // self.block_size}, "
                f"which {num_holders} block-table entries name: only a block of one's own may be written",
            )
            self.slots[slot] = self.tokens[name]

    # ---- rules: blocks straight from the pool ------------------------------------------------------------------------

    @rule(count=st.integers(0, 4))
    def allocate_many(self, count):
        free = self.free_blocks()
        if count > len(free):
            what = f"an allocation of {count} blocks when {len(free)} are free"
            self.must_fail(OutOfBlocksError, lambda: self.pool.allocate_many(count), what)
            return
        blocks = self.pool.allocate_many(count)
        self.audit(
            len(blocks) == len(set(blocks)) == count and free.issuperset(blocks),
            f"{count} of the free blocks {sorted(free)} should have been taken, each once; taken were {blocks}",
        )
        self.loose += blocks

    @rule(number=st.integers(0, 99))
    def share_some_block(self, number):
        block = number % len(self.all_blocks)
        if block in self.free_blocks():
            self.must_fail(BlockError, lambda: self.pool.free(block), f"freeing block {block}, which is free,")
            self.must_fail(BlockError, lambda: self.pool.share(block), f"sharing block {block}, which is free,")
        else:
            self.pool.share(block)
            self.loose.append(block)

    @rule()
    def free_loose_blocks(self):
        while self.loose:
            self.pool.free(self.loose.pop())

    # ---- after every step --------------------------------------------------------------------------------------------

    @invariant()
    def check(self):
        self.audit_counts_and_free_queue()
        self.forget_what_was_in_free_blocks()
        self.assert_every_table_reads_its_own_prefixes()

    def audit_counts_and_free_queue(self):
        holders, free = self.holders(), self.free_blocks()
        for block in self.all_blocks:
            self.audit(
                self.pool.ref_count(block) == holders[block],
                f"{holders[block]} block-table entries name block {block}, but its reference count is "
                f"{self.pool.ref_count(block)}",
            )
        self.audit(
            sorted(self.pool.free_queue) == sorted(free) and self.pool.num_free == len(free),
            f"nobody names blocks {sorted(free)}, but the free queue is {self.pool.free_queue}",
        )
        if self.audited:
            self.pool.check_integrity([*self.tables.values(), self.loose])

    def forget_what_was_in_free_blocks(self):
        """So that reading one never comes out right by luck."""
        free = self.free_blocks()
        self.slots = {slot: prefix for slot, prefix in self.slots.items() if slot // self.block_size not in free}

    def assert_every_table_reads_its_own_prefixes(self):
        for name, table in self.tables.items():
            tokens, blocks = self.tokens[name], list(table)
            for position, slot in enumerate(table.slot_mapping(0, len(tokens))):
                index, offset = divmod(position, self.block_size)
                self.audit(
                    slot == blocks[index] * self.block_size + offset,
                    f"token {position} of {name} belongs in block {blocks[index]}, offset {offset}, not in slot {slot}",
                )
                assert self.slots.get(slot) == tokens[: position + 1], (
                    f"token {position} of {name} is read from slot {slot}. It should find the K and V of the prefix "
                    f"{tokens[: position + 1]} there, but finds {self.slots.get(slot)}: somebody else wrote into this "
                    "block, or it was never written or copied"
                )

    def teardown(self):
        if sys.exc_info()[0] or not hasattr(self, "pool"):
            return  # the machine has found something already
        self.free_loose_blocks()
        for table in self.tables.values():
            table.free()
        num_lost = len(self.all_blocks) - self.pool.num_free
        self.audit(num_lost == 0, f"every table was freed, but {num_lost} blocks are still in use: a leak")
