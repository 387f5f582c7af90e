"""The engine while a trace is replayed: brought from one moment to the next by what changed, and drawn up as a frame.

A change is one line of a trace, `{"step": 3, "phase": "schedule", ...}`, and has only what is new:

    new         sequences that were not there before         queues     who waits, runs, is swapped out
    sequences   of each label: tokens, blocks, status, ...   pool       what it did: ["take", 7, 8], ["free", 3], ...
                (more_blocks: tables of further groups)
    chunks, swap_out, swap_in, copies, preempted, chosen     what the step does
    drafts      of each label: the tokens that it guesses, and for which it has slots ahead
    tier        blocks that were saved in a tier below the pool, and loaded from there, in this phase
    finished    who is done, and why                         prefix     tokens looked for in the prefix cache, and found
    story       what a scenario says from here on        ahead      what a step is about to do: see `Ahead`
    code        [function, line, blocks ...] of each line of source that did it; see source_lines.py
    contiguous  what each memory beside the pool did         query, softmax, kernel     inside an attention call
    earlier     the same, of what happened since the last step: an abort, a step that failed

New values of a list are `[how many members stay, what follows them]`.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any, TypeAlias

from minipage.memory import BlockCopy
from minipage.memory.kv_groups import NULL_BLOCK
from minipage.trace.recording import events
from minipage.trace.recording.causes import Ahead, Want, code_frames
from minipage.trace.recording.frames import (
    PHASES,
    AttentionFrame,
    BlockFrame,
    Blocks,
    ChosenToken,
    ChunkFrame,
    ContiguousFrame,
    Frame,
    SequenceFrame,
    SoftmaxStep,
)
from minipage.trace.recording.text import Text
from minipage.trace.recording.windows import held

LOST = "\N{REPLACEMENT CHARACTER}"

Change: TypeAlias = dict[str, Any]  # one line of a trace
Vocabulary: TypeAlias = dict[int, bytes]  # of the tokens that occur


def replay(change: Change, state: State, *, tell: bool = False) -> list[str]:
    """Bring a state behind a change; say what happened, in sentences, if anybody listens."""
    told: list[str] = []
    if change["step"] != state.step:
        state.begin_step(change["step"])
    if "earlier" in change:
        if tell:
            told += events.between_steps(change["earlier"].get("finished", {}), events.Before.of(state))
        state.apply_facts(change["earlier"])
        state.retire()
    before = events.Before.of(state) if tell else None
    state.apply(change)
    return told + events.sentences(change, before, state) if before else told


class State:
    """The engine at one moment of a replay. `apply` brings it to the next one."""

    def __init__(self, header: Change, vocabulary: Vocabulary) -> None:
        self.block_size: int = header["block_size"]
        self.max_num_batched_tokens: int = header["max_num_batched_tokens"]
        self.windows: tuple[int, ...] = tuple(header.get("windows", ()))
        self.vocabulary = vocabulary
        self.free_queue = dict.fromkeys(header["free_queue"])  # in order
        self.num_blocks = len(header["ref_counts"])
        self.ref_counts = {block: count for block, count in enumerate(header["ref_counts"]) if count}  # if in use
        self.cached = set(header["cached"])
        self.texts: dict[str, Text] = {}  # unfinished when this step began
        self.finished_before: tuple[SequenceFrame, ...] = ()
        self.homes: dict[int, tuple[str, int]] = {}  # block -> whose words it held last, and its logical number there
        self.queues: dict[str, list[str]] = {"waiting": [], "running": [], "swapped": []}
        self.step = 0
        self.phase = PHASES[0]
        self.chunks: list[tuple[str, int, int]] = []
        self.drafts: dict[str, list[int]] = {}
        self.moves: dict[str, list[BlockCopy]] = {}
        self.preempted: list[list[str]] = []
        self.chosen: list[tuple[str, int]] = []
        self.prefix = (0, 0)  # tokens looked for, tokens found
        self.words: dict[str, tuple[str, ...]] = {}  # of sequences that are finished, whose blocks may still be cached
        self.contiguous: dict[str, ContiguousFrame] = {}
        self.attention: AttentionFrame | None = None
        self.story = ""  # what a scenario says from this frame of the step on
        self.ahead = Ahead()
        self.reused: tuple[int, ...] = ()
        self.functions: list[dict[str, Any]] = header.get("functions", [])  # grows while it is recorded
        self.routine: dict[str, list[list[int]]] = header.get("routine", {})
        self.code: list[list[int]] = []
        self.apply_facts(header)

    def copy(self) -> State:
        """A state that changes independently of this one."""
        twin = copy(self)
        twin.free_queue = self.free_queue.copy()
        twin.ref_counts = self.ref_counts.copy()
        twin.cached = set(self.cached)
        twin.texts = {label: copy(text) for label, text in self.texts.items()}
        twin.homes = self.homes.copy()
        twin.words = self.words.copy()
        twin.queues = self.queues.copy()
        twin.contiguous = self.contiguous.copy()
        return twin

    def begin_step(self, step: int) -> None:
        """Forget what the last step did; whoever finished in it is past."""
        self.step = step
        self.chunks = []
        self.drafts = {}
        self.moves = {}
        self.preempted = []
        self.chosen = []
        self.attention = None
        self.story = ""
        self.reused = ()
        self.retire()
        for text in self.texts.values():
            text.num_old_tokens = len(text.token_ids)

    def retire(self) -> None:
        """Put finished texts aside."""
        gone = [text for text in self.texts.values() if text.finish_reason]
        for text in gone:
            text.num_old_tokens = len(text.token_ids)
            self.finished_before += (self._sequence(text),)
            self.words[text.label] = self.finished_before[-1].tokens
            del self.texts[text.label]

    def apply(self, change: Change) -> None:
        """One phase has passed."""
        self.phase = change["phase"]
        self.story = str(change.get("story", self.story))  # it stays until the step is over
        self.apply_facts(change)
        self.ahead = self._ahead(change["ahead"]) if "ahead" in change else Ahead()
        self.reused += tuple(block for _, blocks in self.ahead.finds for block in blocks)
        self.code = change.get("code", self.routine.get("forward" if self.phase == "attend" else self.phase, []))
        self._attend(change)
        if self.phase == "failed":
            self.chunks = []
            self.moves = {}

    def apply_facts(self, change: Change) -> None:
        for new in change.get("new", ()):
            self.texts[new["label"]] = Text(**new, num_old_tokens=0)
        for label, facts in change.get("sequences", {}).items():
            text = self.texts[label]
            text.apply(facts)
            if "blocks" in facts or "more_blocks" in facts:
                self.homes.update((block, (label, i)) for table in text.tables for i, block in enumerate(table))
        for new in change.get("new", ()):
            text = self.texts[new["label"]]  # what it begins with is not new; but a branch has just got its last token
            text.num_old_tokens = len(text.token_ids) - (len(text.token_ids) > text.num_prompt_tokens)
        for label, reason in change.get("finished", {}).items():
            self.texts[label].finish_reason = reason
            self.texts[label].status = "finished"
        for operation, *blocks in change.get("pool", ()):
            if operation == "restart":  # all are free, in this order, and none is known
                self.free_queue = dict.fromkeys(blocks)
                self.ref_counts = {}
                self.cached = set()
            elif operation == "order":  # each of these has the place of another one
                those = set(blocks)
                moved = dict(zip([block for block in self.free_queue if block in those], blocks, strict=True))
                self.free_queue = {moved.get(block, block): None for block in self.free_queue}
            else:
                for block in blocks:
                    self._operate(operation, block)
        self.queues |= change.get("queues", {})
        self.chunks = [tuple(chunk) for chunk in change["chunks"]] if "chunks" in change else self.chunks
        for name in ("swap_out", "swap_in", "copies"):
            if name in change:
                self.moves[name] = [BlockCopy(*pair) for pair in change[name]]
        self.drafts = change.get("drafts", self.drafts)
        self.preempted = change.get("preempted", self.preempted)
        self.chosen = [tuple(token) for token in change["chosen"]] if "chosen" in change else self.chosen
        self.prefix = tuple(change.get("prefix", self.prefix))
        for name, operations in change.get("contiguous", {}).items():
            empty = ContiguousFrame(name, self.num_blocks * self.block_size)
            self.contiguous[name] = self.contiguous.get(name, empty).after(operations)

    def _attend(self, change: Change) -> None:
        """The walk of one query: it begins, reads a block, or is over and compared with the kernel."""
        if self.phase != "attend":
            self.attention = None
        elif "query" in change:
            self.attention = AttentionFrame(**change["query"])
        if self.attention and "softmax" in change:
            numbers = [tuple(part) if isinstance(part, list) else part for part in change["softmax"]]
            self.attention = replace(self.attention, steps=(*self.attention.steps, SoftmaxStep._make(numbers)))
        if self.attention and "kernel" in change:
            self.attention = replace(self.attention, kernel=tuple(change["kernel"]))

    def _ahead(self, facts: Change) -> Ahead:
        """Who is about to write where, give way, or begin with what."""
        wants = [want for label in facts.get("writes", ()) for want in self._want(self.texts[label])]
        running = [self.texts[label] for label in self.queues["running"]]
        needy = [text.label for text in running if len(text.token_ids) > len(text.blocks) * self.block_size]
        return Ahead(
            tuple(wants),
            tuple(needy) if "gives_way" in facts else (),
            tuple(chain.from_iterable(facts.get("gives_way", ()))),
            tuple((label, tuple(blocks)) for label, *blocks in facts.get("finds", ())),
            tuple(facts.get("returns", ())),
        )

    def _want(self, text: Text) -> list[Want]:
        """Where the next token of a text goes, if that is a slot of a block that it shares."""
        logical, offset = divmod(text.computed, self.block_size)
        wanted = [table[logical] for table in text.tables if logical < len(table)]
        shared = [block for block in wanted if self.ref_counts[block] > 1]
        return [Want(text.label, text.computed, block * self.block_size + offset) for block in shared]

    def _operate(self, operation: str, block: int) -> None:
        """What the block pool or the prefix cache did."""
        if operation == "take":
            del self.free_queue[block]
            self.ref_counts[block] = 1
            self.cached.discard(block)
        elif operation == "revive":
            del self.free_queue[block]
            self.ref_counts[block] = 1
        elif operation == "share":
            self.ref_counts[block] += 1
        elif operation == "free":
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                del self.ref_counts[block]
                self.free_queue[block] = None
        elif operation == "publish":
            self.cached.add(block)
        elif operation == "forget":
            self.cached.discard(block)
        else:
            raise ValueError(f"unknown operation {operation!r}")

    # ---- a frame of it

    def frame(self, told: list[str], num_earlier: int, story: str, num_stopped: int = 0) -> Frame:
        """This moment, for the renderers; `told`: the sentences of this step so far; see Frame for the numbers."""
        sequences = tuple(map(self._sequence, self.texts.values()))
        return Frame(
            step=self.step,
            phase=self.phase,
            block_size=self.block_size,
            max_num_batched_tokens=self.max_num_batched_tokens,
            sequences=sequences,
            finished_before=self.finished_before,
            waiting=tuple(self.queues["waiting"]),
            running=tuple(self.queues["running"]),
            swapped=tuple(self.queues["swapped"]),
            blocks=self._blocks({seq.label: seq.slot_words for seq in sequences}),
            free_queue=tuple(self.free_queue),
            chunks=tuple(map(self._chunk, self.chunks)),
            swap_out=tuple(self.moves.get("swap_out", ())),
            swap_in=tuple(self.moves.get("swap_in", ())),
            copies=tuple(self.moves.get("copies", ())),
            chosen=tuple(ChosenToken(label, self.word(token)) for label, token in self.chosen),
            preempted=tuple(chain.from_iterable(self.preempted)),
            finished=tuple(text.label for text in self.texts.values() if text.finish_reason),
            num_queried_tokens=self.prefix[0],
            num_hit_tokens=self.prefix[1],
            events=tuple(told),
            num_earlier_events=num_earlier,
            story=self.story or story,
            contiguous=tuple(self.contiguous.values()),
            attention=self.attention,
            ahead=self.ahead,
            code=code_frames(self.code, self.functions),
            reused=self.reused,
            num_stopped_events=num_stopped,
            windows=self.windows,
        )

    def word(self, token_id: int) -> str:
        return self.vocabulary[token_id].decode(errors="replace")

    def decode(self, token_ids: list[int]) -> str:
        return b"".join(self.vocabulary[token] for token in token_ids).decode(errors="replace")

    def _sequence(self, text: Text) -> SequenceFrame:
        output = text.token_ids[text.num_prompt_tokens :]
        num_new = len(text.token_ids) - text.num_old_tokens
        whole, before = self.decode(output), self.decode(output[: len(output) - num_new])
        return SequenceFrame(
            seq_id=text.seq_id,
            request_id=text.request_id,
            label=text.label,
            status=text.status,
            token_ids=tuple(text.token_ids),
            tokens=tuple(map(self.word, text.token_ids)),
            prompt=self.decode(text.token_ids[: text.num_prompt_tokens]),
            text=whole,
            new_text=whole[len(before.rstrip(LOST)) :],
            num_prompt_tokens=text.num_prompt_tokens,
            num_new_tokens=num_new,
            num_computed_tokens=text.computed,
            max_num_tokens=text.max_num_tokens,
            blocks=tuple(text.blocks),
            swap_blocks=tuple(text.swap_blocks),
            last_blocks=() if text.blocks else (*text.last_blocks, *held(chain.from_iterable(text.last_more_blocks))),
            num_preemptions=text.preemptions,
            finish_reason=text.finish_reason,
            drafts=tuple(map(self.word, self._drafts(text))),
            more_blocks=tuple(map(tuple, text.more_blocks)),
        )

    def _drafts(self, text: Text) -> list[int]:
        """What it guesses, as long as that is not judged."""
        return [] if self.phase in ("update", "failed") else self.drafts.get(text.label, [])

    def _chunk(self, chunk: tuple[str, int, int]) -> ChunkFrame:
        label, start, num_tokens = chunk
        text = self.texts[label]
        size = self.block_size
        # It may have finished since, or given slots of drafts back.
        tables = text.tables if text.blocks else [text.last_blocks, *text.last_more_blocks]
        stop = min(start + num_tokens, len(tables[0]) * size)
        places = [(table[i // size], i % size) for table in tables for i in range(start, stop)]
        slots = tuple(block * size + offset for block, offset in places if block != NULL_BLOCK)
        return ChunkFrame(label, start, num_tokens, slots)

    def _blocks(self, words: dict[str, tuple[str, ...]]) -> Blocks:
        """The physical pool: counts as the pool keeps them; holders and words as the block tables say."""
        size = self.block_size
        words = self.words | words
        holders: dict[int, list[str]] = {}
        stored: dict[int, tuple[str, ...]] = {}
        for text in self.texts.values():
            for logical, block in ((i, block) for table in text.tables for i, block in enumerate(table)):
                holders.setdefault(block, []).append(text.label)
                its_words = words[text.label][logical * size : min((logical + 1) * size, text.computed)]
                stored[block] = max(stored.get(block, ()), its_words, key=len)
        for block in self.cached - holders.keys():
            if block in self.homes:
                label, logical = self.homes[block]
                stored[block] = words[label][logical * size : (logical + 1) * size]
        kept = {}
        for block in self.ref_counts.keys() | self.cached:
            words_in_it = tuple(stored.get(block, ()))
            whose = tuple(holders.get(block, ()))
            cached = block in self.cached
            kept[block] = BlockFrame(self.ref_counts.get(block, 0), len(words_in_it), whose, cached, words_in_it)
        return Blocks(self.num_blocks, kept)
