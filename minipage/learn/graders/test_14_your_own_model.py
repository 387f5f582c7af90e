"""Lesson 14: turns against complex numbers, heads one at a time, and the bytes of models that people run."""

from cmath import exp
from random import Random

import numpy as np

from minipage.learn.graders.common import every, expect, passes
from minipage.learn.graders.numbers import Untouched, assert_close, attention_of, normal
from minipage.learn.judge import Wrong

THETAS = 10_000.0, 500_000.0, 7.0
TURNED = 3e-4  # of the largest number: an angle of 1,000 is off by 6e-5 in float32


def turned(x, positions, theta, interleaved=False):
    """[T, n, D]: each pair is a complex number, and multiplied by one of length 1. In float64, one pair at a time."""
    out = x.astype(float)  # [T, n, D]
    half = x.shape[2] // 2
    for t, position in enumerate(positions):
        for i in range(half):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            pairs = x[t, :, first].astype(float) + 1j * x[t, :, second]  # [n]
            pairs = pairs * exp(1j * float(position) * theta ** (-i / half))  # [n]
            out[t, :, first], out[t, :, second] = pairs.real, pairs.imag
    return out


def is_close(got, due):
    if not isinstance(got, np.ndarray) or got.shape != due.shape or got.dtype.kind not in "fiu":
        return False
    return bool((np.abs(got.astype(float) - due) <= TURNED * np.abs(due).max()).all())


def why_not(got, x, positions, theta):
    """What was done instead, if that can be told."""
    others = {
        "The heads turn the wrong way: [1, 0] becomes [cos, sin], and [0, 1] becomes [-sin, cos].": -positions,
        "Every position is one too high: the first token of a text stands at 0, and does not turn.": positions + 1,
        "Every position is one too low: they begin at 0 already.": positions - 1,
        "The rows were counted. Where a token stands is in `positions`: rows come from several texts.": range(len(x)),
    }
    for sentence, places in others.items():
        if is_close(got, turned(x, places, theta)):
            return sentence
    if is_close(got, turned(x, positions, theta, interleaved=True)):
        return "Neighbours were paired, 0 with 1, 2 with 3 (some models do). Here number i belongs to number i + D / 2."
    if is_close(got, x.astype(float)):
        return "Nothing was turned."
    return "Pair i turns by position * theta ** (-2 * i / D): [a cos - b sin, b cos + a sin], all a's and then all b's."


def check_turned(impl, x, positions, theta):
    impl.diary.begin()
    impl.diary.note(f"rotate(x, positions={positions.tolist()}, theta={theta}) with x = {x.round(3).tolist()}")
    lent = Untouched(x=x, positions=positions)
    got = impl.rotate(x, positions, theta)
    lent.check()
    due = turned(x, positions, theta)  # [T, n, D]
    assert_close("the result", got, due, why_not(got, x, positions, theta), TURNED, size=np.abs(due).max())
    if np.shares_memory(got, x):
        raise Wrong("The result is x itself, or a part of it: what one writes, the other reads. Make a new array.")


def test_14_1_the_examples(impl):
    """At positions that tell one mistake from another."""
    for positions in ([5, 0, 2], [7, 4, 6]):
        for head in ([1, 0], [0, 1], [1, 2, 3, 4]):
            check_turned(impl, np.array([[head]] * 3, np.float32), np.array(positions), 10_000.0)


@every(num_tokens=range(1, 4), num_heads=range(1, 3), half=range(1, 5), seed=range(4))
def test_14_1_rotate(impl, num_tokens, num_heads, half, seed):
    rng = np.random.default_rng([num_tokens, num_heads, half, seed])
    positions = rng.integers(0, (4, 60, 1000, 1000)[seed], num_tokens)  # [T]
    x = normal(rng, num_tokens, num_heads, 2 * half).astype(float if seed == 3 else np.float32)  # [T, n, D]
    check_turned(impl, x, positions, THETAS[seed % 3])


def test_14_1_theta_has_a_default(impl):
    x, positions = np.ones((2, 1, 8), np.float32), np.array([3, 0])  # [T, n, D], [T]
    impl.diary.begin()
    impl.diary.note("rotate(x, positions=[3, 0]) with x = ones [2, 1, 8], and no theta")
    due = turned(x, positions, 10_000.0)  # [T, n, D]
    assert_close("the result", impl.rotate(x, positions), due, "theta is 10,000 if nothing is said.", TURNED, size=1)


HEADS = [(1, 1), (2, 1), (2, 2), (4, 2), (6, 2), (6, 3), (9, 3), (7, 1), (28, 4)]


