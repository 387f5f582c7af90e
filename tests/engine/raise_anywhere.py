"""Raises an exception at one line of the engine, and looks whether anything is lost.

`Lines` is a trace function (sys.settrace) that knows only the engine's own files. In a first run it counts how often
each line comes; in later ones it raises when one of them comes for the n-th time. `serve` drives an engine through
whatever is raised, and checks after each step that it is whole.
"""

import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import minipage
from minipage.errors import InvalidRequestError
from minipage.sampling import SamplingParams

ROOT = Path(minipage.__file__).parent
FILES = {
    str(path)
    for pattern in (
        "engine/[!_bip]*.py", "sampling/*.py", "worker/*.py", "scheduling/*.py", "memory/*.py", "attention/kv_cache.py",
    )
    for path in ROOT.glob(pattern)
}  # fmt: skip


class Lines:
    """Counts lines by (file, line number), and raises `error` the `count`-th time that `place` comes."""

    def __init__(self, place=None, count=1, error=None):
        self.counts, self.place, self.count, self.error = Counter(), place, count, error
        self.has_raised = False

    def watch(self, llm):
        pass

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def call(self, frame, event, arg):
        is_ours = frame.f_code.co_filename in FILES
        # What `step` returns is lost if it is interrupted on its way out, as with any function; so its own lines are
        # left alone, but not those of what it calls.
        return self.line if is_ours and frame.f_code.co_name != "step" else None

    def line(self, frame, event, arg):
        if event == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            self.counts[place] += 1
            if place == self.place and self.counts[place] == self.count:
                self.has_raised = True
                raise self.error
        return self.line


class RandomLines(Lines):
    """Raises at about one of `every` lines, while it mends what it broke, too."""

    def __init__(self, seed, every):
        super().__init__()
        self.random, self.every = random.Random(seed), every

    def watch(self, llm):
        """Python gives up tracing when a trace function raises; so it is begun again where the engine mends."""
        mend = llm._mend

        def watched():
            before = sys.gettrace()
            sys.settrace(self.call)
            try:
                mend()
            finally:
                sys.settrace(before)

        llm._mend = watched

    def line(self, frame, event, arg):
        if event == "line" and self.random.random() * self.every < 1:
            raise self.random.choice([Boom, ZeroDivisionError])
        return self.line


class Boom(BaseException):
    """Like Ctrl-C, it may come anywhere, and nobody may swallow it."""


def serve(*arguments):
    """What `serve_here` does, in a thread of its own: where a trace function raises, Python may take the exception for
    one that is still being handled, until that thread ends."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(serve_here, *arguments).result()


def serve_here(make, requests, lines, abort_at=None):
    """Add the requests, a step after each, and step until all are done; {request id: what it has got}.

    Whatever is raised, the same call is made again. In step number `abort_at` the second request is aborted.
    """
    llm, done, num_raised = make(), {}, 0
    lines.watch(llm)

    def insist(call):
        nonlocal num_raised
        while True:
            try:
                with lines:
                    result = call()
            except (Boom, ZeroDivisionError):
                num_raised += 1
            else:
                if result is False:  # nothing was to do; if who mended was interrupted, that still is
                    return result
                llm.scheduler.check_integrity()
                queued = [g.group_id for q in ("waiting", "running", "swapped") for g in getattr(llm.scheduler, q)]
                assert sorted(queued) == sorted(llm.requests), f"{queued} are queued, {[*llm.requests]} are unfinished"
                return result

    def step():
        for output in insist(llm.step):
            if output.finished:
                done[output.request_id] = told(output)

    def add(number, prompt, params, priority):
        name = f"r{number}"
        try:
            return llm.add_request(prompt, params, name, priority)
        except InvalidRequestError:  # there is one already: the interrupt has come when all was done
            assert num_raised and name in llm.requests
            return False

    for number, (prompt, params, priority) in enumerate(requests):
        insist(lambda request=(number, prompt, params, priority): add(*request))
        step()
    for number in range(5000):
        if not llm.has_unfinished_requests():
            break
        if number == abort_at:
            insist(lambda: llm.abort("r1"))
        step()
    else:
        raise AssertionError("the engine runs and runs, but its requests do not finish")
    for pool in filter(None, (llm.block_pool, llm.scheduler.swap_pool)):
        assert pool.num_free == pool.num_blocks, f"{pool.num_used} blocks are lost"
    assert not llm.requests and llm.step() == [], "something is left"
    return done, num_raised


def told(output):
    """What a request has got in the end; of one that was aborted nothing, as it may have come further or less far."""
    texts = [(text.token_ids, text.text, text.finish_reason, rounded(text.logprobs)) for text in output.outputs]
    return "aborted" if any(reason == "abort" for _, _, reason, _ in texts) else texts


def rounded(logprobs):
    """What is computed again in another batch may differ in the last places, on a GPU at least."""
    return logprobs and [{token: (round(p.logprob, 4), p.rank) for token, p in step.items()} for step in logprobs]


def ways(**more):
    """SamplingParams of many kinds."""
    kinds = [
        {"temperature": 0, "max_tokens": 5},
        {"seed": 1, "max_tokens": 8, "top_p": 0.9},
        {"n": 2, "seed": 2, "max_tokens": 5, "logprobs": 2},
        {"beam_width": 2, "max_tokens": 5},
        {"seed": 3, "max_tokens": 3, "min_tokens": 2, "stop_token_ids": tuple(range(0, 60, 7))},
    ]
    return [SamplingParams(**{"ignore_eos": True, **kind, **more}) for kind in kinds]
