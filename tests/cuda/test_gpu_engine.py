"""The engine with its model, blocks and sampling on the GPU says what it says on the CPU.

On a GPU the whole suite in tests/engine runs there, too (`--cuda=device`, see tests/engine/conftest.py). These tests
are small enough for the simulator, where decodes are padded as for a CUDA graph, but launched one by one.
"""

import gc
import sys
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.checkpoints import SAVE, Dense, save_gpt2
from engine.guessing import Knowing, speculate
from engine.slot_oracle import SlotOracle, WatchedLLM
from engine.tiers import give_tier
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from where import long, takes_long

import minipage.worker.batch as batch_module
from minipage.attention import cuda
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.memory import BlockPool, BlockTable
from minipage.model.layers.plain import PlainLayers
from minipage.model.layers.torch import TorchLayers
from minipage.model.place import is_simulated
from minipage.sampling import NO_TOKEN, Draw, Processors, SamplingParams, sample
from minipage.scheduling import Chunk, Sequence, SequenceGroup
from minipage.worker.batch import Batch
from minipage.worker.gpu import capture, graphs, memory
from minipage.worker.gpu.draw import UNSURE, Settings, draw_from_likeliest, sample_on_device
from minipage.worker.gpu.draw_in_order import SettingsInPlace, draw_in_order, how_in_order
from minipage.worker.gpu.graphs import GraphRunner, graph_sizes
from minipage.worker.gpu.inputs import StepInputs
from minipage.worker.gpu.next_batch import Batches
from minipage.worker.gpu.offload import PinnedStore
from minipage.worker.gpu.turned import launch_turn_and_write
from minipage.worker.gpu.views import for_kernels

DEVICE = torch.device("cpu" if is_simulated() else "cuda")
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 7], [1, 8, 2, 8, 1, 8, 2, 8, 4], [5]]


@pytest.fixture(scope="module")
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    SAVE[getattr(request, "param", "gpt2")](folder)
    return folder


def gpu_llm(folder, **options):
    return LLM(folder, device="cuda", **({"block_size": 4, "num_blocks": 32, "max_num_seqs": 4} | options))


def greedy(max_tokens, **others):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **others)


def texts(outputs):
    return [[text.token_ids for text in output.outputs] for output in outputs]


PRESSURES = [
    ({}, False),
    ({"max_num_batched_tokens": 5, "block_size": 3}, False),
    ({"num_blocks": 4, "preemption": "swap", "swap_space": "1MiB"}, True),
    ({"num_blocks": 4}, True),
    ({"enable_prefix_caching": True, "max_num_seqs": 1}, False),
]


@pytest.mark.parametrize(
    ("tiny", "options", "preempts"),
    [
        *(("gpt2", *PRESSURES[i]) for i in (1, 2)),
        ("llama", *PRESSURES[3]),
        *(
            long(model, *PRESSURES[i])
            for model, others in (("gpt2", (0, 3, 4)), ("llama", (0, 1, 2, 4)))
            for i in others
        ),
    ],
    indirect=["tiny"],
    ids=str,
)
def test_greedy_texts_are_those_of_a_dense_model_on_the_cpu(tiny, options, preempts):
    llm = gpu_llm(tiny, **options)
    assert isinstance(llm.runner, GraphRunner)
    prompts = [PROMPTS[2], PROMPTS[0], PROMPTS[2]] if "enable_prefix_caching" in options else PROMPTS
    outputs = llm.generate(prompts, greedy(4))
    assert texts(outputs) == [[Dense(tiny).greedy(prompt, 4)] for prompt in prompts]
    preemptions = sum(output.metrics.num_preemptions for output in outputs)
    assert (preemptions > 0) == preempts, f"{preemptions} preemptions: the pool is of the wrong size for this test"
    if "enable_prefix_caching" in options:
        assert llm.scheduler.num_hit_tokens == 8


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_rotations_that_wait_until_k_and_v_are_written(tiny, monkeypatch):
    sizes = []

    def turn_and_write(q, turn, *others):
        sizes.append(len(q))
        launch_turn_and_write(for_kernels(q), tuple(map(for_kernels, turn)), *others)

    def rotate_both(layers, q, k, turn):
        later._dtype = later._dtype and q.dtype  # of the KV cache it is NumPy's in the simulator
        return (q, k) if later.put_off(q, turn) else PlainLayers.rotate_both(layers, q, k, turn)

    monkeypatch.setattr(graphs, "FEW_SEQS", 2)
    monkeypatch.setattr(graphs, "launch_turn_and_write", turn_and_write)
    llm = gpu_llm(tiny)
    later = llm.runner._later
    if is_simulated():  # there are no FusedLayers
        monkeypatch.setattr(TorchLayers, "rotate_both", rotate_both)
    prompts, lengths = [prompt[:2] for prompt in PROMPTS], (2, 3, 3, 3)
    outputs = llm.generate(prompts, [greedy(length) for length in lengths])
    assert texts(outputs) == [[Dense(tiny).greedy(prompt, most)] for prompt, most in zip(prompts, lengths)]
    assert set(sizes) == {4}, "three sequences are padded to four, and prompts do not wait"


