"""Single instructions of the GPU that numba has no name for, each next to what it does in plain Python.

The plain version is what runs in the simulator, and the instruction's test. On a device the text under `@instruction`
takes its place: PTX, the assembly language of NVIDIA GPUs (see the "PTX ISA" manual for each name). A "word" is 32
bits: one float32, two numbers of 16 bits, or four of 8; the first number is in the lowest bits, as in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minipage.attention.cuda import compat
from minipage.attention.cuda.compat import SIMULATED, types

# A parameter that is an array; the address of the element whose index comes next is what the instruction gets.
MEMORY, SHARED = "memory", "shared memory"


class Registers(NamedTuple):
    """A parameter that is an array of a thread, of this many float32 (2 at least), which the instruction gets and may
    change."""

    number: int


INDEX, WORD, FLOAT = types.intp, types.uint32, types.float32
WORDS_2, WORDS_4 = types.UniTuple(WORD, 2), types.UniTuple(WORD, 4)
FLOATS_4 = types.UniTuple(FLOAT, 4)
LETTERS = {FLOAT: "f", types.int64: "l"}  # of registers; all other numbers have 32 bits


def instruction(
    result: Any, parameters: tuple[Any, ...], text: str, volatile: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Replace a plain function by one PTX instruction: $0, $1, ... are the numbers of its result, or of all `Registers`
    if it has some, then its other arguments.

    volatile: it does something besides computing a result, so it must stay where it is.
    """

    def replace(plain: Callable[..., Any]) -> Any:
        return plain if SIMULATED else _intrinsic(plain.__name__, result, parameters, text, volatile)

    return replace


def _intrinsic(name: str, result: Any, parameters: tuple[Any, ...], text: str, volatile: bool) -> Any:
    import numba.cuda.cgutils as cgutils
    from llvmlite import ir  # type: ignore[import-untyped]
    from numba.cuda.extending import intrinsic

    def is_array(parameter: Any) -> bool:
        return parameter in (MEMORY, SHARED) or isinstance(parameter, Registers)

    def scalars(numba_type: Any) -> list[Any]:
        return list(numba_type.types) if isinstance(numba_type, types.BaseTuple) else [numba_type]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands, letters, registers = [], [], []
        kinds_of_arrays = (parameter for parameter in parameters if is_array(parameter))
        given = iter(zip(signature.args, arguments))
        for numba_type, value in given:
            if isinstance(numba_type, types.Array):
                array = context.make_array(numba_type)(context, builder, value=value)
                kind = next(kinds_of_arrays)
                if isinstance(kind, Registers):
                    registers += [builder.gep(array.data, [ir.IntType(32)(i)]) for i in range(kind.number)]
                    continue
                address = builder.gep(array.data, [next(given)[1]])
                if kind is SHARED:  # an address of its own kind, of 32 bits
                    address = builder.addrspacecast(address, ir.PointerType(address.type.pointee, 3))
                    address = builder.ptrtoint(address, ir.IntType(32))
                operands.append(address)
                letters.append("r" if address.type == ir.IntType(32) else "l")
            else:
                parts = scalars(numba_type)
                is_tuple = len(parts) > 1
                operands += [builder.extract_value(value, i) for i in range(len(parts))] if is_tuple else [value]
                letters += [LETTERS.get(part, "r") for part in parts]
        results = [FLOAT] * len(registers) if result is types.void else scalars(result)
        kinds = [context.get_value_type(part) for part in results]
        llvm_result = ir.VoidType() if not kinds else kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
        operands += [builder.load(register) for register in registers]
        letters += [str(i) for i in range(len(registers))]  # the same registers as these results
        constraints = ["=f" if part == FLOAT else "=r" for part in results] + letters
        function = ir.FunctionType(llvm_result, [operand.type for operand in operands])
        assembly = ir.InlineAsm(function, text, ",".join(constraints + ["~{memory}"] * volatile), side_effect=volatile)
        value = builder.call(assembly, operands)
        for i, register in enumerate(registers):
            builder.store(builder.extract_value(value, i), register)
        if registers or not kinds:
            return context.get_dummy_value()
        if len(kinds) == 1:
            return value
        return cgutils.pack_array(builder, [builder.extract_value(value, i) for i in range(len(kinds))])

    def typed(actual: tuple[Any, ...]) -> tuple[Any, Any]:
        declared = [a if is_array(parameter) else parameter for a, parameter in zip(actual, parameters, strict=True)]
        return result(*declared), generate

    # numba wants a function with this many named parameters
    names = "".join(f"a{i}, " for i in range(len(parameters)))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def {name}(typing_context, {names}): return typed(({names}))", scope)
    return intrinsic(scope[name])


