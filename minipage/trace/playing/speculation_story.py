"""The story of speculative decoding: three guesses, two accepted, one slot returned."""

from __future__ import annotations

from collections.abc import Callable

from minipage.trace.playing.cues import step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.recording.frames import Frame

WHEREFORE = "JULIET:\nO Romeo, Romeo, wherefore art thou Romeo?\n\nJULIET:\nO Romeo,"


def is_told(words: str) -> Callable[[Frame], bool]:
    return lambda frame: any(words in event for event in frame.events)


SPECULATION = Scenario(
    "speculation",
    "Steps ahead",
    "three guesses, two accepted, one slot returned: several tokens in one step",
    (Arrival(0, WHEREFORE, 24, {"temperature": 0}),),
    (
        Turn(step_is(1), "Each step reads all weights, and makes one token. Could it make more of them?"),
        Turn(
            lambda f: any(seq.drafts for seq in f.sequences),
            "Its last words were there before. What followed them then is a guess how it goes on: the guesses get "
            "slots ahead (with a question mark), and are computed with the last token, in one step.",
            "Nothing was guessed: no word of the text was there before, or there was no room.",
        ),
        Turn(
            is_told("2 of its 3 guesses"),
            "Three guesses, two accepted, one slot returned. In place of the wrong one stands what the model says "
            "there.",
        ),
        Turn(is_told("all of its 3 guesses"), "All were right: one step, four tokens."),
        Turn(
            is_told("none of its"),
            "All were wrong. The slots go back, and the step has made one token, as it would have without guesses.",
        ),
        Turn(
            lambda f: f.finished,
            "The text is what it would have been without guesses, token by token. It took fewer steps.",
        ),
    ),
    {
        "max_num_batched_tokens": 32,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "only_if_quicker": False},
    },
)
