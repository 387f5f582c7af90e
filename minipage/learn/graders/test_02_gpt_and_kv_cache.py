"""Lesson 2: attention against one score at a time, and the real GPT with a cache against the same GPT without one."""

import numpy as np

from minipage.learn.graders.common import every, expect
from minipage.learn.graders.numbers import assert_close, attention_of, normal
from minipage.learn.judge import Wrong
from minipage.model.gpt import GPT, GPTConfig, dense_attend

TINY = GPTConfig(vocab_size=40, n_positions=32, n_embd=8, n_layer=2, n_head=2)


def oracle(q, k, v):
    scale, hidden = q.shape[-1] ** -0.5, len(k) - len(q)
    rows = [attention_of(row, k[: hidden + i + 1], v[: hidden + i + 1], scale) for i, row in enumerate(q)]
    return np.stack(rows)  # [n, H, D]


@every(before=range(4), n=range(1, 4), num_heads=range(1, 3), seed=range(3))
def test_2_1_causal_attention(impl, before, n, num_heads, seed):
    rng = np.random.default_rng(seed)
    q = normal(rng, n, num_heads, 2)  # [n, H, D]
    k, v = normal(rng, before + n, num_heads, 2), normal(rng, before + n, num_heads, 2)  # each [T, H, D]
    impl.diary.begin()
    impl.diary.note(f"causal_attention(q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)})")
    why = (
        f"Query i is token {before} + i of {before + n}, and sees tokens 0 to {before} + i: itself, what is before it, "
        "and nothing after it. Scores are q · k / sqrt(D), softmax runs over the tokens, of each head by itself."
    )
    assert_close("the result", impl.causal_attention(q, k, v), oracle(q, k, v), why)


def test_2_1_large_scores_do_not_overflow(impl):
    q = np.full((1, 1, 1), 2000.0)  # [n, H, D]
    k, v = np.array([1.0, 0.5]).reshape(2, 1, 1), np.array([3.0, 7.0]).reshape(2, 1, 1)  # each [T, H, D]
    impl.diary.begin()
    impl.diary.note("causal_attention with the scores [2000, 1000]")
    with np.errstate(all="ignore"):
        got = impl.causal_attention(q, k, v)
    why = "np.exp(2000) is inf. Take the highest score off all of them first: softmax does not change."
    if np.isnan(got).any():
        raise Wrong(why, [[[3.0]]], got)
    assert_close("the result", got, np.full((1, 1, 1), 3.0), why)


@every(first=range(1, 4), second=range(1, 3), seed=range(2))
def test_2_2_cached_attention(impl, first, second, seed):
    rng = np.random.default_rng(seed)
    attend, another = impl.CachedAttention(), impl.CachedAttention()
    impl.diary.begin()
    impl.diary.note("attend, another = CachedAttention(), CachedAttention()")
    kept = {layer: ([], []) for layer in (0, 1)}
    for n in (first, second, 1):
        for layer in (0, 1):
            q, k, v = (normal(rng, n, 2, 2) for _ in range(3))  # each [n, H, D]
            kept[layer][0].extend(k)
            kept[layer][1].extend(v)
            impl.diary.note(f"attend({layer}, q, k, v) with {n} new tokens, after {len(kept[layer][0]) - n} others")
            why = (
                "The new tokens attend to all K and V of this layer so far, in order, and then to their own; each once."
            )
            due = oracle(q, np.stack(kept[layer][0]), np.stack(kept[layer][1]))  # [n, H, D]
            assert_close("the result", attend(layer, q, k, v), due, why)
    q, k, v = (normal(rng, 1, 2, 2) for _ in range(3))  # each [1, H, D]
    impl.diary.note("another(0, q, k, v) with 1 token")
    why = "Another CachedAttention is another text: keep K and V in self, not in the class."
    assert_close("the result", another(0, q, k, v), oracle(q, k, v), why)


class Watched(GPT):
    """A GPT that counts the tokens that it is asked to compute."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        shapes = TINY.weight_shapes()
        weights = {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
        weights |= {"ln_f.weight": np.ones(TINY.n_embd), "ln_f.bias": np.zeros(TINY.n_embd)}  # or one word always wins
        super().__init__(TINY, weights)
        self.positions = []

    def forward(self, token_ids, positions, attend):
        self.positions += np.asarray(positions).tolist()
        return super().forward(np.asarray(token_ids), np.asarray(positions), attend)


def greedy(model, prompt, num_tokens):
    """Everything again for every token, with no cache at all."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        hidden = GPT.forward(model, np.array(tokens), np.arange(len(tokens)), dense_attend)  # [T, C]
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


@every(num_prompt=range(1, 5), num_tokens=range(5), seed=range(2))
def test_2_3_generate(impl, num_prompt, num_tokens, seed):
    model = Watched(seed)
    prompt = [7 * i + seed for i in range(num_prompt)]
    impl.diary.begin()
    impl.diary.note(f"generate(model, prompt={prompt}, num_tokens={num_tokens})")
    due = greedy(model, prompt, num_tokens)
    given = list(prompt)
    got = impl.generate(model, given, num_tokens)
    expect("the number of tokens", len(got), num_tokens, "num_tokens new ones come back, and the prompt does not.")
    computed = list(range(num_prompt + num_tokens - 1)) if num_tokens else []
    why = (
        "Each token is computed once, at its own position: all of the prompt first, at 0, 1, ..., then each new "
        "token by itself (positions one too high are nano-vllm #67). The last token that comes out is never put in."
    )
    expect("the positions that were computed, in order", model.positions, computed, why)
    expect("the tokens", [int(token) for token in got], due, "The next token has the largest logit of the last one.")
    expect("the prompt afterwards", given, prompt, "The list that was handed in belongs to somebody else: copy it.")
