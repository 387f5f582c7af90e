"""What an engine looked like at one moment: plain data that never changes, enough to draw every picture from.

A step of the engine leaves a frame for each of its phases, taken when the phase is over:

    before     nothing has been done yet, and something out of the ordinary is about to be: a shared block is to be
               written into, somebody has to give way, or comes back, or is found in the prefix cache
    schedule   blocks have been handed out, and the chosen tokens have slots; nothing is computed yet
    copy       whole blocks have been moved: swapped out, swapped in, copied on write (left out if there were none)
    attend     inside one attention call: one more block has been read (only where a scenario looks into the kernel)
    forward    K and V of the chosen tokens are written, and attention has read the blocks of their sequences
    sample     the next tokens are chosen
    update     the sequences have them, and finished ones have given their blocks back
    failed     something went wrong, and all of it has been taken back; then there is no "update"

Whatever follows from these fields is a property here, so that all renderers show the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args, overload

from minipage.errors import count
from minipage.memory import BlockCopy, blocks_needed
from minipage.simulate.baselines import SlotUsage
from minipage.trace.recording.causes import NOTHING_AHEAD, Ahead, CodeFrame
from minipage.trace.recording.windows import held

Phase = Literal["before", "schedule", "copy", "attend", "forward", "sample", "update", "failed"]
PHASES: tuple[Phase, ...] = get_args(Phase)
STOPS = ("before", "copy", "attend", "update", "failed")


ENDS = ("attend", "update", "failed")


@dataclass(frozen=True, slots=True)
class SequenceFrame:
    """One text: its tokens, and where they are stored."""

    seq_id: str
    request_id: str  # the samples and beams of one request have this in common
    label: str  # what pictures call it: "A", "B", …, "Z", "AA", … in order of arrival
    status: str  # "waiting", "running", "swapped" or "finished"
    token_ids: tuple[int, ...]  # the prompt, then what was generated
    tokens: tuple[str, ...]  # each token as text; U+FFFD where a character takes several tokens
    prompt: str
    text: str  # what was generated
    new_text: str  # the end of it, which this step has added
    num_prompt_tokens: int  # this many tokens, from the first on, are the prompt
    num_new_tokens: int  # this many tokens at the end were generated in this step
    num_computed_tokens: int  # this many, from the first on, have a slot; in an "update" frame K and V are there too
    max_num_tokens: int  # how long it may get, the prompt included
    blocks: tuple[int, ...]  # its block table: logical block i is physical block blocks[i]
    swap_blocks: tuple[int, ...]  # its block table in the swap pool, while it is swapped out
    last_blocks: tuple[int, ...]  # if it holds none: those in the tables that it lost, finished or preempted
    num_preemptions: int  # how often it lost its blocks
    finish_reason: str | None  # "length", "stop", "abort", …, once it is finished
    more_blocks: tuple[tuple[int, ...], ...] = ()  # the tables of further KV cache groups, which hold the same tokens
    drafts: tuple[str, ...] = ()  # guesses how it goes on: they have slots, until it is known which of them are right

    def __repr__(self) -> str:
        length = f"{len(self.tokens)} of at most {count(self.max_num_tokens, 'token')}"  # the last may have no slot yet
        return f"<{self.label}: {shorten(repr(self.prompt + self.text), 60)}, {self.status}, {length}>"

    def block_tokens(self, logical: int, block_size: int) -> tuple[str, ...]:
        """The words in logical block `logical`: up to `block_size` of them."""
        return self.slot_words[logical * block_size : min((logical + 1) * block_size, self.num_computed_tokens)]

    @property
    def tables(self) -> tuple[tuple[int, ...], ...]:
        """Its block table, or that of each KV cache group; a null block lies behind a window."""
        return (self.blocks, *self.more_blocks)

    @property
    def slot_words(self) -> tuple[str, ...]:
        """What its slots are for: its tokens, and guesses, each with a question mark."""
        return self.tokens + tuple(f"{word}?" for word in self.drafts)


@dataclass(frozen=True, slots=True)
class BlockFrame:
    """One physical block."""

    ref_count: int  # block tables that hold it; 0: it is free
    num_filled: int  # slots that hold a token of a sequence that has the block, or could find it again
    holders: tuple[str, ...]  # the labels of the sequences whose block tables hold it
    cached: bool  # the prefix cache can find it, be it in use or free
    tokens: tuple[str, ...]  # the words in it: as many as it has filled slots


FREE = BlockFrame(0, 0, (), False, ())


class Blocks(Sequence[BlockFrame]):
    """All blocks of a pool, by number. Only blocks that hold something are kept, so a large pool costs no more."""

    def __init__(self, num_blocks: int, kept: Mapping[int, BlockFrame]) -> None:
        self._num_blocks = num_blocks
        self._kept = dict(sorted(kept.items()))

    def __len__(self) -> int:
        return self._num_blocks

    @overload
    def __getitem__(self, number: int) -> BlockFrame: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[BlockFrame, ...]: ...
    def __getitem__(self, number: int | slice) -> BlockFrame | tuple[BlockFrame, ...]:
        if isinstance(number, slice):
            return tuple(self._kept.get(i, FREE) for i in range(self._num_blocks)[number])
        return self._kept.get(range(self._num_blocks)[number], FREE)

    def items(self) -> Iterable[tuple[int, BlockFrame]]:
        """(number, block) of the blocks that hold something."""
        return self._kept.items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and (self._num_blocks, self._kept) == (other._num_blocks, other._kept)

    def __hash__(self) -> int:
        return hash((self._num_blocks, *self._kept.items()))

    def __repr__(self) -> str:
        return f"<{count(self._num_blocks, 'block')}, of which {len(self._kept)} hold something>"


def occupied(blocks: Sequence[BlockFrame]) -> Iterable[tuple[int, BlockFrame]]:
    """(number, block) of the blocks that hold something."""
    return blocks.items() if isinstance(blocks, Blocks) else enumerate(blocks)


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """Tokens of one sequence that this step computes."""

    label: str  # whose
    start: int  # the position of the first: this many tokens were computed in earlier steps
    num_tokens: int
    slots: tuple[int, ...]  # where their K and V are written: block * block_size + offset


class ChosenToken(NamedTuple):
    """What was sampled for a sequence; of a beam there may be several, or none."""

    label: str
    token: str


Use = Literal["stored", "reserved", "internal"]  # a slot holds a token; will hold one; never will


class Segment(NamedTuple):
    """Slots in a row that one request has for one use. What is in no segment is free."""

    start: int
    num_slots: int
    label: str
    use: Use


class Piece(NamedTuple):
    """What one request has of a contiguous memory: slots in a row, from `start` on."""

    label: str
    start: int
    num_reserved: int  # slots that nobody else can have
    num_stored: int  # this many, from the first on, hold a token
    num_stored_at_last: int  # this many will hold one when it is done


@dataclass(frozen=True, slots=True)
class ContiguousFrame:
    """A memory as large as the pool that serves the same requests, each in one piece (scenario `fragmentation`)."""

    name: str  # how it chooses what to reserve
    num_slots: int
    pieces: tuple[Piece, ...] = ()  # of the running requests, oldest first
    waiting: tuple[str, ...] = ()  # labels, next one first
    finished: tuple[str, ...] = ()

    @property
    def usage(self) -> SlotUsage:
        """What its slots are used for."""
        stored = sum(piece.num_stored for piece in self.pieces)
        reserved = sum(min(piece.num_stored_at_last, piece.num_reserved) for piece in self.pieces) - stored
        held = sum(piece.num_reserved for piece in self.pieces)
        return SlotUsage(stored, reserved, held - stored - reserved, self.num_slots - held)

    @property
    def segments(self) -> list[Segment]:
        """What lies where, from the first slot to the last."""
        told = []
        for piece in sorted(self.pieces, key=lambda piece: piece.start):
            wanted = min(piece.num_stored_at_last, piece.num_reserved)
            ends: dict[Use, int] = {"stored": piece.num_stored, "reserved": wanted, "internal": piece.num_reserved}
            told += segments_between(piece.start, piece.label, ends)
        return told

    def after(self, operations: Iterable[Iterable[Any]]) -> ContiguousFrame:
        """The same memory a little later; operations: ["come", label], ["start", *Piece], ["grow"], ["end", label]."""
        pieces = {piece.label: piece for piece in self.pieces}
        waiting, finished = list(self.waiting), list(self.finished)
        for operation, *facts in operations:
            if operation == "come":
                waiting += facts
            elif operation == "start":
                piece = Piece(*facts)
                waiting.remove(piece.label)
                pieces[piece.label] = piece
            elif operation == "grow":  # everybody who runs has one more token
                pieces = {label: piece._replace(num_stored=piece.num_stored + 1) for label, piece in pieces.items()}
            elif operation == "end":
                del pieces[facts[0]]
                finished += facts
            else:
                raise ValueError(f"unknown operation {operation!r}")
        return replace(self, pieces=tuple(pieces.values()), waiting=tuple(waiting), finished=tuple(finished))


class SoftmaxStep(NamedTuple):
    """One query has met one block: what the online softmax knows then."""

    logical: int  # which of its blocks was read
    physical: int
    scores: tuple[float, ...]  # of the query with each token in the block
    shrink: float  # by this, what was summed before is scaled down to the new maximum
    maximum: float  # the highest score so far
    weights: tuple[float, ...]  # e ** (score - maximum), of each token in the block
    total: float  # the sum of all weights so far
    output: tuple[float, ...]  # [head_size], the weighted sum of the rows of V so far


@dataclass(frozen=True, slots=True)
class AttentionFrame:
    """Inside one attention call: one head of one query walks along its block table (scenario `kernel`)."""

    label: str  # whose query
    position: int  # of which token
    layer: int
    head: int
    steps: tuple[SoftmaxStep, ...] = ()  # the steps that are done
    kernel: tuple[float, ...] = ()  # [head_size], what the engine's own kernel returned; empty before the end

    def __repr__(self) -> str:
        where = f"layer {self.layer}, head {self.head}"
        return f"<attention of token {self.position} of {self.label}, {where}: {count(len(self.steps), 'block')} read>"

    @property
    def result(self) -> tuple[float, ...]:
        """[head_size] what the walk comes to, once it is over: the output divided by the sum."""
        last = self.steps[-1]
        return tuple(number / last.total for number in last.output)

    @property
    def largest_difference(self) -> float:
        """Between this result and the kernel's."""
        return max(abs(ours - its) for ours, its in zip(self.result, self.kernel, strict=True))


