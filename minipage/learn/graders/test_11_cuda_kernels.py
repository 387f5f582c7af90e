"""Lesson 11: kernels, thread by thread, forwards and backwards, with NaN wherever nothing should be read."""

import numpy as np

from minipage.learn.graders.common import every
from minipage.learn.graders.fake_cuda import launch
from minipage.learn.graders.numbers import assert_close, attention_of, normal


@every(num_copies=range(4), n=range(1, 4), backwards=range(2))
def test_11_1_copy_blocks_kernel(impl, num_copies, n, backwards):
    num_blocks = 2 * num_copies + 1
    cache = np.arange(num_blocks * n, dtype=np.float32).reshape(num_blocks, n)  # [num_blocks, n]
    sources = np.arange(num_copies) * 2 + 1  # [num_copies]
    destinations = np.arange(num_copies) * 2  # [num_copies]
    due = cache.copy()  # [num_blocks, n]
    due[destinations] = cache[sources]
    impl.diary.begin()
    impl.diary.note(f"sources={sources.tolist()}, destinations={destinations.tolist()}")
    impl.diary.note(f"cache={cache.tolist()}")
    arguments = {"cache": cache, "sources": sources, "destinations": destinations}
    launch(impl.module, "copy_blocks_kernel", num_copies * n, arguments, {"cache"}, bool(backwards))
    why = "Thread i copies number i % n of block sources[i // n] to the same place in block destinations[i // n]."
    assert_close("cache", cache, due, why)


@every(first=range(1, 5), second=range(1, 5), group=range(1, 3), num_kv_heads=range(1, 3), size=range(1, 4))
def test_11_2_paged_attention_kernel(impl, first, second, group, num_kv_heads, size):
    rng, lens, num_heads = np.random.default_rng(0), [first, second], group * num_kv_heads
    num_blocks = 2 + sum(-(-n // size) for n in lens)
    k_cache = np.full((num_blocks, size, num_kv_heads, 2), np.nan, np.float32)  # [num_blocks, size, KH, D]
    v_cache = k_cache.copy()  # [num_blocks, size, KH, D]
    tables = np.full((2, 5), -99)  # [num_seqs, max_blocks]
    places = iter(rng.permutation(num_blocks))
    q = normal(rng, 2, num_heads, 2) * 20  # [num_seqs, H, D]; large, so that scores overflow an exp
    due = np.zeros(q.shape, np.float32)  # [num_seqs, H, D]
    for s, n in enumerate(lens):
        k, v = normal(rng, n, num_kv_heads, 2) * 20, normal(rng, n, num_kv_heads, 2)  # each [n, KH, D]
        for i in range(-(-n // size)):
            tables[s, i] = block = next(places)
            part = slice(i * size, (i + 1) * size)
            k_cache[block, : len(k[part])], v_cache[block, : len(v[part])] = k[part], v[part]
        due[s] = attention_of(q[s], k, v, 0.5)
    out = np.full(q.shape, 7e7, np.float32)  # [num_seqs, H, D]
    impl.diary.begin()
    impl.diary.note(f"{num_heads} heads over {num_kv_heads} of K and V; blocks of {size} tokens")
    impl.diary.note(f"context_lens={lens}, block_tables={tables.tolist()}")
    arguments = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "block_tables": tables}
    arguments |= {"context_lens": np.array(lens), "scale": 0.5, "out": out}
    try:
        launch(impl.module, "paged_attention_kernel", 2 * num_heads, arguments, {"out"})
    except OverflowError:
        out[:] = np.nan
    why = (
        "Thread i has sequence i // H and head i % H, and its K and V in head h // (H // KH) of block "
        "block_tables[sequence, token // block_size], at offset token % block_size. out holds rubbish at first; the "
        "weights are exp(score - highest), and their sum divides the result in the end."
    )
    assert_close("out", out, due, why, tolerance=1e-3)
