"""The processes in which a learner's code runs: `python -m minipage.learn.child`, started by check.py.

    check.py ──▶ keeper ──fork──▶ cell         one for each exercise: in a session of its own, with limits and a fence
                (this file)       load, judge

The keeper never runs a line of theirs. It watches the cell's clock, reads what comes out of it without keeping much,
and ends it with everything that it may have started. Orders come in as JSON lines, one for each exercise, and verdicts
go out in the same way. A cell has no way to that stream; it reports through a pipe, and a word that only the two know
says that a line is the judge's. Without fork (on Windows) the keeper is the cell, and check.py its only guard.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import linecache
import os
import re
import secrets
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NoReturn

from minipage.learn import fence, origin, seal
from minipage.learn.course import HERE, Exercise, chosen
from minipage.learn.hidden import hide
from minipage.learn.judge import FAILED, PASSED, Verdict, graders, judge
from minipage.learn.load import UNREADABLE, CodeError, describe, load, read

if sys.platform != "win32":
    import resource

PATIENCE = 6  # a busy machine may take this many times the limit, where nobody can say who is computing
TICK = 0.05  # seconds between two looks at a cell
MOST_MEMORY = 1 << 30  # bytes that a cell may take, beyond what it begins with
MOST_WRITTEN = 4 << 20  # bytes of one file; fence.py limits how many there are
MOST_KEPT = 1 << 20  # bytes of what comes out of a cell
CANNOT_SAY = 77  # the exit status of a cell that could not report
MARK = "MINIPAGE_KEEPER"  # in the environment of a keeper, and so of all that comes from it


class Cell:
    """Where one exercise is judged."""

    def __init__(
        self, exercise: Exercise, path: Path, limit: float, scratch: Path, before: Before, passed: Sequence[str] = ()
    ) -> None:
        self.exercise, self.path, self.limit, self.scratch = exercise, path, limit, scratch
        self.before = before
        self.passed = passed  # numbers of exercises of this file that have passed: they need not be judged again
        self.token = secrets.token_hex(16)
        self.heard, self.pid, self.status = b"", 0, -1
        self.is_late = self.is_cut = False

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
        while not self.has_reported():
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
        patience = 0 if self.has_reported() or self.is_late else 20
        while not self.has_ended() and patience:  # it may be about to end in its own way
            patience -= 1
            time.sleep(TICK)
        ended = self.has_ended()
        for kill in os.killpg, os.kill:
            with suppress(ProcessLookupError, PermissionError):
                if not ended or kill is os.killpg:
                    kill(self.pid, signal.SIGKILL)
        if not ended:
            self.is_cut = True
            self.status = os.waitpid(self.pid, 0)[1]
        end_family(os.environ.get(MARK, ""), but=os.getpid())

    def has_reported(self) -> bool:
        return bool(self.said("verdict") or self.said("caught"))

    def said(self, word: str) -> str:
        start = f"\n{self.token} {word} ".encode()
        _, found, rest = self.heard.rpartition(start)
        line, complete, _ = rest.partition(b"\n")
        return line.decode(errors="replace") or " " if found and complete else ""

    def verdict(self) -> Verdict:
        if trick := self.said("caught").strip():
            place = re.match(r"line (\d+)", trick)
            return Verdict(self.exercise.number, FAILED, f"0 points: {trick}", int(place[1]) if place else 0)
        with suppress(ValueError, TypeError):
            return Verdict(**json.loads(self.said("verdict")))
        number, signalled = self.exercise.number, os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        if self.is_late or signalled == getattr(signal, "SIGXCPU", -1):
            self.is_late = True
            lines = re.findall(rb'File "[^"\n]*exercise\.py", line (\d+)', self.heard)
            line = int(lines[0]) if lines else 0
            message = f"still running after {self.limit:g} s" + (f", at line {line}" if line else "")
            return Verdict(number, FAILED, f"{message}: something that does not end, or far too much work.", line)
        if self.is_cut or os.waitstatus_to_exitcode(self.status) == CANNOT_SAY:
            what = "it closed the files of the program that runs it"
        elif signalled == signal.SIGKILL:
            what = "it was killed, as happens to what takes far too much memory or time"
        elif signalled in (signal.SIGSEGV, getattr(signal, "SIGBUS", -1)):
            what = f"Python crashed ({signal.Signals(signalled).name}), as it does when calls are nested without end"
        elif signalled == signal.SIGABRT:
            what = "Python crashed (SIGABRT)"
        elif signalled:
            what = f"a signal ended Python ({signal.strsignal(signalled)})"
        else:
            what = "it ended Python itself (os._exit)"
        return Verdict(number, FAILED, f"the check of {number} came to no end: {what}.")

    # ---- inside

    def inside(self, out: int) -> NoReturn:
        """Judge, report and end. What is left behind (threads, exit handlers) does not matter any more."""
        leave, write, quote, trick = os._exit, os.write, encode_basestring_ascii, ""
        try:
            self.move_in(out)
            verdict, trick = self.judged(lambda: write(out, f"\n{self.token} loaded \n".encode()))
        except BaseException as error:
            verdict = Verdict(self.exercise.number, FAILED, f"the check stopped with {describe(error)}.")

        def as_json(fact: Any) -> str:
            """What json.dumps would do; but that is Python, which could have been changed."""
            if type(fact) is list:
                return "[" + ", ".join([as_json(part) for part in fact]) + "]"
            return f"{fact:d}" if type(fact) is int else quote(fact)

        try:
            facts = ", ".join([f"{quote(name)}: {as_json(fact)}" for name, fact in vars(verdict).items()])
            said = f"caught {trick}" if trick else f"verdict {{{facts}}}"
            report = f"\n{self.token} {said}\n".encode()
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
        os.closerange(3, out)  # the way out of the keeper is among them
        os.closerange(out + 1, 1024)
        faulthandler.register(signal.SIGXCPU, file=out, all_threads=True, chain=True)
        limit_resources(self.limit)
        with suppress(OSError):
            os.chdir(self.path.parent)

    def judged(self, on_loaded: Callable[[], object]) -> tuple[Verdict, str]:
        """What the judge says; and what is wrong with that: the judge has been changed, or the work is borrowed."""
        exercise, lesson = self.exercise, self.exercise.lesson
        called_reference = origin.watch(lesson, self.path)
        refused = fence.put_up(self.path, self.scratch, hidden_files(), sources())
        is_ours = False
        with suppress(CodeError, *UNREADABLE):
            is_ours = origin.is_copy(lesson, self.path)  # it has to import what is hidden from others
        if not is_ours:
            hide(origin.given_names(lesson))
        as_before = seal.sealed(self.before.places, *self.before.named[lesson.number])
        pretenders, judge_it, load_it = origin.pretenders, judge, load
        gc.disable()  # so that classes stay to be looked at, and nothing of theirs runs between these lines
        verdict, trick = Verdict(exercise.number, FAILED), ""
        try:
            solution = load_it(lesson, self.path)
        except CodeError as error:
            verdict.message, verdict.line = str(error), error.line
            if "PermissionError" in verdict.message:
                with suppress(Exception):
                    what, line = origin.imported(lesson, self.path)
                    if what:
                        verdict.message, verdict.line = f"0 points: {what}", line
        else:
            on_loaded()
            solution.known_outcomes = {grader: True for number in self.passed for grader in graders(lesson)[number]}
            if not as_before():
                meanwhile: list[str] = []  # what was changed after a call, though it may be put back since

                def after_call() -> None:
                    if what := as_before(only_ours=True):
                        meanwhile.append(what)

                solution.diary.after_call = after_call
                gc.enable()
                verdict = judge_it(exercise, solution)
                gc.disable()
                trick = called_reference()
                if meanwhile:
                    trick = f"this file changes {meanwhile[0]}, which is not its own."
                if verdict.status == PASSED and not trick:
                    trick = pretenders(solution)
        if changed := as_before():
            trick = f"this file changes {changed}, which is not its own."
        return verdict, refused[0] if refused else trick


@cache
def hidden_files() -> list[Path]:
    """What a learner's code has no business to read: solutions and graders."""
    judges = [*HERE.glob("graders/*.py"), *HERE.parent.glob("promises/*.py")]
    ours = [*HERE.glob("solutions/*.py"), *judges, *HERE.parents[1].glob("tests/learn/**/*.py")]
    return [file for file in ours if file.is_file()]


