"""Lesson 2: attention against one score at a time, and the real GPT with a cache against the same GPT without one."""

import numpy as np

from minipage.learn.graders.common import every, expect
from minipage.learn.graders.numbers import TAME, WILD, Untouched, assert_close, attention_of, texts
from minipage.learn.judge import Wrong
from minipage.model.architecture import Model
from minipage.model.checkpoint import stored_shapes
from minipage.model.dense import dense_attend
from minipage.model.gpt2 import GPT2
from minipage.model.layers.plain import PlainLayers

TINY = GPT2(vocab_size=40, n_positions=32, n_embd=8, n_layer=2, n_head=2)
MANY = GPT2(vocab_size=50_000, n_positions=32, n_embd=4, n_layer=1, n_head=1)  # as many as GPT-2 has


def oracle(q, k, v):
    scale, hidden = q.shape[-1] ** -0.5, len(k) - len(q)
    rows = [attention_of(row, k[: hidden + i + 1], v[: hidden + i + 1], scale) for i, row in enumerate(q)]
    return np.stack(rows)  # [n, H, D]


@every(before=range(4), n=range(1, 4), num_heads=range(1, 3), seed=range(4), wild=range(2))
def test_2_1_causal_attention(impl, before, n, num_heads, seed, wild):
    check_causal(impl, before, n, num_heads, seed, wild)


def test_2_1_of_a_long_text(impl):
    for before, n in ((300, 1), (60, 9), (0, 70)):
        check_causal(impl, before, n, 2, seed=1, wild=0)


def check_causal(impl, before, n, num_heads, seed, wild):
    rng = np.random.default_rng([before, n, num_heads, seed])
    q, k, v = texts(rng, n, before + n, num_heads, num_heads, 1 + seed, wild=bool(wild))  # [n, H, D], each [T, H, D]
    lent = Untouched(q=q, k=k, v=v)
    impl.diary.begin()
    impl.diary.note(f"causal_attention(q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)})")
    why = (
        f"Query i is token {before} + i of {before + n}, and sees tokens 0 to {before} + i: itself, what is before it, "
        "and nothing after it. Scores are q · k / sqrt(D), softmax runs over the tokens, of each head by itself."
    )
    if wild:
        scores = np.einsum("nhd,thd->nht", q, k) * q.shape[-1] ** -0.5  # [n, H, T]
        impl.diary.note(f"the scores of head 0, from each query to each token: {np.rint(scores[:, 0]).tolist()}")
        why += (
            " The scores are large here. Take the highest score off, of each query and head by itself and of the "
            "tokens that it sees, and nothing overflows or vanishes; for a mask, -1000 is not small enough, -inf is."
        )
    with np.errstate(all="ignore"):
        got = impl.causal_attention(q, k, v)
    if wild and isinstance(got, np.ndarray) and np.isnan(got).any():
        raise Wrong(
            "NaN came out. np.exp(3000) is inf, and inf / inf is NaN; 0 / 0 is, too, if a highest score is taken off "
            "that is another query's, another head's or of a token that cannot be seen. Take the highest score off, of "
            "each query and head by itself, among the tokens that it sees: softmax does not change."
        )
    lent.check()
    assert_close("the result", got, oracle(q, k, v), why, WILD if wild else TAME, size=np.abs(v).max())


@every(first=range(1, 4), second=range(1, 3), seed=range(2))
def test_2_2_cached_attention(impl, first, second, seed):
    calls = ("attend", first), ("another", 1), ("attend", second), ("attend", 1), ("another", 2)
    check_cached(impl, calls, seed=[first, second, seed])


def test_2_2_of_a_long_text(impl):
    check_cached(impl, [("attend", 30), *[("attend", 1)] * 40], seed=0)


