"""What do several ranks cost, and what do they gain? `python -m benchmarks.gpu_tensor_parallel`

With two GPUs or more (all that there are, in powers of two): everything. Without, on the CPU: the same with a small
model, so that the script itself is tried out; then its times mean little.

    texts      the shipped model in float32, greedy and seeded: equal to one rank's?
    sums       one all-reduce of [rows, 4096] in bfloat16, 64 of them in a CUDA graph, by all ways; and with
               what is added to it, and a norm
    steps      a decode step of 1, and of 32 sequences, of Llama-2-7B's and 13B's shape in bfloat16, dummy weights: one
               rank and several; and how many tokens of K and V there is room for
    large      the shapes of CodeLlama-34B and Llama-2-70B; for the latter one GPU has no room
    message    what rank 0 takes to tell the others of a step of 256 sequences
    products   the matrices of a layer of 7B, whole and halved, one row: microseconds, and terabytes a second
    faults     a rank is killed, or stopped, between replayed steps: how long until the error; is anything left?

Each measurement has processes of its own, and one that fails does not stop the others. Goals: a step of 7B at least
1.45 times faster with two ranks (batch 1) and 1.6 (batch 32); of 13B 1.6 and 1.7; the message below 100 us; errors
within 10 s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from socket import socket
from statistics import median
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.measure import console, main
from minipage import LLM, SamplingParams
from minipage.errors import MinipageError, RankError

COMMON = {
    "model_type": "llama", "vocab_size": 32_000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return COMMON | {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    } | more  # fmt: skip


SHAPES = {
    "7B": shape(4096, 11_008, 32, 32, 32),
    "13B": shape(5120, 13_824, 40, 40, 40),
    "34B": shape(8192, 22_016, 48, 64, 8),
    "70B": shape(8192, 28_672, 80, 64, 8),
    "small": shape(256, 688, 4, 8, 4, max_position_embeddings=512, vocab_size=1000),
}
BATCHES = 1, 32
ROWS = 1, 8, 32, 128
PROMPT_LEN, NUM_TOKENS = 512, 48
GOALS = {("7B", 1): 1.45, ("7B", 32): 1.6, ("13B", 1): 1.6, ("13B", 32): 1.7}
PATIENCE = 400  # seconds for one measurement


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def on_gpu() -> bool:
    return num_gpus() >= 2


def run(quick: bool) -> dict[str, Any]:
    sizes = [size for size in (2, 4, 8) if size <= max(2, num_gpus())][: 1 if quick else None]
    console.print(f"{num_gpus()} GPUs: ranks {sizes}" if on_gpu() else "no two GPUs: on the CPU, to try the script out")
    results: dict[str, Any] = {"gpus": num_gpus()}
    names = ["small"] if not on_gpu() else ["7B"] if quick else ["7B", "13B"]
    ways = ["peers", "nccl"] if on_gpu() else ["nccl"]
    for size in sizes:
        results[f"sums, {size} ranks"] = apart("sums", size)
        results[f"message, {size} ranks"] = apart("message", size)
        for way in ways:
            results[f"texts, {size} ranks, {way}"] = apart("texts", size, MINIPAGE_ALL_REDUCE=way)
            results[f"faults, {size} ranks, {way}"] = apart("faults", size, MINIPAGE_ALL_REDUCE=way)
        if on_gpu():
            results[f"products, 1/{size}"] = apart("products", size)
    for name in names:
        for size in [1, *sizes]:
            for way in ways if size > 1 else ["nccl"]:
                results[f"steps of {name}, {size} ranks, {way}"] = apart("steps", size, name, MINIPAGE_ALL_REDUCE=way)
    if on_gpu() and not quick:
        for name in ("34B", "70B"):
            results[f"steps of {name}, 1 ranks, nccl"] = apart("steps", 1, name)
            results[f"steps of {name}, 2 ranks, peers"] = apart("steps", 2, name, MINIPAGE_ALL_REDUCE="peers")
    results["gains"] = gains(results)
    console.print_json(json.dumps(results))
    return results


def gains(results: dict[str, Any]) -> dict[str, Any]:
    """How many times faster steps are than with one rank, and how much more room there is."""
    found = {}
    for key, value in results.items():
        kind, _, ranks = key.partition(", ")
        alone = results.get(f"{kind}, 1 ranks, nccl", {})
        if kind.startswith("steps") and "steps" in value and "steps" in alone and not ranks.startswith("1 "):
            for one, several in zip(alone["steps"], value["steps"], strict=True):
                name = kind.removeprefix("steps of ")
                found[f"{name}, batch {one['batch']}, {ranks}"] = {
                    "times": one["step_us"] / several["step_us"],
                    "goal": GOALS.get((name, one["batch"])) if ranks.startswith("2 ") else None,
                    "room": value["tokens"] / alone["tokens"],
                }
    return found


def apart(what: str, size: int, *more: str, **variables: str) -> dict[str, Any]:
    """Measure in processes of their own; what fails is told in place of a result."""
    command = [sys.executable, "-m", "benchmarks.gpu_tensor_parallel", "--part", what, str(size), *more]
    title = " ".join([what, str(size), *more, *variables.values()])
    try:
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        result = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        words = "" if isinstance(error, subprocess.TimeoutExpired) else done.stderr[-1500:]
        result = {"failed": f"{type(error).__name__}: {words}"}
    console.print(f"{title}: {json.dumps(result)[:1500]}")
    return dict(result)


# ---- parts, each in a process of its own


def options() -> dict[str, Any]:
    return {"device": "cuda", "dtype": "bfloat16"} if on_gpu() else {"device": "cpu"}


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def texts(size: int) -> dict[str, Any]:
    where = options() | {"dtype": "float32"}
    one, several = LLM(num_blocks=200, **where), LLM(num_blocks=200, tensor_parallel_size=size, **where)
    prompts = ["KING RICHARD III:\nMy kingdom for a", "JULIET:\nO Romeo,", "ROMEO:\nIt is my lady", "To be"]
    ways = {
        "greedy": greedy(64),
        "seeded": SamplingParams(seed=3, n=2, max_tokens=64),
        "beams": SamplingParams(beam_width=3),
    }
    said = {
        name: [[text.token_ids for out in llm.generate(prompts, way) for text in out.outputs] for llm in (one, several)]
        for name, way in ways.items()
    }
    return {name: ours == theirs for name, (ours, theirs) in said.items()}


def steps(size: int, name: str) -> dict[str, Any]:
    batches, num_prompt, num_tokens = (BATCHES, PROMPT_LEN, NUM_TOKENS) if name != "small" else ((1, 8), 32, 16)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[name]))
        start = time.perf_counter()
        try:
            llm = LLM(folder, load_format="dummy", max_num_seqs=32, tensor_parallel_size=size, **options())
        except (MinipageError, RuntimeError) as error:  # out of memory, for example
            return {"no_room": f"{type(error).__name__}: {error}"[:300]}
    loading = time.perf_counter() - start
    found = []
    for batch in batches:
        found.append({"batch": batch, "step_us": step_time(llm, batch, num_prompt, num_tokens)})
        if on_gpu():
            found[-1] |= {"graph_us": graph_time(llm, batch), "host_us": host_times(llm, batch)}
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return {"steps": found, "tokens": llm.block_pool.num_blocks * llm.block_pool.block_size, "loading_seconds": loading}


def step_time(llm: LLM, batch: int, num_prompt: int, num_tokens: int) -> float:
    """Microseconds from one token to the next, the median of the best of three runs."""
    rng = np.random.default_rng(batch)
    times = []
    for _ in range(4):  # the first compiles, and captures the graph
        for prompt in rng.integers(0, llm.config.vocab_size, (batch, num_prompt)).tolist():
            llm.add_request(prompt, greedy(num_tokens))
        gaps, last = [], time.perf_counter()
        while llm.has_unfinished_requests():
            outputs = llm.step()
            now = time.perf_counter()
            if len(outputs) == batch and all(len(output.outputs[0].token_ids) > 2 for output in outputs):
                gaps.append(now - last)
            last = now
        times.append(1e6 * median(gaps))
    return min(times[1:])


def graph_time(llm: LLM, batch: int) -> float:
    """Microseconds that a replay takes on the GPU of rank 0, waiting for the other ranks included; draws are not."""
    import torch

    events, replay = [], torch.cuda.CUDAGraph.replay

    def recorded(graph: Any) -> None:
        events.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        events[-1][0].record()
        replay(graph)
        events[-1][1].record()

    torch.cuda.CUDAGraph.replay = recorded  # type: ignore[method-assign]
    llm.generate([[i + 1] * PROMPT_LEN for i in range(batch)], greedy(NUM_TOKENS))
    torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]
    torch.cuda.synchronize()
    times = [1e3 * start.elapsed_time(stop) for start, stop in events]
    return median(times)  # of which but a few are a prompt's


def host_times(llm: LLM, batch: int) -> dict[str, float]:
    """Median microseconds of rank 0's host in each phase of a decode step; `sample` waits for the GPU."""
    from benchmarks.gpu_engine import phases

    return phases(llm, [[i + 1] * PROMPT_LEN for i in range(batch)])


