"""The settings of a training run, and what they may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from minipage.errors import ConfigurationError

MOST = 10**8  # of anything; then the bytes of a matrix can be counted


def setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": f"{meaning} (default: {default})"})


@dataclass(frozen=True)
class Settings:
    """All that decides what is learned from a text. Each is an option of the command line as well."""

    vocab_size: int = setting(2000, "words of the BPE tokenizer, at most 10000")
    context: int = setting(512, "longest sequence, in tokens")
    n_layer: int = setting(4, "layers")
    n_head: int = setting(4, "attention heads")
    n_embd: int = setting(256, "width of the network, a multiple of the heads")
    steps: int = setting(2500, "training steps")
    batch: int = setting(32, "windows of text in a step")
    learning_rate: float = setting(3e-3, "the highest, after 100 steps; it falls in half a cosine")
    weight_decay: float = setting(0.1, "pull of matrices towards zero")
    dropout: float = setting(0.15, "share of weights and of attention dropped in a step")
    bpe_dropout: float = setting(0.4, "share of merges skipped at first; it falls in a line to none")
    respell_every: int = setting(25, "steps between two spellings of the text")
    average: float = setting(0.998, "decay of the running average of weights")
    validate_every: int = setting(250, "steps between two validations, with a checkpoint after each")
    seed: int = setting(1, "where all random draws start")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = 10_000 if name == "vocab_size" else MOST
            if isinstance(value, float) and not 0 <= value < 1:
                raise ConfigurationError(f"{name} is {value}; it must be at least 0 and less than 1.")
            if isinstance(value, int) and not 1 <= value <= most:
                raise ConfigurationError(f"{name} is {value}; it must be a whole number from 1 to {most:,}.")
        if self.n_embd % self.n_head:
            raise ConfigurationError(f"n_embd must be a multiple of n_head; {self.n_embd} is none of {self.n_head}.")
