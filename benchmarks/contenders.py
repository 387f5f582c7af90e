"""Engines that serve the same requests, each in a process of its own, so that its memory can be told from the others'.

    benchmarks.engine ──── "serve these requests" ────▶ process of a contender: loaded once, waits asleep in between
                      ◀─── when each token came, ──────
                           which it was, peak memory

All requests are handed in at once and tokens are chosen greedily. Every contender has the same weights, the same number
of threads, the same most sequences at a time, and room for the same number of tokens in its KV cache.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

BLOCK_SIZE = 16  # tokens in a block of minipage's, and in a page of transformers'
MAX_NUM_BATCHED_TOKENS = 512  # most tokens in a step


class Prompted(NamedTuple):
    """A request: tokens in, and how many are wanted out."""

    token_ids: list[int]
    num_output_tokens: int


class Limits(NamedTuple):
    """What all contenders are held to."""

    max_num_seqs: int  # sequences at a time; of static batches: in a batch
    kv_tokens: int  # room in the KV cache
    num_threads: int


class Served(NamedTuple):
    """How one contender served the requests of one round."""

    seconds: float  # from the first request handed in to the last token handed out
    token_times: list[list[float]]  # of each request: when its tokens came, in seconds from the beginning
    token_ids: list[list[int]]  # of each request
    kv_waste: float  # share of the KV slots held for somebody that hold nothing he still needs, averaged over steps
    peak_memory: int  # bytes, of the whole process while serving

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))


class Contender(Protocol):
    def serve(self, requests: Sequence[Prompted]) -> tuple[list[list[float]], list[list[int]], float]:
        """Serve them all. Returns perf_counter() of each token, the tokens, and the KV waste."""
        ...


class Minipage:
    """LLM.step() until all is done; NumPy arrays in float32, PyTorch's in bfloat16."""

    def __init__(self, folder: Path, dtype: str, limits: Limits) -> None:
        from minipage import LLM

        self.llm = LLM(
            folder,
            arrays="numpy" if dtype == "float32" else "torch",
            dtype=dtype,
            block_size=BLOCK_SIZE,
            num_blocks=limits.kv_tokens // BLOCK_SIZE,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        )

    def serve(self, requests: Sequence[Prompted]) -> tuple[list[list[float]], list[list[int]], float]:
        from minipage import SamplingParams

        times: dict[str, list[float]] = {}
        tokens: dict[str, list[int]] = {}
        slots = filled = 0
        for i, (prompt, num_tokens) in enumerate(requests):
            params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
            times[self.llm.add_request(prompt, params, request_id=str(i))] = []
        while self.llm.has_unfinished_requests():
            for output in self.llm.step():
                times[output.request_id].append(perf_counter())
                tokens[output.request_id] = output.outputs[0].token_ids
            slots += self.llm.block_pool.num_used * BLOCK_SIZE
            filled += sum(seq.num_computed_tokens for group in self.llm.scheduler.running for seq in group.sequences)
        return list(times.values()), [tokens[name] for name in times], 1 - filled / slots


class ContinuousBatching:
    """transformers' own paged engine, that of `generate_batch`, with the attention that is fastest on a CPU: sdpa."""

    def __init__(self, folder: Path, dtype: str, limits: Limits) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self.model = load(folder, dtype)
        self.settings = {
            "generation_config": GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1, pad_token_id=0),
            "continuous_batching_config": ContinuousBatchingConfig(
                page_size=BLOCK_SIZE,
                num_blocks=limits.kv_tokens // BLOCK_SIZE,
                max_batch_tokens=MAX_NUM_BATCHED_TOKENS,
                max_requests_per_batch=limits.max_num_seqs,
                allow_block_sharing=False,  # no two prompts are alike: it would only cost
            ),
        }

    def serve(self, requests: Sequence[Prompted]) -> tuple[list[list[float]], list[list[int]], float]:
        import torch

        # As generate_batch does it, but that one has a single max_new_tokens for all requests.
        with torch.inference_mode(), self.model.continuous_batching_context_manager(**self.settings) as manager:
            names = [
                manager.add_request(prompt, max_new_tokens=num_tokens, record_timestamps=True)
                for prompt, num_tokens in requests
            ]
            finished: dict[str, Any] = {}
            while len(finished) < len(names) and manager.is_running():
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    finished[result.request_id] = result
        lengths = [n for prompt, out in requests for n in range(len(prompt), len(prompt) + out)]
        slots = sum(-(-n // BLOCK_SIZE) * BLOCK_SIZE for n in lengths)
        served = [finished[name] for name in names]
        return [list(r.timestamps) for r in served], [r.generated_tokens for r in served], 1 - sum(lengths) / slots


class StaticBatches:
    """transformers' `generate`: a batch starts together, padded on the left, and ends with its longest text."""

    def __init__(self, folder: Path, dtype: str, limits: Limits) -> None:
        self.model = load(folder, dtype)
        self.batch_size = limits.max_num_seqs

    def serve(self, requests: Sequence[Prompted]) -> tuple[list[list[float]], list[list[int]], float]:
        import torch
        from transformers import StoppingCriteriaList

        times: list[list[float]] = []
        tokens: list[list[int]] = []
        slots = filled = 0
        for first in range(0, len(requests), self.batch_size):
            batch = requests[first : first + self.batch_size]
            steps: list[float] = []
            width, longest = max(len(r.token_ids) for r in batch), max(r.num_output_tokens for r in batch)
            padding = [width - len(r.token_ids) for r in batch]
            ids = torch.tensor([[0] * pad + r.token_ids for pad, r in zip(padding, batch)])  # [batch, width]
            mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])  # [batch, width]

            def note_time(input_ids: Any, scores: Any, steps: list[float] = steps, **_: Any) -> Any:
                steps.append(perf_counter())
                return torch.zeros(len(input_ids), dtype=torch.bool)  # [batch]; goes on

            with torch.inference_mode():
                out = self.model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=longest,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    stopping_criteria=StoppingCriteriaList([note_time]),
                )  # [batch, width + longest]
            for row, request in zip(out[:, width:].tolist(), batch):
                tokens.append(row[: request.num_output_tokens])
                times.append(steps[: request.num_output_tokens])
            slots += sum(len(batch) * (width + step) for step in range(longest))
            filled += sum(len(r.token_ids) + step for r in batch for step in range(r.num_output_tokens))
        return times, tokens, 1 - filled / slots


