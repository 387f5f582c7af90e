"""The machine code of the CUDA kernels is what their comments claim. It is made and read with no GPU."""

import os

import pytest

os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
from machine_code import machine_code, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
capabilities = pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["8.0", "9.0"])


def attention(make, q, kv, head_size, group, heads, tokens, capability, folder, **options):
    from numba.cuda import types

    from minipage.attention.cuda.kinds import KINDS

    kinds = {kind.name: kind for kind in KINDS.values()}
    flat = {t: types.Array(t, 1, "C") for t in (types.uint32, types.float32, types.int32, types.uint16)}
    words, floats, integers = flat[types.uint32], flat[types.float32], flat[types.int32]
    out = floats if q == "float32" else flat[types.uint16]
    signature = (words, words, words, floats, floats, integers, integers, integers, out, floats, types.float32)
    kernel = make(kinds[q], kinds[kv], head_size, 16, group, heads, tokens, **options)
    out_of_cache = flat[types.uint16] if kv in ("bfloat16", "float16") else types.Array(types.uint8, 1, "C")
    new = words, words, integers, out_of_cache, out_of_cache
    return machine_code(kernel, signature + 5 * (types.int64,) + new + 2 * (types.int64,), capability, folder)


@capabilities
def test_the_ordinary_kernel_loads_16_bytes_and_spills_nothing(capability, tmp_path):
    from minipage.attention.cuda.ordinary_cores import ordinary_kernel

    for q, head_size in (("float32", 64), ("bfloat16", 128), ("float32", 256)):
        code = attention(ordinary_kernel, q, q, head_size, 4, 4, 1, capability, tmp_path)
        assert sum("LDG" in name and ".128" in name for name in code.instructions) == 1
        assert code.stack == 0 and code.registers <= 255


@capabilities
def test_packed_products_are_two_at_a_time(capability, tmp_path):
    from minipage.attention.cuda.ordinary_cores import ordinary_kernel
    from minipage.ladder.rung5_wide import packed_products

    options = {"products": packed_products}
    code = attention(ordinary_kernel, "bfloat16", "bfloat16", 128, 4, 4, 1, capability, tmp_path, **options)
    packed = sum(number for name, number in code.instructions.items() if name.startswith("HFMA2") and "BF16" in name)
    assert packed >= 4 * 4 * 4 - 16  # words of a lane, rows, loads under way; the first of each may be a product only


@capabilities
@pytest.mark.parametrize(
    "q, kv", [("bfloat16", "bfloat16"), ("float16", "float16"), ("float16", "int8"), ("bfloat16", "fp8")]
)
@pytest.mark.parametrize("tokens", [1, 8])
def test_the_tensor_kernel_multiplies_on_tensor_cores_and_spills_nothing(q, kv, tokens, capability, tmp_path):
    from minipage.attention.cuda.tensor_cores import tensor_kernel

    code = attention(tensor_kernel, q, kv, 128, 4, 4, tokens, capability, tmp_path)
    assert code.count("HMMA.16816.F32") >= 8 + 8  # of K with q, and of V with the weights
    assert code.count("LDGSTS") > 0  # asynchronous copies to shared memory
    assert any(name.startswith("LDGSTS") and name.endswith(".128") for name in code.instructions)
    assert code.count("LDS.128") >= (2 * 4 + 4 * 2) * (1 if kv == q else 0.5)  # 16 bytes of K and V at once
    assert code.stack == 0 and code.registers <= 255 and code.shared <= 48 * 1024


@pytest.mark.parametrize(
    "q, kv, head_size, group, heads, tokens, window",
    [
        ("float16", "float16", 64, 4, 4, 32, None),
        ("float16", "float16", 128, 4, 4, 32, None),
        *(("bfloat16", kv, size, 4, 4, 32, None) for kv in ("bfloat16", "int8", "fp8") for size in (64, 128)),
        *(("bfloat16", kv, size, 1, 1, 128, None) for kv in ("bfloat16", "int8", "fp8") for size in (64, 128)),
        *(("bfloat16", kv, 128, 17, 9, 14, window) for kv in ("bfloat16", "int8") for window in (None, 4096)),
        *(("bfloat16", "bfloat16", size, 1, 1, 128, 4096) for size in (64, 128)),
        ("bfloat16", "bfloat16", 128, 4, 4, 32, 4096),
    ],
)
def test_warpgroups_multiply_out_of_shared_memory_and_two_blocks_fit(
    q, kv, head_size, group, heads, tokens, window, tmp_path
):
    from minipage.attention.cuda.kinds import KINDS
    from minipage.attention.cuda.warpgroups import NUM_THREADS, warpgroup_kernel

    code = attention(warpgroup_kernel, q, kv, head_size, group, heads, tokens, (9, 0), tmp_path, window=window)
    assert code.count("HGMMA.64") == 12  # Q with K, 64 numbers by 64 tokens; and the weights with V
    assert code.count("WARPGROUP.DEPBAR") == 2, (
        "the assembler (here that of CUDA 13) was short of registers, and waits for each part of both"
    )
    assert code.count("HMMA") == 0 and (code.count("LDS.128") > 0) == (kv != q)  # which is widened
    assert code.stack <= 32  # a few numbers that are wanted once a step, and no array
    assert 2 * code.registers * NUM_THREADS <= 65_536
    q_kind, kv_kind = (next(kind for kind in KINDS.values() if kind.name == name) for name in (q, kv))
    kernel = warpgroup_kernel(q_kind, kv_kind, head_size, 16, group, heads, tokens, window=window)
    assert 2 * (kernel.shared_bytes + code.shared) <= 228 * 1024  # of a multiprocessor


