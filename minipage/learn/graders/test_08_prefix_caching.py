"""Lesson 8: a PrefixCache over minipage's own pool and tables must find what is known, and never another text."""

from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import QUICK, every, expect, run_machine
from minipage.learn.graders.memory_machine import text
from minipage.learn.graders.prefix_machine import machine
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable

sizes = st.integers(1, 3)


def make(impl, size, num_blocks=20, forgets=False):
    """A cache and its pool; before exercise 8.5 the pool does not tell it when blocks are handed out."""
    pool = BlockPool(num_blocks, size)
    cache = impl.PrefixCache(pool)
    if not forgets:
        pool.on_reuse = lambda block: None
    return pool, cache


def watching(impl):
    impl.diary.begin()
    return impl.diary.watching(BlockPool, BlockTable, impl.PrefixCache)


def computed(cache, tokens, salt=""):
    table = BlockTable(cache.pool)
    table.append(len(tokens))
    cache.publish(table, tokens, salt)
    return table


CONFUSED = [
    ([1, 23], [12, 3], "the same digits, cut at another place"),
    ([5, 6], [4, 7], "one token goes up by 1, its neighbour down: a hash that adds them up collides"),
    ([5, 6], [6, 5], "the same tokens in another order"),
    ([0, 0], [0, 1], "small numbers"),
    ([256, 1], [1, 256], "numbers that do not fit into a byte"),
    ([2**40, 1], [2**40 + 1, 0], "large numbers"),
    ([0], [0, 0], "a token more"),
    ([], [0], "no token"),
]


def test_8_1_different_texts_have_different_keys(impl):
    _, cache = make(impl, 2)
    for one, other, kind in CONFUSED:
        impl.diary.begin()
        impl.diary.note(f"cache.key(parent, {one}) and cache.key(parent, {other})")
        keys = cache.key(b"parent", one), cache.key(b"parent", other)
        if keys[0] == keys[1]:
            raise Wrong(f"Two texts have one key ({kind}), so one would be given the other's K and V.")


def test_8_1_the_same_text_has_the_same_key(impl):
    _, cache = make(impl, 2)
    why = "The same parent and tokens have the same key, always, and whether they come as a list or a tuple."
    if cache.key(b"parent", [5, 6]) != cache.key(b"parent", (5, 6)):
        raise Wrong(why)
    if not isinstance(cache.key(b"parent", [5, 6]), bytes):
        raise Wrong("A key is bytes: digest(), not the hash object or a number.", bytes, cache.key(b"parent", [5, 6]))


def test_8_1_the_parent_counts(impl):
    _, cache = make(impl, 2)
    if cache.key(b"parent", [5, 6]) == cache.key(b"another", [5, 6]):
        raise Wrong("The same tokens after another beginning have other K and V: the parent's key belongs in the hash.")
    if cache.key(b"parent1", [5]) == cache.key(b"parent", [15]):
        raise Wrong(
            "Parent and tokens run into each other: `parent1` + `5` is not `parent` + `15`. Put a mark between."
        )


def test_8_1_nobody_outside_can_work_out_keys(impl):
    keys = {make(impl, 2)[1].key(b"parent", [5, 6]) for _ in range(2)}
    if len(keys) == 1:
        raise Wrong(
            "Two caches give a text the same key, so anybody can work out keys, and look for two texts with one "
            "(vLLM #12621). Hash under self._secret: hashlib.blake2b(text, key=self._secret)."
        )


