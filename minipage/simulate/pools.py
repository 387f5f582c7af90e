"""Jobs that know nothing of each other: one after the other, on this machine's processes, or on a cluster by Ray."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from minipage.errors import ConfigurationError

Jobs = dict[Any, Callable[[], Any]]


def run_jobs(
    jobs: Jobs, num_processes: int, on_done: Callable[[], object] = lambda: None, cluster: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """(key, result) of each job, as they finish. What a job raises is raised here, wherever it ran.

    cluster: the address of a Ray cluster, such as "auto" or "ray://host:10001"; "local" starts one for this run, on
    this machine. Its machines need minipage, too.
    """
    if cluster is not None:
        results = on_ray(jobs, num_processes, cluster)
    elif num_processes == 1:
        results = ((key, job()) for key, job in jobs.items())
    else:
        results = in_processes(jobs, num_processes)
    for each in results:
        yield each
        on_done()


def in_processes(jobs: Jobs, num_processes: int) -> Iterator[tuple[Any, Any]]:
    useful = min(num_processes, max(1, len(jobs)))
    with ProcessPoolExecutor(useful, mp_context=get_context("spawn"), initializer=hear_ctrl_c) as pool:
        with deaf_to_ctrl_c():
            futures = {pool.submit(job): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """And so are processes that are started meanwhile: each would tell where in its imports it was."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_ctrl_c() -> None:
    """Let it end this process, without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def on_ray(jobs: Jobs, num_processes: int, cluster: str) -> Iterator[tuple[Any, Any]]:
    """A task each, on one core of whichever machine has one free."""
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(
            "a cluster needs Ray: install it with `pip install 'minipage[ray]'`, or leave out --cluster."
        ) from error
    begun_here = not ray.is_initialized()
    waiting: dict[Any, Any] = {}
    try:
        if begun_here:
            where = {"address": cluster} | ({"num_cpus": num_processes} if cluster == "local" else {})
            ray.init(include_dashboard=False if cluster == "local" else None, log_to_driver=False, **where)
        task = ray.remote(num_cpus=1)(call)
        waiting |= {task.remote(job): key for key, job in jobs.items()}
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                yield waiting.pop(done), ray.get(done)
    except (ConnectionError, ray.exceptions.RayError) as error:
        own = getattr(error, "cause", None)
        if isinstance(own, Exception) and not isinstance(own, ray.exceptions.RayError):
            raise own from None  # a job's, as it would be without a cluster
        raise ConfigurationError(f"the Ray cluster {cluster!r} did not do its work ({error}).") from error
    finally:
        if begun_here:
            ray.shutdown()
        else:
            for left in waiting:  # those that nobody waits for any more
                ray.cancel(left)


def call(job: Callable[[], Any]) -> Any:
    return job()
