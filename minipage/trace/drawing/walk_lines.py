"""Draws one attention call from inside: the block that is read now, and what the online softmax has kept of all so far.

block 2 is read      score              weight
  "My"                3.47 ▇▇▇▇▇▇▇▇      1.00
  " king"             2.50 ▇▇▇▇▇         0.38

 read      maximum     sum    output, 4 of 64 numbers
 block 0      1.15    2.10     0.12  -0.40   0.33   0.91
 block 2      3.47    1.91     0.33  -0.12   0.07   0.55      what there was is shrunk to 0.10 of it first
"""

from __future__ import annotations

import math

from rich.text import Text

from minipage.errors import count
from minipage.trace.drawing.glyphs import BOLD, DIM, Glyphs, clip, ink_of, style_of, visible
from minipage.trace.recording.frames import AttentionFrame, Frame, SoftmaxStep
from minipage.trace.recording.wording import decimals

WORD, BAR, NUMBER, NAME = 16, 20, 8, 18  # columns


def legend(attention: AttentionFrame) -> str:
    return f"layer {attention.layer + 1}, head {attention.head + 1}, query of token {attention.position + 1}"


def walk_lines(frame: Frame, attention: AttentionFrame, width: int, height: int | None, glyphs: Glyphs) -> list[Text]:
    """The block and the table below it; exactly `height` lines if that is given, the latest rows first."""
    over = bool(attention.kernel)
    block = [] if over else _block_lines(frame, attention, glyphs)
    table = _table_lines(attention, width, glyphs)
    if height is None:
        return [*block, *table]
    block = _first_words(block, attention, max(0, height - min(len(table), 4)), glyphs)
    room = height - len(block)
    if len(table) > room:
        left_out = Text(f"{glyphs.ellipsis} {count(len(table) - room + 1, 'earlier row')}", DIM)
        table = [table[0], *[left_out][: room - 2], *table[len(table) - max(1, room - 2) :]][:room]
    return ([*block, *table] + [Text()] * height)[:height]


def _block_lines(frame: Frame, attention: AttentionFrame, glyphs: Glyphs) -> list[Text]:
    """The words of the block that is read, each with its score and its weight."""
    step = attention.steps[-1]
    label = attention.label
    words = next(seq for seq in frame.sequences if seq.label == label).block_tokens(step.logical, frame.block_size)
    title = f"block {step.physical} is read"
    columns = f"{'score':>8} {'weight':>6} = e^(score - maximum)"
    lines = [Text.assemble((title.ljust(WORD + 4), BOLD), (columns, DIM))]
    for word, score, weight in zip(words, step.scores, step.weights):  # the last block may have empty slots
        shown = clip(visible(word, glyphs), WORD)
        bar = glyphs.stored * math.ceil(weight * BAR) if weight > 0.005 else ""
        is_highest = score == step.maximum
        line = Text("  ").append(shown, style_of(label, now=is_highest)).append(" " * (WORD + 2 - len(shown)))
        line.append(f"{score:8.2f} ", BOLD if is_highest else "").append(f"{weight:6.2f} ").append(bar, ink_of(label))
        lines.append(line)
    return lines


def _first_words(lines: list[Text], attention: AttentionFrame, room: int, glyphs: Glyphs) -> list[Text]:
    """As many of the words as there is room for, and what the weights of the others come to."""
    if len(lines) <= room:
        return lines
    num_shown = max(0, room - 2)  # less the title, and the line that counts the others
    others = attention.steps[-1].weights[num_shown:]
    rest = f"{glyphs.ellipsis} and {len(others)} more"
    columns = Text.assemble("  ", (rest.ljust(WORD + 2), DIM), " " * 9, f"{sum(others):6.2f} ", ("together", DIM))
    return [*lines[: num_shown + 1], columns][:room]


def _table_lines(attention: AttentionFrame, width: int, glyphs: Glyphs) -> list[Text]:
    """A row for each block so far; at the end the result, and what the kernel says."""
    num_shown = max(1, min(len(attention.steps[-1].output), (width - NAME - 3 * NUMBER - 2) // NUMBER))
    title = f"output: {num_shown} of its {count(len(attention.steps[-1].output), 'number')}"
    head = f"{'':{NAME}}{'shrink':>{NUMBER}}{'maximum':>{NUMBER}}{'sum':>{NUMBER}}  {title}"
    lines = [Text(head, DIM)]
    for step in attention.steps:
        is_now = step is attention.steps[-1] and not attention.kernel
        lines.append(Text(_row(step, num_shown), BOLD if is_now else ""))
    if attention.kernel:
        for name, numbers in (("output / sum", attention.result), ("the kernel", attention.kernel)):
            lines.append(Text(f"{name:{NAME + 3 * NUMBER}}  {_numbers(numbers[:num_shown])}", BOLD))
        difference = decimals(attention.largest_difference)
        lines.append(Text(f"largest difference of all {count(len(attention.kernel), 'number')}: {difference}"))
    return lines


def _row(step: SoftmaxStep, num_shown: int) -> str:
    name = f"after block {step.physical}"
    shrink = "" if step.logical == 0 else f"{step.shrink:.2f}"
    figures = f"{shrink:>{NUMBER}}{step.maximum:{NUMBER}.2f}{step.total:{NUMBER}.2f}"
    return f"{name:{NAME}}{figures}  {_numbers(step.output[:num_shown])}"


def _numbers(numbers: tuple[float, ...]) -> str:
    return "".join(f"{number:{NUMBER}.3f}" for number in numbers)
