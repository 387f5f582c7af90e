"""Whatever raises, at whatever line, the engine is whole afterwards, and every text is as if nothing had happened."""

import random

import pytest
from engine.raise_anywhere import ROOT, Boom, Lines, RandomLines, serve, ways

from minipage.engine.llm import LLM

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 1, 2], [5, 6, 7], [1, 2, 3, 4], [5, 6, 7, 8, 2]]
URGENT = [0, 1, 0, 2, 1]
COMMON = {"max_num_batched_tokens": 8, "max_num_seqs": 6, "max_model_len": 32, "attention": "reference"}
SCENARIOS = {
    "recomputing": {"block_size": 2, "num_blocks": 11},
    "swapping": {"block_size": 2, "num_blocks": 11, "preemption": "swap", "swap_space": "8KiB"},
    "caching": {
        "block_size": 2,
        "num_blocks": 11,
        "enable_prefix_caching": True,
        "preemption": "auto",
        "swap_space": "8KiB",
    },
    "urgent": {"block_size": 3, "num_blocks": 8, "policy": "priority", "preemption": "swap", "swap_space": "8KiB"},
    "a tier": {"block_size": 2, "num_blocks": 11, "enable_prefix_caching": True, "kv_offloading_size": 1e-4},
}


class Scenario:
    """One engine with its requests, the texts that these should get, and all lines that the run comes by."""

    def __init__(self, folder, name):
        self.make = lambda: LLM(folder, **COMMON, **SCENARIOS[name])
        self.requests = list(zip(PROMPTS, ways(), URGENT, strict=True))
        self.number = list(SCENARIOS).index(name)
        self.abort_at = 4 if name in ("swapping", "caching") else None
        lines = Lines()
        self.run(lines)
        self.counts = lines.counts
        self.texts, _ = serve(self.make, self.requests, Lines())  # of a run in which nobody is aborted

    def run(self, lines):
        return serve(self.make, self.requests, lines, self.abort_at)

    def check(self, place, count, error=Boom):
        lines = Lines(place, count, error())
        try:
            found, num_raised = self.run(lines)
        except Exception as problem:
            raise AssertionError(f"{error.__name__} at {name_of(place)}, the {count}th time: {problem!r}") from problem
        assert lines.has_raised, f"nothing was raised at {name_of(place)}"
        assert num_raised or error is not Boom, f"what was raised at {name_of(place)} did not come out"
        if self.abort_at and found["r1"] == "aborted":
            found["r1"] = self.texts["r1"]
        wrong = {name for name in found.keys() | self.texts.keys() if found.get(name) != self.texts[name]}
        assert not wrong, f"{wrong} differ after {error.__name__} at {name_of(place)}, the {count}th time"

    def check_random(self, seed, every):
        found, num_raised = self.run(RandomLines(seed, every))
        if self.abort_at and found["r1"] == "aborted":
            found["r1"] = self.texts["r1"]
        assert num_raised > 5 and found == self.texts, f"with the seed {seed}: {found}, and undisturbed {self.texts}"


def name_of(place):
    return f"{place[0].removeprefix(str(ROOT))}:{place[1]}"


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "a tier")) for name in SCENARIOS],
)
def scenario(request, tiny):
    return Scenario(tiny, request.param)


def test_the_scenarios_come_by_every_kind_of_trouble(tiny):
    preempted, swapped, copied = set(), set(), set()
    for name in SCENARIOS:
        llm = Scenario(tiny, name).make()
        schedule = llm.schedule

        def watch(name=name, schedule=schedule):
            plan = schedule()
            for things, where in ((plan.preempted, preempted), (plan.swap_in, swapped), (plan.copies, copied)):
                where.update([name] * bool(things))
            return plan

        llm.schedule = watch
        serve(lambda llm=llm: llm, list(zip(PROMPTS, ways(), URGENT, strict=True)), Lines())
    assert (preempted, swapped, copied) == (set(SCENARIOS), set(SCENARIOS) - {"recomputing", "a tier"}, set(SCENARIOS))


def test_an_interrupt_at_any_line_loses_nothing(scenario):
    """At every 16th place here; at all of them, and more than once each, in the slow test below."""
    for number, (place, most) in enumerate(sorted(scenario.counts.items())):
        if number % 16 == scenario.number:
            scenario.check(place, random.Random(number).randint(1, most))


def test_who_mends_may_be_interrupted_too(scenario):
    for seed in range(4):
        scenario.check_random(seed, every=800)


@pytest.mark.slow
@pytest.mark.parametrize("error", [Boom, ZeroDivisionError])
def test_an_error_at_every_line_loses_nothing(scenario, error):
    print(f"{len(scenario.counts)} places")
    for place, most in sorted(scenario.counts.items()):
        for count in {1, (most + 1) // 2, most}:
            scenario.check(place, count, error)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_random_histories_with_failures_at_random_lines(tiny, part):
    """20,000 of them: any settings, any requests, and a failure at one of 600 to 4,000 lines."""
    for seed in range(1000 * part, 1000 * part + 1000):
        rng = random.Random(seed)
        settings = COMMON | rng.choice(list(SCENARIOS.values()))
        settings |= {"block_size": rng.choice([1, 2, 3, 4]), "max_num_batched_tokens": rng.choice([6, 8, 16])}
        caching = rng.random() < 0.5 or "kv_offloading_size" in settings  # a tier is for what can be found
        settings |= {"num_blocks": 24 // settings["block_size"], "enable_prefix_caching": caching}
        kinds = [rng.choice(ways()) for _ in range(rng.randint(2, 7))]
        prompts = [[rng.randrange(60) for _ in range(rng.randint(1, 3))] for _ in range(2)]
        requests = [(rng.choice(prompts) + prompts[0][:1], params, rng.randint(0, 1)) for params in kinds]

        def make(settings=settings):
            return LLM(tiny, **settings)

        expected, _ = serve(make, requests, Lines())
        found, _ = serve(make, requests, RandomLines(seed, every=rng.choice([600, 1500, 4000])))
        assert found == expected, f"with the seed {seed}: {found}, and undisturbed {expected}"
