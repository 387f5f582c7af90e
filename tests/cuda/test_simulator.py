"""The simulator is a strict machine: what a GPU may get away with is an error there."""

import inspect
import re
from types import ModuleType

import numpy as np
import pytest
from test_kernels import Batch, launched
from test_kernels import warpgroups as with_warpgroups
from where import SIMULATOR

if not SIMULATOR:
    pytest.skip("in the simulator only", allow_module_level=True)

from minipage.attention.cuda import launch, tensor_cores, warpgroups
from minipage.attention.cuda.compat import cuda, kernel
from minipage.attention.cuda.ptx import end_of_group, request_4_bytes, waiter

ALL = 0xFFFFFFFF


def test_reads_outside_and_of_what_nobody_wrote():
    def outside(array):
        array[0] = array[cuda.threadIdx.x - 1]

    def unwritten(array):
        array[0] = cuda.shared.array(4, np.float32)[0]

    def before_a_row(array):
        array[0] = cuda.local.array((2, 3), np.float32)[1, cuda.threadIdx.x - 1]

    def behind_a_row(array):
        cuda.local.array((2, 3), np.float32)[0, 3] = array[0]

    def outside_what_is_shared(array):
        cuda.shared.array((2, 3), np.float32)[cuda.threadIdx.x, 3] = array[0]

    def unequal(array):
        if cuda.threadIdx.x == 0:
            cuda.syncthreads()
        else:
            cuda.syncwarp()

    array = np.ones(4, np.float32)
    for wrong in outside, before_a_row, behind_a_row, outside_what_is_shared:
        with pytest.raises(IndexError):
            kernel(wrong)[1, 4](array)
    kernel(unwritten)[1, 1](array)
    assert np.isnan(array[0])
    with pytest.raises(RuntimeError, match="for ever"):
        kernel(unequal)[1, 2](array)


def test_two_arrays_of_one_line():
    def two(out):
        a, b = cuda.shared.array(1, np.float32), cuda.shared.array(1, np.float32)
        a[0], b[0] = 1.0, 2.0
        out[0] = a[0]

    out = np.zeros(1)
    kernel(two)[1, 1](out)
    assert out[0] == 1


@pytest.mark.parametrize(
    "others", [lambda: cuda.shfl_sync(ALL, 1, 0), lambda: cuda.syncwarp(0xFFFF0000), cuda.syncthreads]
)
def test_lanes_of_a_warp_that_wait_for_something_else(others):
    """None of these is a barrier of both halves, so nobody's writing is over for the other half."""

    def halves(_):
        array, i = cuda.shared.array(32, np.float32), cuda.threadIdx.x
        array[i] = i
        if i < 16:
            cuda.syncwarp(0xFFFF)
        else:
            others()
        array[31 - i]

    with pytest.raises(RuntimeError, match="threads of a warp wait for"):
        kernel(halves)[1, 32](np.zeros(1))


def test_half_a_warp_may_wait_if_the_others_have_ended():
    def half(out):
        array, i = cuda.shared.array(16, np.float32), cuda.threadIdx.x
        if i < 16:
            array[i] = i
            cuda.syncwarp(0xFFFF)
            out[i] = array[15 - i]

    out = np.zeros(16)
    kernel(half)[1, 32](out)
    np.testing.assert_array_equal(out, np.arange(16)[::-1])


def nothing():
    pass


@pytest.mark.parametrize("first, second", [("write", "read"), ("read", "write"), ("write", "write")])
@pytest.mark.parametrize("apart", [1, 32])
@pytest.mark.parametrize("ordered_by", ["nothing", "syncwarp", "syncthreads"])
def test_two_threads_that_use_one_element(first, second, apart, ordered_by):
    """Without a barrier in between that both of them pass, it is an error, whoever comes first in the simulator."""
    wait = getattr(cuda, ordered_by, nothing)
    is_ordered = ordered_by == "syncthreads" or (ordered_by == "syncwarp" and apart == 1)

    def use(array, deed, thread):
        if deed == "write":
            array[5] = thread
        else:
            array[5]

    for one, other in (0, apart), (apart, 0):

        def two(_, one=one, other=other):
            array = cuda.shared.array(8, np.float32)
            if cuda.threadIdx.x == one:
                use(array, first, one)
            wait()
            if cuda.threadIdx.x == other:
                use(array, second, other)

        if is_ordered:
            kernel(two)[1, 64](np.zeros(1))
        else:
            with pytest.raises(RuntimeError, match=rf"thread {one} has|thread {other} has"):
                kernel(two)[1, 64](np.zeros(1))


