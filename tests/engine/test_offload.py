"""Evicted blocks go to a tier below the pool and come back, and nobody can tell, except by what need not be computed.

Whatever happens to the file that a tier may be in, a text is never another one: at worst it is computed anew.
"""

import os
import signal
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pytest
from engine.checkpoints import VOCAB, Dense, save_gpt2
from engine.engine_machine import machine
from engine.guessing import SameModel
from engine.slot_oracle import SlotOracle, WatchedLLM
from engine.test_combinations import NUM_TOKENS, WAYS, max_blocks, serve
from engine.test_engine_machine import programs
from engine.test_windows import max_blocks as max_blocks_with_windows
from engine.test_windows import windowed_machine
from engine.tiers import HAS_FILES, give_tier
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.memory import BlockTable
from minipage.sampling import SamplingParams
from minipage.worker.offload import LABEL, Store

slow = pytest.mark.slow
in_a_file = pytest.mark.skipif(not HAS_FILES, reason="tiers of a GPU are in memory")
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
TIGHT = {"block_size": 4, "num_blocks": 8, "enable_prefix_caching": True}
SMALL = {**TIGHT, "kv_offloading_size": 1e-3}
QUERIES, HITS = "vllm:external_prefix_cache_queries", "vllm:external_prefix_cache_hits"


@pytest.fixture(scope="module")
def prompts(make_prompt):
    """Each takes most of the pool, so that it evicts the ones before it."""
    return [make_prompt(i, 18) for i in range(4)]


@pytest.fixture(scope="module")
def plain(tiny, prompts):
    return said(LLM(tiny, num_blocks=64), prompts)


def said(llm, prompts):
    """The texts, one prompt after the other."""
    texts = []
    for prompt in prompts:
        texts.append(llm.generate(prompt, GREEDY)[0].outputs[0].token_ids)
        llm.scheduler.check_integrity()
    return texts


def watched(llm):
    """The store of its tier, with a note of every block that it loads."""
    store = llm.offloading.store
    store.loaded, load = [], store.load
    store.load = lambda slot, block_hash, block: store.loaded.append(block) or load(slot, block_hash, block)
    return store


def hits(llm):
    return llm.stats()[HITS]


# ---- it comes back


def test_a_text_that_was_evicted_is_found_again(tiny, prompts, plain):
    llm = LLM(tiny, **SMALL)
    assert said(llm, prompts) == plain
    assert hits(llm) == 0
    computed = []
    forward = llm.forward
    llm.forward = lambda plan: computed.append(sum(chunk.num_tokens for chunk in plan.chunks)) or forward(plan)
    assert said(llm, prompts) == plain
    assert hits(llm) == 4 * 16, "18 tokens are 4 full blocks of 4, and 2 more"
    assert computed == [2, 1, 1, 1] * 4


def test_hits_of_both_memories_are_told_apart(tiny, prompts):
    llm = LLM(tiny, **SMALL)
    said(llm, [prompts[0], prompts[0]])
    assert (llm.stats()["vllm:prefix_cache_hits"], hits(llm)) == (16, 0)
    said(llm, [prompts[1], prompts[0]])
    stats = llm.stats()
    in_pool, below = stats["vllm:prefix_cache_hits"] - 16, stats[HITS]
    assert (in_pool + below, below > 0) == (16, True)
    assert stats["vllm:prefix_cache_queries"] == 4 * 18
    assert stats[QUERIES] == 4 * 18 - 16 - in_pool, "the tier is asked for what the pool does not know"
    llm.reset_stats()
    assert (llm.stats()[QUERIES], hits(llm)) == (0, 0)
    assert HITS not in LLM(tiny, **TIGHT).stats()


def test_the_tier_forgets_what_was_not_wanted_for_the_longest_time(tiny, prompts):
    llm = LLM(tiny, **TIGHT)
    give_tier(llm, num_slots=9)
    said(llm, prompts[:3])  # 8 blocks are in the pool, of the third text and the end of the second
    llm.generate(prompts[0], GREEDY)
    assert hits(llm) > 0
    before = hits(llm)
    said(llm, [prompts[3], prompts[1]])
    assert hits(llm) == before, "the second text was not wanted for longer than the others"


