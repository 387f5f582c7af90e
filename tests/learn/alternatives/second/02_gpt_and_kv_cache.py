"""Lesson 2 in a third style: PyTorch's softmax, float64 inside, a cache that grows by doubling, and recursion."""

from dataclasses import dataclass, field

import numpy as np
import torch


def causal_attention(q, k, v):
    n, num_tokens = len(q), len(k)
    scores = np.einsum("nhd,thd->hnt", q.astype(float), k.astype(float)) / np.sqrt(q.shape[2])
    scores[:, ~np.tri(n, num_tokens, num_tokens - n, dtype=bool)] = -np.inf
    weights = torch.softmax(torch.from_numpy(scores), dim=2)
    return torch.einsum("hnt,thd->nhd", weights, torch.from_numpy(v.astype(float))).numpy()


@dataclass
class Room:
    """As many rows as there are, in an array that has room for more."""

    rows: np.ndarray
    used: int = 0

    def add(self, new):
        while self.used + len(new) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self.rows[self.used : self.used + len(new)] = new
        self.used += len(new)
        return self.rows[: self.used]


@dataclass
class CachedAttention:
    rooms: dict = field(default_factory=dict)

    def __call__(self, layer, q, k, v):
        if layer not in self.rooms:
            self.rooms[layer] = Room(np.zeros((1, *k.shape[1:]))), Room(np.zeros((1, *v.shape[1:])))
        keys, values = self.rooms[layer]
        return causal_attention(q, keys.add(k), values.add(v))


def generate(model, prompt, num_tokens):
    def more(new, start, attend, left):
        if left == 0:
            return []
        hidden = model.forward(np.array(new), np.arange(start, start + len(new)), attend)
        token = model.logits(hidden[-1:]).argmax()
        return [token, *more([token], start + len(new), attend, left - 1)]

    return more(prompt, 0, CachedAttention(), num_tokens)
