"""Lesson 3: a BlockPool runs beside a list and some numbers, and after every call the two must agree."""

from functools import partial

from hypothesis import strategies as st

from minipage.errors import BlockError, ConfigurationError, OutOfBlocksError
from minipage.learn.graders.common import QUICK, expect, must_raise, passes, remembered
from minipage.learn.graders.drawn import given
from minipage.learn.judge import Wrong


class Oracle:
    """A pool that is plain to see: the free queue is a list, and nothing is fast."""

    def __init__(self, num_blocks):
        self.queue = list(range(num_blocks))
        self.counts = [0] * num_blocks
        self.told = []  # what on_evict was called with

    def allocate(self):
        return self.allocate_many(1)[0]

    def allocate_many(self, count):
        if count < 0:
            raise ConfigurationError
        if count > len(self.queue):
            raise OutOfBlocksError
        blocks, self.queue = self.queue[:count], self.queue[count:]
        for block in blocks:
            self.counts[block] = 1
        self.told += blocks
        return blocks

    def count(self, block):
        if block not in range(len(self.counts)):
            raise BlockError
        return self.counts[block]

    def free(self, block):
        if self.count(block) == 0:
            raise BlockError
        self.counts[block] -= 1
        if self.counts[block] == 0:
            self.queue.append(block)

    def share(self, block):
        if self.count(block) == 0:
            raise BlockError
        self.counts[block] += 1

    def revive(self, block):
        if self.count(block) > 0:
            raise BlockError
        self.queue.remove(block)
        self.counts[block] = 1


LEAVES = "A block in use leaves the free queue; the others keep their order."
ONE = "A block that was just handed out has exactly one reference, and no other block's count changes."
TOLD = "on_evict has to be called with each block that is handed out, once: the prefix cache must forget what it held."
NOT_TOLD = "on_evict is for blocks that get new contents; this call hands none out."
WHY = {  # (method, what differs): the sentence for it
    ("allocate", "result"): "allocate takes the block at the front of the free queue, and returns its number.",
    ("allocate", "free_queue"): LEAVES,
    ("allocate", "counts"): ONE,
    ("allocate", "told"): TOLD,
    (
        "allocate",
        "error",
    ): "With no block free, allocate has to raise OutOfBlocksError, so that the scheduler can react.",
    (
        "allocate_many",
        "result",
    ): "allocate_many takes its blocks from the front of the free queue, in order, as a list.",
    ("allocate_many", "free_queue"): LEAVES,
    ("allocate_many", "counts"): ONE,
    ("allocate_many", "told"): TOLD,
    ("allocate_many", "error"): (
        "More blocks than are free: OutOfBlocksError, before anything is taken. Fewer than none: ConfigurationError."
    ),
    ("free", "result"): "free returns nothing.",
    ("free", "free_queue"): (
        "Only when its last reference is gone does a block go back, and then to the end of the free queue: the block "
        "freed longest ago is reused first."
    ),
    ("free", "counts"): "free drops one reference: no more, because other tables may hold the block, and no fewer.",
    ("free", "told"): NOT_TOLD,
    ("free", "error"): "A block that is free already cannot be freed: that is somebody's bug, so raise BlockError.",
    ("share", "result"): "share returns nothing.",
    ("share", "free_queue"): "share leaves the free queue alone.",
    ("share", "counts"): "share adds one reference to the block, so that it takes one more free() to give it back.",
    ("share", "told"): NOT_TOLD,
    ("share", "error"): "A free block may be handed out at any moment, so it cannot be shared: raise BlockError.",
    ("revive", "result"): "revive returns nothing.",
    (
        "revive",
        "free_queue",
    ): "revive takes this block out of the queue, from wherever it is; the others keep their order.",
    ("revive", "counts"): "A revived block has one reference, and no other block's count changes.",
    ("revive", "told"): "What a revived block holds is still good. on_evict would make the prefix cache forget it.",
    ("revive", "error"): "A block in use cannot be revived, it can be shared: raise BlockError.",
}
FAILED_CALL = "A call that fails must leave everything as it was: here something was taken, counted or lost."
OWN = "Each pool has a queue and counts of its own; keep them in self, not in the class."


def why_error(method, number, num_blocks):
    if method in ("allocate", "allocate_many") or number in range(num_blocks):
        return WHY[method, "error"]
    why = f"There are blocks 0 to {num_blocks - 1} here, and no block {number}: {method} has to raise BlockError"
    return why + ("; in Python, counts[-1] is the last one, which would hide a bug." * (number < 0) or ".")


def run(solution, num_blocks, calls):
    """Make the calls on both pools. A call is (method, number): how many blocks, or which one."""
    solution.diary.begin()
    bystander = solution.BlockPool(2)
    with solution.diary.watching(solution.BlockPool):
        pool, oracle = solution.BlockPool(num_blocks, block_size=4), Oracle(num_blocks)
        told = []
        pool.on_evict = told.append
        compare("a new pool", pool, oracle, told)
        for i, (method, number) in enumerate(calls):
            if i == (len(calls) + 1) // 2:
                solution.BlockPool(2)
                compare("another pool", pool, oracle, told, why=OWN)
            if method not in ("allocate", "allocate_many") and number > num_blocks:
                number %= num_blocks  # so that one block too many is asked for, and no more
            arguments = () if method == "allocate" else (number,)
            try:
                expected = getattr(oracle, method)(*arguments)
            except (BlockError, ConfigurationError, OutOfBlocksError) as error:
                why = why_error(method, number, num_blocks)
                must_raise(type(error), partial(getattr(pool, method), *arguments), why)
                compare(method, pool, oracle, told, failed=True)
            else:
                result = getattr(pool, method)(*arguments)
                expect(f"the result of {method}", result, expected, WHY[method, "result"])
                compare(method, pool, oracle, told)
    expect("the free queue of another pool, which nobody has used,", bystander.free_queue, (0, 1), OWN)