# ---- memory: 4, 8 or 16 bytes at once, read-only data that is wanted once and need not stay in the nearest cache


@instruction(WORDS_4, (MEMORY, INDEX), "ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {$0, $1, $2, $3}, [$4];")
def load_16_bytes(words, i):
    return tuple(words[i + j] for j in range(4))


@instruction(WORDS_2, (MEMORY, INDEX), "ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {$0, $1}, [$2];")
def load_8_bytes(words, i):
    return tuple(words[i + j] for j in range(2))


@instruction(WORDS_4, (MEMORY, INDEX), "ld.global.L1::no_allocate.L2::128B.v4.u32 {$0, $1, $2, $3}, [$4];", True)
def load_16_bytes_now(words, i):
    """The same, and it stays before whatever waits; the assembler puts others off ("nc": at any time)."""
    return tuple(words[i + j] for j in range(4))


@instruction(WORDS_4, (MEMORY, INDEX), "ld.global.v4.u32 {$0, $1, $2, $3}, [$4];", volatile=True)
def load_16_new_bytes(words, i):
    """Of what the last kernel may have written while this one was there already."""
    return tuple(words[i + j] for j in range(4))


# ---- the order of kernels


@cache
def order_of_kernels():
    """Two instructions, (let_next_begin, wait_for_last), for a kernel that `overlaps` (compat.kernel).

        kernel A   ░░▓▓▓▓▓▓▓▓▓▓▓        ░ before A waits: it may load what no kernel writes, such as weights
        kernel B           ░░░░░▓▓▓▓▓   ▓ after that: all that came before A has ended, and can be seen

    Every thread of such a kernel waits, before it reads what others wrote, or writes anything.
    """
    text = "griddepcontrol.{};" if compat.can_overlap() else ""

    @instruction(types.void, (), text.format("launch_dependents"), volatile=True)
    def let_next_begin():
        pass

    @instruction(types.void, (), text.format("wait"), volatile=True)
    def wait_for_last():
        pass

    return let_next_begin, wait_for_last


# ---- asynchronous copies to shared memory: requested now, there only after a `wait`, and nobody is held up in between


@instruction(
    types.void, (SHARED, INDEX, MEMORY, INDEX), "cp.async.cg.shared.global.L2::128B [$0], [$1], 16;", volatile=True
)
def request_16_bytes(shared, to, words, i):
    """shared is an array of float32, but may be handed any bits."""
    for j in range(4):
        shared.request(to + j, float_of_bits(words[i + j]))


@instruction(types.void, (SHARED, INDEX, MEMORY, INDEX), "cp.async.ca.shared.global [$0], [$1], 4;", volatile=True)
def request_4_bytes(shared, to, numbers, i):
    shared.request(to, numbers[i].view(np.float32))  # of a word: whatever its bits mean


@instruction(types.void, (), "cp.async.commit_group;", volatile=True)
def end_of_group():
    """What was requested since the last group is one more group."""
    compat.this_thread().end_group()


def waiter(num_groups):
    """An instruction that waits until all groups have come, except the last num_groups."""

    @instruction(types.void, (), f"cp.async.wait_group {num_groups};", volatile=True)
    def wait():
        compat.this_thread().wait_for_groups(num_groups)

    return wait


@instruction(WORDS_4, (SHARED, INDEX), "ld.shared.v4.u32 {$0, $1, $2, $3}, [$4];", volatile=True)
def shared_16_bytes(shared, i):
    return tuple(bits_of_float(shared[i + j]) for j in range(4))


@instruction(types.void, (SHARED, INDEX, WORDS_4), "st.shared.v4.u32 [$0], {$1, $2, $3, $4};", volatile=True)
def put_16_bytes(shared, i, words):
    for j in range(4):
        shared[i + j] = float_of_bits(words[j])


@instruction(WORDS_2, (SHARED, INDEX), "ld.shared.v2.u32 {$0, $1}, [$2];", volatile=True)
def shared_8_bytes(shared, i):
    return tuple(bits_of_float(shared[i + j]) for j in range(2))


@instruction(types.int32, (MEMORY, INDEX), "ld.global.nc.s32 $0, [$1];")
def load_4_bytes(integers, i):
    """numba's own indexing asks first whether i is negative."""
    return integers[i]


@instruction(types.void, (MEMORY, INDEX, WORD), "st.global.u32 [$0], $1;", volatile=True)
def store_4_bytes(halves, i, word):
    """halves is an array of numbers of two bytes."""
    halves[i], halves[i + 1] = word & 0xFFFF, word >> 16


