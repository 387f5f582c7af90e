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

from minipage.trace.recording.frames import BlockFrame, ChunkFrame, Frame, SequenceFrame
from minipage.trace.recording.recorder import record
from minipage.trace.recording.trace import Trace

__all__ = ["BlockFrame", "ChunkFrame", "Frame", "SequenceFrame", "Trace", "record"]
