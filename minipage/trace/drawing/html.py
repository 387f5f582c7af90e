"""Makes one HTML page of a trace, to step through in a browser: no server, no network, nothing to install.

    write_page(trace, "run.html", title="Who shares what")

The page is a skeleton (viewer.html), its looks (viewer.css) and its scripts: viewer.js knows which frame to show, the
others draw one, and viewer_motion.js moves what has moved since the one before. All of it goes into the one document,
and with it the frames, as JSON. Of each frame only what differs from the one before is kept; `difference` says how, and
`patch` in viewer_frames.js puts it together again. A long run is cut into stretches, each in an element of its own, so
that the browser reads only the stretch that somebody looks at.

A content security policy forbids every request, and every script but ours: it is named by its hash.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import islice
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from minipage.trace.drawing.glyphs import PALETTE
from minipage.trace.recording.causes import CodeFrame
from minipage.trace.recording.frames import (
    AttentionFrame,
    BlockFrame,
    ContiguousFrame,
    Frame,
    SequenceFrame,
    occupied,
)
from minipage.trace.recording.text import num_common
from minipage.trace.recording.wording import decimals

Tree: TypeAlias = dict[str, Any]  # of what JSON can say, except None

TITLE = "What the engine did"
SCRIPTS = (
    "viewer_words.js", "viewer_frames.js", "viewer_texts.js", "viewer_pool.js", "viewer_wires.js", "viewer_code.js",
    "viewer_beside.js", "viewer_motion.js", "viewer.js",
)  # fmt: skip
FREE_SHOWN = 40  # blocks of the free queue, the next ones
STRETCH = 512  # frames, the first of them whole
MOST_FINISHED = 24  # texts that were finished before, the last ones
NOTEBOOK_HEIGHT = 880  # pixels: in a column of 736, 16 blocks and the bars under them are seen without scrolling
STEP_FIELDS = (  # what the viewer shows of a frame, under the same names
    "step phase block_size max_num_batched_tokens waiting running swapped swap_out swap_in copies chosen "
    "preempted finished num_queried_tokens num_hit_tokens events num_earlier_events story "
    "num_stopped_events windows reused num_computed_tokens num_used_blocks num_wasted_slots num_contiguous_blocks"
).split()
SEQUENCE_FIELDS = (
    "status prompt text new_text tokens num_prompt_tokens num_computed_tokens max_num_tokens blocks swap_blocks "
    "more_blocks last_blocks num_preemptions finish_reason drafts"
).split()
BLOCK_FIELDS = "ref_count holders cached tokens".split()
OUTLINED = {"swaps": ("swapped", "swap_out", "swap_in"), "stories": ("story",), "queries": ("num_queried_tokens",)}


class More(NamedTuple):
    """What a live page has beside. It may ask the server that it came from, and push frames to the viewer."""

    style: str
    body: str  # between the head of the page and what happened
    script: str


def page(
    frames: Iterable[Frame],
    title: str = TITLE,
    subtitle: str = "",
    still: str = "",
    more: More | None = None,
    onward: dict[str, str] | None = None,
) -> str:
    """A document that shows `frames`, complete in itself. `still`, an SVG, is shown where scripts may not run.

    onward: the "name" and "title" of the story that comes next, and its "href" if there is a page of it.
    """
    script = "\n".join([*map(_part, SCRIPTS), *([more.script] if more else [])])
    data, stretches = data_of(frames)
    data |= {"next": onward} if onward else {}
    parts = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "style": _part("viewer.css") + (more.style if more else ""),
        "policy": "connect-src 'self'; " if more else "",
        "more": more.body if more else "",
        "still": _image(still, title),
        "trace": _as_json(data),
        "stretches": "".join(
            f'<script type="application/json" class="stretch">{each}</script>\n' for each in stretches
        ),
        "script": script,
        "hash": b64encode(sha256(script.encode()).digest()).decode(),
    }
    # All at once, so that nothing is filled into what was just filled in.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _part("viewer.html"))


def write_page(
    frames: Iterable[Frame],
    path: str | PathLike[str],
    title: str = TITLE,
    subtitle: str = "",
    still: str = "",
    onward: dict[str, str] | None = None,
) -> None:
    """Put `page(...)` into a file."""
    Path(path).write_text(
        page(frames, title, subtitle, still, onward=onward), encoding="utf-8", errors="replace", newline="\n"
    )


def notebook(frames: Iterable[Frame], title: str = TITLE, subtitle: str = "", still: str = "") -> str:
    """HTML for the output of a notebook cell: the page in an iframe that can reach nothing around it.

    Where a viewer of notebooks takes iframes out, the picture behind it is left. It is an <img>, because the same
    viewers (GitHub's, and JupyterLab's for notebooks that are not trusted) take <svg> elements out as well.
    """
    document = escape(page(frames, title, subtitle, still), quote=True)
    same_place = "grid-area: 1 / 1"
    return (
        f'<div style="display: grid; min-height: {NOTEBOOK_HEIGHT}px">{_image(still, title, same_place)}'
        f'<iframe title="{escape(title)}" sandbox="allow-scripts" srcdoc="{document}" height="{NOTEBOOK_HEIGHT}" '
        f'style="{same_place}; width: 100%; border: 0; z-index: 1"></iframe></div>'
    )


def data_of(frames: Iterable[Frame]) -> tuple[Tree, list[str]]:
    """What the scripts have to know at once, with the first stretch of frames; and the others, in JSON."""
    outline, functions = Outline(), Tree()
    first: list[Any] = []
    others: list[str] = []
    coming = iter(frames)
    while stretch := list(islice(coming, STRETCH)):
        trees = list(map(as_tree, stretch))
        outline.note(trees)
        functions |= functions_of(stretch)
        if first:
            others.append(_as_json(deltas(trees)))
        else:
            first = deltas(trees)
    data = {"palette": PALETTE, "functions": functions, "stretch": STRETCH, "outline": outline.told, "deltas": first}
    return data, others


class Outline:
    """What can be known of a run without a look at its frames: which steps have which, and what ever occurs."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, str]] = []  # "schedule forward sample update": most steps walk alike
        self.has: set[str] = set()

    def note(self, trees: Iterable[Tree]) -> None:
        for tree in trees:
            number = tree.get("step", 0)
            step, walk = self.steps.pop() if self.steps and self.steps[-1][0] == number else (number, "")
            self.steps.append((step, f"{walk} {_name_in_step(tree)}".strip()))
            self.has |= {what for what, names in OUTLINED.items() if any(name in tree for name in names)}

    @property
    def told(self) -> Tree:
        walks = {walk: number for number, walk in enumerate(dict.fromkeys(walk for _, walk in self.steps))}
        return {
            "has": sorted(self.has),
            "walks": list(walks),
            "steps": [(step, walks[walk]) for step, walk in self.steps],
        }