def test_a_full_pool_keeps_who_runs_and_loads_nothing(tiny, make_prompt):
    """Who waits for room does not push others out of the pool, step after step."""
    llm = LLM(tiny, block_size=4, num_blocks=8, enable_prefix_caching=True)
    give_tier(llm, 50)
    store = watched(llm)
    said(llm, [make_prompt(0, 18), make_prompt(1, 18)])
    llm.add_request(make_prompt(2, 14), SamplingParams(temperature=0, max_tokens=14, ignore_eos=True))
    llm.add_request(make_prompt(0, 18), GREEDY)
    while llm.has_unfinished_requests():
        llm.step()
        if llm.scheduler.waiting:
            assert store.loaded == []
    assert len(store.loaded) == 4


@pytest.mark.parametrize("came_back", [False, True])
def test_what_computed_no_numbers_is_found_in_neither_memory(tiny, prompts, came_back):
    """Its K and V may be none, either."""
    llm = LLM(tiny, **SMALL)
    forward, steps = llm.forward, []
    if came_back:
        said(llm, prompts)
    llm.forward = lambda plan: forward(plan) * (np.nan if steps.append(plan) or len(steps) == 2 else 1)
    assert llm.generate(prompts[0], GREEDY)[0].outputs[0].finish_reason == "error"
    said(llm, prompts[1:3])
    before = hits(llm) + llm.stats()["vllm:prefix_cache_hits"]
    llm.generate(prompts[0], GREEDY)
    assert hits(llm) + llm.stats()["vllm:prefix_cache_hits"] == before


# ---- no combination, and no history, changes a token


