"""What a step did, in plain sentences: "B needs a block: block 7 is taken from the free queue."

Each function looks at the state before and after, and at the plan; none of them looks at the engine. A sentence is kept
below 76 characters where it can be, which is a line of the smallest screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from minipage.memory import BlockCopy
from minipage.scheduling import Chunk, SequenceGroup, Status, StepPlan
from minipage.scheduling import Sequence as Request

Labels = Mapping[Request, str]
Tables = Mapping[Request, Sequence[int]]  # block tables at some moment


def arrivals(new: Iterable[Request], labels: Labels) -> list[str]:
    return [f"{labels[seq]} arrives: a prompt of {count(seq.num_prompt_tokens, 'token')}." for seq in new]


def branches(new: Iterable[Request], labels: Labels) -> list[str]:
    return [f"{labels[seq]} branches off and shares {block_names(seq.block_table.blocks)}." for seq in new]


def returns(swap_in: Sequence[BlockCopy], chunks: Iterable[Chunk], labels: Labels) -> list[str]:
    """Who came back from the swap pool: those whose blocks are where the saved ones were copied to."""
    restored = {block for _, block in swap_in}
    back = [labels[chunk.seq] for chunk in chunks if restored & set(chunk.seq.block_table)]
    return [f"{join(back)}: back from swap, {count(len(restored), 'block')} restored."] if back else []


def aborts(gone: Iterable[Request], labels: Labels, tables: Tables) -> list[str]:
    return [f"{labels[seq]} is aborted{_and_frees(len(tables[seq]))}" for seq in gone]


def copies(pairs: Iterable[BlockCopy]) -> list[str]:
    return [f"Block {source} is shared: it is copied to block {to} before it is written." for source, to in pairs]


def allocations(plan: StepPlan, num_free: int, labels: Labels, tables: Tables) -> list[str]:
    """Who got blocks for what, and who lost them for it, in the order in which it happened.

    `num_free` and `tables` are the free blocks and the block tables before the step; those of the plan are after it.
    """
    sentences, fitting, preempted = [], [], list(plan.preempted)
    for chunk in plan.chunks:
        label = labels[chunk.seq]
        new_blocks = chunk.seq.block_table.blocks[len(tables.get(chunk.seq, ())) :]
        while preempted and num_free < len(new_blocks):
            num_free += len(_held(preempted[0], tables))
            sentences.append(_preemption(label, preempted.pop(0), labels, tables))
        num_free -= len(new_blocks)
        if chunk.start == 0:
            sentences.append(_start(chunk, label, new_blocks))
        elif chunk.num_tokens > 1 or not chunk.samplers:
            sentences.append(_next_chunk(chunk, label, new_blocks))
        elif new_blocks:
            sentences.append(f"{label} needs a block: {block_names(new_blocks)} is taken from the free queue.")
        else:
            fitting.append(label)
    # Whoever is left made way in vain: the last of them needed a block, and was the latest itself.
    sentences += [_preemption(_names(preempted[-1], labels), group, labels, tables) for group in preempted]
    if fitting:
        what = "new token fits in its last block" if len(fitting) == 1 else "new tokens fit in their last blocks"
        sentences.append(f"{join(fitting)}: the {what}.")
    return sentences


def finishes(reasons: Mapping[Request, str], labels: Labels, tables: Tables) -> list[str]:
    """`tables` are the block tables as they were scheduled, before the update emptied them."""
    return [f"{labels[seq]} is finished ({why}){_and_frees(len(tables[seq]))}" for seq, why in reasons.items()]


def _preemption(needy: str, latest: SequenceGroup, labels: Labels, tables: Tables) -> str:
    held, swapped = len(_held(latest, tables)), latest.status is Status.SWAPPED
    free = f"its {count(held, 'block')} {'is' if held == 1 else 'are'} {'saved and ' if swapped else ''}free again"
    then = "will come back" if swapped else "will be recomputed"
    what = f"{_names(latest, labels)}, the latest, is preempted; {free} and it {then}."
    return f"{needy} needs room, but the pool is dry: {what}"


def _held(group: SequenceGroup, tables: Tables) -> set[int]:
    return {block for seq in group.sequences for block in tables.get(seq, ())}


def _names(group: SequenceGroup, labels: Labels) -> str:
    return join(labels[seq] for seq in group.sequences)


def _start(chunk: Chunk, label: str, blocks: Sequence[int]) -> str:
    total = len(chunk.seq.token_ids)
    tokens = f"{'' if chunk.samplers else f'{chunk.num_tokens} of '}its {count(total, 'token')}"
    if chunk.group.num_preemptions:
        return f"{label} is back: {tokens} are computed again, in {block_names(blocks)}."
    return f"{label} starts: {tokens} {'takes' if total == 1 else 'take'} {block_names(blocks)} from the free queue."


def _next_chunk(chunk: Chunk, label: str, blocks: Sequence[int]) -> str:
    taken = f"{block_names(blocks)} {'is' if len(blocks) == 1 else 'are'} taken" if blocks else "there is room"
    return f"{label} goes on: {chunk.num_tokens} more of its {len(chunk.seq.token_ids)} tokens; {taken}."


def _and_frees(num_blocks: int) -> str:
    if num_blocks == 0:
        return "."
    goes = "goes" if num_blocks == 1 else "go"
    return f": its {count(num_blocks, 'block')} {goes} back to the free queue."


def block_names(blocks: Sequence[int]) -> str:
    """[3] -> "block 3"; [3, 9] -> "blocks 3 and 9"; [3, 4, 5, 6] -> "blocks 3 to 6"; many -> how many."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if len(blocks) > 3 and list(blocks) == list(range(blocks[0], blocks[0] + len(blocks))):
        return f"blocks {blocks[0]} to {blocks[-1]}"
    if len(blocks) > 8:
        return f"blocks {', '.join(map(str, blocks[:6]))} and {len(blocks) - 6} more"
    return f"blocks {join(map(str, blocks))}"


def count(number: int, noun: str) -> str:
    """1 block, 2 blocks."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def join(words: Iterable[str]) -> str:
    """A, B and C."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