def _name_in_step(tree: Tree) -> str:
    """ "forward"; "attend-2" for the second look inside attention."""
    walk = tree.get("attention")
    return f"{tree['phase']}-{len(walk['steps']) + ('kernel' in walk)}" if walk else str(tree["phase"])


def as_tree(frame: Frame) -> Tree:
    """What the viewer shows of a frame. What is empty is left out: most blocks of a large pool are."""
    blocks = {str(number): _fields(block, BLOCK_FIELDS) for number, block in occupied(frame.blocks)}
    finished = frame.finished_before[-MOST_FINISHED:]
    unseen = len(frame.finished_before) - len(finished)
    return _fields(frame, STEP_FIELDS) | {
        "num_blocks": len(frame.blocks),
        "num_free": len(frame.free_queue),
        "free_queue": frame.free_queue[:FREE_SHOWN],
        "blocks": {number: block for number, block in blocks.items() if block},
        "sequences": {seq.label: _fields(seq, SEQUENCE_FIELDS) for seq in (*finished, *frame.sequences)},
        "chunks": [(chunk.label, chunk.start, chunk.num_tokens) for chunk in frame.chunks],
        "written": sorted(slot for chunk in frame.chunks for slot in chunk.slots),
        "read": sorted(frame.read_blocks),
        **({"num_more_finished": unseen} if unseen else {}),
        **_ahead(frame),
        **(
            {"code": {_name(each): {str(line): blocks for line, blocks in each.lit} for each in frame.code}}
            if frame.code
            else {}
        ),
        **({"contiguous": list(map(_contiguous, frame.contiguous))} if frame.contiguous else {}),
        **({"attention": _attention(frame.attention)} if frame.attention else {}),
    }


