"""The process in which a learner's code runs: `python -m minipage.learn.child`, started by check.py.

One JSON object comes in on standard input: which file, which exercises, how long each may take, and a token. Verdicts
go out as JSON lines that carry the token, through a copy of standard output that the learner's code does not know of;
what it prints itself ends in nothing, or in the verdict. A thread watches the clock: when the time of an exercise is
over, it says at which line of the file, and ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from minipage.learn.course import chosen
from minipage.learn.judge import FAILED, Verdict, judge
from minipage.learn.load import CodeError, load

PATIENCE = 6


class Reports:
    """Where the verdicts go."""

    def __init__(self, stream: TextIO, token: str) -> None:
        self.stream, self.token = stream, token

    def send(self, **facts: Any) -> None:
        self.stream.write(json.dumps(facts | {"token": self.token}) + "\n")
        self.stream.flush()


class Watchdog:
    """Ends the process when something takes more than `limit` seconds of computing, or PATIENCE times that of waiting.

    A busy computer may take long for what is quick, and must not spoil anybody's grade.
    """

    def __init__(self, reports: Reports, path: Path, limit: float) -> None:
        self.reports, self.path, self.limit = reports, path, limit
        self.numbers: list[str] = []  # the exercises that are lost if it takes too long
        self.deadline = self.cpu_deadline = float("inf")
        self.main = threading.main_thread().ident or 0
        threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, numbers: list[str]) -> None:
        self.numbers = numbers
        self.deadline = time.monotonic() + PATIENCE * self.limit
        self.cpu_deadline = time.process_time() + self.limit

    def end(self) -> None:
        self.deadline = self.cpu_deadline = float("inf")

    def _watch(self) -> None:
        while time.monotonic() < self.deadline and time.process_time() < self.cpu_deadline:
            time.sleep(0.05)
        line = line_in(sys._current_frames().get(self.main), self.path)
        message = f"still running after {self.limit:g} s" + (f", at line {line}" if line else "")
        for number in self.numbers:
            verdict = Verdict(number, FAILED, f"{message}: a loop that does not end, or far too much work.", line)
            self.reports.send(verdict=verdict.as_dict())
        os._exit(0)


def line_in(frame: FrameType | None, path: Path) -> int:
    while frame is not None:
        if Path(frame.f_code.co_filename) == path:
            return frame.f_lineno
        frame = frame.f_back
    return 0


def main() -> None:
    order = json.loads(sys.stdin.readline())
    reports = Reports(os.fdopen(os.dup(1), "w", encoding="utf-8"), order["token"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    path, exercises = Path(order["path"]), chosen(order["numbers"])
    lesson = exercises[0].lesson
    watchdog = Watchdog(reports, path, order["limit"])
    watchdog.begin([exercise.number for exercise in exercises])
    try:
        solution = load(lesson, path)
    except CodeError as error:
        watchdog.end()
        for exercise in exercises:
            reports.send(verdict=Verdict(exercise.number, FAILED, str(error), error.line).as_dict())
        return
    for exercise in exercises:
        watchdog.begin([exercise.number])
        verdict = judge(exercise, solution)
        watchdog.end()
        reports.send(verdict=verdict.as_dict())


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # whatever the learner's code has left behind (threads, exit handlers) does not matter any more