@instruction(types.void, (MEMORY, INDEX, WORDS_4), "st.global.v4.u32 [$0], {$1, $2, $3, $4};", volatile=True)
def store_16_bytes(words, i, values):
    for j in range(4):
        words[i + j] = values[j]


# ---- memory that another GPU writes to, or that is another GPU's: each access goes to where all of them see it


@instruction(WORDS_4, (MEMORY, INDEX), "ld.volatile.global.v4.u32 {$0, $1, $2, $3}, [$4];", volatile=True)
def look_at_16_bytes(words, i):
    return tuple(words[i + j] for j in range(4))


@instruction(WORD, (MEMORY, INDEX), "ld.volatile.global.u32 $0, [$1];", volatile=True)
def look_at_4_bytes(words, i):
    return words[i]


@instruction(types.void, (types.int64, WORDS_4), "st.volatile.global.v4.u32 [$0], {$1, $2, $3, $4};", volatile=True)
def send_16_bytes(address, values):
    """To any address that this GPU can reach; each word arrives at once."""
    (ctypes.c_uint32 * 4).from_address(int(address))[:] = [int(value) for value in values]


@instruction(types.void, (), "trap;", volatile=True)
def trap():
    """The end of all that this process does on the GPU."""
    raise RuntimeError("a kernel has waited for too long")


@instruction(FLOAT, (MEMORY, INDEX, FLOAT), "atom.acq_rel.gpu.global.add.f32 $0, [$1], $2;", volatile=True)
def add_in_turn(numbers, i, x):
    """numbers[i] += x; returns what was there before. Blocks that add later see what this block has written by now, and
    after a barrier this block sees what earlier ones wrote."""
    before = numbers[i]
    numbers[i] = before + x
    return before


# ---- numbers

# The same 32 bits, seen in three ways: several times faster than to convert a number with `view`.
_word = np.zeros(1, np.uint32)
_word_as_float, _word_as_halves = _word.view(np.float32), _word.view(np.float16)


@instruction(FLOAT, (FLOAT,), "ex2.approx.ftz.f32 $0, $1;")
def exp2(x):
    """2 ** x; numba's exp takes several instructions."""
    return np.exp2(np.float32(x))


@instruction(FLOAT, (FLOAT,), "lg2.approx.ftz.f32 $0, $1;")
def log2(x):
    return np.log2(np.float32(x))


@instruction(FLOAT, (WORD,), "mov.b32 $0, $1;")
def float_of_bits(word):
    _word[0] = word
    return _word_as_float[0]


@instruction(WORD, (FLOAT,), "mov.b32 $0, $1;")
def bits_of_float(x):
    _word_as_float[0] = x
    return _word[0]


@instruction(types.int32, (FLOAT,), "cvt.rni.s32.f32 $0, $1;")
def nearest_integer(x):
    """From half way between two, the even one."""
    return int(np.rint(x))


@instruction(FLOAT, (WORD,), "{ .reg .b16 low, high; mov.b32 {low, high}, $1; cvt.f32.f16 $0, low; }")
def low_half(word):
    """The fp16 number in the lower 16 bits."""
    _word[0] = word
    return np.float32(_word_as_halves[0])


@instruction(FLOAT, (WORD,), "{ .reg .b16 low, high; mov.b32 {low, high}, $1; cvt.f32.f16 $0, high; }")
def high_half(word):
    """The fp16 number in the upper 16 bits."""
    _word[0] = word
    return np.float32(_word_as_halves[1])


@instruction(types.int32, (types.int32, types.int32), "div.s32 $0, $1, $2;")
def quotient(a, b):
    """a // b, neither below 0; numba's own division is one of 64 bits, a hundred instructions."""
    return a // b


@instruction(WORD, (FLOAT, FLOAT), "cvt.rn.f16x2.f32 $0, $2, $1;")
def pack_halves(low, high):
    """Two numbers rounded to fp16 in one word."""
    return np.array([low, high], np.float32).astype(np.float16).view(np.uint32)[0]


@instruction(WORD, (FLOAT, FLOAT), "cvt.rn.bf16x2.f32 $0, $2, $1;")
def pack_bfloats(low, high):
    """Two numbers rounded to bfloat16, the upper half of a float32, in one word."""
    return np.uint32(_rounded_upper_half(low) | _rounded_upper_half(high) << 16)


def _rounded_upper_half(x):
    bits = int(bits_of_float(x))
    return 0x7FC0 if np.isnan(x) else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # from half way, the even one


