"""Makes a trace by watching a running engine from outside: the engine knows nothing of it.

    with record(llm) as trace:
        llm.generate(["To be, or not to be"])
    print(trace.steps[-1].events)

A step of an LLM is five methods, called one after the other. The recorder puts its own in their places, on this one
instance, looks before and after, and takes them away again on leaving. The block pool and the prefix cache are watched
in the same way: what they do is written down operation by operation, so that a look costs what has changed, however
large the pool is. A test replays every frame beside the engine and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from minipage.engine.request import NextToken, Request
from minipage.engine.speculation import DraftedChunk
from minipage.memory.partial_cache import PartialPrefixCache
from minipage.scheduling import GroupStatus, Sequence, SequenceGroup, StepPlan
from minipage.trace.recording.differences import Seen, joined, list_difference, reason
from minipage.trace.recording.frames import label_of
from minipage.trace.recording.free_queue import QueueWatch
from minipage.trace.recording.meanwhile import few_collections, replaced
from minipage.trace.recording.replay import Change
from minipage.trace.recording.routine_lines import RoutineLines
from minipage.trace.recording.source_lines import SourceLines
from minipage.trace.recording.tiers import TierWatch
from minipage.trace.recording.trace import Trace
from minipage.trace.recording.vocabulary import token_bytes
from minipage.trace.recording.windows import first_blocks, held, tables_of, windows_of

if TYPE_CHECKING:
    from minipage.engine.engine import Engine


@contextmanager
def record(llm: Engine, title: str = "") -> Iterator[Trace]:
    """Record every phase of every step that `llm` makes within the block; see `minipage.trace.recording.frames`."""
    with observed(llm, title) as recorder, few_collections():
        yield recorder.trace


@contextmanager
def observed(llm: Engine, title: str = "", with_code: bool = True) -> Iterator[Recorder]:
    """Like `record`, for whoever stays for long: the changes may be taken out of the trace as they come.

    with_code: write down which lines of source did what, too.
    """
    if overlap := getattr(llm, "overlap", None):
        overlap.land()  # and while somebody watches, steps do not overlap
    recorder = Recorder(llm, title, with_code)
    with ExitStack() as stack:
        for owner, name, method in recorder.replacements():
            stack.enter_context(replaced(owner, name, method))
        yield recorder


class Recorder:
    """Stands in for the phases of one LLM, and writes down what each phase changed."""

    def __init__(self, llm: Engine, title: str, with_code: bool) -> None:
        self.llm = llm
        self.with_code = with_code
        self.pool = llm.block_pool
        self.cache = llm.scheduler.prefix_cache
        self._names = map(label_of, count())
        self._labels: dict[Sequence, str] = {}  # of those that are not finished, like the next two
        self._group_of: dict[Sequence, SequenceGroup] = {}
        self._live: dict[Sequence, Seen] = {}  # as last seen, in order of arrival
        self._untold: dict[Sequence, None] = {}  # newcomers of which the trace does not know yet
        self._leaving: dict[Sequence, str] = {}  # and those who are finished
        self._words: dict[int, bytes] = {}
        self._queues: dict[str, list[str] | None] = {}
        self._operations: list[list[Any]] = []  # of the pool and the prefix cache, since the last look
        self._cached = {block for block in range(self.pool.num_blocks) if self.cache and block in self.cache}
        self._hits_before = self._prefix_stats()
        self._stats = (0, 0)
        self._depth = 0
        self._step = 0
        self._sources = SourceLines()
        self._routine = RoutineLines(self._sources, llm)
        self._tier = TierWatch(llm)
        self._queue = QueueWatch(self.pool)
        header = {
            "title": title,
            "block_size": self.pool.block_size,
            "windows": windows_of(getattr(llm.runner, "kv_groups", None)),
            "max_num_batched_tokens": llm.scheduler.max_num_batched_tokens,
            "free_queue": list(self.pool.free_queue),
            "ref_counts": [self.pool.ref_count(block) for block in range(self.pool.num_blocks)],
            "cached": sorted(self._cached),
            "functions": self._sources.functions,
            "routine": self._routine.by_phase if with_code else {},
        }
        self.trace = Trace(header | self._look(), self._words)

    def replacements(self) -> list[tuple[object, str, Callable[..., Any]]]:
        """(owner, name, what to put in its place) of every method that is watched."""
        phases = [(self.llm, name, getattr(self, name)) for name in ("schedule", "copy", "forward", "sample", "update")]
        self._phases = {name: getattr(self.llm, name) for _, name, _ in phases}
        operations = {"allocate": "take", "allocate_many": "take", "free": "free", "share": "share", "revive": "revive"}
        pool = [(self.pool, name, self._watched(getattr(self.pool, name), op)) for name, op in operations.items()]
        watched: list[tuple[object, str, Callable[..., Any]]] = [*phases, *pool, *self._tier.replacements()]
        self._recompute_all = getattr(self.llm.scheduler, "recompute_all", None)
        if self._recompute_all:  # a learner's scheduler may not have it yet
            watched.append((self.llm.scheduler, "recompute_all", self._on_failure))
        if self.cache is not None:
            self._publish = self.cache.publish
            forgetting = [
                (self.cache, name, self._on_forget(getattr(self.cache, name))) for name in ("forget", "reset")
            ]
            watched += [(self.cache, "publish", self._on_publish), *forgetting]
        return watched

    # ---- the phases

    def schedule(self) -> StepPlan:
        self._step += 1
        change: Change = {"step": self._step, "phase": "schedule"}
        gone = self._gone()
        if gone or self._operations:  # aborted
            change["earlier"] = self._look(gone)
        newcomers = self._newcomers()
        begin = self._look(new=newcomers) if newcomers else {}
        status = {seq: seen.facts["status"] for seq, seen in self._live.items()}
        tables = {seq: seen.blocks for seq, seen in self._live.items()}
        self._sources.take()
        plan: StepPlan = self._phases["schedule"]()
        tier = self._tier.take()
        if ahead := self._ahead(plan, status, tables):
            self._tell(change | begin | {"phase": "before"} | ahead | tier)
            change = {"step": self._step, "phase": "schedule"} | self._look(new=[])
        else:
            change |= joined(begin, self._look(new=[]))
        change |= tier
        if code := self._sources.take():
            change["code"] = code
        change["chunks"] = [[self._labels[c.seq], c.start, c.num_tokens] for c in plan.chunks]
        if drafts := {self._labels[c.seq]: c.drafts for c in plan.chunks if isinstance(c, DraftedChunk)}:
            change["drafts"] = drafts
            self._learn(token_id for its in drafts.values() for token_id in its)
        for name in ("swap_out", "swap_in", "copies"):
            if pairs := getattr(plan, name):
                change[name] = [list(pair) for pair in pairs]
        if plan.preempted:
            change["preempted"] = [[self._labels[seq] for seq in group.sequences] for group in plan.preempted]
        self._tell(change)
        return plan

    def copy(self, plan: StepPlan) -> None:
        self._phases["copy"](plan)
        moves = [name for name in ("swap_out", "swap_in", "copies") if getattr(plan, name)]
        if moves:
            self._passed("copy", code=self._routine.of_copy(moves))

    def forward(self, plan: StepPlan) -> Any:
        logits = self._phases["forward"](plan)
        self._passed("forward")
        return logits

    def sample(self, plan: StepPlan, logits: Any) -> Any:
        tokens: dict[Request, list[NextToken]] = self._phases["sample"](plan, logits)
        chosen = [[self._labels[token.seq], token.token_id] for its in tokens.values() for token in its]
        self._learn(token_id for _, token_id in chosen)
        code = self._routine.of_sample(request for request, its in tokens.items() if its)
        is_usual = code == self._routine.by_phase["sample"] or not self.with_code
        self._passed("sample", chosen=chosen, code=None if is_usual else code)
        return tokens

    def update(self, plan: StepPlan, tokens: dict[Request, list[NextToken]]) -> None:
        requests = dict(self.llm.requests)  # the engine forgets requests that finish
        self._sources.take()
        self._phases["update"](plan, tokens)
        code = self._sources.take()
        done = {seq: reason(requests.get(self._group_of[seq].group_id), seq) for seq in self._live if seq.finished}
        self._passed("update", **self._look(done, self._newcomers()), code=code or (None if tokens else []))

    def _ahead(self, plan: StepPlan, status: dict[Sequence, str], tables: dict[Sequence, list[int]]) -> Change:
        """What a step is about to do that has to be seen before it is done; nothing, if it is an ordinary one."""
        names = self._labels
        size = self.pool.block_size
        finds = [
            [names[chunk.seq], *first_blocks(chunk.seq.block_table, chunk.start // size)]
            for chunk in plan.chunks
            if chunk.start >= size and status[chunk.seq] == "waiting" and not tables[chunk.seq]
        ]
        returns = [names[seq] for seq, was in status.items() if was == "swapped" and seq.block_table.pool is self.pool]
        gives_way = [[names[seq] for seq in group.sequences] for group in plan.preempted]
        writes = [names[chunk.seq] for chunk in plan.chunks if tables[chunk.seq]] if plan.copies else []
        facts = {"writes": writes, "gives_way": gives_way, "finds": finds, "returns": returns}
        facts = {name: fact for name, fact in facts.items() if fact}
        code = self._routine.of_ahead(facts, plan)
        return {"ahead": facts, "code": code} if facts else {}

    def _on_failure(self) -> None:
        """The engine takes a step back that failed."""
        assert self._recompute_all is not None
        self._recompute_all()
        self._cached = {block for block in range(self.pool.num_blocks) if self.cache and block in self.cache}
        # What was noted of the pool may lack what it was doing when it was interrupted; this is how it is now.
        self._operations = [["restart", *self.pool.free_queue], ["publish", *sorted(self._cached)]]
        self._queue.restart()
        # And of all else that was noted, the trace may not have been told.
        for seen in self._live.values():
            seen.forget()
        self._depth, self._queues, self._stats = 0, dict.fromkeys(self._queues), (-1, -1)
        self._newcomers()
        self._passed("failed", **self._look(self._gone(), list(self._untold)))

    def _tell(self, change: Change) -> None:
        self.trace.changes.append(change)
        self._untold = {}
        for seq in self._leaving:
            del self._live[seq], self._labels[seq], self._group_of[seq]
        self._leaving = {}

    def _passed(self, phase: str, **facts: Any) -> None:
        facts = {name: fact for name, fact in facts.items() if fact is not None}
        self._tell({"step": self._step, "phase": phase} | facts)

    def glance(self) -> None:
        """Between two steps: write down who has come, and who was aborted, as the next step would."""
        gone = self._gone()
        earlier = {"earlier": self._look(gone, [])} if gone or self._operations else {}
        change = {"step": self._step + 1, "phase": "schedule"} | earlier | self._look()
        self._tell(change | {"chunks": [], "code": []})

    # ---- looking

    def _newcomers(self) -> list[Sequence]:
        """Give a label to every sequence that was not there before."""
        scheduler = self.llm.scheduler
        groups, known = [*scheduler.running, *scheduler.swapped, *scheduler.waiting], self._group_of
        new = [seq for group in groups for seq in group.sequences if seq not in self._labels]
        if new:  # in most steps nobody is
            known |= {seq: group for group in groups for seq in group.sequences}
            new.sort(key=lambda seq: known[seq].arrival)
        for seq in new:
            self._live[seq] = Seen()
            self._untold[seq] = None
            self._labels[seq] = next(self._names)  # and from now on it is known
        return new

    def _look(self, done: dict[Sequence, str] | None = None, new: list[Sequence] | None = None) -> Change:
        """What has changed since the last look; sequences that are `done` will not be looked at again."""
        new = self._newcomers() if new is None else new
        change: Change = {"new": [self._introduce(seq) for seq in new]} if new else {}
        differences = {self._labels[seq]: self._difference(seq, seen) for seq, seen in self._live.items()}
        if sequences := {label: facts for label, facts in differences.items() if facts}:
            change["sequences"] = sequences
        if done:
            change["finished"] = {self._labels[seq]: why for seq, why in done.items()}
        self._leaving |= done or {}
        for name in ("waiting", "running", "swapped"):
            labels = [self._labels[seq] for group in getattr(self.llm.scheduler, name) for seq in group.sequences]
            if labels != self._queues.get(name, []):
                change.setdefault("queues", {})[name] = self._queues[name] = labels
        if self._operations:
            change["pool"], self._operations = self._operations + self._queue.take(), []
        (queried, hit), (queried_before, hit_before) = self._prefix_stats(), self._hits_before
        stats = queried - queried_before, hit - hit_before
        if stats != self._stats:
            change["prefix"] = self._stats = stats
        return change

    def _introduce(self, seq: Sequence) -> dict[str, Any]:
        group = self._group_of[seq]
        return {
            "label": self._labels[seq],
            "seq_id": seq.seq_id,
            "request_id": group.group_id,
            "num_prompt_tokens": seq.num_prompt_tokens,
            "max_num_tokens": group.max_num_tokens,
        }

    def _difference(self, seq: Sequence, seen: Seen) -> dict[str, Any]:
        """What is new of one sequence. Of lists: how many members stay, and what follows them."""
        change: dict[str, Any] = {}
        if len(seq.token_ids) != seen.num_tokens:  # tokens are only ever added
            tail = seq.token_ids[seen.num_tokens :]
            self._learn(tail)
            change["token_ids"] = [seen.num_tokens, tail]
            seen.num_tokens = len(seq.token_ids)
        group = self._group_of[seq]
        table = seq.block_table
        here, (blocks, *more) = table.pool is self.pool, [[]] if self._is_gone(seq) else tables_of(table)
        if (blocks if here else []) != seen.blocks:
            change["blocks"], seen.blocks = list_difference(seen.blocks, blocks if here else [])
        if (more if here and blocks else []) != seen.more_blocks:
            change["more_blocks"], seen.more_blocks = list_difference(seen.more_blocks, more if here and blocks else [])
        saved = [] if here else blocks + [block for other in more for block in held(other)]
        if saved != seen.swap_blocks:
            change["swap_blocks"], seen.swap_blocks = list_difference(seen.swap_blocks, saved)
        facts = {"status": group.status.value, "computed": table.num_tokens, "preemptions": group.num_preemptions}
        if facts != seen.facts:
            change |= {name: fact for name, fact in facts.items() if fact != seen.facts[name]}
            seen.facts = facts
        return change

    def _learn(self, token_ids: Any) -> None:
        for token_id in token_ids:
            if token_id not in self._words:
                self._words[token_id] = token_bytes(getattr(self.llm, "tokenizer", None), token_id)

    def _gone(self) -> dict[Sequence, str]:
        """Who is finished since the last look, and why."""
        return {seq: self._reason(seq) for seq in self._live if self._is_gone(seq)}

    def _is_gone(self, seq: Sequence) -> bool:
        return seq.finished or self._group_of[seq].status is GroupStatus.FINISHED

    def _reason(self, seq: Sequence) -> str:
        return reason(self.llm.requests.get(self._group_of[seq].group_id), seq)

    # ---- watching the pool and the prefix cache

    def _watched(self, method: Callable[..., Any], operation: str) -> Callable[..., Any]:
        """`method`, with a note of the blocks it dealt with. One that calls another is noted once."""

        def watched(*args: Any) -> Any:
            self._depth += 1
            try:
                result = method(*args)
            finally:
                self._depth -= 1
            if self._depth == 0:
                blocks = result if isinstance(result, list) else [args[0] if result is None else result]
                if self.with_code:
                    self._sources.note(method, blocks)
                self._note(operation, blocks)
            return result

        return watched

    def _note(self, operation: str, blocks: list[int]) -> None:
        if operation == "take":
            self._cached.difference_update(blocks)
        if self._operations and self._operations[-1][0] == operation:
            self._operations[-1] += blocks
        elif blocks:
            self._operations.append([operation, *blocks])
        self._queue.note(operation, blocks)

    def _on_publish(self, table: Any, *args: Any) -> None:
        self._publish(table, *args)
        for part in tables_of(table):
            for block in reversed(held(part)):
                if block in self._cached:
                    break
                if self.cache is not None and block in self.cache:
                    self._cached.add(block)
                    self._note("publish", [block])

        if isinstance(self.cache, PartialPrefixCache):  # of equal beginnings it knows the newest, not those before
            self._note_forgotten()

    def _on_forget(self, method: Callable[..., None]) -> Callable[..., None]:
        def forget(*block: int) -> None:
            method(*block)
            self._note_forgotten()

        return forget

    def _note_forgotten(self) -> None:
        gone = [block for block in sorted(self._cached) if self.cache is None or block not in self.cache]
        self._cached.difference_update(gone)
        self._note("forget", gone)

    def _prefix_stats(self) -> tuple[int, int]:
        return self.llm.scheduler.num_queried_tokens, self.llm.scheduler.num_hit_tokens