@pytest.mark.parametrize("tiny", ["gpt2", "hybrid", pytest.param("mistral", marks=slow)], indirect=True)
@pytest.mark.parametrize("block_size", [pytest.param(1, marks=slow), 4])
@pytest.mark.parametrize("pool", [pytest.param("recompute", marks=slow), "swap", pytest.param("auto", marks=slow)])
@pytest.mark.parametrize("way", [pytest.param("greedy", marks=slow), "n=4", pytest.param("beam 4", marks=slow)])
def test_no_combination_changes_a_token(tiny, make_prompt, way, pool, block_size, tmp_path):
    first, params = make_prompt(0, 17), WAYS[way]
    other = make_prompt(1, 17 if way == "beam 4" else 3)  # beams need more to evict each other
    prompts = [first, [*first[:9], 1, 2, 3], first, other] * 3
    own = type("OwnTable", (BlockTable,), {})
    plain, _ = serve(LLM(tiny, num_blocks=256, block_table=own), prompts, params)
    width, brought = params.beam_width or params.n, 0
    for budget, path, quantized in [
        (5, None, "auto"),
        (2048, tmp_path / "kv" if HAS_FILES else None, "auto"),
        (2048, None, "int8"),
    ]:
        llm = LLM(tiny, num_blocks=2)
        if llm.runner.kv_groups.parts == (None,):
            most = max(max_blocks(len(prompt), width, block_size) for prompt in prompts)
        else:
            sizes = width, block_size, budget
            most = max(
                max_blocks_with_windows(llm.runner.kv_groups, len(p), len(p) + NUM_TOKENS - 1, *sizes) for p in prompts
            )
        options = {"block_size": block_size, "num_blocks": most, "max_num_batched_tokens": budget}
        options |= {"preemption": pool, "swap_space": "64KiB", "kv_cache_dtype": quantized}
        expected = plain if quantized == "auto" else serve(LLM(tiny, **options), prompts, params)[0]
        if llm.runner.kv_groups.parts == (None,) and block_size % 2 == 0 and budget == 5:
            options |= {"prefix_match_unit": block_size // 2}
        for size in 2e-5, 1e-3:
            llm = LLM(tiny, **options, enable_prefix_caching=True, kv_offloading_size=size, kv_offloading_path=path)
            store = watched(llm)
            assert serve(llm, prompts, params)[0] == expected, f"other tokens with {budget=}, {path=}, {size=}"
            brought += len(store.loaded)
    assert brought > 0, "nothing came back, so this tested nothing"


def test_random_histories_read_what_they_should(tiny):
    """The other random histories have tiers, too; here all of them have caches."""
    run(machine(tiny, caching=True), settings=programs(10, num_steps=15))


@slow
@pytest.mark.parametrize("tiny", ["gpt2", "mistral", "hybrid"], indirect=True)
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
def test_longer_random_histories(tiny, preemption):
    make = windowed_machine if any(Dense(tiny).model.kv.windows) else machine
    run(make(tiny, preemption=preemption, caching=True), settings=programs(200, num_steps=30))


@slow
def test_random_histories_with_drafts(tiny):
    run(machine(tiny, caching=True, proposer=SameModel(tiny, VOCAB)), settings=programs(150, num_steps=20))


class ForgetsToSave(Store):
    def save(self, slot, block_hash, block):
        self.rows[slot, :LABEL] = self.label(block_hash)
        return True  # and so the slot holds what it held before


@pytest.mark.skipif(not HAS_FILES, reason="another class keeps the blocks of a GPU")
def test_the_oracle_notices_when_another_block_comes_back(tiny, dense, prompts, monkeypatch):
    monkeypatch.setattr("minipage.engine.offload.Store", ForgetsToSave)
    llm = WatchedLLM(tiny, SlotOracle(dense.kv), **TIGHT)
    give_tier(llm, 30)
    with pytest.raises(AssertionError, match=r"holds a [KV] not of"):
        said(llm, prompts * 2)


# ---- a file, and what may happen to it


@in_a_file
def test_the_next_engine_goes_on_with_the_file(tiny, prompts, plain, tmp_path):
    options = {**SMALL, "kv_offloading_path": tmp_path / "kv"}
    assert said(LLM(tiny, **options), prompts) == plain
    llm = LLM(tiny, **options)
    assert said(llm, prompts[:2]) == plain[:2]
    assert hits(llm) == 2 * 16
    assert (tmp_path / "kv").stat().st_size <= 1e-3 * 2**30
    assert (tmp_path / "kv").stat().st_mode & 0o077 == 0, "others may read it"
    assert [*tmp_path.iterdir()] == [tmp_path / "kv"]


@in_a_file
@pytest.mark.parametrize("place", range(8))
def test_a_changed_byte_is_a_miss(tiny, prompts, plain, tmp_path, place):
    """Anywhere in what a slot holds: in its label, in K or in V."""
    path = tmp_path / "kv"
    store = LLM(tiny, **SMALL, kv_offloading_path=path)
    assert said(store, prompts) == plain
    num_slots, row = store.offloading.store.rows.shape
    block = row - LABEL
    offset = [0, 1, 33, 48, LABEL, LABEL + block // 3, LABEL + block // 2, row - 1][place]
    for llm in (store, LLM(tiny, **SMALL, kv_offloading_path=path)):  # while it runs, and in the next engine
        before = hits(llm)
        with open(path, "r+b") as file:
            for slot in range(num_slots):
                file.seek((1 + slot) * row + offset)
                [byte] = file.read(1) or [0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))
        assert said(llm, prompts[:1]) == plain[:1]
        assert hits(llm) == before, "a damaged block came back"
        assert said(llm, prompts) == plain


@in_a_file
@pytest.mark.parametrize("when", ["between", "meanwhile"])
@pytest.mark.parametrize("length", [0, 10, 100, 4096, 7096])
def test_a_file_that_was_cut_off_is_a_miss(tiny, prompts, plain, tmp_path, length, when):
    path = tmp_path / "kv"
    llm = LLM(tiny, **SMALL, kv_offloading_path=path)
    assert said(llm, prompts) == plain
    os.truncate(path, length)
    if when == "between":
        llm = LLM(tiny, **SMALL, kv_offloading_path=path)
    else:
        llm.reset_prefix_cache()
    assert said(llm, prompts[:1]) == plain[:1]
    assert hits(llm) == 0
    assert said(llm, prompts[1:]) == plain[1:]


@in_a_file
def test_what_cannot_be_saved_is_not_said_to_be_there(tiny, prompts, tmp_path):
    llm = LLM(tiny, **SMALL, kv_offloading_path=tmp_path / "kv")
    tier = llm.scheduler.prefix_cache.tier
    os.truncate(tmp_path / "kv", 0)
    assert tier.store.save(0, b"hash", 1) is False
    tier.save(b"hash", 1)
    assert b"hash" not in tier.place_of and b"hash" not in tier.store.names


@in_a_file
def test_a_file_that_is_gone_does_no_harm(tiny, prompts, plain, tmp_path):
    path = tmp_path / "kv"
    llm = LLM(tiny, **SMALL, kv_offloading_path=path)
    assert said(llm, prompts) == plain
    path.unlink()
    assert said(llm, prompts) == plain
    fresh = LLM(tiny, **SMALL, kv_offloading_path=path)
    assert said(fresh, prompts) == plain
    assert hits(fresh) == 0


@in_a_file
@pytest.mark.parametrize("content", [b"my thesis", b"x" * 100_000])
def test_a_file_of_somebody_else_is_left_alone(tiny, prompts, plain, tmp_path, content):
    path = tmp_path / "thesis"
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="left as it is, and nothing is offloaded"):
        llm = LLM(tiny, **SMALL, kv_offloading_path=path)
    assert said(llm, prompts * 2) == plain * 2
    llm.reset_prefix_cache()
    assert said(llm, prompts) == plain
    assert (path.read_bytes(), hits(llm)) == (content, 0)


