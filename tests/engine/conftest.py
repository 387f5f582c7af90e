"""Checkpoints for the engine's tests: one that speaks in token ids, and one with a tokenizer.

With `--cuda=device` these tests run on a GPU: every LLM that does not say where it wants to be is there.
"""

import os

import pytest
import torch
from engine.checkpoints import SAVE, VOCAB, Dense, save_gpt2, save_tokenizer

from minipage.engine.llm import LLM


def on_the_gpu(init):
    """LLM.__init__ with other defaults. What a test wants to see of attention, it sees in NumPy arrays."""

    def init_there(self, *args, **options):
        if "device" not in options:
            options["device"] = "cuda"
            options.setdefault("async_scheduling", False)  # tests look at steps one by one, except for test_overlap.py
            if options.get("arrays") == "numpy":
                del options["arrays"]
            if callable(options.get("attention")):
                options["attention"] = in_numpy(options["attention"])
            elif options.get("attention") in ("cpu", "loops", "reference"):
                del options["attention"]
        init(self, *args, **options)

    return init_there


def in_numpy(attention):
    def call(*arguments, **options):
        on_host = [a.cpu().numpy() if isinstance(a, torch.Tensor) else a for a in arguments]
        return torch.from_numpy(attention(*on_host, **options)).cuda()

    return call


@pytest.fixture(autouse=True, scope="module")
def where_engines_are(few_blocks):
    if os.environ.get("MINIPAGE_TEST_CUDA") != "device":
        yield
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LLM, "__init__", on_the_gpu(LLM.__init__))
            yield


@pytest.fixture(scope="session")
def tiny(request, tmp_path_factory):
    """The folder of a model with 60 tokens, a context of 64, and no tokenizer: a GPT-2, except for `every_model`."""
    folder = tmp_path_factory.mktemp("tiny")
    SAVE[getattr(request, "param", "gpt2")](folder)
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
