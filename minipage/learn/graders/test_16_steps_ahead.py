"""Lesson 16: guesses against a search in plain words, verdicts against the rule itself, tables that shrink, and a
device that notices when it is kept waiting."""

from hypothesis import strategies as st

from minipage.errors import ConfigurationError
from minipage.learn.graders.common import every, expect, must_raise
from minipage.learn.graders.drawn import given, programs
from minipage.learn.graders.pools import scattered_pool, state_of
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable

QUICK = programs(150)
LENT = "It belongs to somebody else: leave the list of tokens as it is."


def follows(tokens, length, place):
    """Whether the last `length` tokens are also those before `place`."""
    return all(tokens[place - 1 - i] == tokens[len(tokens) - 1 - i] for i in range(length))


def places(tokens, length):
    return [place for place in range(length, len(tokens)) if follows(tokens, length, place)]


def due_drafts(tokens, num_tokens, shortest, longest):
    for length in range(longest, shortest - 1, -1):
        if found := places(tokens, length):
            why = f"The last {length} tokens were there before, and what followed them begins at place {found[-1]}."
            return tokens[found[-1] : found[-1] + num_tokens], why
    return [], f"No end of {shortest} to {longest} tokens was there before, so nothing is guessed."


def why_not(got, tokens, num_tokens, shortest, longest, why):
    """What was done instead, if that can be told."""
    for length in range(shortest, longest):
        found = places(tokens, length)
        if found and got == tokens[found[-1] : found[-1] + num_tokens]:
            return f"{why} The longest end counts, and that is longer than {length}."
    for length in range(longest, shortest - 1, -1):
        found = places(tokens, length)
        if not found:
            continue
        if got == tokens[found[0] : found[0] + num_tokens] and len(found) > 1:
            return f"{why} Of several places the last one counts, not the first."
        begin = found[-1] - length
        if got == tokens[begin : begin + num_tokens]:
            return f"{why} The guess is what followed those tokens, not those tokens again."
        break
    return why


def check_proposed(impl, tokens, num_tokens, shortest, longest):
    impl.diary.begin()
    call = f"propose({tokens}, {num_tokens}, shortest={shortest}, longest={longest})"
    impl.diary.note(call)
    lent = list(tokens)
    due, why = due_drafts(tokens, num_tokens, shortest, longest)
    got = impl.propose(lent, num_tokens, shortest, longest)
    expect("the text afterwards", lent, tokens, LENT)
    if isinstance(got, list) and got != due:
        why = why_not(got, tokens, num_tokens, shortest, longest, why)
    expect(call, got, due, why)


def test_16_1_the_examples(impl):
    for tokens in ([1, 2, 3, 9, 1, 2, 3], [5, 1, 7, 5, 2, 7, 5], [4, 4, 4]):
        check_proposed(impl, tokens, 2, 1, 3)


texts = st.lists(st.integers(0, 2), min_size=1, max_size=14) | st.lists(st.integers(0, 5), min_size=1, max_size=30)


@QUICK
@given(tokens=texts, num_tokens=st.integers(1, 5), shortest=st.integers(1, 3), more=st.integers(0, 3))
def test_16_1_propose(impl, tokens, num_tokens, shortest, more):
    check_proposed(impl, tokens, num_tokens, shortest, shortest + more)


def test_16_1_defaults(impl):
    why = "Without shortest and longest it is 1 to 3 tokens that are looked for."
    cases = [
        ([7, 5, 8, 7], [5]),  # only the last token was there before
        ([1, 2, 3, 5, 9, 2, 3, 7, 1, 2, 3], [5]),  # the last three were, and later the last two
        ([4, 1, 2, 3, 5, 1, 2, 3, 6, 4, 1, 2, 3], [6]),  # the last four were, and later the last three
        ([6], []),
    ]
    for tokens, due in cases:
        impl.diary.begin()
        impl.diary.note(f"propose({tokens}, 1)")
        expect("the result", impl.propose(tokens, 1), due, why)


def check_verified(impl, drafts, said):
    impl.diary.begin()
    call = f"verify(drafts={drafts}, said={said})"
    impl.diary.note(call)
    num_right = len(drafts)
    for i in reversed(range(len(drafts))):
        if drafts[i] != said[i]:
            num_right = i
    lent = list(drafts), list(said)
    got = impl.verify(*lent)
    why = f"{num_right} of {len(drafts)} drafts are right before the first wrong one"
    why += ", and the model says one token more after them."
    if isinstance(got, list) and len(got) > num_right + 1:
        why += " What it says behind a wrong draft it says to a text that nobody has."
    expect(call, got, said[: num_right + 1], why)
    expect("drafts and said afterwards", lent, (drafts, said), LENT)


def test_16_2_the_example(impl):
    check_verified(impl, [7, 3, 5], [7, 3, 8, 2])


