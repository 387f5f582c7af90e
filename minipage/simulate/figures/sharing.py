"""Figures 14, 15 and 16: what sharing blocks saves, and gains."""

from __future__ import annotations

from typing import Any

from minipage.simulate.figures.jobs import ALL, DATASETS, WMT16, Job, Jobs, Results, Scale, Traffic
from minipage.simulate.paper import SERVERS, Figure, Row, setting
from minipage.simulate.pictures import Picture
from minipage.simulate.serve import TITLES, Report
from minipage.simulate.workload import ALPACA

# ---- Figures 14 and 15: several texts of one prompt

SAMPLES = 2, 4, 6
PAPER_14 = {(False, 1): 1.3, (True, 6): 2.3}
PAPER_15 = {(False, 2): 6.09, (False, 4): 8.53, (False, 6): 9.79, (True, 2): 37.56, (True, 4): 53.13, (True, 6): 55.16}
RANGES_15 = {False: (16.2, 30.5), True: (44.3, 66.3)}
KINDS = {False: "parallel sampling", True: "beam search"}
MANY = [(False, 1), *((is_beam, n) for is_beam in (False, True) for n in SAMPLES)]


def jobs_14(scale: Scale) -> Jobs:
    return {
        (is_beam, n, memory): Job(
            setting(SERVERS["OPT-13B"], memory), Traffic(ALPACA, n, is_beam), scale.seed,
            num_requests=scale.requests(500),
        ).most
        for is_beam, n in MANY
        for memory in ALL[:-1]
    }  # fmt: skip


def figure_14(results: Results) -> Figure:
    figure = Figure("14", "Sustained rate with several texts a request, times Orca (Oracle)'s (OPT-13B, Alpaca)")
    ratios = {key: results[*key, "paged"] / results[*key, "oracle"] for key in MANY}
    for (is_beam, n), ratio in ratios.items():
        name = f"{KINDS[is_beam]}, {n}" if n > 1 else "basic sampling"
        paper = PAPER_14.get((is_beam, n))
        claim = f"{paper} times Orca (Oracle)'s rate on Alpaca, {name}" if paper else ""
        figure.rows.append(Row(name, ratio, paper, 1 / 3, claim))
    for is_beam in (False, True):
        series = {
            TITLES[memory]: [(float(i), results[is_beam, n, memory]) for i, n in enumerate(SAMPLES)]
            for memory in ALL[:-1]
        }
        names = [f"{KINDS[is_beam]}, {n}" for n in SAMPLES]
        figure.pictures.append(Picture(KINDS[is_beam], "", "requests a second", series, "bars", names))
    figure.notes.append(
        "The paper names the first and the last factor. In between, too, the more is shared the more is gained. In the "
        "baselines who forks copies, and a place is reserved for every text."
    )
    return figure


def jobs_15(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for dataset, lengths in DATASETS.items():
        for is_beam, n in MANY[1:]:
            count = scale.requests(400 if dataset == "Alpaca" else 150)
            count = count // 2 if is_beam else count
            server = setting(SERVERS["OPT-13B"], "paged")
            rate = (25.0 if dataset == "Alpaca" else 1.3) / n
            jobs[dataset, is_beam, n] = Job(server, Traffic(lengths, n, is_beam), scale.seed, rate, count / rate).run
    return jobs


def figure_15(results: Results) -> Figure:
    figure = Figure("15", "Blocks that sharing saves, in % (OPT-13B)")
    for dataset in ("Alpaca", "ShareGPT"):
        for is_beam, n in MANY[1:]:
            report: Report = results[dataset, is_beam, n]
            paper: Any = PAPER_15[is_beam, n] if dataset == "Alpaca" else RANGES_15[is_beam]
            what = f"{dataset}, {KINDS[is_beam]}, {n}"
            saved = " to ".join(map(str, paper)) if isinstance(paper, tuple) else paper
            figure.rows.append(Row(what, 100 * report.saved, paper, 0.15, f"{saved} % of the blocks saved: {what}"))
        series = {
            KINDS[is_beam]: [(float(i), 100 * results[dataset, is_beam, n].saved) for i, n in enumerate(SAMPLES)]
            for is_beam in (False, True)
        }
        figure.pictures.append(
            Picture(dataset, "texts of a request", "% saved", series, "bars", list(map(str, SAMPLES)))
        )
    figure.notes.append(
        "Beams fork and die as the real search decides, but it is given random candidates: how peaked these are "
        "(SPREAD in stand_in.py) was chosen once, for all these bars. All texts of a request have the trace's length."
    )
    return figure


# ---- Figure 16: prefixes that many have in common

PAPER_16 = {80: 1.67, 341: 3.58}


def jobs_16(scale: Scale) -> Jobs:
    server = SERVERS["LLaMA-13B"]
    return {
        (prefix, memory): Job(
            setting(server, memory, enable_prefix_caching=memory == "paged"), Traffic(WMT16, prefix=prefix),
            scale.seed, num_requests=scale.requests(2500),
        ).most
        for prefix in PAPER_16
        for memory in ("paged", "oracle")
    }  # fmt: skip


def figure_16(results: Results) -> Figure:
    figure = Figure("16", "Translation with a common prefix: vLLM's throughput, times Orca (Oracle)'s (LLaMA-13B)")
    for prefix, paper in PAPER_16.items():
        ratio = results[prefix, "paged"] / results[prefix, "oracle"]
        claim = f"{paper} times Orca (Oracle)'s throughput with a common prefix of {prefix} tokens"
        figure.rows.append(Row(f"prefix of {prefix} tokens", ratio, paper, 0.15, claim))
    series = {
        TITLES[memory]: [(float(i), results[prefix, memory]) for i, prefix in enumerate(PAPER_16)]
        for memory in ("paged", "oracle")
    }
    names = [f"{prefix} tokens" for prefix in PAPER_16]
    figure.pictures.append(Picture("WMT16 En-De", "common prefix", "requests a second", series, "bars", names))
    figure.notes.append(
        "The paper does not say how long its sentences are; here 28 tokens in and 38 out, on average. A prefix that "
        "all have in common is read from memory once a step: a layer's part of it stays in the second-level cache."
    )
    return figure
