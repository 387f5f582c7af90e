"""The stories that the demo tells: what is asked of which engine, and what to say when something is seen first.

Every story runs the real engine on the real model. Its sentences wait for what they speak of: a turn is told at the
first step at whose end its condition holds, so that a story stays true with other prompts, sizes and seeds.
"""

from __future__ import annotations

from difflib import get_close_matches

from minipage.errors import ConfigurationError
from minipage.trace.playing.admission_story import ADMISSION
from minipage.trace.playing.cues import (
    gave_way,
    is_back,
    is_cut,
    is_full,
    is_shared,
    newly_used,
    step_is,
)
from minipage.trace.playing.eviction_story import EVICTION
from minipage.trace.playing.handover_story import HAND_OVER
from minipage.trace.playing.kernel_story import KERNEL
from minipage.trace.playing.partial_story import PARTIAL
from minipage.trace.playing.rank_story import RANKS
from minipage.trace.playing.speculation_story import SPECULATION
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import ARRIVING, FRIENDS, JULIET, NUM_REQUESTS, NUM_SLOTS, RICHARD, ROMEO, crowd
from minipage.trace.playing.tier_story import TIER
from minipage.trace.playing.window_story import WINDOW
from minipage.trace.recording.comparison import Comparison
from minipage.trace.recording.frames import Frame