@in_a_file
def test_what_is_no_file_is_neither_read_nor_replaced(tiny, tmp_path):
    """A pipe here; a device is replaced, if this is root, and /dev/null with it."""
    os.mkfifo(path := tmp_path / "pipe")
    both_ends = os.open(path, os.O_RDWR)
    os.write(both_ends, b"x" * 100)
    with pytest.raises(ConfigurationError, match="it must be the name of a file"):
        LLM(tiny, **SMALL, kv_offloading_path=path)
    os.close(both_ends)
    assert path.is_fifo()


@in_a_file
def test_a_link_to_a_file_stays_a_link(tiny, prompts, plain, tmp_path):
    path, link = tmp_path / "kv", tmp_path / "link"
    link.symlink_to(path)
    for _ in range(2):
        llm = LLM(tiny, **SMALL, kv_offloading_path=link)
        assert said(llm, prompts) == plain
    assert hits(llm) > 0
    assert link.is_symlink() and path.is_file()
    path.unlink()
    path.symlink_to(link)
    with pytest.raises(ConfigurationError, match="there can be no file of"):
        LLM(tiny, **SMALL, kv_offloading_path=link)


@in_a_file
@pytest.mark.parametrize(
    "other",
    [{"block_size": 2, "num_blocks": 16}, {"kv_cache_dtype": "int8"}, {"attention": "reference"}, {"model": 1}],
)
def test_a_file_of_another_engine_is_a_miss(tiny, prompts, plain, tmp_path, other):
    path = tmp_path / "kv"
    said(LLM(tiny, **SMALL, kv_offloading_path=path), prompts)
    if seed := other.pop("model", 0):
        tiny = tmp_path / "model"
        save_gpt2(tiny, seed=seed)
    plain = said(LLM(tiny, **TIGHT | other), prompts)
    llm = LLM(tiny, **SMALL | other, kv_offloading_path=path)
    assert said(llm, prompts) == plain
    assert hits(llm) == 0
    assert said(llm, prompts) == plain
    assert hits(llm) > 0, "it is that engine's file now"


@in_a_file
def test_two_engines_with_one_file_do_not_mislead_each_other(tiny, prompts, plain, tmp_path):
    """They write over each other's slots; but what a slot holds is looked at whenever it is loaded."""
    llms = [LLM(tiny, **SMALL, kv_offloading_path=tmp_path / "kv") for _ in range(2)]
    for _, llm in product(range(3), llms):
        assert said(llm, prompts) == plain
    other = LLM(tiny, **SMALL, kv_cache_dtype="int8", kv_offloading_path=tmp_path / "kv")
    said(other, prompts)
    for llm in llms:
        assert said(llm, prompts) == plain


@in_a_file
def test_after_a_reset_nobody_finds_what_was_there(tiny, prompts, plain, tmp_path):
    options = {**SMALL, "kv_offloading_path": tmp_path / "kv"}
    llm = LLM(tiny, **options)
    assert said(llm, prompts) == plain
    llm.reset_prefix_cache()
    assert said(llm, prompts) == plain
    assert hits(llm) == 0
    assert said(llm, prompts) == plain
    assert hits(llm) > 0
    llm = LLM(tiny, **options)
    assert said(llm, prompts) == plain
    assert hits(llm) == 0, "the weights may be others than in the file"


KILLED = """
import sys
from minipage import LLM, SamplingParams
folder, path = sys.argv[1:]
tight = {"block_size": 4, "num_blocks": 8, "enable_prefix_caching": True}
llm = LLM(folder, **tight, kv_offloading_size=1e-3, kv_offloading_path=path)
prompts = [[(7 * i + 11 * j * j + 3 * i * j) % 59 for j in range(18)] for i in range(4)]
for i in range(1_000_000):
    llm.generate(prompts[i % 4], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    print(i, flush=True)
"""


