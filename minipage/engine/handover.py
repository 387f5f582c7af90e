"""Disaggregated prefill: one engine computes a prompt, another says how it goes on.

A long prompt keeps a device busy for a while, and all texts that are being written wait for it. So production systems
let some engines compute prompts only, and others only write (Zhong et al., DistServe, arXiv 2401.09670; Patel et al.,
Splitwise, arXiv 2311.18677). What travels is a block table, and the blocks that it names:

    first engine     table [ 7 | 1 | 3 ]  17 tokens        hand_over(llm, prompt)
                            ▼   ▼   ▼
    shared memory         [ 0 | 1 | 2 ]   K and V          Handover: 17 tokens, 3 blocks, where they are
                            ▼   ▼   ▼
    second engine    table [ 4 | 0 | 9 ]                   take_over(llm, handover)

The second engine has the blocks elsewhere, and that is all that differs: a block table is what makes K and V portable.
It publishes them in its prefix cache, under hashes of its own, and a request with this prompt finds them. What it
still computes is the last token, whose logits are wanted; and without prefix_match_unit=1 all of the last block.

Both engines have the same model, dtype and block size. vLLM calls what travels `kv_transfer_params`, and has connectors
for GPUs of other machines; here it is memory that two processes of one machine share.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import numpy as np

from minipage.attention import KVCache
from minipage.engine.engine import Engine
from minipage.engine.prompts import Prompt
from minipage.engine.request import NextToken
from minipage.errors import ConfigurationError, EngineDeadError, InvalidRequestError, MinipageError, count, shown
from minipage.memory import BlockTable, PrefixCache, blocks_needed
from minipage.sampling import SamplingParams
from minipage.scheduling import Sequence
from minipage.worker.offload import parts

SHARED = Path("/dev/shm")  # files there are in memory only; where it does not exist, any folder will do
CHILD = "from minipage.engine.handover import compute_prompts; compute_prompts()"


@dataclass(frozen=True)
class Handover:
    """A block table on its way; it can be pickled. Its K and V are in memory that processes share, until `discard`."""

    token_ids: list[int]  # of the prompt
    num_blocks: int
    num_bytes: int
    memory: str  # where K and V are: the path of a file
    sizes: str  # what both engines must have in common

    def discard(self) -> None:
        """Give the memory back, whether somebody took over or not."""
        Path(self.memory).unlink(missing_ok=True)


@contextmanager
def elsewhere(make: Callable[[], Engine]) -> Iterator[Callable[[Prompt], Handover]]:
    """An engine in a process of its own, for prompts only; `make` makes it there, such as partial(LLM, **options).

    Yields a function that hands over one prompt after the other. What is raised there is raised here; EngineDeadError,
    if the process has ended.
    """

    asked: Any
    answers: Any

    def prefill(prompt: Any) -> Handover:
        question = pickle.dumps(prompt)  # before anything is asked: where this raises, others may go on asking
        try:
            asked.write(question)
            asked.flush()
            answer: Handover | Exception = pickle.load(answers)
        except BaseException as error:
            with suppress(OSError):
                asked.close()  # also if this was interrupted: the next answer is not the one to the next prompt
            if not isinstance(error, EOFError | OSError | ValueError | pickle.UnpicklingError):
                raise
            raise EngineDeadError("the process that computes prompts has ended; start another.") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        asked, answers = process.stdin, process.stdout
        pickle.dump(make, asked)
        try:
            yield prefill
        finally:
            asked.close()  # nobody asks any more, and the process ends
            with suppress(Exception):  # usually there is none
                pickle.load(answers).discard()  # an answer that nobody has waited for


def compute_prompts() -> None:
    """What that process does, until nobody asks any more."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed on the way
    make, llm = pickle.load(asked), None
    with suppress(EOFError):
        while True:
            prompt = pickle.load(asked)
            try:
                llm = llm or make()
                answer: Handover | Exception = hand_over(llm, prompt)
            except MinipageError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


