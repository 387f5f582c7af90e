"""LLM.stats() in the format of Prometheus, from a registry that belongs to one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from minipage.engine import offload, speculation, stats

LABELS = ("model_name", "engine")


class EngineCollector(Collector):
    """Looks at an engine's numbers whenever Prometheus asks."""

    def __init__(self, look: Callable[[], dict[str, Any]], model_name: str, engine: str = "0") -> None:
        self.look = look
        self.engine = engine  # of several, which one it is
        self.values = (model_name, engine)

    def collect(self) -> Iterator[Metric]:
        numbers = self.look()
        for metric in (*stats.METRICS, *offload.METRICS, *speculation.METRICS):
            if metric.name in numbers:
                yield self.family(metric, numbers[metric.name])

    def family(self, metric: stats.Metric, value: Any) -> Metric:
        name, meaning = metric.name, metric.meaning
        if metric.kind == "info":
            info = GaugeMetricFamily(name, meaning, labels=[*value, "engine"])
            info.add_metric([*value.values(), self.engine], 1)
            return info
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(name, meaning, labels=LABELS)
            bounds = map(floatToGoString, value.buckets)
            histogram.add_metric(self.values, list(zip(bounds, accumulate(value.counts))), value.sum)
            return histogram
        if isinstance(value, dict):  # requests that ended, by reason
            ended = CounterMetricFamily(name, meaning, labels=[*LABELS, "finished_reason"])
            for reason, number in value.items():
                ended.add_metric([*self.values, reason], number)
            return ended
        if isinstance(value, list):  # drafts that were right, by position
            right = CounterMetricFamily(name, meaning, labels=[*LABELS, "position"])
            for position, number in enumerate(value):
                right.add_metric([*self.values, str(position)], number)
            return right
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, meaning, labels=LABELS)
        family.add_metric(self.values, value)
        return family


def make_registry(look: Callable[[], dict[str, Any]], model_name: str, engine: str = "0") -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(EngineCollector(look, model_name, engine))
    return registry
