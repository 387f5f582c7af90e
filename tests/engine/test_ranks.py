"""Several ranks must write what one process writes: the same texts, whoever has which heads.

One pair of ranks serves all tests of the default command, because to start a process takes seconds; the last of these
tests ends it. Other models, other numbers of ranks and longer histories are slow tests. How weights are cut is tested
in tests/model/test_shard.py, without processes.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from engine.checkpoints import SAVE, save_llama
from engine.engine_machine import machine
from engine.slot_oracle import WatchedLLM
from engine.test_engine_machine import programs
from hypothesis.stateful import run_state_machine_as_test as run
from torch.distributed import HashStore

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.engine import Engine
from minipage.engine.handover import hand_over, take_over
from minipage.engine.intake import Intake
from minipage.engine.llm import LLM
from minipage.engine.partial_hits import copy_what_is_found
from minipage.engine.stats import Stats
from minipage.errors import ConfigurationError, EngineDeadError, IntegrityError, ModelError, RankError
from minipage.model.gguf_files import packaged_model
from minipage.sampling import SamplingParams, StructuredOutputsParams
from minipage.worker.ranks.meeting import BEAT, Meeting
from minipage.worker.ranks.message import PIECE, pack_call, pack_step, unpack, unpack_call, unpack_step
from minipage.worker.ranks.watch import Watch

WAYS = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 1, "n": 3},
    {"beam_width": 3},
    {"temperature": 0.9, "seed": 2, "top_k": 20, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 0, "prompt_logprobs": 2, "logprobs": 2},
    {"temperature": 0, "allowed_token_ids": [3, 5, 7, 11]},
]
LONG = SamplingParams(max_tokens=50, ignore_eos=True, temperature=0)


def write_the_same(one, several, make_prompt):
    """Let two engines do the same, and compare what they say of it."""
    params = [SamplingParams(max_tokens=12, ignore_eos=True, **way) for way in WAYS]
    prompts = [make_prompt(i, 9 + i) for i in range(len(params))]
    for a, b in zip(several.generate(prompts, params), one.generate(prompts, params), strict=True):
        assert [text.token_ids for text in a.outputs] == [text.token_ids for text in b.outputs]
        assert [text.finish_reason for text in a.outputs] == [text.finish_reason for text in b.outputs]
        for x, y in zip(a.prompt_logprobs or (), b.prompt_logprobs or (), strict=True):
            assert (x is None) == (y is None)
            for token in x or ():
                assert abs(x[token].logprob - y[token].logprob) < 1e-3
    several.scheduler.check_integrity()
    several.runner.check_integrity()
    assert several.block_pool.num_free == several.block_pool.num_blocks


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def processes(llm):
    return [process.pid for process in llm.runner.meeting.processes.values()]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """The folder of a Llama with four heads of q, which all read one of K and V."""
    folder = tmp_path_factory.mktemp("grouped")
    save_llama(folder, num_key_value_heads=1)
    return folder


@pytest.fixture(scope="module")
def two(grouped):
    """Two ranks, which both have the only head of K and V."""
    llm = LLM(grouped, block_size=4, num_blocks=20, preemption="swap", swap_space="64KiB", enable_prefix_caching=True,
              attention="reference", tensor_parallel_size=2)  # fmt: skip
    yield llm
    llm.runner.shutdown()


@pytest.fixture(scope="module")
def one(grouped):
    return LLM(grouped, block_size=4, num_blocks=200, attention="reference")


def test_two_ranks_write_what_one_process_writes(one, two, make_prompt):
    for _ in range(2):  # the second time from the prefix cache; the pool is small, so there is swapping
        write_the_same(one, two, make_prompt)
    assert two.scheduler.num_hit_tokens > 0


def test_each_rank_has_its_heads_in_the_same_blocks(one, two):
    assert two.model.architecture.num_heads == 2
    prompt = list(range(8))
    two.generate(prompt, SamplingParams(max_tokens=1))
    one.generate(prompt, SamplingParams(max_tokens=1))
    found, _ = two.scheduler.prefix_cache.find(prompt, "")
    parts = [np.array(each) for each in two.runner.ask("block", layer=1, block=found[0])]
    for part in parts:  # K and V, slots, heads, numbers: the one head, in both
        np.testing.assert_allclose(part, parts[0], atol=1e-4)
    assert parts[0].shape == (2, 4, 1, 8)


class WatchedRanks(WatchedLLM):
    """An engine over ranks that are there already, with an oracle at rank 0's elbow."""

    runner_of_all = None

    def __init__(self, model, oracle, scheduler, block_table):
        runner = self.runner_of_all
        runner.runner.paged_attention = oracle.attention
        whole, self.oracle, self.tokenizer = runner.model.architecture.whole, oracle, None
        intake = Intake(None, whole.vocab_size, frozenset(), whole.max_model_len, scheduler.block_pool, block_table)
        Engine.__init__(self, runner, scheduler, intake, Stats(whole.max_model_len))
        copy_what_is_found(self)

    def schedule(self):
        self.runner.check_integrity()
        return super().schedule()


