"""The trace: watching an engine run, from outside, and drawing what was seen.

    engine ── record() ──▶ Frame, Frame, Frame …  ──▶ one renderer a file

frames.py    what an engine looked like at one moment, as plain data that never changes
recorder.py  makes frames by wrapping a running LLM; events.py puts what happened into words
terminal.py  draws a frame in a terminal; boxes.py draws the requests and glyphs.py holds letters, colours and symbols
player.py    steps through frames on a full screen, with keys.py for the keyboard
demo.py      the demo: three requests on the shipped model

Nothing here is imported by the engine, and no renderer keeps books of its own: what it draws is in the frame.
"""

from minipage.trace.frames import BlockFrame, ChunkFrame, Frame, SequenceFrame
from minipage.trace.recorder import record
from minipage.trace.replay import Trace

__all__ = ["BlockFrame", "ChunkFrame", "Frame", "SequenceFrame", "Trace", "record"]
