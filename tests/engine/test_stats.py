"""llm.stats(): names, kinds and labels are vLLM's; values, what the outputs say."""

import pytest

from minipage import LLM, SamplingParams
from minipage.engine.stats import METRICS, Histogram, lengths_up_to

# From vLLM 0.32.0, without those of speculative decoding.
GAUGES = "num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info"
COUNTERS = (
    "prefix_cache_queries prefix_cache_hits num_preemptions prompt_tokens prompt_tokens_cached generation_tokens "
    "request_success"
)
HISTOGRAMS = (
    "time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds "
    "e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds "
    "request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens request_generation_tokens "
    "request_max_num_generation_tokens request_params_n request_params_max_tokens iteration_tokens_total "
    "request_num_preemptions"
)


def names(*kinds):
    return {metric.name for metric in METRICS if metric.kind in kinds}


def test_names_and_kinds():
    for listed, kinds in ((GAUGES, ("gauge", "info")), (COUNTERS, ["counter"]), (HISTOGRAMS, ["histogram"])):
        assert names(*kinds) == {f"vllm:{name}" for name in listed.split()}


def test_counts_are_what_the_outputs_say(tiny, make_prompt):
    llm = LLM(tiny, num_blocks=20, block_size=4, enable_prefix_caching=True)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompts = [make_prompt(i, 10 + i) for i in range(6)]
    outputs = llm.generate(prompts, params)
    for _ in range(2):
        outputs += llm.generate(prompts[0], SamplingParams(n=2, max_tokens=5, seed=1, ignore_eos=True))
    llm.add_request(prompts[1], params, request_id="gone")
    llm.abort("gone")
    llm.step()
    stats = llm.stats()
    assert stats.keys() == {metric.name for metric in METRICS}
    texts = [text for output in outputs for text in output.outputs]
    preemptions = sum(output.metrics.num_preemptions for output in outputs)
    assert preemptions > 0
    reasons = stats["vllm:request_success"]
    assert sum(reasons.values()) == len(outputs) + 1 and reasons["abort"] == 1 and reasons["error"] == 0
    expected = {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
        "num_preemptions": preemptions,
        "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
        "prompt_tokens_cached": sum(output.num_cached_tokens for output in outputs),
        "generation_tokens": sum(len(text.token_ids) for text in texts),
        "prefix_cache_hits": sum(output.num_cached_tokens for output in outputs),
    }
    assert {name: stats[f"vllm:{name}"] for name in expected} == expected
    assert outputs[-1].num_cached_tokens == 8  # both full blocks of its 10 tokens
    sums = {
        "request_generation_tokens": expected["generation_tokens"],
        "request_prompt_tokens": expected["prompt_tokens"] + len(prompts[1]),
        "request_max_num_generation_tokens": sum(max(len(t.token_ids) for t in o.outputs) for o in outputs),
        "request_params_n": 6 + 2 * 2 + 1,
        "request_params_max_tokens": 6 * 20 + 2 * 5 + 20,
        "request_num_preemptions": preemptions,
    }
    assert {name: stats[f"vllm:{name}"].sum for name in sums} == sums
    assert stats["vllm:cache_config_info"]["num_gpu_blocks"] == "20"
    llm.reset_stats()
    fresh = LLM(tiny, num_blocks=20, block_size=4, enable_prefix_caching=True).stats()
    assert llm.stats() == fresh


def test_who_is_under_way_when_counting_begins_anew_has_had_its_first_token(tiny, make_prompt):
    llm = LLM(tiny)
    llm.add_request(make_prompt(0), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    llm.step()
    llm.step()
    llm.reset_stats()
    while llm.has_unfinished_requests():
        llm.step()
    stats = llm.stats()
    assert stats["vllm:time_to_first_token_seconds"].count == stats["vllm:prompt_tokens"] == 0
    assert stats["vllm:inter_token_latency_seconds"].count == stats["vllm:generation_tokens"] == 4


def test_times_add_up(tiny, make_prompt):
    llm = LLM(tiny)
    outputs = llm.generate([make_prompt(i) for i in range(3)], SamplingParams(temperature=0, max_tokens=6))
    stats = llm.stats()

    def total(name):
        return stats[f"vllm:{name}"].sum

    def times(begin, end):
        each = (getattr(o.metrics, f"{end}_time") - getattr(o.metrics, f"{begin}_time") for o in outputs)
        return pytest.approx(sum(each))

    assert total("e2e_request_latency_seconds") == times("arrival", "finished")
    assert total("request_queue_time_seconds") == times("arrival", "first_scheduled")
    assert total("request_prefill_time_seconds") == times("first_scheduled", "first_token")
    assert total("request_decode_time_seconds") == times("first_token", "finished")
    assert total("request_inference_time_seconds") == times("first_scheduled", "finished")
    assert total("time_to_first_token_seconds") >= times("arrival", "first_token").expected
    assert stats["vllm:inter_token_latency_seconds"].count == sum(len(o.outputs[0].token_ids) - 1 for o in outputs)
    assert total("iteration_tokens_total") == sum(
        len(o.prompt_token_ids) + len(o.outputs[0].token_ids) - 1 for o in outputs
    )


def test_buckets():
    assert lengths_up_to(64) == (1, 2, 5, 10, 20, 50)
    histogram = Histogram((1, 2, float("inf")), (1, 0, 3), 17.0)
    assert histogram.count == 4


def test_a_prompt_that_was_read_is_a_prompt(talker):
    llm = LLM(talker)
    read = llm.read_prompt("The sea")
    assert read == {"prompt": "The sea", "prompt_token_ids": llm.tokenizer.encode("The sea")}
    greedy = SamplingParams(temperature=0, max_tokens=4)
    assert llm.generate(read, greedy)[0].outputs == llm.generate("The sea", greedy)[0].outputs
