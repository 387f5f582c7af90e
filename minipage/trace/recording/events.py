"""What a phase did, in plain sentences: "B needs a block: block 7 is taken from the free queue."

Sentences are made from the state before and after a phase and from what changed; nobody looks at the engine. They are
kept below 76 characters where they can be, which is a line of the smallest screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from minipage.errors import count
from minipage.trace.recording import parts
from minipage.trace.recording.guesses import choices_with_guesses, guess, verdicts
from minipage.trace.recording.outlook import what_is_ahead
from minipage.trace.recording.tiers import travels
from minipage.trace.recording.windows import held, slides
from minipage.trace.recording.wording import block_names, decimals, join, printable

if TYPE_CHECKING:
    from minipage.trace.recording.frames import AttentionFrame
    from minipage.trace.recording.replay import State
    from minipage.trace.recording.text import Text

FEW = 2  # events of one kind that get a sentence each; more than that share one
Blocks = Mapping[str, Sequence[int]]  # label -> blocks


class Before(NamedTuple):
    """What has to be known of the state before a phase."""

    tables: dict[str, list[int]]  # label -> block table; of several, the first
    all_tables: dict[str, list[list[int]]]
    held: dict[str, list[int]]  # label -> the blocks in all of them
    status: dict[str, str]
    num_free: int
    cached: frozenset[int]

    @classmethod
    def of(cls, state: State) -> Before:
        texts = state.texts.values()
        tables = {text.label: text.blocks for text in texts}
        status = {text.label: text.status for text in texts}
        all_tables = {text.label: text.tables for text in texts}
        its_blocks = {text.label: text.held_blocks for text in texts}
        return cls(tables, all_tables, its_blocks, status, len(state.free_queue), frozenset(state.cached))


def sentences(change: dict[str, Any], before: Before, after: State) -> list[str]:
    """What happened in this phase."""
    if after.phase == "before":
        return [*arrivals(change, after), *what_is_ahead(change, after)]
    if after.phase == "schedule":
        start = [
            *arrivals(change, after),
            *travels(change),
            *hits(before, after),
            *returns(before, after),
            *slides(before.all_tables, after.texts, block_names),
        ]
        return [*start, *allocations(before, after), *takes_for_copies(before, after)]
    if after.phase == "copy":
        return copies(after)
    if after.phase == "attend" and after.attention:
        return [attends(after.attention)]
    if after.phase == "forward":
        return forwards(after)
    if after.phase == "sample":
        return choices(after)
    if after.phase == "failed":
        return ["The step failed. What was half done is not trusted: whoever ran will be computed again."]
    return [
        *verdicts(before, after),
        *branches(change, after),
        *forks(change, before, after),
        *publications(before, after),
        *finishes(change.get("finished", {}), before.held),
    ]


def arrivals(change: dict[str, Any], after: State) -> list[str]:
    requests: dict[str, list[str]] = {}
    for new in change.get("new", ()):
        requests.setdefault(new["request_id"], []).append(new["label"])
    lengths = {its[0]: after.texts[its[0]].num_prompt_tokens for its in requests.values()}
    if len(requests) > FEW:
        labels = [label for its in requests.values() for label in its]
        shortest, longest = min(lengths.values()), max(lengths.values())
        are = f"of {count(longest, 'token')} each" if shortest == longest else f"of {shortest} to {longest} tokens"
        return [f"{join(labels)} arrive: prompts {are}."]
    told = []
    for its in requests.values():
        prompt = f"a prompt of {count(lengths[its[0]], 'token')}"
        told.append(
            f"{its[0]} arrives: {prompt}." if len(its) == 1 else f"{join(its)} arrive: {prompt}, {len(its)} samples."
        )
    return told


def hits(before: Before, after: State) -> list[str]:
    """Who began with blocks that the prefix cache had found."""
    told = []
    for label, start, _ in after.chunks:
        text = after.texts[label]
        if start and before.status.get(label, "waiting") == "waiting" and not before.tables.get(label):
            found = [block for table in text.tables for block in held(table[: start // after.block_size])]
            told.append(parts.found(label, start, found, after.block_size))
    return told


def branches(change: dict[str, Any], after: State) -> list[str]:
    told = []
    for new in change.get("new", ()):
        blocks = after.texts[new["label"]].held_blocks
        told.append(f"{new['label']} branches off and shares {block_names(blocks)}.")
    return told


def forks(change: dict[str, Any], before: Before, after: State) -> list[str]:
    """Samples that waited for their prompt, and have its blocks now."""
    new = {each["label"] for each in change.get("new", ())}
    told: dict[tuple[int, ...], list[str]] = {}
    for text in after.texts.values():
        if text.label not in new and text.blocks and not before.tables.get(text.label):
            told.setdefault(tuple(text.held_blocks), []).append(text.label)
    return [
        f"{join(labels)} {'forks' if len(labels) == 1 else 'fork'} the block table: {block_names(blocks)} "
        f"{'is' if len(blocks) == 1 else 'are'} shared, and nothing is copied."
        for blocks, labels in told.items()
    ]


def returns(before: Before, after: State) -> list[str]:
    """Who came back from the swap pool."""
    back = [label for label, status in before.status.items() if status == "swapped" and after.texts[label].blocks]
    num_restored = len(after.moves.get("swap_in", ()))
    return [f"{join(back)}: back from swap, {count(num_restored, 'block')} to restore."] if back else []


def between_steps(reasons: Mapping[str, str], before: Before) -> list[str]:
    """Who has gone since the last step: aborted, or finished in a step that failed."""
    return [
        f"{label} is {'aborted' if why == 'abort' else f'finished ({why})'}" + _and_frees(len(before.held[label]))
        for label, why in reasons.items()
    ]


def copies(after: State) -> list[str]:
    told = []
    for name, verb in (("swap_out", "saved to swap space"), ("swap_in", "restored from swap space")):
        if pairs := after.moves.get(name):
            here = [pair.source if name == "swap_out" else pair.destination for pair in pairs]
            told.append(f"{block_names(here).capitalize()} {'is' if len(here) == 1 else 'are'} {verb}.")
    for source, to in _copied(after).items():
        writers = [text.label for text in after.texts.values() if not {*to}.isdisjoint(text.held_blocks)]
        if source in after.cached and writers:
            told.append(parts.copied(source, to, writers))
            continue
        who = f"{join(writers)} {'writes' if len(writers) == 1 else 'write'}" if writers else "Somebody writes"
        told.append(f"{who} into block {source}, which is shared: it is copied to {block_names(to)} first.")
    return told


def _copied(after: State) -> dict[int, list[int]]:
    """source -> where it is copied to."""
    copied: dict[int, list[int]] = {}
    for source, destination in after.moves.get("copies", ()):
        copied.setdefault(source, []).append(destination)
    return copied


def takes_for_copies(before: Before, after: State) -> list[str]:
    """Who got a block of its own to copy a shared one into, and who goes on writing into the shared one."""
    told = []
    for source, to in _copied(after).items():
        owners = {block: text.label for text in after.texts.values() for block in text.held_blocks}
        gets = [
            f"{owners.get(block, 'somebody')} {'takes' if i == 0 else ''} block {block}" for i, block in enumerate(to)
        ]
        kept_by = [label for label, _, _ in after.chunks if source in after.texts[label].held_blocks]
        is_shared = source not in after.cached  # and not only found, as far as it is written (parts.py)
        stays = (
            f"; {join(kept_by)}, the last to write, may keep it"
            if is_shared and len(kept_by) == 1 and kept_by[0] == owners.get(source)
            else ""
        )
        told.append(f"{join(get.replace('  ', ' ') for get in gets)}, to copy block {source} into{stays}.")
    return told


def attends(attention: AttentionFrame) -> str:
    """What the online softmax has made of one more block, or of the whole walk."""
    step = attention.steps[-1]
    if attention.kernel:
        return (
            "Output divided by sum is what the kernel returned, to within "
            f"{decimals(attention.largest_difference)}: it computes in float32, and this in float64."
        )
    where = f"Block {step.physical} is read, logical block {step.logical} of {attention.label}"
    if step.logical == 0:
        return f"{where}: its highest score, {step.maximum:.2f}, is the first maximum."
    if step.shrink == 1:
        return f"{where}: no score is above the maximum, and its weights are added."
    return f"{where}: {step.maximum:.2f} is a new maximum; what was summed shrinks to {step.shrink:.2f} of itself."


def forwards(after: State) -> list[str]:
    num_tokens = sum(num_tokens for _, _, num_tokens in after.chunks)
    size = after.block_size
    written: set[int] = set()
    read = set()
    for label, start, n in after.chunks:
        text = after.texts[label]
        its = slice(start // size, (start + n - 1) // size + 1)
        written.update(block for table in text.tables for block in held(table[its]))
        read.update(text.held_blocks)
    tokens = f"K and V of {count(num_tokens, 'token')} are written to {block_names(sorted(written))}"
    return [f"{tokens}; attention reads {count(len(read), 'block')}."]


def choices(after: State) -> list[str]:
    """The tokens that were sampled: "A: " king"; B: ","." """
    words = [f'{label} "{printable(said)}"' for label, said in choices_with_guesses(after)]
    if not words:
        return ["No text has come to its end: there is nothing to sample yet."]
    shown = words if len(words) <= 8 else [*words[:7], f"{len(words) - 7} more"]
    return [f"Sampled: {', '.join(shown)}."]


def publications(before: Before, after: State) -> list[str]:
    return parts.can_be_found(sorted(after.cached - before.cached), after.texts, after.block_size)


def allocations(before: Before, after: State) -> list[str]:
    """Who got blocks for what, and who lost them for it, in the order in which it happened."""
    told: list[Told] = []
    fitting = []
    preempted = list(after.preempted)
    num_free = before.num_free
    restored = {to for _, to in after.moves.get("swap_in", ())}
    involved = {block for pair in after.moves.get("copies", ()) for block in pair}
    tails = {text.label: {block for table in text.tables for block in table[-1:]} for text in after.texts.values()}
    copying = {label for label, blocks in tails.items() if blocks & involved}
    for label, start, num_tokens in after.chunks:
        text = after.texts[label]
        # What the prefix cache found, or what came back from swap, was not taken for this.
        known = max(len(before.tables.get(label, ())), start // after.block_size)
        was_swapped = before.status.get(label) == "swapped"
        added = [block for table in text.tables for block in held(table[known:])]
        new_blocks = [block for block in added if not (was_swapped and block in restored)]
        while preempted and num_free < len(new_blocks):
            num_free += len(_held(preempted[0], before.held))
            told.append(Told("preempt", label, 0, (), _preemption(label, preempted.pop(0), before.held, after)))
        num_free -= len(new_blocks)
        ends = start + num_tokens == len(text.token_ids)
        facts = label, num_tokens, tuple(new_blocks)
        if start == 0:
            kind = "return" if text.preemptions else "start"
            told.append(Told(kind, *facts, _start(text, num_tokens, ends, new_blocks)))
        elif drafts := after.drafts.get(label):
            told.append(Told("guess", label, len(drafts), tuple(new_blocks), guess(label, drafts, new_blocks, after)))
        elif num_tokens > 1 or not ends:
            told.append(Told("go on", *facts, _next_chunk(text, num_tokens, new_blocks)))
        elif label in copying:
            pass  # see takes_for_copies
        elif new_blocks:
            each = "" if len(new_blocks) == 1 else " for each group of layers"
            taken = f"{block_names(new_blocks)} {'are' if each else 'is'} taken from the free queue"
            sentence = f"{label} needs a block{each}: {taken}."
            told.append(Told("need", *facts, sentence))
        else:
            fitting.append(label)
    # Whoever is left made way in vain: the last one preempted needed a block, and was the latest itself.
    in_vain = [_preemption(join(preempted[-1]), group, before.held, after) for group in preempted]
    sentences = [*_together(told), *in_vain]
    if fitting:
        what = "new token fits in its last block" if len(fitting) == 1 else "new tokens fit in their last blocks"
        sentences.append(f"{join(fitting)}: the {what}.")
    return sentences


class Told(NamedTuple):
    """Something that happened to one text, ready to be said; with others of its kind it is said in one sentence."""

    kind: str
    label: str
    num_tokens: int
    blocks: tuple[int, ...]
    sentence: str


def _together(told: list[Told]) -> list[str]:
    """What happened, in order; more than a few of one kind in a row share a sentence."""
    sentences = []
    for kind, row in groupby(told, key=lambda each: each.kind):
        group = list(row)
        who = join(each.label for each in group)
        num_tokens = sum(each.num_tokens for each in group)
        blocks = [block for each in group for block in each.blocks]
        taken = f"{block_names(blocks)} {'is' if len(blocks) == 1 else 'are'} taken" if blocks else "there is room"
        if len(group) <= FEW or kind == "preempt":
            sentences += [each.sentence for each in group]
        elif kind == "start":
            sentences.append(f"{who} start, with {num_tokens} tokens: {taken} from the free queue.")
        elif kind == "return":
            sentences.append(f"{who} are back: {num_tokens} tokens are computed again, in {block_names(blocks)}.")
        elif kind == "guess":
            sentences.append(f"{who} guess {num_tokens} tokens ahead: {taken}.")
        elif kind == "go on":
            sentences.append(f"{who} go on, with {num_tokens} more tokens: {taken}.")
        else:
            sentences.append(f"{who} need a block each: {taken} from the free queue.")
    return sentences


def finishes(reasons: Mapping[str, str], blocks: Blocks) -> list[str]:
    """`blocks` are those in the tables before the update emptied them."""
    told = []
    for why in dict.fromkeys(reasons.values()):
        labels = [label for label, reason in reasons.items() if reason == why]
        if len(labels) > FEW:
            their = _held(labels, blocks)
            told.append(f"{join(labels)} are finished ({why}){_and_frees(len(their), 'their')}")
        else:
            told += [f"{label} is finished ({why}){_and_frees(len(blocks[label]))}" for label in labels]
    return told


def _preemption(needy: str, latest: list[str], blocks: Blocks, after: State) -> str:
    held = len(_held(latest, blocks))
    swapped = after.texts[latest[0]].status == "swapped"
    is_or_are = "is" if held == 1 else "are"
    what = f"its {count(held, 'block')} {is_or_are} free again and it will be recomputed"
    if swapped:
        what = f"its {count(held, 'block')} will be saved, and free again; it will come back"
    return f"{needy} needs room, but the pool is dry: {join(latest)}, last in line, is preempted; {what}."


def _held(group: list[str], blocks: Blocks) -> set[int]:
    return {block for label in group for block in blocks.get(label, ())}


def _start(text: Text, num_tokens: int, ends: bool, blocks: Sequence[int]) -> str:
    total = len(text.token_ids)
    tokens = f"{'' if ends else f'{num_tokens} of '}its {count(total, 'token')}"
    if text.preemptions:
        return f"{text.label} is back: {tokens} are computed again, in {block_names(blocks)}."
    return (
        f"{text.label} starts: {tokens} {'takes' if total == 1 else 'take'} {block_names(blocks)} from the free queue."
    )


def _next_chunk(text: Text, num_tokens: int, blocks: Sequence[int]) -> str:
    taken = f"{block_names(blocks)} {'is' if len(blocks) == 1 else 'are'} taken" if blocks else "there is room"
    return f"{text.label} goes on: {num_tokens} more of its {count(len(text.token_ids), 'token')}; {taken}."


def _and_frees(num_blocks: int, whose: str = "its") -> str:
    if num_blocks == 0:
        return "."
    goes = "goes" if num_blocks == 1 else "go"
    return f": {whose} {count(num_blocks, 'block')} {goes} back to the free queue."
