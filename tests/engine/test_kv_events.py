"""What the events of a prefix cache say is what it knows: after random programs with resets, swaps, aborts, evictions.

The oracle in the first test is the dictionary of prefix_machine.py, which never looks at hashes: it says which texts
can be found.
"""

import json

import pytest
from engine.checkpoints import with_windows
from engine.engine_machine import EngineMachine
from engine.engine_machine import machine as engine_machine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run
from where import DEVICE

from minipage import LLM, SamplingParams
from minipage.engine.kv_events import AllBlocksCleared, Announced, BlockRemoved, KVEvents, KVMirror, announce
from minipage.errors import ConfigurationError
from minipage.memory import BlockPool, PrefixCache
from minipage.memory.kv_groups import EVERYTHING
from minipage.promises.prefix_machine import PrefixMachine
from minipage.scheduling import Scheduler

ENABLED = {"enable_kv_cache_events": True}


def programs(count, num_steps):
    checks = [*HealthCheck]
    return settings(max_examples=count, stateful_step_count=num_steps, deadline=None, suppress_health_check=checks)


class Told(Announced, PrefixCache):
    """Announced from its first block on, to a reader that comes often and one that is always too late."""

    medium = "CPU"

    def __init__(self, pool):
        super().__init__(pool)
        self.events = KVEvents(buffer_steps=4)
        self.wakes = []
        self.readers = [(KVMirror(), self.events.subscribe(lambda: self.wakes.append("woken"))) for _ in range(2)]

    def read(self, reader):
        mirror, subscriber = self.readers[reader]
        while batch := subscriber.take():
            for event in batch.events:
                mirror.apply(event)
        return mirror.blocks

    def check(self, reader):
        blocks = self.read(reader)
        assert blocks.keys() == self._block_of.keys()
        assert blocks == self.events.mirror.blocks


def findable(blocks):
    """The texts that can be found in a mirror's blocks, each (salt, token, ...), from the beginning on."""

    def text(block_hash):
        event = blocks.get(block_hash)
        if event is None:
            return None  # its beginning has been evicted, or was known before a reset
        if event.parent_block_hash is None:
            before = event.extra_keys[0] if event.extra_keys else ("",)
        else:
            before = text(event.parent_block_hash)
        return before and (*before, *event.token_ids)

    texts = {text(block_hash) for block_hash in blocks}
    return texts - {None}


class Machine(PrefixMachine):
    Cache = Told

    @rule()
    def somebody_reads(self):
        self.cache.check(0)

    @invariant()
    def what_was_told_is_what_can_be_found(self):
        if not hasattr(self, "cache"):
            return
        self.cache.check(1)
        size = self.block_size
        known = {
            prefix
            for prefix in self.known
            if all(prefix[: 1 + end] in self.known for end in range(size, len(prefix) - 1, size))
        }
        assert findable(self.cache.events.mirror.blocks) == known

    def teardown(self):
        if hasattr(self, "cache"):
            self.cache.check(0)


def test_a_mirror_fed_by_events_alone_knows_which_texts_can_be_found():
    run(Machine, settings=programs(15, num_steps=20))


@pytest.mark.slow
def test_a_mirror_knows_what_can_be_found_in_longer_programs(tiny):
    run(Machine, settings=programs(1000, num_steps=60))
    run(watched(tiny), settings=programs(300, num_steps=25))


def watched(folder):
    """Random programs on the whole engine, at any moment of which somebody may read."""
    kind = engine_machine(folder, Cache=Told, caching=True)

    class Watched(kind):
        @rule(reader=st.integers(0, 1))
        def somebody_reads(self, reader):
            self.llm.scheduler.prefix_cache.check(reader)

        @invariant()
        def the_publisher_is_up_to_date(self):
            cache = self.llm.scheduler.prefix_cache
            assert cache.events.mirror.blocks.keys() == cache._block_of.keys()

        def teardown(self):
            EngineMachine.teardown(self)
            self.llm.scheduler.prefix_cache.check(0)

    return Watched


def test_the_mirror_of_an_engine_that_swaps_aborts_and_fails_is_its_prefix_cache(tiny):
    run(watched(tiny), settings=programs(3, num_steps=10))


@pytest.fixture
def llm(tiny):
    return LLM(tiny, block_size=4, num_blocks=8, enable_prefix_caching=True, kv_events_config=ENABLED)


def generate(llm, *prompts, **options):
    llm.generate([list(prompt) for prompt in prompts], SamplingParams(max_tokens=1, ignore_eos=True, **options))


def test_what_a_router_reads(llm):
    subscriber = llm.kv_events.subscribe()
    subscriber.take()
    generate(llm, range(10))
    batch = subscriber.take()
    [stored] = batch.events
    assert (stored.token_ids, stored.block_size, stored.parent_block_hash) == ([*range(8)], 4, None)
    assert len(stored.block_hashes) == 2
    assert (stored.medium, stored.extra_keys, stored.group_idx) == ("GPU" if DEVICE else "CPU", None, None)
    generate(llm, range(14))
    [further] = subscriber.take().events
    assert further.parent_block_hash == stored.block_hashes[-1]
    assert further.token_ids == [8, 9, 10, 11]
    assert subscriber.take() is None


