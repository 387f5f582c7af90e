"""Figures 18b and 19: the size of a block, for running and for preempted requests."""

from __future__ import annotations

from dataclasses import replace

from minipage.simulate.figures.jobs import DATASETS, Job, Jobs, Results, Scale, Traffic
from minipage.simulate.paper import SERVERS, Figure, Row, setting
from minipage.simulate.pictures import Picture
from minipage.simulate.serve import with_block_size
from minipage.simulate.workload import SHAREGPT

# ---- Figures 18b and 19: the size of a block

CALM = 1.4  # ShareGPT requests a second, of 1.9 that are served at most
BLOCK_SIZES = 1, 2, 4, 8, 16, 32, 64, 128, 256


def jobs_18b(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for dataset, rate, seconds in (("ShareGPT", 1.8, 900.0), ("Alpaca", 28.0, 120.0)):
        for size in BLOCK_SIZES:
            server = with_block_size(setting(SERVERS["OPT-13B"], "paged"), size)
            traffic = Traffic(DATASETS[dataset])
            jobs[dataset, size] = Job(server, traffic, scale.seed, rate, scale.seconds(seconds)).run
            if dataset == "ShareGPT":
                jobs[CALM, size] = Job(server, traffic, scale.seed, CALM, scale.seconds(seconds)).run
    return jobs


def figure_18b(results: Results) -> Figure:
    figure = Figure("18b", "Latency by the size of a block (OPT-13B)")
    series = {}
    for dataset, good in (("ShareGPT", range(16, 129)), ("Alpaca", range(16, 33))):
        latencies = {size: results[dataset, size].latency.mean for size in BLOCK_SIZES}
        best = min(latencies.values())
        for size, latency in latencies.items():
            figure.rows.append(Row(f"{dataset}, blocks of {size}: mean latency, s", latency, None))
        worst = max(latencies[size] for size in BLOCK_SIZES if size in good) / best
        sizes = f"{dataset}, blocks of {good[0]} to {good[-1]}"
        figure.rows.append(
            Row(f"{sizes}: worst of these / best of all", worst, 1.0, 0.15, f"{sizes} are the best: nothing is faster",
                "The paper does not say at which rate it measured; see below.")
        )  # fmt: skip
        if dataset == "ShareGPT":
            calm = {size: results[CALM, size].latency.mean for size in BLOCK_SIZES}
            worst = max(calm[size] for size in BLOCK_SIZES if size in good) / min(calm.values())
            figure.rows.append(
                Row(f"{sizes}, at {CALM} requests/s: worst of these / best of all", worst, 1.0, 0.15,
                    f"the same at {CALM} requests a second")
            )  # fmt: skip
        series[dataset] = [(float(i), latencies[size] / best) for i, size in enumerate(BLOCK_SIZES)]
    names = [str(size) for size in BLOCK_SIZES]
    figure.pictures.append(Picture(figure.title, "tokens in a block", "times the best", series, "bars", names, 4.0))
    figure.notes.append(
        "The paper's cache keeps 16 bytes of a token beside those of the next token of its block, so blocks of fewer "
        "than 4 tokens make the memory deliver what nobody wants: that much is modelled. What small blocks cost the "
        "kernel besides (a lookup for each, warps that idle) is not, so blocks of 4 and 8 are better here than there. "
        "Large blocks waste what lies behind the last token, and the more so the shorter the texts."
        f" At 1.8 ShareGPT requests a second, close to the most that is served, what blocks of 128 waste is missed "
        f"already; at {CALM} it is not. The paper does not say at which rate it measured."
    )
    return figure


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
