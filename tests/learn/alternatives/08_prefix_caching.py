"""Lesson 8 in another style: one dictionary, and keys that hash what Python shows of the text under a nonce."""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import MutableMapping

from minipage.memory import BlockCopy


class PrefixCache:
    def __init__(self, pool):
        self.pool = pool
        self.num_queried_tokens = self.num_hit_tokens = 0
        self.nonce = secrets.token_hex(8)
        self.table = {}
        pool.on_evict = self.forget

    def __contains__(self, block):
        return block in self.table.values()

    def root_hash(self, salt):
        return repr((self.nonce, salt)).encode()

    def block_hash(self, parent, token_ids):
        return hashlib.sha256(repr((self.nonce, parent, *token_ids)).encode()).digest()

    def publish(self, table, token_ids, salt=""):
        if table.block_hashes == []:
            table.block_hashes = [self.root_hash(salt)]
        size = self.pool.block_size
        done = len(table.block_hashes) - 1
        for i, block in list(enumerate(table.blocks))[done : table.num_tokens // size]:
            table.block_hashes.append(self.block_hash(table.block_hashes[-1], token_ids[i * size :][:size]))
            kept = self.table.setdefault(table.block_hashes[-1], block)
            if kept != block:
                self.hold(kept)
                table.blocks[i] = kept
                self.pool.free(block)

    def find(self, token_ids, salt=""):
        blocks, keys, size = [], [self.root_hash(salt)], self.pool.block_size
        rest = list(token_ids)
        while len(rest) > size:
            key = self.block_hash(keys[-1], rest[:size])
            if key not in self.table:
                return blocks, keys
            blocks.append(self.table[key])
            keys.append(key)
            rest = rest[size:]
        return blocks, keys

    def adopt(self, table, blocks, keys):
        table.blocks, table.block_hashes = [*blocks], [*keys]
        table.num_tokens = self.pool.block_size * len(blocks)
        for block in blocks:
            self.hold(block)

    def hold(self, block):
        take = self.pool.share if self.pool.ref_count(block) else self.pool.revive
        take(block)

    def forget(self, block):
        self.table = {key: known for key, known in self.table.items() if known != block}

    def reset(self):
        self.table, self.nonce = {}, secrets.token_hex(8)


class Parts:
    def __init__(self, pool, unit, block_hash):
        self.pool, self.unit, self.hash = pool, unit, block_hash
        self.parts = {}  # block -> the hashes of its beginnings
        self.newest = []  # blocks, in the order in which they were published

    def keys(self, parent, tokens):
        tokens, keys = list(tokens)[: self.pool.block_size - 1], []
        while len(tokens) >= self.unit:
            parent = self.hash(parent, tokens[: self.unit])
            keys.append(parent)
            tokens = tokens[self.unit :]
        return keys

    def publish(self, block, parent, token_ids):
        keys = self.keys(parent, token_ids)
        self.parts = {other: [None if key in keys else key for key in known] for other, known in self.parts.items()}
        self.parts[block] = keys

    def find(self, parent, token_ids):
        best = None
        for i, key in enumerate(self.keys(parent, token_ids[: len(token_ids) - 1])):
            for block, known in self.parts.items():
                if key in known:
                    best = block, (i + 1) * self.unit
        return best

    def adopt(self, table, source, num_tokens):
        if not self.pool.ref_count(source):
            self.pool.revive(source)
            self.pool.free(source)
        table.blocks = [*table.blocks, self.pool.allocate()]
        table.num_tokens = table.num_tokens + num_tokens
        return [BlockCopy(source=source, destination=table.blocks[-1])]

    def forget(self, evicted):
        self.parts.pop(evicted, None)


class ScanResistant(MutableMapping):
    def __init__(self, pool):
        self.most = pool.num_blocks // 2
        self.queue = OrderedDict()
        self.lucky = set()

    def order(self):
        return [b for b in self.queue if b not in self.lucky] + [b for b in self.queue if b in self.lucky]

    def __setitem__(self, block, value):
        self.queue[block] = value
        free_and_lucky = [b for b in self.queue if b in self.lucky]
        if len(free_and_lucky) > self.most:
            self.lucky.remove(free_and_lucky[0])
            self.queue.move_to_end(free_and_lucky[0])

    def pop(self, block):
        self.lucky.add(block)
        return self.queue.pop(block)

    def __delitem__(self, block):
        self.lucky.discard(block)
        del self.queue[block]

    def __iter__(self):
        return iter(self.order())

    def __len__(self):
        return len(self.queue)

    def __getitem__(self, block):
        return self.queue[block]
