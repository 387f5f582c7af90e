"""How near do the GPU kernels come to the memory's speed? `python -m benchmarks.gpu`

A decode step reads the K and V of every token of every sequence once, so the fastest that it can be is their bytes over
the bandwidth of the memory. Three tables show how near the kernels come, each checked against attention in float64
first:

    ladder   the six rungs of minipage/ladder, and next to them FlashInfer (if it can be imported) and PyTorch's
             scaled_dot_product_attention, for which K and V lie in one piece, so it has no block tables to follow
    shapes   the engine's kernel, from one sequence to 256, from 128 tokens to 64K; and a ragged batch
    kinds    float32, float16, bfloat16, int8 and fp8

The memory's speed is that of a copy on the device, measured in the same run: bytes read and written, over its time.

How it is timed: launches are captured in a CUDA graph, so that what a launch costs the processor does not count; each
launch of a graph has K and V of its own, so many that together they are several times the level-2 cache; CUDA events
before and after a replay give the time; after a warm-up, the median of the replays counts.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from benchmarks.charts import Chart, Roofline
from benchmarks.measure import console, grid, main, needed, require_gpu

with needed():
    import torch

    from minipage.ladder import RUNGS, rung
    from minipage.worker.gpu.capture import recorded

BLOCK_SIZE = 16
HEADS = {"12x64": (12, 12, 64), "32/8x128": (32, 8, 128), "64/8x128": (64, 8, 128)}  # query heads, KV heads, head size
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}  # of |out - expected| / |expected|
GOAL = (32, 4096, "32/8x128", "bfloat16")  # the shape that the goals are about
ROTATE = 1_500_000_000  # bytes of K and V that a graph goes through; the level-2 cache has 50 or 60 million
WARM_UP = 0.1  # seconds of replays that do not count: an idle GPU has lowered its clocks
PATIENCE = 0.3  # seconds of replays of one kernel, these included; but three that count, however slow they are
LARGEST = 20_000_000_000  # bytes of K and V in one shape


class Shape(NamedTuple):
    contexts: tuple[int, ...]  # tokens of each sequence
    heads: str
    dtype: str  # of q and out; and of K and V, unless
    kv: str = ""  # says "int8" or "fp8"
    name: str = ""

    @property
    def title(self) -> str:
        batch = self.name or f"{len(self.contexts)} x {self.contexts[0]:,}"
        return f"{batch}, {self.heads} {self.kv or self.dtype}"

    @property
    def bytes(self) -> int:
        """That must be read: K and V of all tokens, with their scales."""
        _, num_kv_heads, head_size = HEADS[self.heads]
        row = head_size + 4 if self.kv else head_size * getattr(torch, self.dtype).itemsize
        return 2 * sum(self.contexts) * num_kv_heads * row


class Case:
    """Random K and V in blocks that lie in any order, and a query for each sequence."""

    num_queries = 1  # of a sequence

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.num_heads, self.num_kv_heads, self.head_size = HEADS[shape.heads]
        self.scale = self.head_size**-0.5
        generator = torch.Generator("cuda").manual_seed(seed)
        blocks_of = [-(-context // BLOCK_SIZE) for context in shape.contexts]
        order = torch.randperm(sum(blocks_of), device="cuda", generator=generator, dtype=torch.int32)
        self.block_tables = torch.zeros(len(blocks_of), max(blocks_of), dtype=torch.int32, device="cuda")
        for s, blocks in enumerate(order.split(blocks_of)):
            self.block_tables[s, : len(blocks)] = blocks
        self.context_lens = torch.tensor(shape.contexts, dtype=torch.int32, device="cuda")
        size = sum(blocks_of), BLOCK_SIZE, self.num_kv_heads, self.head_size

        def random(*size: int) -> torch.Tensor:
            return torch.randn(*size, device="cuda", generator=generator, dtype=getattr(torch, shape.dtype))

        self.q = random(len(blocks_of), self.num_heads, self.head_size)
        self.out = torch.full_like(self.q, torch.nan)
        self.scales: list[torch.Tensor] = []
        if not shape.kv:
            self.k, self.v = random(*size), random(*size)
            return
        if shape.kv == "int8":
            self.k, self.v = (
                torch.randint(-127, 128, size, device="cuda", generator=generator, dtype=torch.int8) for _ in "kv"
            )
        else:
            self.k, self.v = (random(*size).to(torch.float8_e4m3fn).view(torch.uint8) for _ in "kv")
        self.scales = [
            torch.rand(size[:3], device="cuda", generator=generator) / (64 if shape.kv == "int8" else 1) for _ in "kv"
        ]

    def dense(self, s: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of one sequence in float64, each [num_heads, context, head_size]."""
        context, group = self.shape.contexts[s], self.num_heads // self.num_kv_heads
        blocks = self.block_tables[s, : -(-context // BLOCK_SIZE)].long()
        both = []
        for i, cache in enumerate((self.k, self.v)):
            rows = cache[blocks]
            rows = rows.view(torch.float8_e4m3fn).float().double() if self.shape.kv == "fp8" else rows.double()
            if self.scales:
                rows = rows * self.scales[i][blocks].double()[..., None]
            rows = rows.reshape(-1, self.num_kv_heads, self.head_size)[:context]
            both.append(rows.repeat_interleave(group, dim=1).transpose(0, 1))
        return both[0], both[1]

    def contiguous(self) -> list[torch.Tensor]:
        """K and V in one piece, each [num_seqs, num_kv_heads, context, head_size]; all contexts of one length."""
        contexts, blocks = self.shape.contexts, self.block_tables.long()
        if len(set(contexts)) > 1:
            raise ValueError("contexts of several lengths are not one array")
        split = len(blocks), -1, self.num_kv_heads, self.head_size
        return [a[blocks].reshape(split)[:, : contexts[0]].transpose(1, 2).contiguous() for a in (self.k, self.v)]

    def error(self) -> float:
        """How far `out` is off, for the first and the last, the shortest and the longest sequences."""
        lengths = self.shape.contexts
        some = {0, len(lengths) - 1, lengths.index(min(lengths)), lengths.index(max(lengths))}
        off, size = 0.0, 0.0
        for s in some:
            k, v = self.dense(s)
            scores = (k @ self.q[s].double()[:, :, None])[..., 0] * self.scale  # [num_heads, context]
            expected = (torch.softmax(scores, dim=1)[:, None] @ v)[:, 0]  # [num_heads, head_size]
            off += (self.out[s].double() - expected).square().sum().item()
            size += expected.square().sum().item()
        missing = self.out.isnan().any().item()
        return float("nan") if missing else (off / size) ** 0.5


Launch = Callable[[], Any]  # enqueues one attention of a case in the current stream
Make = Callable[[Case], Launch]


def ladder_rung(name: str) -> Make:
    decode = rung(name)

    def make(case: Case) -> Launch:
        arguments = case.q, case.k, case.v, case.block_tables, case.context_lens, case.scale, case.out
        return lambda: decode(*arguments, stream=torch.cuda.current_stream().cuda_stream)

    return make


def engine_kernel(case: Case) -> Launch:
    from minipage.attention.cuda import launch_attention, workspace_size

    longest, num_seqs, num_queries = max(case.shape.contexts), len(case.shape.contexts), case.num_queries
    size = workspace_size(num_seqs, case.num_heads, case.head_size, longest)
    workspace = torch.zeros(size, device="cuda")
    starts = num_queries * torch.arange(num_seqs + 1, dtype=torch.int32, device="cuda")
    return lambda: launch_attention(
        case.q, case.k, case.v, case.block_tables, case.context_lens, starts, case.scale, *(case.scales or (None,
        None)), out=case.out, workspace=workspace, max_query_len=num_queries, min_query_len=num_queries,
        max_context_len=longest, stream=torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip


def torch_sdpa(case: Case) -> Launch:
    k, v = case.contiguous()
    attend = torch.nn.functional.scaled_dot_product_attention
    q = case.q[:, :, None]

    def launch() -> None:
        case.out.copy_(attend(q, k, v, scale=case.scale, enable_gqa=case.num_heads != case.num_kv_heads)[:, :, 0])

    return launch


def flashinfer_decode(use_tensor_cores: bool) -> Make:
    import flashinfer

    def make(case: Case) -> Launch:
        workspace = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=use_tensor_cores)
        contexts = torch.tensor(case.shape.contexts)
        blocks_of = (contexts + BLOCK_SIZE - 1) // BLOCK_SIZE
        indptr = torch.cat([torch.zeros(1), blocks_of.cumsum(0)]).int()
        indices = torch.cat([table[:n] for table, n in zip(case.block_tables, blocks_of.tolist())])
        last = ((contexts - 1) % BLOCK_SIZE + 1).int()
        wrapper.plan(
            indptr.cuda(), indices, last.cuda(), case.num_heads, case.num_kv_heads, case.head_size, BLOCK_SIZE,
            q_data_type=case.q.dtype, kv_data_type=case.k.dtype,
        )  # fmt: skip
        return lambda: wrapper.run(case.q, (case.k, case.v), out=case.out)

    return make


class Timed(NamedTuple):
    microseconds: float  # of one launch: the median of the replays
    error: float  # against float64


class Replay:
    """A CUDA graph that launches once for each of some cases."""

    def __init__(self, make: Make, cases: Sequence[Case]) -> None:
        self.num_launches = len(cases)
        launches = [make(case) for case in cases]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for case in cases:
                case.out.fill_(torch.nan)
            for launch in launches:
                launch()  # compiles, and loads what others load when it is first needed
        torch.cuda.synchronize()
        self.error = cases[0].error()
        self.graph = torch.cuda.CUDAGraph()
        with recorded(self.graph, stream=side):
            for launch in launches:
                launch()
        self.microseconds: list[float] = []  # of a launch, by the replays that count

    def run(self, seconds: float) -> None:
        spent = self.once()
        while spent < WARM_UP:
            spent += self.once()
        while spent < seconds or len(self.microseconds) < 3:
            taken = self.once()
            self.microseconds.append(1e6 * taken / self.num_launches)
            spent += taken

    def once(self) -> float:
        """Seconds of a replay, on the GPU's clock."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def say(what: str) -> None:
    """What is going on, where there is no progress bar."""
    if not console.is_terminal:
        print(f"{perf_counter():.0f} s {what}", file=sys.stderr, flush=True)


def measure(
    shape: Shape,
    makes: Mapping[str, Callable[[Any], Launch]],
    quick: bool,
    case: Callable[[Shape, int], Case] = Case,
    most_cases: int = 256,
) -> dict[str, Timed | str]:
    """Time what can be timed, in as many cases as fill the memory that a graph goes through; for what fails, why."""
    num_cases = max(1, min(most_cases, ROTATE // shape.bytes))
    cases = [case(shape, seed) for seed in range(num_cases)]
    results: dict[str, Timed | str] = {}
    for name, make in makes.items():
        say(f"{shape.title}: {name}")
        try:
            replay = Replay(make, cases)
            replay.run(PATIENCE / 2 if quick else PATIENCE)
        except Exception as error:  # of a peer that lacks this shape, say; the others go on
            results[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        tolerance = TOLERANCES[shape.dtype]
        if replay.error <= tolerance:
            results[name] = Timed(statistics.median(replay.microseconds), replay.error)
        else:
            results[name] = f"WRONG: off by {replay.error:.1e}, allowed {tolerance:.0e}"
    return results


def copy_bandwidth() -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.empty(2 * 2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * source.numel() / statistics.median(times[2:])


def arithmetic_speed() -> float:
    """Operations a second of a large product of matrices of bfloat16, on tensor cores."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * n**3 / statistics.median(times[2:])


def ragged(num_seqs: int) -> tuple[int, ...]:
    """Context lengths as in a chat service, like ShareGPT's: most some hundreds of tokens, a few of many thousands."""
    lengths = np.random.default_rng(0).lognormal(5.8, 1.1, num_seqs)
    return tuple(int(n) for n in lengths.clip(4, 16_384))


def shapes_of_ladder(quick: bool) -> list[Shape]:
    batch, context, heads, dtype = GOAL
    shapes = [Shape((context,) * batch, heads, dtype)]
    if not quick:
        shapes += [
            Shape(ragged(256), heads, dtype, name="256 ragged"),
            Shape((65_536,), heads, dtype),
            Shape((4096,) * 32, "64/8x128", dtype),
            Shape((1024,) * 64, "12x64", dtype),
        ]
    return shapes


def shapes_of_engine(quick: bool) -> list[Shape]:
    heads = [GOAL[2]] if quick else list(HEADS)
    batches, contexts = ((1, 64), (1024,)) if quick else ((1, 16, 64, 256), (128, 1024, 4096, 16_384, 65_536))
    shapes = [
        Shape((context,) * batch, h, "bfloat16")
        for h in heads
        for batch in batches
        for context in contexts
        if not (h == "12x64" and context > 1024)  # as far as GPT-2 goes
    ]
    shapes += [Shape(ragged(256), h, "bfloat16", name="256 ragged") for h in heads]
    shapes += [Shape(ragged(64), GOAL[2], "bfloat16", name="64 ragged")]
    return [shape for shape in shapes if shape.bytes <= LARGEST]


def shapes_of_kinds(quick: bool) -> list[Shape]:
    batch, context, heads, _ = GOAL
    contexts = (context,) * batch
    plain = [Shape(contexts, heads, dtype) for dtype in TOLERANCES]
    return plain + [Shape(contexts, heads, dtype, kv) for dtype in ("bfloat16", "float16") for kv in ("int8", "fp8")]


def run(quick: bool) -> dict[str, Any]:
    require_gpu()
    bandwidth, arithmetic = copy_bandwidth(), arithmetic_speed()
    device = torch.cuda.get_device_properties(0)
    console.print(
        f"{device.name}: a copy on the device moves {bandwidth / 1e12:.2f} TB/s (bytes read and written), a "
        f"product of matrices reaches {arithmetic / 1e12:.0f} TFLOP/s. "
        f"CUDA {torch.version.cuda}, driver {driver_version()}",
    )
    results: dict[str, Any] = {
        "device": device.name, "copy_bytes_per_second": bandwidth, "operations_per_second": arithmetic, **versions(),
        "tables": {},
    }  # fmt: skip
    engine = {"minipage": engine_kernel}
    peers: dict[str, Make] = {"PyTorch SDPA, contiguous": torch_sdpa}
    try:
        peers |= {"FlashInfer": flashinfer_decode(False), "FlashInfer, tensor cores": flashinfer_decode(True)}
    except ImportError:
        console.print("FlashInfer cannot be imported, so it is not compared.")
    tables = {
        "ladder": (shapes_of_ladder(quick), {**{f"rung {name}": ladder_rung(name) for name in RUNGS}, **peers}),
        "kinds": (shapes_of_kinds(quick), engine),
        "shapes": (shapes_of_engine(quick), engine),
    }
    try:
        for title, (shapes, makes) in tables.items():
            measured = results["tables"].setdefault(title, [])
            for shape in track(shapes, title, console=console, transient=True, disable=not console.is_terminal):
                # FlashInfer compiles for half a minute for every head size: one of them is enough.
                wanted = {n: make for n, make in makes.items() if shape.heads != "12x64" or "FlashInfer" not in n}
                for name, timed in measure(shape, wanted, quick).items():
                    measured.append(entry(shape, name, timed, bandwidth))
                torch.cuda.empty_cache()
            console.print(table(title, measured))
    except KeyboardInterrupt:
        console.print("Stopped; what has been measured so far counts.")
    return results


def entry(shape: Shape, name: str, timed: Timed | str, bandwidth: float) -> dict[str, Any]:
    about = {"shape": shape.title, "kernel": name, "bytes": shape.bytes, "num_seqs": len(shape.contexts)}
    num_heads, _, head_size = HEADS[shape.heads]
    about["operations"] = 4 * sum(shape.contexts) * num_heads * head_size  # a multiplication and an addition, twice
    if isinstance(timed, str):
        return {**about, "failed": timed}
    speed = shape.bytes / timed.microseconds * 1e6
    numbers = dict(
        microseconds=timed.microseconds, bytes_per_second=speed, of_copy=speed / bandwidth, error=timed.error
    )
    return about | numbers


def table(title: str, measured: Sequence[dict[str, Any]]) -> Any:
    rows = grid(f"{title}: of a device copy = share of its speed", ["", "µs", "TB/s", "of copy", "error"])
    shape, reasons = None, []
    for one in measured:
        if one["shape"] != shape and len({m["kernel"] for m in measured}) > 1:
            shape = one["shape"]
            rows.add_row(f"[bold]{shape}")
        name = one["kernel"] if shape else one["shape"]
        if "failed" in one:
            rows.add_row(name, "failed")
            reasons.append(f"{one['kernel']}, {one['shape']}: {one['failed']}")
        else:
            speed = f"{one['bytes_per_second'] / 1e12:.2f}", f"{one['of_copy']:.1%}", f"{one['error']:.1e}"
            rows.add_row(name, f"{one['microseconds']:,.1f}", *speed)
    rows.caption = "\n".join(reasons)
    return rows


def driver_version() -> str:
    from cuda.bindings import driver

    return str(driver.cuDriverGetVersion()[1])


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("numba", "numba-cuda", "torch", "flashinfer-python", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def charts(results: dict[str, Any]) -> list[Chart | Roofline]:
    ladder, copy = results["tables"]["ladder"], results["copy_bytes_per_second"]
    measured = [one for one in ladder if "failed" not in one]
    kernels, shapes = (list(dict.fromkeys(one[what] for one in measured)) for what in ("kernel", "shape"))
    speeds = {(one["kernel"], one["shape"]): one["bytes_per_second"] / 1e12 for one in measured}
    bars = {kernel: [speeds.get((kernel, shape)) for shape in shapes] for kernel in kernels}
    full = [shape for shape in shapes if "ragged" not in shape and not shape.startswith("1 x")]  # enough work for all
    dots = {
        kernel: sorted(
            (one["operations"] / one["bytes"], one["operations"] / one["microseconds"] * 1e6)
            for one in measured
            if one["kernel"] == kernel and one["shape"] in full
        )
        for kernel in kernels
    }
    labels = [shape.replace(", ", "\n").replace(" bf", "\nbf") for shape in shapes]
    kinds = ", ".join(sorted(shape.partition(", ")[2].partition(" ")[0] for shape in full))
    return [
        Roofline(f"{results['device']}, decode attention, heads {kinds}", copy, results["operations_per_second"], dots),
        Chart(
            "K and V a second", "TB/s", labels, bars, goal=copy / 1e12, goal_name="a copy on the device",
            logarithmic=True,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("gpu", "How near the GPU's attention kernels come to the speed of its memory.", run, charts))
