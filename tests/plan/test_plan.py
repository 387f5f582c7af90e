"""`minipage plan` agrees with bytes worked out by hand, with what this engine allocates, and with vLLM's logs."""

import json

import huggingface_hub
import numpy as np
import pytest
from model.gguf_writing import random_model, write_gguf

from minipage import LLM
from minipage.cli import main
from minipage.errors import ConfigurationError, ModelError
from minipage.plan.deployment import Deployment
from minipage.plan.forecast import Workload, advise, fewer_of_long_texts, forecast, setting_of
from minipage.plan.report import page, rows
from minipage.simulate.machines import GiB
from minipage.simulate.workload import read_trace

BY_HAND = {  # 2 (K and V) x layers x heads of K and V x head size x 2 bytes
    "Llama-3.1-8B": 2 * 32 * 8 * 128 * 2,
    "Llama-3.1-70B": 2 * 80 * 8 * 128 * 2,
    "Qwen3-0.6B": 2 * 28 * 8 * 128 * 2,
    "Qwen3-32B": 2 * 64 * 8 * 128 * 2,
    "Mistral-7B": 2 * 32 * 8 * 128 * 2,
    "SmolLM2": 2 * 30 * 3 * 64 * 2,
    "OPT-13B": 2 * 40 * 40 * 128 * 2,
    "GPT-2": 2 * 12 * 12 * 64 * 2,
}


@pytest.mark.parametrize("model", BY_HAND)
def test_bytes_of_a_token_are_those_by_hand(model):
    name = "smollm2" if model == "SmolLM2" else model
    deployment = Deployment(name, kv_cache_memory="1GiB", max_model_len=1024)
    assert deployment.cost.kv_bytes_per_token == BY_HAND[model]
    assert deployment.blocks() == 2**30 // (16 * BY_HAND[model])


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "float16", "int8", "fp8"])
@pytest.mark.parametrize("block_size", [4, 16])
def test_blocks_are_those_that_this_engine_allocates(tmp_path, kv_cache_dtype, block_size):
    from minipage.simulate.configs import CONFIGS

    config = CONFIGS["SmolLM2-135M"] | {"num_hidden_layers": 3, "vocab_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {"kv_cache_dtype": kv_cache_dtype, "block_size": block_size}
    llm = LLM(tmp_path, load_format="dummy", memory="3MiB", **options)
    plan = Deployment(str(tmp_path), dtype="float32", kv_cache_memory="3MiB", **options)
    assert plan.blocks() == llm.block_pool.num_blocks


PATTERN = [*["sliding_attention"] * 3, "full_attention"] * 2


@pytest.mark.parametrize("layer_types", [["sliding_attention"] * 8, PATTERN], ids=["all", "three of four"])
def test_layers_with_a_window_hold_what_this_engine_lets_them_hold(tmp_path, layer_types):
    """Blocks are of the layers of one group; a text holds of a window what it reaches, and what a step computes."""
    from minipage.simulate.configs import CONFIGS

    window = {"sliding_window": 64, "use_sliding_window": True, "layer_types": layer_types, "num_hidden_layers": 8}
    config = CONFIGS["Qwen3-0.6B"] | window | {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2, "num_key_value_heads": 1}))
    llm = LLM(tmp_path, load_format="dummy", memory="16MiB", max_model_len=4096, max_num_batched_tokens=32)
    options = {"kv_cache_memory": "16MiB", "max_model_len": 4096, "max_num_batched_tokens": 32}
    plan = Deployment(str(tmp_path), dtype="float32", **options)
    assert plan.has_windows and plan.blocks() == llm.block_pool.num_blocks
    groups = len(plan.groups.windows)
    reached = (64 - 1 + 32 + 14) // 16 + 1
    full = 1 if "full_attention" in layer_types else 0
    assert plan.blocks_of(4096) == full * 256 + (groups - full) * reached
    assert plan.concurrency() == plan.blocks() / plan.blocks_of(4096)
    tight = Deployment(str(tmp_path), num_blocks=plan.blocks_of(1600), max_model_len=4096, max_num_batched_tokens=32)
    assert (tight.refusal() is None) == (full == 0)
    assert full == 0 or "Set max_model_len to 1,600 or less" in tight.refusal()


