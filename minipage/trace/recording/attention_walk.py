"""Looks inside one attention call of the engine: scenario `kernel`.

    for each block of the query's block table:
        scores  = q · K of the block · scale
        maximum = the highest score so far              shrink = e ** (maximum before - maximum)
        weights = e ** (scores - maximum)
        total   = total · shrink + sum of the weights   output = output · shrink + weights · V of the block
    output / total is what the kernel returns

This is the online softmax (Milakov and Gimelshein, arXiv 1805.02867) as minipage/attention/cpu.py has it. The walk is
made after the call, in float64, over the very q, K, V and block table that the kernel was given, and ends with what the
kernel returned: two ways to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minipage.attention.quantize import numbers_of
from minipage.simd.arrays import Floats
from minipage.trace.recording.frames import Frame, SoftmaxStep
from minipage.trace.recording.meanwhile import replaced
from minipage.trace.recording.replay import Change
from minipage.trace.recording.trace import Trace

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

STEP, LAYER, HEAD = 4, 3, 3  # which step, and where in the model; heads and layers count from 0

Attend = Callable[[int, Any, Any, Any], Any]  # see minipage/model/architecture.py


class Walk:
    """Puts one call of one step into the trace, block by block, before the "forward" phase that it belongs to."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.layer = min(LAYER, llm.model.kv.num_layers - 1)
        self.head = min(HEAD, llm.config.num_heads - 1)
        self.kv_head = self.head * llm.model.kv.num_kv_heads // llm.config.num_heads  # which this head reads
        self.done = False

    @contextmanager
    def around_step(self, trace: Trace) -> Iterator[None]:
        seen = len(trace.changes)
        model_forward = self.llm.model.forward
        calls: list[tuple[Floats, Floats]] = []  # q and what the kernel made of it, each [num_tokens, heads, head_size]

        def forward(token_ids: Any, positions: Any, attend: Attend) -> Any:
            def watched(layer: int, q: Any, k: Any, v: Any) -> Any:
                out = attend(layer, q, k, v)  # [num_tokens, num_heads, head_size]
                if layer == self.layer:
                    calls.append((np.array(q), np.array(out)))
                return out

            return model_forward(token_ids, positions, watched)

        with replaced(self.llm.model, "forward", forward):
            yield
        is_last = not self.llm.scheduler.has_unfinished
        if calls and not self.done and (trace.changes[-1]["step"] >= STEP or is_last):
            self.done = True
            place = next(i for i in range(seen, len(trace.changes)) if trace.changes[i]["phase"] == "forward")
            trace.changes[place:place] = self.changes(trace[seen], *calls[0])

    def changes(self, frame: Frame, q: Floats, out: Floats) -> list[Change]:
        """One for each block that the last query of the first sequence reads, and one for the end."""
        chunk = frame.chunks[0]
        blocks = next(seq.blocks for seq in frame.sequences if seq.label == chunk.label)
        row = chunk.num_tokens - 1
        position = chunk.start + chunk.num_tokens - 1
        told: list[Change] = [{"step": frame.step, "phase": "attend"} for _ in range(len(blocks) + 1)]
        told[0]["query"] = {"label": chunk.label, "position": position, "layer": self.layer, "head": self.head}
        k, v = self._read(blocks, position + 1)
        scale = q.shape[-1] ** -0.5
        for change, step in zip(told, online_softmax(q[row, self.head], k, v, blocks, frame.block_size, scale)):
            change["softmax"] = step
        told[-1]["kernel"] = out[row, self.head].tolist()
        return told

    def _read(self, blocks: tuple[int, ...], num_tokens: int) -> tuple[Floats, Floats]:
        """K and V of this head, each [num_tokens, head_size] in float64, gathered through the block table."""
        cache = self.llm.kv_cache
        table = list(blocks)
        both = []
        for stored, scales in ((cache.k, cache.k_scales), (cache.v, cache.v_scales)):
            its_scales = None if scales is None else scales[self.layer][table]  # [blocks, block_size, num_kv_heads]
            numbers = numbers_of(stored[self.layer][table], its_scales)  # [blocks, block_size, num_kv_heads, head_size]
            rows = numbers[:, :, self.kv_head]  # [blocks, block_size, head_size]
            both.append(rows.reshape(-1, rows.shape[-1])[:num_tokens].astype(np.float64))  # [num_tokens, head_size]
        return both[0], both[1]


def online_softmax(
    q: Floats, k: Floats, v: Floats, blocks: tuple[int, ...], block_size: int, scale: float
) -> Iterator[SoftmaxStep]:
    """Attention of one query over the tokens before it, a block at a time.

    q: [head_size]; k, v: [num_tokens, head_size]; `blocks`: the physical block of each `block_size` of the tokens.
    """
    maximum, total = -np.inf, 0.0
    output = np.zeros(len(q))  # [head_size]
    for logical, physical in enumerate(blocks):
        here = slice(logical * block_size, (logical + 1) * block_size)
        scores = k[here] @ q.astype(np.float64) * scale  # [tokens in the block]
        before, maximum = maximum, max(maximum, scores.max())
        shrink = np.exp(before - maximum)
        weights = np.exp(scores - maximum)  # [tokens in the block]
        total = total * shrink + weights.sum()
        output = output * shrink + weights @ v[here]  # [head_size]
        numbers = (float(shrink), float(maximum), weights.tolist(), float(total), output.tolist())
        yield SoftmaxStep(logical, physical, scores.tolist(), *numbers)