def message(size: int) -> dict[str, Any]:
    """Microseconds that rank 0 takes to write and to send what a step of 256 sequences is: on the wall, and of the
    processor, which other programs that are busy do not change."""
    from minipage.worker.ranks import leader

    llm = LLM(num_blocks=4096, tensor_parallel_size=size, **options())
    group, pack, wall, busy = llm.runner.group, leader.pack_step, [], []
    send, started = group.send, [0.0, 0.0]

    def pack_timed(*arguments: Any) -> Any:
        started[:] = time.perf_counter(), time.thread_time()
        return pack(*arguments)

    def send_timed(array: Any) -> None:
        send(array)
        wall.append(1e6 * (time.perf_counter() - started[0]))
        busy.append(1e6 * (time.thread_time() - started[1]))

    leader.pack_step, group.send = pack_timed, send_timed
    llm.generate([[1 + i % 50] * (20 + i % 40) for i in range(256)], greedy(100))
    steps = len(wall) // 3  # the first compute prompts, and the last have fewer sequences
    return {"wall_us": median(wall[steps:-steps]), "processor_us": median(busy[steps:-steps]), "steps": len(wall)}


def faults(size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("SIGKILL", "SIGSTOP"):
        llm = LLM(num_blocks=400, tensor_parallel_size=size, **options())
        pids = [process.pid for process in llm.runner.meeting.processes.values()]
        for i in range(16):
            llm.add_request([1 + i] * 20, greedy(200))
        for _ in range(30):
            llm.step()
        os.kill(pids[-1], getattr(signal, kind))
        start = time.perf_counter()
        try:
            while llm.has_unfinished_requests():
                llm.step()
            found[kind] = {"error": None}
        except RankError as error:
            found[kind] = {"seconds": time.perf_counter() - start, "error": str(error)}
        llm.scheduler.check_integrity()
        found[kind]["left"] = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        found[kind]["blocks"] = [llm.block_pool.num_free, llm.block_pool.num_blocks]
    return found


def sums(size: int) -> dict[str, Any]:
    """Start `size` processes that add up together; rank 0 prints."""
    from minipage.worker.ranks.meeting import LOOPBACK

    with socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.gpu_tensor_parallel", "--sum"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(port)], stdout=subprocess.PIPE) for rank in range(size)
    ]
    told = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    return dict(json.loads(told[0].decode().strip().splitlines()[-1]))


