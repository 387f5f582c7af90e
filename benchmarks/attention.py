"""How fast is paged attention on the CPU? `python -m benchmarks.attention`

Two yardsticks, measured in the same run, in turn with what they are held against:

* PyTorch's `scaled_dot_product_attention` (SDPA) on K and V that lie contiguously, as no serving engine has them: the
  same numbers, the same lengths. It is given in every form we know, [B, H, T, D] and [B, T, H, D] in memory, grouped
  heads as heads or as queries; ragged batches text by text, for padding them would mean six times the reading. The
  fastest counts.
* What the memory gives: a loop that does nothing but add up a large array, on as many threads.

Decode attention reads every K and V once and computes next to nothing with them, so bytes of K and V over time should
come near the second. Every call reads other blocks than the call before, 128 MiB in all at least, because in a model
there are other layers, and hundreds of megabytes of weights, in between: no cache of the processor knows a block.

    decode         one query for each sequence; batch x context, for fp32, bf16 and int8 blocks of 16 tokens
    ragged         64 sequences of very different lengths, drawn from a mix like ShareGPT's, against 64 equal ones
    block sizes    16 sequences of 1,024 tokens, in blocks of 1 to 256 tokens
    prefill        whole prompts, and a chunk of one
    rungs          the three ways that minipage has: NumPy, plain loops (on one thread), vectors

GPT-2 has 12 heads of 64 numbers; "grouped" has 32 query heads for 8 heads of K and V, of 128 numbers, as in Llama 3 8B.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numba
import numpy as np
from rich.table import Table

from benchmarks.charts import Chart
from benchmarks.measure import Measured, Stopwatch, console, grid, in_turn, main, needed, use_threads
from minipage.attention import cpu, loops, reference
from minipage.attention.quantize import quantize
from minipage.simd.halves import to_bfloat16

with needed():
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

NUM_THREADS = 2
NUM_ROUNDS = {True: 5, False: 11}  # by `quick`
BEYOND_CACHES = 2**27  # bytes that are read before the same are read again
DTYPES = "fp32", "bf16", "int8"
RAGGED = "ragged"
HEADINGS = "batch x context", "K and V", "µs", "x SDPA"  # SDPA in the same dtype, or fp32 if that is int8


class Heads(NamedTuple):
    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int


GPT2 = Heads("GPT-2", 12, 12, 64)
GROUPED = Heads("grouped", 32, 8, 128)


class Case(NamedTuple):
    """A batch of equally many queries in each sequence."""

    heads: Heads
    lengths: tuple[int, ...]  # context of each sequence
    num_queries: int = 1
    block_size: int = 16

    @property
    def num_blocks(self) -> int:
        return sum(-(-length // self.block_size) for length in self.lengths)

    def num_bytes(self, dtype: str) -> int:
        """Of K and V, and of their scales if there are any, that one call has to read."""
        row = self.heads.head_size * {"fp32": 4, "bf16": 2, "int8": 1}[dtype] + (4 if dtype == "int8" else 0)
        return 2 * sum(self.lengths) * self.heads.num_kv_heads * row

    @property
    def flops(self) -> int:
        """Multiplications and additions; a query sees itself and what came before."""
        seen = sum(
            self.num_queries * length - self.num_queries * (self.num_queries - 1) // 2 for length in self.lengths
        )
        return 4 * seen * self.heads.num_heads * self.heads.head_size


def sharegpt_like(num_seqs: int) -> tuple[int, ...]:
    """Contexts in the middle of serving: a prompt, and a part of its answer.

    The means are those of ShareGPT in Kwon et al., 161 and 338 tokens; the shapes are ours: a lognormal prompt (with a
    deviation of 200), a gamma answer (296), of which any part is there.
    """
    rng = np.random.default_rng(0)
    mean, deviation = 161.31, 200.0
    sigma = np.sqrt(np.log(1 + (deviation / mean) ** 2))
    prompts = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, num_seqs)  # [num_seqs]
    shape = (337.99 / 296) ** 2
    answers = rng.gamma(shape, 337.99 / shape, num_seqs) * rng.random(num_seqs)  # [num_seqs]
    return tuple(int(n) for n in np.clip(prompts + answers, 4, 2048))


# ---- the contenders: each gives one function for each copy of the data


class Data:
    """Queries, and K and V in blocks that lie anywhere: as many copies as it takes to read BEYOND_CACHES bytes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        heads, rng = case.heads, np.random.default_rng(0)
        num_seqs = len(case.lengths)
        self.num_copies = -(-BEYOND_CACHES // case.num_bytes("int8")) if case.num_queries == 1 else 1
        self.q = rng.standard_normal((num_seqs * case.num_queries, heads.num_heads, heads.head_size), np.float32)
        self.context_lens = np.array(case.lengths, np.int32)  # [num_seqs]
        self.query_start_loc = np.arange(num_seqs + 1, dtype=np.int32) * case.num_queries  # [num_seqs + 1]
        self.scale = heads.head_size**-0.5

    def cache(self, dtype: str) -> list[np.ndarray]:
        """K and V of all copies, [num_blocks, block_size, KH, D], and their scales; some numbers again and again."""
        heads = self.case.heads
        num_blocks = self.num_copies * self.case.num_blocks
        shape = (num_blocks, self.case.block_size, heads.num_kv_heads, heads.head_size)
        rng = np.random.default_rng(1)
        arrays = []
        for _ in range(2):
            some = rng.standard_normal((4099, heads.head_size), np.float32)  # [rows, D]
            stored: tuple[np.ndarray, ...] = (some,)
            if dtype == "bf16":
                stored = (to_bfloat16(some),)
            if dtype == "int8":
                stored = quantize(some, np.int8)
            arrays.append([np.resize(a, shape[: 3 + (a.ndim == 2)]) for a in stored])
        return [arrays[0][0], arrays[1][0], *(a[1] for a in arrays if len(a) > 1)]

    def tables(self) -> list[np.ndarray]:
        """A block table for each copy, [num_seqs, max_blocks]."""
        case = self.case
        free = np.random.default_rng(2).permutation(self.num_copies * case.num_blocks).astype(np.int32)
        needed = [-(-length // case.block_size) for length in case.lengths]
        tables = []
        start = 0
        for _ in range(self.num_copies):
            table = np.zeros((len(needed), max(needed)), np.int32)  # [num_seqs, max_blocks]
            for row, count in zip(table, needed):
                row[:count] = free[start : start + count]
                start += count
            tables.append(table)
        return tables


def minipage_calls(data: Data, dtype: str, kernel: Callable[..., Any] = cpu.paged_attention) -> list[Callable[[], Any]]:
    k, v, *scales = data.cache(dtype)
    lengths = data.context_lens, data.query_start_loc
    return [
        lambda table=table: kernel(data.q, k, v, table, *lengths, data.scale, *scales)  # type: ignore[misc]
        for table in data.tables()
    ]


def sdpa_calls(data: Data, dtype: str) -> dict[str, list[Callable[[], Any]]]:
    """SDPA on the same K and V, gathered into contiguous memory beforehand; by the form it is given."""
    case, heads = data.case, data.case.heads
    k, v = data.cache(dtype)[:2]
    num_seqs, longest = len(case.lengths), max(case.lengths)
    group = heads.num_heads // heads.num_kv_heads
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    q = (
        torch.from_numpy(data.q).to(torch_dtype).unflatten(0, (num_seqs, -1)).transpose(1, 2).contiguous()
    )  # [B, H, n, D]
    grouped = {"enable_gqa": True} if group > 1 else {}
    mask: torch.Tensor | None = None
    if case.num_queries > 1 and case.num_queries < longest:
        rows = torch.arange(longest - case.num_queries, longest)
        mask = torch.arange(longest)[None, :] <= rows[:, None]  # [n, T]
    causal = {"is_causal": True} if case.num_queries == longest > 1 else {"attn_mask": mask} if mask is not None else {}
    calls: dict[str, list[Callable[[], Any]]] = {}

    def add(form: str, function: Callable[..., Any], *arguments: Any) -> None:
        calls.setdefault(form, []).append(lambda: function(*arguments))

    for table in data.tables():
        rows: list[list[torch.Tensor]] = [[], []]  # K and V of each text, [1, T, KH, D]
        for blocks, length in zip(table, case.lengths):
            for a, texts in zip((k, v), rows):
                text = a[blocks[: -(-length // case.block_size)]].reshape(1, -1, *a.shape[2:])[:, :length]
                texts.append(torch.from_numpy(text).view(torch_dtype))
        if min(case.lengths) == longest:
            rows = [[torch.cat(texts)] for texts in rows]  # [B, T, KH, D]
        parts = q.split([len(a) for a in rows[0]])
        by_token = [[a.transpose(1, 2) for a in texts] for texts in rows]  # each [B, KH, T, D], in memory [B, T, KH, D]
        by_head = [[a.contiguous() for a in texts] for texts in by_token]  # each [B, KH, T, D]
        for layout, (ks, vs) in {"[B, H, T, D]": by_head, "[B, T, H, D]": by_token}.items():
            add(layout, lambda *qkv: [sdpa(*x, **causal, **grouped) for x in zip(*qkv)], parts, ks, vs)
            if group > 1 and case.num_queries == 1:
                as_queries = q.reshape(num_seqs, -1, group, heads.head_size)  # [B, KH, group, D]
                add(f"{layout} grouped", lambda q, ks, vs: [sdpa(q, ks[0], vs[0])], as_queries, ks, vs)
    return calls


@numba.njit(parallel=True, fastmath=True)
def add_up(rows):  # type: ignore[no-untyped-def]
    """The sum of [n, 4096] float32, as fast as they can be read: every thread gets a run of rows."""
    share = rows.shape[0] // numba.get_num_threads()
    total = np.zeros(numba.get_num_threads(), np.float32)
    for thread in numba.prange(numba.get_num_threads()):
        for r in range(thread * share, (thread + 1) * share):
            row = rows[r]
            some = np.float32(0)
            for i in range(4096):
                some += row[i]
            total[thread] += some
    return total.sum()


# ---- measuring


def timer(calls: Sequence[Callable[[], Any]]) -> Callable[[], dict[str, float]]:
    """A round: seconds for one call, over all copies of the data."""

    def round() -> dict[str, float]:
        time.sleep(0.003)  # threads of others, who spin for a while after their work, go to sleep
        calls[-1]()  # and ours wake up
        watch = Stopwatch(perf_counter)
        with watch.running():
            for call in calls:
                call()
        return {"call": watch.seconds / len(calls)}

    return round


class Result(NamedTuple):
    times: dict[str, Measured]  # by contender
    sdpa_form: dict[str, str]  # the fastest, by dtype

    def seconds(self, contender: str) -> float:
        return self.times[contender].median / 1e6


def measure(case: Case, dtypes: Sequence[str], num_rounds: int, what: str) -> Result:
    """All contenders in turn, and what the memory gives."""
    data = Data(case)
    contenders: dict[str, list[Callable[[], Any]]] = {dtype: minipage_calls(data, dtype) for dtype in dtypes}
    for dtype in dtypes:
        if dtype != "int8":
            contenders |= {f"sdpa {dtype} {form}": calls for form, calls in sdpa_calls(data, dtype).items()}
    check(data, contenders)
    contenders |= bandwidth_calls()
    measured = in_turn([timer(calls) for calls in contenders.values()], num_rounds, what)
    times = {name: result["call"] for name, result in zip(contenders, measured)}
    forms = {}
    for dtype in dtypes:
        candidates = [name for name in times if name.startswith(f"sdpa {dtype} ")]
        if candidates:
            fastest = min(candidates, key=lambda name: times[name].median)
            forms[dtype] = fastest.removeprefix(f"sdpa {dtype} ")
            times[f"sdpa {dtype}"] = times[fastest]
    return Result(times, forms)


def bandwidth_calls() -> dict[str, list[Callable[[], Any]]]:
    array = np.ones((2 * BEYOND_CACHES // 4 // 4096, 4096), np.float32)  # [n, 4096]
    tensor = torch.from_numpy(array)
    return {
        "read (numba)": [lambda: add_up(array)],
        "read (torch.sum)": [lambda: tensor.sum()],
        "read (numpy.sum, one thread)": [lambda: array.sum()],
    }


def check(data: Data, contenders: dict[str, list[Callable[[], Any]]]) -> None:
    """That everybody computed the same thing."""
    expected = None
    for name, calls in contenders.items():
        out = calls[0]()
        if name.startswith("sdpa"):
            out = (
                torch.cat(out)
                .float()
                .reshape(len(data.case.lengths), data.case.heads.num_heads, -1, data.case.heads.head_size)
            )
            out = out.transpose(1, 2).reshape(data.q.shape).numpy()
        expected = out if expected is None else expected
        error = np.abs(out - expected).max()
        assert error < (1e-4 if name == "fp32" or "fp32" in name else 5e-2), f"{name} is off by {error}"


def bandwidth(result: Result) -> float:
    """Bytes a second that the best of the reading loops got."""
    return 2 * BEYOND_CACHES / min(result.seconds(name) for name in result.times if name.startswith("read"))


# ---- the questions


def decode(quick: bool) -> list[dict[str, Any]]:
    sizes = [(b, t) for b in (1, 16, 64) for t in (128, 1024, 4096)]
    if quick:
        sizes = [(1, 128), (16, 1024)]
    shapes = [(GPT2, b, t) for b, t in sizes]
    if not quick:
        shapes += [(GROUPED, b, t) for b, t in ((1, 1024), (16, 1024))]
    table = grid("Decode (median ± half the range of the middle half)", [*HEADINGS, "GB/s", "% of reading"])
    results = []
    for heads, batch, context in shapes:
        case = Case(heads, (context,) * batch)
        name = f"{heads.name} {batch} x {context:,}"
        result = measure(case, DTYPES, NUM_ROUNDS[quick], name)
        results.append(record("decode", case, result, batch=batch, context=context))
        add_rows(table, name, results[-1])
    lengths = sharegpt_like(64)
    pair = []
    for kind, lens in ((RAGGED, lengths), ("uniform", (round(sum(lengths) / 64),) * 64)):
        case = Case(GPT2, lens)
        pair.append(record(kind, case, measure(case, DTYPES, NUM_ROUNDS[quick], kind), batch=64, context=kind))
        add_rows(table, f"GPT-2 64 {kind}", pair[-1])
    console.print(table)
    for dtype in DTYPES:
        rates = [entry["minipage"][dtype]["GB/s"] for entry in pair]
        console.print(f"{dtype}: ragged {rates[0]:.1f} GB/s, uniform {rates[1]:.1f} GB/s: {rates[0] / rates[1]:.2f}.")
    return results + pair


def record(kind: str, case: Case, result: Result, **labels: Any) -> dict[str, Any]:
    """A result, fit for JSON, with the ratios that matter."""
    mine = {}
    for dtype in (d for d in DTYPES if d in result.times):
        theirs = f"sdpa {'fp32' if dtype == 'int8' else dtype}"
        rate = case.num_bytes(dtype) / result.seconds(dtype)
        mine[dtype] = {
            **result.times[dtype]._asdict(),
            "GB/s": rate / 1e9,
            "GFLOP/s": case.flops / result.seconds(dtype) / 1e9,
            "share of reading": rate / bandwidth(result),
            "times SDPA": result.seconds(theirs) / result.seconds(dtype) if theirs in result.times else None,
        }
    return {
        "kind": kind,
        "heads": case.heads._asdict(),
        **labels,
        "num_queries": case.num_queries,
        "block_size": case.block_size,
        "mean_context": sum(case.lengths) / len(case.lengths),
        "minipage": mine,
        "sdpa": {d: {"form": form, **result.times[f"sdpa {d}"]._asdict()} for d, form in result.sdpa_form.items()},
        "reading GB/s": bandwidth(result) / 1e9,
        "all": {name: times._asdict() for name, times in result.times.items()},
    }


def add_rows(table: Table, name: str, entry: dict[str, Any]) -> None:
    """What a table says of a result: a row for each dtype."""
    for dtype, mine in entry["minipage"].items():
        spread = (mine["high"] - mine["low"]) / 2
        row = [f"{mine['median']:,.0f} ±{spread:,.0f}", f"{mine['times SDPA']:.2f}"]
        if entry["num_queries"] == 1:
            row += [f"{mine['GB/s']:.1f}", f"{100 * mine['share of reading']:.0f}"]
        else:
            row += [f"{mine['GFLOP/s']:.0f}"]
        table.add_row(name if dtype == DTYPES[0] else "", dtype, *row, end_section=dtype == DTYPES[-1])


def block_sizes(quick: bool) -> list[dict[str, Any]]:
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    cases = {size: Case(GPT2, (1024,) * 16, block_size=size) for size in (sizes[::4] if quick else sizes)}
    calls = {size: minipage_calls(Data(case), "fp32") for size, case in cases.items()}
    measured = in_turn([timer(c) for c in calls.values()], NUM_ROUNDS[quick], "block sizes")
    table = grid(
        "Block sizes: 16 x 1,024, fp32 (median ± half the range of the middle half)", ["block size", "µs", "GB/s"]
    )
    results = []
    for (size, case), times in zip(cases.items(), measured):
        rate = case.num_bytes("fp32") / times["call"].median / 1e3
        table.add_row(f"{size}", str(times["call"]), f"{rate:.1f}")
        results.append({"kind": "block size", "block_size": size, "GB/s": rate, **times["call"]._asdict()})
    console.print(table)
    rates = [entry["GB/s"] for entry in results if entry["block_size"] >= 16]
    console.print(f"Block sizes from 16 on: the slowest has {min(rates) / max(rates):.2f} of the speed of the fastest.")
    return results


def rungs(quick: bool) -> list[dict[str, Any]]:
    """What each step from the page to the processor gains."""
    kernels = {"reference": reference, "loops": loops, "cpu": cpu}
    table = grid("Rungs: GPT-2, fp32, µs (median ± half the range of the middle half)", ["batch x context", *kernels])
    results = []
    for batch, context in ((16, 1024),) if quick else ((1, 128), (16, 1024)):
        data = Data(Case(GPT2, (context,) * batch))
        calls = {name: minipage_calls(data, "fp32", kernel.paged_attention) for name, kernel in kernels.items()}
        check(data, {f"{name} fp32": each for name, each in calls.items()})
        measured = in_turn([timer(each) for each in calls.values()], NUM_ROUNDS[quick], "rungs")
        times = {name: each["call"] for name, each in zip(calls, measured)}
        table.add_row(
            f"{batch} x {context:,}", *(f"{t.median:,.0f} ±{(t.high - t.low) / 2:,.0f}" for t in times.values())
        )
        all_times = {name: each._asdict() for name, each in times.items()}
        results.append({"kind": "rungs", "batch": batch, "context": context, "all": all_times})
    console.print(table)
    return results


def prefill(quick: bool) -> list[dict[str, Any]]:
    shapes = [(GPT2, 1, 128, 128), (GPT2, 1, 1024, 1024), (GPT2, 8, 161, 161), (GPT2, 1, 256, 1024)]
    shapes += [(GROUPED, 1, 1024, 1024)]
    table = grid("Prefill (median ± half the range of the middle half)", [*HEADINGS, "GFLOP/s"])
    results = []
    for heads, batch, queries, context in shapes[:2] if quick else shapes:
        case = Case(heads, (context,) * batch, queries)
        name = f"{heads.name} {batch} x {queries:,} of {context:,}"
        entry = record("prefill", case, measure(case, DTYPES, NUM_ROUNDS[quick], name), batch=batch, context=context)
        add_rows(table, name, entry)
        results.append(entry)
    console.print(table)
    return results


def run(quick: bool) -> list[dict[str, Any]]:
    use_threads(NUM_THREADS)
    add_up(np.ones((4, 4096), np.float32))  # compile
    results = decode(quick) + block_sizes(quick) + prefill(quick) + rungs(quick)
    say_whether_fast_enough(results)
    return results


def say_whether_fast_enough(results: list[dict[str, Any]]) -> None:
    table = grid("Goals", ["", "worst", "goal", ""])

    def goal(name: str, values: Sequence[float], at_least: float) -> None:
        if values:
            table.add_row(name, f"{min(values):.2f}", f"{at_least:g}", "met" if min(values) >= at_least else "not met")

    large = [
        entry["minipage"]
        for entry in results
        if entry["kind"] == "decode" and entry["heads"]["name"] == GPT2.name
        if entry["batch"] >= 16 and entry["context"] >= 1024
    ]
    goal("decode fp32, 16 and 64 x 1K and 4K, x SDPA", [m["fp32"]["times SDPA"] for m in large], 1.1)
    goal("the same: share of reading", [m["fp32"]["share of reading"] for m in large], 0.9)
    goal("the same, int8: x SDPA fp32", [m["int8"]["times SDPA"] for m in large], 2.5)
    rates = [e["GB/s"] for e in results if e["kind"] == "block size" and e["block_size"] >= 16]
    goal("block sizes 16 to 256, slowest / fastest", [min(rates) / max(rates)], 0.9)
    by_kind = {entry["kind"]: entry for entry in results}
    ragged, uniform = by_kind[RAGGED]["minipage"], by_kind["uniform"]["minipage"]
    goal("ragged / uniform, GB/s, fp32", [ragged["fp32"]["GB/s"] / uniform["fp32"]["GB/s"]], 0.9)
    console.print(table)


def charts(results: list[dict[str, Any]]) -> list[Chart]:
    decodes = [e for e in results if e["kind"] in ("decode", RAGGED)]
    labels = [f"{e['heads']['name']}\n{e['batch']} x\n{e['context']}" for e in decodes]
    rates: dict[str, list[float | None]] = {"minipage, paged": [e["minipage"]["fp32"]["GB/s"] for e in decodes]}
    rates["SDPA, contiguous"] = [e["minipage"]["fp32"]["GB/s"] / e["minipage"]["fp32"]["times SDPA"] for e in decodes]
    rates["reading alone"] = [e["reading GB/s"] for e in decodes]
    ratios = {d: [e["minipage"][d]["times SDPA"] for e in decodes] for d in DTYPES}
    sizes = [e for e in results if e["kind"] == "block size"]
    prefills = [e for e in results if e["kind"] == "prefill"]
    return [
        Chart("Decode attention, fp32: K and V read", "GB/s", labels, rates),
        Chart(
            "Decode attention: speed over SDPA (bf16 over SDPA in bf16, int8 over fp32)",
            "times",
            labels,
            ratios,
            goal=1,
        ),
        Chart(
            "Decode attention by block size: 16 x 1,024, fp32",
            "GB/s",
            [str(e["block_size"]) for e in sizes],
            {"minipage, paged": [e["GB/s"] for e in sizes]},
            kind="lines",
        ),
        Chart(
            "Prefill attention: speed over causal SDPA",
            "times",
            [f"{e['heads']['name']}\n{e['batch']} x {e['num_queries']} of {e['context']}" for e in prefills],
            {d: [e["minipage"][d]["times SDPA"] for e in prefills] for d in DTYPES},
            goal=1,
        ),
    ]


if __name__ == "__main__":
    meaning = "Paged attention on the CPU against PyTorch's attention on contiguous K and V, and against the memory."
    sys.exit(main("attention", meaning, run, charts))
