"""A plan as a table, as JSON, and as a page with a simulated minute."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import Any

from minipage.plan.deployment import Deployment
from minipage.plan.forecast import MINUTE, Forecast
from minipage.simulate.machines import GiB
from minipage.simulate.pictures import Picture, svg

NUM_POINTS = 240  # of a picture


def numbers(deployment: Deployment, forecast: Forecast | None) -> dict[str, Any]:
    """For JSON. Bytes are whole numbers, of one device unless it says otherwise."""
    cost, budget, blocks = deployment.cost, deployment.budget(), deployment.blocks()
    found: dict[str, Any] = {
        "deployment": asdict(deployment),
        "parameters": cost.sizes.num_parameters,
        "weight_bytes": round(cost.weights_on_device),
        "kv_bytes_per_token": cost.kv_bytes_per_token,
        "kv_bytes_per_token_all_devices": cost.kv_bytes_per_token * deployment.tensor_parallel_size,
        "kv_bytes_per_block": deployment.block_bytes,
        "budget": {name: round(value) for name, value in budget._asdict().items()},
        "num_blocks": blocks,
        "num_tokens": blocks * deployment.block_size // len(deployment.groups.windows),
        "blocks_of_max_model_len": deployment.blocks_of(deployment.longest),
        "max_model_len": deployment.longest,
        "maximum_concurrency": deployment.concurrency(),
        "refusal": deployment.refusal(),
    }
    if forecast:
        found |= {
            "fit_on_average": forecast.fit_on_average,
            "fit_reserving": forecast.fit_reserving,
            "waste": forecast.waste,
            "capacity": forecast.capacity,
            "rate": forecast.rate,
            "simulated_seconds": forecast.seconds,
            "minute": forecast.report.numbers(),
            "advice": [asdict(each) for each in forecast.advice],
        }
    return found


def rows(deployment: Deployment, forecast: Forecast | None) -> list[tuple[str, str]]:
    """What is shown, line by line."""
    cost, budget, blocks = deployment.cost, deployment.budget(), deployment.blocks()
    devices = deployment.tensor_parallel_size
    each = " on each device" if devices > 1 else ""
    lines = [
        ("parameters", f"{cost.sizes.num_parameters:,}"),
        (f"weights{each}", gib(budget.weights)),
        (f"a step, and other things{each}", f"{gib(budget.step)}, {gib(budget.other)} (estimated)"),
        (f"K and V of a token{each}", f"{cost.kv_bytes_per_token:,} bytes"),
        (f"left for K and V{each}", gib(blocks * deployment.block_bytes)),
        ("blocks", f"{blocks:,} of {deployment.block_size} tokens: {blocks * deployment.block_size:,} tokens"),
        *window_rows(deployment),
        ("as vLLM says it", deployment.concurrency_line()),
    ]
    if forecast is None:
        return lines
    report = forecast.report
    lines = [
        *lines,
        ("requests that fit, on average", f"{forecast.fit_on_average:,.1f}"),
        ("the same if each reserved the longest", f"{forecast.fit_reserving:,.1f}"),
        ("wasted in last blocks", f"{100 * forecast.waste:.1f} %"),
        ("the most that is served", f"{forecast.capacity:.2f} requests/s"),
    ]
    minute = f"{spell(forecast.seconds)} at {forecast.rate:.3g} requests/s"
    if not report.num_requests:
        return [*lines, (minute, "nobody came")]
    return [
        *lines,
        (minute, f"{report.tokens_per_second:,.0f} tokens/s"),
        ("  running at a time", f"{report.mean_batch:.1f}, in {100 * report.mean_used:.0f} % of the blocks"),
        ("  preemptions", f"{report.num_preemptions} in {report.num_requests:,} requests"),
        ("  first token, median and 99 %", times(report.time_to_first_token)),
        ("  between tokens, mean", between(report.time_per_output_token)),
        ("  a request, mean", f"{report.latency.mean:.2f} s"),
    ]


def spell(seconds: float) -> str:
    """What was simulated."""
    return "a minute" if seconds == MINUTE else f"{seconds:.2g} s of a minute"


def window_rows(deployment: Deployment) -> list[tuple[str, str]]:
    """Where layers see a window only: a block is of the layers of one group, and a long text holds few of some."""
    if not deployment.has_windows:
        return []
    groups, longest = deployment.groups, deployment.longest
    return [
        ("groups of layers, each with blocks of its own", f"{len(groups.windows)} of {groups.num_layers} layers"),
        (f"a text of {longest:,} tokens holds, at most", f"{deployment.blocks_of(longest):,} blocks"),
    ]


def advice_lines(deployment: Deployment, forecast: Forecast) -> list[str]:
    """What to change first."""
    if not forecast.advice:
        return ["None of the changes that were tried serves 2 % more."]
    return [f"{each.change}: {each.times:.2f} times as many requests a second" for each in forecast.advice]


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GiB:.2f} GiB"


def times(histogram: Any) -> str:
    return f"{1e3 * histogram.quantile(0.5):,.0f} ms, {1e3 * histogram.quantile(0.99):,.0f} ms"


def between(histogram: Any) -> str:
    return f"{1e3 * histogram.mean:.1f} ms" if histogram.count else "no text has two"


def page(deployment: Deployment, forecast: Forecast) -> str:
    """Complete in itself."""
    table = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows(deployment, forecast)
    )
    advice = "".join(f"<li>{escape(line)}</li>" for line in advice_lines(deployment, forecast))
    refusal = f"<p><strong>{escape(text)}</strong></p>" if (text := deployment.refusal()) else ""
    title = f"{deployment.model} on {deployment.tensor_parallel_size} x {deployment.gpu}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>:root{{color-scheme:light dark}}body{{font:16px/1.5 sans-serif;"
        "max-width:44rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
        f"</style><h1>{escape(title)}</h1>{refusal}<table>{table}</table><h2>What to change first</h2><ul>{advice}</ul>"
        f"<h2>{spell(forecast.seconds).capitalize()} at {forecast.rate:.2f} requests/s</h2>"
        f"{''.join(map(svg, pictures(forecast)))}</html>\n"
    )


def pictures(forecast: Forecast) -> list[Picture]:
    """The simulated minute, thinned out."""
    moments = forecast.report.timeline
    kept = moments[:: max(1, len(moments) // NUM_POINTS)]
    requests = {
        "running": [(m.time, float(m.running)) for m in kept],
        "waiting": [(m.time, float(m.waiting)) for m in kept],
    }
    used = {"in use": [(m.time, 100 * m.used) for m in kept]}
    return [
        Picture("Requests", "seconds", "requests", requests),
        Picture("Blocks in use", "seconds", "%", used),
    ]