def sum_up(rank: int, size: int, port: int) -> None:
    import torch
    from torch.distributed import PrefixStore, TCPStore

    from minipage.worker.ranks.meeting import LOOPBACK, PATIENCE
    from minipage.worker.ranks.process_group import ProcessGroup

    measure = in_a_graph if on_gpu() else launched
    store, found = TCPStore(LOOPBACK, port, size, rank == 0, PATIENCE), {}
    for way in ("nccl", "peers") if on_gpu() else ("gloo",):
        os.environ["MINIPAGE_ALL_REDUCE"] = way
        if on_gpu():
            from minipage.worker.gpu.nccl import gpu_group

            group = gpu_group(PrefixStore(way, store), rank, size, LOOPBACK, rank)
            found[f"{way} is used"] = way == "nccl" or group.peers is not None
        else:
            group = ProcessGroup(PrefixStore(way, store), rank, size, LOOPBACK)
        for rows in ROWS:
            x = torch.full((rows, 4096), rank + 1.0, dtype=torch.bfloat16, device="cuda" if on_gpu() else "cpu")
            total = group.all_reduce(x.clone())
            found[f"{way}, {rows} rows, right"] = bool((total == size * (size + 1) / 2).all())
            found[f"{way}, {rows} rows, us"] = measure(partial(group.all_reduce, x))
            if on_gpu():
                found[f"{way}, {rows} rows, added to x, and a norm, us"] = measure(with_norm(group, x))
        group._flush()
    if rank == 0:
        print(json.dumps(found), flush=True)
    time.sleep(1)  # until the others have what they wait for
    os._exit(0)


