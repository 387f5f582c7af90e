"""Lesson 8 in a third style: HMAC over packed numbers, a dataclass, generators, and a property for what is known."""

import hashlib
import hmac
import os
import struct
from collections import defaultdict
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from itertools import accumulate, count

from minipage.memory import BlockCopy


@dataclass(eq=False)
class PrefixCache:
    pool: object
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    secret: bytes = field(default_factory=lambda: os.urandom(16))
    known: dict = field(default_factory=dict)  # block -> key

    def __post_init__(self):
        self.pool.on_evict = self.forget

    def __contains__(self, block):
        return block in self.known

    @property
    def places(self):
        return {key: block for block, key in self.known.items()}

    def digest(self, kind, data):
        return hmac.new(self.secret, kind + data, hashlib.sha1).digest()

    def root_hash(self, salt):
        return self.digest(b"root", salt.encode("utf-8", "surrogatepass"))

    def block_hash(self, parent, token_ids):
        tokens = struct.pack(f"<{len(token_ids)}q", *token_ids)
        return self.digest(b"node", struct.pack("<qq", len(parent), len(token_ids)) + parent + tokens)

    def chain(self, token_ids, key, start, stop):
        size = self.pool.block_size
        for i in range(start, stop):
            key = self.block_hash(key, token_ids[i * size : (i + 1) * size])
            yield i, key

    def publish(self, table, token_ids, salt=""):
        table.block_hashes = table.block_hashes or [self.root_hash(salt)]
        done, full = len(table.block_hashes) - 1, table.num_tokens // self.pool.block_size
        for i, key in self.chain(token_ids, table.block_hashes[-1], done, full):
            table.block_hashes.append(key)
            mine, theirs = table.blocks[i], self.places.get(key)
            if theirs is None:
                self.known[mine] = key
            elif theirs != mine:
                self.take(theirs)
                table.blocks[i] = theirs
                self.pool.free(mine)

    def find(self, token_ids, salt=""):
        root = self.root_hash(salt)
        found, places = [], self.places
        for _, key in self.chain(token_ids, root, 0, max(0, len(token_ids) - 1) // self.pool.block_size):
            if key not in places:
                break
            found.append((places[key], key))
        return [block for block, _ in found], [root, *(key for _, key in found)]

    def adopt(self, table, blocks, keys):
        for block in blocks:
            self.take(block)
        table.blocks = blocks[:]
        table.block_hashes = keys[:]
        table.num_tokens = len(blocks) * self.pool.block_size

    def take(self, block):
        (self.pool.share if self.pool.ref_count(block) > 0 else self.pool.revive)(block)

    def forget(self, block):
        self.known.pop(block, None)

    def reset(self):
        self.known.clear()
        self.secret = os.urandom(16)


@dataclass
class Parts:
    pool: object
    unit: int
    block_hash: object
    known: dict = field(default_factory=lambda: defaultdict(dict))  # how many tokens -> hash -> block

    def chain(self, parent, tokens):
        whole = min(len(tokens), self.pool.block_size - 1) // self.unit
        pieces = [tokens[i * self.unit : (i + 1) * self.unit] for i in range(whole)]
        hashes = list(accumulate(pieces, self.block_hash, initial=parent))[1:]
        return list(zip(count(self.unit, self.unit), hashes))

    def publish(self, block, parent, token_ids):
        for length, key in self.chain(parent, token_ids):
            self.known[length][key] = block

    def find(self, parent, token_ids):
        for length, key in reversed(self.chain(parent, token_ids[:-1])):
            if key in self.known[length]:
                return self.known[length][key], length
        return None

    def adopt(self, table, source, num_tokens):
        lies_free = source in self.pool.free_queue
        (self.pool.revive if lies_free else self.pool.share)(source)
        self.pool.free(source)
        [new] = self.pool.allocate_many(1)
        table.blocks += [new]
        table.num_tokens += num_tokens
        return [BlockCopy(source, new)]

    def forget(self, block):
        for hashes in self.known.values():
            for key in [key for key, known in hashes.items() if known == block]:
                del hashes[key]


class ScanResistant(MutableMapping):
    def __init__(self, pool):
        self.pool, self.clock = pool, count()
        self.times, self.was_found = {}, defaultdict(bool)

    def __setitem__(self, block, value):
        self.times[block] = next(self.clock)
        found = sorted((b for b in self.times if self.was_found[b]), key=self.times.get)
        if len(found) > self.pool.num_blocks // 2:
            self.was_found[found[0]] = False
            self.times[found[0]] = next(self.clock)

    def pop(self, block):
        self.was_found[block] = True
        del self.times[block]

    def __delitem__(self, block):
        self.was_found[block] = False
        del self.times[block]

    def __iter__(self):
        return iter(sorted(self.times, key=lambda b: (self.was_found[b], self.times[b])))

    def __len__(self):
        return len(self.times)

    def __getitem__(self, block):
        self.times[block]