@dataclass(frozen=True, slots=True)
class Frame:
    """The engine at one moment of one step, and what the step has done so far."""

    step: int  # 1 is the first that was recorded
    phase: Phase
    block_size: int  # tokens per block
    max_num_batched_tokens: int  # the most tokens that a step computes
    sequences: tuple[SequenceFrame, ...]  # unfinished before this step, in order of arrival
    finished_before: tuple[SequenceFrame, ...]  # finished in earlier steps, earliest first
    waiting: tuple[str, ...]  # labels, next one first
    running: tuple[str, ...]  # labels, oldest first
    swapped: tuple[str, ...]  # labels of sequences whose blocks are in the swap pool, next to come back first
    blocks: Sequence[BlockFrame]  # the whole pool, by block number
    free_queue: tuple[int, ...]  # free blocks, next one first
    chunks: tuple[ChunkFrame, ...]  # what this step computes, in the order of the batch
    swap_out: tuple[BlockCopy, ...]  # (block, swap block): saved first of all
    swap_in: tuple[BlockCopy, ...]  # (swap block, block): brought back
    copies: tuple[BlockCopy, ...]  # blocks that are copied before anything is written
    chosen: tuple[ChosenToken, ...]  # the next tokens; empty before they are sampled
    preempted: tuple[str, ...]  # labels of sequences that lost their blocks in this step, in that order
    finished: tuple[str, ...]  # labels of sequences that are done with this step
    num_queried_tokens: int  # of prompts that were looked for in the prefix cache, since recording began
    num_hit_tokens: int  # how many of the queried tokens were found
    events: tuple[str, ...]  # this step so far, in sentences
    num_earlier_events: int  # this many, from the first on, are of earlier phases of this step
    story: str  # what a scenario says to this step, or an empty string
    contiguous: tuple[ContiguousFrame, ...] = ()  # the same requests in other memories, where a scenario compares
    attention: AttentionFrame | None = None  # in an "attend" frame
    ahead: Ahead = NOTHING_AHEAD  # in a "before" frame
    code: tuple[CodeFrame, ...] = ()  # what did it, the outermost caller first
    reused: tuple[int, ...] = ()  # blocks that somebody has begun with in this step: the prefix cache had found them
    windows: tuple[int, ...] = ()  # of each KV cache group, how many tokens its layers see; 0: all of them
    num_stopped_events: int = 0  # this many, from the first on, were told when this step was stopped at last

    def __repr__(self) -> str:
        queues = {"running": self.running, "waiting": self.waiting, "swapped": self.swapped}
        who = ", ".join(f"{name} {shorten(' '.join(labels), 30)}" for name, labels in queues.items() if labels)
        used = f"{self.num_used_blocks} of {count(len(self.blocks), 'block')} used"
        computed = f"{count(self.num_computed_tokens, 'token')} computed"
        return f"<Frame: step {self.step}, {self.phase}: {who or 'nobody is there'}; {used}; {computed}>"

    @property
    def phase_events(self) -> tuple[str, ...]:
        """What happened in this very phase."""
        return self.events[self.num_earlier_events :]

    @property
    def told_events(self) -> tuple[str, ...]:
        """What to tell: what this phase did; where a step is stopped, what has happened since the last stop."""
        is_stop = self.phase in ("copy", "update", "failed")
        return self.events[self.num_stopped_events if is_stop else self.num_earlier_events :]

    @property
    def all_sequences(self) -> list[SequenceFrame]:
        """All sequences, finished ones too, in order of arrival."""
        return sorted((*self.finished_before, *self.sequences), key=lambda seq: (len(seq.label), seq.label))

    @property
    def num_computed_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_used_blocks(self) -> int:
        return sum(block.ref_count > 0 for _, block in occupied(self.blocks))

    @property
    def num_stored_tokens(self) -> int:
        """Slots in use that hold a token; a shared slot counts once."""
        return sum(block.num_filled for _, block in occupied(self.blocks) if block.ref_count)

    @property
    def num_wasted_slots(self) -> int:
        """Slots that are handed out and empty (internal fragmentation): at most one part-empty block a sequence."""
        return self.num_used_blocks * self.block_size - self.num_stored_tokens

    @property
    def usage(self) -> SlotUsage:
        """What the slots of the pool are used for; the empty ones of last blocks count as reserved."""
        used = self.num_used_blocks * self.block_size
        return SlotUsage(self.num_stored_tokens, self.num_wasted_slots, 0, len(self.blocks) * self.block_size - used)

    @property
    def segments(self) -> list[Segment]:
        """What lies where in the pool, from the first slot to the last; a shared block counts for its first holder."""
        told = []
        for number, block in occupied(self.blocks):
            if block.holders:
                ends: dict[Use, int] = {"stored": block.num_filled, "reserved": self.block_size}
                told += segments_between(number * self.block_size, block.holders[0], ends)
        return told

    @property
    def num_contiguous_blocks(self) -> int:
        """Blocks' worth of memory if each running request had reserved room for its longest case, in one piece."""
        slots = sum(seq.max_num_tokens for seq in self.sequences if seq.label in self.running)
        return blocks_needed(slots, self.block_size) * max(1, len(self.windows))

    @property
    def pending_slots(self) -> frozenset[int]:
        """Slots that somebody has already, and whose K and V are not there yet: to be written, copied or restored."""
        if self.phase not in ("schedule", "copy", "failed"):
            return frozenset()
        pending = {slot for chunk in self.chunks for slot in chunk.slots}
        if self.phase == "schedule":
            size = self.block_size
            arriving = {to for _, to in (*self.copies, *self.swap_in)}
            pending |= {block * size + i for block in arriving for i in range(self.blocks[block].num_filled)}
        return frozenset(pending)

    @property
    def written_blocks(self) -> frozenset[int]:
        """The physical blocks whose slots this step writes K and V to."""
        return frozenset(slot // self.block_size for chunk in self.chunks for slot in chunk.slots)

    @property
    def wanted_slots(self) -> frozenset[int]:
        """Slots of shared blocks that somebody is about to write."""
        return frozenset(want.slot for want in self.ahead.wants)

    @property
    def written_slots(self) -> frozenset[int]:
        """The slots whose K and V this step has written so far."""
        is_done = self.phase in ("attend", "forward", "sample", "update")
        return frozenset(slot for chunk in self.chunks for slot in chunk.slots if is_done)

    @property
    def attended_block(self) -> int | None:
        """The physical block that was read last, inside an attention call."""
        walk = self.attention
        return None if walk is None or walk.kernel else walk.steps[-1].physical

    @property
    def read_blocks(self) -> frozenset[int]:
        """The physical blocks that attention reads in this step: the whole block tables of whoever computes."""
        computing = {chunk.label for chunk in self.chunks}
        tables = [table for seq in self.sequences if seq.label in computing for table in seq.tables]
        return frozenset(block for table in tables for block in held(table))


def segments_between(start: int, label: str, ends: dict[Use, int]) -> list[Segment]:
    """Cut what begins at slot `start` at each end, counted from there; empty segments are left out."""
    told = []
    before = 0
    for use, end in ends.items():
        if end > before:
            told.append(Segment(start + before, end - before, label, use))
        before = max(before, end)
    return told


def is_stop(frame: Frame) -> bool:
    """Whether to stop here when going step by step: a step is over, or half of something that has two halves."""
    return frame.phase in STOPS


def fullest(frames: Iterable[Frame]) -> Frame:
    """The frame that shows most, where only one can be shown: most blocks in use, then most tokens in them."""
    latest_first = list(frames)[::-1]
    stops = [frame for frame in latest_first if frame.phase in ENDS] or latest_first
    return max(stops, key=lambda frame: (frame.num_used_blocks, frame.num_stored_tokens))


def shorten(text: str, length: int) -> str:
    """`text` in at most `length` characters: its beginning and its end."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def label_of(index: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA, …: the columns of a spreadsheet."""
    letters = ""
    while index >= 0:
        index, letter = divmod(index, 26)
        letters = chr(ord("A") + letter) + letters
        index -= 1
    return letters


def index_of(label: str) -> int:
    """A -> 0, Z -> 25, AA -> 26: what `label_of` makes a label of."""
    index = 0
    for letter in label:
        index = 26 * index + ord(letter) - ord("A") + 1
    return index - 1
