"""Is any CUDA graph spoiled while it is captured? `python -m benchmarks.captures`, on a GPU

Engines are made one after the other in one process and answer prompts in batches of several sizes, so that each of them
captures graphs. Meanwhile there is everything that has been known to end a capture: old engines, graphs, events and
arrays of numba in circles of references, which only the garbage collector frees; a low threshold for it; a thread that
allocates, copies and frees. Every text must be the one of the first engine.

It prints how many graphs were captured and how many captures failed, with what, and ends with 1 if any did. There
are 200 engines, or 20 with --quick.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from threading import Event, Thread
from typing import Any

import numpy as np

from benchmarks.measure import main, needed, require_gpu
from minipage import LLM, SamplingParams

with needed():
    import torch

    from minipage.attention.cuda.compat import cuda
    from minipage.worker.gpu import capture as capturing

failures: Counter[str] = Counter()
num_captured = 0


def counted(capture: Any) -> Any:
    """The function `capture`, with its failures noted."""

    def call(*arguments: Any) -> Any:
        global num_captured
        litter()
        try:
            captured = capture(*arguments)
        except Exception as error:
            failures[f"{type(error).__name__}: {str(error).splitlines()[0]}"] += 1
            raise
        num_captured += 1
        return captured

    return call


def litter() -> None:
    """Things on the GPU that only the garbage collector frees."""
    for _ in range(5):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        host = torch.empty(1 << 16, pin_memory=True)
        kept = [graph, stream, torch.cuda.Event(), host.to("cuda", non_blocking=True), host]
        kept += [cuda.to_device(np.zeros(1 << 16)), cuda.stream(), cuda.event()]
        kept.append(kept)


def disturb(stopped: Event) -> None:
    """What another thread of the process may be doing."""
    while not stopped.is_set():
        array = torch.full((1 << 20,), 1.0, device="cuda")  # random numbers would be refused during a capture
        array.sum().item()
        del array
        torch.cuda.empty_cache()


def run(quick: bool) -> dict[str, Any]:
    require_gpu()
    capturing.capture = counted(capturing.capture)
    gc.set_threshold(50, 2, 2)
    stopped = Event()
    thread = Thread(target=disturb, args=(stopped,), daemon=True)
    thread.start()
    params = SamplingParams(max_tokens=12, temperature=0)
    texts: set[tuple[str, ...]] = set()
    for i in range(20 if quick else 200):
        llm = LLM(device="cuda", num_blocks=256, max_num_seqs=8)
        for num_prompts in (1, 3, 8):
            outputs = llm.generate(
                ["To be", "KING:", "ROMEO:", "What is", "Enter", "O", "My lord", "Exit"][:num_prompts], params
            )
        texts.add(tuple(output.outputs[0].text for output in outputs))
        llm.circle = llm  # type: ignore[attr-defined]  (only the garbage collector ends it)
        if (i + 1) % 20 == 0:
            print(f"{i + 1} engines, {num_captured} graphs captured, {sum(failures.values())} failed", flush=True)
    stopped.set()
    thread.join()
    for failure, count in failures.most_common():
        print(f"{count} times {failure}")
    same = "all texts equal" if len(texts) == 1 else f"{len(texts)} different answers"
    print(f"{num_captured} graphs captured, {sum(failures.values())} captures failed, {same}")
    if len(texts) > 1:
        failures[f"{len(texts)} different answers"] += 1
    return {"captured": num_captured, "failures": dict(failures)}


if __name__ == "__main__":
    sys.exit(main("captures", __doc__.partition(" `")[0], run) or bool(failures))
