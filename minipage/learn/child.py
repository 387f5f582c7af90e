"""The processes in which a learner's code runs: `python -m minipage.learn.child`, started by check.py.

    check.py ──▶ keeper ──fork──▶ cell        one for each exercise: in a session of its own, with limits and a fence
                (this file)       load, judge

The keeper never runs a line of theirs. It watches the cell's clock, reads what comes out of it without keeping much,
and ends it with everything that it may have started. Orders come in as JSON lines, one for each exercise, and verdicts
go out in the same way. A cell has no way to that stream; it reports through a pipe, and a word that only the two know
says that a line is the judge's. Without fork (on Windows) the keeper is the cell, and check.py its only guard.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import re
import secrets
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from minipage.learn import fence, origin, seal
from minipage.learn.course import HERE, Exercise, chosen, lessons
from minipage.learn.judge import FAILED, PASSED, Verdict, graders, judge
from minipage.learn.load import CodeError, describe, load

PATIENCE = 6  # a busy machine may take this many times the limit, where nobody can say who is computing
TICK = 0.05  # seconds between two looks at a cell
MOST_MEMORY = 2 << 30  # bytes that a cell may take, beyond what it begins with
MOST_WRITTEN = 16 << 20  # bytes of one file
MOST_KEPT = 1 << 20  # bytes of what comes out of a cell
CANNOT_SAY = 77  # the exit status of a cell that could not report
MARK = "MINIPAGE_KEEPER"  # in the environment of a keeper, and so of all that comes from it


class Cell:
    """Where one exercise is judged."""

    def __init__(self, exercise: Exercise, path: Path, limit: float, scratch: Path) -> None:
        self.exercise, self.path, self.limit, self.scratch = exercise, path, limit, scratch
        self.token = secrets.token_hex(16)
        self.heard, self.pid, self.status = b"", 0, -1
        self.is_late = False

    # ---- seen from the keeper

    def run(self) -> tuple[Verdict, bool]:
        """The verdict; and whether the file itself never ended loading, so that the next need not try."""
        self.out, far_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.out)
            self.inside(far_end)
        os.close(far_end)
        try:
            self.watch()
        finally:
            self.end()
            os.close(self.out)
        return self.verdict(), self.is_late and not self.said("loaded")

    def watch(self) -> None:
        """Until it has reported, or ended, or used up its time. (The time of its processors, it watches itself.)"""
        start, idle = time.monotonic(), 0.0
        while not self.said("verdict"):
            if select.select([self.out], [], [], TICK)[0]:
                if not (chunk := os.read(self.out, 1 << 16)):
                    return
                self.heard = (self.heard + chunk)[-MOST_KEPT:]
                continue
            if self.has_ended():
                return
            idle += TICK * is_asleep(self.pid)
            if idle > self.limit or time.monotonic() - start > PATIENCE * self.limit:
                self.is_late = True
                self.ask_where()
                return

    def ask_where(self) -> None:
        """It writes the line that it is at, and ends."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGXCPU)
        end = time.monotonic() + 2
        while time.monotonic() < end and select.select([self.out], [], [], TICK)[0]:
            if not (chunk := os.read(self.out, 1 << 16)):
                return
            self.heard = (self.heard + chunk)[-MOST_KEPT:]

    def has_ended(self) -> bool:
        if self.status < 0:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else -1
        return self.status >= 0

    def end(self) -> None:
        """End it, and whatever it has started."""
        time.sleep(0 if self.said("verdict") or self.is_late else TICK)  # it may be about to end in its own way
        ended = self.has_ended()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if not ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]
        end_family(os.environ.get(MARK, ""), but=os.getpid())

    def said(self, word: str) -> str:
        start = f"\n{self.token} {word} ".encode()
        _, found, rest = self.heard.rpartition(start)
        line, complete, _ = rest.partition(b"\n")
        return line.decode(errors="replace") or " " if found and complete else ""

    def verdict(self) -> Verdict:
        if said := self.said("verdict"):
            return Verdict(**json.loads(said))
        number, signalled = self.exercise.number, os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        if self.is_late or signalled == getattr(signal, "SIGXCPU", -1):
            self.is_late = True
            lines = re.findall(rb'File "[^"\n]*exercise\.py", line (\d+)', self.heard)
            line = int(lines[0]) if lines else 0
            message = f"still running after {self.limit:g} s" + (f", at line {line}" if line else "")
            return Verdict(number, FAILED, f"{message}: a loop that does not end, or far too much work.", line)
        if signalled == signal.SIGKILL:
            what = "it was killed, as happens to what takes far too much memory or time"
        elif signalled:
            what = f"Python crashed ({signal.Signals(signalled).name}), as it does when calls are nested without end"
        elif os.WEXITSTATUS(self.status) == CANNOT_SAY:
            what = "it closed the files of the program that runs it"
        else:
            what = "it ended Python itself (os._exit)"
        return Verdict(number, FAILED, f"the check of {number} came to no end: {what}.")

    # ---- inside

    def inside(self, out: int) -> NoReturn:
        """Judge, report and end. What is left behind (threads, exit handlers) does not matter any more."""
        leave, write = os._exit, os.write
        try:
            self.move_in(out)
            verdict = self.judged(lambda: write(out, f"\n{self.token} loaded \n".encode()))
        except BaseException as error:
            verdict = Verdict(self.exercise.number, FAILED, f"the check stopped with {describe(error)}.")
        try:
            report = f"\n{self.token} verdict {json.dumps(verdict.as_dict())}\n".encode()
            while report:
                report = report[write(out, report) :]
        except BaseException:
            leave(CANNOT_SAY)
        leave(0)

    def move_in(self, out: int) -> None:
        os.setsid()
        die_with_parent()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # what it prints itself ends in nothing, or in the verdict
            os.dup2(nowhere, descriptor)
        faulthandler.register(signal.SIGXCPU, file=out, all_threads=True, chain=True)
        limit_resources(self.limit)
        with suppress(OSError):
            os.chdir(self.path.parent)

    def judged(self, on_loaded: Any) -> Verdict:
        """What the judge says, if it is still the judge that was there before, and the work is the learner's own."""
        exercise, lesson = self.exercise, self.exercise.lesson
        called_reference = origin.watch(lesson, self.path)
        known = {id(cls) for cls in origin.subclasses(object)}
        refused = fence.put_up(self.path, self.scratch, secrets_of(self.path))
        as_before, pretenders, judge_it, load_it = seal.take(), origin.pretenders, judge, load
        gc.disable()  # so that classes stay to be looked at, and nothing of theirs runs between these lines
        try:
            solution = load_it(lesson, self.path)
        except CodeError as error:
            verdict = Verdict(exercise.number, FAILED, str(error), error.line)
        else:
            on_loaded()
            if tampered := as_before():
                return caught(exercise, f"this file changes {tampered}, which is not its own.")
            gc.enable()
            verdict = judge_it(exercise, solution)
            gc.disable()
        trick = refused[0] if refused else called_reference()
        trick = trick or (verdict.status == PASSED and pretenders(known, self.path)) or ""
        if tampered := as_before():
            return caught(exercise, f"this file changes {tampered}, which is not its own.")
        return caught(exercise, trick) if trick else verdict


