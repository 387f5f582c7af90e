"""Figures 12, 13 and 17: how many requests a second, how many at a time, and how long they take."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from minipage.simulate.figures.jobs import (
    ALL,
    ANSWERS,
    DATASETS,
    RESERVING,
    Job,
    Jobs,
    Results,
    Scale,
    Traffic,
    rate_at,
)  # fmt: skip
from minipage.simulate.paper import SERVERS, Figure, Row, setting
from minipage.simulate.pictures import Picture
from minipage.simulate.serve import TITLES, Memory, Report

Curves = dict[Memory, tuple[float, list[tuple[float, Report]]]]  # the most that is served, and reports by rate
Factors = dict[tuple[Memory, float], list[float]]

# ---- Figure 12: latency at a rate

MODELS = "OPT-13B", "OPT-66B", "OPT-175B"
CLAIMS: dict[Memory, tuple[float, float]] = {"oracle": (1.7, 2.7), "max": (2.7, 8.0)}  # of ShareGPT
FEWER_PLACES = 3, 2  # for Orca (Max) with OPT-66B, whose 9,700 slots are 4 of 2,048
READ_AT = 1.25, 1.5, 2.0, 3.0  # times the latency when hardly anybody is there; at the first, waiting begins
AT_MOST = 0.0  # in their place: the most that is served


def jobs_12(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for model in MODELS:
        for dataset, lengths in DATASETS.items():
            count = scale.requests(600 if dataset == "ShareGPT" else 2500)
            for memory in ALL:
                server, seconds = setting(SERVERS[model], memory), scale.seconds(1800 if dataset == "ShareGPT" else 60)
                job = Job(server, Traffic(lengths), scale.seed, seconds=seconds, num_requests=count)
                jobs[model, dataset, memory] = job.curve
    for places in FEWER_PLACES:
        server = replace(setting(SERVERS["OPT-66B"], "max"), num_slots=2048 * places)
        jobs[places] = Job(server, Traffic(DATASETS["ShareGPT"]), scale.seed, num_requests=scale.requests(600)).most
    return jobs


def figure_12(results: Results) -> Figure:
    figure = Figure("12", "Sustained rates, and normalised latency by rate")
    factors: Factors = defaultdict(list)  # of all models with ShareGPT, by (memory, where it is read)
    static = 0.0
    for model in MODELS:
        for dataset in DATASETS:
            curve: Curves = {memory: results[model, dataset, memory] for memory in ALL}
            most = {memory: highest for memory, (highest, _) in curve.items()}
            figure.rows += [Row(f"{model}, {dataset}: {TITLES[m]}, requests/s", most[m], None) for m in ALL]
            static = max(static, most["paged"] / most["static"])
            for memory, claim in CLAIMS.items():
                ratio, is_claimed = most["paged"] / most[memory], dataset == "ShareGPT"
                what = f"{model}, {dataset}: vLLM / {TITLES[memory]}"
                figure.rows.append(Row(what, ratio, claim if is_claimed else None, tolerance=1 / 3))
                if is_claimed:
                    factors[memory, AT_MOST].append(ratio)
                    for at in READ_AT:
                        factors[memory, at].append(factor_at(curve, memory, at))
            figure.pictures.append(curves(f"{model}, {dataset}", curve))
    figure.rows += [row for memory in CLAIMS for at in (READ_AT[0], AT_MOST) for row in claimed(memory, at, factors)]
    figure.rows.append(
        Row("the most over FasterTransformer", static, 22.0, 1 / 3, "up to 22 times FasterTransformer's rate")
    )
    three, two = (results["OPT-66B", "ShareGPT", "paged"][0] / results[places] for places in FEWER_PLACES)
    read = "; ".join(
        f"{at:g} times, {most_of(factors['max', at]):.1f} and {most_of(factors['oracle', at]):.1f}" for at in READ_AT
    )
    figure.notes += [
        "The paper reads its rates off its curves, at latencies that are similar and that it does not name. Factors "
        "depend on it: who has few places has a queue long before he is full. Here they are read at two places, where "
        f"waiting begins ({READ_AT[0]:g} times the latency of an idle server), and at the most that is served when "
        "there are always more waiting (where waiting times explode, dashed in the pictures). The largest factors over "
        "Orca (Max) and Orca (Oracle), by how many times the latency of an idle server they are read at: "
        f"{read}; at the most that is served, {max(factors['max', AT_MOST]):.1f} and "
        f"{max(factors['oracle', AT_MOST]):.1f}. The smallest factors, those of OPT-175B, are read at the latter only: "
        "its steps get slower by as much as that before anybody waits, because of the many that are in them.",
        "At the most that is served, 8 times Orca (Max) follows from nothing that the paper says. The factor is "
        "largest with OPT-66B, whose 9,700 slots are 4 places of 2,048, or hold 19 requests when paged: 4.9 times as "
        "many. In the paper's Figure 13, with OPT-13B, it is 30.4 to 7, 4.3 times; and a step of few takes no longer "
        f"than one of many, whatever it costs. With 3 places for OPT-66B the factor would be {three:.1f}, with 2 "
        f"{two:.1f}. Two are left if 2,048 slots are reserved for the answer alone, and a buddy allocator rounds them "
        "and the prompt up to 4,096; but then Figure 13 would have 3 requests with OPT-13B, and it has 7.00. The paper "
        "does not say in which of its settings it found 8, at which latency, or how many ran at a time there.",
        "With OPT-175B on Alpaca 60,100 slots hold more than may run at once: then memory does not matter, as the "
        "paper says of this case.",
    ]
    return figure


def claimed(memory: Memory, at: float, factors: Factors) -> list[Row]:
    """The least and the largest factor of the three models; the least only at the most that is served."""
    where = f"read at {at:g} times the latency of an idle server" if at else "at the most that is served"
    low, high = CLAIMS[memory]
    over = f"times {TITLES[memory]}'s rate on ShareGPT"
    why = "The paper does not say at which latency, nor with which model; see below."
    least = Row(
        f"the least over {TITLES[memory]}, {where}", min(factors[memory, at]), low, 1 / 3,
        f"at least {low} {over}: {where}", why,
    )  # fmt: skip
    most = Row(
        f"the most over {TITLES[memory]}, {where}", most_of(factors[memory, at]), high, 1 / 3,
        f"up to {high:g} {over}: {where}", why,
    )  # fmt: skip
    return [most] if at else [least, most]


def factor_at(curve: Curves, memory: Memory, at: float) -> float:
    """vLLM's rate over another's where each reaches `at` times the latency of an idle server; nan if one does not."""
    idle = min(report.normalized_latency for _, points in curve.values() for _, report in points)
    return rate_at(curve["paged"][1], at * idle) / rate_at(curve[memory][1], at * idle)


def most_of(values: list[float]) -> float:
    return max((value for value in values if value == value), default=math.nan)


def curves(title: str, results: Curves) -> Picture:
    series = {
        TITLES[memory]: [(rate, report.normalized_latency) for rate, report in points]
        for memory, (_, points) in results.items()
    }
    knees = {TITLES[memory]: most for memory, (most, _) in results.items()}
    return Picture(title, "requests a second", "normalised latency, s a token", series, y_most=1.0, knees=knees)


# ---- Figure 13: how many run at a time

PAPER_13 = {
    "ShareGPT": (2.0, {"max": 7.00, "pow2": 9.81, "oracle": 13.62, "paged": 30.42}),
    "Alpaca": (30.0, {"max": 7.00, "pow2": 43.24, "oracle": 72.75, "paged": 132.44}),
}


def jobs_13(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for dataset, (rate, batches) in PAPER_13.items():
        seconds = scale.seconds(1200 if dataset == "ShareGPT" else 240)
        for memory in batches:
            server = setting(SERVERS["OPT-13B"], memory)  # type: ignore[arg-type]
            jobs[dataset, memory] = Job(server, Traffic(DATASETS[dataset]), scale.seed, rate, seconds).run
    return jobs


def figure_13(results: Results) -> Figure:
    figure = Figure("13", "Requests at a time, on average (OPT-13B)")
    for dataset, (rate, batches) in PAPER_13.items():
        ours = {memory: results[dataset, memory].mean_batch for memory in batches}
        for memory, paper in batches.items():
            what, claim = (
                f"{dataset} at {rate:g} requests/s, {TITLES[memory]}",
                f"{paper} requests at a time, {dataset}",
            )
            claim = f"{claim}, {TITLES[memory]}"
            figure.rows.append(Row(what, ours[memory], paper, claim=claim))
        names = [TITLES[memory] for memory in batches]
        series = {
            "simulated": [(float(i), ours[memory]) for i, memory in enumerate(batches)],
            "paper": [(float(i), paper) for i, paper in enumerate(batches.values())],
        }
        figure.pictures.append(Picture(f"{dataset}, {rate:g} requests/s", "", "requests", series, "bars", names))
    figure.notes.append(
        "The two bars of vLLM are not evidence: the two constants of the host's time are fitted to them, because the "
        "paper does not say how long a step takes. The other six follow from memory and lengths alone."
    )
    return figure


# ---- Figure 17: a chatbot


def jobs_17(scale: Scale) -> Jobs:
    jobs: Jobs = {}
    for memory in ALL[:-1]:
        job = Job(
            setting(SERVERS["OPT-13B"], memory), Traffic(ANSWERS, is_chat=True), scale.seed,
            seconds=scale.seconds(900), num_requests=scale.requests(400),
        )  # fmt: skip
        jobs[memory] = job.curve
    return jobs


def figure_17(results: Results) -> Figure:
    figure = Figure("17", "A chatbot: prompts of up to 1,024 tokens (OPT-13B)")
    for memory in RESERVING:
        ratio = results["paged"][0] / results[memory][0]
        claim = f"2 times {TITLES[memory]}'s rate with a chatbot"
        figure.rows.append(Row(f"vLLM's sustained rate / {TITLES[memory]}", ratio, 2.0, 1 / 3, claim))
    figure.rows.append(Row("Orca (Oracle) / Orca (Max)", results["oracle"][0] / results["max"][0], 1.0, 1 / 3))
    figure.pictures.append(curves("Chatbot", {memory: results[memory] for memory in ALL[:-1]}))
    figure.notes.append(
        "The paper's prompts are nearly all 1,024 tokens, so a buddy allocator gives everybody 2,048 slots, whatever "
        "was asked for. How long conversations get it does not say; here every fifth begins anew, so some prompts are "
        "short, and Pow2 and Oracle gain a little by it."
    )
    return figure
