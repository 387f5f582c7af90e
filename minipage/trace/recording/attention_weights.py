"""The attention weights of a run of your own, as arrays: who looked back at whom, in every head of a layer.

    seen = attention_weights(llm, "To be, or not to be", layer=3)
    seen.weights     [num_heads, T, T]: row t is how token t spread its attention over tokens 0 to t
    seen.words       the T tokens, as text

The kernels never make this array: they keep three numbers a query (lesson 5). It is made here from the q and K that
they were given, in float64, and what it gives with V is compared with what they returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minipage.errors import InvalidRequestError
from minipage.simd.arrays import Floats
from minipage.trace.recording.meanwhile import replaced

if TYPE_CHECKING:
    from minipage.engine.llm import LLM
    from minipage.sampling import SamplingParams

Attend = Callable[[int, Any, Any, Any], Any]  # see minipage/model/architecture.py


class AttentionWeights(NamedTuple):
    words: list[str]  # the tokens that were computed: the prompt, and all that was generated but the last
    weights: Floats  # [num_heads, T, T]; each row sums to 1, and is 0 behind its own token
    largest_difference: float  # between weights @ V and what the kernel returned


def attention_weights(llm: LLM, prompt: str, params: SamplingParams | None = None, layer: int = 0) -> AttentionWeights:
    """Run one prompt and collect. Raises InvalidRequestError if there is no such layer, or others are being served."""
    if not 0 <= layer < llm.model.kv.num_layers:
        raise InvalidRequestError(f"layer is {layer}; this model has layers 0 to {llm.model.kv.num_layers - 1}.")
    if llm.has_unfinished_requests():
        raise InvalidRequestError("other requests are being served; let them finish first: only one text is looked at.")
    rows: dict[int, tuple[Floats, ...]] = {}  # position -> its q, k, v and result; computed again, it is the same
    tokens: dict[int, int] = {}
    model_forward = llm.model.forward

    def forward(token_ids: Any, positions: Any, attend: Attend) -> Any:
        def watched(number: int, q: Any, k: Any, v: Any) -> Any:
            out = attend(number, q, k, v)  # [num_tokens, num_heads, head_size]
            if number == layer:
                for i, position in enumerate(np.asarray(positions).tolist()):
                    rows[position] = tuple(np.array(x[i], np.float64) for x in (q, k, v, out))
                    tokens[position] = int(token_ids[i])
            return out

        return model_forward(token_ids, positions, watched)

    with replaced(llm.model, "forward", forward):
        llm.generate(prompt, params)
    q, k, v, out = (np.stack([rows[position][i] for position in sorted(rows)]) for i in range(4))
    weights = softmax_of(q, k, llm.config.num_heads)  # [num_heads, T, T]
    group = weights.shape[0] // v.shape[1]
    result = np.einsum("hqk,khd->qhd", weights, v.repeat(group, axis=1))  # [T, num_heads, head_size]
    ids = [tokens[position] for position in sorted(tokens)]
    words = [llm.tokenizer.token_text(token) if llm.tokenizer else str(token) for token in ids]
    return AttentionWeights(words, weights, float(abs(result - out).max()))


def softmax_of(q: Floats, k: Floats, num_heads: int) -> Floats:
    """q: [T, num_heads, head_size]; k: [T, num_kv_heads, head_size]. Returns [num_heads, T, T]."""
    k = k.repeat(num_heads // k.shape[1], axis=1)  # [T, num_heads, head_size]
    scores = np.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5  # [num_heads, T, T]
    scores[:, ~np.tri(len(q), dtype=bool)] = -np.inf  # nobody looks ahead
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))  # [num_heads, T, T]
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
