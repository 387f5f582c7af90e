"""The memory of an offload tier (memory/offload.py) on a CPU: an array, or a file that is mapped into memory.

A slot is a row of bytes: K of a block in all layers, then V, and their scales if there are any. In a file a label says
what the row should be, so whatever happens to it, a row is what was saved, or nothing:

    header, 4096 bytes    [ magic, 16 bytes | 32 random ones, of which the secret of the hashes is made ]
    row 0                 [ checksum under the secret, 16 bytes | hash, 48 ][ K, V ]
    row 1                 ...

The file outlives the engine, and the next one goes on with it: hashes depend on no process once their secret is in the
file. They depend on all that K and V do, so that an engine of another model finds nothing in it, and writes over it.
Only its owner may read it: K and V tell what a text was.
"""

from __future__ import annotations

from hashlib import blake2b
from mmap import mmap
from os import urandom
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minipage.attention import KVCache

MAGIC = b"minipage K and V"
HEADER_SIZE = 4096  # bytes


class HostStore:
    """Slots in an array; `num_bytes`: how large it may be."""

    label_size = 0
    secret = b""  # of the hashes; none: that of the prefix cache

    def __init__(self, cache: KVCache, num_bytes: int) -> None:
        self.cache: Any = cache
        self.row_size = self.label_size + cache.nbytes // cache.k.shape[1]
        self.num_slots = num_bytes // self.row_size
        self.held: dict[int, bytes] = {}  # {slot: hash} of what is there already
        self.rows: Any = self.allocate()  # [num_slots, row_size] bytes

    def allocate(self) -> Any:
        return np.zeros((self.num_slots, self.row_size), np.uint8)

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        for array, part in self.parts(self.rows[slot]):
            part[...] = array[:, block]  # [num_layers, block_size, ...]
        return True

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        for array, part in self.parts(self.rows[slot]):
            array[:, block] = part  # [num_layers, block_size, ...]
        return True

    def clear(self) -> None:
        """Whoever knows no slot loads none."""

    def is_coming(self, block: int) -> bool:
        """Whether what was loaded into a block is still on its way. Here nothing ever is."""
        return False

    def before_writing(self) -> None:
        """A step is about to write to the pool."""

    def parts(self, rows: Any) -> Any:
        """Each array of the cache, and where its numbers of a block are in each of `rows` [..., row_size]."""
        start = self.label_size
        for array in self.cache.arrays:
            stop = start + array.nbytes // array.shape[1]
            part = rows[..., start:stop].view(array.dtype)  # [..., numbers of a block]
            yield array, part.reshape(*rows.shape[:-1], *array[:, 0].shape)  # [..., num_layers, block_size, ...]
            start = stop


class FileStore(HostStore):
    """Slots in a file.

    Args:
        origin: all that K and V depend on.

    Raises:
        FileExistsError: the file is of somebody else. OSError: there can be no such file.
    """

    label_size = 64  # bytes: a checksum of 16, a hash of up to 48

    def __init__(self, cache: KVCache, num_bytes: int, path: Path, origin: bytes) -> None:
        self.path, self.origin = path, origin
        super().__init__(cache, num_bytes)
        hashes = (row[16 : self.label_size].tobytes().rstrip(b"\0") for row in self.rows)
        self.held = {slot: name.ljust(32, b"\0") for slot, name in enumerate(hashes) if name}  # some end in zeros

    def allocate(self) -> Any:
        begin = np.fromfile(self.path, np.uint8, len(MAGIC)).tobytes() if self.path.exists() else b""
        if not MAGIC.startswith(begin):
            raise FileExistsError(self.path)
        if begin != MAGIC or self.path.stat().st_size != HEADER_SIZE + self.num_slots * self.row_size:
            self.make()
        with self.path.open("r+b") as file:
            self.map = mmap(file.fileno(), 0)
        self.secret = blake2b(self.origin, key=self.map[16:48], digest_size=32).digest()
        return np.frombuffer(self.map, np.uint8, offset=HEADER_SIZE).reshape(-1, self.row_size)  # [num_slots, row_size]

    def make(self) -> None:
        """A new file, which takes the old one's place when it is complete. Whoever has that one open keeps it."""
        with TemporaryDirectory(dir=self.path.parent) as folder:
            new = Path(folder, "new")
            new.touch(0o600)
            with new.open("wb") as file:
                file.write((MAGIC + urandom(32)).ljust(HEADER_SIZE, b"\0"))
                for _ in range(self.num_slots):  # all of it, so that a full disk shows here and not later
                    file.write(bytes(self.row_size))
            new.replace(self.path)

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        is_saved = self.is_whole() and super().save(slot, block_hash, block)
        if is_saved:
            self.rows[slot, : self.label_size] = self.label(block_hash, block)  # [label_size]
        return is_saved

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        is_read = self.is_whole() and super().load(slot, block_hash, block)
        return is_read and np.array_equal(self.rows[slot, : self.label_size], self.label(block_hash, block))

    def clear(self) -> None:
        self.map[16:48] = urandom(32)  # the weights may have changed: the next engine finds nothing

    def label(self, block_hash: bytes, block: int) -> Any:
        """Of what the block holds now: if it is loaded, what is checked is what is used, whoever else writes here."""
        name = block_hash.ljust(self.label_size - 16, b"\0")
        digest = blake2b(name, key=self.secret, digest_size=16)
        for array in self.cache.arrays:
            digest.update(array[:, block].tobytes())
        return np.frombuffer(digest.digest() + name, np.uint8)  # [label_size]

    def is_whole(self) -> bool:
        """Whether nobody has cut the file off meanwhile: to look beyond its end would end the process."""
        return self.map.size() >= len(self.map)
