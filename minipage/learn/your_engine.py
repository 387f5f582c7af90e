"""An engine made of the learner's own parts: `demo --mine DIR`, `generate --mine DIR`.

A part is theirs as soon as every exercise on it is written (whether it is right, the run will show); the others
are minipage's. Parts are handed in, as anybody can do: LLM(scheduler=..., block_table=..., attention=...).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

from minipage.attention.quantize import numbers_of
from minipage.engine.build import ATTENTION
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, InvalidRequestError, LearnError, MinipageError, ModelError, TraceError
from minipage.learn.course import Lesson, lessons
from minipage.learn.judge import missing
from minipage.learn.load import CodeError, Solution, describe, is_untouched, laid_over, load, stubs, where
from minipage.learn.origin import borrowed
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.scheduling import Scheduler

NOT_THEIRS = InvalidRequestError, ConfigurationError, ModelError, TraceError, LearnError, OSError, MemoryError


class Mine:
    """The parts that are written in a learner's folder. Raises LearnError if there is none, or one does not run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise LearnError(f"there is no folder {folder}; `learn init {folder}` makes one with the exercises.")
        self.solutions: dict[str, Solution] = {}  # by part
        self.unwritten: dict[str, str] = {}  # part -> the first of its exercises that is to be written
        for lesson in lessons():
            if lesson.part:
                self._take(lesson)
        if not self.solutions:
            parts = ", ".join(f"{part} ({number})" for part, number in self.unwritten.items())
            raise LearnError(f"no part in {folder} is written yet. What is next of each: {parts}.")

    def _take(self, lesson: Lesson) -> None:
        """The same as `learn check` would say: to be written, wrong in this or that line, or written."""
        path = Path(os.path.abspath(self.folder / lesson.name / "exercise.py"))
        if not os.path.lexists(path) or is_untouched(path, lesson):
            self.unwritten[lesson.part] = lesson.exercises[0].number
            return
        try:
            solution = load(lesson, path)
            for exercise in (each for each in lesson.exercises if not each.is_aside):
                if lost := missing(exercise, solution) or borrowed(exercise, solution)[0]:
                    raise CodeError(lost)
                if stubs(solution, exercise.names):
                    self.unwritten[lesson.part] = exercise.number
                    return
        except MinipageError as error:
            line = getattr(error, "line", 0)
            raise LearnError(f"{path}{f', line {line}' if line else ''}: {error}") from None
        self.solutions[lesson.part] = solution

    @property
    def note(self) -> str:
        return "yours: " + ", ".join(self.solutions)

    def lines(self) -> list[str]:
        """What is theirs and what is not."""
        theirs = [f"{part} (lesson {solution.lesson.number})" for part, solution in self.solutions.items()]
        others = [f"{part} (next: {number})" for part, number in self.unwritten.items()]
        lines = [f"Your parts: {', '.join(theirs)}."]
        lines += [f"minipage's own, until you write them: {', '.join(others)}."] if others else []
        return [part for line in lines for part in wrap(line, 79, subsequent_indent="    ")]

    # ---- the parts

    def get(self, part: str, name: str, otherwise: Any) -> Any:
        return getattr(self.solutions[part], name) if part in self.solutions else otherwise

    def block_table(self) -> type[BlockTable]:
        """Lesson 4's table, with lesson 7's copy-on-write laid over it; minipage's where one of them is missing."""
        if not {"block table", "copy-on-write"} & self.solutions.keys():
            return BlockTable
        solved = {lesson.part: load(lesson, lesson.solution) for lesson in lessons() if lesson.number in "47"}
        layers = [self.solutions.get(part, solved[part]) for part in ("copy-on-write", "block table")]
        cls: type[BlockTable] = laid_over(layers[0].CopyOnWrite, layers[1].BlockTable, "YourBlockTable")
        return cls

    def scheduler(self) -> type[Scheduler]:
        layers = [self.solutions[part] for part in ("preemption", "scheduler") if part in self.solutions]
        names = {"preemption": "Preempting", "scheduler": "ContinuousBatching"}
        classes = tuple(getattr(layer, names[layer.lesson.part]) for layer in layers)
        return type("YourScheduler", classes, {}) if classes else Scheduler

    def attention(self, otherwise: Any) -> Any:
        """Their kernel; it knows no quantized caches, so it gets these as the numbers they stand for.

        It knows no windows either, so layers that have one keep minipage's.
        """
        kernel = self.get("attention", "paged_attention", None)
        if kernel is None:
            return otherwise
        minipages = ATTENTION[otherwise] if isinstance(otherwise, str) else otherwise

        def attention(q: Any, k_cache: Any, v_cache: Any, tables: Any, lens: Any, starts: Any, scale: float,
                      k_scales: Any = None, v_scales: Any = None, **options: Any) -> Any:  # fmt: skip
            if options:
                return minipages(q, k_cache, v_cache, tables, lens, starts, scale, k_scales, v_scales, **options)
            k_cache, v_cache = numbers_of(k_cache, k_scales), numbers_of(v_cache, v_scales)
            return kernel(q, k_cache, v_cache, tables, lens, starts, scale)

        return attention

    # ---- the engine

    def _pool_like(self, pool: BlockPool) -> BlockPool:
        made: BlockPool = self.get("block pool", "BlockPool", BlockPool)(pool.num_blocks, pool.block_size)
        return made

    def build(self, *args: Any, **options: Any) -> LLM:
        """What LLM(...) with these options would be, of their parts."""

        def scheduler(pool: BlockPool, *limits: int, **parts: Any) -> Scheduler:
            """Scheduler(...) as minipage would make it, with their parts in place of its own."""
            pool = self._pool_like(pool)
            if parts["prefix_cache"]:
                parts["prefix_cache"] = self.get("prefix cache", "PrefixCache", PrefixCache)(pool)
            if parts["swap_pool"]:
                parts["swap_pool"] = self._pool_like(parts["swap_pool"])
            return self.scheduler()(pool, *limits, **parts)

        attention = self.attention(options.pop("attention", "cpu"))
        return LLM(*args, **options, scheduler=scheduler, block_table=self.block_table(), attention=attention)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Whatever their code makes the engine stumble over is said with the file and line."""
        try:
            yield
        except Exception as error:
            for part, solution in self.solutions.items():
                if place := where(error.__traceback__, solution.path).line:
                    raise LearnError(
                        f"your {part} stopped the engine: {solution.path}, line {place}: {describe(error)}. "
                        f"`learn check {solution.lesson.number}` finds the smallest case."
                    ) from error
            if isinstance(error, NOT_THEIRS):
                raise
            numbers = " ".join(solution.lesson.number for solution in self.solutions.values())
            raise LearnError(
                f"the engine stopped ({describe(error)}), because one of your parts did something else than it "
                f"promises. Find out which: learn check {numbers}"
            ) from error