def with_norm(group: Any, x: Any) -> Any:
    """What makes the sum, adds it to something and makes a norm of it, as a layer does."""
    import torch

    from minipage.worker.gpu.fused import current_stream, launch_norm
    from minipage.worker.gpu.peer_sums import Norm, can_add

    weight, onto = torch.ones_like(x[0]), torch.zeros_like(x)
    norm = Norm(weight, None, 1e-5, is_centered=False)
    if group.peers is not None and can_add(x):
        return partial(group.peers.add_onto, onto, x, norm)

    def apart() -> None:
        launch_norm(group.all_reduce(x), weight, None, 1e-5, onto, is_centered=False, stream=current_stream())

    return apart


def products(size: int) -> dict[str, Any]:
    import torch

    from minipage.worker.gpu.few_rows import product
    from minipage.worker.gpu.fused import current_stream

    found = {}
    for name, (n_in, n_out), cut in (
        ("q, k, v", (4096, 12_288), 1), ("o", (4096, 4096), 0), ("gate, up", (4096, 22_016), 1),
        ("down", (11_008, 4096), 0), ("head", (4096, 32_000), 1),
    ):  # fmt: skip
        for parts in (1, size):
            shape = (n_out // parts, n_in) if cut else (n_out, n_in // parts)
            weights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
            x = torch.randn(1, shape[1], device="cuda", dtype=torch.bfloat16)

            def call(x: Any = x, weights: Any = weights) -> None:
                for weight in weights:
                    product(x, weight, stream=current_stream())

            us = in_a_graph(call, 8) / 8
            found[f"{name}, 1/{parts}"] = [us, 2e-6 * shape[0] * shape[1] / us]
    return found


def launched(call: Any, times: int = 64) -> float:
    rounds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(times):
            call()
        rounds.append(1e6 * (time.perf_counter() - start) / times)
    return median(rounds)


def in_a_graph(call: Any, times: int = 64) -> float:
    """Microseconds of one of `times` calls in a CUDA graph, by the GPU's clock."""
    import torch

    from minipage.worker.gpu.capture import capture

    call()
    torch.cuda.synchronize()
    graph, _ = capture(lambda: [call() for _ in range(times)])
    rounds = []
    for _ in range(30):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        rounds.append(1e3 * start.elapsed_time(stop) / times)
    return median(rounds)


def charts(results: dict[str, Any]) -> list[Chart]:
    gained = results["gains"]
    return [
        Chart(
            "How many times faster than one rank",
            "times",
            list(gained),
            {"step": [g["times"] for g in gained.values()]},
        )
    ]


PARTS = {part.__name__: part for part in (texts, steps, message, faults, sums, products)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]](int(sys.argv[3]), *sys.argv[4:])), flush=True)
        sys.exit(0)
    if sys.argv[1:2] == ["--sum"]:
        sum_up(*map(int, sys.argv[2:]))
    sys.exit(main("gpu_tensor_parallel", __doc__.partition("\n")[0], run, charts))
