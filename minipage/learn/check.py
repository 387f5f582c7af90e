"""Checks exercises in a process of their own, so that nothing a learner's code does can harm or fake anything here."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from minipage.errors import LearnError
from minipage.learn.child import PATIENCE
from minipage.learn.course import Exercise
from minipage.learn.judge import FAILED, Verdict

LIMIT = 10.0  # seconds for one exercise


def check(exercises: list[Exercise], folder: Path, limit: float = LIMIT) -> Iterator[Verdict]:
    """A verdict for each exercise, in order, as soon as it is known. Raises LearnError if hypothesis is missing."""
    require_hypothesis()
    for lesson, group in groupby(exercises, key=lambda exercise: exercise.lesson):
        left = [exercise.number for exercise in group]
        path = (folder / lesson.name / "exercise.py").resolve()
        while left:  # a process that was cut off has done only some of them
            for verdict in run_child(path, left, limit):
                left.remove(verdict.number)
                yield verdict


def run_child(path: Path, numbers: list[str], limit: float) -> Iterator[Verdict]:
    """Verdicts of one process, at least one. If it ends without a word, the exercise it was at has failed."""
    token = secrets.token_hex(16)
    order = {"path": str(path), "numbers": numbers, "limit": limit, "token": token}
    # -P: nothing is imported from the learner's folder, where a file could have the name of a module of ours.
    command = [sys.executable, "-P", "-m", "minipage.learn.child"]
    home = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": home, "NUMBA_ENABLE_CUDASIM": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        encoding="utf-8", errors="replace", cwd=path.parent if path.parent.exists() else None,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    # The process cuts itself off. This is for one that cannot: it hangs outside of Python.
    alarm = threading.Timer(PATIENCE * limit * (len(numbers) + 1) + 30, process.kill)
    alarm.start()
    done: list[str] = []
    try:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.close()
        for line in process.stdout:
            if verdict := read_report(line, token, set(numbers) - set(done)):
                done.append(verdict.number)
                yield verdict
        trouble = process.stderr.read()  # before the learner's code runs, ours could fail
    except (BrokenPipeError, OSError):
        trouble = ""
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if len(done) < len(numbers) and (trouble or not done):
        number = next(number for number in numbers if number not in done)
        last = trouble.strip().splitlines()[-1:] or ["it ended Python itself (os._exit, or a crash), or hung"]
        yield Verdict(number, FAILED, f"the check of {number} came to no end: {last[0]}.")


def read_report(line: str, token: str, numbers: set[str]) -> Verdict | None:
    """A verdict, if this line is one, and of an exercise that was asked for."""
    try:
        report = json.loads(line)
        if report["token"] == token and report["verdict"]["number"] in numbers:
            return Verdict(**report["verdict"])
    except (ValueError, KeyError, TypeError):
        pass
    return None


def require_hypothesis() -> None:
    from importlib.util import find_spec

    if find_spec("hypothesis") is None:
        raise LearnError(
            "checking needs the package hypothesis, which finds the smallest example that fails. "
            "Install it with: pip install hypothesis"
        )
