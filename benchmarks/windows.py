"""Does a step stay as quick while a text grows, if its layers have a window? `python -m benchmarks.windows`

One text at a time, of 800 to 8,000 tokens, goes on for 40 more, in a model like Mistral with random weights: once with
a window of 256 tokens and once without, each three times. A step is the median time between two tokens, the fastest of
three; "blocks", of 16 tokens, are the most that the text held meanwhile. With a GPU the model is larger, and its
numbers are bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.measure import OtherPrograms, console, grid, has_gpu, main
from minipage import LLM, SamplingParams

WINDOW = 256
LENGTHS = 800, 2000, 4000, 8000
NUM_TOKENS = 40
SETTINGS = {
    "model_type": "mistral", "vocab_size": 32_000, "max_position_embeddings": 16_384, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SMALL = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=4)
LARGE = dict(hidden_size=4096, intermediate_size=14_336, num_hidden_layers=8)


def make_model(on_gpu: bool, window: int | None) -> LLM:
    sizes = LARGE if on_gpu else SMALL
    num_heads = sizes["hidden_size"] // (128 if on_gpu else 64)
    heads = {"num_attention_heads": num_heads, "num_key_value_heads": num_heads // 4}
    device: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16"} if on_gpu else {}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SETTINGS | sizes | heads | {"sliding_window": window}))
        return LLM(
            folder, load_format="dummy", num_blocks=600, max_num_seqs=1, max_num_batched_tokens=2048,
            enable_prefix_caching=False, **device,
        )  # fmt: skip


def go_on(llm: LLM, length: int) -> tuple[float, int]:
    """Microseconds of a step, and blocks that are held, of a text that goes on from `length` tokens."""
    prompt = np.random.default_rng(length).integers(0, SETTINGS["vocab_size"], length).tolist()
    llm.add_request(prompt, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True))
    times, used = [perf_counter()], [0]
    while llm.has_unfinished_requests():
        llm.step()
        times.append(perf_counter())
        used.append(llm.block_pool.num_used)
    late = slice(-NUM_TOKENS // 2 - 5, -5)  # without the last ones, which may be of steps without a token
    return 1e6 * median(np.diff(times)[late]), max(used[late])


def run(quick: bool) -> dict[str, Any]:
    on_gpu = has_gpu()
    others = OtherPrograms()
    lengths = LENGTHS[:2] if quick else LENGTHS
    found: list[dict[str, Any]] = []
    rows = grid(
        f"One text that goes on, on {'a GPU' if on_gpu else 'a CPU'}", ["tokens", "window", "a step, µs", "blocks"]
    )
    for window in (WINDOW, None):
        llm = make_model(on_gpu, window)
        go_on(llm, lengths[0])  # compiles, or captures graphs
        for length in lengths:
            step, blocks = min(go_on(llm, length) for _ in range(1 if quick else 3))
            found.append({"tokens": length, "window": window, "step_us": step, "blocks": blocks})
            rows.add_row(f"{length:,}", str(window or "none"), f"{step:,.0f}", str(blocks))
    console.print(rows)
    console.print(f"Meanwhile other programs took {others} of the processors.")
    return {"on_gpu": on_gpu, "texts": found}


def charts(results: dict[str, Any]) -> list[Chart]:
    texts = results["texts"]
    labels = list(dict.fromkeys(str(text["tokens"]) for text in texts))
    series = {
        name: [text["step_us"] for text in texts if text["window"] == window]
        for name, window in ((f"a window of {WINDOW}", WINDOW), ("no window", None))
    }
    return [Chart("A step of one text, by its tokens", "µs", labels, series)]


if __name__ == "__main__":
    sys.exit(main("windows", __doc__.partition("\n")[0], run, charts))
