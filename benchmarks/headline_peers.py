"""Those whom `benchmarks.headline` compares, each in a process of its own: its memory is the others' again afterwards.

Each is given the same requests at once: token ids, and how many tokens are wanted for each, whatever they are (greedy,
and no token ends a text). It serves a few of them first, to compile and to capture graphs. If `limit` seconds do not
suffice for all, what counts are the tokens made until then.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

MAX_NUM_BATCHED_TOKENS = 2048
WARM_UP = 24  # tokens


class Task(NamedTuple):
    """What a peer has to do."""

    folder: str  # with config.json; weights are random
    device: str
    dtype: str
    max_num_seqs: int
    max_model_len: int
    requests: list[tuple[list[int], int]]  # token ids, tokens wanted
    limit: float  # seconds to serve them in
    weights: bool = False  # the folder has weights, and the texts are wanted
    memory: float = 0.7  # of what is free, for the cache of transformers' continuous batching


def in_process(work: Callable[..., dict[str, Any]], task: Task, patience: float, *others: Any) -> dict[str, Any]:
    """The result of `work(task, *others)`; {"error": ...} if it fails, or takes longer than `patience` seconds."""
    file = Path(task.folder) / f"{work.__name__}-{next(NUMBERS)}.json"
    process = get_context("spawn").Process(target=write_result, args=(file, work, task, *others))
    process.start()
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
        return {"error": f"stopped after {patience:.0f} s"}
    if not file.exists():
        return {"error": f"exit code {process.exitcode}"}
    result: dict[str, Any] = json.loads(file.read_text())
    return result


NUMBERS = count()


def write_result(file: Path, work: Callable[..., dict[str, Any]], task: Task, *others: Any) -> None:
    try:
        result = work(task, *others)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:500]}
    file.write_text(json.dumps(result))


def with_texts(task: Task, small: Task, work: Callable[..., dict[str, Any]], *others: Any) -> dict[str, Any]:
    """`work` on a small model first, whose texts are wanted, and then what is measured: one process is started once."""
    try:
        texts: Any = work(small, *others)["texts"]
    except Exception as error:
        traceback.print_exc()
        texts = f"{type(error).__name__}: {error}"[:500]
    forget()
    return work(task, *others) | {"texts of a small model": texts}


def forget() -> None:
    """Give a GPU's memory back. What is left stays, so later collections need not look at it: some 0.4 s each."""
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


# ---- minipage


def minipage(task: Task, reserve: bool) -> dict[str, Any]:
    """All requests at once. reserve: no more at a time than would fit if each were given the longest text's memory."""
    llm = make_llm(task, reserve)
    params = [greedy(n) for _, n in task.requests]
    prompts = [token_ids for token_ids, _ in task.requests]
    if not task.weights:
        warm_up(llm, prompts, task.device == "cuda")
    start = perf_counter()
    made: dict[str, int] = {}
    for i, (prompt, one) in enumerate(zip(prompts, params)):
        llm.add_request(prompt, one, request_id=str(i))
    texts: dict[str, list[int]] = {}
    finished_at: dict[str, float] = {}
    while llm.has_unfinished_requests() and perf_counter() - start < task.limit:
        for output in llm.step():
            if output.finished:
                made[output.request_id] = len(output.outputs[0].token_ids)
                finished_at[output.request_id] = perf_counter() - start
                texts[output.request_id] = output.outputs[0].token_ids
    seconds = perf_counter() - start
    unfinished = sum(seq.num_output_tokens for group in llm.scheduler.groups for seq in group.sequences)
    result = rate(sum(made.values()) + unfinished, seconds, len(made))
    result |= {"num_blocks": llm.block_pool.num_blocks, "max_num_seqs": llm.scheduler.max_num_seqs}
    return result | ({"texts": [texts[str(i)] for i in range(len(prompts))]} if task.weights else {})