def test_a_window_is_planned_and_simulated(tmp_path):
    """Of two models that differ in nothing else, the one with a window of 1,024 runs more requests of 6,000 tokens."""
    from minipage.simulate.configs import CONFIGS

    found = {}
    for window in (None, 1024):
        path = tmp_path / f"{window}.json"
        path.write_text(json.dumps(CONFIGS["Mistral-7B"] | {"sliding_window": window}))
        plan = Deployment(str(path), num_blocks=1500, max_model_len=8192, max_num_seqs=16)
        found[window] = forecast(plan, Workload("5990:10"), 0.2, num_requests=20, with_advice=False)
    assert found[None].fit_on_average == pytest.approx(1500 / 376, rel=0.01)
    assert found[1024].fit_on_average == pytest.approx(1500 / 65, rel=0.02)
    assert found[1024].report.num_requests == found[None].report.num_requests > 5
    assert found[1024].capacity > found[None].capacity


LOGGED = [  # model, blocks, max_model_len, "Maximum concurrency": as people have reported them
    ("Llama-3.1-8B", 127_626, 2048, 997.08),  # github.com/vllm-project/vllm/pull/13596
    ("Llama-3.1-70B", 1381, 2048, 10.79),  # github.com/vllm-project/vllm/pull/12569
    ("Llama-3.1-8B", 1952, 20_000, 1.56),  # github.com/vllm-project/vllm/issues/10517
    ("Llama-3.1-8B", 1478, 29_000, 0.82),  # the same
    ("Qwen3-32B", 159_232 // 16, 40_960, 3.89),  # github.com/vllm-project/vllm-ascend/issues/1249, in tokens
    ("Qwen3-0.6B", 2340, 8192, 4.57),  # github.com/Zerohertz/Instruct_KR_2025_Summer_Meetup_vLLM: src/00_vllm_serve.sh
]


@pytest.mark.parametrize(("model", "num_blocks", "max_model_len", "logged"), LOGGED)
def test_the_maximum_concurrency_is_what_vllm_has_logged(model, num_blocks, max_model_len, logged):
    plan = Deployment(model, num_blocks=num_blocks, max_model_len=max_model_len)
    assert plan.concurrency() == pytest.approx(logged, rel=0.01)
    assert f"for {max_model_len:,} tokens per request" in plan.concurrency_line()


def test_what_vllm_had_left_on_a_real_gpu_is_met():
    """An RTX 3090 of 23.58 GiB, 0.9 of it, Llama-3.1-8B: weights of 14.99 GiB, and 3.81 GiB for K and V with 20,000
    tokens in a step (the same issue). Given the 3.81, the blocks are vLLM's; the weights are, too."""
    plan = Deployment("Llama-3.1-8B", memory="23.58GiB", kv_cache_memory="3.81GiB", max_model_len=20_000)
    assert plan.blocks() == pytest.approx(1952, abs=2)
    assert plan.budget().weights / GiB == pytest.approx(14.99, rel=0.005)


@pytest.mark.parametrize(
    ("model", "dtype", "gigabytes"),
    [
        ("Llama-3.1-8B", "fp8", 9.08),  # "ram used" in github.com/tinygrad/tinygrad/pull/12893
        ("Llama-3.1-8B", "bfloat16", 16.06),  # the same
        ("Qwen3-0.6B", "fp8", 0.4411 + 2 * 151_936 * 1024 / 1e9),  # github.com/GeeeekExplorer/nano-vllm/pull/241
    ],
)
def test_of_a_quantized_model_tables_and_the_head_have_two_bytes(model, dtype, gigabytes):
    weights = Deployment(model, dtype=dtype, max_model_len=8192).budget().weights
    assert weights / 1e9 == pytest.approx(gigabytes, rel=0.002)


def test_what_vllm_had_left_on_a_processor_is_met():
    """Its 4 GiB for K and V of Qwen3-0.6B were 2,340 blocks (the log in Zerohertz's repository, above)."""
    assert Deployment("Qwen3-0.6B", kv_cache_memory="4GiB", max_model_len=8192).blocks() == 2340


REFUSED = [  # model, blocks, max_model_len, and tokens that would fit
    ("Llama-3.1-8B", 1478, 29_000, 23_648),  # github.com/vllm-project/vllm/issues/10517
    ("Llama-3.1-70B", 378, 8192, 6048),  # Llama 3, of the same shape: github.com/OpenRLHF/OpenRLHF/issues/336
]


@pytest.mark.parametrize(("model", "num_blocks", "max_model_len", "fitting"), REFUSED)
def test_a_cache_too_small_for_one_request_is_said_in_vllms_words(model, num_blocks, max_model_len, fitting):
    plan = Deployment(model, num_blocks=num_blocks, max_model_len=max_model_len)
    assert (
        f"max seq len ({max_model_len:,}) is larger than the maximum number of tokens that can be stored in KV cache "
        f"({fitting:,})" in (plan.refusal() or "")
    )


def test_a_cache_large_enough_for_one_request_is_not_refused():
    assert Deployment("Llama-3.1-8B", num_blocks=1952, max_model_len=20_000).refusal() is None


def test_devices_share_weights_and_heads():
    one, four = (Deployment("Llama-3.1-70B", "H200", tensor_parallel_size=n, max_model_len=8192) for n in (2, 4))
    assert four.budget().weights == one.budget().weights / 2
    assert four.cost.kv_bytes_per_token == one.cost.kv_bytes_per_token / 2
    assert four.blocks() > 2 * one.blocks()


def test_a_model_that_does_not_fit_is_a_sentence_with_the_bytes():
    block = r"leaves no room for a block of 16 tokens, 5,242,880 bytes of K and V"
    with pytest.raises(ConfigurationError, match=block + r": of 79\.2 GiB, weights take 131\.4"):
        Deployment("Llama-3.1-70B").blocks()


def test_a_page_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "plan.html").symlink_to(tmp_path / "plan.html")
    arguments = ["plan", "GPT-2", "--lengths", "64:2", "--rate", "1", "--html", str(tmp_path / "plan.html")]
    assert main(arguments) == 1
    assert f"minipage: '{tmp_path}/plan.html' cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kv_cache_memory": "1MiB"}, "kv_cache_memory is '1MiB', and a block of 16 tokens takes 2,097,152 bytes"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"gpu": "TPU"}, "the machine 'TPU' is unknown"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"block_size": 0}, "block_size is 0"),
        ({"num_blocks": -1}, "num_blocks is -1"),
        ({"max_model_len": 131_073}, "at most Llama-3.1-8B's context, 131,072"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype is 'int3'"),
        ({"kv_cache_dtype": np.array(["int8", "fp8"])}, "kv_cache_dtype is array"),
        ({"dtype": np.array(["int8", "fp8"])}, "dtype is array"),
        ({"dtype": ["int8"]}, r"dtype is \['int8'\]"),
        ({"tensor_parallel_size": 7}, "32 heads cannot be shared by 7 devices"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_sentences(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        Deployment("Llama-3.1-8B", **options).blocks()


@pytest.mark.parametrize(("devices", "heads"), [(2, 5), (5, 2), (10, 1), (20, 1), (4, None), (8, None)])
def test_heads_of_k_and_v_are_shared_out_as_vllm_does_or_not_at_all(tmp_path, devices, heads):
    from minipage.simulate.configs import CONFIGS

    config = CONFIGS["Llama-3.1-8B"] | {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = Deployment(str(tmp_path), tensor_parallel_size=devices)
    if heads:
        assert plan.cost.kv_bytes_per_token == 2 * 32 * heads * 128 * 2
    else:
        with pytest.raises(ConfigurationError, match=f"10 heads of K and V cannot be shared by {devices} devices"):
            plan.blocks()


# ---- the forecast

SMALL = Deployment(
    "SmolLM2-135M", "EPYC-2-cores", dtype="float32", kv_cache_memory="64MiB", max_model_len=1024, max_num_seqs=8
)


def test_a_forecast_serves_what_is_asked_and_waits_when_that_is_too_much():
    calm = forecast(SMALL, Workload("32:16"), rate=0.5, num_requests=40, with_advice=False)
    busy = forecast(SMALL, Workload("32:16"), rate=1.5 * calm.capacity, num_requests=40, with_advice=False)
    assert calm.report.mean_batch < busy.report.mean_batch <= 8
    assert busy.report.time_to_first_token.mean > 10 * calm.report.time_to_first_token.mean
    assert calm.fit_on_average == pytest.approx(SMALL.blocks() * 16 / 48, rel=0.05)  # a running one holds 33 to 48


@pytest.mark.parametrize(("name", "most"), [("MOST_REQUESTS", 20), ("MOST_TOKENS", 20 * 16)])
def test_of_a_minute_with_very_many_requests_the_first_of_them_are_simulated_and_that_is_said(name, most, monkeypatch):
    monkeypatch.setattr(f"minipage.plan.forecast.{name}", most)
    found = forecast(SMALL, Workload("32:16"), rate=2.0, num_requests=20, with_advice=False)
    assert found.seconds == pytest.approx(10)
    assert 5 < found.report.num_requests < 40
    assert "10 s of a minute at 2 requests/s" in dict(rows(SMALL, found))
    assert "10 s of a minute at 2.00 requests/s" in page(SMALL, found)


def test_of_a_tiny_model_on_a_large_gpu_not_all_blocks_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr("minipage.plan.forecast.MOST_BLOCKS", 1000)
    config = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny = Deployment(str(tmp_path), kv_cache_memory="60MiB", max_num_seqs=8)
    assert setting_of(tiny).num_slots == 16 * 1000 < 16 * tiny.blocks()
    found = forecast(tiny, Workload("16:8"), 1.0, num_requests=20, with_advice=False)
    assert found.fit_on_average == pytest.approx(tiny.blocks() * 16 / 32, rel=0.1)  # one that runs holds 17 to 24
    with pytest.raises(ConfigurationError, match="above 0"):
        forecast(tiny, Workload("16:8"), -1.0)


def test_of_long_texts_fewer_are_simulated_to_find_the_most_that_is_served():
    assert fewer_of_long_texts([(10, 100), (10, 300)], 8, 400) == 400
    assert fewer_of_long_texts([(10, 50_000)], 8, 400) == 1_000_000 / 50_000
    assert fewer_of_long_texts([(10, 400_000)], 8, 400) == 16  # every seat twice, at least
    with pytest.raises(ConfigurationError, match=r"8 requests at a time of 1,000,000 tokens.*lower max_num_seqs"):
        fewer_of_long_texts([(10, 1_000_000)], 8, 400)


def test_more_seats_are_advised_where_seats_are_what_is_missing():
    advice = advise(SMALL, Workload("32:16"), 0.01, 40)
    assert "max_num_seqs=16" in [each.change for each in advice]
    assert [each.times for each in advice] == sorted((each.times for each in advice), reverse=True)


def test_lengths_come_from_a_file_of_ones_own(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,10,3\n1,20,4\n2,5000,1\n")
    pairs = Workload(str(file)).pairs(1024)
    assert [next(pairs) for _ in range(3)] == [(10, 3), (20, 4), (10, 3)]


def test_a_published_trace_has_dates_and_numbers_with_a_point(tmp_path):
    file = tmp_path / "trace.csv"
    rows = "2023-11-16 18:17:03.9799600,374,44\n\n2023-11-16 18:17:05.4799600,396.0,109.0\n"
    file.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    first, second = read_trace(file)
    assert (first[1:3], second[1:3]) == ((374, 44), (396, 109))
    assert second.time - first.time == pytest.approx(1.5)


def test_a_file_that_says_when_requests_came_is_replayed(tmp_path):
    file = tmp_path / "trace.csv"
    rows = [f"{100 + 3 * i},{8 + i},4" for i in range(30)]  # of which 21 come within a minute
    file.write_text("\n".join(["time,prompt,output", *rows]))
    found = forecast(SMALL, Workload(str(file)), num_requests=20, with_advice=False)
    assert found.report.num_requests == 21
    assert found.rate == pytest.approx(21 / 60)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "needs the columns"),
        ("prompt,output\n1,x\n", "has '1', 'x'; tokens are whole numbers"),
        ("prompt,output\n1\n", "has '1', ''; tokens are whole numbers"),
        ("prompt,output\n\n\n1,x\n", "line 4 of"),
        ("prompt,output\n0,1\n", "at least one"),
        ("prompt,output\n5,1\n5.5,1\n", "line 3 of"),
        ("time,prompt,output\nnan,5,1\n", "a time that is a number"),
        ("time,prompt,output\ntomorrow,5,1\n", "line 2 of"),
        ("prompt;output\n5;1\n", "it has prompt;output"),
    ],
)
def test_a_bad_file_is_a_sentence_that_names_the_line(tmp_path, text, sentence):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence):
        next(Workload(str(file)).pairs(100))


@pytest.mark.parametrize("lengths", ["many", "5:", "0:4", "1000:1000", "9" * 5000 + ":1"])
def test_bad_lengths_are_a_sentence(lengths):
    with pytest.raises(ConfigurationError, match=lengths[:20]):
        next(Workload(lengths).pairs(1024))


# ---- the command


def test_the_command_prints_sizes(capsys):
    assert main(["plan", "Llama-3.1-8B", "--sizes-only", "--max-model-len", "8192", "--num-blocks", "27000"]) == 0
    out = capsys.readouterr().out
    assert "131,072 bytes" in out and "27,000 of 16 tokens" in out


@pytest.mark.parametrize("name", ["[/x]", "[bold]model"])
def test_a_model_is_called_what_its_folder_is(name, tmp_path, monkeypatch, capsys):
    from minipage.simulate.configs import CONFIGS

    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").write_text(json.dumps(CONFIGS["GPT-2"]))
    assert main(["plan", name, "--sizes-only"]) == 0
    assert f"{name} on 1 x H100" in capsys.readouterr().out


def test_the_command_prints_json_and_writes_a_page(tmp_path, capsys):
    page = tmp_path / "plan.html"
    arguments = [
        "plan",
        "gpt2",
        "--gpu",
        "EPYC-2-cores",
        "--dtype",
        "float32",
        "--max-num-seqs",
        "4",
        "--lengths",
        "16:8",
    ]
    assert main([*arguments, "--kv-cache-memory", "8MiB", "--rate", "1", "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv_bytes_per_token"] == 2 * BY_HAND["GPT-2"]
    assert found["minute"]["requests"] > 30
    assert "<svg" in page.read_text() and "What to change first" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "abacus", "--sizes-only"], "the machine 'abacus' is unknown"),
        (["--html", "nowhere/plan.html"], "in a folder that is there"),
        (["--sizes-only", "--html", "plan.html"], "--html is about what is simulated"),
        (["--sizes-only", "--rate", "nan"], "--rate is about what is simulated"),
        (["--sizes-only", "--lengths", "nonsense"], "--lengths is about what is simulated"),
        (["--rate", "nan"], "the rate is nan"),
        (["--lengths", ""], "lengths are ''"),
        (["--num-blocks", "9", "--lengths", "8:8", "--rate", "1e6"], "waiting times only grow"),
        (["--num-blocks", "1", "--lengths", "9:8"], "the longest text that fits, 16 tokens"),
        (["--max-num-seqs", "9999"], "at most 4,096 requests at a time are simulated"),
        (["--max-model-len", "1"], "of ShareGPT's texts hardly any has at most 1 token"),  # and drew for ever
        (["--max-num-seqs", "4096", "--lengths", "9:8000"], "4,096 requests at a time of 8,000 tokens out each"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, capsys):
    assert main(["plan", "SmolLM2-135M", "--max-num-seqs", "2", *arguments]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


def test_of_the_most_that_is_said_to_be_served_equal_texts_are_served_four_fifths_without_waiting(monkeypatch):
    """Equal texts that start together would end together, and their prompts, which have no graphs, share few steps."""
    monkeypatch.setattr("minipage.plan.forecast.MOST_REQUESTS", 1500)
    plan = Deployment("Qwen3-0.6B", "H200", num_blocks=2000, max_num_seqs=32)
    found = forecast(plan, Workload("64:32"), num_requests=200, with_advice=False)
    assert found.report.tokens_per_second == pytest.approx(32 * 0.8 * found.capacity, rel=0.1)
    assert found.report.time_to_first_token.quantile(0.99) < 0.1


def test_texts_of_one_token_have_no_time_between_tokens():
    found = forecast(SMALL, Workload("32:1"), rate=1.0, num_requests=20, with_advice=False)
    assert dict(rows(SMALL, found))["  between tokens, mean"] == "no text has two"


def test_a_minute_in_which_nobody_comes_is_said_so():
    found = forecast(SMALL, Workload("32:16"), rate=1e-9, num_requests=20, with_advice=False)
    shown = rows(SMALL, found)
    assert shown[-1] == ("a minute at 1e-09 requests/s", "nobody came") and "nan" not in str(shown)
    assert "nan" not in page(SMALL, found)


@pytest.mark.parametrize("options", [["--sizes-only"], ["--lengths", "512:64", "--max-model-len", "4096"]])
def test_of_a_model_on_the_hub_the_sizes_are_asked_for_once(tmp_path, monkeypatch, options):
    from minipage.simulate.configs import CONFIGS

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Qwen3-0.6B"]))
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert main(["plan", "somebody/something", *options]) == 0
    assert asked == ["somebody/something"]


def test_a_gguf_file_says_its_sizes_too(tmp_path):
    model = random_model("llama")
    plan = Deployment(str(write_gguf(tmp_path / "model.gguf", model)), num_blocks=9)
    assert plan.cost.sizes.num_parameters == model.num_parameters()
    assert plan.longest == model.config.max_position_embeddings


def test_a_config_that_is_nested_without_end_is_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="cannot be read"):
        Deployment(str(tmp_path)).blocks()


@pytest.mark.parametrize(("said", "how"), [({"quant_method": "awq", "bits": 4}, "'awq'"), ("fp8", "'fp8'"), ({}, None)])
def test_of_quantized_weights_one_says_in_what(tmp_path, said, how):
    from minipage.simulate.configs import CONFIGS

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Llama-3.1-8B"] | {"quantization_config": said}))
    if how:
        with pytest.raises(ConfigurationError, match=rf"weights are quantized \({how}\).*int4 as --dtype"):
            Deployment(str(tmp_path))
    else:
        assert Deployment(str(tmp_path)).dtype == "bfloat16"
    assert Deployment(str(tmp_path), dtype="int4").budget().weights < 6e9


@pytest.mark.parametrize("text", ["[1]", "3", '"gpt2"', "null"])
def test_a_config_without_settings_is_a_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="and no settings"):
        Deployment(str(tmp_path)).blocks()
