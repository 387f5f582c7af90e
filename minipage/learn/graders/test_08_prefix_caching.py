"""Lesson 8: a PrefixCache over minipage's own pool and tables must find what is known, and never another text."""

from contextlib import contextmanager

from hypothesis import strategies as st

from minipage.learn.graders.common import QUICK, every, expect, passes, remembered, run_machine
from minipage.learn.graders.drawn import given
from minipage.learn.graders.eviction_orders import (  # noqa: F401 (8.8 is judged there)
    test_8_8_at_most_half_of_the_pool,
    test_8_8_the_order,
    test_8_8_what_was_found_is_remembered_until_it_is_handed_out,
    test_8_8_where_lru_loses,
)
from minipage.learn.graders.pools import state_of
from minipage.learn.graders.prefix_examples import computed, make, watching
from minipage.learn.graders.prefix_hashes import (  # noqa: F401 (8.1 is judged there)
    test_8_1_different_texts_have_different_hashes,
    test_8_1_nobody_outside_can_work_out_hashes,
    test_8_1_the_hash_is_a_good_one,
    test_8_1_the_parent_counts,
    test_8_1_the_same_text_has_the_same_hash,
    test_8_1_the_whole_parent_counts,
    test_8_1_with_hashes_always_of_one_length,
    test_8_1_with_hashes_nobody_can_reckon_with,
)
from minipage.learn.graders.prefix_parts import (  # noqa: F401 (8.7 is judged there)
    test_8_7_a_longer_one_outlives_a_shorter_one,
    test_8_7_adopt_from_a_block_in_use,
    test_8_7_adopt_from_a_free_block,
    test_8_7_adopt_the_last_free_block,
    test_8_7_adopt_when_nothing_is_free,
    test_8_7_as_far_as_it_is_written,
    test_8_7_find_what_is_known,
    test_8_7_the_example,
    test_8_7_what_came_before_counts,
)
from minipage.learn.graders.prefix_secret import test_8_5_nobody_can_guess_the_new_secret  # noqa: F401
from minipage.learn.graders.prefix_twins import (  # noqa: F401 (and 8.6, except the last)
    test_8_6_side_by_side,
    test_8_6_that_are_free,
    test_8_6_that_are_ones_own,
    test_8_6_that_others_hold,
)
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable
from minipage.promises.memory_machine import text
from minipage.promises.prefix_machine import machine

sizes = st.integers(1, 3)


@contextmanager
def counted_hashes(cache):
    """The hashes that are computed meanwhile."""
    hashes, block_hash = [], cache.block_hash

    def counted(parent, token_ids):
        hashes.append(block_hash(parent, token_ids))
        return hashes[-1]

    try:
        cache.block_hash = counted
    except AttributeError:  # a class with slots, or a frozen one: then nobody counts
        yield hashes
        return
    try:
        yield hashes
    finally:
        del cache.block_hash


