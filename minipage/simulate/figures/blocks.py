"""Figures 18b and 19: the size of a block, for running and for preempted requests."""

from __future__ import annotations

from dataclasses import replace

from minipage.simulate.figures.jobs import DATASETS, Job, Jobs, Results, Scale, Traffic
from minipage.simulate.paper import SERVERS, Figure, Row, setting
from minipage.simulate.pictures import Picture
from minipage.simulate.serve import with_block_size
from minipage.simulate.workload import SHAREGPT

# ---- Figures 18b and 19: the size of a block

RATE, CALM, BUSY = 1.8, 1.4, 2.01  # ShareGPT requests a second, of 2.0 that are served at most
BLOCK_SIZES = 1, 2, 4, 8, 16, 32, 64, 128, 256


def jobs_18b(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for size in BLOCK_SIZES:
        server = with_block_size(setting(SERVERS["OPT-13B"], "paged"), size)
        for dataset, name, rate, seconds in (
            ("ShareGPT", "ShareGPT", RATE, 900.0), ("ShareGPT", CALM, CALM, 900.0),
            ("ShareGPT", BUSY, BUSY, 600.0), ("Alpaca", "Alpaca", 30.1, 600.0),
        ):  # fmt: skip
            traffic = Traffic(DATASETS[dataset])
            jobs[name, size] = Job(server, traffic, scale.seed, rate, scale.seconds(seconds)).run
    return jobs


def figure_18b(results: Results) -> Figure:
    figure = Figure("18b", "Latency by the size of a block (OPT-13B)")
    series = {}
    for dataset, good in (("ShareGPT", range(16, 129)), ("Alpaca", range(16, 33))):
        latencies = {size: results[dataset, size].latency.mean for size in BLOCK_SIZES}
        best = min(latencies.values())
        for size, latency in latencies.items():
            figure.rows.append(Row(f"{dataset}, blocks of {size}: mean latency, s", latency, None))
        sizes = f"{dataset}, blocks of {good[0]} to {good[-1]}"
        what, why = "worst of these / best of all", "The paper does not say at which rate it measured; see below."
        claim = f"{sizes} are the best: nothing is faster"
        figure.rows.append(Row(f"{sizes}: {what}", worst_of(results, dataset, good), 1.0, 0.15, claim, why))
        if dataset == "ShareGPT":
            for rate, claim in ((CALM, f"the same at {CALM} requests a second"), (BUSY, "")):
                row = Row(f"{sizes}, at {rate} requests/s: {what}", worst_of(results, rate, good), 1.0, 0.15, claim)
                figure.rows.append(row)
        series[dataset] = [(float(i), latencies[size] / best) for i, size in enumerate(BLOCK_SIZES)]
    names = [str(size) for size in BLOCK_SIZES]
    figure.pictures.append(Picture(figure.title, "tokens in a block", "times the best", series, "bars", names, 4.0))
    figure.notes.append(
        "The paper's cache keeps 16 bytes of a token beside those of the next token of its block, so blocks of fewer "
        "than 4 tokens make the memory deliver what nobody wants: that much is modelled. What small blocks cost the "
        "kernel besides (a lookup for each, warps that idle) is not, so blocks of 4 and 8 are better here than there. "
        "Large blocks waste what lies behind the last token, and the more so the shorter the texts."
        f" At {RATE} ShareGPT requests a second, close to the most that is served, what blocks of 128 waste is missed "
        f"already; at {CALM} it is not, and at {BUSY}, as many as small blocks serve at most, all the more. That "
        "follows from memory alone: half a block of 128 for each of 30 requests is 12 % of it. At which rate it "
        "measured the paper does not say. The authors' scripts (experiments/fig18-b.sh of their artifact, see Figure "
        "12) have one for Alpaca only, 30.1, which is taken here; with ShareGPT those of Figure 19b run blocks of all "
        f"sizes at {BUSY}."
    )
    return figure


def worst_of(results: Results, name: str | float, good: range) -> float:
    """How much longer requests take with the worst of the good sizes than with the best of all."""
    latencies = {size: results[name, size].latency.mean for size in BLOCK_SIZES}
    return float(max(latencies[size] for size in BLOCK_SIZES if size in good) / min(latencies.values()))


def jobs_19(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for size in BLOCK_SIZES:
        for way in ("recompute", "swap"):
            server = with_block_size(setting(SERVERS["OPT-13B"], "paged", preemption=way), size)
            traffic, seconds = Traffic(SHAREGPT), scale.seconds(600)
            jobs[size, way] = Job(server, traffic, scale.seed, 2.0, seconds).run
    return jobs


def figure_19(results: Results) -> Figure:
    figure = Figure("19", "Recomputation and swapping by the size of a block (OPT-13B, ShareGPT)")
    cost = setting(SERVERS["OPT-13B"], "paged").cost
    tokens = 256
    again = {size: 1e3 * replace(cost, block_size=size).recomputation(tokens) for size in BLOCK_SIZES}
    there_and_back = {size: 2e3 * replace(cost, block_size=size).swaps(max(1, tokens // size)) for size in BLOCK_SIZES}
    for size in BLOCK_SIZES:
        figure.rows.append(
            Row(f"{tokens} tokens, blocks of {size}: swapped out and in, ms", there_and_back[size], None)
        )
    flat = max(again.values()) / min(again.values())
    figure.rows += [
        Row(f"{tokens} tokens, recomputed, ms", again[16], None),
        Row(
            "recomputation: longest / shortest over all sizes",
            flat,
            1.0,
            0.1,
            "to recompute takes as long with blocks of every size",
        ),
        Row("swapping with blocks of 1 / with blocks of 64", there_and_back[1] / there_and_back[64], None),
    ]
    middle = max(results[size, "swap"].latency.mean / results[size, "recompute"].latency.mean for size in (16, 32, 64))
    figure.rows.append(
        Row("blocks of 16 to 64: latency with swapping / with recomputation, the worst", middle, 1.0, 1 / 3,
            "with blocks of 16 to 64, to swap and to recompute are alike")
    )  # fmt: skip
    names = [str(size) for size in BLOCK_SIZES]
    times = {
        "recompute": [(float(i), again[size]) for i, size in enumerate(BLOCK_SIZES)],
        "swap out and in": [(float(i), there_and_back[size]) for i, size in enumerate(BLOCK_SIZES)],
    }
    ways = {
        way: [(float(i), results[size, way].latency.mean) for i, size in enumerate(BLOCK_SIZES)]
        for way in ("recompute", "swap")
    }
    figure.pictures += [
        Picture(f"{tokens} tokens of one request", "tokens in a block", "ms", times, "bars", names),
        Picture("At 2 requests/s", "tokens in a block", "mean latency, s", ways, "bars", names),
    ]
    figure.notes.append(
        "Recomputation does not depend on the blocks. Swapping copies K and V of every layer of every block by itself, "
        "as the paper's system did, so small blocks cost a copy's constant time over and over; between 16 and 64 the "
        "two end up alike, as the paper finds."
    )
    return figure
