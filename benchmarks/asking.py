"""Asks a server's /health again and again, until there is no more input: `python -m benchmarks.asking HOST:PORT`

It is a process of its own, so that nothing but the server makes it wait: a benchmark has other threads, and a garbage
collector that looks at all of its libraries. It prints, in JSON, [seconds, waited] of each answer: how long it took,
and how much of that this process waited for a processor itself, although it was ready to run. Only Linux tells that.
"""

from __future__ import annotations

import json
import select
import sys
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter

PAUSE = 0.005  # seconds between two questions


def ask(address: str) -> list[tuple[float, float]]:
    connection = HTTPConnection(address)
    took = []
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        waited, begin = seconds_without_a_processor(), perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took.append((perf_counter() - begin, seconds_without_a_processor() - waited))
    return took


def seconds_without_a_processor() -> float:
    try:
        _ran, waited, _times = Path("/proc/thread-self/schedstat").read_text().split()
    except OSError:
        return 0.0
    return int(waited) / 1e9


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1])))