@in_a_file
@slow
@pytest.mark.parametrize("seed", range(5))
def test_whoever_is_killed_while_it_writes_harms_nothing(tiny, prompts, plain, tmp_path, seed):
    path = tmp_path / "kv"
    for number in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny), str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.013 * seed + 0.005 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        llm = LLM(tiny, **SMALL, kv_offloading_path=path)
        assert said(llm, prompts) == plain
        assert said(llm, prompts) == plain
        assert hits(llm) > 0


@in_a_file
def test_a_slot_that_is_half_written_is_a_miss(tiny, prompts, plain, tmp_path):
    """As if the process had been killed in the middle: a new label and old contents, or the other way round."""
    path = tmp_path / "kv"
    said(LLM(tiny, **SMALL, kv_offloading_path=path), prompts)
    for half in (slice(0, LABEL), slice(LABEL, None)):
        llm = LLM(tiny, **SMALL, kv_offloading_path=path)
        rows = llm.offloading.store.rows
        rows[:, half] = np.roll(rows[:, half], 1, axis=0)
        assert said(llm, prompts) == plain
        assert said(llm, prompts) == plain


# ---- what makes no sense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_offloading_size": 0}, "kv_offloading_size is 0; it must be a number of GiB"),
        ({"kv_offloading_size": "1GiB"}, "kv_offloading_size is '1GiB'"),
        ({"kv_offloading_size": True}, "kv_offloading_size is True"),
        ({"kv_offloading_size": float("nan")}, "kv_offloading_size is nan"),
        ({"kv_offloading_size": 10**400}, "kv_offloading_size is 1000"),
        ({"kv_offloading_size": 1e-7}, "two blocks take 1.9e-06"),
        ({"kv_offloading_size": 1, "enable_prefix_caching": False}, "set enable_prefix_caching"),
        (
            {"kv_offloading_path": "kv"},
            "kv_offloading_size is None; it must be a number of GiB, also with kv_offloading_path",
        ),
        pytest.param(
            {"kv_offloading_size": 1e-3, "kv_offloading_path": "/there/is/no/kv"},
            "there can be no file of 0.001 GiB",
            marks=in_a_file,
        ),
        pytest.param(
            {"kv_offloading_size": 1e-3, "kv_offloading_path": b"kv"},
            "kv_offloading_path is b'kv'; it must be the name of a file",
            marks=in_a_file,
        ),
        pytest.param(
            {"kv_offloading_size": 1e-3, "kv_offloading_path": "/tmp/\ud800"},
            "there can be no file of 0.001 GiB",
            marks=in_a_file,
        ),
        pytest.param(
            {"kv_offloading_size": 1e-3, "kv_offloading_path": "/"},
            "kv_offloading_path is '/'; it must be the name of a file",
            marks=in_a_file,
        ),
        ({"kv_offloading_size": 1e-3, "tensor_parallel_size": 2}, "works in one process"),
    ],
)
def test_a_tier_that_cannot_be_is_refused(tiny, options, message):
    with pytest.raises(ConfigurationError, match=message):
        LLM(tiny, **TIGHT | options)


def test_a_router_is_told_what_comes_back(tiny, prompts):
    """KV events say what is in the pool: a block that comes back is stored there anew."""
    llm = LLM(tiny, **SMALL, kv_events_config={"enable_kv_cache_events": True})
    said(llm, prompts * 2)
    assert hits(llm) > 0
    assert llm.kv_events.mirror.blocks.keys() == llm.scheduler.prefix_cache._block_of.keys()


def test_the_server_reports_the_numbers_of_both_memories(tiny, prompts):
    pytest.importorskip("prometheus_client")
    from prometheus_client import generate_latest

    from minipage.serve.metrics import make_registry

    llm = LLM(tiny, **SMALL)
    said(llm, prompts * 2)
    text = generate_latest(make_registry(llm.stats, "tiny")).decode()
    assert f'vllm:external_prefix_cache_hits_total{{engine="0",model_name="tiny"}} {hits(llm):.1f}' in text
    assert "vllm:external_prefix_cache_queries_total" in text