def hand_over(llm: Engine, prompt: Prompt) -> Handover:
    """Compute a prompt, and copy its blocks to shared memory.

    Raises:
        InvalidRequestError: it cannot be served.
        ConfigurationError: the model has sliding windows, and so no table that holds all of a prompt; it runs in
            several ranks; or there is no room in shared memory.
    """
    check(llm)
    # With log probabilities its steps are plain ones: none is planned before its first token is known (overlap.py).
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=0)
    paths: list[str] = []  # the last one counts: after others steps have failed

    with llm._changes.lock:  # nobody else makes a step meanwhile
        request = llm._intake.make_request(llm._free_id(), prompt, params)
        seq = request.group.leader

        def take(tokens: list[NextToken]) -> tuple[list[NextToken], list[Sequence]]:
            """With its only token it is over, and its blocks are anybody's: before that they are copied."""
            paths.append(write(llm.kv_cache, list(seq.block_table)))
            return type(request).take(request, tokens)

        request.is_claimed = True  # its news are ours, and those of others stay
        request.take = take  # type: ignore[method-assign]
        try:
            llm._queue([request])
            while not request.finished:
                llm._changes.make(llm._step, llm._mend)
            if not paths:
                raise InvalidRequestError(f"the prompt could not be computed: {request.error or request.ended_by}.")
            path, num_blocks = paths.pop(), blocks_needed(seq.num_prompt_tokens, llm.block_pool.block_size)
            return Handover(request.prompt_token_ids, num_blocks, os.path.getsize(path), path, sizes(llm))
        finally:
            llm._withdraw([request])
            for path in paths:
                os.unlink(path)


def take_over(llm: Engine, handover: Handover) -> int:
    """Let the prefix cache of an engine find what another one has computed.

    Returns how many blocks it has now: all that there are, or as many as are free.

    Raises ConfigurationError if it has no prefix cache, or is an engine of another kind; or if K and V are gone.
    """
    check(llm)
    if not isinstance(handover, Handover):
        raise ConfigurationError(f"handover is {shown(handover)}; give what hand_over() has returned.")
    cache = llm.scheduler.prefix_cache
    if not isinstance(cache, PrefixCache):
        raise ConfigurationError(
            "what is handed over is found by minipage's own prefix cache: set enable_prefix_caching, and hand in no "
            "scheduler with another."
        )
    if sizes(llm) != handover.sizes:
        raise ConfigurationError(f"this engine has {sizes(llm)}, but what is handed over has {handover.sizes}.")
    if not os.path.isfile(handover.memory) or os.path.getsize(handover.memory) != handover.num_bytes:
        raise ConfigurationError(f"{handover.memory} does not have what is handed over (any more): do it anew.")

    def change() -> int:
        pool = llm.block_pool
        num_tokens = min(len(handover.token_ids), pool.num_free * pool.block_size)
        table = BlockTable(pool)
        table.append(num_tokens)
        rows = np.memmap(handover.memory, np.uint8, "r+").reshape(handover.num_blocks, -1)  # [num_blocks, bytes]
        for array, part in parts(llm.kv_cache, like(llm.kv_cache, rows)):
            for row, block in zip(part, table):
                array[:, block] = row  # [num_layers, block_size, ...]
        cache.publish(table, handover.token_ids)
        num_blocks = len(table)
        table.free()  # they stay, and are found
        return num_blocks

    with llm._changes.lock:
        if overlap := getattr(llm, "overlap", None):
            overlap.land()  # a step that was launched may write to blocks that are free by now
        return llm._changes.make(change, llm._mend)


def write(cache: KVCache, blocks: list[int]) -> str:
    """Copy blocks to shared memory. Returns its path. Raises ConfigurationError if there is no room."""
    row = np.zeros(cache.nbytes // cache.k.shape[1], np.uint8)  # [bytes of a block]
    file, path = mkstemp(prefix="minipage-", dir=SHARED if SHARED.is_dir() else None)
    try:
        with open(file, "wb") as memory:
            for block in blocks:
                for array, part in parts(cache, like(cache, row)):
                    part[...] = array[:, block]  # [num_layers, block_size, ...]
                memory.write(row.data)  # and not through a map of it: that would end the process where it is full
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise ConfigurationError(f"{path} cannot hold {count(len(blocks), 'block')}: {error}.") from error
        raise
    return path


def like(cache: KVCache, rows: Any) -> Any:
    """Rows of bytes, [..., bytes of a block] uint8, in the library of the cache; the memory is the same."""
    if isinstance(cache.k, np.ndarray):
        return rows
    import torch  # the cache is of its tensors, on a GPU

    return torch.from_numpy(rows)


def check(llm: Engine) -> None:
    if llm.runner.kv_groups.parts != (None,):
        raise ConfigurationError(
            "a model with sliding windows has several tables, of which none holds all of a prompt."
        )
    if not llm.runner.is_alone:
        raise ConfigurationError("each rank has K and V of its own heads only; leave out tensor_parallel_size.")


def sizes(llm: Engine) -> str:
    """What must be the same in both engines, in words. That the weights are, whoever starts them sees to."""
    arrays = [f"{tuple(array.shape[2:])} {array.dtype}".replace("torch.", "") for array in llm.kv_cache.arrays]
    return f"blocks of {llm.block_pool.block_size} tokens, {llm.kv_cache.k.shape[0]} layers of {', '.join(arrays)}"