def load(folder: Path, dtype: str) -> Any:
    """The model in transformers; for a CPU it has `eager` and `sdpa` attention, of which sdpa is the faster."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()


class Process:
    """A contender in a process of its own."""

    def __init__(
        self, make: Callable[[Path, str, Limits], Contender], folder: Path, dtype: str, limits: Limits
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        os.environ.update(dict.fromkeys(names, str(limits.num_threads)))  # libraries read these when they are loaded
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._process = context.Process(target=work, args=(theirs, make, folder, dtype, limits), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()  # that it is ready

    def serve(self, requests: Sequence[Prompted]) -> Served:
        self._pipe.send(requests)
        served: Served = self._receive()
        return served

    def close(self) -> None:
        self._pipe.close()  # the process sees it and ends
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise OSError("a contender's process has died; it may have been short of memory.") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def work(pipe: Any, make: Callable[[Path, str, Limits], Contender], folder: Path, dtype: str, limits: Limits) -> None:
    """What runs in the process: load, say so, and serve whatever comes until the pipe is closed."""
    from benchmarks.measure import use_threads

    try:
        contender = make(folder, dtype, limits)
        use_threads(limits.num_threads)
        pipe.send("ready")
        while True:
            requests = pipe.recv()
            reset_peak_memory()
            start = perf_counter()
            times, tokens, waste = contender.serve(requests)
            seconds = perf_counter() - start
            token_times = [[time - start for time in its_times] for its_times in times]
            pipe.send(Served(seconds, token_times, tokens, waste, peak_memory()))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(error)


def reset_peak_memory() -> None:
    """Forget what loading took, where the system can: Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most memory this process had at a time, in bytes."""
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return 0  # unknown
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