@remembered
@QUICK
@given(size=sizes, lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_8_2_publish(impl, size, lengths):
    with watching(impl):
        pool, cache = make(impl, size, scattered=True)
        _, another = make(impl, size)
        table, tokens = BlockTable(pool), []
        for more in lengths:
            tokens += range(len(tokens), len(tokens) + more)
            table.append(more)
            before, blocks, lent = state_of(pool), list(table.blocks), [*tokens, 7, 7, 7, 7]
            new = len(tokens) // size - max(0, len(table.block_hashes) - 1)
            with counted_hashes(cache) as computed_hashes:
                cache.publish(table, lent, "salt")
            expect("token_ids afterwards", lent, [*tokens, 7, 7, 7, 7], "They belong to somebody else: copy the list.")
            why = "Publishing takes no block and gives none back."
            expect("(free queue, counts)", state_of(pool), before, why)
            now = list(table.blocks), table.num_tokens
            expect(
                "(table.blocks, num_tokens)", now, (blocks, len(tokens)), "Publishing only adds to table.block_hashes."
            )
            full = table.blocks[: len(tokens) // size]
            known = [block for block in range(20) if block in cache]
            why = (
                f"{len(tokens)} tokens are written, so {len(full)} blocks of {size} are full. Only full blocks are "
                "shared: others are still written to. (`block in cache` looks into self._hash_of.)"
            )
            expect("the list of blocks that the cache knows", known, sorted(full), why)
            hashes = [cache.root_hash("salt")]
            for i in range(len(full)):
                hashes.append(cache.block_hash(hashes[-1], tokens[i * size : (i + 1) * size]))
            why = (
                "table.block_hashes is the root hash, and a hash for each full block, which follows the hash before "
                "it. Each once."
            )
            expect("table.block_hashes", table.block_hashes, hashes, why)
            if len(computed_hashes) > new:
                raise Wrong(
                    "What was published before is not published again: publish is called after every step, of every "
                    "text, and a long one would be hashed anew for each of its tokens. table.block_hashes says how far "
                    "it is.",
                    f"{new} new hash(es)", f"{len(computed_hashes)} computed", "what publish does",
                )  # fmt: skip
        others = [block for block in range(20) if block in another]
        expect("the blocks that another cache knows", others, [], "Each keeps its own: in self, not in the class.")
        check_roots(cache, pool, size)


def check_roots(cache, pool, size):
    """Another text, under another salt, and one that is not full."""
    other, part, empty = BlockTable(pool), BlockTable(pool), BlockTable(pool)
    other.append(size)
    cache.publish(other, [0] * size, "pepper")
    hashes = [cache.root_hash("pepper"), cache.block_hash(cache.root_hash("pepper"), [0] * size)]
    expect(
        "the hashes of a text with another salt",
        other.block_hashes,
        hashes,
        "It begins with root_hash(salt), of its own salt.",
    )
    part.append(max(1, size - 1))
    if size > 1:
        cache.publish(part, [5] * size)
        why = "The root alone: nothing is full."
        expect("the hashes of a text without a full block", part.block_hashes, [cache.root_hash("")], why)
    cache.publish(empty, [])
    why = "The root alone: there is no token yet."
    expect("the hashes of an empty table that is published", empty.block_hashes, [cache.root_hash("")], why)


@remembered
@QUICK
@given(size=sizes, first=text(8, 1), second=text(8, 1), same_salt=st.booleans())
def test_8_3_find(impl, size, first, second, same_salt):
    with watching(impl):
        pool, cache = make(impl, size, scattered=True)
        table = computed(cache, first, "salt")
        before, known = (state_of(pool), list(table.block_hashes)), [block in cache for block in range(20)]
        salt = "salt" if same_salt else "pepper"
        found = cache.find(second, salt)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Wrong("find returns two lists: (blocks, hashes).", ([], [cache.root_hash(salt)]), found)
        blocks, hashes = found
        again = cache.find(tuple(second), salt)
        due = []
        for i in range((len(second) - 1) // size):
            if not same_salt or second[: (i + 1) * size] != first[: (i + 1) * size]:
                break
            due.append(table.blocks[i])
        if isinstance(blocks, list) and len(blocks) * size >= len(second):
            raise Wrong(
                "All of the text was found, and no token is left to compute: but nobody kept the logits of the last "
                "one, which say what comes next (nano-vllm #114). Leave at least one.", due, blocks, "the blocks",
            )  # fmt: skip
        why = (
            "As far as the text is the same, in full blocks, under the same salt, and with one token left to compute. "
            "A block after the first difference holds another context."
        )
        expect("the blocks", blocks, due, why)
        why = "The hashes are the root hash of this salt, and the hash of each block that was found."
        expect("the number of hashes", len(hashes), len(due) + 1, why)
        expect("the hashes", hashes, [cache.root_hash(salt), *table.block_hashes[1 : len(due) + 1]], why)
        root = cache.find(second)[1][:1]
        expect("the root hash if no salt is given", root, [cache.root_hash("")], "Then the salt is the empty one.")
        after = state_of(pool), list(table.block_hashes)
        why = "Looking changes nothing: whoever asked may not be admitted."
        expect("((free queue, counts), hashes)", after, before, why)
        expect("which blocks are known", [block in cache for block in range(20)], known, why)
        expect("what a second look finds", (list(again[0]), list(again[1])), (due, list(hashes)), why)
        if hashes is again[1] or blocks is again[0]:
            raise Wrong("Each look gives lists of its own: what one request does with its lists is its affair.")


@remembered
@every(size=range(1, 4), num_blocks=range(5), num_free=range(5), others=range(1, 3))
def test_8_4_adopt(impl, size, num_blocks, num_free, others):
    """Of the blocks that are adopted the last `num_free` lie in the free queue; `others` hold each of the first."""
    with watching(impl):
        pool, cache = make(impl, size, scattered=True)
        blocks = pool.allocate_many(num_blocks)
        free = blocks[max(0, num_blocks - num_free) :]
        for block in blocks[::-1]:
            if block in free:
                pool.free(block)
            for _ in range(0 if block in free else others - 1):
                pool.share(block)
        told = []
        pool.on_evict = told.append
        hashes = [cache.root_hash("")] + [b"hash %d" % block for block in blocks]
        due_counts = [count + (block in blocks) for block, count in enumerate(state_of(pool)[1])]
        due_queue = [block for block in pool.free_queue if block not in blocks]
        table, lent = BlockTable(pool), (list(blocks), list(hashes))
        impl.diary.note(f"blocks {blocks}: {free} are free, the others in use")
        cache.adopt(table, *lent)
        why = "The table begins with the blocks that were found, in order."
        expect("table.blocks", table.blocks, blocks, why)
        why = "All tokens of the adopted blocks are computed."
        expect("table.num_tokens", table.num_tokens, num_blocks * size, why)
        why = "The hashes go along, or everything would be published a second time."
        expect("table.block_hashes", table.block_hashes, hashes, why)
        if table.blocks is lent[0] or table.block_hashes is lent[1]:
            raise Wrong("The table needs lists of its own: the one it was given belongs to somebody else.")
        expect("the lists that were handed in", lent, (blocks, hashes), "They belong to somebody else: copy them.")
        queued = [block for block in blocks if block in pool.free_queue]
        why = "Blocks that were free have to leave the free queue (pool.revive), with one reference each."
        expect("those of the blocks that are in the free queue", queued, [], why)
        why = (
            "Each block gets one reference more: those that others hold (pool.share), or they are freed too early, and "
            "those that were free (pool.revive)."
        )
        expect("the reference counts", state_of(pool)[1], due_counts, why)
        why = "Nothing else leaves the free queue, and the others keep their order."
        expect("the free queue", list(pool.free_queue), due_queue, why)
        why = "Nothing is handed out for new contents: what these blocks hold is what is wanted (revive, not allocate)."
        expect("what on_evict was called with", told, [], why)


@remembered
def test_8_5_forget(impl):
    with watching(impl):
        pool, cache = make(impl, 2, num_blocks=3, forgets=True)
        computed(cache, [1, 2, 3, 4]).free()
        expect("find([1, 2, 3, 4, 5])[0]", cache.find([1, 2, 3, 4, 5])[0], [0, 1], "A freed block can still be found.")
        pool.allocate()
        found = cache.find([1, 2, 3, 4, 5])[0]
        expect("find([1, 2, 3, 4, 5])[0]", found, [0, 1], "Block 2 was handed out, which nobody knew: nothing is lost.")
        pool.allocate()
        found = cache.find([1, 2, 3, 4, 5])[0]
        why = (
            "Block 1 was handed out for something else, so it cannot be found any more: a later request would get "
            "another prompt's K and V (nano-vllm #163)."
        )
        expect("find([1, 2, 3, 4, 5])[0]", found, [0], why)
        expect("1 in cache", 1 in cache, False, why)


def test_8_5_a_block_that_was_forgotten_can_be_published_again(impl):
    with watching(impl):
        pool, cache = make(impl, 2, num_blocks=1, forgets=True)
        computed(cache, [1, 2]).free()
        computed(cache, [3, 4]).free()
        found = cache.find([1, 2, 0])[0], cache.find([3, 4, 0])[0]
        why = "The one block of this pool holds [3, 4] now, and is found under that text alone."
        expect("(find([1, 2, 0])[0], find([3, 4, 0])[0])", found, ([], [0]), why)
        expect("the free queue", pool.free_queue, (0,), "Forgetting is not freeing: the pool is left alone.")


def test_8_5_a_text_without_its_head_cannot_be_found(impl):
    with watching(impl):
        pool, cache = make(impl, 1, num_blocks=3, forgets=True)
        table = computed(cache, [1, 2, 3])
        for block in list(table.blocks):  # from its head, as it should not be
            pool.free(block)
        pool.allocate()
        why = (
            "Block 0 was handed out. Without it nobody knows what the others rest on: find stops at the first unknown."
        )
        expect("find([1, 2, 3, 4])[0]", cache.find([1, 2, 3, 4])[0], [], why)
        why = "Blocks 1 and 2 were not handed out, and nobody has to forget them."
        expect("[block in cache]", [block in cache for block in range(3)], [False, True, True], why)
        before = state_of(pool)
        for block in (0, 0, 1, 1):
            cache.forget(block)
        why = "A block can be forgotten twice, or without having been known; and then it is not known."
        expect("[block in cache]", [block in cache for block in range(3)], [False, False, True], why)
        expect("(free queue, counts)", state_of(pool), before, "Forgetting is not freeing: the pool is left alone.")


@remembered
def test_8_5_reset(impl):
    with watching(impl):
        pool, cache = make(impl, 2, forgets=True)
        table = computed(cache, [1, 2, 3])
        root = cache.root_hash("")
        cache.reset()
        why = "After a reset nothing can be found: what is in the blocks was computed with other weights."
        expect("find([1, 2, 3])[0]", cache.find([1, 2, 3])[0], [], why)
        expect("0 in cache", 0 in cache, False, why)
        expect("pool.ref_count(0)", pool.ref_count(0), 1, "The texts that are under way keep their blocks.")
        table.append(1)
        cache.publish(table, [1, 2, 3, 4])
        computed(cache, [1, 2])  # with the new weights
        if cache.root_hash("") == root or 1 in [*cache.find([1, 2, 3, 4, 5])[0]]:
            raise Wrong(
                "A text that was under way during the reset published a block after its old hashes, and a new request "
                "found it: its K and V rest on old weights. Draw a new self._secret, and all roots and hashes change."
            )


def test_8_5_every_reset_draws_a_new_secret(impl):
    with watching(impl):
        caches = [make(impl, 2, forgets=True)[1] for _ in range(2)]
        seen = []
        for number in range(3):
            for cache in caches:
                seen.append(cache.root_hash(""))
                seen.append(cache.block_hash(b"parent", [1, 2]))
                cache.reset()
            if len(set(seen)) < len(seen):
                raise Wrong(
                    f"After {number} reset(s) a root or a hash was the same as before, or as another cache's. Each "
                    "reset draws a new secret at random: with one that is always the same, texts of before the last "
                    "reset and after the one before it have equal hashes, and everybody can work them out."
                )


def test_8_6_all_together(impl):
    """Random programs; whatever is found is read back, token by token."""
    others = test_8_2_publish, test_8_3_find, test_8_4_adopt, test_8_5_forget, test_8_5_reset
    if all(passes(impl, grader) for grader in others):  # otherwise it has been said what is wrong
        with impl.diary.watching(BlockPool, BlockTable, impl.PrefixCache):
            run_machine(impl, machine(Cache=impl.PrefixCache), count=40)
