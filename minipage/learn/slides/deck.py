"""Makes a folder with all pictures, all stories to step through, and the deck.

slides/index.html            the deck: S opens the speaker's view, with the notes
slides/traces/basics.html    each story as a page (`demo basics --html`)
slides/pictures/basics/      each of its steps as SVG (`demo basics --svg`)
slides/reveal/               reveal.js (MIT), as its package has it
"""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Callable
from html import escape
from itertools import islice
from pathlib import Path
from textwrap import dedent

from minipage.errors import LearnError
from minipage.languages import tell
from minipage.memory import BlockPool, BlockTable
from minipage.simulate import NUM_SLOTS, PAPER, draw_requests, mean_held, memories, simulate
from minipage.trace.drawing import exports
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import SCENARIOS
from minipage.trace.recording.frames import Frame
from minipage.trace.recording.trace import Trace

HERE = Path(__file__).parent
SIZE = 1280, 720
NUM_REQUESTS, SEED = 1000, 1  # of the simulation, as in lesson 1
PROMPT, ANSWER = 161.31, 337.99  # tokens, on average, of ShareGPT's conversations (paper, figure 11)
USES = {"token states": "#0072B2", "reserved": "#E69F00", "internal": "#D55E00", "external": "#999999"}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>How many requests fit?</title>
<link rel="stylesheet" href="reveal/reset.css">
<link rel="stylesheet" href="reveal/reveal.css">
<style>
.reveal {{ font: 30px/1.4 system-ui, sans-serif; color: #222 }} .reveal-viewport {{ background: #fff }}
.reveal h1, .reveal h2 {{ font-weight: 600; margin-bottom: .6em }}
.reveal h1 {{ font-size: 2.4em }} .reveal h2 {{ font-size: 1.5em }}
.reveal p {{ margin: .6em 0 }} .reveal ul {{ display: inline-block; text-align: left; margin-left: 1em }}
.reveal pre {{ display: inline-block; text-align: left; font: .65em/1.4 ui-monospace, Menlo, monospace }}
.reveal pre {{ background: #f3f3f3; padding: .6em 1em }} .reveal table {{ margin: auto; border-collapse: collapse }}
.reveal td, .reveal th {{ padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: left }}
.reveal iframe {{ width: 1110px; height: 566px; zoom: 1.12; border: 1px solid #ccc; background: #fff }}
.reveal section:has(iframe) h2 {{ font-size: 1em; margin-bottom: .3em }}
.small {{ font-size: .6em; color: #666 }} strong {{ font-weight: 700 }} .bars {{ font-size: .7em; text-align: left }}
.bar {{ display: flex; height: 1.6em; margin: .1em 0 .6em }}
.bar span {{ color: #fff; overflow: hidden; padding-left: .3em }}
</style>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/reveal.js"></script>
<script src="reveal/notes.js"></script>
<script>
Reveal.initialize({{ width: {width}, height: {height}, margin: 0.04, hash: true, controlsLayout: "edges",
  plugins: [RevealNotes] }});
</script>
</html>
"""


def write_deck(folder: Path, on_story: Callable[[str], object] = lambda name: None) -> Path:
    """Write all of it; returns the deck. Raises LearnError, OSError."""
    if folder.exists() and not folder.is_dir():
        raise LearnError(f"{folder} is a file; give the name of a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "reveal", folder / "reveal", dirs_exist_ok=True)
    (folder / "traces").mkdir(exist_ok=True)
    walk: list[Frame] = []
    for name in SCENARIOS:
        on_story(name)
        frames, trace = run_story(name)
        exports.write_html(frames, trace, folder / "traces" / f"{name}.html")
        exports.write_svg(frames, trace, folder / "pictures" / name)
        walk = frames if name == "kernel" else walk
    facts = computed(walk)
    text = (HERE / "lecture.html").read_text(encoding="utf-8").partition("-->\n")[2]
    slides = re.sub(r"\[\[([a-z_]+)(?: ([a-z-]+))?\]\]", lambda place: filled(place, facts), text)
    deck = folder / "index.html"
    deck.write_text(PAGE.format(slides=slides, width=SIZE[0], height=SIZE[1]), encoding="utf-8")
    return deck


def run_story(name: str) -> tuple[list[Frame], Trace]:
    scenario = SCENARIOS[name]
    demo = Demo(make_engine(scenario, {}), scenario)
    return list(demo.frames()), demo.trace


def filled(place: re.Match[str], facts: dict[str, str]) -> str:
    if place[1] != "trace":
        return facts[place[1]]
    title = escape(tell(SCENARIOS[place[2]].title))
    return f'<iframe title="{title}" data-src="traces/{place[2]}.html" data-preload></iframe>'


# ---- what is computed


def computed(walk: list[Frame]) -> dict[str, str]:
    """Every number that the slides tell."""
    from minipage.learn.quiz.frames import frame_questions

    results = {
        name: simulate(memory, draw_requests(SEED), NUM_SLOTS, NUM_REQUESTS) for name, memory in memories().items()
    }
    requests = list(islice(draw_requests(SEED), NUM_REQUESTS))
    held = mean_held(requests)
    token_bytes = 2 * 40 * 5120 * 2
    [slot] = example_table().slot_mapping(9, 10)
    question = frame_questions(random.Random(0), 1)[0]
    state, ask = question.text.split("\n\n")[1:3]
    return {
        "slots": f"{NUM_SLOTS:,}", "prompt": f"{PROMPT:.0f}", "answer": f"{ANSWER:.0f}",
        "token_bytes": f"{token_bytes:,}", "context_gb": f"{2048 * token_bytes / 1e9:.1f}",
        "bars": bars({name: result.shares for name, result in results.items()}),
        "slot": str(slot), "slot_block": str(slot // 4), "slot_offset": str(slot % 4),
        "softmax": softmax_table(walk),
        "naive": f"{NUM_SLOTS / (PROMPT + ANSWER / 2):.0f}", "held": f"{held:.0f}", "right": f"{NUM_SLOTS / held:.0f}",
        "simulated": f"{results['paged'].mean_batch:.0f}", "measured": f"{PAPER['paged'][1]:.0f}",
        "question": f"<pre>{escape(dedent(state))}</pre><p><strong>{escape(ask)}</strong></p>",
        "question_answer": escape(question.answer),
    }  # fmt: skip


def example_table() -> BlockTable:
    """The table [7, 1, 3], over blocks of 4 tokens."""
    table = BlockTable(BlockPool(8, 4))
    table.blocks, table.num_tokens = [7, 1, 3], 12
    return table


def bars(results: dict[str, tuple[float, ...]]) -> str:
    """A bar for each memory: what its slots are used for, in per cent."""
    lines = ['<div class="bars">']
    for name, shares in results.items():
        lines.append(f"{escape(name)}<div class='bar'>")
        for (use, color), share in zip(USES.items(), shares):
            if not math.isnan(share) and share > 0.05:
                label = f"{use} {share:.0f} %" if share > 12 else f"{share:.0f} %" if share > 3 else ""
                look, title = f"width:{share:.1f}%;background:{color}", f"{use} {share:.1f} %"
                lines.append(f'<span style="{look}" title="{title}">{label}</span>')
        lines.append("</div>")
    return "\n".join([*lines, "</div>"])


def softmax_table(walk: list[Frame]) -> str:
    """What the online softmax knows after each block, from the story `kernel`."""
    last = next(frame.attention for frame in reversed(walk) if frame.attention)
    head = "<tr><th>block</th><th>highest score</th><th>what was summed, times</th><th>sum of weights</th></tr>"
    rows = "".join(
        f"<tr><td>{step.physical}<td>{step.maximum:.2f}<td>{step.shrink:.2f}<td>{step.total:.2f}</tr>"
        for step in last.steps
    )
    return f"<table>{head}{rows}</table>"
