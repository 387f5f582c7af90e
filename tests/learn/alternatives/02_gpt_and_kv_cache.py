"""Lesson 2 in another style: one query at a time, lists of rows, and a first step that is like all others."""

import numpy as np


def causal_attention(q, k, v):
    out = np.zeros(q.shape, q.dtype)
    for row in range(len(q)):
        seen = len(k) - len(q) + row + 1
        for h in range(q.shape[1]):
            scores = k[:seen, h] @ q[row, h] * q.shape[-1] ** -0.5
            weights = np.exp(scores - scores.max())
            out[row, h] = weights @ v[:seen, h] / weights.sum()
    return out


KEPT: dict = {}


class CachedAttention:
    def __init__(self):
        self.kept = {}

    def __call__(self, layer, q, k, v):
        keys, values = self.kept.setdefault(layer, ([], []))
        keys.extend(k)
        values.extend(v)
        return causal_attention(q, np.stack(keys), np.stack(values))


def generate(model, prompt, num_tokens):
    attend, new, position, out = CachedAttention(), list(prompt), 0, []
    for _ in range(num_tokens):
        places = position + np.arange(len(new))
        hidden = model.forward(np.asarray(new), places, attend)
        position += len(new)
        new = [int(np.argmax(model.logits(hidden[[-1]])[0]))]
        out += new
    return out