@QUICK
@given(data=st.data(), num_drafts=st.integers(1, 6))
def test_16_2_verify(impl, data, num_drafts):
    said = data.draw(st.lists(st.integers(0, 3), min_size=num_drafts + 1, max_size=num_drafts + 1))
    wrong = data.draw(st.lists(st.booleans(), min_size=num_drafts, max_size=num_drafts))
    drafts = [token + 1 if is_wrong else token for token, is_wrong in zip(said, wrong)]
    check_verified(impl, drafts, said)


def state(pool, table):
    return list(table.blocks), table.num_tokens, *state_of(pool), list(table.block_hashes)


STATE = "[blocks, num_tokens, free queue, counts, hashes]"


def table_of(impl, total, size, num_hashes, seed=0):
    """A table of minipage's own over a scattered pool, some of whose full blocks are published."""
    impl.diary.begin()
    pool = scattered_pool(20, size, seed)
    table = BlockTable(pool)
    table.append(total)
    if num_hashes >= 0:
        table.block_hashes = [b"root", *(bytes([i]) for i in range(min(num_hashes, total // size)))]
    impl.diary.note(f"a table of {total} tokens in the blocks {table.blocks}, of {size}; hashes {table.block_hashes}")
    return pool, table


def check_truncated(impl, pool, table, keep):
    size, blocks, queue, hashes = pool.block_size, list(table.blocks), list(pool.free_queue), list(table.block_hashes)
    counts = [pool.ref_count(block) for block in range(pool.num_blocks)]
    impl.diary.note(f"truncate(table, {keep})")
    with impl.diary.watching(BlockPool):
        impl.truncate(table, keep)
    stay = len(range(0, keep, size))
    if not isinstance(table.blocks, list):
        raise Wrong("table.blocks is a list of block numbers: others of minipage read it.", list, table.blocks)
    expect("table.num_tokens", table.num_tokens, keep, "That is how many tokens have a slot now.")
    why = f"{keep} tokens in blocks of {size} need {stay} blocks: those stay as they are, and all behind them go."
    expect("table.blocks", list(table.blocks), blocks[:stay], why)
    for block in blocks[stay:]:
        counts[block] -= 1
    why = "Each block that goes loses one reference (pool.free), and no other does."
    expect("the reference counts", [pool.ref_count(block) for block in range(pool.num_blocks)], counts, why)
    freed = [block for block in reversed(blocks[stay:]) if counts[block] == 0]
    why = "The last block goes back first, as when a table is freed, so that the beginning is the last to be reused."
    expect("the free queue", list(pool.free_queue), queue + freed, why)
    why = f"{keep // size} blocks are still full, and only full blocks have a hash. The root, before them, stays."
    expect("table.block_hashes", list(table.block_hashes), hashes[: 1 + keep // size], why)


def test_16_3_the_example(impl):
    pool, table = table_of(impl, 9, 4, -1)
    check_truncated(impl, pool, table, 8)


@every(size=range(1, 5), total=range(10), keep=range(10), num_hashes=(-1, 0, 1, 3, 9))
def test_16_3_truncate(impl, size, total, keep, num_hashes):
    if keep <= total:
        check_truncated(impl, *table_of(impl, total, size, num_hashes, seed=total), keep)


@every(size=range(1, 4), total=range(1, 8), keep=range(8))
def test_16_3_of_shared_blocks(impl, size, total, keep):
    """Another table has the same blocks, and keeps them."""
    if keep > total:
        return
    pool, table = table_of(impl, total, size, -1)
    twin = table.fork()
    before = list(twin.blocks), twin.num_tokens
    impl.diary.note("another table has the same blocks")
    check_truncated(impl, pool, table, keep)
    expect("the other table", (list(twin.blocks), twin.num_tokens), before, "The other table keeps what it has.")


@every(total=range(6), beyond=(-7, -1, 1, 2, 9))
def test_16_3_what_cannot_be_kept(impl, total, beyond):
    keep = beyond if beyond < 0 else total + beyond
    pool, table = table_of(impl, total, 2, 9)
    before = state(pool, table)
    impl.diary.note(f"truncate(table, {keep})")
    why = f"Of {total} tokens nobody can keep {keep}: raise ConfigurationError."
    must_raise(ConfigurationError, lambda: impl.truncate(table, keep), why)
    expect(STATE, state(pool, table), before, "What fails changes nothing: check first.")


def test_16_3_a_rejected_draft_leaves_no_trace(impl):
    """Slots ahead, given back, and taken again by the token that is right."""
    pool, table = table_of(impl, 7, 4, -1)
    before = state(pool, table)
    impl.diary.note("table.append(3): slots for three drafts")
    table.append(3)
    check_truncated(impl, pool, table, 7)
    counts = before[0], before[1], sorted(before[2]), *before[3:]
    blocks, num_tokens, queue, *others = state(pool, table)
    why = "After all drafts were rejected, everything is as it was before they came (except the queue's order)."
    expect(STATE, (blocks, num_tokens, sorted(queue), *others), counts, why)


class Watchful:
    """A device that draws `said`, and then anything, and judges the order in which it is used."""

    def __init__(self, diary, prompt, said, max_tokens, stop_token):
        self.diary, self.prompt, self.said, self.max_tokens, self.stop_token = (
            diary,
            prompt,
            said,
            max_tokens,
            stop_token,
        )
        self.num_launched, self.seen = 0, []

    def launch(self, position, token):
        number = self.num_launched
        self.diary.note(f"launch({position}, {shown(token)}) is step {number}")
        if self.stop_token in self.seen:
            raise Wrong("The stop token was seen: from then on nothing more is launched.", "no launch", "a launch")
        if number >= self.max_tokens:
            why = f"The text may have {self.max_tokens} tokens, and that many are drawn already: you know that before."
            raise Wrong(why, f"{self.max_tokens} launches at most", f"launch number {number + 1}")
        if number and number - 1 < len(self.seen):
            why = "Launch the next step before you wait for the one before: meanwhile the device had nothing to do."
            raise Wrong(why, f"launch, then wait({number - 1})", f"wait({number - 1}), then launch")
        if number > len(self.seen) + 1:
            why = "Two steps under way keep the device busy: more of them are in vain if the text ends meanwhile."
            raise Wrong(why, f"wait({len(self.seen)}), then launch", "a third launch")
        due = len(self.prompt) - 1 + number
        why = "The first step computes the prompt's last token, at len(prompt) - 1, and each next one a place further."
        expect(f"the position of step {number}", position, due, why)
        if number == 0:
            expect("the token of step 0", token, self.prompt[-1], "It is the last one of the prompt.")
        elif token != ~(number - 1):
            why = f"What step {number - 1} draws is not known yet, so it is ~{number - 1}, which is {~(number - 1)}."
            raise Wrong(why, ~(number - 1), token)
        self.num_launched += 1
        return number

    def wait(self, step):
        self.diary.note(f"wait({shown(step)})")
        if step != len(self.seen):
            why = "Each step is waited for once, in the order of their launches."
            raise Wrong(why, f"wait({len(self.seen)})", f"wait({shown(step)})")
        if step >= self.num_launched:
            raise Wrong("Nobody has launched that step: this would wait for ever.", "launch first", f"wait({step})")
        if self.stop_token in self.seen:
            raise Wrong("What comes after the stop token is surplus: nobody waits for it.", "no wait", f"wait({step})")
        if self.num_launched == step + 1 < self.max_tokens:
            why = (
                "Before you wait for a step, launch the one after it: otherwise the device has nothing to do meanwhile."
            )
            raise Wrong(why, f"a launch, then wait({step})", f"wait({step})")
        self.seen.append(self.said[step] if step < len(self.said) else 1)
        return self.seen[-1]


def shown(token):
    return f"~{~token}" if isinstance(token, int) and token < 0 else repr(token)


def check_ahead(impl, prompt, said, max_tokens, stop_token):
    impl.diary.begin()
    impl.diary.note(f"the prompt is {prompt}, max_tokens {max_tokens}, the stop token {stop_token}")
    device, lent = Watchful(impl.diary, prompt, said, max_tokens, stop_token), list(prompt)
    got = impl.generate_ahead(device, lent, max_tokens, stop_token)
    due = (said + [1] * max_tokens)[:max_tokens]
    due = due[: due.index(stop_token) + 1] if stop_token in due else due
    expect("the prompt afterwards", lent, prompt, LENT)
    why = "The text ends with the stop token, which belongs to it, or with its last token that max_tokens permits."
    if isinstance(got, list) and stop_token in got[:-1]:
        why += " What was drawn after the stop token is surplus."
    expect("the text", got, due, why)


def test_16_4_the_example(impl):
    check_ahead(impl, [5, 6], [7, 8, 0], 9, 0)


@every(length=range(1, 4), max_tokens=range(1, 7), stop_at=range(8))
def test_16_4_every_end(impl, length, max_tokens, stop_at):
    """The stop token comes first, in the middle, last, and one token too late."""
    check_ahead(impl, list(range(20, 20 + length)), [9] * stop_at + [3], max_tokens, 3)


@QUICK
@given(said=st.lists(st.integers(0, 4), max_size=12), max_tokens=st.integers(1, 10), stop_token=st.integers(0, 4))
def test_16_4_texts(impl, said, max_tokens, stop_token):
    check_ahead(impl, [4, 0, 2], said, max_tokens, stop_token)
