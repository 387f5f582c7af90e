"""The memory of an offload tier (memory/offload.py) on a CPU: bytes that are a file, mapped into memory, or nobody's.

A slot is a row of them: a label, then K of a block in all layers, V, and their scales if there are any. The label says
what the row should be. So whatever happens to the file, a row is what was saved, or nothing:

    first row     [ magic                               ]       whose file this is
    slot 0        [ checksum, 16 bytes | hash, 48 ][ K, V ]
    slot 1        ...

The file outlives the engine, and the next one goes on with it: its hashes depend on no process, but on all that K and V
do (engine/offload.py). So an engine of another model finds nothing in it, and writes over it. Only its owner may read
it: K and V tell what a text was.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from mmap import mmap
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any
from warnings import warn

import numpy as np

from minipage.attention import KVCache

MAGIC = b"minipage K and V"
LABEL = 64  # bytes


class Store:
    """Slots in memory, or in the file `path`: at most `num_bytes`. If the file is of somebody else, there are no slots.

    Raises OSError, TypeError or ValueError if there can be no such file.
    """

    def __init__(self, cache: KVCache, num_bytes: int, path: str | Path | None = None) -> None:
        self.cache = cache
        row_size = LABEL + cache.nbytes // cache.k.shape[1]
        num_rows = max(1, num_bytes // row_size)
        self.map = None if path is None else open_file(Path(path).resolve(), num_rows, row_size)
        memory = self.map or np.zeros(num_rows * row_size, np.uint8)  # [num_bytes]
        self.rows = np.frombuffer(memory, np.uint8).reshape(-1, row_size)[1:]  # [num_slots, row_size]
        self.own_row: Any = np.zeros(row_size, np.uint8)  # [row_size]; on the way: to the rows others may write, too
        self.names = [row[16:LABEL].tobytes().rstrip(b"\0")[:-1] for row in self.rows]

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        for array, part in parts(self.cache, self.own_row[LABEL:]):
            part[...] = array[:, block]  # [num_layers, block_size, ...]
        self.own_row[:LABEL] = self.label(block_hash)  # [LABEL]
        self.row(slot)[:] = self.own_row  # [row_size]
        return self.is_whole()

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        self.own_row[:] = self.row(slot)  # [row_size]
        for array, part in parts(self.cache, self.own_row[LABEL:]):
            array[:, block] = part  # [num_layers, block_size, ...]
        return np.array_equal(self.own_row[:LABEL], self.label(block_hash))

    def label(self, block_hash: bytes) -> Any:
        """[LABEL], of our own row. In memory, where nobody else writes, it has no checksum."""
        checksum = blake2b(self.own_row[LABEL:] if self.map else b"", key=block_hash, digest_size=16).digest()
        # After a hash comes a dot, because it may end in zeros, too.
        return np.frombuffer(checksum + (block_hash + b".").ljust(LABEL - 16, b"\0"), np.uint8)

    def clear(self) -> None:
        for slot in range(len(self.rows)):
            self.row(slot)[:LABEL] = 0

    def is_whole(self) -> bool:
        """Whether nobody has cut the file off meanwhile: to look beyond its end would end the process."""
        return self.map is None or self.map.size() >= len(self.map)

    def row(self, slot: int) -> Any:
        """[row_size]; of a file that was cut off meanwhile, nobody's."""
        return self.rows[slot] if self.is_whole() else np.zeros(self.rows.shape[1], np.uint8)

    def is_coming(self, block: int) -> bool:
        return False  # what is loaded is here at once

    def before_writing(self) -> None:
        """Nothing is left to be done."""


def open_file(path: Path, num_rows: int, row_size: int) -> mmap:
    """The file as it is, if it is one of ours and of this size; or else a new one in its place."""
    # Still a link if links lead in a circle, since Python 3.13; to open it then raises OSError.
    begin = np.fromfile(path, np.uint8, len(MAGIC)).tobytes() if path.exists() or path.is_symlink() else b""
    if not MAGIC.startswith(begin):
        what = "no file of minipage, or a damaged one. It is left as it is, and nothing is offloaded"
        warn(f"kv_offloading_path, {str(path)!r}, is {what}: give another.", RuntimeWarning, stacklevel=6)
        return mmap(-1, row_size)  # with no slots
    if begin != MAGIC or path.stat().st_size != num_rows * row_size:
        with TemporaryDirectory(dir=path.parent) as folder:
            with NamedTemporaryFile(dir=folder, delete=False) as new:  # which only its owner may read
                # All of it, so that a full disk shows here and not later.
                new.writelines([MAGIC.ljust(row_size, b"\0"), *[bytes(row_size)] * (num_rows - 1)])
            Path(new.name).replace(path)  # whoever has the old one open keeps that
    with path.open("r+b") as file:
        return mmap(file.fileno(), 0)


def parts(cache: KVCache, rows: Any) -> Iterator[tuple[Any, Any]]:
    """Each array of a cache, in NumPy or PyTorch, and where its numbers of a block are in each of some rows.

    rows: [..., bytes of a block] uint8; the latter are [..., num_layers, block_size, ...], in the same memory.
    """
    stop = 0
    for array in cache.arrays:
        start, stop = stop, stop + array.nbytes // array.shape[1]
        numbers = rows[..., start:stop].view(array.dtype)  # [..., numbers of a block]
        yield array, numbers.reshape(*rows.shape[:-1], *array[:, 0].shape)  # [..., num_layers, block_size, ...]
