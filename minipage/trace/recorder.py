"""Makes frames by watching a running engine from outside: the engine knows nothing of it.

    with record(llm) as trace:
        llm.generate(["To be, or not to be"])
    print(trace.steps[-1].events)

An LLM's step is five methods, called one after the other. The recorder puts its own in the place of the first and the
last of them, on this one instance, looks before and after, and takes them away again on leaving.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from minipage.memory import BlockCopy
from minipage.request import NextToken, Request, SampledRequest
from minipage.scheduling import Sequence, SequenceGroup, Status, StepPlan
from minipage.trace import events
from minipage.trace.frames import BlockFrame, ChunkFrame, Frame, SequenceFrame, label_of

if TYPE_CHECKING:
    from minipage.engine import LLM

FREE_BLOCK = BlockFrame(ref_count=0, num_filled=0, holders=())


class Trace:
    """Everything that was recorded, earliest first. It grows while the engine runs."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    @property
    def steps(self) -> list[Frame]:
        """One frame per step: how it ended."""
        return [frame for frame in self.frames if frame.phase == "update"]


@contextmanager
def record(llm: LLM) -> Iterator[Trace]:
    """Record every step that `llm` makes within the block. Two frames a step, see `minipage.trace.frames`."""
    recorder = _Recorder(llm)
    own = vars(llm)  # instance attributes hide the methods of the class
    wrapped = ("schedule", "update")
    before = {name: own[name] for name in wrapped if name in own}
    own["schedule"], own["update"] = recorder.schedule, recorder.update
    try:
        yield recorder.trace
    finally:
        for name in wrapped:
            del own[name]
        own.update(before)


