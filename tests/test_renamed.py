"""Old names go on working for one version, and say what the new ones are."""

import importlib
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from minipage.attention import KVCache
from minipage.engine.request import Request
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.model.architecture import Model
from minipage.model.dense import dense_attend
from minipage.model.gpt2 import GPT2
from minipage.model.layers.plain import PlainLayers
from minipage.renamed import MOVED, accept_old_names, renamed_in
from minipage.sampling import SamplingParams
from minipage.scheduling import Chunk, GroupStatus, Scheduler, Sequence, SequenceGroup, StepPlan

old_name = pytest.warns(DeprecationWarning, match="is now .*; the old name goes in the next version")


def a_group(pool, tokens=8):
    return SequenceGroup("A", [Sequence("A.0", list(range(tokens)), BlockTable(pool))], tokens + 4)


def test_attributes_and_methods_have_their_old_names_too():
    pool = BlockPool(8, 4)
    cache = PrefixCache(pool)
    table = BlockTable(pool)
    with old_name:
        assert cache.root("salt") == cache.root_hash("salt")
    with old_name:
        assert cache.key(b"parent", [1, 2]) == cache.block_hash(b"parent", [1, 2])
    with old_name:
        table.keys = [b"root"]
    assert table.block_hashes == [b"root"]
    evicted = []
    with old_name:
        pool.on_reuse = evicted.append
    pool.allocate_many(2)
    assert evicted == [0, 1]


def test_groups_and_chunks_have_theirs():
    group = a_group(BlockPool(8, 4))
    with old_name:
        assert group.most_blocks(4) == group.max_blocks(4)
    with old_name:
        assert SequenceGroup.most_tokens(8, 1, 4, 4) == SequenceGroup.longest_that_fits(8, 1, 4, 4)
    with old_name:
        assert Chunk(group, group.leader, 0, 8).samplers == [group.leader]
    with old_name:
        group.unscored = range(3, 7)
    assert group.to_score == range(3, 7)
    with old_name:
        assert list(Chunk(group, group.leader, 4, 4).scored) == [4, 5, 6]
    with old_name:
        assert Chunk(group, group.leader, 4, 4).positions_with_logits == [4, 5, 6, 7]


def test_how_a_token_is_drawn_has_its_old_name():
    request = Request(None, SamplingParams(), a_group(BlockPool(8, 4)), frozenset(), None)
    with old_name:
        assert request.draw(request.group.leader) is None


def test_what_was_in_a_module_that_moved_is_found_there_under_its_old_name():
    pytest.importorskip("torch")
    with old_name:
        from minipage.worker.ranks.group import Group
    from minipage.worker.ranks.process_group import ProcessGroup

    assert Group is ProcessGroup


def test_the_arrays_of_a_layer_have_theirs():
    cache = KVCache(num_layers=2, num_blocks=3, block_size=4, num_kv_heads=1, head_size=8)
    with old_name:
        [k, v] = cache.layer(1)
    assert np.shares_memory(k, cache.k[1]) and np.shares_memory(v, cache.v[1])


def test_what_was_a_tuple_can_be_unpacked():
    group = a_group(BlockPool(8, 4))
    with old_name:
        its_group, seq, start, num_tokens = Chunk(group, group.leader, 2, 6)
    assert (its_group, seq, start, num_tokens) == (group, group.leader, 2, 6)
    plan = StepPlan([], [], [], [], [])
    assert plan == StepPlan()
    with old_name:
        assert [*plan] == [[], [], [], [], []]
    assert plan._replace(preempted=[group]).preempted == [group]


def test_modules_have_theirs():
    with old_name:
        from minipage.scheduling import Status
    assert Status is GroupStatus
    with old_name:
        from minipage.scheduling.group import blocks_to_allocate
    with old_name:
        from minipage.scheduling.plan import blocks_for as before
    from minipage.scheduling.chunks import blocks_for

    assert blocks_to_allocate is before is blocks_for
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        renamed_in("minipage.scheduling")("nonsense")


def test_what_the_scheduler_counts_can_still_be_asked_of_its_cache():
    pool = BlockPool(8, 4)
    scheduler = Scheduler(pool, prefix_cache=PrefixCache(pool))
    scheduler.add(a_group(pool))
    scheduler.update(scheduler.schedule())
    with old_name:
        assert scheduler.prefix_cache.num_queried_tokens == scheduler.num_queried_tokens == 8


def key(parent, tokens):
    """A function that has the old name of `PrefixCache.block_hash` by chance."""
    return parent, tokens


def test_a_global_of_an_old_name_is_no_use_of_it():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")

        class Own(PrefixCache):
            def pair(self):
                return key(b"", ())

    assert said == [] and "key" not in vars(Own)


def test_a_method_that_is_overridden_under_its_old_name_is_overridden():
    with old_name:

        class Unsalted(PrefixCache):
            def root(self, salt):
                return super().root("")

    cache = Unsalted(BlockPool(8, 4))
    with old_name:
        assert cache.root_hash("salt") == cache.root_hash("pepper")


def test_a_pool_of_ones_own_that_calls_on_reuse_is_heard():
    """The prefix cache would otherwise never learn that contents are gone, and find them for ever."""

    class OwnPool:
        def __init__(self):
            self.on_reuse = lambda block: None

        def allocate(self):
            self.on_reuse(0)

    pool = OwnPool()
    with old_name:
        PrefixCache(pool)
    forgotten = []
    pool.on_evict = forgotten.append
    with old_name:
        pool.allocate()
    assert forgotten == [0]


def test_a_class_that_has_the_new_names_is_left_alone():
    class OwnTable:
        def __init__(self):
            self.block_hashes = []
            self.keys = "mine"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accept_old_names(OwnTable, BlockTable)
        table = OwnTable()
    assert (table.keys, table.block_hashes) == ("mine", [])


@pytest.mark.parametrize("old", [old for old in MOVED if ".gpu" not in old and ".cuda" not in old])
def test_modules_are_found_where_they_were(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    sys.modules.pop(old)


def test_an_old_package_is_not_loaded_twice():
    code = (
        "import warnings; warnings.simplefilter('ignore'); import sys\n"
        "from minipage.gpu.graphs import __name__ as name; from minipage.gpu import inputs\n"
        "import minipage.gpu.batches\n"
        "assert name == 'minipage.worker.gpu.graphs', name\n"
        "assert inputs is sys.modules['minipage.worker.gpu.inputs']\n"
        "assert minipage.gpu.batches is sys.modules['minipage.worker.gpu.next_batch']\n"
    )
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_gpt_of_before_computes_what_the_model_of_today_does():
    with pytest.warns(DeprecationWarning, match="minipage.model.gpt"):
        sys.modules.pop("minipage.model.gpt", None)
        before = importlib.import_module("minipage.model.gpt")
    config = before.GPTConfig(vocab_size=31, n_positions=20, n_embd=8, n_layer=2, n_head=2)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in config.weight_shapes().items()}
    assert weights["h.1.attn.c_attn.weight"].shape == (8, 24) and "lm_head.weight" not in weights
    gpt = before.GPT(config, weights)
    ids = np.arange(5)
    today = Model(GPT2(31, 20, 8, 2, 2), PlainLayers(gpt.config, gpt.config.adapt(lambda name, shape: weights[name])))
    expected = today.logits(today.forward(ids, ids, dense_attend))
    np.testing.assert_array_equal(gpt.logits(gpt.forward(ids, ids, before.dense_attend)), expected)
