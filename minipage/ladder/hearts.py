"""The heart of each rung, as its source has it, and which of its lines are not in the rung before.

The heart is the loop over the context, and what decides it: for rung 4 who starts where, for 5 and 6 the products. Of
the new lines, those that made the rung faster have a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from minipage.ladder import RUNGS

PACKAGE = Path(__file__).parent.parent
TOKENS, OPERATIONS = "for token in range(", 4  # of a query head and a number of K or V: a product and a sum each
MOST_LIT = 0.8  # of a heart's lines
PLACES = {  # rung: its file, and the beginnings of the lines, or the blocks of lines, that are its heart
    "1 thread": ("ladder/rung1_thread.py", [TOKENS]),
    "2 warp": ("ladder/rung2_warp.py", ["for bit in (16", TOKENS]),
    "3 block": ("ladder/rung3_block.py", [TOKENS]),
    "4 split": ("ladder/rung4_split.py", ["split, head, seq", "start, stop =", TOKENS]),
    "5 wide": ("attention/cuda/ordinary_cores.py", ["def multiply(score", "for base in range(start"]),
    "6 tensor": ("attention/cuda/tensor_cores.py", ["def score_tokens(", "def add_values(", "while base < stop"]),
}


NOTES = {  # rung: the beginning of a line -> what it gains
    "2 warp": {
        "x += cuda.shfl_xor_sync": "lanes add their parts through registers",
        "i = lane + j * WARP": "neighbouring lanes read neighbouring numbers: whole sectors are used",
    },
    "3 block": {
        "for token in range(warp": "four warps share the context: four times as many loads under way",
        "shrink, weight": "the online softmax: K is read once, not twice",
    },
    "4 split": {"start, stop =": "several blocks share one context: a single long text fills the chip"},
    "5 wide": {
        "load(k, u": "16 bytes at a time, and four rows are on their way before any is used",
        "load(v, u": "V is on its way while K is used",
        "score[u, r] +=": "all query heads of the group, from the same registers: K is loaded once for them",
        "acc[r, w": "and V",
    },
    "6 tensor": {
        "multiply(score": "2,048 products with one instruction, for rung 5's score[u, r] +=",
        "multiply(acc": "and these for its acc[r, ...] +=",
        "wait_for_oldest()": "K and V of this step have come into shared memory, in whole rows, whole lines of memory,",
        "load_k(": "from where a lane takes its pieces; a load of the pieces themselves would use half of each line",
        "request(": "and those of a later step are asked for (cp.async)",
    },
}


class Line(NamedTuple):
    number: int  # in its file
    text: str
    is_new: bool  # the rung before has no such line
    note: str = ""  # what it gains, if it is one of those that matter


class Heart(NamedTuple):
    """Shows itself in a notebook: new lines are lit."""

    rung: str
    file: str  # in the package
    lines: list[Line]

    def __str__(self) -> str:
        rows = [
            f"{mark(line)} {line.number:4}  {line.text}" + f"   <- {line.note}" * bool(line.note) for line in self.lines
        ]
        return "\n".join([f"minipage/{self.file}", *rows])

    def _repr_html_(self) -> str:
        rows, is_another = [], self.is_another_kernel()
        for line in self.lines:
            row = f"{line.number:4}  {escape(line.text)}"
            if line.note:
                under = " " * (6 + indent(line.text))  # on a line of its own, which nobody has to scroll to
                row = f'<b style="background:#fc0a">{row}</b>\n{under}<em style="color:#a50">↑ {escape(line.note)}</em>'
            elif line.is_new and not is_another:
                row = f'<span style="background:#fc03">{row}</span>'
            rows.append(row)
        new = "a kernel of its own, nearly every line is new" if is_another else "pale: not in the rung before"
        head = f"rung {self.rung}, minipage/{self.file}; {new}; bright: what made it faster"
        code = "\n".join(rows)
        look = "font-family:monospace;white-space:pre;line-height:1.3;overflow-x:auto"  # Jupyter's own is none of these
        return f'<div><em>{escape(head)}</em><pre style="{look}">{code}</pre></div>'

    def is_another_kernel(self) -> bool:
        """Whether so little is left of the rung before that to light what is new would light everything."""
        return sum(line.is_new for line in self.lines) > MOST_LIT * len(self.lines)


def heart(name: str) -> Heart:
    """The heart of a rung, by its name in RUNGS."""
    names = list(RUNGS)
    before = [text.strip() for _, text in source(names[names.index(name) - 1])] if name != names[0] else []
    own = list(source(name))
    match = SequenceMatcher(None, before, [text.strip() for _, text in own], autojunk=False)
    new = {
        i for tag, _, _, first, last in match.get_opcodes() if tag in ("insert", "replace") for i in range(first, last)
    }
    notes = dict(NOTES.get(name, {}))
    lines = []
    for i, (number, text) in enumerate(own):
        begins = next((start for start in notes if text.strip().startswith(start)), "")
        lines.append(Line(number, text, i in new and name != names[0], notes.pop(begins, "")))  # a note is said once
    return Heart(name, PLACES[name][0], lines)


def mark(line: Line) -> str:
    return "*" if line.note else "+" if line.is_new else " "


def source(name: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the heart's lines, moved to the left; a block goes on as long as lines are indented deeper."""
    file, starts = PLACES[name]
    lines = (PACKAGE / file).read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        if line.strip().startswith(tuple(starts)):
            depth = indent(line)
            stop = i + 1
            while stop < len(lines) and (indent(lines[stop]) > depth or not lines[stop].strip()):
                stop += 1
            block = [each for each in zip(range(i + 1, stop + 1), lines[i:stop]) if each[1].strip()]
            texts = dedent("\n".join(text for _, text in block)).split("\n")
            yield from zip((number for number, _ in block), texts)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def place_on_the_roofline(microseconds: float, kv_bytes: int, group: int) -> tuple[float, float]:
    """(operations a byte, TFLOP/s) of a decode step whose KV heads serve `group` query heads each.

    `kv_bytes` are those of K and V in two bytes a number: what has to be read once, however often a kernel reads it.
    """
    operations = kv_bytes // 2 * group * OPERATIONS // 2
    return operations / kv_bytes, operations / microseconds / 1e6
