"""Two texts with one beginning, computed side by side: exercise 8.6, example by example."""

from minipage.errors import BlockError
from minipage.learn.graders.common import expect
from minipage.learn.graders.pools import state_of
from minipage.learn.graders.prefix_examples import computed, make, watching
from minipage.learn.judge import Wrong
from minipage.memory import BlockTable


def test_8_6_side_by_side(impl):
    with watching(impl):
        pool, cache = make(impl, 2, num_blocks=8, forgets=True)
        first, second = BlockTable(pool), BlockTable(pool)
        for table in (first, second):
            table.append(5)
        for table in (first, second):
            cache.publish(table, [1, 2, 3, 4, 5])
        why = (
            "Both computed [1, 2, 3, 4] side by side. Blocks 0 and 1 were published first, so the second table takes "
            "those, and nothing is stored twice (nano-vllm #219). Its part-full block stays its own."
        )
        expect("the second table's blocks", list(second.blocks), [0, 1, 5], why)
        counts = [pool.ref_count(block) for block in range(6)]
        why = "Blocks 0 and 1 have two holders now; the second table's own, 3 and 4, were given back."
        expect("the reference counts", counts, [2, 2, 1, 0, 0, 1], why)
        why = "The first to be published is the one that is known: which block each of them finds must not change."
        expect("find([1, 2, 3, 4, 5])[0]", cache.find([1, 2, 3, 4, 5])[0], [0, 1], why)


def test_8_6_that_are_free(impl):
    with watching(impl):
        pool, cache = make(impl, 2, num_blocks=6, forgets=True)
        first, second = BlockTable(pool), BlockTable(pool)
        for table in (first, second):
            table.append(4)
        cache.publish(first, [1, 2, 3, 4])
        first.free()  # blocks 1 and 0 can still be found, until somebody else gets them
        try:
            cache.publish(second, [1, 2, 3, 4])
        except BlockError as error:
            raise Wrong(
                "Blocks 0 and 1 are known for this text and lie in the free queue: their table was freed. A reference "
                f"to a free block is taken with pool.revive, as in adopt; here: {error}"
            ) from error
        why = "Blocks 0 and 1 are known, and free: the table revives them, and gives its own, 2 and 3, back."
        expect("the second table's blocks", second.blocks, [0, 1], why)
        expect("the reference counts", state_of(pool)[1], [1, 1, 0, 0, 0, 0], why)
        expect("the free queue, sorted", sorted(pool.free_queue), [2, 3, 4, 5], why)
        pool.check_integrity([first, second])
        why = "What they hold is still there, and can be found."
        expect("find([1, 2, 3, 4, 5])[0]", cache.find([1, 2, 3, 4, 5])[0], [0, 1], why)


def test_8_6_that_are_ones_own(impl):
    with watching(impl):
        pool, cache = make(impl, 2, num_blocks=8, forgets=True)
        table = computed(cache, [1, 2, 3, 4])
        table.block_hashes = []  # it forgot that it was published
        fork = table.fork()
        for each in (table, fork, fork):
            cache.publish(each, [1, 2, 3, 4])
        why = "The known blocks are its own already: nothing is taken, nothing given back."
        expect("the tables' blocks", (table.blocks, fork.blocks), ([0, 1], [0, 1]), why)
        expect("the reference counts", state_of(pool)[1], [2, 2] + [0] * 6, why)


def test_8_6_that_others_hold(impl):
    with watching(impl):
        pool, cache = make(impl, 2, num_blocks=8, forgets=True)
        first, second = BlockTable(pool), BlockTable(pool)
        first.append(2)
        second.append(2)
        third = second.fork()
        for each in (first, second):
            cache.publish(each, [1, 2])
        why = "Only the table that is published takes the known block; it gives back its own reference, and no other's."
        expect("the blocks", (first.blocks, second.blocks, third.blocks), ([0], [0], [1]), why)
        expect("the reference counts", state_of(pool)[1], [2, 1] + [0] * 6, why)
        cache.publish(third, [1, 2])
        expect("the third table's blocks", third.blocks, [0], why)
        expect("the reference counts", state_of(pool)[1], [3, 0] + [0] * 6, why)