def caught(exercise: Exercise, trick: str) -> Verdict:
    line = re.match(r"line (\d+)", trick)
    return Verdict(exercise.number, FAILED, f"0 points: {trick}", int(line[1]) if line else 0)


def secrets_of(path: Path) -> list[Path]:
    """What a learner's code has no business to read: solutions, graders, the other exercises of all."""
    ours = [*HERE.glob("solutions/*"), *HERE.glob("graders/*")]
    ours += HERE.parents[1].glob("tests/learn/**/*.py")
    theirs = [path.parents[1] / lesson.name / "exercise.py" for lesson in lessons()]
    others = [*path.parents[1].glob("../*/*/exercise.py")]
    return [file for file in [*ours, *theirs, *others] if file.is_file() and not is_same(file, path)]


def is_same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except OSError:
        return False


# ---- the operating system


def limit_resources(limit: float) -> None:
    import resource

    seconds = max(1, round(limit + 0.49))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_WRITTEN, MOST_WRITTEN))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def die_with_parent() -> None:
    """Linux: a cell whose keeper is killed is killed, too."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def is_asleep(pid: int) -> bool:
    """Linux: no thread of it computes, or waits for a processor. Elsewhere nobody can say."""
    try:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False
    return bool(stats) and all(stat.rpartition(")")[2].split()[0] in "STDt" for stat in stats)


def end_family(mark: str, but: int = 0) -> None:
    """Linux: end every process whose environment has this mark, wherever it has moved to; a fork cannot drop it."""
    wanted = f"{MARK}={mark}\0".encode()
    for _ in range(5 if mark else 0):  # while some are killed, others may fork
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(folder.name) != but and wanted in (folder / "environ").read_bytes() + b"\0":
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return


# ---- the keeper


def main() -> None:
    order = json.loads(sys.stdin.readline())
    path, scratch = Path(order["path"]), Path(order["scratch"])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(out.fileno(), False)
    stuck: Verdict | None = None
    for line in sys.stdin:
        order = json.loads(line)
        [exercise] = chosen([order["number"]])
        graders(exercise.lesson)  # imported once, here
        if stuck:
            verdict = Verdict(exercise.number, FAILED, stuck.message, stuck.line)
        elif hasattr(os, "fork"):
            verdict, is_stuck = Cell(exercise, path, order["limit"], scratch).run()
            stuck = verdict if is_stuck else None
        else:
            verdict = judged_here(exercise, path)
        out.write(json.dumps(verdict.as_dict()) + "\n")
        out.flush()


def judged_here(exercise: Exercise, path: Path) -> Verdict:
    try:
        return judge(exercise, load(exercise.lesson, path))
    except CodeError as error:
        return Verdict(exercise.number, FAILED, str(error), error.line)


if __name__ == "__main__":
    main()
