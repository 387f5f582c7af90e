"""Asks a server's /health again and again, until there is no more input: `python -m benchmarks.asking HOST:PORT PID`

It is a process of its own, so that nothing but the server makes it wait: a benchmark has other threads, and a garbage
collector that looks at all of its libraries. It prints an Answer for each question, in JSON. PID is the server's, whose
main thread runs the event loop. Only Linux tells how long a thread waited.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

PAUSE = 0.005  # seconds between two questions


class Answer(NamedTuple):
    """All in seconds. What is left of `took` the event loop has slept: it waited for Python's lock, or for its host."""

    took: float
    asker_waited: float  # for a processor, although it was ready to run
    loop_ran: float
    loop_waited: float  # for a processor


def ask(address: str, pid: int) -> list[Answer]:
    connection = HTTPConnection(address)
    answers = []
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        loop_ran, loop_waited = ran_and_waited(f"/proc/{pid}/task/{pid}")
        _, waited = ran_and_waited("/proc/thread-self")
        begin = perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took = perf_counter() - begin
        _, waited_now = ran_and_waited("/proc/thread-self")
        ran_now, loop_waited_now = ran_and_waited(f"/proc/{pid}/task/{pid}")
        answers.append(Answer(took, waited_now - waited, ran_now - loop_ran, loop_waited_now - loop_waited))
    return answers


def ran_and_waited(thread: str) -> tuple[float, float]:
    """The seconds that a thread has run, and those that it would have run if there had been a processor for it."""
    try:
        ran, waited, _times = Path(thread, "schedstat").read_text().split()
    except OSError:
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.asking", description=__doc__.partition("\n")[0])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("pid", type=int, metavar="PID")
    print(json.dumps(ask(**vars(parser.parse_args()))))
