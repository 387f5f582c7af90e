"""What is decided before a launch: how contexts are cut, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from where import DEVICE, SIMULATOR, on_gpu

from minipage.attention import cuda
from minipage.attention.cuda import compat, launch, warpgroups
from minipage.attention.cuda.kinds import BFLOAT16, FLOAT16, KINDS
from minipage.errors import KernelArgumentError


@given(
    st.integers(1, 512), st.integers(1, 70_000), st.sampled_from([(1, 1), (12, 1), (8, 4), (2, 64)]),
    st.sampled_from([None, 48, 512]),
)  # fmt: skip
def test_a_workspace_is_enough_for_what_all_blocks_leave_in_it(num_seqs, context, heads, split_size):
    num_kv_heads, group = heads
    size = cuda.workspace_size(num_seqs, num_kv_heads * group, 8, context, split_size)
    ordinary, tensor = (choose(FLOAT16, FLOAT16, 64) for choose in (launch.choose_ordinary, launch.choose_best))
    for choice in (ordinary, tensor, launch.widened(tensor, 8, 1), launch.widened(tensor, 4, 2)):
        grid = launch.decode_grid(choice, num_seqs, num_kv_heads, group, context, split_size)
        assert grid.tiles * grid.heads >= num_kv_heads * group
        num_blocks, numbers = grid.tiles * grid.blocks, 2 * grid.heads * (8 + 1)
        assert num_blocks * (1 + numbers) <= size or (context <= launch.SHORT and not split_size)  # nothing is cut


def test_which_prompts_are_for_warpgroups(monkeypatch):
    monkeypatch.setattr(warpgroups, "has_warpgroups", lambda: True)
    float32, _, _, int8, fp8 = KINDS.values()
    fitting = [(FLOAT16, FLOAT16, 64), (BFLOAT16, BFLOAT16, 128), (BFLOAT16, int8, 64), (BFLOAT16, fp8, 128)]
    # The last two: int8 times its scale may be beyond float16; and no kernel multiplies float16 with bfloat16.
    others = [(float32, float32, 64), (BFLOAT16, BFLOAT16, 80), (FLOAT16, int8, 64), (FLOAT16, BFLOAT16, 64)]
    assert all(warpgroups.has_warpgroup_kernel(*given) for given in fitting)
    assert not any(warpgroups.has_warpgroup_kernel(*given) for given in others)


@given(st.integers(1, 512), st.integers(1, 100), st.integers(1, 4))
def test_contexts_of_one_length_are_cut_alike(num_seqs, few, times):
    most = few * times
    blocks = launch.decode_blocks(num_seqs, few, most)
    assert 1 <= blocks <= max(most, min(num_seqs, launch.MOST_TURNS * most))
    assert blocks == num_seqs or not most < num_seqs <= launch.MOST_TURNS * most  # not cut at all
    if num_seqs <= few // 8:
        assert blocks % num_seqs == 0 and blocks >= 7 / 8 * few


def arguments(dtype=np.float32, num_heads=4, head_size=16, **changed):
    rng = np.random.default_rng(0)
    cache = rng.standard_normal((5, 4, 2, head_size)).astype(dtype)
    given = dict(
        q=rng.standard_normal((2, num_heads, head_size)).astype(dtype),
        k_cache=cache,
        v_cache=cache.copy(),
        block_tables=np.array([[0, 1], [2, 3]]),
        context_lens=np.array([5, 8]),
        query_start_loc=np.array([0, 1, 2]),
    )
    return {name: on_gpu(value) for name, value in (given | changed).items()} | {"scale": 1.0}


def unaligned(shape, dtype=np.float32):
    """A contiguous array that starts 4 bytes after a multiple of 16."""
    size = int(np.prod(shape))
    flat = on_gpu(np.zeros(size + 8, dtype))
    start = -(flat.ctypes.data if SIMULATOR else flat.data.ptr) // 4 % 4 + 1
    return flat[start : start + size].reshape(shape)


def refused(message, **arguments):
    with pytest.raises(KernelArgumentError, match=message):
        cuda.paged_attention(**arguments)


def test_unaligned_caches_are_refused():
    refused("multiple of 16", **arguments() | {"k_cache": unaligned((5, 4, 2, 16))})


@pytest.mark.parametrize(
    "dtype, head_size, alignment", [(np.float16, 64, 16), (np.float16, 40, 8), (np.float32, 64, 8)]
)
def test_caches_of_one_byte_are_aligned_as_their_kernel_reads_them(dtype, head_size, alignment):
    """Tensor cores by 16 bytes, ordinary ones by 8."""
    flat = on_gpu(np.zeros(40 * head_size + 16, np.int8))
    first = -(flat.ctypes.data if SIMULATOR else flat.data.ptr) % 16 + alignment // 2
    cache = flat[first : first + 40 * head_size].reshape(5, 4, 2, head_size)
    given = arguments(dtype=dtype, head_size=head_size)
    scales = dict.fromkeys(("k_scales", "v_scales"), on_gpu(np.ones((5, 4, 2), np.float32)))
    refused(f"multiple of {alignment}", **given | scales | {"k_cache": cache, "v_cache": cache})


def test_a_head_size_that_no_kernel_has_is_refused():
    refused("head_size 7 in float16", **arguments(dtype=np.float16, head_size=7))  # no whole words
    refused("head_size 516 in float32.* at most 512", **arguments(head_size=516))


def test_more_pieces_of_work_than_a_launch_has_room_for_are_refused():
    num_seqs = 1024
    long = dict(
        q=np.zeros((num_seqs, 4, 16), np.float32),
        k_cache=np.zeros((1, 32_768, 1, 16), np.float32),
        v_cache=np.zeros((1, 32_768, 1, 16), np.float32),
        block_tables=np.zeros((num_seqs, 1), np.int32),
        context_lens=np.full(num_seqs, 32_768),
        query_start_loc=np.arange(num_seqs + 1),
    )
    refused("65536 pieces of work", **arguments(**long))


def test_prompts_of_more_tiles_than_a_launch_has_room_for_are_refused():
    num_tokens = 262_144
    cache, scales = np.zeros((1, num_tokens, 1, 64), np.int8), np.ones((1, num_tokens, 1), np.float32)
    prompt = dict(
        q=np.zeros((num_tokens, 16, 64), np.float16), k_cache=cache, v_cache=cache, context_lens=np.array([num_tokens]),
        block_tables=np.zeros((1, 1), np.int32), query_start_loc=np.array([0, num_tokens]),
        k_scales=scales, v_scales=scales,
    )  # fmt: skip
    refused("65537 pieces of work", **arguments(**prompt))  # of 4 tokens and 16 heads, on every GPU


def test_numbers_that_no_kernel_reads_are_refused():
    refused("float64", **arguments(dtype=np.float64))
    refused("int32", **arguments(k_cache=np.zeros((5, 4, 2, 16), np.int32), v_cache=np.zeros((5, 4, 2, 16), np.int32)))
    refused("both caches alike", **arguments(v_cache=np.zeros((5, 4, 2, 16), np.float16)))


def test_rows_of_q_in_pieces_are_refused_but_rows_of_a_larger_array_are_fine():
    q = np.random.default_rng(1).standard_normal((2, 3, 4, 16)).astype(np.float32)
    whole = cuda.paged_attention(**arguments(q=q[:, 1].copy()))
    part = cuda.paged_attention(**arguments() | {"q": on_gpu(q)[:, 1]})
    np.testing.assert_array_equal(*(np.asarray(a if SIMULATOR else a.get()) for a in (whole, part)))
    refused("not contiguous in its last 2", **arguments() | {"q": on_gpu(np.zeros((2, 4, 32), np.float32))[..., ::2]})


def test_lists_and_arrays_that_are_not_on_the_gpu_are_refused():
    refused("not on the GPU", **arguments() | {"q": [[[1.0]]]})
    if DEVICE:
        import torch

        refused("not on the GPU", **arguments() | {"q": np.zeros((2, 4, 16), np.float32)})
        refused("not on the GPU", **arguments() | {"q": torch.zeros(2, 4, 16)})


@pytest.mark.skipif(not DEVICE, reason="needs PyTorch on a GPU")
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_torch_tensors_are_taken_as_they_are_and_the_answer_is_one(name):
    import torch

    dtype = getattr(torch, name)
    plain = {name: torch.as_tensor(np.asarray(a.get())) for name, a in arguments().items() if name != "scale"}
    expected = cuda.paged_attention(**arguments()).get()
    tensors = {n: t.cuda().to(dtype) if t.is_floating_point() else t.cuda() for n, t in plain.items()}
    out = cuda.paged_attention(**tensors, scale=1.0)
    assert out.dtype == dtype and out.is_cuda
    np.testing.assert_allclose(out.float().cpu(), expected, atol={"float32": 1e-5, "float16": 1e-2}.get(name, 0.1))


def test_what_a_kernel_is_told_of_its_arguments():
    """As numba passes arrays: two pointers, size, size of a number, address, shape, strides in bytes."""
    array = compat.device_view(4096, (3, 5), np.dtype(np.uint16))
    assert compat.as_argument(array) == ("uint16", 2, (0, 0, 15, 2, 4096, 3, 5, 10, 2))
    assert compat.as_argument(7) == ("int64", 0, (7,))
    number = compat.as_argument(np.float32(0.1))
    assert (*number[:2], number.numbers[0].value) == ("float32", 0, np.float32(0.1))
    if DEVICE:
        assert array.kind == compat.types.uint16[:, ::1]
        assert number.kind == compat.types.float32


def test_few_sequences_have_blocks_of_more_warps(monkeypatch):
    monkeypatch.setattr(launch, "num_processors", lambda: 132)
    monkeypatch.setattr(launch, "has_room_to_share", lambda num_bytes: num_bytes < 200_000)

    def warps(num_seqs, heads, head_size, choose=launch.choose_best):
        choice = choose(FLOAT16, FLOAT16, head_size)
        return launch.suited_to(choice, head_size, num_seqs, heads, 1).num_threads // launch.WARP

    narrow = warps(100, 8, 128)
    assert [warps(n, 8, 128) for n in (1, 16, 17, 32, 33)] == [8, 8, 4, 4, narrow]
    assert [warps(n, 40, 128) for n in (1, 3, 4, 6, 7)] == [8, 8, 4, 4, narrow]
    assert [warps(n, 12, 64) for n in (1, 11, 12, 33, 34)] == [narrow, narrow, 4, 4, narrow]
    assert warps(1, 80, 128) == narrow, "the kernels before and after have the other multiprocessors"
    ordinary = launch.choose_ordinary(FLOAT16, FLOAT16, 128).num_threads // launch.WARP
    assert warps(1, 8, 128, launch.choose_ordinary) == ordinary
    monkeypatch.setattr(launch, "has_room_to_share", lambda num_bytes: False)
    assert warps(1, 8, 128) == narrow