def test_evicted_blocks_are_removed_and_a_reset_clears(llm):
    subscriber = llm.kv_events.subscribe()
    generate(llm, range(10))
    first = subscriber.take().events
    generate(llm, range(20, 50))  # takes all eight blocks
    events = subscriber.take().events
    removed = {block_hash for event in events if isinstance(event, BlockRemoved) for block_hash in event.block_hashes}
    assert removed == {block_hash for event in first[1:] for block_hash in event.block_hashes}
    llm.reset_prefix_cache()
    assert subscriber.take().events == [AllBlocksCleared()]


def test_what_began_before_a_reset_is_not_told_as_a_beginning(llm):
    """It follows the old root hash, under which nobody finds it."""
    llm.add_request([1, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True))
    llm.step()
    llm.reset_prefix_cache()
    subscriber = llm.kv_events.subscribe()
    subscriber.take()
    while llm.has_unfinished_requests():
        llm.step()
    [stored] = subscriber.take().events
    assert stored.parent_block_hash is not None
    assert llm.scheduler.prefix_cache.find([*stored.token_ids, 9]).blocks == []


def test_a_salt_is_said_where_a_text_begins(llm):
    subscriber = llm.kv_events.subscribe()
    subscriber.take()
    llm.add_request(list(range(10)), SamplingParams(max_tokens=1), cache_salt="mine")
    while llm.has_unfinished_requests():
        llm.step()
    [stored] = subscriber.take().events
    assert stored.extra_keys == [("mine",), None]


def test_numbers_go_on_and_a_reader_who_comes_back_misses_nothing(llm):
    first = llm.kv_events.subscribe()
    generate(llm, range(10))
    seen = first.take()
    generate(llm, range(14))
    generate(llm, range(18))
    again = llm.kv_events.subscribe(after=seen.seq).take()
    assert (len(again.events), again.seq) == (2, seen.seq + 2)
    assert first.take().events == again.events
    assert llm.kv_events.subscribe(after=10**6).take().events[0].__class__.__name__ == "AllBlocksCleared"


def test_only_those_who_wait_are_woken(llm):
    woken = []
    subscriber = llm.kv_events.subscribe(lambda: woken.append(1))
    subscriber.take()
    before = len(woken)
    generate(llm, range(10))
    generate(llm, range(14))
    assert len(woken) == before + 1
    subscriber.take()
    generate(llm, range(18))
    assert len(woken) == before + 2
    llm.kv_events.leave(subscriber)
    generate(llm, range(22))
    assert len(woken) == before + 2


@with_windows
def test_groups_and_windows_are_said(tiny):
    sizes = {"block_size": 4, "num_blocks": 24, "attention": "reference"}
    llm = LLM(tiny, **sizes, enable_prefix_caching=True, kv_events_config=ENABLED)
    subscriber, mirror, cache = llm.kv_events.subscribe(), KVMirror(), llm.scheduler.prefix_cache
    for begin in 0, 20, 10, 0:
        generate(llm, range(begin, begin + 30), range(begin, begin + 12))
        for event in subscriber.take().events:
            mirror.apply(event)
        assert mirror.blocks.keys() == cache._block_of.keys()
    windows = {event.group_idx: event.kv_cache_spec_sliding_window or EVERYTHING for event in mirror.blocks.values()}
    assert tuple(windows[group] for group in sorted(windows)) == cache.windows
    assert all(
        (event.kv_cache_spec_kind == "sliding_window") == (windows[event.group_idx] != EVERYTHING)
        for event in mirror.blocks.values()
    )


def test_a_batch_in_json(llm):
    subscriber = llm.kv_events.subscribe()
    generate(llm, range(10))
    told = json.loads(json.dumps(subscriber.take().as_json()))
    assert [event["type"] for event in told["events"]] == ["AllBlocksCleared", "BlockStored", "BlockStored"]
    assert all(len(bytes.fromhex(event["block_hashes"][0])) == 32 for event in told["events"][1:])
    assert BlockRemoved([b"\1"]).block_hashes == [b"\1"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"enable_kv_cache_events": True, "endpoint": "tcp://*:5557"}, "'endpoint'; known are .*GET /kv_events"),
        ({"enable_kv_cache_events": 1}, "must be True or False"),
        ({"enable_kv_cache_events": True, "buffer_steps": 0}, "buffer_steps is 0; it must be a whole number"),
        ("yes", "kv_events_config is 'yes'; give {\"enable_kv_cache_events\": True}"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(config, words):
    scheduler = Scheduler(pool := BlockPool(4), prefix_cache=PrefixCache(pool))
    with pytest.raises(ConfigurationError, match=words):
        announce(scheduler, config)


def test_more_steps_than_a_buffer_can_have_are_no_limit(tiny):
    llm = LLM(tiny, num_blocks=8, enable_prefix_caching=True, kv_events_config=ENABLED | {"buffer_steps": 10**30})
    assert llm.kv_events.subscribe().take() is not None


def test_without_a_prefix_cache_there_are_no_events():
    with pytest.raises(ConfigurationError, match="set enable_prefix_caching as well"):
        announce(Scheduler(BlockPool(4)), ENABLED)
    assert announce(Scheduler(BlockPool(4)), {}) is None