def check_cached(impl, calls, seed):
    """`calls`: which of the two, and how many new tokens."""
    rng = np.random.default_rng(seed)
    caches = {"attend": impl.CachedAttention(), "another": impl.CachedAttention()}
    impl.diary.begin()
    impl.diary.note("attend, another = CachedAttention(), CachedAttention()")
    kept = {}  # (which of the two, layer): all K and all V
    for name, n in calls:
        for layer in (2, 0, 1):
            q, k, v = texts(rng, n, n, 2, 2, 2)  # each [n, H, D]
            keys, values = kept.setdefault((name, layer), ([], []))
            keys.extend(k.copy())
            values.extend(v.copy())
            impl.diary.note(f"{name}({layer}, q, k, v) with {n} new tokens, after {len(keys) - n} others")
            why = (
                "The new tokens attend to all K and V of this layer so far, in order, and then to their own; each once."
            )
            if name == "another":
                why += " Another CachedAttention is another text: keep K and V in self, not in the class."
            lent = Untouched(q=q, k=k, v=v)
            got = caches[name](layer, q, k, v)
            lent.check()
            assert_close("the result", got, oracle(q, np.stack(keys), np.stack(values)), why, size=4)


class Watched(Model):
    """A GPT that notes which positions it is asked to compute, call by call."""

    def __init__(self, seed, gpt2=TINY):
        rng = np.random.default_rng(seed)
        weights = {name: rng.normal(0, 0.5, shape) for name, shape in stored_shapes(gpt2).items()}
        weights |= {
            "ln_f.weight": np.ones(gpt2.n_embd),
            "ln_f.bias": np.zeros(gpt2.n_embd),
        }  # or one word always wins
        super().__init__(gpt2, PlainLayers(gpt2, gpt2.adapt(lambda name, shape: weights[name])))
        self.calls = []

    def forward(self, token_ids, positions, attend):
        if len(np.shape(token_ids)) != 1 or np.shape(token_ids) != np.shape(positions):
            why = "model.forward takes two arrays [n]: the tokens, and the position of each."
            raise Wrong(why, "two of one length", (np.shape(token_ids), np.shape(positions)), "the shapes")
        self.calls.append(np.asarray(positions).tolist())
        return super().forward(np.asarray(token_ids), np.asarray(positions), attend)


def greedy(model, prompt, num_tokens):
    """Everything again for every token, with no cache at all."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        hidden = Model.forward(model, np.array(tokens), np.arange(len(tokens)), dense_attend)  # [T, C]
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


@every(num_prompt=range(1, 6), num_tokens=range(5), seed=range(2))
def test_2_3_generate(impl, num_prompt, num_tokens, seed):
    prompt = [(7 * i + seed) % 40 for i in range(num_prompt)]
    check_generate(impl, Watched(seed), prompt, num_tokens)


def test_2_3_a_prompt_may_repeat_itself(impl):
    for prompt in ([5, 5], [3, 9, 3, 3, 9, 1], [0] * 5):
        check_generate(impl, Watched(1), prompt, 3)


def test_2_3_tokens_may_be_large_numbers(impl):
    check_generate(impl, Watched(9, MANY), [49_999, 300, 40_000], 4)


def check_generate(impl, model, prompt, num_tokens):
    impl.diary.begin()
    impl.diary.note(f"generate(model, prompt={prompt}, num_tokens={num_tokens})")
    due = greedy(model, prompt, num_tokens)
    lent = list(prompt)
    got = impl.generate(model, lent, num_tokens)
    expect("the prompt afterwards", lent, prompt, "The list that was handed in belongs to somebody else: copy it.")
    why = "A list of the new tokens comes back."
    if not isinstance(got, list):
        expect("the tokens", got, due, why)
    expect("the number of tokens", len(got), num_tokens, "num_tokens new ones come back, and the prompt does not.")
    num_prompt = len(prompt)
    alone = [[position] for position in range(num_prompt, num_prompt + num_tokens - 1)]
    calls = [list(range(num_prompt)), *alone] if num_tokens else []
    why = (
        "Each token is computed once, at its own position: all of the prompt first and at once, at 0, 1, ..., then "
        "each new token by itself (positions one too high are nano-vllm #67). The last token that comes out is never "
        "put in, so for no tokens nothing is computed."
    )
    expect("the positions that were computed, in each call of forward", model.calls, calls, why)
    expect("the tokens", got, due, "The next token has the largest logit of the last one.")