@pytest.mark.parametrize(
    ("tiny", "options"),
    [
        long("hybrid", {"max_num_batched_tokens": 5}),
        ("mistral", {"num_blocks": 15, "preemption": "swap", "swap_space": "1MiB"}),
        long("hybrid", {"num_blocks": 15, "preemption": "swap", "swap_space": "1MiB"}),
        long("mistral", {"max_num_batched_tokens": 5}),
        *(long(model, {}) for model in ("hybrid", "mistral")),
    ],
    indirect=["tiny"],
    ids=str,
)
def test_windows_and_tables_of_several_groups(tiny, options):
    prompts = [[*range(3, 20)], PROMPTS[0]]
    outputs = gpu_llm(tiny, **options).generate(prompts, greedy(4))
    assert texts(outputs) == [[Dense(tiny).greedy(prompt, 4)] for prompt in prompts]


def test_heads_that_a_warp_cannot_read_with_one_load(tmp_path):
    save_gpt2(tmp_path, n_embd=256, n_head=1, n_layer=1)  # in float32 a row of K is 1,024 bytes
    outputs = gpu_llm(tmp_path).generate(PROMPTS[:2], greedy(3))
    assert texts(outputs) == [[Dense(tmp_path).greedy(prompt, 3)] for prompt in PROMPTS[:2]]


WAYS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.2, "temperature": 2.0},
    "all": {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "temperature": 1.3},
    "logprobs": {"logprobs": 2},
    "greedy": {"temperature": 0},
    "min_tokens": {"min_tokens": 2, "stop_token_ids": list(range(0, 60, 2))},
    "samples": {"n": 3},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "temperature": 0},
    "bias": {"logit_bias": {3: 4.0, 7: -100.0}, "n": 2, "top_p": 0.8},
    "allowed": {"allowed_token_ids": [0, 8, 59, 17], "temperature": 0.5},
    "prompt": {"prompt_logprobs": 2, "temperature": 0},
}


@pytest.mark.parametrize("tiny", ["llama", long("gpt2")], indirect=True)
def test_every_way_to_draw_gives_the_tokens_of_the_cpu_in_one_batch(tiny):
    params = [SamplingParams(seed=i, max_tokens=2, ignore_eos=True, **way) for i, way in enumerate(WAYS.values())]
    params.append(SamplingParams(beam_width=2, max_tokens=2, ignore_eos=True))
    prompts = [[i, 7, i + 3] for i in range(len(params))]
    on_gpu = gpu_llm(tiny, max_num_seqs=18, num_blocks=64).generate(prompts, params)
    on_cpu = LLM(tiny, block_size=4, num_blocks=64).generate(prompts, params)
    for name, ours, theirs in zip([*WAYS, "beams"], texts(on_gpu), texts(on_cpu), strict=True):
        assert ours == theirs, name
    scored = list(WAYS).index("prompt")
    ours, theirs = (on[5].outputs[0].logprobs + on[scored].prompt_logprobs[1:] for on in (on_gpu, on_cpu))
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        assert [p.logprob for p in our.values()] == pytest.approx([p.logprob for p in their.values()], abs=1e-4)


@pytest.mark.parametrize("most", [long(1), 3, long(64)])
def test_prompt_logprobs_come_chunk_by_chunk_as_on_the_cpu(tiny, most):
    """Also in chunks of one token, which are no decodes: the next token is the prompt's own."""
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, prompt_logprobs=1)
    options = {"max_num_batched_tokens": most, "max_num_seqs": 1}
    on_gpu = gpu_llm(tiny, **options).generate(PROMPTS[:3], params)
    on_cpu = LLM(tiny, block_size=4, num_blocks=64).generate(PROMPTS[:3], params)
    assert texts(on_gpu) == texts(on_cpu)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        for our, their in zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True):
            assert our.keys() == their.keys()
            assert [p.logprob for p in our.values()] == pytest.approx([p.logprob for p in their.values()], abs=1e-4)


@pytest.mark.parametrize(
    ("tiny", "options"),
    [
        ("gpt2", {"dtype": "bfloat16"}),
        long("gpt2", {"dtype": "float16"}),
        ("gpt2", {"kv_cache_dtype": "int8"}),
        ("llama", {"kv_cache_dtype": "fp8"}),
        *(
            long(model, {"kv_cache_dtype": name})
            for model in SAVE
            for name in ("int8", "fp8")
            if (model, name) not in (("gpt2", "int8"), ("llama", "fp8"))
        ),
    ],
    indirect=["tiny"],
    ids=str,
)
def test_other_number_formats_are_as_far_off_as_on_the_cpu(tiny, options):
    """The log probabilities of one text, against those of float32."""

    def logprobs(llm):
        output = llm.generate([PROMPTS[0]], SamplingParams(seed=1, max_tokens=3, logprobs=0, ignore_eos=True))[0]
        (text,) = output.outputs
        return text.token_ids[0], text.logprobs[0][text.token_ids[0]].logprob

    on_gpu = logprobs(gpu_llm(tiny, **options))
    on_cpu = logprobs(LLM(tiny, block_size=4, num_blocks=32, arrays="torch", **options))
    assert on_gpu[0] == on_cpu[0] and on_gpu[1] == pytest.approx(on_cpu[1], abs=0.05)
    assert on_gpu[1] != logprobs(LLM(tiny, block_size=4, num_blocks=32))[1], "that was float32"


