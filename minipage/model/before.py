"""What `minipage.model.gpt` held, for one more version: today it is in gpt2.py, architecture.py, dense.py, layers/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from minipage.model.architecture import Array, Attend, Model
from minipage.model.checkpoint import stored_shapes
from minipage.model.dense import dense_attend
from minipage.model.gpt2 import GPT2
from minipage.model.layers.plain import PlainLayers, gelu

__all__ = ["GPT", "Array", "Attend", "GPTConfig", "dense_attend", "gelu"]


class GPTConfig(GPT2):
    """GPT2, and the shapes that its weights have in a checkpoint."""

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return stored_shapes(self)


class GPT(Model):
    """Model(architecture, PlainLayers(...)), made of the weights of a checkpoint: `weights` by its names."""

    def __init__(self, config: GPT2, weights: Mapping[str, Array]) -> None:
        ours = GPT2(**asdict(config) | {"tie_word_embeddings": "lm_head.weight" not in weights})
        given = {} if "h.0.attn.c_attn.weight" in weights else dict(weights)  # already by our names
        super().__init__(ours, PlainLayers(ours, given or ours.adapt(lambda name, shape: weights[name])))
        self.config = ours
        self.weights = weights
