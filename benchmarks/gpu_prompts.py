"""What share of the tensor cores' speed does attention of prompts get? `python -m benchmarks.gpu_prompts`

A prompt's queries look at the same K and V, so what bounds them is arithmetic: a multiplication and an addition for
each number of K that a query looks at, and for each of V. The table shows prompts in one piece, and the last chunk of
longer ones (chunked prefill), beside FlashInfer (if it can be imported; its kernels for Ampere, fa2, and for Hopper,
fa3) and PyTorch's scaled_dot_product_attention, for which K and V lie in one piece. Each is checked against attention
in float64 first.

The tensor cores' speed is that of a large product of matrices in bfloat16, measured in the same run. How it is timed:
as in benchmarks/gpu.py, except that a graph has at most four launches: where they find K and V hardly counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks.charts import Chart
from benchmarks.gpu import (
    BLOCK_SIZE,
    HEADS,
    Case,
    Launch,
    Shape,
    Timed,
    arithmetic_speed,
    engine_kernel,
    measure,
    versions,
)
from benchmarks.measure import console, grid, main, needed, require_gpu

with needed():
    import torch


class Chunk(NamedTuple):
    """The last `num_queries` tokens of each of some contexts of one length, as queries."""

    shape: Shape
    num_queries: int

    @property
    def title(self) -> str:
        return f"{len(self.shape.contexts)} x {self.num_queries:,} of {self.shape.title.partition(' x ')[2]}"

    @property
    def operations(self) -> int:
        num_heads, _, head_size = HEADS[self.shape.heads]
        seen = sum(sum(range(context - self.num_queries + 1, context + 1)) for context in self.shape.contexts)
        return 4 * seen * num_heads * head_size


class PromptCase(Case):
    def __init__(self, num_queries: int, shape: Shape, seed: int) -> None:
        super().__init__(shape, seed)
        self.num_queries = num_queries
        generator = torch.Generator("cuda").manual_seed(seed + 1)
        size = len(shape.contexts) * num_queries, self.num_heads, self.head_size
        self.q = torch.randn(*size, device="cuda", generator=generator, dtype=self.q.dtype)  # [num_tokens, H, D]
        self.out = torch.full_like(self.q, torch.nan)

    def error(self) -> float:
        """How far `out` is off, for the first and the last sequence, and of these the first and the last head."""
        off, size = 0.0, 0.0
        context, n = self.shape.contexts[0], self.num_queries
        given = self.out.reshape(self.q.shape)  # [num_tokens, H, D]
        sees = torch.ones(n, context, dtype=torch.bool, device="cuda").tril(context - n)  # [queries, context]
        for s in {0, len(self.shape.contexts) - 1}:
            k, v = self.dense(s)
            for h in {0, self.num_heads - 1}:
                q, out = (a[s * n : (s + 1) * n, h].double() for a in (self.q, given))  # each [queries, D]
                scores = (q @ k[h].T * self.scale).masked_fill(~sees, float("-inf"))  # [queries, context]
                expected = torch.softmax(scores, dim=1) @ v[h]  # [queries, D]
                off += (out - expected).square().sum().item()
                size += expected.square().sum().item()
        missing = self.out.isnan().any().item()
        return float("nan") if missing else (off / size) ** 0.5


def torch_sdpa(case: PromptCase) -> Launch:
    """Contiguous q, K and V, each [num_seqs, its heads, its tokens, head_size]."""
    from torch.nn.attention.bias import causal_lower_right

    k, v = case.contiguous()
    context = case.shape.contexts[0]
    split = len(case.shape.contexts), case.num_queries, case.num_heads, case.head_size
    q = case.q.view(split).transpose(1, 2).contiguous()
    options: dict[str, Any] = {"scale": case.scale, "enable_gqa": case.num_heads != case.num_kv_heads}
    if case.num_queries == context:
        options["is_causal"] = True
    else:
        options["attn_mask"] = causal_lower_right(case.num_queries, context)
    attend = torch.nn.functional.scaled_dot_product_attention

    def launch() -> None:
        case.out = attend(q, k, v, **options).transpose(1, 2)  # [num_seqs, queries, H, D]; into no given array

    return launch


def flashinfer_prefill(backend: str) -> Callable[[PromptCase], Launch]:
    import flashinfer

    def make(case: PromptCase) -> Launch:
        workspace = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
        context, num_seqs = case.shape.contexts[0], len(case.shape.contexts)
        blocks = -(-context // BLOCK_SIZE)
        numbers = torch.arange(num_seqs + 1, dtype=torch.int32, device="cuda")
        last = torch.full((num_seqs,), (context - 1) % BLOCK_SIZE + 1, dtype=torch.int32, device="cuda")
        wrapper.plan(
            case.num_queries * numbers, blocks * numbers, case.block_tables.flatten(), last,
            case.num_heads, case.num_kv_heads, case.head_size, BLOCK_SIZE, causal=True,
            q_data_type=case.q.dtype, kv_data_type=case.k.dtype,
        )  # fmt: skip
        return lambda: wrapper.run(case.q, (case.k, case.v), out=case.out)

    return make


def chunks(quick: bool) -> list[Chunk]:
    def chunk(num_seqs: int, num_queries: int, context: int, heads: str = "32/8x128", kv: str = "") -> Chunk:
        return Chunk(Shape((context,) * num_seqs, heads, "bfloat16", kv), num_queries)

    if quick:
        return [chunk(4, 2048, 2048), chunk(1, 2048, 16_384)]
    return [
        chunk(4, 2048, 2048), chunk(1, 8192, 8192), chunk(1, 2048, 16_384), chunk(16, 512, 4096),
        chunk(4, 2048, 2048, "64/8x128"), chunk(8, 1024, 1024, "12x64"), chunk(1, 8192, 8192, "12x64"),
        chunk(4, 2048, 2048, kv="int8"), chunk(4, 2048, 2048, kv="fp8"),
    ]  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    require_gpu()
    speed, device = arithmetic_speed(), torch.cuda.get_device_name()
    console.print(f"{device}: a product of matrices in bfloat16 reaches {speed / 1e12:.0f} TFLOP/s.")
    peers: dict[str, Callable[[PromptCase], Launch]] = {}
    try:
        peers |= {f"FlashInfer, {name}": flashinfer_prefill(name) for name in ("fa2", "fa3")}
    except ImportError:
        console.print("FlashInfer cannot be imported, so it is not compared.")
    peers["PyTorch SDPA, contiguous"] = torch_sdpa  # the last: its answer is another array
    rows = grid("prompts: share of the speed of a product", ["", "µs", "TFLOP/s", "of a product", "error"])
    measured, reasons = [], []
    for chunk in track(chunks(quick), "prompts", console=console, transient=True, disable=not console.is_terminal):
        rows.add_row(f"[bold]{chunk.title}")
        makes = {"minipage": engine_kernel, **({} if chunk.shape.kv else peers)}
        if chunk.shape.heads == "12x64":  # FlashInfer compiles for a minute for every head size: one of them is enough
            makes = {name: make for name, make in makes.items() if "FlashInfer" not in name}
        timed = measure(chunk.shape, makes, quick, partial(PromptCase, chunk.num_queries), most_cases=4)
        for name, one in timed.items():
            about = {"chunk": chunk.title, "kernel": name, "operations": chunk.operations}
            if isinstance(one, Timed):
                reached = chunk.operations / one.microseconds * 1e6
                measured.append({**about, **one._asdict(), "share": reached / speed})
                numbers = f"{one.microseconds:,.1f}", f"{reached / 1e12:.0f}", f"{reached / speed:.1%}"
                rows.add_row(name, *numbers, f"{one.error:.1e}")
            else:
                measured.append({**about, "failed": one})
                rows.add_row(name, "failed")
                reasons.append(f"{name}, {chunk.title}: {one}")
        torch.cuda.empty_cache()
    rows.caption = "\n".join(reasons)
    console.print(rows)
    return {"device": device, "operations_per_second": speed, **versions(), "prompts": measured}


def charts(results: dict[str, Any]) -> list[Chart]:
    done = [one for one in results["prompts"] if "failed" not in one]
    kernels, titles = (list(dict.fromkeys(one[what] for one in done)) for what in ("kernel", "chunk"))
    shares = {(one["kernel"], one["chunk"]): 100 * one["share"] for one in done}
    bars = {kernel: [shares.get((kernel, title)) for title in titles] for kernel in kernels}
    return [Chart(f"{results['device']}, prompts", "% of a product", [t.replace(", ", "\n") for t in titles], bars)]


if __name__ == "__main__":
    sys.exit(main("gpu_prompts", "What share of the tensor cores' speed attention of prompts gets.", run, charts))
