"""The simulator finds a race where there is one, and nowhere else: random programs, beside a search in a graph.

The graph has a point for each deed of a thread, each barrier and each arrival of a copy, and an arrow from what is
surely earlier. Two deeds race if no way leads from one to the other. That is slow, and knows nothing of moments.
"""

import random
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from where import SIMULATOR

if not SIMULATOR:
    pytest.skip("in the simulator only", allow_module_level=True)

from minipage.attention.cuda.compat import cuda, kernel
from minipage.attention.cuda.ptx import end_of_group, waiter

WAITS = waiter(0), waiter(1)
DEEDS = {
    "numbers": ["read", "write", "write"],
    "sums": ["read", "write", "add", "add"],
    "copies": ["read", "write", "request", "request", "end_of_group", "wait", "wait"],
    "all": ["read", "write", "add", "request", "end_of_group", "wait"],
}


def some_program(rng, deeds):
    """{thread: [(deed, place, number)]} of two warps, which pass the same barriers, or end early."""
    program = {thread: [] for thread in rng.sample([0, 1, 2, 32, 33], rng.randint(2, 4))}
    for _ in range(rng.randint(1, 3)):
        num_meetings = {warp: rng.randint(1, 3) for warp in range(2)}
        for thread, own in program.items():
            for _ in range(num_meetings[thread // 32]):
                num_deeds = rng.choice([0, 0, 1, 2])
                own += [(rng.choice(deeds), rng.randrange(2), rng.randrange(2)) for _ in range(num_deeds)]
                own.append(("syncwarp", 0, 0))
            own.append(("syncthreads", 0, 0))
    for own in program.values():
        if rng.random() < 0.2:
            del own[rng.randrange(len(own)) :]
    return program


def has_a_race(program):
    points, later = [], defaultdict(set)  # (thread, deed, place, number), and what comes after each
    barriers, ends = {}, {}

    def add_point(thread, deed, place=None, number=None):
        points.append((thread, deed, place, number))
        return len(points) - 1

    for thread, own in program.items():
        last, requested, groups, passed = add_point(thread, "begins"), [], [], Counter()
        for deed, place, number in own:
            if deed.startswith("sync"):
                who = thread // 32 if deed == "syncwarp" else "block"
                if (who, passed[who]) not in barriers:
                    barriers[who, passed[who]] = add_point(thread, deed)
                point = barriers[who, passed[who]]
                passed[who] += 1
            else:
                is_use = deed in ("read", "write", "add")
                point = add_point(thread, deed, place, number) if is_use else add_point(thread, deed)
            later[last].add(point)
            last = point
            if deed == "request":
                requested.append(add_point(thread, "arrives", place, number))
                later[point].add(requested[-1])
            elif deed == "end_of_group":
                groups, requested = [*groups, requested], []
            elif deed == "wait":
                while len(groups) > number:
                    for copy in groups.pop(0):
                        later[copy].add(point)
        ends[thread] = last, passed
    for (who, number), barrier in barriers.items():  # those who have ended let all others pass
        for thread, (end, passed) in ends.items():
            if who in ("block", thread // 32) and passed[who] <= number:
                later[end].add(barrier)
    after = [reached_from(point, later) for point in range(len(points))]
    return any(
        i not in after[j] and j not in after[i] and meet(points[i], points[j])
        for i, j in combinations(range(len(points)), 2)
    )


def reached_from(point, later):
    found, ahead = set(), [point]
    while ahead:
        new = later[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def meet(one, other):
    if one[2] is None or one[2] != other[2]:
        return False
    deeds = {one[1], other[1]}
    is_same = deeds == {"write"} and one[0] // 32 == other[0] // 32 and one[3] == other[3]
    return not is_same and deeds not in ({"read"}, {"add"})


def is_found(program, dtype):
    def run(_):
        array = cuda.shared.array((1, 2), dtype)
        for deed, place, number in program.get(cuda.threadIdx.x, []):
            if deed == "read":
                array[0, place]
            elif deed == "write":
                array[0, place] = number
            elif deed == "add":
                cuda.atomic.add(array, (0, place), number)
            elif deed == "request":
                array.request((0, place), dtype(number))
            elif deed == "end_of_group":
                end_of_group()
            elif deed == "wait":
                WAITS[number]()
            else:
                getattr(cuda, deed)()

    try:
        kernel(run)[1, 34](np.zeros(1))
    except RuntimeError as error:
        assert "shared array" in str(error)
        return True
    return False


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("deeds", DEEDS)
def test_random_programs(deeds, dtype):
    found = Counter()
    for seed in range(500):
        program = some_program(random.Random(seed), DEEDS[deeds])
        due = has_a_race(program)
        assert is_found(program, dtype) == due, (seed, program)
        found[due] += 1
    assert min(found.values()) > 50  # some race, and some do not


def test_numbers_that_lanes_write_are_the_same_as_they_are_kept():
    """A number that the array rounds, and one that is not equal to itself."""

    def same(out, number):
        array = cuda.shared.array(1, np.float32)
        array[0] = number + 0  # each lane's own
        cuda.syncwarp()
        out[cuda.threadIdx.x] = array[0]

    for number in np.float64(0.1), np.float32(np.nan):
        out = np.zeros(32, np.float32)
        kernel(same)[1, 32](out, number)
        np.testing.assert_array_equal(out, np.float32(number))


def test_a_lane_that_reads_before_it_writes_the_same_as_another():
    """It may read what was there before, or already the other's."""

    def read_and_write(out):
        array = cuda.shared.array(1, np.float32)
        if cuda.threadIdx.x == 0:
            out[0] = array[0]
        array[0] = 7.0

    with pytest.raises(RuntimeError, match=r"thread 1 writes \[0\] .* which thread 0 has read"):
        kernel(read_and_write)[1, 2](np.zeros(1))


def test_a_histogram_in_shared_memory():
    def count(out, values):
        bins, i = cuda.shared.array(4, np.int32), cuda.threadIdx.x
        if i < 4:
            bins[i] = 0
        cuda.syncthreads()
        cuda.atomic.add(bins, values[i], 1)
        cuda.syncthreads()
        if i < 4:
            out[i] = bins[i]

    out, values = np.zeros(4, np.int32), np.arange(64) ** 2 % 5 % 4
    kernel(count)[1, 64](out, values)
    np.testing.assert_array_equal(out, np.bincount(values, minlength=4))


def test_an_index_may_be_a_small_number_of_numpy():
    def turn(out):
        array, i = cuda.shared.array((8, 64), np.float32), cuda.threadIdx.x
        array[np.uint8(i // 8), np.uint8(i)] = i
        cuda.syncthreads()
        out[i] = array[np.uint8((63 - i) // 8), np.uint8(63 - i)]

    out = np.zeros(64, np.float32)
    kernel(turn)[1, 64](out)
    np.testing.assert_array_equal(out, np.arange(64)[::-1])