@QUICK
@given(size=sizes, lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_8_2_publish(impl, size, lengths):
    with watching(impl):
        pool, cache = make(impl, size)
        table, tokens = BlockTable(pool), []
        for more in lengths:
            tokens += range(len(tokens), len(tokens) + more)
            table.append(more)
            cache.publish(table, [*tokens, 7, 7, 7, 7], "salt")
            full = table.blocks[: len(tokens) // size]
            known = [block for block in range(20) if block in cache]
            why = (
                f"{len(tokens)} tokens are written, so {len(full)} blocks of {size} are full. Only full blocks are "
                "shared: others are still written to. (`block in cache` looks into self._key_of.)"
            )
            expect("the list of blocks that the cache knows", known, sorted(full), why)
            keys = [cache.root("salt")]
            for i in range(len(full)):
                keys.append(cache.key(keys[-1], tokens[i * size : (i + 1) * size]))
            why = "table.keys is the root, and a key for each full block, which follows the key before it. Each once."
            expect("table.keys", table.keys, keys, why)
        expect(
            "the blocks that are in use", pool.num_used, len(table), "Publishing takes no block and gives none back."
        )


@QUICK
@given(size=sizes, first=text(8, 1), second=text(8, 1), same_salt=st.booleans())
def test_8_3_find(impl, size, first, second, same_salt):
    with watching(impl):
        pool, cache = make(impl, size)
        table = computed(cache, first, "salt")
        before = pool.free_queue, [pool.ref_count(block) for block in range(20)], list(table.keys)
        salt = "salt" if same_salt else "pepper"
        found = cache.find(second, salt)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Wrong("find returns two lists: (blocks, keys).", ([], [cache.root(salt)]), found)
        blocks, keys = found
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
        why = "The keys are the root of this salt, and the key of each block that was found."
        expect("the number of keys", len(keys), len(due) + 1, why)
        expect("the keys", keys, [cache.root(salt), *table.keys[1 : len(due) + 1]], why)
        after = pool.free_queue, [pool.ref_count(block) for block in range(20)], list(table.keys)
        expect(
            "(free queue, counts, keys)", after, before, "Looking changes nothing: whoever asked may not be admitted."
        )


@every(size=range(1, 4), num_blocks=range(1, 5), is_free=range(2))
def test_8_4_adopt(impl, size, num_blocks, is_free):
    with watching(impl):
        pool, cache = make(impl, size)
        tokens = list(range(num_blocks * size + 1))
        first = computed(cache, tokens)
        if is_free:
            first.free()
        blocks, keys = cache.find(tokens)
        table = BlockTable(pool)
        cache.adopt(table, blocks, keys)
        expect(
            "table.blocks", list(table.blocks), blocks, "The table begins with the blocks that were found, in order."
        )
        expect(
            "table.num_tokens", table.num_tokens, len(blocks) * size, "All tokens of the adopted blocks are computed."
        )
        expect(
            "table.keys", list(table.keys), keys, "The keys go along, or everything would be published a second time."
        )
        if table.blocks is blocks or table.keys is keys:
            raise Wrong("The table needs lists of its own: the one it was given belongs to somebody else.")
        counts = [pool.ref_count(block) for block in blocks]
        if is_free:
            why = "These blocks were free. They have to leave the free queue (pool.revive), with one reference each."
        else:
            why = (
                "Another table holds these blocks. Each gets one reference more (pool.share), or it is freed too early."
            )
        expect("the reference counts", counts, [1 if is_free else 2] * len(blocks), why)
        queued = [block for block in blocks if block in pool.free_queue]
        expect("those of the blocks that are in the free queue", queued, [], why)


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


def test_8_5_reset(impl):
    with watching(impl):
        pool, cache = make(impl, 2, forgets=True)
        table = computed(cache, [1, 2, 3])
        root = cache.root("")
        cache.reset()
        why = "After a reset nothing can be found: what is in the blocks was computed with other weights."
        expect("find([1, 2, 3])[0]", cache.find([1, 2, 3])[0], [], why)
        expect("0 in cache", 0 in cache, False, why)
        expect("pool.ref_count(0)", pool.ref_count(0), 1, "The texts that are under way keep their blocks.")
        table.append(1)
        cache.publish(table, [1, 2, 3, 4])
        computed(cache, [1, 2])  # with the new weights
        if cache.root("") == root or 1 in [*cache.find([1, 2, 3, 4, 5])[0]]:
            raise Wrong(
                "A text that was under way during the reset published a block after its old keys, and a new request "
                "found it: its K and V rest on old weights. Draw a new self._secret, and all roots and keys change."
            )


def test_8_6_twins(impl):
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


def test_8_6_all_together(impl):
    """Random programs; whatever is found is read back, token by token."""
    with impl.diary.watching(BlockPool, BlockTable, impl.PrefixCache):
        run_machine(impl, machine(Cache=impl.PrefixCache), count=40)