def history(two, folder, num_programs, num_steps):
    whole = machine(folder)
    heads = two.model.architecture.kv_heads

    def part_of_rank_0(tokens):
        return tuple(each[:, :, heads] for each in whole.dense_kv(tokens))  # [layers, T, heads of rank 0, D]

    ranks = type("Ranks", (WatchedRanks,), {"runner_of_all": two.runner})
    kept = two.runner.runner.paged_attention
    try:
        oracles = {"dense_kv": staticmethod(part_of_rank_0), "Engine": ranks}
        run(type("RanksMachine", (whole,), oracles), settings=programs(num_programs, num_steps))
    finally:
        two.runner.runner.paged_attention = kept
        two.runner.allocate(two.block_pool, two.scheduler.swap_pool)
        two.reset_prefix_cache()  # of which nothing is left


def test_random_histories_with_two_ranks_keep_every_promise(two, grouped):
    """Steps that fail in the middle of rank 0's part, too: then the others leave theirs."""
    history(two, grouped, 4, num_steps=10)


def test_rank_0_does_not_hand_over_its_heads_as_if_they_were_all(one, two, make_prompt):
    with pytest.raises(ConfigurationError, match="leave out tensor_parallel_size"):
        hand_over(two, make_prompt(0))
    handover = hand_over(one, make_prompt(0))
    with pytest.raises(ConfigurationError, match="leave out tensor_parallel_size"):
        take_over(two, handover)
    handover.discard()


def test_a_step_that_is_interrupted_is_left_by_all_ranks(one, two, make_prompt):
    real, calls = two.runner.runner.paged_attention, []

    def broken(*arguments):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    two.runner.runner.paged_attention = broken
    with pytest.raises(KeyboardInterrupt):
        two.generate(make_prompt(1), LONG)
    assert not two.requests and two.block_pool.num_free == two.block_pool.num_blocks
    write_the_same(one, two, make_prompt)


def test_a_rank_with_other_blocks_is_found_out(two, monkeypatch):
    monkeypatch.setattr(two.runner.runner.kv_cache, "k", two.kv_cache.k[:, :5])
    with pytest.raises(IntegrityError, match=r"rank 1 has .* where rank 0 has"):
        two.runner.check_integrity()


def test_a_rank_that_is_killed_ends_every_request_with_one_error(two, make_prompt):
    """The last test of this pair."""
    for i in range(3):
        two.add_request(make_prompt(i), LONG)
    two.step()
    [pid] = processes(two)
    os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RankError, match="rank 1 is lost: it was killed by SIGKILL"):
        while two.has_unfinished_requests():
            two.step()
    assert time.monotonic() - begin < 10
    outputs = two.step()  # no more than what has become of them
    assert len(outputs) == 3
    for output in outputs:
        assert output.finished and "rank 1 is lost" in output.error and output.outputs[0].finish_reason == "error"
    two.scheduler.check_integrity()
    assert two.block_pool.num_free == two.block_pool.num_blocks and not two.has_unfinished_requests()
    assert not is_there(pid)
    with pytest.raises(EngineDeadError, match="make a new one"):
        two.generate(make_prompt(1), LONG)


# ---- without processes


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_a_number_of_ranks_that_makes_no_sense_is_refused(grouped, size):
    with pytest.raises(ConfigurationError, match="tensor_parallel_size is"):
        LLM(grouped, tensor_parallel_size=size)


def test_more_ranks_than_heads_are_refused_before_any_is_started(grouped):
    with pytest.raises(ConfigurationError, match="the model has 4 heads"):
        LLM(grouped, tensor_parallel_size=5)


def test_a_function_for_attention_is_refused_because_other_processes_lack_it(grouped):
    with pytest.raises(ConfigurationError, match="attention is a function"):
        LLM(grouped, attention=lambda *arguments: None, tensor_parallel_size=2)