def test_a_reader_of_long_ago_is_no_harm_but_one_of_now_is():
    def many(_, stays):
        array, thread = cuda.shared.array(1, np.float32), cuda.threadIdx.x
        for step in range(4):
            if thread == step % 2 * 40:
                array[0] = step
            cuda.syncthreads()
            array[0]
            if stays:
                cuda.syncthreads()

    kernel(many)[2, 64](np.zeros(1), True)
    place = r"\[0\] of the shared array of test_simulator.py:\d+"
    with pytest.raises(RuntimeError, match=rf"writes {place}, which thread \d+ has read"):
        kernel(many)[2, 64](np.zeros(1), False)


def test_lanes_of_a_warp_may_write_the_same_number_in_one_place():
    def same(out, number_of_warp):
        array = cuda.shared.array((2, 1), np.float32)
        array[cuda.threadIdx.x // 32 * number_of_warp, 0] = 7.0
        cuda.syncthreads()
        out[cuda.threadIdx.x] = array[0, 0]

    out = np.zeros(64, np.float32)
    kernel(same)[1, 64](out, 1)
    assert (out == 7).all()
    with pytest.raises(RuntimeError, match="thread 32 writes"):
        kernel(same)[1, 64](out, 0)


@pytest.mark.parametrize("what", ["fine", "too early", "by another", "over it"])
def test_a_copy_is_there_for_whoever_has_waited_and_for_others_after_a_barrier(what):
    wait_for_older, wait_for_all = waiter(1), waiter(0)

    def copy(out, given):
        array, i = cuda.shared.array(64, np.float32), cuda.threadIdx.x
        request_4_bytes(array, i, given, i)
        end_of_group()
        request_4_bytes(array, 32 + i, given, i)
        end_of_group()
        wait_for_older()
        if what == "too early":
            array[32 + i]
        if what == "over it":
            array[32 + i] = 1.0
        out[i] = array[(i + 1) % 32 if what == "by another" else i]
        wait_for_all()
        cuda.syncwarp()
        out[i] += array[32 + (i + 1) % 32]

    out, given = np.zeros(32, np.float32), np.arange(32, dtype=np.float32)
    if what == "fine":
        kernel(copy)[1, 32](out, given)
        np.testing.assert_array_equal(out, given + np.roll(given, -1))
    else:
        with pytest.raises(RuntimeError, match="no barrier" if what == "by another" else "is on its way"):
            kernel(copy)[1, 32](out, given)


WAITS = r"\b(meet|wait_for_oldest|show_tensor_cores|cuda\.syncthreads)\(\)"


@pytest.mark.parametrize("module, number", [(tensor_cores, 5), (warpgroups, 5)], ids=["tensor_cores", "warpgroups"])
def test_every_wait_of_the_kernels_on_tensor_cores_is_needed(module, number):
    """Each is taken out in turn, and for K and V of one kind at least a race is found."""
    source = inspect.getsource(module)
    waits = [found.span() for found in re.finditer(WAITS, source)]
    assert len(waits) == number
    batches = [Batch([(150, 4), (60, 1)], "bfloat16", kv, 1, 1, 128, block_size=16) for kv in ("int8", "bfloat16")]
    for begin, end in waits:
        broken = ModuleType(module.__name__)
        exec(compile(source[:begin] + "None" + source[end:], module.__file__, "exec"), vars(broken))
        choose = {tensor_cores: of_tensor_kernel, warpgroups: of_warpgroup_kernel}[module](broken)
        assert any(finds_a_race(batch, choose) for batch in batches), source[:begin].count("\n") + 1


def of_tensor_kernel(module):
    return lambda *kinds: launch.choose_mma(*kinds)._replace(kernel_for=module.tensor_kernel)


def of_warpgroup_kernel(module):
    return lambda *kinds: with_warpgroups(*kinds)._replace(prefill_kernel_for=module.warpgroup_kernel)


def finds_a_race(batch, choose):
    try:
        batch.check(lambda *given: launched(batch, given, None, choose=choose))
    except RuntimeError as error:
        return "shared array" in str(error)
    return False
