"""Proposers of drafts that tests hand in: what they guess is known to be right, wrong, or both by turns."""

from minipage.engine.drafts import DraftModel
from minipage.engine.llm import LLM
from minipage.engine.speculation import Speculation


def speculate(llm, proposer, num_tokens=4):
    """Whatever the clock says, for a start; see test_account.py."""
    llm.speculation = Speculation(llm, {"num_speculative_tokens": num_tokens, "only_if_quicker": False}, LLM)
    llm.speculation.proposer = proposer
    if hasattr(llm, "overlap"):  # which was made before
        llm.overlap._speculation = llm.speculation
    return llm.speculation


class Knowing:
    """Knows how texts go on: `texts` is a list of token ids, prompt included. `wrong(place)` says where it lies."""

    def __init__(self, texts, wrong=lambda place: False):
        self.texts = texts
        self.wrong = wrong

    def propose(self, texts, counts):
        return [self.after(text, count) for text, count in zip(texts, counts)]

    def after(self, text, count):
        known = next((each for each in self.texts if each[: len(text)] == text and len(each) > len(text)), text)
        drafts = known[len(text) : len(text) + count]
        return [token ^ 1 if self.wrong(len(text) + i) else token for i, token in enumerate(drafts)]


class SameModel(DraftModel):
    """The same model, which lies at every fourth place: right for greedy texts, otherwise wrong for the most part."""

    def __init__(self, folder, vocab_size):
        super().__init__(str(folder), LLM, vocab_size)

    def propose(self, texts, counts):
        return [
            [token ^ 1 if (len(text) + i) % 4 == 3 else token for i, token in enumerate(drafts)]
            for text, drafts in zip(texts, super().propose(texts, counts))
        ]