def test_without_pytorch_a_sentence_says_what_to_install(grouped, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.distributed", None)
    with pytest.raises(ConfigurationError, match=r"pip install minipage\[torch\]"):
        LLM(grouped, tensor_parallel_size=2)


@pytest.mark.parametrize("num_texts", [1, 300])
def test_a_message_says_all_of_a_step(grouped, make_prompt, num_texts):
    llm = LLM(grouped, block_size=2, num_blocks=4000, max_num_seqs=300, preemption="swap", swap_space="1MiB")
    for i in range(num_texts):
        llm.add_request(make_prompt(i, 7), SamplingParams(max_tokens=4))
    plan = llm.schedule()
    plan.swap_out, plan.copies = [(1, 2), (3, 4)], [(5, 6)]
    batches = llm.runner.batches(plan)
    message = pack_step(plan, batches)
    assert len(message) == PIECE if num_texts == 1 else len(message) > PIECE
    step = unpack_step(unpack(message)[1])
    assert (step.plan.swap_out, step.plan.swap_in, step.plan.copies) == (plan.swap_out, [], plan.copies)
    for a, b in zip(batches, step.batches, strict=True):
        for ours, theirs in zip(a, b, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    assert unpack_step(unpack(pack_step(plan, []))[1]).batches == []


def test_whoever_is_told_that_a_rank_is_lost_finds_its_process_gone():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.kill = lambda: (time.sleep(0.3), subprocess.Popen.kill(process))
        meeting = Meeting(HashStore(), 0, 2, None, ("", 0), "", {1: process})
        watch = Watch(meeting, Mock(waiting_since=None))
        ending = threading.Thread(target=watch.end, args=["rank 1 hangs"])
        ending.start()
        while watch.lost is None:
            time.sleep(0.001)
        with pytest.raises(RankError, match="rank 1 hangs"):
            watch.check_alive()
        assert not is_there(process.pid)
        ending.join()


def test_of_ranks_that_do_nothing_the_one_hangs_that_the_others_wait_for(monkeypatch):
    monkeypatch.setattr("minipage.worker.ranks.watch.PATIENCE", 1.2)
    store = HashStore()
    meeting = Mock(size=3, processes={}, connect=lambda: store, end_of=lambda rank: None)
    store.set(BEAT.format(2), "7 1 0")
    watch = Watch(meeting, Mock(waiting_since=time.monotonic() - 2, others=[1, 2]))
    for second in range(12):  # rank 1 has done its part
        store.set(BEAT.format(1), f"8 1 {second}")
        store.set(BEAT.format(2), f"7 {min(second, 6)} {min(second, 6)}")  # computes, and is stopped
        assert watch.lost is None or second > 6, "rank 2 was computing, and rank 1 waited for it"
        time.sleep(0.4)
    assert watch.lost and watch.lost.startswith("rank 2 hangs")


def test_a_message_says_a_call():
    assert unpack_call(unpack(pack_call("é", {"a": [1, None], "b": "2"}))[1]) == ("é", {"a": [1, None], "b": "2"})


# ---- slow: other models, other numbers, other faults


@pytest.fixture
def started():
    """Engines with ranks, which end with the test."""
    engines = []

    def start(*arguments, **options):
        engines.append(LLM(*arguments, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.runner.shutdown()


MODELS = {
    "gpt2": lambda folder: SAVE["gpt2"](folder, n_head=4),
    "llama": SAVE["llama"],  # 4 heads, 2 of K and V
    "nine-heads": lambda folder: save_llama(
        folder, hidden_size=72, num_attention_heads=9, num_key_value_heads=3, intermediate_size=50, vocab_size=61
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "int8"}, {"arrays": "torch"}], ids=str)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_any_ranks_of_any_model_write_what_one_process_writes(tmp_path, started, make_prompt, name, size, options):
    MODELS[name](tmp_path)
    one = LLM(tmp_path, block_size=4, num_blocks=200, **options)
    several = started(tmp_path, block_size=4, num_blocks=20, preemption="swap", tensor_parallel_size=size,
                      enable_prefix_caching=True, **options)  # fmt: skip
    for _ in range(2):
        write_the_same(one, several, make_prompt)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_smollm2_in_ranks_writes_what_it_writes_in_one_process(started, size):
    try:
        packaged_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    ways = [SamplingParams(temperature=0, max_tokens=24), SamplingParams(seed=5, max_tokens=24)]
    several = started("smollm2", num_blocks=64, max_model_len=512, tensor_parallel_size=size)
    one = LLM("smollm2", num_blocks=64, max_model_len=512)
    for params in ways:
        for prompt in ("The sea is", "To make bread, one needs"):
            a, b = (llm.generate(prompt, params)[0].outputs[0].token_ids for llm in (several, one))
            assert a == b


@pytest.mark.slow
def test_structured_output_with_ranks(talker, started):
    pytest.importorskip("llguidance")
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[a-c]{4}"), max_tokens=8, seed=3)
    one, several = LLM(talker, num_blocks=32), started(talker, num_blocks=32, tensor_parallel_size=2)
    texts = [llm.generate("The sea", params)[0].outputs[0].text for llm in (one, several)]
    assert texts[0] == texts[1] and len(texts[0]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_longer_random_histories_with_ranks(tmp_path, started, size):
    SAVE["llama"](tmp_path)
    history(started(tmp_path, attention="reference", tensor_parallel_size=size), tmp_path, 30, num_steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_hangs_is_found_out_within_ten_seconds(grouped, started, make_prompt, size):
    llm = started(grouped, num_blocks=64, tensor_parallel_size=size)
    llm.add_request(make_prompt(0), LONG)
    llm.step()
    pids = processes(llm)
    os.kill(pids[-1], signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(RankError, match=f"rank {size - 1} hangs"):
        while llm.has_unfinished_requests():
            llm.step()
    assert time.monotonic() - begin < 10
    assert not any(map(is_there, pids)) and llm.block_pool.num_free == llm.block_pool.num_blocks
    again = started(grouped, num_blocks=64, tensor_parallel_size=size)
    assert len(again.generate(make_prompt(0), LONG)[0].outputs[0].token_ids) == 50


@pytest.mark.slow
def test_a_rank_without_memory_says_so(grouped, started, make_prompt):
    resource = pytest.importorskip("resource")
    llm = started(grouped, num_blocks=64, tensor_parallel_size=2)
    [pid] = processes(llm)
    size = int(open(f"/proc/{pid}/statm").read().split()[0]) * 4096  # noqa: SIM115
    resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
    with pytest.raises(RankError, match=r"rank 1 is lost: .*[mM]emory"):
        llm.generate([make_prompt(i, 50) for i in range(60)], LONG)
    assert not is_there(pid) and llm.block_pool.num_free == llm.block_pool.num_blocks


@pytest.mark.slow
def test_asynchronous_clients_are_told(grouped, started, make_prompt):
    llm = started(grouped, num_blocks=64, tensor_parallel_size=2)
    with AsyncLLM(llm) as served:
        stream = served.stream(make_prompt(1), LONG)
        next(stream)
        os.kill(processes(llm)[0], signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="RankError: rank 1 is lost"):
            list(stream)
        assert not served.is_alive
        with pytest.raises(EngineDeadError):
            list(served.stream(make_prompt(1), LONG))


@pytest.mark.slow
def test_ranks_end_with_an_engine_that_nobody_has_any_more(grouped):
    llm = LLM(grouped, num_blocks=64, tensor_parallel_size=2)
    pids = processes(llm)
    del llm
    __import__("gc").collect()
    assert not any(map(is_there, pids))


def test_a_rank_with_other_weights_has_another_hash(tmp_path, grouped):
    from minipage.engine.ranks import hash_of
    from minipage.model.checkpoint import load_model

    save_llama(tmp_path, num_key_value_heads=1)
    assert hash_of(load_model(grouped).weights) == hash_of(load_model(tmp_path).weights)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # one bit
    path.write_bytes(data)
    assert hash_of(load_model(grouped).weights) != hash_of(load_model(tmp_path).weights)


def test_ranks_that_differ_are_refused(monkeypatch):
    from minipage.engine import ranks

    ours = {"version of minipage": "2", "options": {}}
    theirs = ours | {"version of minipage": "1", "host": "", "pid": 0}
    told = {}
    meeting = SimpleNamespace(size=2, pids={}, tell=told.__setitem__, wait_for=lambda key, rank: theirs.copy())
    monkeypatch.setattr(ranks, "facts", lambda *_: ours)
    with pytest.raises(ConfigurationError, match=r"rank 1 has another version of minipage than rank 0: 1, where .* 2"):
        ranks.lead(meeting, None, None, None, None)
    assert "version" in told["verdict"]
