"""What the help tells of options that are left out."""

from __future__ import annotations

from minipage.cli_options import Defaults

MAX_TOKENS = 100  # what `generate` makes, if it is not told
DEFAULTS: Defaults = {  # as the help tells them
    "model": "the shipped one",
    "block_size": 16,
    "memory": "1GiB",
    "max_model_len": "the model's context",
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "prefix_match_unit": "the block size",
    "preemption": "recompute",
    "swap_space": "256MiB",
    "policy": "fcfs",
    "eviction": "lru",
    "watermark": 0.0,
    "scheduler_reserve_full_isl": True,
    "kv_cache_dtype": "auto, which is --dtype",
    "dtype": "float32",
    "arrays": "numpy, or torch on a GPU",
    "device": "cpu",
    "attention": "cpu, or cuda on a GPU",
    "load_format": "auto",
    "async_scheduling": "true on a GPU",
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.9,
    "temperature": 1.0,
    "max_tokens": MAX_TOKENS,
    "n": 1,
    "length_penalty": 1.0,
    "early_stopping": "false",
    "skip_special_tokens": "true",
}
# Of a server on a CPU, where 2,048 take more than a second even with a small model: a first token should not wait for
# the prompts of everybody who has come meanwhile, nor the next token of a text. With 512 the last of many waits longer.
TOKENS_OF_A_STEP = 1024
DEFAULTS_OF_SERVER: Defaults = {
    "host": "127.0.0.1",
    "port": 8000,
    "served_model_name": "as the model is given",
    "router": "prefix",
    "router_load_limit": 8,
    "max_queued_requests": 1024,
    "max_body_size": "4 MiB",
    "max_logprobs": 20,
    "drain_timeout": 30,
    "log_level": "info",
    "max_num_batched_tokens": f"{TOKENS_OF_A_STEP}; on a GPU 2048",
}
OF_THE_STORY = "as the story needs"
DEFAULTS_OF_DEMO: Defaults = DEFAULTS | {
    "block_size": "4, or as the story needs",
    "num_blocks": OF_THE_STORY,
    "memory": None,
    "max_num_batched_tokens": OF_THE_STORY,
    "prefix_match_unit": OF_THE_STORY,
    "preemption": OF_THE_STORY,
    "eviction": OF_THE_STORY,
    "scheduler_reserve_full_isl": OF_THE_STORY,
    "swap_space": OF_THE_STORY,
    "kv_cache_dtype": OF_THE_STORY,
    "max_tokens": OF_THE_STORY,
}
