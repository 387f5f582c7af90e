"""Checkpoints for the engine's tests: one that speaks in token ids, and one with a tokenizer."""

import pytest
from engine.checkpoints import VOCAB, Dense, save_gpt2, save_tokenizer

from minipage.engine import LLM


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a GPT-2 with 60 tokens, a context of 64, and no tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    save_gpt2(folder)
    return folder


@pytest.fixture(scope="session")
def dense(tiny):
    return Dense(tiny)


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """The folder of a GPT-2 with a byte-level tokenizer of 300 tokens; token 0 ends a text."""
    folder = tmp_path_factory.mktemp("talker")
    save_tokenizer(folder)
    save_gpt2(folder, seed=1, vocab_size=300, eos_token_id=0)
    return folder


@pytest.fixture(scope="session")
def make_prompt():
    """The `i`-th of endlessly many different prompts of token ids."""

    def prompt(i, length=10):
        return [(7 * i + 11 * j * j + 3 * i * j) % (VOCAB - 1) for j in range(length)]

    return prompt


@pytest.fixture
def llm(tiny):
    return LLM(tiny, block_size=4, num_blocks=64)
