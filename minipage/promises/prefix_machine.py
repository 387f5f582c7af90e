"""memory_machine.py and more: a prefix cache, and a second pool that tables move to and back again.

    known = {("", t0, t1): 3, ("", t0, t1, t2, t3): 0, ("salt", t0, t1): 5}

A second dictionary says which prefixes the cache should know, and in which blocks: full blocks, from the moment they
are published until the pool hands them out for something else. Whatever the cache finds is read back slot by slot and
must hold exactly the prefix asked for, under the same salt; that is the check which matters, as in memory_machine.py.
That it finds all that is known, and that equal texts end up in one block, is audited.
"""

from hypothesis import strategies as st
from hypothesis.stateful import initialize, multiple, rule

from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.promises.memory_machine import MemoryMachine, text

names = MemoryMachine.names
salts = st.sampled_from(["", "salt"])


def machine(Pool=BlockPool, Table=BlockTable, Cache=PrefixCache, audited=True):
    """A PrefixMachine that drives these classes."""
    return type("PrefixMachine", (PrefixMachine,), {"Pool": Pool, "Table": Table, "Cache": Cache, "audited": audited})


class PrefixMachine(MemoryMachine):
    Cache = PrefixCache
    new_table = allocate_many = append_too_much = None  # rules that find nothing new here

    @initialize(target=names, num_blocks=st.integers(3, 12), block_size=st.integers(1, 3), at_once=st.booleans())
    def start(self, num_blocks, block_size, at_once):
        self.set_up(num_blocks, block_size)
        self.publishes_at_once = at_once  # as the engine does, or only by the rule below
        return self.new_tables([([0, 0, 1, 0], ""), ([0, 0], "")])

    def set_up(self, num_blocks, block_size):
        super().set_up(num_blocks, block_size)
        self.swap_pool = self.Pool(max(1, num_blocks // 2), block_size)
        self.slots[self.swap_pool] = {}
        self.cache = self.Cache(self.pool)
        self.known = {}  # prefix of a full block, from the salt on -> the block
        self.num_published = {}  # name -> how many of its blocks are known; no entry: none, or before the last reset

    def add_table(self, table, tokens, parent=None, known=("",)):
        if parent is None:
            self.num_published[f"T{self.num_named}"] = (len(known) - 1) // self.block_size
        elif parent in self.num_published:  # a fork knows what its parent knows
            self.num_published[f"T{self.num_named}"] = self.num_published[parent]
        return super().add_table(table, tokens, parent, known)

    # ---- rules: the prefix cache -------------------------------------------------------------------------------------

    @rule(target=names, several=st.lists(st.tuples(text(12, min_size=1), salts), min_size=1, max_size=4))
    def new_tables(self, several):
        """What admission does: look a text up, adopt what is found, compute the rest."""
        return multiple(*[name for tokens, salt in several for name in self.admit(tokens, salt)])

    def admit(self, tokens, salt):
        size, before = self.block_size, self.observed()
        blocks, hashes = self.cache.find(tokens, salt)
        self.audit(self.observed() == before, "looking a text up must change nothing: it may not be admitted after all")
        self.check_what_was_found(blocks, (salt, *tokens))
        if len(blocks) * size >= len(tokens):
            return []  # not audited: the reading back has nothing against it
        num_wanted = -(-len(tokens) // size) - len(blocks) + len(set(blocks) & self.free_blocks())
        if num_wanted > len(self.free_blocks()):
            return []  # not admitted
        table = self.Table(self.pool)
        self.cache.adopt(table, blocks, hashes)
        num_tokens = len(blocks) * size
        self.audit(
            (list(table), table.num_tokens) == (blocks, num_tokens),
            f"the table should begin with the blocks {blocks} and their {num_tokens} tokens; it has {list(table)} and "
            f"{table.num_tokens}",
        )
        return [self.add_table(table, tokens[num_tokens:], known=(salt, *tokens[:num_tokens]))]

    def check_what_was_found(self, blocks, wanted):
        size = self.block_size
        self.audit(
            len(blocks) * size < len(wanted) - 1,
            f"{len(blocks)} blocks of {size} were found for {len(wanted) - 1} tokens: none is left to compute, and "
            "nobody kept the logits that say what comes next",
        )
        prefixes = [wanted[: 1 + end] for end in range(size, len(wanted) - 1, size)]
        expected = []
        while len(expected) < len(prefixes) and prefixes[len(expected)] in self.known:
            expected.append(self.known[prefixes[len(expected)]])
        for i, block in enumerate(blocks):
            for offset in range(size):
                prefix = wanted[: 2 + i * size + offset]
                found = self.slots[self.pool].get(block * size + offset)
                assert found == prefix, (
                    f"the cache says that block {block} holds tokens {i * size} to {i * size + size - 1} of {wanted}, "
                    f"but its offset {offset} does not hold the K and V of the prefix {prefix}: it holds {found}. "
                    "Somebody would be given another text's K and V"
                )
        self.audit(
            blocks == expected,
            f"blocks {expected} are known to hold the beginning of {wanted} and nobody has reused them; found were "
            f"{blocks}",
        )

    def write(self, name, tokens):
        super().write(name, tokens)
        if self.publishes_at_once:
            self.publish(name)

    @rule(name=names)
    def publish(self, name):
        if self.home[name] is not self.pool or name not in self.num_published:
            return  # swapped out, or from before a reset
        table, whole, old = self.tables[name], self.texts[name], list(self.tables[name])
        expected, queue = list(old), self.pool.free_queue
        for i in range(self.num_published[name], (len(whole) - 1) // self.block_size):
            prefix = whole[: 1 + (i + 1) * self.block_size]
            expected[i] = self.known.setdefault(prefix, old[i])
        self.num_published[name] = max(self.num_published[name], (len(whole) - 1) // self.block_size)
        self.cache.publish(table, whole[1:], whole[0])
        self.audit(
            list(table) == expected,
            f"{name} was published with the blocks {old}. Where another block is known to hold the same text already, "
            f"the table takes that one, so that nothing is stored twice: {expected}, not {list(table)}",
        )
        revived = [block for block in expected if block in queue]
        self.audit(
            [block for block in self.pool.free_queue if block in queue] == [b for b in queue if b not in revived],
            "publishing takes nothing out of the free queue but blocks that are known to hold the same text",
        )

    @rule()
    def reset(self):
        self.cache.reset()
        self.known.clear()
        self.num_published.clear()
        for name in self.tables:
            if len(self.texts[name]) == 1:
                self.num_published[name] = 0  # nothing of it was computed before the reset

    def handed_out(self, pool, blocks, expected):
        super().handed_out(pool, blocks, expected)
        if pool is self.pool:
            self.known = {prefix: block for prefix, block in self.known.items() if block not in blocks}

    def audit_counts_and_free_queue(self, pool):
        super().audit_counts_and_free_queue(pool)
        if pool is self.pool:
            findable, expected = {b for b in range(pool.num_blocks) if b in self.cache}, set(self.known.values())
            self.audit(
                findable == expected,
                f"the cache should know the blocks {sorted(expected)}; it knows {sorted(findable)}",
            )

    # ---- rules: another pool -----------------------------------------------------------------------------------------

    @rule(several=st.lists(names, min_size=1, max_size=3, unique=True))
    def move(self, several):
        """Swap some tables of one pool out, or in. Others that share blocks with them may stay where they are."""
        old_pool = self.home[several[0]]
        movers = [name for name in several if self.home[name] is old_pool]
        new_pool = self.swap_pool if old_pool is self.pool else self.pool
        before = {name: list(self.tables[name]) for name in movers}
        blocks, queue = {block for table in before.values() for block in table}, new_pool.free_queue
        if len(blocks) > len(self.free_blocks(new_pool)):
            return
        moved = {}
        for name in movers:
            self.tables[name].move_to(new_pool, moved)
            self.home[name] = new_pool
            if name in self.num_published:  # its blocks are others now, to be published anew
                self.num_published[name] = 0
        self.audit(
            moved.keys() == blocks,
            f"the blocks {sorted(blocks)} should have been moved, each once; moved were {moved}",
        )
        for name in movers:
            place = [moved.get(block) for block in before[name]]
            self.audit(
                list(self.tables[name]) == place,
                f"{name} had the blocks {before[name]}, which went to {place}; it has {list(self.tables[name])}",
            )
        self.handed_out(new_pool, sorted(set(moved.values())), queue[: len(blocks)])
        self.carry_out(moved.items(), old_pool, new_pool)
