"""The lines behind what is no call of the block pool: the rule that is about to bite, a copy, the model, a token.

They are found by what they name: the line of `shared_tail` that names `ref_count` is the rule of copy-on-write. In a
learner's own part they are the learner's lines. A line that is not found is not shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from minipage.attention.kv_cache import copy_blocks
from minipage.engine.request import Request
from minipage.memory import BlockTable
from minipage.sampling import sampler
from minipage.trace.recording.source_lines import SourceLines
from minipage.worker.batch import attend_with

if TYPE_CHECKING:
    from minipage.engine.engine import Engine
    from minipage.scheduling import StepPlan

Places = list[list[int]]  # [function, line] each; see SourceLines


class RoutineLines:
    """Finds lines by name, in the parts that this engine is made of."""

    def __init__(self, sources: SourceLines, llm: Engine) -> None:
        self._sources = sources
        self._llm = llm
        runner: Any = getattr(llm, "runner", None)
        table = getattr(getattr(llm, "_intake", None), "block_table", BlockTable)
        self.by_phase: dict[str, Places] = {  # of phases that do the same at each step
            "schedule": sources.naming(getattr(table, "append", None), "in_place"),
            "forward": [
                *self._of(runner, "forward", "forward", "logits"),
                *sources.naming(attend_with, "write_kv", "paged_attention"),
                *sources.whole(getattr(runner, "paged_attention", None)),
            ],
            "sample": [
                *self._of(llm, "sample", "sample", "choose_or_fail"),
                *sources.naming(sampler.sample, "first_beyond"),  # if they are drawn; if not, see of_sample
            ],
            "update": self._of(llm, "update", "take"),
        }

    def of_sample(self, requests: Iterable[Request]) -> Places:
        """The lines that chose tokens for these requests: drew them, took the likeliest, or went on with beams."""
        chosen: Places = []
        for request in requests:
            if type(request).next_draw is Request.next_draw:
                places = self._of(request, "choose", "advance")
            else:
                name = "first_beyond" if request.params.temperature else "likeliest"
                places = self._sources.naming(sampler.sample, name)
            chosen += [place for place in places if place not in chosen]
        return [*self._of(self._llm, "sample", "sample", "choose_or_fail"), *chosen] if chosen else []

    def of_copy(self, moves: list[str]) -> Places:
        """The lines that move whole blocks; moves: "copies", "swap_out" or "swap_in"."""
        return [
            *self._of(getattr(self._llm, "runner", None), "copy", *moves),
            *self._sources.naming(copy_blocks, "sources")[-1:],
        ]

    def of_ahead(self, facts: dict[str, Any], plan: StepPlan) -> Places:
        """The rules that decide what a step is about to do."""
        scheduler = self._llm.scheduler
        rules: dict[str, tuple[Any, str, str] | tuple[Any, str, str, str]] = {
            "writes": (plan.chunks[0].seq.block_table if plan.chunks else None, "shared_tail", "ref_count"),
            "gives_way": (scheduler, "_make_room", "blocks_for", "preempt"),
            "finds": (scheduler.prefix_cache, "find", "_block_of"),
            "returns": (scheduler, "_swap_in", "num_free"),
        }
        return [place for name in facts for place in self._of(*rules[name])]

    def _of(self, part: object, method: str, *names: str) -> Places:
        return self._sources.naming(getattr(type(part), method, None), *names)
