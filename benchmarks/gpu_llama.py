"""How near to what the memory allows is a large model on a GPU? `python -m benchmarks.gpu_llama`

The shape of Llama-2-7B in bfloat16, with random weights (`load_format="dummy"`): 32 layers, 4,096 wide, 32 heads.

    step         one token for each of 1, or 32, sequences of about 544 tokens: the median time from one token to the
                 next, in the engine. Its bound: all weights, and all K and V, must be read once, and take as long as a
                 copy on the GPU would take for as many bytes, read and written, in the same run.
    throughput   128 requests with prompts of lengths like ShareGPT's, 338 tokens for each (the mean answer there):
                 tokens a second, beside transformers' continuous batching (`generate_batch`, with its CUDA graphs and
                 overlapped steps), which has the same requests in the same run, in a process of its own. And ours again
                 with answers of different lengths.

Everybody serves the same requests once before, to compile and to capture graphs. The goals: a step within 1.35 times
its bound, and 6 times as many tokens a second.
"""

from __future__ import annotations

import json
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.gpu_engine import phases, replay_time, serve
from benchmarks.gpu_tensor_parallel import SHAPES
from benchmarks.measure import console, main, needed, require_gpu
from minipage import LLM, SamplingParams

with needed():
    import torch

SHAPE = SHAPES["7B"]
BATCHES = 1, 32
PROMPT_LEN, NUM_TOKENS = 512, 64
NUM_REQUESTS, ANSWER_LEN = 128, 338
STEP_GOAL, RATIO_GOAL = 1.35, 6.0
PATIENCE = 240  # seconds for transformers
COPIED = 4 * 2**30  # bytes


def run(quick: bool) -> dict[str, Any]:
    require_gpu()
    console.print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "copy_bytes_per_second": copy_bandwidth()}
    console.print(f"a copy moves {results['copy_bytes_per_second'] / 1e12:.2f} TB/s, read and written")
    prompts, answers = requests()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
        theirs = {} if quick else transformers_run(folder, prompts)
        start = perf_counter()
        llm = LLM(folder, device="cuda", dtype="bfloat16", load_format="dummy", max_num_seqs=NUM_REQUESTS)
        results["loading_seconds"] = perf_counter() - start
    results["steps"] = [decode_step(llm, batch, results["copy_bytes_per_second"]) for batch in BATCHES]
    results["minipage"] = throughput(llm, prompts, [ANSWER_LEN] * NUM_REQUESTS)
    results["minipage, answers of different lengths"] = throughput(llm, prompts, answers)
    if theirs:
        results["transformers"] = theirs
        results["ratio"] = results["minipage"]["tokens_per_second"] / theirs["tokens_per_second"]
    console.print_json(json.dumps(results))
    return results


def copy_bandwidth() -> float:
    """Bytes a second, read and written."""
    source, destination = (torch.zeros(COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))
    times = [timed(lambda: destination.copy_(source)) for _ in range(12)][2:]
    return 2 * COPIED / median(times)


def timed(launch: Any) -> float:
    """Seconds, by the GPU's own clock."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def requests() -> tuple[list[list[int]], list[int]]:
    """Prompts, and how long their answers are: ShareGPT's means (161 and 338 tokens) as the PagedAttention paper gives
    them; the shapes are ours, a lognormal prompt with a deviation of 200 and a gamma answer with one of 296."""
    rng = np.random.default_rng(0)
    sigma = np.sqrt(np.log(1 + (200 / 161.31) ** 2))
    lengths = rng.lognormal(np.log(161.31) - sigma**2 / 2, sigma, NUM_REQUESTS).clip(4, 1024).astype(int)
    shape = (337.99 / 296) ** 2
    answers = rng.gamma(shape, 337.99 / shape, NUM_REQUESTS).clip(4, 1024).astype(int).tolist()
    return [rng.integers(0, SHAPE["vocab_size"], n).tolist() for n in lengths], answers


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def decode_step(llm: LLM, batch: int, bandwidth: float) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    prompts = rng.integers(0, SHAPE["vocab_size"], (batch, PROMPT_LEN)).tolist()
    params = greedy(NUM_TOKENS)
    serve(llm, prompts, params)  # compiles, and captures the graph of this size
    step = min(serve(llm, prompts, params)["step_us"] for _ in range(3)) / 1e6
    weights = sum(int(np.prod(w.shape)) for name, w in llm.config.weights() if not w.is_table) * 2  # one row of a table
    kv_bytes = 2 * SHAPE["num_hidden_layers"] * SHAPE["hidden_size"] * 2 * batch * (PROMPT_LEN + NUM_TOKENS // 2)
    bound = (weights + kv_bytes) / bandwidth
    console.print(f"{batch} sequences: a step takes {1e3 * step:.2f} ms, {step / bound:.2f} times its bound")
    return {
        "batch": batch,
        "step_us": 1e6 * step,
        "bound_us": 1e6 * bound,
        "ratio": step / bound,
        "replay_us": replay_time(llm, prompts),
        "host_us": phases(llm, prompts),
    }


def throughput(llm: LLM, prompts: list[list[int]], answers: list[int]) -> dict[str, Any]:
    params = [greedy(num_tokens) for num_tokens in answers]
    llm.generate(prompts, params)
    start = perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = perf_counter() - start
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    console.print(f"{num_tokens:,} tokens in {seconds:.1f} s: {num_tokens / seconds:,.0f} tokens/s")
    return {"tokens": num_tokens, "seconds": seconds, "tokens_per_second": num_tokens / seconds}


def transformers_run(folder: str, prompts: list[list[int]]) -> dict[str, Any]:
    """In another process: a failure on the GPU ends whatever that does there, and its memory is ours afterwards."""
    process = get_context("spawn").Process(target=run_transformers, args=(folder, prompts))
    process.start()
    process.join(PATIENCE)
    if process.exitcode != 0:
        console.print(f"transformers did not finish in {PATIENCE} s: exit code {process.exitcode}")
        process.kill()
        process.join()
    file = Path(folder) / "transformers.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    console.print(f"transformers: {result.get('tokens_per_second', 0):,.0f} tokens/s")
    return result


def run_transformers(folder: str, prompts: list[list[int]]) -> None:
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SHAPE.items() if k != "model_type"})).eval()
    model.set_attn_implementation("paged|sdpa")
    config = ContinuousBatchingConfig(
        max_batch_tokens=2048, max_requests_per_batch=NUM_REQUESTS, use_cuda_graph=True, use_async_batching=True
    )
    for num_tokens in (24, ANSWER_LEN):  # first, it captures its graphs
        generation = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        start = perf_counter()
        outputs = model.generate_batch(
            prompts, generation, continuous_batching_config=config, persistent_manager=True, record_timestamps=True
        )
        seconds = perf_counter() - start
        made = sum(len(output.generated_tokens) for output in outputs.values())
        result = {"tokens": made, "seconds": seconds, "tokens_per_second": made / seconds}
        print(result, flush=True)
    (Path(folder) / "transformers.json").write_text(json.dumps(result))


def charts(results: dict[str, Any]) -> list[Chart]:
    labels = [str(step["batch"]) for step in results["steps"]]
    series = {name: [step[f"{name}_us"] for step in results["steps"]] for name in ("step", "bound")}
    return [Chart("A decode step of Llama-2-7B's shape, by the number of sequences", "µs", labels, series)]


if __name__ == "__main__":
    sys.exit(main("gpu_llama", __doc__.partition("\n")[0], run, charts))