def test_an_attention_function_of_ones_own_gets_arrays_on_the_gpu(tiny):
    calls = []

    def attention(q, *rest):
        calls.append(type(q).__module__)
        return cuda.paged_attention(q, *rest)

    llm = gpu_llm(tiny, attention=attention)
    assert texts(llm.generate(PROMPTS[:2], greedy(2))) == [[Dense(tiny).greedy(prompt, 2)] for prompt in PROMPTS[:2]]
    assert set(calls) == {"numpy" if is_simulated() else "torch"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "reference"}, "attention is 'reference', but on a GPU it must be 'cuda'"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization is 0"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization is 1\.5"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"arrays": "numpy"}, "device is 'cuda', but arrays is 'numpy'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_on_a_gpu_is_refused(tiny, options, words):
    with pytest.raises(ConfigurationError, match=words):
        gpu_llm(tiny, **options)


def test_too_many_blocks_for_the_gpu_are_refused(tiny, monkeypatch):
    if is_simulated():

        def no_room(*arguments):
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB.")

        monkeypatch.setattr("minipage.worker.gpu.checked.zeros", no_room)
    with pytest.raises(ConfigurationError, match="no room for 1,000,000,000 blocks of 4 tokens"):
        LLM(tiny, device="cuda", max_num_seqs=4, block_pool=Endless())


class FakeMemory:
    """In place of torch.cuda, and of CuPy's pool: a GPU of 1,000 bytes, of which 300 are in use at first."""

    def __init__(self):
        self.in_use = self.most = 300

    def take(self, num_bytes):
        self.in_use += num_bytes
        self.most = max(self.most, self.in_use)

    def release(self, num_bytes):
        self.in_use -= num_bytes

    def synchronize(self): ...

    def empty_cache(self): ...

    def reset_peak_memory_stats(self):
        self.most = self.in_use

    def memory_allocated(self):
        return self.in_use

    def max_memory_allocated(self):
        return self.most

    def mem_get_info(self):
        return 1000 - self.in_use, 1000

    # CuPy's pool: what was once in use stays with it, until it is told to free it

    def total_bytes(self):
        return self.most

    def free_all_blocks(self):
        self.most = self.in_use


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_the_memory_for_blocks_is_what_the_largest_step_leaves_of_its_share(library, monkeypatch):
    gpu = FakeMemory()
    cupy = SimpleNamespace(
        get_default_memory_pool=lambda: gpu, cuda=SimpleNamespace(runtime=SimpleNamespace(memGetInfo=gpu.mem_get_info))
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=gpu))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    gpu.take(100)
    gpu.release(100)  # before: of no interest

    def step():
        gpu.take(80)
        gpu.take(70)
        gpu.release(150)
        return 25  # that graphs will keep

    assert memory.spare_memory(library, 0.9, step) == 900 - 300 - 150 - 25
    with pytest.raises(ConfigurationError, match=r"0\.4 of 1,000 bytes, of which 300 are in use and a step needs 175"):
        memory.spare_memory(library, 0.4, step)


@pytest.mark.parametrize("attention", [None, cuda.paged_attention], ids=["graphs", "checked"])
def test_without_a_size_the_cache_takes_the_memory_that_is_spare_as_far_as_it_can_use_it(tiny, attention, monkeypatch):
    asked = []

    def spare(library, utilization, largest_step):
        asked.append((utilization, largest_step()))
        return num_bytes

    monkeypatch.setattr("minipage.worker.gpu.checked.spare_memory", spare)
    monkeypatch.setattr("minipage.worker.gpu.checked.is_simulated", lambda: False)
    options = {"device": "cuda", "attention": attention, "max_num_seqs": 2, "block_size": 4, "max_model_len": 32}
    num_bytes = 10**12
    plenty = LLM(tiny, gpu_memory_utilization=0.7, **options)
    assert plenty.scheduler.block_pool.num_blocks == 2 * 2 * (32 // 4)
    num_bytes = 5 * sum(array[:, 0].nbytes for array in plenty.runner.kv_cache.arrays)
    assert LLM(tiny, **options).scheduler.block_pool.num_blocks == 5
    assert [utilization for utilization, _ in asked] == [0.7, 0.9]
    if is_simulated():  # simulated kernels are never in graphs, which would keep memory
        assert [kept for _, kept in asked] == [0, 0]


class Endless:
    """A pool of as many blocks as no GPU has room for."""

    num_blocks, block_size = 1_000_000_000, 4

    def allocate_many(self, count):
        raise AssertionError("nothing is allocated before there is room")


# ---- the parts


some = st.sets(st.integers(0, 11), max_size=3).map(sorted)
adjustments = st.builds(
    lambda options, prompt, output, stop: Processors(
        SamplingParams(min_tokens=2, **options), prompt, stop, [], 12
    ).adjustment(output),
    st.fixed_dictionaries(
        {},
        optional={
            "presence_penalty": st.just(0.5),
            "repetition_penalty": st.just(1.5),
            "logit_bias": st.just({2: 1.5, 5: -3.0}),
            "allowed_token_ids": some.filter(bool),
        },
    ),
    some,
    some,
    some,
)
draws = st.builds(
    Draw,
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 1e-3, 0.5, 1.0, 3.0]),
        top_k=st.sampled_from([0, -1, 1, 3, 100]),
        top_p=st.sampled_from([1.0, 0.9, 0.3, 1e-6]),
        min_p=st.sampled_from([0.0, 0.1, 1.0]),
    ),
    st.floats(0, 1, exclude_max=True),
    st.none() | adjustments,
)