@instruction(WORD, (WORD, WORD, WORD), "prmt.b32 $0, $1, $2, $3;")
def prmt(a, b, selector):
    """A word of four bytes of two words; 0-3 are those of a, 4-7 those of b. The selector's last digit is the first."""
    given = int(a) | int(b) << 32
    chosen = [given >> 8 * (int(selector) >> 4 * i & 7) & 0xFF for i in range(4)]
    return np.uint32(sum(byte << 8 * i for i, byte in enumerate(chosen)))


@instruction(WORD, (WORD,), "{ .reg .b16 low, high; mov.b32 {low, high}, $1; cvt.rn.f16x2.e4m3x2 $0, low; }")
def low_fp8_as_halves(word):
    """The fp8 numbers in the lower 16 bits as two of fp16; from compute capability 8.9 on."""
    return _halves_of_fp8(word)


@instruction(WORD, (WORD,), "{ .reg .b16 low, high; mov.b32 {low, high}, $1; cvt.rn.f16x2.e4m3x2 $0, high; }")
def high_fp8_as_halves(word):
    return _halves_of_fp8(word >> 16)


def _halves_of_fp8(word):
    codes = np.array([word & 0xFF, word >> 8 & 0xFF], np.uint16)
    halves = (codes & 0x80) << 8 | (codes & 0x7F) << 7  # 2 ** 8 too small: the exponents start elsewhere
    return (halves.view(np.float16) * np.float16(256)).view(np.uint32)[0]


@instruction(WORD, (WORD,), "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;")
def transposed(word):
    """Of 8 x 8 numbers of 16 bits, in a warp: lane 4 g + c gives row g of columns 2 c and 2 c + 1, and gets column g of
    rows 2 c and 2 c + 1."""

    def transpose(lanes):
        rows = np.array(lanes, np.uint32).view(np.uint16).reshape(8, 8)
        return np.ascontiguousarray(rows.T).view(np.uint32).reshape(32)

    return compat.warp_compute(word, transpose)


# ---- two numbers of 16 bits at once


@instruction(WORD, (WORD, WORD), "add.rn.f16x2 $0, $1, $2;")
def add_halves(a, b):
    return np.uint32((halves_in(a) + halves_in(b)).astype(np.float16).view(np.uint32)[0])


@instruction(WORD, (WORD, WORD, WORD), "fma.rn.f16x2 $0, $1, $2, $3;")
def fma_halves(a, b, c):
    """a * b + c, rounded once."""
    x, y, z = (halves_in(word).astype(np.float64) for word in (a, b, c))
    return np.uint32((x * y + z).astype(np.float16).view(np.uint32)[0])


@instruction(WORD, (WORD, WORD, WORD), "fma.rn.bf16x2 $0, $1, $2, $3;")
def fma_bfloats(a, b, c):
    x, y, z = (bfloats_in(word).astype(np.float64) for word in (a, b, c))
    return pack_bfloats(*(x * y + z).astype(np.float32))


def bfloats_in(words):
    """[...] words -> [..., 2] the numbers in them"""
    words = np.asarray(words, np.uint32)[..., None]
    return (words << np.array([16, 0], np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def halves_in(words):
    """[...] words -> [..., 2] the numbers in them"""
    return np.asarray(words, np.uint32)[..., None].view(np.float16).astype(np.float32)


# ---- tensor cores: d = a @ b + c of a whole warp, [16, 8] = [16, 16] @ [16, 8] + [16, 8], summed in float32

MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, "
MMA += "{{$10, $11, $12, $13}};"


@instruction(FLOATS_4, (WORDS_4, WORDS_2, FLOATS_4), MMA.format("f16"))
def mma_halves(a, b, c):
    return compat.warp_compute((a, b, c), lambda lanes: _mma(lanes, halves_in))


@instruction(FLOATS_4, (WORDS_4, WORDS_2, FLOATS_4), MMA.format("bf16"))
def mma_bfloats(a, b, c):
    return compat.warp_compute((a, b, c), lambda lanes: _mma(lanes, bfloats_in))


def _mma(lanes, numbers):
    """What lane 4 g + c has of a, b and c (PTX ISA, "Matrix Fragments for mma.m16n8k16") -> what it gets of d."""
    a, b, c = (np.array(pieces) for pieces in zip(*lanes))  # [32, 4], [32, 2], [32, 4]
    a = numbers(a).reshape(8, 4, 2, 2, 2).transpose(3, 0, 2, 1, 4).reshape(16, 16)  # [row, inner]
    b = numbers(b).reshape(8, 4, 2, 2).transpose(2, 1, 3, 0).reshape(16, 8)  # [inner, column]
    c = c.reshape(8, 4, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)  # [row, column]
    d = (a.astype(np.float64) @ b + c).astype(np.float32)  # [row, column]
    return d.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)  # [lane, its four numbers]
