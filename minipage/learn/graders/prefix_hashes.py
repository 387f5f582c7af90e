"""The hashes of lesson 8: two different texts never have the same one, and nobody outside can work one out."""

import zlib
from contextlib import contextmanager
from types import CodeType, FunctionType

from minipage.learn.graders.common import expect, name_of
from minipage.learn.graders.prefix_examples import make
from minipage.learn.judge import Wrong

CONFUSED = [
    ([1, 23], [12, 3], "the same digits, cut at another place"),
    ([5, 6], [4, 7], "one token goes up by 1, its neighbour down: a hash that adds them up collides"),
    ([5, 6], [6, 5], "the same tokens in another order"),
    ([0, 0], [0, 1], "small numbers"),
    ([256, 1], [1, 256], "numbers that do not fit into a byte"),
    ([2**40, 1], [2**40 + 1, 0], "large numbers"),
    ([2**61 - 1, 1], [0, 1], "Python's hash() counts modulo 2**61 - 1"),
    ([2**32 + 7], [7], "numbers that do not fit into 32 bits"),
    ([0], [0, 0], "a token more"),
    ([], [0], "no token"),
    ([1], [1, 1], "the same token twice"),
    ([1, 1, 2], [1, 2, 2], "a set has no doubles"),
    ([2**53], [2**53 + 1], "numbers that a float rounds to the same"),
    ([2**63 - 1], [2**63 - 2], "the largest numbers"),
    ([1] * 64, [1] * 63 + [2], "the last of many tokens"),
    ([1] * 2000, [1] * 1000 + [2] + [1] * 999, "in the middle of very many tokens, which NumPy shows as ..."),
]
PARENTS = [
    b"",
    b"p",
    b"q",
    b"p1",
    b"p,1",
    b"p;1",
    b"p|1",
    b"p 1",
    b"p[1",
    b"p(1",
    b"p:1",
    b"p,5",
    b"p|5",
    b"p;5",
    b"p\x00",
]
PARENTS += [b"parent", b"tnerap", b"arent", b"parent, 5", b"parent[5, 6"]
PARENTS += [
    b"x" * 64 + b"1",
    b"x" * 64 + b"2",
    b"1" + b"x" * 64,
    b"1" + b"x" * 128,
    b"x" * 129,
    b"x" * 64 + b"1" + b"x" * 64,
]
PARENTS += [b"\x00", b"\x00p", b"\x00" * 32, b" p", b"p ", b"P", b"p\xff"]
TOKENS = [[], [0], [1], [5], [6], [15], [5, 6], [6, 5], [1, 5], [1, 5, 6], [1, 6], [1, 1, 5], [1, 15], [11, 5], [0, 5]]
LEAST = 16  # bytes of a hash
MARKS = [b"", *(bytes([i]) for i in range(256)), b"||", b"::", b"--", b", ", b"\x00\x00"]  # between parent and tokens