@pytest.mark.parametrize("most", [3, 1024])  # tokens looked at first: too few of them, or all
@given(
    # Halves: many ties, of which the first has to win.
    logits=arrays(np.float32, (3, 12), elements=st.integers(-20, 20).map(lambda i: i / 2)),
    batch=st.lists(st.tuples(st.integers(0, 2), draws), min_size=1, max_size=6),
)
def test_the_device_draws_what_the_host_draws(most, logits, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minipage.worker.gpu.draw.MOST", most)
        tokens = sample_on_device(torch.from_numpy(logits.copy()).to(DEVICE), batch)
    for token, (row, draw) in zip(tokens, batch, strict=True):
        expected = sample(logits[row], *draw)
        if token != expected:  # allowed if the number fell on the edge between two tokens, up to rounding
            nudged = [sample(logits[row], draw.params, n, draw.adjustment) for n in np.clip(
                [draw.number - 1e-9, draw.number + 1e-9], 0, 1 - 1e-12)]  # fmt: skip
            assert token in nudged, f"{token}, not {expected}, from {logits[row]} with {draw}"


def test_a_nucleus_of_few_tokens_is_found_without_sorting_all(monkeypatch):
    monkeypatch.setattr("minipage.worker.gpu.draw.MOST", 4)
    monkeypatch.setattr("minipage.worker.gpu.draw.draw_from_sorted", None)
    logits = torch.tensor([[0.0, 9, 1, 8, 2, 9, 3, 7], [5.0, 1, 2, 3, 4, 0, 0, 0]], device=DEVICE)
    ways = [{"top_p": 0.8}, {"top_k": 3}, {"top_k": 2, "top_p": 0.5, "min_p": 0.9}]
    batch = [(row, Draw(SamplingParams(**way), i / 8)) for row in (0, 1) for way in ways for i in range(8)]
    expected = [sample(logits[row].cpu().numpy(), *draw) for row, draw in batch]
    assert sample_on_device(logits, batch) == expected and len(set(expected)) > 3
    two = Settings.of([Draw(SamplingParams(top_k=2), 0.5)], DEVICE)
    equals = torch.zeros(1, 8, device=DEVICE)  # of which the first two are wanted, and any four may be found
    assert draw_from_likeliest(equals, two).tolist() == [UNSURE]


@pytest.mark.parametrize("top_k", [6, 10**400], ids=["6", "huge"])
def test_top_p_of_more_tokens_than_are_looked_at_first(top_k, monkeypatch):
    monkeypatch.setattr("minipage.worker.gpu.draw.MOST", 4)
    logits = -torch.arange(8.0, device=DEVICE)[None] / 100  # [1, 8], nearly equal
    batch = [(0, Draw(SamplingParams(top_k=top_k, top_p=0.5), i / 8)) for i in range(8)]
    expected = [sample(logits[0].cpu().numpy(), *draw) for _, draw in batch]
    assert sample_on_device(logits, batch) == expected and max(expected) == (2 if top_k == 6 else 3)


@pytest.mark.parametrize(
    ("preemption", "caching", "max_num_batched_tokens"),
    [
        *(("recompute", caching, most) for caching in (False, True) for most in (7, 2048)),
        ("swap", True, 7),
        *(long("swap", *others) for others in ((False, 7), (True, 2048), (False, 2048))),
    ],
)
def test_a_batch_that_follows_from_the_last_is_what_it_would_be_anew(
    tiny, preemption, caching, max_num_batched_tokens, monkeypatch
):
    made_anew, num_steps, num_preemptions = [], 0, 0
    real = batch_module.make_batch
    monkeypatch.setattr(
        "minipage.worker.gpu.next_batch.make_batch", lambda *chunks: made_anew.append(1) or real(*chunks)
    )
    first = [3 * i % 59 for i in range(17)]
    prompts = [first, [*first[:9], 1, 2, 3], first, [5, 7, 9]]  # alike in part, in all, in nothing
    samples, beams = SamplingParams(n=4, seed=3, max_tokens=9), SamplingParams(beam_width=4, max_tokens=9)
    for params, num_blocks in ((greedy(12), 9), (samples, 16), (beams, 16)):  # too few blocks for all prompts
        llm = LLM(
            tiny,
            block_size=4,
            num_blocks=num_blocks,
            preemption=preemption,
            swap_space="1MiB",
            enable_prefix_caching=caching,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        batches, forward = Batches(4), llm.forward

        def checked(plan, batches=batches, forward=forward):
            nonlocal num_steps
            num_steps += 1
            for name, ours, anew in zip(Batch._fields, batches.make(plan.chunks), real(plan.chunks)):
                assert np.array_equal(ours, anew), f"{name} in step {num_steps}: {ours}, not {anew}"
            return forward(plan)

        llm.forward = checked
        num_preemptions += sum(output.metrics.num_preemptions for output in llm.generate(prompts, params))
    assert num_preemptions > 0, "the pool was too large to test this"
    assert len(made_anew) < num_steps - 10


class Backwards(BlockTable):
    """A table of somebody's own, with other slots."""

    def slot_mapping(self, start, stop):
        return [1000 - slot for slot in super().slot_mapping(start, stop)]


@pytest.mark.parametrize("kind", [BlockTable, Backwards])
def test_a_batch_follows_from_the_last_whatever_became_of_the_tables(kind):
    """Also what an engine hardly does with the sequences of the last step: a scheduler of one's own might."""
    pool = BlockPool(60, 4)
    seqs = [Sequence(name, list(range(start, start + 8)), kind(pool)) for name, start in (("a", 0), ("b", 20))]
    groups = [SequenceGroup(seq.seq_id, [seq], 20) for seq in seqs]
    batches = Batches(4)

    def step(num_tokens=1):
        starts = [seq.num_computed_tokens for seq in seqs]
        for seq in seqs:
            seq.block_table.append(num_tokens)
            seq.token_ids += [7] * (seq.num_computed_tokens - len(seq.token_ids))
        chunks = [Chunk(*one, num_tokens) for one in zip(groups, seqs, starts)]
        for name, ours, anew in zip(Batch._fields, batches.make(chunks), batch_module.make_batch(chunks)):
            assert np.array_equal(ours, anew), f"{name}: {ours}, not {anew}"
        for seq in seqs:
            seq.token_ids.append(seq.num_computed_tokens)

    step(8)
    step()
    step()
    seqs[1].block_table.blocks[0] = 41  # exchanged for one of the same text
    step()
    seqs[0].block_table.move_to(BlockPool(40, 4), {})  # swapped out and in
    step()
    seqs[1].block_table.blocks += pool.allocate_many(4)  # reserved
    step()
    step(2)
    step()
    for seq in seqs:  # restarted
        seq.block_table.blocks, seq.block_table.num_tokens = [], 0
    step()


def test_inputs_are_padded_with_what_is_written_nowhere_and_reads_nothing():
    inputs = StepInputs(max_num_tokens=9, max_num_seqs=4, max_blocks=3, device=DEVICE)
    ones = np.ones
    inputs.load(
        Batch(ones(9), ones(9), ones(9), ones((4, 3)), ones(4), ones(5), ones(4)), 9, 4, False
    )  # what was there before
    tables = np.array([[8, 9], [6, 0]])
    batch = Batch(*map(np.array, ([7, 8], [3, 4], [33, 20])), tables, *map(np.array, ([4, 5], [0, 1, 2], [0, 1])))
    on_device = inputs.load(batch, 4, 4, are_decodes=True)
    got = Batch(*(array.tolist() for array in on_device))
    assert got == Batch(
        token_ids=[7, 8, 0, 0],
        positions=[3, 4, 0, 0],
        slot_mapping=[33, 20, -1, -1],
        block_tables=[[8, 9, 0], [6, 0, 0], [0, 0, 0], [0, 0, 0]],
        context_lens=[4, 5, 0, 0],
        query_start_loc=[0, 1, 2, 3, 4],
        sampled_rows=[0, 1, 2, 3],
    )
    _, again = inputs.places(4, 4, 4)
    assert [a.data_ptr() for a in again] == [a.data_ptr() for a in on_device], "a graph reads them where they were"
    prompts = inputs.load(batch, 8, 4, are_decodes=False)
    assert prompts.query_start_loc.tolist() == [0, 1, 2, 2, 2] and prompts.sampled_rows.tolist() == [0, 1, 0, 0]
    assert prompts.slot_mapping.tolist() == [33, 20] + 6 * [-1] and prompts.context_lens.tolist() == [4, 5, 0, 0]


@pytest.mark.parametrize("most", [1, 2, 3, 8, 100, 256, 1000])
def test_there_is_a_graph_for_every_batch_with_little_padding(most):
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most
    for num_seqs in range(1, most + 1):
        size = next(size for size in sizes if size >= num_seqs)
        assert size - num_seqs <= max(7, num_seqs / 4), f"{num_seqs} padded to {size}"


class Captures:
    """Instead of CUDA's: the first few fail."""

    def __init__(self, num_failures):
        self.num_failures, self.tried, self.replayed = num_failures, 0, 0

    def __call__(self, run, pool):
        self.tried += 1
        logits = run()
        if self.tried <= self.num_failures:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        logits = logits.clone()

        def replay():
            self.replayed += 1
            logits.copy_(run())

        return SimpleNamespace(replay=replay), logits


@pytest.mark.filterwarnings("default:a CUDA graph")
def test_where_a_graph_cannot_be_captured_kernels_are_launched_one_by_one_and_it_is_tried_again(
    tiny, monkeypatch, recwarn
):
    captures = Captures(num_failures=2)
    monkeypatch.setattr(capture, "capture", captures)
    llm = gpu_llm(tiny, num_blocks=64)
    llm.runner.enforce_eager = False
    outputs = llm.generate(PROMPTS[:1], greedy(12))
    assert texts(outputs) == [[Dense(tiny).greedy(PROMPTS[0], 12)]]
    assert captures.tried == 4, "it has to be tried again, but not at every step; and then once for its draws"
    assert 0 < captures.replayed < 20
    (warning,) = (w for w in recwarn if "CUDA graph" in str(w.message))
    assert "operation not permitted" in str(warning.message)


DRAWN_WAYS = {
    "greedy": [{"temperature": 0}],
    "of all": [{}, {"temperature": 0.5, "min_p": 0.1}],
    "of the likeliest": [{"top_k": 5}, {"top_p": 0.7}],
    "greedy and of all": [{"temperature": 0}, {"temperature": 2.0}],
    "greedy and of the likeliest": [{"top_k": 3, "top_p": 0.9}, {"temperature": 0}],
    "in several ways": [{}, {"top_k": 3}, {"temperature": 0}],
}


@pytest.mark.parametrize("ways", DRAWN_WAYS.values(), ids=DRAWN_WAYS)
def test_draws_in_order_are_those_of_any_order(ways):
    """What a graph of draws says, whose last rows are padding: nothing, where no graph can be had."""
    logits = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logits[2] = float("nan")
    draws = [(row, Draw(SamplingParams(**way), row / 7)) for row, way in enumerate((6 * ways)[:6])]
    how, settings = how_in_order(draws), SettingsInPlace(8, DEVICE)
    assert how_in_order(draws[1:]) is None, "the first row is missing"
    if ways is DRAWN_WAYS["in several ways"]:
        assert how is None
        return
    for shift in range(2):  # the second time, in the same place
        draws = [(row, Draw(draw.params, (draw.number + shift / 3) % 1)) for row, draw in draws]
        tokens = draw_in_order(logits, settings.load(draws, 8, how), how)
        assert tokens[:6].tolist() == sample_on_device(logits, draws) and tokens[2] == NO_TOKEN


DRAWN = [SamplingParams(**way, max_tokens=4, ignore_eos=True) for way in ({"temperature": 0}, {"top_k": 5, "seed": 1})]


@pytest.fixture(scope="module")
def plainly_drawn(tiny):
    return texts(gpu_llm(tiny, async_scheduling=False).generate(PROMPTS[:2], DRAWN))


@pytest.mark.parametrize("rows", [100, 1], ids=["there is memory", "there is none for two rows"])
def test_draws_that_are_replayed_are_those_of_plain_steps(tiny, plainly_drawn, monkeypatch, rows):
    captures = Captures(num_failures=0)
    monkeypatch.setattr(capture, "capture", captures)
    overlapped = gpu_llm(tiny, async_scheduling=True)
    overlapped.runner.enforce_eager, overlapped.runner._rows_to_draw = False, rows
    assert texts(overlapped.generate(PROMPTS[:2], DRAWN)) == plainly_drawn
    assert captures.tried == (4 if rows > 1 else 2), "of the prompts, of a step, and of draws from both"
    assert captures.replayed >= 2 * captures.tried


@pytest.mark.parametrize("tiny", ["gpt2", long("llama"), long("mistral")], indirect=True)
def test_steps_with_drafts_are_graphs_and_say_the_same(tiny, monkeypatch):
    """Every third draft is wrong."""
    captures = Captures(num_failures=0)
    monkeypatch.setattr(capture, "capture", captures)
    launch, by_the_way = cuda.launch_attention, []  # whether K and V are written while others are read

    def watched(*arguments, new, **options):
        by_the_way.append(new is not None)
        launch(*arguments, new=new, **options)

    monkeypatch.setattr(cuda, "launch_attention", watched)
    waits, likeliest = [], graphs.GraphRunner._likeliest
    monkeypatch.setattr(graphs.GraphRunner, "_likeliest", lambda *rows: waits.append(rows) or likeliest(*rows))
    llm = gpu_llm(tiny, max_num_seqs=1, async_scheduling=False)
    llm.runner.enforce_eager = False
    monkeypatch.setattr(llm.runner, "_prompt_sizes", [0])  # the prompt is none
    expected = Dense(tiny).greedy(PROMPTS[1], 6)
    speculation = speculate(llm, Knowing([PROMPTS[1] + expected], lambda place: place % 3 == 2), num_tokens=3)
    assert texts(llm.generate(PROMPTS[1:2], greedy(6))) == [[expected]]
    assert sum(speculation.num_accepted) >= 2
    assert {key[0] for key in llm.runner._graphs if key[2]} == {2, 4}, "a token and three drafts, and at the end one"
    assert captures.tried == len(llm.runner._graphs) + len(llm.runner._draw_graphs) and captures.replayed >= 2
    assert by_the_way[0] and not by_the_way[-1], "a draft reads what the drafts before it have written"
    assert len(waits) == 6 - sum(speculation.num_accepted), "a step waits once, with drafts, too"


@pytest.mark.parametrize("tiny", ["gpt2", long("llama"), long("mistral"), long("hybrid")], indirect=True)
def test_steps_with_prompts_are_graphs_of_few_sizes_and_say_the_same(tiny, monkeypatch):
    """Together with what decodes meanwhile; a step of more tokens is none."""
    monkeypatch.setattr(graphs, "PROMPT_SIZES", (4, 8))
    monkeypatch.setattr(capture, "capture", captures := Captures(num_failures=0))
    llm = gpu_llm(tiny, max_num_seqs=3, max_num_batched_tokens=9)
    llm.runner.enforce_eager = False
    sizes, run = [], llm.runner._run

    def watched(inputs, *lengths, **others):
        sizes.append(len(inputs[0].token_ids))
        return run(inputs, *lengths, **others)

    llm.runner._run = watched
    for _ in range(2):  # the second time nothing is captured any more
        sizes.clear()
        for prompts in (PROMPTS[:3], PROMPTS[:1], PROMPTS[1:2]):
            assert texts(llm.generate(prompts, greedy(4))) == [[Dense(tiny).greedy(prompt, 4)] for prompt in prompts]
    assert {key[2] for key in llm.runner._graphs if type(key[2]) is int} == {4, 8}
    assert captures.tried == len(llm.runner._graphs) + len(llm.runner._draw_graphs) < captures.replayed
    assert set(sizes) == {1, 4, 8, 9}, "one, two or three decodes, and prompts"


def test_a_graph_of_draws_that_fails_keeps_no_decode_from_its_own():
    failing, working = capture.Graphs(None), capture.Graphs(None)
    failing._steps_to_wait, rows = 100, torch.zeros(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "capture", Captures(num_failures=0))
        for each in (failing, working):
            each.replayed((1,), lambda: rows)
    assert not failing and list(working) == [(1,)]


def test_a_failed_capture_leaves_the_garbage_collector_as_it_was(monkeypatch):
    @contextmanager
    def spoiled(graph, **options):
        assert not gc.isenabled()
        yield
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(torch.cuda, "graph", spoiled)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not permitted"), capture.recorded(None):
            pass
        assert gc.isenabled()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("most", [4, 1024], ids=["more tokens than are looked at first", "all"])
def test_logits_that_are_no_numbers_give_no_token_and_harm_no_other_row(bad, most, monkeypatch):
    monkeypatch.setattr("minipage.worker.gpu.draw.MOST", most)
    logits = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ways = [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 2, "top_p": 0.5, "min_p": 0.5}]
    batch = [(row, Draw(SamplingParams(**way), 0.3)) for row in range(3) for way in ways]
    expected = [sample(logits[row].cpu().numpy(), *draw) for row, draw in batch]
    logits[1, 5 if bad == bad and bad > 0 else slice(None)] = bad
    for i, (row, _) in enumerate(batch):
        expected[i] = NO_TOKEN if row == 1 else expected[i]
    assert sample_on_device(logits, batch) == expected


# ---- a tier below the pool, to which blocks travel while the GPU computes

LONG = [[(7 * i + 11 * j * j + 3 * i * j) % 59 for j in range(18)] for i in range(4)]
TIGHT = {"block_size": 4, "num_blocks": 8, "enable_prefix_caching": True}


def said(llm, prompts):
    """The texts, one prompt after the other."""
    return [texts(llm.generate([prompt], greedy(4)))[0] for prompt in prompts]


def plain(folder):
    return [[Dense(folder).greedy(prompt, 4)] for prompt in LONG]


def test_evicted_blocks_come_back(tiny):
    llm = gpu_llm(tiny, **TIGHT, kv_offloading_size=1e-3)
    assert said(llm, [LONG[0], LONG[1], LONG[0]]) == [plain(tiny)[i] for i in (0, 1, 0)]
    assert llm.stats()["vllm:external_prefix_cache_hits"] > 0


class Streams:
    """In place of torch.cuda: what is copied is there at once, but an event has come only when it was asked for
    `num_asked` times."""

    def __init__(self, num_asked):
        self.num_asked, self.waited_for = num_asked, []
        self.calls_left, self.error = None, None

    def raise_after(self, num_calls, error):
        self.calls_left, self.error = num_calls, error

    def called(self):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise self.error("now")

    def Stream(self):
        return self

    def current_stream(self):
        self.called()
        return self

    def stream(self, side):
        return nullcontext()

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        self.waited_for.append(event)

    def record_event(self):
        self.called()
        return Event(self.num_asked)


class Event:
    def __init__(self, num_asked):
        self.num_asked = num_asked

    def query(self):
        self.num_asked -= 1
        return self.num_asked < 0


@pytest.fixture
def travelling(monkeypatch):
    """Makes engines on the CPU whose tiers are those of a GPU, above fake streams."""

    def make(tiny, num_asked, num_slots=50, kind=LLM, *more, **options):
        streams = Streams(num_asked)
        llm = kind(tiny, *more, **options)
        cache = copy(llm.kv_cache)
        cache.k, cache.v = torch.from_numpy(cache.k), torch.from_numpy(cache.v)  # the same memory
        monkeypatch.setattr("minipage.worker.gpu.offload.cuda", streams)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        monkeypatch.setattr(
            "minipage.engine.offload.Store", lambda _, num_bytes, path: PinnedStore(cache, num_bytes, llm.block_pool)
        )
        give_tier(llm, num_slots, is_pinned=True)
        return llm, streams

    return make


@pytest.mark.parametrize("num_asked", [0, 1, 5])
def test_what_travels_arrives(tiny, travelling, num_asked):
    for num_slots in 50, 7, 2:
        llm, _ = travelling(tiny, num_asked, num_slots, WatchedLLM, SlotOracle(Dense(tiny).kv), **TIGHT)
        assert said(llm, LONG * 3) == plain(tiny) * 3
        assert (llm.stats()["vllm:external_prefix_cache_hits"] > 0) == (num_slots == 50)


def test_others_go_on_while_blocks_are_on_their_way(tiny, travelling):
    llm, _ = travelling(tiny, 1000, **TIGHT | {"num_blocks": 16})
    said(llm, [*LONG, *LONG[1:]])
    llm.add_request(LONG[0][:3], greedy(9))
    llm.step()
    llm.add_request(LONG[0], greedy(4))
    for _ in range(5):
        llm.step()
        assert len(llm.scheduler.waiting) == 1, "nothing has come yet"
    for event in llm.offloading.store.coming.values():
        event.num_asked = 0
    llm.step()
    assert not llm.scheduler.waiting
    assert llm.stats()["vllm:external_prefix_cache_hits"] >= 16


def test_if_nobody_else_is_there_the_step_itself_waits(tiny, travelling):
    llm, streams = travelling(tiny, 1000, **TIGHT)
    assert said(llm, LONG * 2) == plain(tiny) * 2
    assert streams.waited_for, "blocks were used that may not have come"
    assert llm.stats()["vllm:external_prefix_cache_hits"] > 0


def test_if_a_step_evicts_too_much_a_block_is_not_saved(tiny, travelling, monkeypatch):
    llm, _ = travelling(tiny, 0, **TIGHT)
    monkeypatch.setattr("minipage.worker.gpu.offload.MOST", 1)
    assert said(llm, LONG * 2) == plain(tiny) * 2
    assert 0 < len(llm.offloading.cache.tier.place_of) < 16


@pytest.mark.parametrize("error", [KeyboardInterrupt, long(torch.OutOfMemoryError)])
def test_what_was_under_way_when_something_raised_is_still_what_it_was(tiny, travelling, monkeypatch, error):
    """Wherever: every call for a stream or for an event may be the last one."""
    expected, brought = plain(tiny), 0
    for number in range(0, 60, 3):
        llm, streams = travelling(tiny, 1, 50, WatchedLLM, SlotOracle(Dense(tiny).kv), **TIGHT)
        said(llm, LONG)
        streams.raise_after(number, error)
        with suppress(error):
            said(llm, LONG)
        streams.calls_left = None
        assert said(llm, LONG) == expected
        brought += llm.stats()["vllm:external_prefix_cache_hits"]
    assert brought > 0


# ---- steps that overlap


@pytest.mark.parametrize(
    "options",
    [
        long({}),
        {"num_blocks": 6, "enable_prefix_caching": True},
        long({"num_blocks": 6, "preemption": "swap", "swap_space": "1MiB"}),
    ],
    ids=["ample", "recompute", "swap"],
)
def test_steps_that_overlap_say_what_plain_ones_say(tiny, options):
    params = [
        greedy(5),
        SamplingParams(seed=1, max_tokens=6, ignore_eos=True, top_k=7),
        SamplingParams(seed=2, max_tokens=6, stop_token_ids=list(range(0, 60, 6))),
        SamplingParams(seed=3, n=2, max_tokens=3, ignore_eos=True),
    ]
    plain = gpu_llm(tiny, async_scheduling=False, **options).generate(PROMPTS, params)
    llm = gpu_llm(tiny, **options)
    launch, ahead = llm.overlap._launch, []
    llm.overlap._launch = lambda *step: ahead.append(llm.overlap._flying is not None) or launch(*step)
    found = llm.generate(PROMPTS, params)
    assert texts(found) == texts(plain)
    assert [o.outputs[0].finish_reason for o in found] == [o.outputs[0].finish_reason for o in plain]
    assert sum(ahead) > len(ahead) // 2
    llm.scheduler.check_integrity()
    assert llm.block_pool.num_used == 0


def test_rows_of_nan_end_their_request_alone_where_steps_overlap(tiny):
    plain = [[Dense(tiny).greedy(prompt, 5)] for prompt in PROMPTS[:3]]
    llm = gpu_llm(tiny, enforce_eager=True)
    compute, steps = llm.runner.compute, []

    def broken(batches):
        logits = compute(batches).clone()
        steps.append(1)
        if len(steps) == 3:
            logits[1] = float("nan")
        return logits

    llm.runner.compute = broken
    found = llm.generate(PROMPTS[:3], greedy(5))
    assert [output.outputs[0].finish_reason for output in found] == ["length", "error", "length"]
    assert texts(found) == [plain[0], [plain[1][0][:2]], plain[2]]
    assert "not finite numbers" in found[1].error


@takes_long
def test_where_the_device_is_unsure_the_host_helps_and_steps_are_plain(tiny, monkeypatch):
    params = SamplingParams(seed=1, top_p=0.9, max_tokens=6, ignore_eos=True)
    plain = texts(gpu_llm(tiny, async_scheduling=False).generate(PROMPTS, params))
    monkeypatch.setattr("minipage.worker.gpu.draw.MOST", 4)  # tokens that are looked at: too few
    llm = gpu_llm(tiny)
    assert texts(llm.generate(PROMPTS, params)) == plain
    assert llm.overlap._unsuited
