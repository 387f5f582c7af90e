"""The trace: watching an engine run, from outside, and drawing what was seen.

    engine ── record() ──▶ Frame, Frame, Frame …  ──▶ one renderer a file

frames.py    what an engine looked like at one moment, as plain data that never changes
recorder.py  watches a running LLM and writes down what each phase changed
replay.py    a trace: those changes, saved and loaded, and the frames that follow from them; state.py replays them,
             events.py puts them into words
terminal.py  draws a frame in a terminal: boxes.py the requests, pool.py the memory, glyphs.py has letters and colours
player.py    steps through frames on a full screen, with keys.py for the keyboard; spinner.py says what takes long
lanes.py     draws memories side by side, walk_lines.py one attention call from inside
html.py      makes a page of them; viewer.html, viewer.css and three scripts are its parts
exports.py   pictures, terminal recordings, timelines
scenarios.py the stories of the demo, told when there is something to see (sights.py); story.py says what a story is,
             sizes.py how large a pool it needs, demo.py runs it
comparison.py and walk.py record what two of them show beside the engine: other memories, the inside of a kernel

Nothing here is imported by the engine, and no renderer keeps books of its own: what it draws is in the frame.
"""

from minipage.trace.frames import BlockFrame, ChunkFrame, Frame, SequenceFrame
from minipage.trace.recorder import record
from minipage.trace.replay import Trace

__all__ = ["BlockFrame", "ChunkFrame", "Frame", "SequenceFrame", "Trace", "record"]