def run_together(marks):
    """Pairs of (parent, tokens) that are the same bytes if a parent, a mark and tokens of fixed width, or tokens that
    end with a mark, are joined without saying where the parent ends."""
    for mark in marks:
        for width in (8, 16):
            for order in ("big", "little"):
                padded = mark.rjust(width * max(1, -(-len(mark) // width)), b"\0")  # tokens that end like the mark
                pieces = [padded[i : i + width] for i in range(0, len(padded), width)]
                tokens = [int.from_bytes(piece, order) for piece in pieces]
                if max(tokens) < 2**63:
                    yield (b"x", [*tokens, 2]), ((b"x" + mark + padded).removesuffix(mark), [2])
        if len(mark) == 1:
            yield (b"x", [1, 1]), (b"x", [2**16 + 256 * mark[0] + 1])


def marks_of(impl):
    """The strings in the learner's code: one of them may be the mark between parent and tokens."""
    things = [*vars(impl.module).values(), *vars(impl.PrefixCache).values()]
    for thing in [*things, *(thing.__code__ for thing in things if isinstance(thing, FunctionType))]:
        for each in thing.co_consts if isinstance(thing, CodeType) else [thing]:
            if isinstance(each, bytes) or (isinstance(each, str) and len(each) < 50):
                yield each if isinstance(each, bytes) else each.encode("utf-8", "replace")


LONGER = [(b"", []), (b"p" * 32, [1] * 16), (b"p" * 100, [2**60] * 500), (b"p" * 3000, [7])]


def brief(tokens):
    return tokens if len(tokens) < 9 else f"[{len(tokens)} tokens]"


def hash_of(impl, cache, parent, tokens):
    block_hash = cache.block_hash(parent, tokens)
    if not isinstance(block_hash, bytes):
        raise Wrong(f"A hash is bytes: digest(), not {name_of(block_hash)}.", bytes, block_hash, "a hash")
    if len(block_hash) < LEAST:
        why = (
            f"A hash of {len(block_hash)} bytes is too short: of so few, two different texts have the same one by "
            f"chance. {LEAST} are enough for ever; hashlib's digests have 16 to 64."
        )
        raise Wrong(why, f"at least {LEAST} bytes", f"{len(block_hash)} bytes", "a hash")
    return block_hash


@contextmanager
def without_weak_hashes(impl):
    """Python's own hash() and checksums are not made against people who look for collisions."""

    def refuse(name):
        def weak(*args):
            raise Wrong(
                f"{name} is not a cryptographic hash: whoever wants to finds two texts with one hash. hashlib has some."
            )

        return weak

    saved = zlib.crc32, zlib.adler32
    zlib.crc32, zlib.adler32 = refuse("zlib.crc32"), refuse("zlib.adler32")
    names = {"hash": refuse("Python's hash()")}
    names |= {
        name: refuse(f"zlib.{function.__name__}")
        for name, thing in vars(impl.module).items() for function in saved if thing is function
    }  # fmt: skip
    before = {name: vars(impl.module).get(name) for name in names}
    vars(impl.module).update(names)
    try:
        yield
    finally:
        zlib.crc32, zlib.adler32 = saved
        for name, thing in before.items():
            vars(impl.module).pop(name)
            if thing is not None:
                setattr(impl.module, name, thing)


def test_8_1_different_texts_have_different_hashes(impl):
    _, cache = make(impl, 2)
    for one, other, kind in CONFUSED:
        impl.diary.begin()
        impl.diary.note(f"cache.block_hash(parent, {brief(one)}) and cache.block_hash(parent, {brief(other)})")
        if hash_of(impl, cache, b"parent", one) == hash_of(impl, cache, b"parent", other):
            raise Wrong(f"Two texts have one hash ({kind}), so one would be given the other's K and V.")


def test_8_1_the_same_text_has_the_same_hash(impl):
    _, cache = make(impl, 2)
    impl.diary.begin()
    impl.diary.note("cache.block_hash(parent, [5, 6]) and cache.block_hash(parent, (5, 6)), twice")
    why = "The same parent and tokens have the same hash, always, and whether they come as a list or a tuple."
    for _ in range(2):
        if hash_of(impl, cache, b"parent", [5, 6]) != hash_of(impl, cache, b"parent", (5, 6)):
            raise Wrong(why)
    first = [hash_of(impl, cache, b"parent", [5, 6]), hash_of(impl, cache, b"parent", [5])]
    again = [hash_of(impl, cache, b"parent", [5, 6]), hash_of(impl, cache, b"parent", [5])]
    if first != again:
        raise Wrong(why)


def test_8_1_the_parent_counts(impl):
    _, cache = make(impl, 2)
    impl.diary.begin()
    if cache.block_hash(b"parent", [5, 6]) == cache.block_hash(b"another", [5, 6]):
        raise Wrong("The same tokens after another beginning have other K and V: the parent's hash belongs in it, too.")
    if cache.block_hash(b"parent1", [5]) == cache.block_hash(b"parent", [15]):
        raise Wrong(
            "Parent and tokens run into each other: `parent1` + `5` is not `parent` + `15`. Put a mark between."
        )
    for (one, some), (other, more) in run_together([*MARKS, *marks_of(impl)]):
        if hash_of(impl, cache, one, some) == hash_of(impl, cache, other, more):
            raise Wrong(
                f"block_hash({one}, {some}) and block_hash({other}, {more}) are the same: joined, parent and tokens "
                "run into each other. A parent may be any bytes, of any length, so what is hashed has to say where it "
                "ends: write tokens as digits after a mark that is no digit, or the number of tokens, or len(parent), "
                "before them."
            )
    seen = {}
    for parent in PARENTS:
        for tokens in TOKENS:
            found = hash_of(impl, cache, parent, tokens)
            if found in seen:
                other, more = seen[found]
                raise Wrong(
                    f"block_hash({parent}, {tokens}) and block_hash({other}, {more}) are the same: parent and tokens "
                    "run into each other, or what lies between two tokens looks like what lies before the first. Two "
                    "different pairs never have one hash, whatever bytes the parent is."
                )
            seen[found] = (parent, tokens)


def test_8_1_the_hash_is_a_good_one(impl):
    _, cache = make(impl, 2)
    impl.diary.begin()
    with without_weak_hashes(impl):
        hashes = {hash_of(impl, cache, b"parent", [i, i % 7]) for i in range(20_000)}
    why = "Hashes that are cut short meet by chance: of 20000 different texts some had the same hash."
    expect("the number of hashes", len(hashes), 20_000, why)


def test_8_1_the_whole_parent_counts(impl):
    _, cache = make(impl, 2)
    impl.diary.begin()
    hashes = {hash_of(impl, cache, b"%032d" % i, [5]) for i in range(20_000)}
    why = "Of 20000 different parents some led to the same hash: feed it all of the parent, not a few bytes."
    expect("the number of hashes", len(hashes), 20_000, why)


def test_8_1_with_hashes_always_of_one_length(impl):
    _, cache = make(impl, 2)
    impl.diary.begin()
    lengths = [len(hash_of(impl, cache, parent, tokens)) for parent, tokens in LONGER]
    if len(set(lengths)) > 1:
        raise Wrong(
            "Hashes have different lengths. A text's hash is the parent of the next; if it only joined things, it "
            "would grow along the chain until it held the whole text. A hash always has the same number of bytes.",
            "one length", f"{lengths[0]} to {max(lengths)} bytes", "the lengths of hashes",
        )  # fmt: skip


def test_8_1_with_hashes_nobody_can_reckon_with(impl):
    """In checksums and the like, which add, multiply and shift, neighbouring texts have neighbouring hashes."""
    _, cache = make(impl, 2)
    impl.diary.begin()
    hashes = [[hash_of(impl, cache, b"parent", [40 * i + j]) for j in range(8)] for i in range(64)]
    together, varies, steps = 0, 0, {"big": set(), "little": set()}
    for row in hashes:
        numbers = [int.from_bytes(block_hash) for block_hash in row]
        for a, b, c, d in (numbers[:4], numbers[4:]):  # the exclusive or of such four texts is 0
            together |= a ^ b ^ c ^ d
            varies |= (a ^ numbers[0]) | (a ^ b) | (a ^ c) | (a ^ d)
        for order, seen in steps.items():
            seen.add(int.from_bytes(row[1], order) - int.from_bytes(row[0], order))
    if varies & ~together or min(map(len, steps.values())) < 32:
        raise Wrong(
            "This is not a cryptographic hash: from the hashes of some texts those of others can be reckoned, so "
            "whoever wants to finds two texts with one hash. Checksums (CRC), FNV, sums and products are like that; "
            "hashlib has hashes that are not."
        )


def test_8_1_nobody_outside_can_work_out_hashes(impl):
    impl.diary.begin()
    hashes = {make(impl, 2)[1].block_hash(b"parent", [5, 6]) for _ in range(2)}
    if len(hashes) == 1:
        raise Wrong(
            "Two caches give a text the same hash, so anybody can work out hashes, and look for two texts with one "
            "(vLLM #12621). Hash under self._secret: hashlib.blake2b(text, key=self._secret)."
        )
