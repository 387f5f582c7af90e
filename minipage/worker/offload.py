"""The memory of an offload tier (memory/offload.py) on a CPU: an array, or a file that is mapped into memory.

A slot is a row of bytes: K of a block in all layers, then V, and their scales if there are any. In a file a label says
what the row should be, so whatever happens to it, a row is what was saved, or nothing:

    header, 4096 bytes    [ magic | fingerprint: of which engine's blocks | secret of the hashes ]
    row 0                 [ length of the hash | hash | checksum under the secret ][ K, V ]
    row 1                 ...

The file outlives the engine, and the next one with the same fingerprint goes on with it. That is cheap, because hashes
depend on no process once their secret is in the file. Only its owner may read it: K and V tell what a text was.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from minipage.attention import KVCache

MAGIC = b"minipage K and V"
HEADER = struct.Struct("<16s32s32s")  # magic, fingerprint, secret
HEADER_SIZE = 4096
LABEL = struct.Struct("<B47s16s")  # length of the hash, hash, checksum
PIECE = 2**24  # bytes that are written at once


def row_size(cache: KVCache) -> int:
    """Bytes of a slot: K and V of a block, and what is missing to whole lines of a processor's cache."""
    num_blocks: int = cache.k.shape[1]
    return -(-cache.nbytes // num_blocks // 64) * 64


class HostStore:
    """Slots in an array; `num_bytes`: how large it may be."""

    label_size = 0

    def __init__(self, cache: KVCache, num_bytes: int) -> None:
        self.cache: Any = cache
        self.block_size = cache.nbytes // cache.k.shape[1]  # bytes
        self.row_size = self.label_size + row_size(cache)
        self.num_slots = num_bytes // self.row_size
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

    def held(self) -> dict[int, bytes]:
        """{slot: hash} of what is there already."""
        return {}

    def is_coming(self, block: int) -> bool:
        """Whether what was loaded into a block is still on its way. Here nothing ever is."""
        return False

    def before_writing(self) -> None:
        """A step is about to write to the pool."""

    def parts(self, rows: Any) -> Iterator[tuple[Any, Any]]:
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
        fingerprint: 32 bytes; only if they are equal, equal hashes mean equal K and V.
        secret: 32 bytes, under which hashes are made. If an old file is gone on with, `self.secret` is that one's.
    """

    label_size = LABEL.size

    def __init__(self, cache: KVCache, num_bytes: int, path: Path, fingerprint: bytes, secret: bytes) -> None:
        self.path = path
        self.header = HEADER.pack(MAGIC, fingerprint, secret)
        super().__init__(cache, num_bytes)

    def allocate(self) -> Any:
        size = HEADER_SIZE + self.num_slots * self.row_size
        old = read(self.path)
        if old[:48] != self.header[:48] or self.path.stat().st_size != size:  # of another engine, or cut off
            make(self.path, self.header, size)
        with self.path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), size)
        self.secret = HEADER.unpack_from(self.map)[2]
        return np.frombuffer(self.map, np.uint8, offset=HEADER_SIZE).reshape(
            self.num_slots, -1
        )  # [num_slots, row_size]

    def held(self) -> dict[int, bytes]:
        """Of all labels. Whether a row is what its label says, `load` finds out."""
        labels = ((slot, *LABEL.unpack_from(row)) for slot, row in enumerate(self.rows))
        return {slot: block_hash[:length] for slot, length, block_hash, _ in labels if length}

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        if is_whole := self.is_whole():
            super().save(slot, block_hash, block)
            LABEL.pack_into(self.rows[slot], 0, *self.label(block_hash, self.rows[slot]))
        return is_whole

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        if not self.is_whole():
            return False
        row = self.rows[slot].copy()  # [row_size]; what is checked is what is used, whoever else writes to the file
        for array, part in self.parts(row):
            array[:, block] = part  # [num_layers, block_size, ...]
        return LABEL.unpack_from(row) == self.label(block_hash, row)

    def clear(self) -> None:
        HEADER.pack_into(self.map, 0, MAGIC, b"", b"")  # the weights may have changed: nobody goes on with this file

    def label(self, block_hash: bytes, row: Any) -> tuple[int, bytes, bytes]:
        digest = blake2b(block_hash, key=self.secret, digest_size=16)
        digest.update(row[self.label_size : self.label_size + self.block_size])
        return len(block_hash), block_hash.ljust(47, b"\0"), digest.digest()

    def is_whole(self) -> bool:
        """Whether nobody has cut the file off meanwhile: to look beyond its end would end the process."""
        return self.map.size() >= len(self.map)


def read(path: Path) -> bytes:
    """The header of a file; nothing, if there is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEADER.size)


def is_foreign(path: Path) -> bool:
    """Whether there is a file that was not made here, and so may be dear to somebody."""
    begins = read(path)[: len(MAGIC)]
    return begins != MAGIC[: len(begins)]


def make(path: Path, header: bytes, size: int) -> None:
    """A new file, which takes the old one's place when it is complete. Whoever has that one open keeps it."""
    new = Path(f"{path}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as file:
            file.write(header)
            for start in range(len(header), size, PIECE):  # all of it, so that a full disk shows here and not later
                file.write(bytes(min(PIECE, size - start)))
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