def functions_of(frames: Iterable[Frame]) -> Tree:
    """The source of each function that did something in one of the frames, under the name that `as_tree` uses."""
    functions = {_name(each): each for frame in frames for each in frame.code}
    return {name: {"first": each.first, "lines": each.lines} for name, each in functions.items()}


def _name(code: CodeFrame) -> str:
    return f"{code.file} {code.function}"


def _ahead(frame: Frame) -> Tree:
    """What somebody is waiting for: slots that are not filled yet, and what a "before" frame knows."""
    ahead = frame.ahead
    told = {
        "pending": sorted(frame.pending_slots),
        "wants": [tuple(want) for want in ahead.wants],
        "gives_way": ahead.gives_way,
        "finds": dict(ahead.finds),
        "returns": ahead.returns,
    }
    return {name: value for name, value in told.items() if value}


def _contiguous(memory: ContiguousFrame) -> Tree:
    pieces = {label: [at_last, reserved, start, stored] for label, start, reserved, stored, at_last in memory.pieces}
    return {"name": memory.name, "pieces": pieces, "waiting": memory.waiting, "finished": memory.finished}


def _attention(walk: AttentionFrame) -> Tree:
    steps = [{name: rounded(value) for name, value in step._asdict().items()} for step in walk.steps]
    place = {"label": walk.label, "position": walk.position, "layer": walk.layer, "head": walk.head}
    if not walk.kernel:
        return place | {"steps": steps}
    end = {
        "result": rounded(walk.result),
        "kernel": rounded(walk.kernel),
        "difference": decimals(walk.largest_difference),
    }
    return place | {"steps": steps} | end


def rounded(value: Any) -> Any:
    """To what can be seen."""
    return [rounded(part) for part in value] if isinstance(value, tuple) else round(value, 6)


def _fields(source: Frame | SequenceFrame | BlockFrame, names: Iterable[str]) -> Tree:
    return {name: value for name in names if (value := getattr(source, name))}


def deltas(trees: Iterable[Tree]) -> list[Any]:
    """For each tree, how it differs from the one before; the first is compared with an empty one."""
    before: Tree = {}
    told = []
    for tree in trees:
        told.append(difference(before, tree))
        before = tree
    return told


def difference(old: Any, new: Any) -> Any:
    """What has to be said to get from `old` to `new`:

    a dict      {key: difference}, of the members that change; null for members that go
    a list      [n, rest]: the first n members stay, and then comes the rest
    a text      the same, in characters
    all others  themselves
    """
    if isinstance(new, Mapping):
        before = old if isinstance(old, Mapping) else {}
        changed = {key: difference(before.get(key), new[key]) for key in new if before.get(key) != new[key]}
        return changed | {key: None for key in before if key not in new}
    if isinstance(new, str | list | tuple):
        kept = num_common(old, new) if isinstance(old, str) == isinstance(new, str) and old else 0
        return [kept, new[kept:]]
    return new


def _as_json(value: Any) -> str:
    """For a script element: with "<" written as an escape, nothing in it can end that."""
    return json.dumps(value, separators=(",", ":"), default=index).replace("<", r"\u003c")


def _part(name: str) -> str:
    return files("minipage.trace.drawing").joinpath(name).read_text(encoding="utf-8")


def _image(svg: str, title: str, style: str = "") -> str:
    """An SVG as an <img>, which never runs scripts and needs no request."""
    data = b64encode(svg.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(title)}" style="{style}">' if svg else ""
