"""Lesson 11: kernels, thread by thread, forwards and backwards, with NaN wherever nothing should be read; and places in
shared memory, whatever their order is, by who would meet in them; and races, by looking at every pair of events."""

from collections import Counter

import numpy as np

from minipage.learn.graders.common import Words, differs, every, expect, wrong_kind
from minipage.learn.graders.fake_cuda import launch
from minipage.learn.graders.kernel_source import check_source
from minipage.learn.graders.numbers import WILD, assert_close, attention_of, texts
from minipage.learn.judge import Wrong


@every(num_copies=range(5), n=range(1, 5), backwards=range(2), seed=range(2))
def test_11_1_copy_blocks_kernel(impl, num_copies, n, backwards, seed):
    num_blocks = 2 * num_copies + 1
    cache = np.arange(num_blocks * n, dtype=np.float32).reshape(num_blocks, n)  # [num_blocks, n]
    sources = np.arange(num_copies) * 2 + 1  # [num_copies]
    destinations = np.arange(num_copies) * 2  # [num_copies]
    if seed:  # in disorder, and one block copied twice
        rng = np.random.default_rng([num_copies, n])
        sources = np.append(rng.permutation(sources)[1:], sources[:1]) if num_copies else sources  # [num_copies]
        sources[-1:], destinations = sources[:1], rng.permutation(destinations)
    due = cache.copy()  # [num_blocks, n]
    due[destinations] = cache[sources]
    impl.diary.begin()
    impl.diary.note(f"sources={sources.tolist()}, destinations={destinations.tolist()}")
    impl.diary.note(f"cache={cache.tolist()}")
    arguments = {"cache": cache, "sources": sources, "destinations": destinations}
    size = 1 + (num_copies + n) % 5
    watched = launch(impl.module, "copy_blocks_kernel", num_copies * n, arguments, {"cache"}, bool(backwards), size)
    why = "Thread i copies number i % n of block sources[i // n] to the same place in block destinations[i // n]."
    assert_close("cache", cache, due, why, tolerance=0)
    writers = {int(destinations[i // n]) * n + i % n: i for i in range(num_copies * n)}
    check_writers("cache", watched["cache"], writers, why)


def check_writers(name, array, due, why):
    """Whose work it is, is part of the exercise: no thread does another's."""
    for place, thread in sorted(due.items(), key=lambda item: item[1]):
        if array.writers.get(place) != thread:
            index = [int(i) for i in np.unravel_index(place, array.shape)]
            raise Wrong(
                f"{why} Neighbouring threads have neighbouring numbers, and each its own share.",
                f"thread {thread}", f"thread {array.writers.get(place)}", f"the one that writes {name}{index}",
            )  # fmt: skip


def test_11_1_a_gpu_can_compile_it(impl):
    impl.diary.begin()
    check_source(impl, "copy_blocks_kernel")


@every(first=range(1, 5), second=range(1, 5), group=range(1, 3), num_kv_heads=range(1, 3), size=range(1, 4))
def test_11_2_paged_attention_kernel(impl, first, second, group, num_kv_heads, size):
    check_kernel(impl, [first, second], group, num_kv_heads, size, head_size=1 + (first + second) % 4)


def test_11_2_groups_of_any_size(impl):
    for group in (3, 4, 5):
        check_kernel(impl, [3, 2], group, 2, 2, head_size=2)


def test_11_2_all_scores_may_be_far_below_0(impl):
    check_kernel(impl, [3, 1], 1, 1, 2, head_size=1, level=-60_000)


def test_11_2_there_is_no_room_for_all_scores(impl):
    check_kernel(impl, [300], 1, 2, 16, head_size=2)


def check_kernel(impl, lens, group, num_kv_heads, size, head_size, level=None):
    """`level`: the score of every token, if they are not to be random."""
    rng, num_heads = np.random.default_rng([*lens, group, num_kv_heads, size]), group * num_kv_heads
    num_seqs, wild = len(lens), (sum(lens) + group + size) % 2 == 0
    num_blocks, scale = 2 + sum(-(-n // size) for n in lens), (0.5, 0.3)[lens[0] % 2]
    k_cache = np.full((num_blocks, size, num_kv_heads, head_size), np.nan, np.float32)  # [num_blocks, size, KH, D]
    v_cache = k_cache.copy()  # [num_blocks, size, KH, D]
    tables = np.full((num_seqs, max(lens) + 1), -99)  # [num_seqs, max_blocks]
    places = iter(rng.permutation(num_blocks))
    q = np.zeros((num_seqs, num_heads, head_size), np.float32)  # [num_seqs, H, D]
    due, largest = np.zeros(q.shape), np.zeros((num_seqs, 1, 1))  # [num_seqs, H, D], [num_seqs, 1, 1]
    for s, n in enumerate(lens):
        [q[s]], k, v = texts(rng, 1, n, num_heads, num_kv_heads, head_size, scale, wild)  # [H, D], each [n, KH, D]
        if level is not None:
            q[s], k[:] = level / head_size / scale, 1  # [H, D], [n, KH, D]
        for i in range(-(-n // size)):
            tables[s, i] = block = next(places)
            part = slice(i * size, (i + 1) * size)
            k_cache[block, : len(k[part])], v_cache[block, : len(v[part])] = k[part], v[part]
        due[s], largest[s] = attention_of(q[s], k, v, scale), np.abs(v).max()
    out = np.full(q.shape, np.nan if wild else 7e7, np.float32)  # [num_seqs, H, D]
    impl.diary.begin()
    impl.diary.note(f"{num_heads} heads of {head_size} over {num_kv_heads} of K and V; blocks of {size} tokens")
    shown = tables[:, :8].tolist() if max(lens) > 8 else tables.tolist()
    impl.diary.note(f"context_lens={lens}, block_tables={shown}, scale={scale}, out full of {out[0, 0, 0]:g}")
    arguments = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "block_tables": tables}
    arguments |= {"context_lens": np.array(lens), "scale": scale, "out": out}
    with np.errstate(all="ignore"):
        watched = launch(
            impl.module, "paged_attention_kernel", num_seqs * num_heads, arguments, {"out"}, False, 1 + size
        )
    why = (
        "Thread i has sequence i // H and head i % H, and its K and V in head h // (H // KH) of block "
        "block_tables[sequence, token // block_size], at offset token % block_size. out holds rubbish at first; the "
        "weights are exp(score - highest), and their sum divides the result in the end."
    )
    if np.isnan(out).any():
        raise Wrong(
            "NaN came out of out: something was read that is no token of the sequence (the unused tail of its last "
            "block, another block); or out was added to before it was set, which holds rubbish at first; or inf - inf "
            "or 0 / 0 was computed. A weight of 0 does not help: 0 * NaN is NaN."
        )
    is_rough = wild or level is not None  # float32 keeps little of such a score behind the point
    assert_close("out", out, due, why, WILD if is_rough else 1e-4, size=largest)
    writers = {(s * num_heads + h) * head_size: s * num_heads + h for s in range(num_seqs) for h in range(num_heads)}
    check_writers("out", watched["out"], writers, why)


def test_11_2_a_gpu_can_compile_it(impl):
    impl.diary.begin()
    check_source(impl, "paged_attention_kernel")


PIECES = 8  # of a row, and columns of places; rows are read this many at a time


@every(first=range(0, 64, PIECES))
def test_11_3_place(impl, first):
    rows, places, taken = range(first, first + PIECES), {}, {}
    for row in rows:
        for piece in range(PIECES):
            places[row, piece] = place = place_of(impl, row, piece)
            if place in taken:
                why = f"Pieces {taken[place]} and {piece} of row {row} are both in place {place}, one over the other."
                raise Wrong(why, Words("a place that is free"), place, f"place({row}, {piece})")
            taken[place] = piece
    for piece in range(PIECES):
        impl.diary.begin()
        columns = [places[row, piece] % PIECES for row in rows]
        for row, column in zip(rows, columns):
            impl.diary.note(f"place({row}, {piece})  → {places[row, piece]}, in column {column}")
        [(column, turns)] = Counter(columns).most_common(1)
        if turns > 1:
            *some, last = [str(row) for row in rows if columns[row - first] == column]
            raise Wrong(
                f"Piece {piece} of rows {', '.join(some)} and {last} is in column {column}, so in the same banks, "
                f"{4 * column} to {4 * column + 3}: the lanes that read piece {piece} of rows {first} to {rows[-1]} "
                f"wait for each other, and take {turns} turns instead of one.",
                Words("8 different ones"), columns, f"the columns of piece {piece} in rows {first} to {rows[-1]}",
            )  # fmt: skip


def place_of(impl, row, piece):
    impl.diary.begin()
    impl.diary.note(f"place({row}, {piece})")
    got, own = impl.place(row, piece), range(PIECES * row, PIECES * row + PIECES)
    kind = wrong_kind(got, 0)
    found = [place for place in own if not kind and not differs(got, place)]
    if not found:
        why = f"Row {row} has places {own[0]} to {own[-1]}, counted in pieces, and all of its pieces stay there. {kind}"
        raise Wrong(why.strip(), Words(f"one of {own[0]} to {own[-1]}"), got, f"place({row}, {piece})")
    return found[0]


def test_11_3_a_piece_is_where_it_was_put(impl):
    """Asked for once more, in another order."""
    places = {(row, piece): place_of(impl, row, piece) for row in range(64) for piece in range(PIECES)}
    for row, piece in reversed(places):
        impl.diary.begin()
        impl.diary.note(f"place({row}, {piece}), which was {places[row, piece]} before")
        why = "The same piece is always in the same place: one call says where to put it, another where to look for it."
        expect(f"place({row}, {piece})", impl.place(row, piece), places[row, piece], why)


def test_11_4_of_the_docstring(impl):
    write, wait, other_wait, read = (0, "writes", 3), (0, "waits", None), (1, "waits", None), (1, "reads", 3)
    check_race(impl, [write, wait, read, other_wait])
    check_race(impl, [write, wait, other_wait, read])


@every(num_threads=range(1, 4), num_barriers=range(4), num_places=range(1, 3), seed=range(6))
def test_11_4_first_race(impl, num_threads, num_barriers, num_places, seed):
    rng = np.random.default_rng([num_threads, num_barriers, num_places, seed])
    most = 1 + seed % 3  # things that a thread does between two barriers, at most
    events, mostly = [], "reads" if seed % 2 else "writes"
    for barrier in range(num_barriers + 1):
        shares = []
        for thread in rng.permutation(num_threads).tolist():
            deeds = [mostly if rng.random() < 0.8 else "writes" for _ in range(rng.integers(most + 1))]
            share = [(thread, deed, int(rng.integers(num_places))) for deed in deeds]
            shares.append(share + [(thread, "waits", None)] * (barrier < num_barriers))
        if seed > 3:  # not one thread after the other, but now this one and now that one
            turns = rng.permutation([n for n, share in enumerate(shares) for _ in share])
            events += [shares[n].pop(0) for n in turns]
        else:
            events += [event for share in shares for event in share]
    check_race(impl, events)


def test_11_4_what_is_no_race(impl):
    check_race(impl, [])
    check_race(impl, [(7, "waits", None), (7, "waits", None)])
    check_race(impl, [(0, "writes", 4), (0, "reads", 4), (0, "writes", 4)])
    check_race(impl, [(0, "reads", 0), (1, "reads", 0), (2, "reads", 0)])
    check_race(impl, [(0, "writes", 0), (1, "writes", 1)])
    for one, other in (("writes", "reads"), ("reads", "writes"), ("writes", "writes")):
        check_race(impl, [(0, one, 0), (0, "waits", None), (1, "waits", None), (1, other, 0)])


def test_11_4_one_thread_is_far_ahead_in_the_list(impl):
    """It cannot be on a GPU, but it is what a list may look like in which each thread was run alone."""
    ahead = [(0, "writes", 0), (0, "waits", None), (0, "reads", 1), (0, "waits", None), (0, "writes", 2)]
    for place in range(3):
        for num_waits in range(3):
            waits = [(1, "waits", None)] * num_waits
            check_race(impl, [*ahead, *waits, (1, "writes", place)])
            check_race(impl, [*waits, (1, "writes", place), *ahead])


def test_11_4_the_first_of_several(impl):
    many = [(thread, deed, place) for place in (0, 1) for thread in range(40) for deed in ("reads", "reads")]
    check_race(impl, [*many, (50, "writes", 1), (51, "writes", 0)])
    check_race(impl, [(0, "writes", 1), (0, "writes", 0), (1, "reads", 0), (1, "reads", 1)])
    check_race(impl, [(0, "reads", 0), (1, "reads", 0), (0, "writes", 0), (2, "reads", 0)])


def check_race(impl, events):
    impl.diary.begin()
    for number, (thread, deed, place) in enumerate(events[:24]):
        impl.diary.note(f"event {number}: thread {thread} {deed}{'' if place is None else f' {place}'}")
    lent = list(events)
    due, got = race_in(events), impl.first_race(lent)
    why = reason(events, due, got)
    if got is None and due:  # an answer like others: no sign of a forgotten `return`
        raise Wrong(f"{why} None would mean that no two events race.", due, got, "first_race(events)")
    expect("first_race(events)", got, due, why)
    expect("events afterwards", lent, events, "The list belongs to somebody else: leave it as it is.")


def race_in(events):
    pairs = ((i, j) for j in range(len(events)) for i in range(j))
    return next(((i, j) for i, j in pairs if not why_not(events, i, j)), None)


def why_not(events, i, j):
    """Why these two do not race; nothing if they do."""
    (one, deed, place), (other, other_deed, other_place) = events[i], events[j]
    passed = [sum(event[:2] == (thread, "waits") for event in events[:end]) for thread, end in ((one, i), (other, j))]
    if "waits" in (deed, other_deed):
        return "a barrier is no use of shared memory"
    if one == other:
        return f"both are thread {one}'s, which does one thing after the other"
    if place != other_place:
        return f"they use different places, {place} and {other_place}"
    if deed == other_deed == "reads":
        return "both only read"
    if passed[0] != passed[1]:
        return (
            f"by then thread {one} has passed {passed[0]} of the barriers and thread {other} has passed {passed[1]}, "
            "so a barrier lies between"
        )
    return ""


def reason(events, due, got):
    pair = got if isinstance(got, tuple) and len(got) == 2 else None
    if pair and all(type(n) is int for n in pair) and 0 <= pair[0] < pair[1] < len(events):
        if why := why_not(events, *pair):
            return f"Events {pair[0]} and {pair[1]} do not race: {why}."
        return (
            "These two race, but not first: take the first event that races with one before it, and the first of those."
        )
    if due is None:
        return "No two of these events race."
    (one, deed, place), (other, other_deed, _) = (events[n] for n in due)
    return (
        f"Thread {one} {deed} place {place} in event {due[0]}, and thread {other} {other_deed} it in event {due[1]}. "
        "Both have passed as many barriers by then, so none lies between."
    )
