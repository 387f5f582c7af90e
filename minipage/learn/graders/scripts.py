"""Random traffic for two schedulers, the same every time, and the smallest piece of it that still goes wrong.

Hypothesis likes its examples small, and a small example never fills a pool, let alone empties one. Here requests ask
for several times what the pool has; what fails is then made smaller, one request and one setting at a time.
"""

from itertools import chain
from random import Random

from minipage.learn.graders.traffic import Request, Setup, run

MOST_TRIES = 300  # to make a failing one smaller


def search(impl, cls, count=120, squeezed=0, **limits):
    """Run `count` scripts; if one goes wrong, the smallest that still does says how."""
    for seed in range(count):
        setup, arrivals = script(Random(seed), many=seed % 10 == 9, **limits)
        if goes_wrong(impl, cls, setup, arrivals, squeezed):
            run(impl, cls, *smallest(impl, cls, setup, arrivals, squeezed), squeezed=squeezed)
            raise AssertionError("The same calls went well the second time. Is something kept outside of `self`?")


def script(rng, preemption=("recompute", "swap", "auto"), num_blocks=(4, 14), many=False):
    """A setup, and the requests that arrive before each of the first steps; `many` small ones, or some."""
    setup = Setup(
        num_blocks=rng.randint(*num_blocks),
        block_size=rng.choice([1, 2, 2, 3, 4]),
        max_num_seqs=rng.randint(2, 8),
        max_num_batched_tokens=rng.choice([2, 3, 4, 6, 8, 12]),
        watermark=rng.choice([0.0, 0.0, 0.3]),
        preemption=rng.choice(preemption),
        num_swap_blocks=rng.choice([3, 6, 12, 24]),
        caching=rng.random() < 0.5,
        policy=rng.choice(["fcfs", "fcfs", "priority"]),
    )
    if setup.preemption != "swap" and rng.random() < 0.5:
        setup = setup._replace(num_swap_blocks=0)
    if many:
        setup = setup._replace(max_num_seqs=16, max_num_batched_tokens=16, num_blocks=2 * setup.num_blocks)
        return setup, [[Request(rng.randint(1, 2), rng.randint(2, 7)) for _ in range(rng.randint(8, 16))]]
    room = setup.num_blocks * setup.block_size
    requests = [request(rng, room) for _ in range(rng.randint(2, 9))]
    arrivals = [[] for _ in range(rng.randint(1, 6))]
    for each in requests:
        arrivals[rng.choice([0, 0, rng.randrange(len(arrivals))])].append(each)
    return setup, arrivals


def request(rng, room):
    n, beams = rng.choice([(1, False)] * 5 + [(2, False), (3, False), (2, True), (3, True)])
    num_prompt, num_generated = rng.randint(1, min(12, max(1, room // 3))), rng.randint(1, 10)
    salt = "salt" if rng.random() < 0.2 else ""
    return Request(num_prompt, num_generated, n, beams, rng.randint(0, 1), rng.randint(0, 1), salt)


def goes_wrong(impl, cls, setup, arrivals, squeezed):
    try:
        run(impl, cls, setup, arrivals, squeezed=squeezed)
    except NotImplementedError:
        raise
    except Exception:
        return True
    return False


def smallest(impl, cls, setup, arrivals, squeezed):
    """Take things away for as long as it still goes wrong."""
    left, again = MOST_TRIES, True
    while again:
        again = False
        for smaller in chain(fewer(setup, arrivals), plainer(setup, arrivals)):
            left -= 1
            if left < 0:
                return setup, arrivals
            if goes_wrong(impl, cls, *smaller, squeezed):
                (setup, arrivals), again = smaller, True
                break
    return setup, arrivals


def fewer(setup, arrivals):
    for i, batch in enumerate(arrivals):
        if not batch:
            yield setup, arrivals[:i] + arrivals[i + 1 :]
        for j in range(len(batch)):
            yield setup, [*arrivals[:i], batch[:j] + batch[j + 1 :], *arrivals[i + 1 :]]


def plainer(setup, arrivals):
    settings = {"caching": False, "policy": "fcfs", "watermark": 0.0, "preemption": "recompute"}
    if setup.preemption != "swap":
        settings["num_swap_blocks"] = 0
    for name, value in settings.items():
        if getattr(setup, name) != value:
            yield setup._replace(**{name: value}), arrivals
    for i, batch in enumerate(arrivals):
        for j, one in enumerate(batch):
            for smaller in smaller_requests(one):
                yield setup, [*arrivals[:i], [*batch[:j], smaller, *batch[j + 1 :]], *arrivals[i + 1 :]]


def smaller_requests(request):
    plain = Request(1, 1)
    for name in ("n", "beams", "which", "priority", "salt"):
        if getattr(request, name) != getattr(plain, name):
            yield request._replace(**{name: getattr(plain, name)})
    for name in ("num_prompt", "num_generated"):
        if (number := getattr(request, name)) > 1:
            yield request._replace(**{name: number - 1})
