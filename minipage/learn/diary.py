"""Writes down the calls that a check makes, and draws the block pool as it is after them.

    pool = BlockPool(num_blocks=2, block_size=1)
    pool.allocate()  → 0
    pool.free(0)                                        block            0   1
                                                        held by          ··  ··
                                                        references       0   0
                                                        free queue, next first: 0 1

While a class is watched, its methods note who calls them from outside. Hypothesis runs its smallest failing example
last, so what is in the diary when a check fails is the smallest sequence of calls that shows the mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

CHANGES = "allocate allocate_many free share revive append fork move_to publish adopt forget reset".split()
LOOKS = "slot_mapping blocks_to_allocate shared_tail find block_hash".split()  # noted only if they come last
MOST_LINES, MOST_BLOCKS = 24, 12


class Diary:
    def __init__(self) -> None:
        self._wrapped: dict[tuple[type, str], tuple[Any, Any]] = {}  # a class's method, and what notes its calls
        self.begin()

    def begin(self) -> None:
        """Forget everything: another example begins."""
        self._lines: list[str] = []
        self._look = ""
        self._depth = 0
        self._named: dict[int, tuple[Any, str]] = {}  # by id: the object, which keeps its id its own, and its name
        self._hashes: dict[bytes, str] = {}
        self.on_begin()

    after_call: Callable[[], object] = staticmethod(lambda: None)  # of theirs: is the judge still what it was?
    on_begin: Callable[[], None] = staticmethod(lambda: None)  # what else has to forget: what was printed

    def note(self, line: str) -> None:
        self._lines.append(line)
        self._look = ""

    @property
    def lines(self) -> list[str]:
        lines = self._lines + ([self._look] if self._look else [])
        left_out = len(lines) - MOST_LINES
        return [f"… {left_out} calls …", *lines[-MOST_LINES:]] if left_out > 0 else lines

    # ---- watching

    @contextmanager
    def watching(self, *classes: type) -> Iterator[None]:
        """Note the calls of these classes' methods, for a while."""
        before = [(cls, name, vars(cls).get(name)) for cls in classes for name in ["__init__", *CHANGES, *LOOKS]]
        for cls, name, _ in before:
            if callable(method := getattr(cls, name, None)):
                known, noted = self._wrapped.get((cls, name), (None, None))
                if known is not method:
                    noted = self._noted(cls, name, method)
                    self._wrapped[cls, name] = method, noted
                setattr(cls, name, noted)
        try:
            yield
        finally:
            for cls, name, method in before:
                if method is not None:
                    setattr(cls, name, method)
                elif name in vars(cls):
                    delattr(cls, name)

    def _noted(self, cls: type, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def noted(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self._depth or (name == "__init__" and type(this) is not cls):
                return method(this, *args, **kwargs)
            shown = ", ".join([*map(self.show, args), *(f"{key}={self.show(arg)}" for key, arg in kwargs.items())])
            if name == "__init__":
                call = f"{self._name(this)} = {cls.__name__}({shown})"
            else:
                call = f"{self._name(this)}.{name}({shown})"
            self._depth += 1
            try:
                result = method(this, *args, **kwargs)
            except Exception as error:
                self._write(name, f"{call}  → {type(error).__name__}")
                raise
            finally:
                self._depth -= 1
                self.after_call()
            if isinstance(result, type(this)):  # a fork
                call = f"{self._name(result)} = {call}"
            elif result is not None:
                call += f"  → {self.show(result)}"
            self._write(name, call)
            return result

        return noted

    def _write(self, name: str, call: str) -> None:
        if name in LOOKS:
            self._look = call
        else:
            self.note(call)

    def _name(self, thing: Any) -> str:
        if id(thing) in self._named:
            return self._named[id(thing)][1]
        kinds = {"BlockPool": "pool", "PrefixCache": "cache"}
        kind = kinds.get(type(thing).__name__, "table" if hasattr(type(thing), "slot_mapping") else "")
        kind = kind or type(thing).__name__.lower()
        number = 1 + sum(name.rstrip("0123456789") == kind for _, name in self._named.values())
        self._named[id(thing)] = thing, f"{kind}{number}" if number > 1 else kind
        return self._named[id(thing)][1]

    def show(self, value: Any) -> str:
        """A value as it should be read: known objects by their names, hashes by letters (lessons number them)."""
        if id(value) in self._named:
            return self._name(value)
        if isinstance(value, bytes):
            number = len(self._hashes)
            return self._hashes.setdefault(value, f"<hash {chr(ord('a') + number % 26)}{number // 26 or ''}>")
        if type(value) in (list, tuple):
            inner = ", ".join(map(self.show, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return f"{type(value).__name__}({', '.join(map(self.show, value))})"
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."

    # ---- drawing

    def picture(self) -> list[str]:
        """Every pool, with the tables over it; nothing of what cannot be asked (it may be half written)."""
        pools = [(thing, name) for thing, name in self._named.values() if hasattr(type(thing), "allocate")]
        tables = [(thing, name) for thing, name in self._named.values() if hasattr(type(thing), "slot_mapping")]
        lines: list[str] = []
        self._depth += 1  # these looks are ours
        try:
            for pool, name in pools:
                lines += self._draw(pool, name if len(pools) > 1 else "", tables)
        except Exception:
            return []
        finally:
            self._depth -= 1
        return lines

    def _draw(self, pool: Any, name: str, tables: list[tuple[Any, str]]) -> list[str]:
        blocks = range(min(pool.num_blocks, MOST_BLOCKS))
        letters = {table_name: chr(ord("A") + i) for i, (_, table_name) in enumerate(tables)}
        here = [(table, letters[table_name]) for table, table_name in tables if table.pool is pool]
        held = ["".join(letter for table, letter in here for b in table.blocks if b == block) for block in blocks]
        free = pool.free_queue
        held = [who or ("··" if block in free else "?") for block, who in zip(blocks, held)]
        rows = [("block", map(str, blocks)), ("references", (str(pool.ref_count(block)) for block in blocks))]
        if tables:
            rows.insert(1, ("held by", iter(held)))
        lines = [f"{name}:"] if name else []
        lines += [f"{head:12}" + "".join(f"{cell:>4}" for cell in cells).rstrip() for head, cells in rows]
        lines.append("free queue, next first: " + (" ".join(map(str, free)) or "empty"))
        for table, table_name in tables:
            if table.pool is pool:
                blocks_of = " ".join(map(str, table.blocks)) or "no blocks"
                lines.append(f"{letters[table_name]} is {table_name}: {table.num_tokens} tokens in [{blocks_of}]")
        return lines
