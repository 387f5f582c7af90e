"""Guesses are asked for where they pay, by a clock that says what tests want; what is said never depends on it."""

from random import Random

import pytest
from engine.guessing import Knowing
from engine.test_speculation import serve

from minipage import LLM, SamplingParams
from minipage.engine.account import MAY_LOSE, MOST, NUM_COLD, NUM_MEASURED, PERIOD, Account


def lived(plain, asked, tokens_per_text, num_steps):
    """Of an account: how long all steps took, how long their tokens would have taken without, and which had guesses."""
    account, took, without, which = Account(), 0.0, 0.0, []
    for _ in range(num_steps):
        may_ask = account.may_ask()
        seconds, tokens = (asked, tokens_per_text) if may_ask else (plain, 1.0)
        account.book("drafts" if may_ask else "plain", seconds, tokens)
        took += seconds
        without += tokens * plain
        which.append(may_ask)
    return took, without, which


@pytest.mark.parametrize("plain", [1.0, 3e-4])
@pytest.mark.parametrize("slower", [1.0, 1.02, 1.2, 2.0, 3.7, 7.9, 8.1, 30.0])
@pytest.mark.parametrize("num_steps", [20, 100, 300, 6000])
def test_wrong_guesses_lose_one_percent_and_two_steps_or_one_guess(plain, slower, num_steps):
    took, without, which = lived(plain, slower * plain, 1.0, num_steps)
    cold = NUM_COLD * (slower - 1)
    assert took <= without * (1 + MAY_LOSE) + (max(MOST, slower) + cold) * plain + 1e-9
    assert any(which[-5000:]), "it is tried again now and then"
    assert not any(which[:NUM_MEASURED])


def test_right_guesses_are_hardly_kept_waiting():
    took, without, which = lived(1.0, 1.3, 3.0, 1000)
    assert sum(which) >= 1000 * (1 - NUM_MEASURED / PERIOD) - NUM_MEASURED
    assert without / took > 0.95 * 3 / 1.3


def test_steps_that_something_else_held_up_do_not_count():
    account, asked = Account(), 0
    for number in range(1000):
        may_ask = account.may_ask()
        asked += may_ask
        seconds = (1.3 if may_ask else 1.0) * (7.0 if number % 10 == 0 else 1.0)
        account.book("drafts" if may_ask else "plain", seconds, 2.0 if may_ask else 1.0)
    assert asked > 900


@pytest.mark.parametrize("kind", ["asked", "drafts"])
def test_who_guesses_for_the_first_time_may_take_long(kind):
    """On an H200 the first two questions took 320 and 21 ms: what they need was loaded. Plain steps took 4.2."""
    account, seconds = Account(), [320e-3, 21e-3, *[4.2e-3] * 100]
    for _ in range(NUM_MEASURED):
        account.book("plain", 4.2e-3, 1.0)
    for each in seconds:
        assert account.may_ask()
        account.book(kind, each, 1.0)


def test_guesses_that_become_worse_or_better_are_found_out():
    account, found = Account(), []
    for seconds in [1.3] * 200 + [3.0] * 600 + [0.4] * 600:
        found.append(account.may_ask())
        account.book("drafts" if found[-1] else "plain", seconds if found[-1] else 1.0, 1.0 if seconds > 1.3 else 2.0)
    assert sum(found[:200]) > 180
    assert sum(found[210:800]) < 20
    assert sum(found[1100:]) > 250


@pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlap"])
@pytest.mark.parametrize(
    ("row", "asked", "is_worth_it"),
    [(0.0, 0.0, True), (1.5, 0.0, False), (0.0, 5.0, False)],
    ids=["cheap", "dear", "slow guesser"],
)
def test_an_engine_guesses_as_long_as_that_is_quicker(tiny, make_prompt, row, asked, is_worth_it, overlaps):
    """A step takes a second, and what each row after the first of a text costs, and each question."""
    prompt, params = make_prompt(0, 5), SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    [plain], num_plain = serve(LLM(tiny, num_blocks=64), [prompt], params)
    llm = LLM(tiny, num_blocks=64, async_scheduling=overlaps, speculative_config={"num_speculative_tokens": 4})
    time = [0.0]

    class Slow(Knowing):
        def propose(self, texts, counts):
            time[0] += asked
            return super().propose(texts, counts)

    compute = llm.runner.compute

    def computed(batches):
        time[0] += 1 + row * (len(batches[0].token_ids) - 1)
        return compute(batches)

    llm.runner.compute = computed
    llm.speculation.proposer = Slow([prompt + plain.outputs[0].token_ids], lambda place: place % 5 == 0)
    llm.speculation.accounts.clock = lambda: time[0]
    llm.add_request(prompt, params)
    num_steps, output = 0, None
    while llm.has_unfinished_requests():
        output, num_steps = (llm.step() or [output])[0], num_steps + 1
    assert output.outputs[0].token_ids == plain.outputs[0].token_ids
    assert (num_steps < 0.7 * num_plain) == is_worth_it
    most = num_plain * (1 + MAY_LOSE) + 6 + (1 + NUM_COLD) * 7
    assert time[0] <= most, "of the prompt, of one step, and of those that do not count"


@pytest.mark.parametrize("seed", range(3))
def test_texts_do_not_depend_on_the_clock(tiny, make_prompt, seed):
    prompts = [make_prompt(i, 4 + i) for i in range(3)]
    params = SamplingParams(seed=3, max_tokens=40, ignore_eos=True)
    plain, _ = serve(LLM(tiny, num_blocks=64), prompts, params)
    known = [output.prompt_token_ids + output.outputs[0].token_ids for output in plain]
    llm = LLM(tiny, num_blocks=64, speculative_config={"num_speculative_tokens": 3})
    llm.speculation.proposer = Knowing(known, lambda place: place % 4 == 1)
    random, now = Random(seed), [0.0]

    def clock():
        now[0] += random.expovariate(1.0)
        return now[0]

    llm.speculation.accounts.clock = clock
    outputs, _ = serve(llm, prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == [output.outputs[0].token_ids for output in plain]


def test_a_step_that_captures_a_graph_is_nobody_s_loss(tiny, make_prompt):
    prompt, params = make_prompt(0, 7), SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    [plain], num_plain = serve(LLM(tiny, num_blocks=64), [prompt], params)
    llm = LLM(tiny, num_blocks=64, speculative_config={"num_speculative_tokens": 4})
    time, graphs, sizes, forward = [0.0], [0], set(), llm.forward

    def captured(plan):  # as on a GPU: the first step of a size takes longer, but not so long that it must be that
        time[0] += 1.0
        if (num_rows := sum(chunk.num_tokens for chunk in plan.chunks)) not in sizes:
            sizes.add(num_rows)
            graphs[0] += 1
            time[0] += 6.0
        return forward(plan)

    llm.forward = captured
    llm.speculation.proposer = Knowing([prompt + plain.outputs[0].token_ids])
    llm.speculation.accounts.clock = lambda: time[0]
    llm.speculation.accounts.num_graphs = lambda: graphs[0]
    [text], num_steps = serve(llm, [prompt], params)
    assert text.outputs[0].token_ids == plain.outputs[0].token_ids
    assert num_steps < num_plain / 3
