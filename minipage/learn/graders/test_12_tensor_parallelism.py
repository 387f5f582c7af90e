"""Lesson 12: the ranks together must compute what one process computes."""

import numpy as np

from minipage.learn.graders.common import every, expect
from minipage.learn.graders.numbers import Untouched, assert_close
from minipage.learn.judge import Wrong


def layer(num_in, num_out, dtype=np.float32):
    """A weight and a bias whose numbers say where they belong: weight[i, j] = 100 * i + j + 1.3, bias[j] = 70000.3 + j.
    They are not whole, and larger than 16 bits hold."""
    weight = np.add.outer(100.0 * np.arange(num_in), np.arange(num_out) + 1.3).astype(dtype)  # [in, out]
    return weight, (70000.3 + np.arange(num_out)).astype(dtype)  # [in, out], [out]


def parts_of(impl, call, weight, bias, *arguments):
    """What came back, after a look at what was lent."""
    impl.diary.begin()
    impl.diary.note(f"{call}   with weight[i, j] = 100 * i + j + 1.3, bias[j] = 70000.3 + j")
    lent = Untouched(weight=weight, bias=bias)
    result = getattr(impl, call.partition("(")[0])(weight, bias, *arguments)
    lent.check()
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise Wrong("Two arrays come back: (weight, bias).", "(weight, bias)", result)
    return result


@every(num_in=range(1, 4), width=range(1, 4), size=range(1, 5))
def test_12_1_split_columns(impl, num_in, width, size):
    weight, bias = layer(num_in, width * size)
    for rank in range(size):
        call = f"split_columns(weight {list(weight.shape)}, bias, rank={rank}, size={size})"
        part, part_bias = parts_of(impl, call, weight, bias, rank, size)
        first = rank * width
        why = f"Rank {rank} has the columns {first} to {first + width - 1}, all rows of them, and their bias."
        assert_close("weight", part, weight[:, first : first + width], why, tolerance=0)
        assert_close("bias", part_bias, bias[first : first + width], why, tolerance=0)


@every(height=range(1, 4), num_out=range(1, 4), size=range(1, 5))
def test_12_2_split_rows(impl, height, num_out, size):
    weight, bias = layer(height * size, num_out)
    for rank in range(size):
        call = f"split_rows(weight {list(weight.shape)}, bias, rank={rank}, size={size})"
        part, part_bias = parts_of(impl, call, weight, bias, rank, size)
        first = rank * height
        why = f"Rank {rank} has the rows {first} to {first + height - 1}, all columns of them."
        assert_close("weight", part, weight[first : first + height], why, tolerance=0)
        why = "The results are added up, so a bias that every rank adds would count `size` times: only rank 0 has it."
        assert_close("bias", part_bias, bias if rank == 0 else 0 * bias, why, tolerance=0)


@every(per_rank=range(1, 3), size=range(1, 5), head_size=range(1, 4))
def test_12_3_split_heads(impl, per_rank, size, head_size):
    num_heads = per_rank * size
    width = num_heads * head_size
    weight, bias = layer(width, 3 * width)
    for rank in range(size):
        call = f"split_heads(weight {list(weight.shape)}, bias, num_heads={num_heads}, rank={rank}, size={size})"
        part, part_bias = parts_of(impl, call, weight, bias, num_heads, rank, size)
        first, own = rank * per_rank * head_size, per_rank * head_size
        columns = [third * width + first + i for third in range(3) for i in range(own)]
        why = (
            f"The columns are q of all heads (0 to {width - 1}), then k, then v. Rank {rank} needs the columns "
            f"{columns}: its heads of each. One slice through all three would give it whole q's and nobody's v."
        )
        assert_close("weight", part, weight[:, columns], why, tolerance=0)
        assert_close("bias", part_bias, bias[columns], why, tolerance=0)


SHAPES = [(1,), (2,), (2, 3), (3, 1, 2), (1, 1, 1), (2, 2, 2, 2)]


@every(size=range(1, 6), which=range(len(SHAPES)), seed=range(2))
def test_12_4_all_reduce(impl, size, which, seed):
    rng = np.random.default_rng([size, which, seed])
    shape = SHAPES[which]
    parts = [rng.integers(-72, 73, shape) / 8 + 100.0**rank for rank in range(size)]  # each [*shape]
    parts = [part.astype(np.float32 if seed else float) for part in parts]
    impl.diary.begin()
    impl.diary.note(f"all_reduce({[part.tolist() for part in parts]})")
    lent, handed_in = Untouched(**{f"parts[{i}]": part for i, part in enumerate(parts)}), list(parts)
    sums = impl.all_reduce(handed_in)
    lent.check()
    if not isinstance(sums, list | tuple):
        raise Wrong("A list comes back, with an array for each rank.", list, type(sums))
    expect("the number of results", len(sums), size, "Every rank gets the sum: that is the `all` in all-reduce.")
    for total in sums:
        why = "Every rank gets the sum of all parts, its own included, each once: number by number, in the same shape."
        assert_close("a rank's result", total, sum(part.astype(float) for part in parts), why, 1e-6 if seed else 1e-12)
    if len(handed_in) != size or any(a is not b for a, b in zip(handed_in, parts)):
        raise Wrong("The list of parts was changed. It belongs to somebody else: make a new one.")
    places = [*sums, *parts]
    if any(np.shares_memory(a, b) for i, a in enumerate(places) for b in places[:i]):
        raise Wrong("Two ranks have one and the same array: what one writes, the other reads. Give each a copy.")
