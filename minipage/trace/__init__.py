"""The trace: watching an engine run, from outside, and drawing what was seen.

    engine ── record() ──▶ Frame, Frame, Frame …  ──▶ a terminal, a page, a picture

Three rooms, each of which imports only those before it:

recording/   watches a running LLM and writes down what each phase changed; its frames are plain data
drawing/     draws a frame: in a terminal, as a page, as a picture
playing/     the demo: stories on the real engine, a player with keys, files

Nothing here is imported by the engine, and no renderer keeps books of its own: what it draws is in the frame.
The first room is not called `record`, because a user calls `minipage.trace.record(llm)`: importing a submodule of that
name would put it in the place of the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minipage.trace.recording.frames import BlockFrame, ChunkFrame, Frame, SequenceFrame
    from minipage.trace.recording.recorder import record
    from minipage.trace.recording.trace import Trace

__all__ = ["BlockFrame", "ChunkFrame", "Frame", "SequenceFrame", "Trace", "record"]


def __getattr__(name: str) -> Any:
    """Load the recorder, and the engine with it, when it is first used: a spinner should turn before that is there."""
    homes = dict.fromkeys(__all__, "frames") | {"record": "recorder", "Trace": "trace"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"minipage.trace.recording.{homes[name]}"), name)