@pytest.mark.parametrize("num_warps", [4, 8])
def test_a_wide_block_asks_for_its_memory_when_it_is_launched(num_warps, tmp_path):
    from minipage.attention.cuda.tensor_cores import tensor_kernel

    q = "bfloat16"
    code = attention(tensor_kernel, q, q, 128, 1, 1, 1, (9, 0), tmp_path, writes=True, num_warps=num_warps)
    assert code.stack == 0 and code.registers <= 255 and code.shared <= 1024


@capabilities
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_kernels_of_layers_compile_and_a_norm_moves_16_bytes_at_once(name, capability, tmp_path):
    from numba.cuda import types

    from minipage.attention.cuda.kinds import KINDS
    from minipage.worker.gpu.fused import gated_kernel, norm_kernel, put_kernel, rotate_kernel
    from minipage.worker.gpu.turned import turn_kernel

    (kind,) = (kind for kind in KINDS.values() if kind.name == name)
    numbers = types.Array(types.float32 if name == "float32" else types.uint16, 1, "C")
    words, whole = types.Array(types.uint32, 1, "C"), types.int64
    arguments = 4 * (words,) + (whole, whole, types.float32)
    norm = machine_code(norm_kernel(kind, is_centered=True, has_bias=True), arguments, capability, tmp_path)
    loads = [name for name in norm.instructions.elements() if "LDG" in name]
    assert len(loads) == 3 and all(".128" in name for name in loads)
    assert norm.count("STG.E.128") == 1
    gated = machine_code(gated_kernel(kind), 3 * (numbers,) + 3 * (whole,), capability, tmp_path)
    rotate = machine_code(rotate_kernel(kind), 4 * (numbers,) + 6 * (whole,), capability, tmp_path)
    put = machine_code(put_kernel(), 3 * (types.Array(types.int32, 1, "C"),), capability, tmp_path)
    turned = 7 * (numbers,) + (types.Array(types.int64, 1, "C"),) + 6 * (whole,)
    turn = machine_code(turn_kernel(kind), turned, capability, tmp_path)
    for code in norm, gated, rotate, put, turn:
        assert code.stack == 0 and code.registers <= 64


@capabilities
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_sum_between_gpus_is_sent_and_looked_at_in_whole_pieces(name, capability, tmp_path):
    from numba.cuda import types

    from minipage.attention.cuda.kinds import KINDS
    from minipage.worker.gpu.peer_sums import sum_kernel

    (kind,) = (kind for kind in KINDS.values() if kind.name == name)
    words, addresses = types.Array(types.uint32, 1, "C"), types.Array(types.int64, 1, "C")
    arguments = (*7 * (words,), addresses, words, words, *3 * (types.int64,), types.float32)
    code = machine_code(sum_kernel(kind, 2, True, (False, False)), arguments, capability, tmp_path)
    assert code.stack == 0 and code.registers <= 64
    assert code.count("STG.E.128.STRONG.SYS") == 1  # a piece, to the other rank
    assert all(name.endswith("128.STRONG.SYS") for name in code.instructions if name.startswith("LDG.E.128.S"))
    assert code.count("LDG.E.128.STRONG.SYS") >= 1
    assert code.instructions["STG.E.128"] >= 3, "x, its norm, and the inbox that is emptied"


@pytest.mark.parametrize("num_warps", [4, 12])
@pytest.mark.parametrize("is_tall", [False, True], ids=["up to 8 rows", "up to 16"])
def test_a_product_has_its_weights_on_their_way_before_it_waits_for_x(is_tall, num_warps, tmp_path, monkeypatch):
    from numba.cuda import types

    from minipage.attention.cuda import compat
    from minipage.attention.cuda.kinds import BFLOAT16
    from minipage.attention.cuda.ptx import order_of_kernels
    from minipage.worker.gpu.few_rows import AT_ONCE, product_kernel

    monkeypatch.setattr(compat, "can_overlap", lambda: True)
    order_of_kernels.cache_clear()
    kernel = product_kernel.__wrapped__(BFLOAT16, is_tall, num_warps, "gelu", has_bias=True, has_onto=True)
    order_of_kernels.cache_clear()
    words, numbers = types.Array(types.uint32, 1, "C"), types.Array(types.uint16, 1, "C")
    code = machine_code(kernel, (words, words, *3 * (numbers,), *4 * (types.int64,)), (9, 0), tmp_path)
    before, after = code.text.split("ACQBULK")
    assert before.count("LDG.E.NA.LTC128B.128") == before.count("LDG") == 2 * AT_ONCE
    x, arithmetic = after.split("WARPSYNC", 1)
    assert x.count("LDG.E.128") == 2 * AT_ONCE * (2 if is_tall else 1), "all of x is asked for before any is used"
    assert arithmetic.count("HMMA.16816.F32.BF16") == 4 * AT_ONCE and "HMMA" not in x
    assert code.stack == 0 and code.registers * num_warps * 32 <= 65_536