@cache
def sources() -> list[str]:
    """The rest of minipage, with what an exercise is about; and what Python has made of it all."""
    return [str(file) for file in HERE.parent.rglob("*.py*") if file.is_file()]


# ---- the operating system


def limit_resources(limit: float) -> None:
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


class Before:
    """What every cell of a lesson would find out for itself, it inherits: what there was before anybody's code."""

    def __init__(self) -> None:
        self.places = seal.Places()
        self.named: dict[str, tuple[list[seal.Names], list[seal.Names]]] = {}  # by lesson: what places.of() says

    def prepare(self, exercise: Exercise, path: Path) -> None:
        lesson = exercise.lesson
        with suppress(CodeError, ImportError):
            if re.search(r"^ *(import|from) numba\b", read(path), re.MULTILINE):
                import_module("numba")  # a second of work, which each cell would have to do
        hidden_files(), sources(), origin.reference_of(lesson), origin.given_names(lesson)
        for grader in graders(lesson)[exercise.number]:
            if draw := getattr(grader, "draw", None):  # graders/drawn.py
                draw()
        if lesson.number not in self.named:
            self.places.look_around()
            self.named[lesson.number] = self.places.of(f"minipage.learn.graders.test_{lesson.name}")
        linecache.clearcache()
        gc.collect()
        gc.freeze()  # a collection in a cell would touch, and so copy, all that was there before it


def main() -> None:
    """For each order a line with the verdict, and whether the file never ended loading."""
    before = Before()
    fence.load_what_no_hook_hears()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        order = json.loads(line)
        [exercise] = chosen([order["number"]])
        path, limit, scratch = Path(order["path"]), order["limit"], Path(order["scratch"])
        before.prepare(exercise, path)
        if hasattr(os, "fork"):
            verdict, is_stuck = Cell(exercise, path, limit, scratch, before, order["passed"]).run()
            empty(scratch)
        else:
            verdict, is_stuck = judged_here(exercise, path), False
        out.write(json.dumps([verdict.as_dict(), is_stuck]) + "\n")
        out.flush()


def empty(scratch: Path) -> None:
    """Nobody finds what another has left there."""
    for root, folders, _ in os.walk(scratch):
        for name in folders:
            os.chmod(os.path.join(root, name), 0o700)  # it may have been closed
    for thing in scratch.iterdir():
        shutil.rmtree(thing) if thing.is_dir() else thing.unlink()


def judged_here(exercise: Exercise, path: Path) -> Verdict:
    try:
        return judge(exercise, load(exercise.lesson, path))
    except CodeError as error:
        return Verdict(exercise.number, FAILED, str(error), error.line)


if __name__ == "__main__":
    main()
