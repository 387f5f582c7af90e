"""The engine: requests in, tokens out, one step after another.

    add_request ─▶ waiting ─▶ [ schedule ─▶ copy ─▶ forward ─▶ sample ─▶ update ] ─▶ outputs
                                   ▲                                        │
                                   └───────── while anything is left ───────┘

`LLM` has the face of vLLM's class of that name, and every part of it can be handed in: a block pool, a block table, a
scheduler or an attention kernel of your own runs the real model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from minipage.attention import KVCache, cpu, reference
from minipage.attention.quantize import kv_dtype
from minipage.compiled_gpt import CompiledGPT
from minipage.engine.build import check_settings, find, make_scheduler
from minipage.engine.changes import Changes
from minipage.engine.intake import Intake, saying_which
from minipage.engine.prompts import Prompt, list_prompts
from minipage.engine.request import Choice, NextToken, Request, RequestOutput
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.memory import BlockPool, BlockTable
from minipage.model.arrays import place_model
from minipage.model.gpt import GPT
from minipage.model.weights import SHIPPED_MODEL, load_model
from minipage.sampling import SamplingParams, is_whole
from minipage.scheduling import Policy, Preemption, Scheduler, StepPlan
from minipage.scheduling.scheduler import claim
from minipage.worker.batch import PagedAttention
from minipage.worker.runner import Limits, ModelRunner

ATTENTION = {"cpu": cpu.paged_attention, "reference": reference.paged_attention}

Seen = TypeVar("Seen")
NextTokens: TypeAlias = dict[Request, list[NextToken]]  # what each request chose in one step


class LLM:
    """A language model that serves any number of requests at once from paged memory.

    Any thread may use it. They take turns, step by step: one waits while another's step runs, and what several have
    asked for is computed together. Whatever raises, Ctrl-C included, leaves the engine whole: see `changes.py`.

    Args:
        model: "shakespeare" (shipped), a folder in the Hugging Face GPT-2 layout, or a GPT-2 on the hub, e.g. "gpt2".
        block_size: tokens in a block.
        num_blocks: blocks in the pool; or
        memory: bytes for the KV cache, a number or a text such as "512MiB". Default: "1GiB"; with PyTorch on a GPU,
            what is left of gpu_memory_utilization, as far as it can be of use.
        max_model_len: longest sequence in tokens, prompt included. Default: the model's context.
        max_num_seqs: most sequences that run at once.
        max_num_batched_tokens: most tokens computed in one step; longer prompts are cut into chunks.
        device: "cpu", or "cuda" for an NVIDIA GPU.
        arrays: "numpy", or "torch" to run the same model on PyTorch tensors, the default on a GPU, or "cupy".
        dtype: what the model computes in: "float32", or with arrays="torch" also "bfloat16" or "float16".
        attention: "cpu" (numba), "reference" (NumPy), "cuda" on a GPU, or a function with their signature.
        seed: makes the requests that have no seed of their own repeatable, too.
        kv_cache_dtype: "auto", which is `dtype`; or "float32", "bfloat16" or "float16"; or "int8" or "fp8" for several
            times as many blocks in the same memory.
        enable_prefix_caching: begin with what an earlier sequence has computed of the same text.
        preemption: "recompute", "swap" or "auto"; see Scheduler.
        swap_space: bytes for swapped blocks, like `memory`; with 0, preemption is by recomputation.
        policy: "fcfs", "priority", or a function; see minipage/scheduling/policy.py.
        watermark: the share of the pool that is left free when a request is admitted.
        gpu_memory_utilization: the share of a GPU's memory that may be used, by everything together.
        enforce_eager: capture no CUDA graphs; slower, and easier to follow with a profiler.
        block_pool, block_table, scheduler: parts of your own instead of minipage's (`block_table` is a class).

    Raises:
        ModelError: the model cannot be found or read.
        ConfigurationError: another argument makes no sense.
    """

    def __init__(
        self,
        model: str | Path = SHIPPED_MODEL,
        *,
        block_size: int = 16,
        num_blocks: int | None = None,
        memory: int | str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        device: str = "cpu",
        arrays: str | None = None,
        dtype: str = "float32",
        attention: str | PagedAttention | None = None,
        seed: int | None = None,
        kv_cache_dtype: str = "auto",
        enable_prefix_caching: bool = False,
        preemption: Preemption = "recompute",
        swap_space: int | str = "256MiB",
        policy: str | Policy = "fcfs",
        watermark: float = 0.0,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        block_pool: BlockPool | None = None,
        block_table: type[BlockTable] = BlockTable,
        scheduler: Scheduler | None = None,
    ) -> None:
        check_settings(seed, num_blocks, memory, enable_prefix_caching, enforce_eager)
        config, weights, self.tokenizer, self.eos_token_ids = load_model(model)
        self.config = config
        self.max_model_len = config.n_positions if max_model_len is None else max_model_len
        if not (is_whole(self.max_model_len) and 2 <= self.max_model_len <= config.n_positions):
            raise ConfigurationError(
                f"max_model_len is {max_model_len!r}; it must be from 2 to the model's context, {config.n_positions}."
            )
        if scheduler:
            max_num_seqs, max_num_batched_tokens = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        placed = place_model(config, weights, arrays or ("numpy" if device == "cpu" else "torch"), dtype, device)
        kept_as = kv_dtype(dtype if kv_cache_dtype == "auto" else kv_cache_dtype)
        if device == "cpu":
            if arrays in (None, "numpy"):
                placed = CompiledGPT(config, placed.weights)
            self.runner = ModelRunner(placed, kept_as, find(attention, ATTENTION, "attention"))
        else:
            from minipage.worker.gpu import gpu_runner  # what a CPU does not need is not even loaded

            limits = Limits(self.max_model_len, max_num_batched_tokens, max_num_seqs)
            self.runner = gpu_runner(placed, kept_as, attention, limits, gpu_memory_utilization, enforce_eager)
        if scheduler is None:
            scheduler = make_scheduler(
                self.runner,
                max_num_seqs,
                max_num_batched_tokens,
                block_pool=block_pool,
                block_size=block_size,
                num_blocks=num_blocks,
                memory=memory,
                enable_prefix_caching=enable_prefix_caching,
                preemption=preemption,
                swap_space=swap_space,
                policy=policy,
                watermark=watermark,
            )
        claim(scheduler, self, "scheduler")
        self.scheduler = scheduler
        self.block_pool = scheduler.block_pool
        self.runner.allocate(scheduler.block_pool, scheduler.swap_pool)
        self.requests: dict[str, Request] = {}  # those not finished yet, by request id
        parts = self.scheduler.block_pool, block_table
        self._intake = Intake(self.tokenizer, config.vocab_size, self.eos_token_ids, self.max_model_len, *parts)
        self._seeds = np.random.default_rng(seed)
        self._ids = count()
        self._news: dict[Request, None] = {}  # requests with news that nobody has seen yet, in order
        self._claimed: set[Request] = set()  # requests whose news belong to a generate() or stream() call
        self._changes = Changes()
        self._abandoned: list[Request] = []  # nobody waits for them any more; they are ended with the next change

    def __repr__(self) -> str:
        pool = self.block_pool
        return (
            f"<LLM: {len(self.requests)} requests unfinished, "
            f"{pool.num_free} of {pool.num_blocks} blocks of {pool.block_size} tokens free>"
        )

    @property
    def model(self) -> GPT:
        return self.runner.model

    @property
    def kv_cache(self) -> KVCache:
        return self.runner.kv_cache

    @property
    def swap_cache(self) -> KVCache | None:
        return self.runner.swap_cache

    # ---- requests in, results out

    def generate(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Generate for one prompt or many, and return when all are done, in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of either; for more ways see prompts.py.
            params: for all prompts, or one for each. Default: SamplingParams().

        Raises:
            InvalidRequestError: a prompt or its parameters cannot be served; then none of them is.
        """
        requests = self._make_all(prompts, params)
        for _ in self._run(requests, look=lambda request: None):
            pass
        return [request.output() for request in requests]

    def stream(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[RequestOutput]:
        """Like `generate`, but yield what is known of a request whenever it has got a token.

        Closing the iterator aborts what is not finished.
        """
        with closing(self._run(self._make_all(prompts, params), look=Request.output)) as outputs:
            yield from outputs

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request for `step` and return its id.

        Args:
            priority: the smaller, the more urgent, with policy="priority".
            cache_salt: prefixes are shared only between requests of the same salt.

        Raises:
            InvalidRequestError: it cannot be served; nothing else is affected.
        """
        with self._changes.lock:
            if request_id is None:
                request_id = self._free_id()
            request = self._intake.make_request(request_id, prompt, params, priority, cache_salt)
            self._queue([request])
            return request.request_id

    def abort(self, request_id: str) -> bool:
        """Stop a request, whatever it is doing; False if it is unknown or finished already."""

        def change() -> bool:
            request = self.requests.get(request_id)
            if request is not None:
                self._end(request, "abort")
            return request is not None

        return self._changes.make(change, self._mend)

    def reset_prefix_cache(self) -> None:
        """Forget all prefixes, for example because the weights were changed. Whatever is running goes on."""
        with self._changes.lock:
            if self.scheduler.prefix_cache:
                self.scheduler.prefix_cache.reset()

    def has_unfinished_requests(self) -> bool:
        """Whether another `step` is worth while: something is still to be computed, or to be told."""
        with self._changes.lock:
            return bool(self.requests) or not self._claimed.issuperset(self._news)

    def step(self) -> list[RequestOutput]:
        """Run one step and return what is new of every request that got a token in it, finished or was aborted."""
        with self._changes.lock:
            self._changes.make(self._step, self._mend)
            told = {request: None for request in self._news if request not in self._claimed}
            outputs = [request.output() for request in told]
            self._news = {request: None for request in self._news if request not in told}
            return outputs

    # ---- the five phases of a step

    def _step(self) -> None:
        self._end_abandoned()
        plan = self.schedule()
        self.copy(plan)
        if plan.chunks:
            logits = self.forward(plan)
            tokens = self.sample(plan, logits)
            self.update(plan, tokens)

    def schedule(self) -> StepPlan:
        """Choose the tokens of this step and give each a slot."""
        plan = self.scheduler.schedule()
        for chunk in plan.chunks:
            self.requests[chunk.group.group_id].started()
        return plan

    def copy(self, plan: StepPlan) -> None:
        """Move whole blocks before anything is written: save and restore what is swapped, and copy on write."""
        self.runner.copy(plan)

    def forward(self, plan: StepPlan) -> np.ndarray:
        """Run the model; [num_sampled, vocab_size] logits, a row for each chunk that comes to its sequence's end."""
        return self.runner.forward(plan)

    def sample(self, plan: StepPlan, logits: np.ndarray) -> NextTokens:
        """Let every request choose its next tokens; logits: [num_sampled, vocab_size]."""
        ends = [chunk for chunk in plan.chunks if chunk.receivers]
        asking = [(self.requests[c.group.group_id], seq, row) for row, c in enumerate(ends) for seq in c.receivers]
        draws = [(row, request.draw(seq)) for request, seq, row in asking]
        looked_at = {row for request, _, row in asking if request.looks_at_logits}
        tokens = self.runner.sample(logits, [(row, draw) for row, draw in draws if draw])
        seen = self.runner.rows(logits, looked_at)
        choices: dict[Request, list[Choice]] = {}
        next_token = iter(tokens)
        for (request, seq, row), (_, draw) in zip(asking, draws):
            choice = Choice(seq, next(next_token) if draw else None, seen.get(row))
            choices.setdefault(request, []).append(choice)
        return {request: request.choose_or_fail(its_choices) for request, its_choices in choices.items()}

    def update(self, plan: StepPlan, tokens: NextTokens) -> None:
        """Give the sequences their tokens; those that are finished give their blocks back."""
        for request in [request for request in tokens if request.error]:
            self._end(request, "error")
        self.scheduler.update(plan)
        for request, its_tokens in tokens.items():
            if not request.error:
                for seq in request.take(its_tokens):
                    self.scheduler.finish(request.group, seq)
                self._tell(request)

    # ---- helpers

    def _mend(self) -> None:
        for request in list(self.requests.values()):
            request.restore()
            if request.finished:
                self._tell(request)
        self.scheduler.groups = {request.group: None for request in self.requests.values()}
        self.scheduler.recompute_all()

    def _end(self, request: Request, reason: str) -> None:
        cache = self.scheduler.prefix_cache
        if reason == "error" and cache:  # its K and V may be no numbers either, and nobody should find them
            for block in {block for seq in request.group.sequences for block in seq.block_table}:
                cache.forget(block)
        self.scheduler.remove(request.group)
        request.end(reason)
        self._tell(request)

    def _tell(self, request: Request) -> None:
        """There is news of a request; after the last of it the engine forgets it."""
        self._news[request] = None
        if request.finished:
            del self.requests[request.request_id]

    def _run(self, requests: list[Request], look: Callable[[Request], Seen]) -> Generator[Seen, None, None]:
        """Step until these requests are done, and yield a look at each whenever it has news."""
        unfinished = dict.fromkeys(requests)
        try:
            self._claimed.update(requests)
            self._queue(requests)
            while unfinished:
                with self._changes.lock:
                    news = [request for request in unfinished if request in self._news]
                    if not news:
                        self._changes.make(self._step, self._mend)
                for request in news:
                    with self._changes.lock:
                        self._news.pop(request)
                        if request.finished:
                            del unfinished[request]
                        seen = look(request)
                    yield seen  # and meanwhile anybody may call step()
        finally:  # closed early, or something failed
            self._withdraw(requests)

    def _make_all(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        """A request for each prompt, if all can be served."""
        prompts = list_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            each: list[SamplingParams | None] = [params] * len(prompts)
        elif isinstance(params, Iterable):
            each = list(params)
        else:
            raise InvalidRequestError(f"params is {params!r}; give SamplingParams(...), or a list of them.")
        if len(each) != len(prompts):
            raise InvalidRequestError(
                f"{len(each)} SamplingParams came for {len(prompts)} prompts; give one, or as many."
            )
        with self._changes.lock:
            requests: list[Request] = []
            for number, (prompt, prompt_params) in enumerate(zip(prompts, each, strict=True)):
                with saying_which(number, len(prompts)):
                    requests.append(self._intake.make_request(self._free_id(), prompt, prompt_params))
            return requests

    def _free_id(self) -> str:
        return next(name for name in map(str, self._ids) if name not in self.requests)

    def _queue(self, requests: list[Request]) -> None:
        """Let the scheduler know of new requests: of all, or if anything raises, of none."""
        try:
            refusal = self._changes.make(lambda: self._offer(requests), self._mend)
            if refusal:
                raise refusal
        except BaseException:
            self._withdraw(requests)
            raise

    def _offer(self, requests: list[Request]) -> InvalidRequestError | None:
        self._end_abandoned()
        for number, request in enumerate(requests):
            try:
                with saying_which(number, len(requests)):
                    if request.request_id in self.requests:
                        known = request.request_id
                        raise InvalidRequestError(f"there is a request {known!r} already; choose another request_id.")
                    self.scheduler.add(request.group)
            except InvalidRequestError as refusal:  # as it well may, and nothing has changed
                return refusal
            self.requests[request.request_id] = request
        for request in requests:
            if request.params.seed is None:
                request.seed = int(self._seeds.integers(2**63))
        return None

    def _withdraw(self, requests: list[Request]) -> None:
        """Nobody waits for these requests any more.

        An iterator may be closed by the garbage collector, in the middle of a step; then the next one sees to it.
        """
        self._abandoned += requests
        if not self._changes.is_being_made:
            self._changes.make(self._end_abandoned, self._mend)

    def _end_abandoned(self) -> None:
        for request in self._abandoned.copy():
            if self.requests.get(request.request_id) is request:
                self._end(request, "abort")
            self._news.pop(request, None)
            self._claimed.discard(request)
            self._abandoned.remove(request)