@every(which=range(len(HEADS)))
def test_14_2_kv_head_of(impl, which):
    num_heads, num_kv_heads = HEADS[which]
    due = [kv_head for kv_head in range(num_kv_heads) for _ in range(num_heads // num_kv_heads)]
    impl.diary.begin()
    impl.diary.note(f"[kv_head_of(head, {num_heads}, {num_kv_heads}) for head in range({num_heads})]")
    got = [impl.kv_head_of(head, num_heads, num_kv_heads) for head in range(num_heads)]
    why = f"{num_heads // num_kv_heads} heads of q, one after the other, share a head of K and V. (head % num_kv_heads "
    why += "would deal them out in turn, and every head of q would read somebody else's K.)"
    expect("the heads of K and V", got, due, why)


@every(which=range(7), block_size=range(1, 4), context_len=range(1, 8, 2), size=range(1, 4))
def test_14_2_grouped_attention(impl, which, block_size, context_len, size):
    rng, (num_heads, num_kv_heads) = np.random.default_rng([which, block_size, context_len, size]), HEADS[which]
    num_used = -(-context_len // block_size)
    q = 2 * normal(rng, num_heads, size)  # [H, D]
    k, v = (normal(rng, context_len, num_kv_heads, size) for _ in range(2))  # each [n, KH, D]
    blocks = rng.permutation(num_used + 2)  # of the pool; the last two are somebody else's
    table = np.append(blocks[:num_used], [-99, 10**6])  # [max_blocks]
    caches = [np.full((num_used + 2, block_size, num_kv_heads, size), np.nan, np.float32) for _ in range(2)]
    for t in range(context_len):
        for cache, rows in zip(caches, (k, v)):
            cache[table[t // block_size], t % block_size] = rows[t]
    impl.diary.begin()
    impl.diary.note(
        f"grouped_attention(q [{num_heads}, {size}], k_cache and v_cache {list(caches[0].shape)}, "
        f"block_table={table.tolist()}, context_len={context_len})"
    )
    lent = Untouched(q=q, k_cache=caches[0], v_cache=caches[1], block_table=table)
    with np.errstate(all="ignore"):
        got = impl.grouped_attention(q, *caches, table, context_len)
    lent.check()
    due = attention_of(q, k, v, size**-0.5)  # [H, D]
    why = "Head h of q takes head h // (H / KH) of K, and of V too, of the tokens 0 to context_len - 1: "
    why += "softmax(q · k / sqrt(D)) over the tokens, then the weighted mean of v."
    assert_close("the result", got, due, why, 1e-4, size=np.abs(v).max())


DTYPES = {"float32": (4, 0), "bfloat16": (2, 0), "float16": (2, 0), "int8": (1, 4), "fp8": (1, 4)}


def due_bytes(num_layers, num_kv_heads, head_size, dtype):
    """One row at a time."""
    number, scale = DTYPES[dtype]
    return sum(head_size * number + scale for _ in range(num_layers) for _ in range(num_kv_heads) for _ in "KV")


def check_bytes(impl, config, num_kv_heads, head_size, dtype):
    lent = dict(config)
    impl.diary.begin()
    impl.diary.note(f"bytes_per_token({config}, {dtype!r})")
    due = due_bytes(config["num_hidden_layers"], num_kv_heads, head_size, dtype)
    number, scale = DTYPES[dtype]
    why = (
        f"A token has K and V (2) in {config['num_hidden_layers']} layers, each with {num_kv_heads} heads of "
        f"{head_size} numbers of {number} bytes"
    )
    why += f", and {scale} bytes of a scale for each head's K, and for its V." if scale else "."
    got = impl.bytes_per_token(lent, dtype)
    expect("the bytes of a token", got, due, why)
    if lent != config:
        raise Wrong("config was changed. It belongs to somebody else.", config, lent)


def test_14_3_the_examples(impl):
    llama = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096}
    for dtype in ("float16", "int8", "bfloat16", "fp8", "float32"):
        check_bytes(impl, llama, 32, 128, dtype)


@every(seed=range(90))
def test_14_3_bytes_per_token(impl, seed):
    draw = Random(seed)
    num_kv_heads, group, head_size = draw.randint(1, 4), draw.randint(1, 4), 2 * draw.randint(1, 40)
    num_heads = num_kv_heads * group
    config = {
        "num_hidden_layers": draw.randint(1, 6),
        "num_attention_heads": num_heads,
        "hidden_size": num_heads * head_size,
        "intermediate_size": draw.randint(1, 999),
    }
    if draw.random() < 0.4:  # a head of its own size, apart from hidden_size
        config["head_dim"] = head_size = 2 * draw.randint(1, 40)
    elif draw.random() < 0.3:
        config["head_dim"] = None
    kind = draw.choice(["grouped", "grouped", "all", "falcon", "old falcon", "no multi-query"])
    if kind == "grouped":
        config["num_key_value_heads"] = num_kv_heads
    elif kind == "all":
        num_kv_heads = num_heads
    elif kind == "falcon":
        config |= {"num_kv_heads": num_kv_heads, "multi_query": True, "new_decoder_architecture": True}
    elif kind == "old falcon":
        config |= {"multi_query": True, "new_decoder_architecture": False}
        if draw.random() < 0.6:
            config["num_kv_heads"] = num_heads  # as transformers writes it for Falcon-7B, though it is not so
        num_kv_heads = 1
    else:
        config |= {"multi_query": False, "num_kv_heads": num_heads}
        num_kv_heads = num_heads
    check_bytes(impl, config, num_kv_heads, head_size, draw.choice([*DTYPES]))


# Layers, heads of K and V, numbers in a head: from config.json of each on the Hugging Face hub.
PUBLISHED = {
    "OPT-13B": (40, 40, 128),
    "Llama-2-7B": (32, 32, 128),
    "Falcon-7B": (32, 1, 64),
    "Mistral-7B-v0.1": (32, 8, 128),
    "Llama-3.1-8B": (32, 8, 128),
    "Qwen2.5-7B": (28, 4, 128),
}


def test_14_4_published_models(impl):
    impl.diary.begin()
    impl.diary.note("published_models()")
    table = impl.published_models()
    if not isinstance(table, dict):
        raise Wrong("A dict comes back, with four numbers for each name.", dict, type(table))
    if set(table) != set(PUBLISHED):
        raise Wrong("The table has these models, each under its name above.", sorted(PUBLISHED), [*map(str, table)])
    for name, (num_layers, num_kv_heads, head_size) in PUBLISHED.items():
        row = table[name]
        if not (isinstance(row, tuple | list) and len(row) == 4):
            raise Wrong(f"{name} has four numbers, in a tuple.", "(heads, size, bytes, blocks)", row)
        heads, size, token, blocks = row
        why = "Without num_key_value_heads every head of q has its own; with multi_query all of them share one."
        expect(f"{name}: heads of K and V", heads, num_kv_heads, why)
        expect(f"{name}: numbers in a head", size, head_size, "hidden_size / num_attention_heads, here.")
        due = due_bytes(num_layers, num_kv_heads, head_size, "bfloat16")
        expect(f"{name}: bytes a token", token, due, "K and V (2), of each layer and head of them; 2 bytes a number.")
        due = 8 * 2**30 // (16 * due)
        expect(f"{name}: blocks in 8 GiB", blocks, due, "Whole blocks: 8 * 2 ** 30 bytes // (16 * bytes a token).")


@every(num_tokens=range(1, 4), num_heads=range(1, 3), half=range(1, 4), seed=range(4))
def test_14_5_move(impl, num_tokens, num_heads, half, seed):
    rng = np.random.default_rng([num_tokens, num_heads, half, seed])
    theta = THETAS[seed % 3]
    positions = rng.integers(0, 50, num_tokens)  # [T]
    by = int(rng.integers(-30, 31)) if seed else 0
    plain = normal(rng, num_tokens, num_heads, 2 * half)  # [T, n, D]
    k = turned(plain, positions, theta).astype(float if seed % 2 else np.float32)  # [T, n, D]
    impl.diary.begin()
    impl.diary.note(f"move(k, by={by}, theta={theta}), where k was turned by the positions {positions.tolist()}:")
    impl.diary.note(f"    k = {k.round(3).tolist()}")
    lent = Untouched(k=k)
    got = impl.move(k, by, theta)
    lent.check()
    due = turned(plain, positions + by, theta)  # [T, n, D]
    why = "It was turned by its position already, so turn it by `by` more: all tokens alike, all pairs."
    if by and is_close(got, turned(k, np.full(len(k), -by), theta)):
        why = "It went the other way: `by` places *later* is a turn by +by."
    elif is_close(got, turned(k, positions + by, theta)) or is_close(got, turned(k, np.arange(len(k)) + by, theta)):
        why = "Its position was turned in a second time. It is in there already: what is missing is `by`."
    assert_close("the result", got, due, why, TURNED, size=np.abs(due).max())
    if np.shares_memory(got, k):
        raise Wrong("The result is k itself: what one writes, the other reads. Make a new array, for by = 0 too.")


def test_14_5_theta_has_a_default(impl):
    k = np.ones((2, 1, 8), np.float32)  # [T, n, D]
    impl.diary.begin()
    impl.diary.note("move(k, by=3) with k = ones [2, 1, 8], and no theta")
    due = turned(k, np.full(2, 3), 10_000.0)  # [T, n, D]
    assert_close("the result", impl.move(k, 3), due, "theta is 10,000 if nothing is said.", TURNED, size=1)


def test_14_5_only_the_distance_counts(impl):
    """What moving is good for, with the learner's own turns, if they are right."""
    if not passes(impl, test_14_1_rotate):
        return
    rng = np.random.default_rng(0)
    q, k = normal(rng, 1, 1, 8), normal(rng, 1, 1, 8)  # each [T, n, D]
    impl.diary.begin()
    impl.diary.note("the score of a query at 9 with a key at 4; and of the query at 29 with that key, moved by 20")
    key = impl.rotate(k, np.array([4]), 100.0)[0, 0]  # [D]
    moved = impl.move(key[None, None], 20, 100.0)[0, 0]  # [D]
    near, far = (impl.rotate(q, np.array([place]), 100.0)[0, 0] for place in (9, 29))  # each [D]
    why = "A score depends on the distance alone, and that is still 5."
    assert_close("the score", np.array([far @ moved]), np.array([near @ key], float), why, 1e-3, size=8)
