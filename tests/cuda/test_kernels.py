"""The engine's kernels: every kind of numbers, every size that decides how they are cut, against attention in NumPy."""

import numpy as np
import pytest
from where import SIMULATOR, from_gpu, long, on_gpu, takes_long

from minipage.attention import KVCache, cuda, reference, write_kv
from minipage.attention.arguments import LARGEST_LENGTH
from minipage.attention.cuda import launch
from minipage.attention.cuda.compat import has_warpgroups
from minipage.simd.halves import from_bfloat16, to_bfloat16

Q = {
    "float32": (lambda x: x, lambda x: x, 1e-5),
    "float16": (lambda x: x.astype(np.float16), lambda x: x.astype(np.float32), 4e-3),
    "bfloat16": (to_bfloat16, from_bfloat16, 2e-2),
}
KV = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8, "fp8": np.uint8}
POISON = {np.float32: np.nan, np.float16: np.nan, np.uint16: 0x7FC0, np.int8: 99, np.uint8: 0x7F}


class Batch:
    """A ragged batch; what no token owns is poison: NaN, or the NaN of fp8, or a NaN of a scale."""

    def __init__(self, lengths, q, kv, num_kv_heads, group, head_size, block_size, seed=0, window=None):
        encode, self.decode, self.tolerance = Q[q]
        rng = np.random.default_rng(seed)
        contexts, queries = (np.array(column) for column in zip(*lengths))
        blocks_of = -(-contexts // block_size)
        num_blocks = int(blocks_of.sum()) + 2
        cache = KVCache(1, num_blocks, block_size, num_kv_heads, head_size, KV[kv])
        for array in cache.arrays[:2]:
            array[...] = POISON[KV[kv]]
        for array in cache.arrays[2:]:
            array[...] = np.nan
        layer = [array[0] for array in cache.arrays]
        self.tables = np.full((len(lengths), blocks_of.max(initial=0) + 1), 10**6, np.int32)
        free = iter(rng.permutation(num_blocks))
        for s, context in enumerate(contexts):
            blocks = self.tables[s, : blocks_of[s]]
            blocks[:] = [next(free) for _ in blocks]
            first = 0 if window is None else max(0, context - queries[s] + 1 - window)
            slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[:context]
            k, v = rng.standard_normal((2, context, num_kv_heads, head_size)).astype(np.float32)
            write_kv(k[first:], v[first:], *layer[:2], slots[first:], *layer[2:])
            blocks[: first // block_size] = -1  # given back, and nothing that can be read
        self.q = encode(rng.standard_normal((queries.sum(), num_kv_heads * group, head_size)).astype(np.float32))
        self.k, self.v, *self.scales = layer
        self.contexts, self.starts = contexts, np.concatenate([[0], queries.cumsum()])
        self.scale = head_size**-0.5
        self.options = {} if window is None else {"window": window}

    def check(self, attention=cuda.paged_attention):
        given = self.k, self.v, self.tables, self.contexts, self.starts, self.scale, *self.scales
        expected = reference.paged_attention(self.decode(self.q), *given, **self.options)
        out = self.decode(from_gpu(attention(on_gpu(self.q), *map(on_gpu, given), **self.options)))
        assert not np.isnan(out).any(), "NaN came out: something was read that no token of the sequence owns"
        assert np.abs(out - expected).max() <= self.tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("q", "kv", "sizes"),
    [
        *((q, kv, (1, 1, 64)) for q in Q for kv in ("same", "int8", "fp8")),
        *((q, kv, (1, 4, 128)) for q, kv in (("float32", "int8"), ("float16", "fp8"), ("bfloat16", "same"))),
        *(long(q, kv, (1, 4, 128)) for q, kv in (("float32", "same"), ("float16", "int8"), ("bfloat16", "fp8"))),
        *(long(q, kv, (1, 4, 128)) for q, kv in (("float32", "fp8"), ("float16", "same"), ("bfloat16", "int8"))),
    ],
    ids=str,
)
def test_every_kind_of_numbers(q, kv, sizes):
    Batch([(37, 1), (5, 5)], q, q if kv == "same" else kv, *sizes, block_size=16).check()


@pytest.mark.parametrize("kv", ["int8", long("fp8")])
@pytest.mark.parametrize("of_q, of_k, of_v", [(1e6, 1e-6, 1e-9), (1e-20, 1e20, 1e9), (1, 0, 1), (0, 1, 0)])
def test_k_and_v_of_one_byte_and_queries_of_any_size(of_q, of_k, of_v, kv):
    """They are multiplied as float16, which has no number above 65,504 and few below 0.0001."""
    batch = Batch([(70, 1), (6, 5)], "bfloat16", kv, 1, 3, 64, block_size=16)
    batch.q = to_bfloat16(from_bfloat16(batch.q) * np.float32(of_q))
    batch.scales[0] *= np.float32(of_k)
    batch.scales[1][...] *= np.float32(of_v) * np.linspace(1e-4, 1, batch.scales[1].size).reshape(batch.scales[1].shape)
    batch.check()


@pytest.mark.parametrize("q, kv", [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32")])
def test_k_and_v_of_other_numbers_than_q(q, kv):
    Batch([(21, 1), (9, 4)], q, kv, 1, 2, 16, block_size=8).check()


@pytest.mark.parametrize(
    "q, kv, head_size",
    [
        ("float32", "float32", 256),
        ("float32", "float32", 33),  # in words, of which a lane has two; and 31 lanes one
        ("bfloat16", "fp8", 500),
        long("float32", "float32", 512),
        long("bfloat16", "bfloat16", 320),
        long("float16", "int8", 264),
    ],
)
def test_rows_that_a_warp_cannot_read_with_one_load(q, kv, head_size):
    Batch([(37, 1), (6, 3)], q, kv, 1, 3, head_size, block_size=16).check()


@takes_long
def test_long_rows_in_contexts_that_are_cut_into_equal_shares():
    batch = Batch([(9, 2), (700, 1), (1, 1), (300, 1)], "float32", "float32", 1, 2, 256, block_size=8)
    batch.check(lambda *given: launched(batch, given, None, extra=1000))


@pytest.mark.parametrize(
    ("which", "token", "split_size"),
    [
        *((which, token, 16) for which, token in (("k", 36), ("v", 17))),
        *(long(which, token, 16) for which, token in (("k", 17), ("v", 36))),
        *(long(which, token, 512) for which in "kv" for token in (17, 36)),
    ],
)
@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
def test_a_nan_in_k_or_v_is_seen_and_harms_no_other_sequence(q, head_size, which, token, split_size):
    batch = Batch([(37, 1), (37, 1)], q, q, 1, 2, head_size, block_size=8)
    given = [on_gpu(a) for a in (batch.q, batch.k, batch.v, batch.tables, batch.contexts, batch.starts)]
    before = batch.decode(from_gpu(launched(batch, [*given, batch.scale], split_size)))
    slot = batch.tables[0, token // 8], token % 8
    getattr(batch, which)[slot] = POISON[KV[q]]
    given[1:3] = on_gpu(batch.k), on_gpu(batch.v)
    after = batch.decode(from_gpu(launched(batch, [*given, batch.scale], split_size)))
    assert np.isnan(after[0]).all(), "a NaN was hidden"
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
def test_a_nan_in_k_is_seen_by_the_queries_of_a_prompt_that_see_its_token(q, head_size):
    batch = Batch([(20, 20)], q, q, 1, 2, head_size, block_size=8)
    batch.k[batch.tables[0, 1], 3] = POISON[KV[q]]  # token 11
    given = [on_gpu(a) for a in (batch.q, batch.k, batch.v, batch.tables, batch.contexts, batch.starts)]
    out = batch.decode(from_gpu(cuda.paged_attention(*given, batch.scale)))
    assert np.isnan(out[11:]).all() and not np.isnan(out[:11]).any()


@pytest.mark.parametrize("block_size", [1, 8, 16, 20, 32])
@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
def test_every_block_size(block_size, q, head_size):
    Batch([(50, 1), (23, 3)], q, q, 1, 2, head_size, block_size).check()


@pytest.mark.parametrize("group", [1, 3, 8, 16, 20])
@pytest.mark.parametrize("q, head_size", [("float16", 64), ("float32", 4)])
def test_every_number_of_heads_that_share_k_and_v(group, q, head_size):
    Batch([(18, 1), (7, 2)], q, q, 1, group, head_size, block_size=8).check()


def test_more_prompts_than_a_warp_has_lanes():
    """A warp looks for the sequence of a tile, at as many at a time as it has lanes."""
    Batch([(2, 2)] * 31 + [(3, 3)] * 3, "float32", "float32", 1, 1, 4, block_size=8).check()


def test_a_prompt_of_more_tokens_than_a_tile_has_rows():
    Batch([(70, 70), (90, 45), (3, 1), (1, 1)], "bfloat16", "bfloat16", 1, 1, 64, block_size=16).check()
    Batch([(30, 30), (40, 9)], "float32", "float32", 1, 1, 4, block_size=16).check()


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("kv, head_size", [("bfloat16", 64), *(long(kv, 128) for kv in ("bfloat16", "int8", "fp8"))])
def test_a_prompt_of_more_steps_than_there_are_stages(kv, head_size, window):
    """Each is filled again when all warps have read it. With a window, some warps see nothing of the first steps."""
    Batch([(250, 70)], "bfloat16", kv, 1, 1, head_size, block_size=16, window=window).check()


def test_queries_whose_window_begins_later_have_no_weights_before_it():
    """With scales of V that float16 does not hold, a weight of 1 would be infinite, and no later step makes it 0."""
    batch = Batch([(90, 80)], "bfloat16", "int8", 1, 1, 64, block_size=8, window=5)
    batch.scales[1][...] *= np.float32(1e9)
    batch.check()


@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
@pytest.mark.parametrize("split_size", [long(16), 48])
def test_contexts_that_are_cut_into_splits_of_which_each_is_the_work_of_a_block(q, head_size, split_size):
    batch = Batch([(100, 1), (9, 2), (16, 1), (17, 1)] * 2, q, q, 1, 1, head_size, block_size=8)
    batch.check(lambda *given: launched(batch, given, split_size))


@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
def test_contexts_that_are_cut_into_equal_shares(q, head_size):
    batch = Batch([(9, 2), (700, 1), (1, 1), (300, 1)], q, q, 1, 2, head_size, block_size=8)
    batch.check(lambda *given: launched(batch, given, None, extra=1000))


def blocks_of(num_warps):
    """The choice of blocks of this many warps, one for each multiprocessor."""
    return lambda *kinds: launch.widened(launch.choose_best(*kinds), num_warps, 1)


@pytest.mark.parametrize("num_warps", [4, long(8)])
@pytest.mark.parametrize("kv, head_size", [("bfloat16", 64), long("int8", 64), long("bfloat16", 128)])
def test_few_contexts_for_blocks_of_many_warps(kv, head_size, num_warps):
    batch = Batch([(1100, 1), (1, 1), (300, 1)], "bfloat16", kv, 1, 2, head_size, block_size=8)  # the first is cut
    batch.check(lambda *given: launched(batch, given, None, 1000, max_query_len=1, choose=blocks_of(num_warps)))


@pytest.mark.parametrize(
    "split_size, head_size, contexts",
    [(16, 64, ([100], [100, 9, 16, 17, 80, 70])), long(None, 128, ([700], [9, 300, 530]))],
    ids=["splits", "shares"],
)
def test_a_workspace_serves_batches_of_every_size_one_after_the_other(split_size, head_size, contexts):
    kinds = "bfloat16", "bfloat16", 1, 1, head_size
    small, large = (Batch([(n, 1) for n in each], *kinds, block_size=8) for each in contexts)
    workspace = on_gpu(np.zeros(cuda.workspace_size(6, 1, head_size, 900, split_size), np.float32))
    for batch in (small, large, small, large):
        batch.check(lambda *given, batch=batch: launched(batch, given, split_size, 100, workspace))


@pytest.mark.parametrize("kv", ["same", "int8"])
@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
@pytest.mark.parametrize("window", [long(1), 23, long(64)])
def test_a_window_for_every_kind_of_cores_and_numbers(window, q, head_size, kv):
    lengths = [(150, 1), (40, 1), (50, 50), (90, 5), (9, 2)]
    Batch(lengths, q, q if kv == "same" else kv, 1, 2, head_size, block_size=8, window=window).check()


@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
@pytest.mark.parametrize("split_size", [long(16), None])
def test_windows_that_are_cut_into_pieces(q, head_size, split_size):
    lengths = [(9, 2), (900, 1), (1, 1), (700, 1), (60, 1)]
    batch = Batch(lengths, q, q, 1, 2, head_size, block_size=8, window=640)
    batch.check(lambda *given, window: launched(batch, given, split_size, extra=1000, window=window))


@pytest.mark.parametrize(
    "q, kv, group, head_size, window, num_warps",
    [
        ("bfloat16", "same", 2, 64, None, 2),
        ("bfloat16", "same", 2, 64, None, 4),
        long("bfloat16", "int8", 2, 128, None, 8),
        ("float32", "int8", 2, 8, None, None),  # two kernels
        long("float16", "int8", 1, 64, 40, 2),
        long("bfloat16", "fp8", 4, 128, None, 2),
        long("float16", "same", 4, 128, 40, 4),
    ],
)
def test_the_newest_token_of_each_sequence_is_written_by_the_way(q, kv, group, head_size, window, num_warps):
    """It is the only one, or begins a block, or is wanted in the first step, or in a later one, or ends a step."""
    lengths = [(1, 1), (17, 1), (60, 1), (137, 1), (64, 1)]
    batch = Batch(lengths, q, q if kv == "same" else kv, 2, group, head_size, block_size=8, window=window)
    encode, decode, _ = Q[q]
    k, v = encode(np.random.default_rng(1).standard_normal((2, len(lengths), 2, head_size)).astype(np.float32))
    slots = np.array([batch.tables[s, (n - 1) // 8] * 8 + (n - 1) % 8 for s, (n, _) in enumerate(lengths)])
    slots[1] = -1  # what only fills a batch up is not written
    caches = [batch.k, batch.v, *batch.scales]
    given = [batch.tables, batch.contexts, batch.starts]
    on_device = [on_gpu(a) for a in (batch.q, batch.k, batch.v, *given)] + [batch.scale, *map(on_gpu, batch.scales)]
    options = batch.options | ({"choose": blocks_of(num_warps)} if num_warps else {})
    new = cuda.NewTokens(*map(on_gpu, (k, v, slots.astype(np.int32))))
    out = batch.decode(from_gpu(launched(batch, on_device, None, new=new, max_query_len=1, **options)))
    written = slots >= 0
    write_kv(decode(k[written]), decode(v[written]), *caches[:2], slots[written], *caches[2:])
    for found, expected in zip(map(from_gpu, [*on_device[1:3], *on_device[7:]]), caches, strict=True):
        np.testing.assert_array_equal(found, expected)
    expected = reference.paged_attention(
        decode(batch.q), *caches[:2], *given, batch.scale, *caches[2:], **batch.options
    )
    assert np.abs(out - expected).max() <= batch.tolerance * np.abs(expected).max()


def launched(batch, given, split_size, extra=100, workspace=None, window=None, max_query_len=7, new=None, **options):
    """The low-level launch, with maximum lengths that are larger than the true ones."""
    q, k, v, tables, contexts, own_starts, scale, *scales = given
    longest = int(batch.contexts.max()) + extra
    size = cuda.workspace_size(len(batch.contexts), q.shape[1], q.shape[2], longest, split_size)
    out = on_gpu(np.full(q.shape, np.nan, np.float32))
    workspace = on_gpu(np.zeros(size, np.float32)) if workspace is None else workspace
    out = out.astype(q.dtype) if q.dtype != np.uint16 else on_gpu(np.full(q.shape, 0x7FC0, np.uint16))
    tables = [array.astype(np.int32) for array in (tables, contexts, own_starts)]
    cuda.launch_attention(
        q, k, v, *tables, scale, *scales, out=out, workspace=workspace,
        max_query_len=max_query_len, max_context_len=longest, split_size=split_size, window=window, new=new, **options,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("q, head_size", [("bfloat16", 64), ("float32", 8)])
def test_a_sequence_without_a_context_reads_nothing_and_gets_zeros(q, head_size):
    batch = Batch([(20, 1), (1, 1), (40, 1)], q, q, 1, 2, head_size, block_size=8)
    expected = reference.paged_attention(
        batch.decode(batch.q), batch.k, batch.v, batch.tables, batch.contexts, batch.starts, batch.scale
    )
    batch.contexts[1], batch.tables[1] = 0, 10**6
    given = batch.q, batch.k, batch.v, batch.tables, batch.contexts, batch.starts
    out = batch.decode(from_gpu(launched(batch, [*map(on_gpu, given), batch.scale], 16)))
    assert not out[1].any()
    assert np.abs(out[[0, 2]] - expected[[0, 2]]).max() <= batch.tolerance * np.abs(expected).max()


def warpgroups(*kinds):
    """The choice of a GPU whose tensor cores read shared memory themselves."""
    return launch.with_warpgroups(launch.choose_mma(*kinds))


@pytest.mark.skipif(not SIMULATOR and not has_warpgroups(), reason="this GPU has no wgmma")
@pytest.mark.parametrize("choose", [warpgroups, *[launch.choose_mma] * (not SIMULATOR)])  # the other: of other GPUs
@pytest.mark.parametrize(
    "lengths, q, kv, group, head_size, block_size, window",
    [
        ([(20, 3), (300, 7)], "bfloat16", "same", 3, 64, 8, None),  # more steps than stages, rows of two warps
        ([(3, 2)], "float16", "same", 1, 128, 16, None),
        long([(70, 70), (90, 45), (3, 1), (1, 1), (200, 9)], "bfloat16", "same", 1, 64, 16, None),
        long([(70, 70), (90, 45), (300, 9)], "float16", "same", 4, 128, 20, None),
        long([(250, 70), (30, 30)], "bfloat16", "same", 1, 128, 16, 150),
        long([(130, 80)], "float16", "same", 2, 64, 8, 5),
        long([(300, 80)], "bfloat16", "same", 1, 64, 16, 150),
        ([(9, 3)], "bfloat16", "same", 19, 64, 8, None),  # two tiles of heads, of which one has a head less
        ([(270, 20)], "bfloat16", "int8", 1, 128, 16, 200),  # the same, and a window
        ([(20, 2)], "bfloat16", "fp8", 2, 64, 8, None),
        long([(250, 70), (30, 30)], "bfloat16", "int8", 1, 64, 16, None),
        long([(250, 70), (3, 1), (90, 45)], "bfloat16", "fp8", 4, 128, 20, 150),
    ],
    ids=str,
)
def test_prompts_by_warpgroups(lengths, q, kv, group, head_size, block_size, window, choose):
    batch = Batch(lengths, q, q if kv == "same" else kv, 2, group, head_size, block_size, window=window)
    batch.check(lambda *given, **options: launched(batch, given, None, choose=choose, **options))


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-30, 3.0, 1e9])
def test_a_scale_that_no_model_has(scale, monkeypatch):
    """The kernel of warpgroups takes the highest product for the highest score, and hides what a query does not see by
    a product below all others, which it scales, too."""
    if SIMULATOR:
        monkeypatch.setattr(launch, "choose_best", warpgroups)
    batch = Batch([(140, 100)], "bfloat16", "bfloat16", 1, 1, 128, block_size=8, window=3)
    batch.scale = scale
    batch.check()


@pytest.mark.parametrize("kernel", ["ordinary", "tensor", "warpgroups"])
def test_windows_of_the_longest_contexts(kernel):
    """Kernels count their tokens in 32 bits, and have counted past the end when they have come to it."""
    if kernel == "warpgroups" and not SIMULATOR and not has_warpgroups():
        pytest.skip("this GPU has no wgmma")
    choose = {"ordinary": launch.choose_ordinary, "tensor": launch.choose_mma, "warpgroups": warpgroups}[kernel]
    block_size = 4096
    blocks_before, last = divmod(LARGEST_LENGTH - 1, block_size)
    batch = Batch([(last + 1, 1), (last + 1, 3)], "bfloat16", "bfloat16", 1, 2, 64, block_size, window=40)
    batch.contexts = batch.contexts + blocks_before * block_size
    batch.tables = np.pad(batch.tables, ((0, 0), (blocks_before, 0)), constant_values=-1)  # [2, blocks]; given back
    batch.check(lambda *given, **options: launched(batch, given, None, choose=choose, **options))