def find_scenario(name: str) -> Scenario:
    """Raises ConfigurationError for an unknown name, and suggests the nearest."""
    if name == RANKS.name:  # which is not for every machine, and so not among the others
        return RANKS
    if name in SCENARIOS:
        return SCENARIOS[name]
    near = get_close_matches(name, SCENARIOS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "`demo --list` shows them."
    raise ConfigurationError(f"there is no scenario {name!r}; {hint}")


def story_after(name: str) -> Scenario | None:
    """The one to go on with; after the last there is none."""
    names = list(SCENARIOS)
    place = names.index(name) + 1 if name in names else len(names)
    return SCENARIOS[names[place]] if place < len(names) else None


FIRST_TURNS = (
    Turn(step_is(1), "The prompt is cut into blocks, and each is put wherever the pool has room."),
    Turn(
        newly_used,
        "A last block is full: the next token gets a new one, and only now.",
        "No block was added: the last one of the prompt had room for all that came.",
    ),
)
NEVER_DRY = "Nobody had to give way: with these texts and sizes there was always a free block."
PREEMPTED = Turn(
    lambda f: f.preempted or f.ahead.gives_way,
    "The pool is dry: the last in line gives its blocks up, and the first goes on.",
    NEVER_DRY,
)
NEVER_COPIED = "Nothing was copied: nobody wrote into a block while it was shared."
NO_SECOND_TOKEN = "(The first token is stored with the second, and no second token was generated.)"
LAST_BLOCK_FULL = "(A prompt that fills its last block to the end leaves nothing to copy.)"


def never_copied(frame: Frame) -> str:
    """At the end of a story: that nothing was copied, and why, if it is one of the two usual reasons."""
    seqs = frame.all_sequences
    if all(len(seq.tokens) < seq.num_prompt_tokens + 2 for seq in seqs):
        return f"{NEVER_COPIED} {NO_SECOND_TOKEN}"
    if all(seq.num_prompt_tokens % frame.block_size == 0 for seq in seqs):
        return f"{NEVER_COPIED} {LAST_BLOCK_FULL}"
    return NEVER_COPIED


ALL = (
    Scenario(
        "basics",
        "A text in pages",
        "one request: how a block table grows, block by block",
        (Arrival(0, RICHARD, 14),),
        (
            *FIRST_TURNS,
            Turn(step_is(4), "Every step computes one token: its K and V go to the slot that the table names."),
            Turn(lambda f: f.finished, "Done. The blocks go back, the last one first, for somebody else to use."),
        ),
    ),
    Scenario(
        "fragmentation",
        "One memory, four ways to deal it out",
        "64 requests of 50 to 2,000 tokens (scaled to the model: 13 to 500), in reserved pieces and in blocks",
        crowd(),
        (
            Turn(
                step_is(1),
                "64 requests of 13 to 500 tokens (50 to 2,000, scaled to this model; log-uniform, so most are short) "
                "come eight a step.",
            ),
            Turn(is_full(0), "Room for the longest case: full with seven requests, and nearly empty of words."),
            Turn(is_full(1), "Each length guessed, to a power of two: more run, but what was too much is lost."),
            Turn(
                is_full(2),
                "Even with each length known, room is kept for words to come; no hole between pieces is large enough.",
            ),
            Turn(
                lambda f: len(f.running) == NUM_REQUESTS and f.step == NUM_REQUESTS // ARRIVING,
                "In blocks nothing is kept for later: all 64 run at once, and only ends of last blocks are empty.",
            ),
            PREEMPTED,
            Turn(
                step_is(28),
                "Same memory, same requests: in blocks it is full of words, and many more are done or nearly so.",
            ),
        ),
        {"block_size": 16, "max_num_batched_tokens": 1024},
        num_slots=NUM_SLOTS,
        beside=Comparison,
        num_steps=28,
    ),
    Scenario(
        "continuous-batching",
        "Who comes, runs; who is done, goes",
        "three requests come at different times and share one small pool",
        (Arrival(0, RICHARD, 14), Arrival(2, JULIET, 18), Arrival(5, ROMEO, 12)),
        (
            Turn(step_is(1), "One request begins alone; the others come later."),
            Turn(lambda f: len(f.running) > 1, "A second one joins at once: nobody waits for a batch to be over."),
            Turn(lambda f: len(f.running) > 2, "Three of them, and their blocks lie mixed. Each table knows its own."),
            PREEMPTED,
            Turn(lambda f: f.finished, "One is done and leaves; its blocks are free for others in the same step."),
            Turn(is_back, "Whoever gave way is back: its prompt and what it had written are computed again."),
        ),
        room=0.84,
        runs_dry=True,
    ),
    Scenario(
        "chunked-prefill",
        "A long prompt in small pieces",
        "a long prompt is computed in chunks, so that others need not stop",
        (Arrival(0, JULIET, 16), Arrival(2, FRIENDS + RICHARD, 8)),
        (
            Turn(lambda f: f.chosen, "A step computes only a few tokens. A short prompt is soon done."),
            Turn(
                lambda f: is_cut(f) and len(f.chunks) > 1,
                "A long prompt comes. Whoever runs goes first, and the prompt gets what is left of the step's tokens.",
                "No prompt was cut beside another text: each was computed in one step, or alone.",
            ),
            Turn(
                lambda f: len(f.chunks) > 1 and all(chunk.num_tokens == 1 for chunk in f.chunks),
                "The prompt is complete. From now on each gets one token a step.",
            ),
        ),
        room=1.33,
    ),
    Scenario(
        "copy-on-write",
        "Three samples, one prompt",
        "samples share the blocks of their prompt, and copy the one they write into",
        (Arrival(0, RICHARD, 9, {"n": 3}),),
        (
            Turn(
                is_shared,
                "Three texts of one prompt: it is computed once, by A. The others fork its block table: "
                "the same blocks, nothing copied. The number in a block counts who shares it.",
            ),
            Turn(
                lambda f: f.copies or f.ahead.wants,
                "Now they go on differently. Whoever writes into a shared block gets a copy first; "
                "the last of them writes in place.",
                never_copied,
            ),
            Turn(newly_used, "New blocks are each one's own. The full ones of the prompt stay shared to the end."),
            Turn(lambda f: f.finished, "A block is free only when the last of those who share it lets go."),
        ),
        {"max_num_batched_tokens": 16},
        room=1.45,
    ),
    Scenario(
        "beam",
        "Beams branch and die",
        "beam search keeps the three best texts; tables fork when a beam branches",
        (Arrival(0, JULIET, 10, {"beam_width": 3}),),
        (
            Turn(
                lambda f: any("branches off" in event for event in f.events),
                "The three likeliest first words make three beams, over the very same blocks.",
            ),
            Turn(
                lambda f: f.copies or f.ahead.wants,
                "Each beam writes its own word: the shared last block is copied for all but one.",
                never_copied,
            ),
            Turn(
                lambda f: any("is finished (beaten" in event for event in f.events),
                "A beam that is beaten by the others dies, and gives its blocks back.",
            ),
            Turn(
                lambda f: f.step > 4 and (f.copies or f.ahead.wants),
                "A good beam branches again: a new table, and one copied block.",
            ),
            Turn(lambda f: f.finished and not f.running, "The search is over: the best text is what remains."),
        ),
        {"max_num_batched_tokens": 16},
        room=2.4,
    ),
    Scenario(
        "prefix",
        "What was computed once",
        "requests that begin alike share blocks, even after the first is done",
        (
            Arrival(0, FRIENDS + "All:\nSpeak", 6),
            Arrival(2, FRIENDS + RICHARD, 6, after=0),
            Arrival(4, FRIENDS + JULIET, 6, after=0),
        ),
        (
            Turn(step_is(1), "Every full block is known by the text that it ends: the prefix cache can find it."),
            Turn(lambda f: f.finished, "The request is done and its blocks are free, but they keep what they hold."),
            Turn(
                lambda f: f.ahead.finds or (f.num_hit_tokens and not is_shared(f)),
                "A request that begins alike finds them, and takes them out of the free queue: they are reused, and "
                "only the rest of its prompt is computed.",
                "No request found blocks that were free: what is found are full blocks whose every token, and all "
                "before it, is the same.",
            ),
            Turn(is_shared, "One more finds them while they are in use: now the blocks are shared."),
        ),
        {"max_num_batched_tokens": 16, "enable_prefix_caching": True},
        room=0.84,
        beginning=FRIENDS,
    ),
    Scenario(
        "preemption",
        "Giving way",
        "the pool runs dry: the last in line loses its blocks, and is computed again",
        (Arrival(0, RICHARD, 16), Arrival(1, JULIET, 16)),
        (
            Turn(step_is(1), "Nobody knows how long a text will get, so blocks are handed out as they are needed."),
            PREEMPTED,
            Turn(
                lambda f: gave_way(f) and not f.preempted,
                "It keeps its words. Only K and V are gone, and they can be computed again.",
            ),
            Turn(is_back, "There is room again. Prompt and words are computed like one long prompt."),
        ),
        room=0.7,
        runs_dry=True,
    ),
    Scenario(
        "swap",
        "Saved, not lost",
        "the pool runs dry: the blocks of the last in line are saved in a second memory",
        (Arrival(0, RICHARD, 16), Arrival(1, JULIET, 16)),
        (
            Turn(step_is(1), "As in `preemption`, but there is a second memory to put blocks into."),
            Turn(
                lambda f: f.swap_out or f.ahead.gives_way,
                "The pool is dry. The blocks of the last in line are copied out, and are free here.",
                "Nothing was saved: there was always a free block, or too little swap space.",
            ),
            Turn(lambda f: f.swapped and not f.swap_out, "It waits with all its K and V, until there is room again."),
            Turn(
                lambda f: f.swap_in or f.ahead.returns,
                "Back again, in other blocks: only the table has changed, and nothing is computed twice.",
            ),
        ),
        {"preemption": "swap"},
        room=0.7,
        runs_dry=True,
    ),
    Scenario(
        "quantized",
        "Nearly four times the blocks",
        "K and V in one byte a number: the memory of 9 blocks holds many more",
        (Arrival(0, RICHARD, 16), Arrival(1, JULIET, 16), Arrival(2, ROMEO, 12)),
        (
            Turn(step_is(1), "The memory is as small as in `preemption`, but a number takes one byte instead of four."),
            Turn(lambda f: len(f.running) > 2, "All run at once where there was no room for that: it has more blocks."),
            Turn(
                lambda f: f.finished and not any(seq.num_preemptions for seq in f.all_sequences),
                "Nobody had to give way. The price: each K and V is rounded to 8 bits.",
            ),
        ),
        {"kv_cache_dtype": "int8"},
        room=0.45,
        runs_dry=True,  # in float32
    ),
    PARTIAL,
    EVICTION,
    ADMISSION,
    TIER,
    HAND_OVER,
    WINDOW,
    SPECULATION,
    KERNEL,
)
SCENARIOS = {scenario.name: scenario for scenario in ALL}
DEFAULT = "continuous-batching"