class _Recorder:
    """Stands in for `llm.schedule` and `llm.update`. Between them it remembers what the step has done so far."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.trace = Trace()
        self._schedule, self._update = llm.schedule, llm.update
        self._labels: dict[Sequence, str] = {}
        self._group_of: dict[Sequence, SequenceGroup] = {}
        self._live: list[Sequence] = []  # unfinished when last seen, in order of arrival
        self._finished: tuple[SequenceFrame, ...] = ()
        self._token_texts: dict[int, str] = {}
        self._step = 0
        # Facts of the step that is going on
        self._events: list[str] = []
        self._chunks: tuple[ChunkFrame, ...] = ()
        self._copies: tuple[BlockCopy, ...] = ()
        self._preempted: tuple[str, ...] = ()
        self._tables: dict[Sequence, tuple[int, ...]] = {}  # block tables as they were last seen
        self._last_tables: dict[Sequence, tuple[int, ...]] = {}  # and when they last were not empty
        self._lengths: dict[Sequence, int] = {}  # tokens when the step was scheduled
        self._notice_newcomers()
        self._see_tables()

    def schedule(self) -> StepPlan:
        self._step += 1
        self._events = self._notice_aborted()
        self._events += events.arrivals(self._notice_newcomers(), self._labels)
        before, num_free = self._see_tables(), self.llm.block_pool.num_free
        plan = self._schedule()

        self._events += events.returns(plan.swap_in, plan.chunks, self._labels)
        self._events += events.copies(plan.copies)
        self._events += events.allocations(plan, num_free, self._labels, before)
        self._chunks = tuple(self._chunk(plan, i) for i in range(len(plan.chunks)))
        self._copies = tuple(plan.copies)
        self._preempted = tuple(self._labels[seq] for group in plan.preempted for seq in group.sequences)
        self._lengths = {seq: len(seq.token_ids) for seq in self._live}
        self._see_tables()
        self._add_frame("schedule", {})
        return plan

    def update(self, plan: StepPlan, tokens: dict[Request, list[NextToken]]) -> None:
        requests = dict(self.llm.requests)  # the engine forgets those that finish
        self._update(plan, tokens)
        done = {seq: reason(requests[self._group_of[seq].group_id], seq) for seq in self._live if seq.finished}
        self._events += events.branches(self._notice_newcomers(), self._labels)
        self._events += events.finishes(done, self._labels, self._tables)
        self._add_frame("update", done)
        self._retire(done)
        self._see_tables()

    def _notice_newcomers(self) -> list[Sequence]:
        """Give a label to every sequence that was not there before."""
        scheduler = self.llm.scheduler
        groups = sorted([*scheduler.running, *scheduler.swapped, *scheduler.waiting], key=lambda group: group.arrival)
        new = {seq: group for group in groups for seq in group.sequences if seq not in self._labels}
        for seq in new:
            self._labels[seq] = label_of(len(self._labels))
        self._group_of |= new
        self._live += new
        return list(new)

    def _notice_aborted(self) -> list[str]:
        """Between two steps only an abort finishes a sequence."""
        gone = {seq: "abort" for seq in self._live if self._group_of[seq].status is Status.FINISHED}
        self._retire(gone)
        return events.aborts(gone, self._labels, self._tables)

    def _retire(self, reasons: dict[Sequence, str]) -> None:
        if reasons:
            self._finished += tuple(self._sequence(seq, 0, reason) for seq, reason in reasons.items())
            self._live = [seq for seq in self._live if seq not in reasons]
            for seq in reasons:
                self._last_tables.pop(seq, None)

    def _see_tables(self) -> dict[Sequence, tuple[int, ...]]:
        self._tables = {seq: self._blocks_of(seq) for seq in self._live}
        self._last_tables |= {seq: blocks for seq, blocks in self._tables.items() if blocks}
        return self._tables

    def _add_frame(self, phase: Literal["schedule", "update"], done: dict[Sequence, str]) -> None:
        scheduler, pool = self.llm.scheduler, self.llm.block_pool
        labels = self._labels
        frame = Frame(
            step=self._step,
            phase=phase,
            block_size=pool.block_size,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            sequences=tuple(
                self._sequence(seq, len(seq.token_ids) - self._length_before(seq), done.get(seq)) for seq in self._live
            ),
            finished_before=self._finished,
            waiting=tuple(labels[seq] for group in scheduler.waiting for seq in group.sequences),
            running=tuple(labels[seq] for group in scheduler.running for seq in group.sequences),
            swapped=tuple(labels[seq] for group in scheduler.swapped for seq in group.sequences),
            blocks=self._blocks(),
            free_queue=tuple(pool.free_queue),
            chunks=self._chunks,
            copies=self._copies,
            preempted=self._preempted,
            finished=tuple(labels[seq] for seq in done),
            events=tuple(self._events),
        )
        self.trace.frames.append(frame)

    def _sequence(self, seq: Sequence, num_new_tokens: int, finish_reason: str | None) -> SequenceFrame:
        output = seq.output_token_ids
        group, blocks = self._group_of[seq], self._blocks_of(seq)
        text, text_before = self._decode(output), self._decode(output[: len(output) - num_new_tokens])
        return SequenceFrame(
            seq_id=seq.seq_id,
            label=self._labels[seq],
            status="finished" if seq.finished else group.status.value,
            token_ids=tuple(seq.token_ids),
            tokens=tuple(map(self._token_text, seq.token_ids)),
            prompt=self._decode(seq.token_ids[: seq.num_prompt_tokens]),
            text=text,
            new_text=text[len(text_before.rstrip("\N{REPLACEMENT CHARACTER}")) :],
            num_prompt_tokens=seq.num_prompt_tokens,
            num_new_tokens=num_new_tokens,
            num_computed_tokens=seq.num_computed_tokens,
            max_num_tokens=group.max_num_tokens,
            blocks=blocks,
            last_blocks=() if blocks else self._last_tables.get(seq, ()),
            num_preemptions=group.num_preemptions,
            finish_reason=finish_reason,
        )

    def _chunk(self, plan: StepPlan, i: int) -> ChunkFrame:
        _, seq, start, num_tokens = plan.chunks[i]
        slots = tuple(seq.block_table.slot_mapping(start, start + num_tokens))
        return ChunkFrame(self._labels[seq], start, num_tokens, slots)

    def _blocks(self) -> tuple[BlockFrame, ...]:
        """The physical pool. Who holds a block and how full it is follows from the block tables."""
        pool = self.llm.block_pool
        holders: dict[int, list[str]] = {}
        filled: dict[int, int] = {}
        for seq in self._live:
            for logical, block in enumerate(self._blocks_of(seq)):
                tokens = min(pool.block_size, seq.num_computed_tokens - logical * pool.block_size)
                holders.setdefault(block, []).append(self._labels[seq])
                filled[block] = max(filled.get(block, 0), tokens)
        counts = map(pool.ref_count, range(pool.num_blocks))
        return tuple(
            BlockFrame(count, filled.get(block, 0), tuple(holders.get(block, ()))) if count else FREE_BLOCK
            for block, count in enumerate(counts)
        )

    def _blocks_of(self, seq: Sequence) -> tuple[int, ...]:
        """Its block table; empty while its blocks are in the swap pool, for this is a picture of the other one."""
        return tuple(seq.block_table.blocks) if seq.block_table.pool is self.llm.block_pool else ()

    def _length_before(self, seq: Sequence) -> int:
        """Its tokens when this step was scheduled; a beam that has just branched off has one more than its parent."""
        return self._lengths.get(seq, len(seq.token_ids) - 1)

    def _token_text(self, token_id: int) -> str:
        if token_id not in self._token_texts:
            tokenizer = self.llm.tokenizer
            self._token_texts[token_id] = tokenizer.token_text(token_id) if tokenizer else f" {token_id}"
        return self._token_texts[token_id]

    def _decode(self, token_ids: list[int]) -> str:
        tokenizer = self.llm.tokenizer
        return tokenizer.decode(token_ids) if tokenizer else "".join(map(self._token_text, token_ids))


def reason(request: Request, seq: Sequence) -> str:
    """Why a sequence is finished."""
    if isinstance(request, SampledRequest):
        return request.texts[seq].finish_reason or "abort"
    return "the search is over" if request.finished else "none of its continuations is among the best"
