"""The cost model, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minipage.errors import ConfigurationError, ModelError
from minipage.simulate.configs import CONFIGS, find_architecture
from minipage.simulate.cost import CostModel, Sizes, Work
from minipage.simulate.machines import A100_40, FASTER_TRANSFORMER, GRAPHS, MACHINES, PAPER_SYSTEM, find_machine
from minipage.simulate.measured import Timed, measured
from minipage.simulate.serve import Setting, serve
from minipage.simulate.workload import Arrival

TEXTBOOK = replace(A100_40, overlap=1000.0)  # the longer of reading and computing alone
NOTHING = replace(GRAPHS, step=0.0, request=0.0, kernel=0.0, eager=0.0, overlaps=False)
OPT_13B = CostModel(Sizes.of(find_architecture("OPT-13B")), TEXTBOOK, NOTHING)


def test_a_decode_of_one_sequence_reads_all_weights_once():
    # 40 layers of 12 * 5120 ** 2, and the head of 50,272 * 5120; biases and norms are below a part in a thousand
    weights = 2 * (40 * 12 * 5120**2 + 50_272 * 5120)
    assert OPT_13B.products(Work(1, 1, 1, 0, 0)) == pytest.approx(weights / A100_40.bandwidth, rel=1e-3)


def test_a_decode_of_few_sequences_takes_as_long_as_of_one():
    one, eight = (OPT_13B.products(Work(n, n, n, 0, 0)) for n in (1, 8))
    assert one == eight


def test_a_prefill_is_bound_by_arithmetic():
    operations = 2 * 2000 * 40 * 12 * 5120**2
    assert OPT_13B.products(Work(2000, 1, 1, 0, 0)) == pytest.approx(operations / A100_40.flops, rel=0.01)


def test_attention_reads_k_and_v_of_every_token_of_the_context():
    # 2 * 40 layers * 5120 numbers of 2 bytes: 819,200 bytes a token
    assert OPT_13B.kv_bytes_per_token == 819_200
    assert OPT_13B.attention(Work(4, 4, 4, 4 * 500, 4 * 500)) == pytest.approx(2000 * 819_200 / A100_40.bandwidth)


def test_work_counts_each_token_of_a_prompt_with_those_before_it():
    class Seq:
        token_ids = range(10)

    class Chunk:
        group = object()
        seq = Seq
        start = 4
        num_tokens = 6

    class Plan:
        chunks = (Chunk,)

    assert Work.of(Plan) == Work(6, 1, 1, 10, 5 + 6 + 7 + 8 + 9 + 10)


def chunk_of(start, count, length):
    seq = SimpleNamespace(token_ids=range(length))
    return SimpleNamespace(group=object(), seq=seq, start=start, num_tokens=count)


def test_layers_with_a_window_look_at_what_it_reaches():
    plan = SimpleNamespace(chunks=[chunk_of(7, 6, 20), chunk_of(30, 1, 31), chunk_of(0, 3, 3)])
    shares = (0.25, 10**9), (0.75, 5)
    looked_at = [(n + 1, min(n + 1, 5)) for n in (*range(7, 13), 30, 0, 1, 2)]
    work = Work.of(plan, None, shares)
    assert work.num_pairs == sum(0.25 * full + 0.75 * few for full, few in looked_at)
    assert work.num_read == 0.25 * (13 + 31 + 3) + 0.75 * (5 - 1 + 6 + 5 + 3)
    assert Work.of(plan, None, ((1.0, 10**9),)) == Work.of(plan)


def test_a_models_windows_are_shares_of_its_layers():
    sizes = OPT_13B.sizes._replace(num_layers=4, windows=(5, 5, None, 5))
    assert sorted(sizes.shares)[1] == (0.75, 5) and sorted(sizes.shares)[0][0] == 0.25
    assert OPT_13B.sizes.shares == ()


# ---- host and device, beside each other


def test_a_step_costs_host_and_device_or_the_longer_of_both():
    slow_host = replace(OPT_13B, overheads=replace(NOTHING, step=1.0, overlaps=False))
    quick_host = replace(OPT_13B, overheads=replace(NOTHING, step=1e-3, overlaps=True))
    work = Work(8, 8, 8, 800, 800)
    assert slow_host.seconds(work) == 1.0 + OPT_13B.device(work)
    assert quick_host.seconds(work) == OPT_13B.device(work)
    assert replace(slow_host, overheads=replace(NOTHING, step=1.0, overlaps=True)).seconds(work) == 1.0


def test_steps_of_decodes_alone_and_with_short_prompts_are_graphs():
    eager = replace(OPT_13B, overheads=replace(NOTHING, eager=1e-3))
    assert eager.host(Work(8, 8, 8, 800, 800)) == 0
    assert eager.host(Work(512, 2, 1, 800, 800)) == 0
    assert eager.host(Work(513, 2, 1, 800, 800)) == pytest.approx(40e-3)


def test_a_request_that_comes_after_a_step_was_planned_waits_for_the_next_one():
    """It comes in the third step, and is in the fourth; but that is planned already where steps overlap."""
    cost = replace(OPT_13B, overheads=replace(NOTHING, step=1e-3))
    waits = []
    for overlaps in (False, True):
        its_cost = replace(cost, overheads=replace(cost.overheads, overlaps=overlaps))
        step = its_cost.seconds(Work(1, 1, 1, 100, 100))
        report = serve(Setting(its_cost, 15_728), [Arrival(0.0, 100, 9), Arrival(2.5 * step, 100, 1)])
        waits.append(report.time_to_first_token.quantile(1.0) / step)
    assert waits[1] - waits[0] == pytest.approx(1, abs=0.2)


# ---- steps that were timed


def test_measured_steps_are_looked_up_and_contexts_added():
    """Three rows take longer than eight here, which no roofline says."""
    truth = {1: 10e-3, 3: 24e-3, 8: 22e-3}
    per_token = 4e-6
    steps = [Timed(Work(n, n, n, 30 * n, 30 * n), t + 30 * n * per_token) for n, t in truth.items()]
    steps.append(Timed(Work(8, 8, 8, 2400, 2400), truth[8] + 2400 * per_token))
    steps += [Timed(Work(n, 1, 1, n, n), n * 1e-3 + n * per_token) for n in (20, 100)]
    cost = measured(replace(OPT_13B, machine=TEXTBOOK), steps)
    for step in steps:
        assert cost.seconds(step.work) == pytest.approx(step.seconds, rel=0.01)
    assert cost.seconds(Work(5, 5, 5, 500, 500)) > cost.seconds(Work(8, 8, 8, 500, 500))
    both = Work(28, 9, 9, 340, 500)
    for more in (3e-3, -3e-3):  # on a GPU a step with both takes shorter than a prompt by itself
        other = measured(replace(OPT_13B, machine=TEXTBOOK), [*steps, Timed(both, cost.seconds(both) + more)])
        assert other.seconds(both) == pytest.approx(cost.seconds(both) + more)
        assert other.seconds(steps[0].work) == cost.seconds(steps[0].work)
    overlapped = measured(replace(OPT_13B, machine=TEXTBOOK, overheads=GRAPHS), steps)
    for step in steps:  # the host's part does not count twice
        assert overlapped.seconds(step.work) == pytest.approx(step.seconds, rel=0.01)
        assert 0 < overlapped.host(step.work) <= overlapped.device(step.work)
    graph, none = both, Work(600, 9, 9, 900, 2000)  # what a prompt costs beside others differs: each by its own kind
    timed = [Timed(graph, overlapped.seconds(graph) + 1e-3), Timed(none, overlapped.seconds(none) + 9e-3)]
    other = measured(replace(OPT_13B, machine=TEXTBOOK, overheads=GRAPHS), [*steps, *timed])
    for step in timed:
        assert other.seconds(step.work) == pytest.approx(step.seconds)
    with pytest.raises(ConfigurationError, match="steps with prompts, and by decodes of short and long contexts"):
        measured(OPT_13B, steps[:3])


def test_reading_and_computing_overlap_more_or_less():
    work = Work(128, 128, 128, 0, 0)
    none, some, all_of_it = (
        replace(OPT_13B, machine=replace(A100_40, overlap=power)).products(work) for power in (1, 4, 1000)
    )
    assert none > some > all_of_it


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_several_devices_share_weights_and_heads_and_pay_for_exchanging_results(devices):
    several = replace(OPT_13B, num_devices=devices)
    work = Work(1, 1, 1, 1000, 1000)
    assert several.products(work) == pytest.approx(OPT_13B.products(work) / devices)
    assert several.attention(work) == pytest.approx(OPT_13B.attention(work) / devices)
    assert several.all_reduce(work) > 80 * A100_40.link_seconds
    assert OPT_13B.all_reduce(work) == 0


def test_heads_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ConfigurationError, match="40 heads cannot be shared by 3 devices"):
        replace(OPT_13B, num_devices=3)


def test_fewer_heads_of_k_and_v_than_devices_are_kept_several_times():
    llama = CostModel(Sizes.of(find_architecture("Llama-3.1-70B")), A100_40, GRAPHS, 16)
    assert llama.kv_bytes_per_token == 2 * 80 * 1 * 128 * 2


def test_small_blocks_make_the_memory_deliver_what_nobody_wants():
    by_size = {
        size: replace(OPT_13B, run=16, block_size=size).attention(Work(1, 1, 1, 100, 100)) for size in (1, 2, 4, 16)
    }
    assert by_size[1] == 2 * by_size[2] == 4 * by_size[4]
    assert by_size[4] == by_size[16]


def test_swapping_small_blocks_pays_for_every_copy():
    small, large = (replace(OPT_13B, block_size=size).swaps(256 // size) for size in (1, 64))
    assert small - large == pytest.approx((256 - 4) * 80 * A100_40.copy_seconds)


def test_the_constants_of_the_papers_system_and_of_fastertransformer_differ_where_the_host_is_slow():
    assert PAPER_SYSTEM.request > 0 == FASTER_TRANSFORMER.request


def test_quantized_k_and_v_have_their_scales_with_them():
    cost = replace(OPT_13B, kv_dtype=np.int8)
    assert cost.kv_bytes_per_token == 2 * 40 * 40 * (128 + 4)


@pytest.mark.parametrize("name", MACHINES)
def test_machines_are_found_by_name_however_it_is_spelled(name):
    assert find_machine(name.lower()) is MACHINES[name]


def test_an_unknown_machine_is_a_sentence():
    with pytest.raises(ConfigurationError, match="the machine 'TPU' is unknown"):
        find_machine("TPU")


PARAMETERS = {  # as published
    "Llama-3.1-8B": 8_030_261_248, "Llama-3.1-70B": 70_553_706_496, "Llama-2-7B": 6_738_415_616,
    "LLaMA-13B": 13_015_864_320, "Qwen3-0.6B": 596_049_920, "Qwen3-32B": 32_762_123_264, "Mistral-7B": 7_241_732_096,
    "SmolLM2-135M": 134_515_008, "GPT-2": 124_439_808, "OPT-13B": 12_853_473_280,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_well_known_models_have_as_many_parameters_as_published(name):
    assert Sizes.of(find_architecture(name)).num_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "smollm2", "gpt2", "opt-13b"])
def test_models_are_found_by_their_names_on_the_hub(name):
    assert find_architecture(name).vocab_size > 40_000


def test_an_unknown_model_is_told_what_is_known(tmp_path):
    with pytest.raises(ModelError, match=r"Sizes that come with minipage: Llama-3\.1-8B"):
        find_architecture(tmp_path / "nothing")
    assert len(CONFIGS) >= 8