def compare(method, pool, oracle, told, failed=False, why=""):
    """`why` is the sentence for whatever differs, if there is one for all."""
    counts = [pool.ref_count(block) for block in range(len(oracle.counts))]
    if not isinstance(pool.free_queue, tuple):
        why = "free_queue is a tuple, so that nobody can change the queue from outside."
        raise Wrong(why, tuple(oracle.queue), pool.free_queue, "free_queue")
    seen = {"free_queue": list(pool.free_queue), "counts": counts, "told": told}
    for name, due in (("counts", oracle.counts), ("free_queue", oracle.queue), ("told", oracle.told)):
        what = {"free_queue": "the free queue", "counts": "the list of reference counts"}
        default = FAILED_CALL if failed else WHY.get((method, name), "A new pool is all free: 0, 1, 2, ...")
        expect(what.get(name, "what on_evict was told"), seen[name], due, why or default)
    default = "num_free counts the blocks in the free queue."
    expect("pool.num_free", pool.num_free, len(oracle.queue), why or default)
    default = "num_used is all the blocks that are not free."
    expect("pool.num_used", pool.num_used, pool.num_blocks - len(oracle.queue), why or default)


def calls(*methods):
    numbers = st.integers(-1, 6)
    return st.lists(st.tuples(st.sampled_from(methods), numbers), max_size=25)


def test_3_1_a_new_pool_is_all_free(impl):
    for num_blocks in (1, 3, 40):
        run(impl, num_blocks, [])
    pool = impl.BlockPool(3)
    expect("pool.num_used", pool.num_used, 0, "num_used is all the blocks that are not free.")
    why = "The engine asks a pool for num_blocks and block_size; a block has 16 slots unless another number is given."
    expect("(num_blocks, block_size) of BlockPool(3)", (pool.num_blocks, pool.block_size), (3, 16), why)


def test_3_1_only_blocks_that_exist_have_a_count(impl):
    for block in (3, -1, 4, -3):
        impl.diary.begin()
        with impl.diary.watching(impl.BlockPool):
            pool = impl.BlockPool(3, 4)
            impl.diary.note(f"pool.ref_count({block})")
            why = f"There are blocks 0 to 2 here, and no block {block}" + (
                ": in Python, counts[-1] is the last one, which would hide a bug." if block < 0 else "."
            )
            must_raise(BlockError, lambda: pool.ref_count(block), why)  # noqa: B023


def test_3_1_two_pools_have_nothing_in_common(impl):
    first, second = impl.BlockPool(3, 4), impl.BlockPool(2, 4)
    for pool, due in ((first, (0, 1, 2)), (second, (0, 1))):
        expect("free_queue", pool.free_queue, due, OWN)


def test_3_2_on_evict_need_not_be_set(impl):
    impl.diary.begin()
    with impl.diary.watching(impl.BlockPool):
        impl.BlockPool(2, 4).allocate()  # as it is in an engine without a prefix cache


@QUICK
@given(num_blocks=st.integers(1, 5), calls=calls("allocate"))
def test_3_2_allocate(impl, num_blocks, calls):
    run(impl, num_blocks, calls)


@QUICK
@given(num_blocks=st.integers(1, 5), calls=calls("allocate", "allocate", "free"))
def test_3_3_free(impl, num_blocks, calls):
    run(impl, num_blocks, calls)


@QUICK
@given(num_blocks=st.integers(1, 4), calls=calls("allocate", "share", "free"))
def test_3_4_share(impl, num_blocks, calls):
    run(impl, num_blocks, calls)


def test_3_4_as_many_references_as_there_are_tables(impl):
    run(impl, 2, [("allocate", 0), *[("share", 0)] * 9, *[("free", 0)] * 11])


def test_3_4_there_may_be_hundreds(impl):
    """More than fit into 8 bits, signed or not."""
    run(impl, 2, [("allocate", 0), *[("share", 0)] * 300, *[("free", 0)] * 302])


@remembered
@QUICK
@given(num_blocks=st.integers(1, 5), calls=calls("allocate_many", "allocate_many", "share", "free"))
def test_3_5_allocate_many(impl, num_blocks, calls):
    run(impl, num_blocks, calls)


@QUICK
@given(num_blocks=st.integers(1, 5), calls=calls("allocate", "revive", "free", "share", "allocate"))
def test_3_6_revive(impl, num_blocks, calls):
    run(impl, num_blocks, calls)


@QUICK
@given(num_blocks=st.integers(1, 5), calls=calls("allocate_many", "revive", "free", "share", "allocate"))
def with_allocate_many(impl, num_blocks, calls):
    run(impl, num_blocks, calls)


def test_3_6_all_together(impl):
    if passes(impl, test_3_5_allocate_many):  # otherwise it has been said what is wrong
        with_allocate_many(impl)