def warm_up(llm: Any, prompts: list[list[int]], captures: bool) -> None:
    """What is compiled or captured once: steps with many prompts, and graphs of all sizes, for short and long contexts.

    A batch that loses a few texts in every other step, and its last eight one by one, goes through all sizes.
    """
    most = llm.scheduler.max_num_seqs
    llm.generate(prompts[:most], greedy(4 if captures else WARM_UP))
    ends = [greedy(4 + 2 * max(i // 8, i - most + most // 8 + 7)) for i in range(most)]
    for longest in (16, 1000) if captures else ():
        llm.generate([*([[1] * 16] * (most - 1)), [1] * longest], ends)


def make_llm(task: Task, reserve: bool) -> Any:
    from minipage import LLM
    from minipage.memory import blocks_needed

    options: dict[str, Any] = {
        "dtype": task.dtype,
        "max_model_len": task.max_model_len,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS if task.device == "cuda" else 512,
        "load_format": "auto" if task.weights else "dummy",
    }
    if task.weights:
        options["num_blocks"] = 256  # and not all of the memory
    if task.device == "cuda":
        options["device"] = "cuda"
    elif task.dtype != "float32":
        options["arrays"] = "torch"
    llm = LLM(task.folder, max_num_seqs=task.max_num_seqs, **options)
    if reserve:  # no more seats than places
        places = llm.block_pool.num_blocks // blocks_needed(task.max_model_len, llm.block_pool.block_size)
        llm.scheduler.max_num_seqs = max(1, min(places, task.max_num_seqs))
    return llm


def greedy(num_tokens: int) -> Any:
    from minipage import SamplingParams

    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def minipage_at_rates(task: Task, reserve: bool, rates: list[float]) -> dict[str, Any]:
    """Normalised latency at each rate: requests come by Poisson's law for `limit` seconds."""
    llm = make_llm(task, reserve)
    warm_up(llm, [p for p, _ in task.requests], task.device == "cuda")
    points = []
    for rate_ in rates:
        rng = np.random.default_rng(1)
        times = np.cumsum(rng.exponential(1 / rate_, len(task.requests)))
        coming = [(float(time), *request) for time, request in zip(times, task.requests) if time < task.limit]
        latencies: list[float] = []
        arrived: dict[str, tuple[float, int]] = {}
        start, following = perf_counter(), 0
        while following < len(coming) or llm.has_unfinished_requests():
            now = perf_counter() - start
            while following < len(coming) and coming[following][0] <= now:
                time, token_ids, num_tokens = coming[following]
                name = llm.add_request(token_ids, greedy(num_tokens), request_id=f"{rate_}-{following}")
                arrived[name] = time, num_tokens
                following += 1
            if not llm.has_unfinished_requests():
                sleep(max(0.0, min(0.05, coming[following][0] - now)))
                continue
            for output in llm.step():
                if output.finished:
                    time, num_tokens = arrived[output.request_id]
                    latencies.append((perf_counter() - start - time) / num_tokens)
        points.append({"rate": rate_, "requests": len(latencies), "normalized_latency": float(np.mean(latencies))})
        print(points[-1], flush=True)
    return {"points": points}


# ---- transformers


def load(task: Task) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = getattr(torch, task.dtype)
    if task.weights:
        return AutoModelForCausalLM.from_pretrained(task.folder, dtype=dtype).eval().to(task.device)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(task.device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(task.folder)).eval()
    torch.set_default_dtype(torch.float32)
    return model


def continuous(task: Task, settings: dict[str, Any]) -> dict[str, Any]:
    """transformers' continuous batching, that of `generate_batch`, asked as `generate_batch` asks it, except that each
    request has its own length."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = load(task)
    try:
        model.set_attn_implementation("paged|sdpa")
    except ValueError:  # newer ones page whatever is asked for
        model.set_attn_implementation("sdpa")
    if task.weights or task.device == "cpu":  # on a CPU it does not know how much memory there is: enough for all
        settings = settings | {
            "num_blocks": 4 + sum((len(p) + n) // 256 + 1 for p, n in task.requests)
        }  # of 256 tokens
    else:  # by itself it takes so much for its cache that its CUDA graphs find no room
        settings = settings | {"max_memory_percent": task.memory}
    config = ContinuousBatchingConfig(
        max_batch_tokens=MAX_NUM_BATCHED_TOKENS if task.device == "cuda" else 512,
        max_requests_per_batch=task.max_num_seqs, **settings,
    )  # fmt: skip
    generation = GenerationConfig(max_new_tokens=WARM_UP, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with (
        torch.no_grad(),  # as `generate_batch` has it. Inference mode holds for this thread only, which warms it up:
        # the thread that then generates, with transformers 5.17, may not write to what was made in it
        model.continuous_batching_context_manager(generation, continuous_batching_config=config) as manager,
    ):
        if not task.weights:
            served(manager, [(p, min(n, WARM_UP)) for p, n in task.requests[: task.max_num_seqs]], task.limit)
        start = perf_counter()
        finished = served(manager, task.requests, task.limit)
        seconds = perf_counter() - start
        made = [len(tokens) for tokens in finished.values()]
        unfinished = 0
        if len(made) < len(task.requests):  # those that are still being computed
            if not manager.is_running():
                return {"error": "transformers' continuous batching stopped: it has no room, or does not serve this"}
            active = manager.batch_processor.scheduler.active_requests
            unfinished = sum(len(state.generated_tokens) for state in active.values())
            manager.stop(block=False)
    result = rate(sum(made) + unfinished, seconds, len(made)) | {"settings": settings}
    return result | ({"texts": list(finished.values())} if task.weights else {})


def served(manager: Any, requests: list[tuple[list[int], int]], limit: float) -> dict[str, list[int]]:
    names = [manager.add_request(token_ids, max_new_tokens=n) for token_ids, n in requests]
    finished: dict[str, list[int]] = {}
    start = perf_counter()
    while len(finished) < len(names) and manager.is_running() and perf_counter() - start < limit:
        result = manager.get_result(timeout=0.5)
        if result is not None and result.is_finished():
            finished[result.request_id] = result.generated_tokens
    return {name: finished[name] for name in names if name in finished}


def rate(num_tokens: int, seconds: float, finished: int) -> dict[str, Any]:
    print(f"{num_tokens:,} tokens in {seconds:.1f} s", file=sys.stderr, flush=True)
    return {
        "tokens": num_tokens,
        "seconds": seconds,
        "finished": finished,
        "tokens_per_second": num_tokens / seconds if seconds else 0.0,
    }
