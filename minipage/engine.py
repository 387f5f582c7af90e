"""The engine: requests in, tokens out, one step after another.

    add_request ─▶ waiting ─▶ [ schedule ─▶ copy ─▶ forward ─▶ sample ─▶ update ] ─▶ outputs
                                   ▲                                        │
                                   └───────── while anything is left ───────┘

`LLM` has the face of vLLM's class of that name, and every part of it can be handed in: a block pool, a block table, a
scheduler or an attention kernel of your own runs the real model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from minipage.attention import KVCache, cpu, reference
from minipage.attention.quantize import kv_dtype
from minipage.batch import PagedAttention
from minipage.compiled_gpt import CompiledGPT
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.model.arrays import place_model
from minipage.model.gpt import GPT
from minipage.model.weights import SHIPPED_MODEL, load_model
from minipage.model_runner import Limits, ModelRunner
from minipage.prompts import Prompt, check_token_ids, list_prompts, read_prompt
from minipage.request import BeamRequest, Choice, NextToken, Request, RequestOutput, SampledRequest
from minipage.sampling import SamplingParams, is_whole
from minipage.scheduling import POLICIES, Policy, Preemption, Scheduler, SequenceGroup, StepPlan
from minipage.scheduling import Sequence as TokenSequence

ATTENTION = {"cpu": cpu.paged_attention, "reference": reference.paged_attention}

NextTokens: TypeAlias = dict[Request, list[NextToken]]  # what each request chose in one step


class LLM:
    """A language model that serves any number of requests at once from paged memory.

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
        swap_space: bytes for swapped blocks, like `memory`; unused with preemption="recompute".
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
            self.runner = ModelRunner(placed, kept_as, find(attention or "cpu", ATTENTION, "attention"))
        else:
            from minipage.gpu import gpu_runner  # what a CPU does not need is not even loaded

            limits = Limits(self.max_model_len, max_num_batched_tokens, max_num_seqs)
            self.runner = gpu_runner(placed, kept_as, attention, limits, gpu_memory_utilization, enforce_eager)
        if scheduler is None:
            if block_pool is None:
                room = self.runner.blocks_that_fit(memory, block_size) if num_blocks is None else num_blocks
                block_pool = BlockPool(room, block_size)
            pool = block_pool
            swap_pool = None
            if preemption != "recompute":
                num_swap_blocks = self.runner.blocks_that_fit(swap_space, pool.block_size)
                swap_pool = BlockPool(num_swap_blocks, pool.block_size)
            scheduler = Scheduler(
                pool,
                max_num_seqs,
                max_num_batched_tokens,
                policy=find(policy, POLICIES, "policy"),
                prefix_cache=PrefixCache(pool) if enable_prefix_caching else None,
                swap_pool=swap_pool,
                preemption=preemption,
                watermark=watermark,
            )
        self.scheduler = scheduler
        self.block_pool = scheduler.block_pool
        self.runner.allocate(scheduler.block_pool, scheduler.swap_pool)
        self.requests: dict[str, Request] = {}  # those not finished yet, by request id
        self._block_table = block_table
        self._seeds = np.random.default_rng(seed)
        self._ids = count()
        self._inbox: dict[str, Request] = {}  # requests with news that nobody has seen yet
        self._streamed: set[str] = set()  # requests whose news belong to a generate() or stream() call

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
        request_ids = self._add_all(prompts, params)
        outputs = {r.request_id: r.output() for r in self._run(request_ids) if r.finished}
        return [outputs[request_id] for request_id in request_ids]

    def stream(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[RequestOutput]:
        """Like `generate`, but yield what is known of a request whenever it has got a token.

        Closing the iterator aborts what is not finished.
        """
        with closing(self._run(self._add_all(prompts, params))) as requests:
            for request in requests:
                yield request.output()

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
        params = params or SamplingParams()
        if not isinstance(cache_salt, str) or not is_whole(priority):
            raise InvalidRequestError(
                f"cache_salt is {cache_salt!r} and must be a string; priority is {priority!r} and "
                "must be a whole number."
            )
        taken = self.requests.keys() | self._inbox.keys()
        if request_id is None:
            request_id = next(name for name in map(str, self._ids) if name not in taken)
        elif request_id in taken:
            raise InvalidRequestError(f"there is a request {request_id!r} already; choose another request_id.")
        text, token_ids = read_prompt(prompt, self.tokenizer, self.config.vocab_size, self.max_model_len)
        check_token_ids(tuple(params.stop_token_ids or ()), self.config.vocab_size, "stop_token_ids")
        stop = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else self.eos_token_ids)
        if params.min_tokens > 0 and len(stop) == self.config.vocab_size:
            raise InvalidRequestError("min_tokens keeps all of stop_token_ids from coming, but they are all there are.")
        width = params.beam_width or params.n
        if width > self.config.vocab_size:
            raise InvalidRequestError(f"beam_width is {width}; this model has only {self.config.vocab_size} tokens.")
        names = [request_id] if params.n == 1 else [f"{request_id}.{i}" for i in range(params.n)]
        sequences = [TokenSequence(name, token_ids, self._block_table(self.block_pool)) for name in names]
        max_num_tokens = self._max_num_tokens(len(token_ids), params)
        group = SequenceGroup(request_id, sequences, max_num_tokens, width, priority, cache_salt)
        self.scheduler.add(group)  # or it is refused, and has used up nothing
        seed = int(self._seeds.integers(2**63)) if params.seed is None else params.seed
        kind = BeamRequest if params.beam_width else SampledRequest
        request = kind(text, params, group, stop, self.tokenizer, seed)
        self.requests[request_id] = request
        return request_id

    def abort(self, request_id: str) -> bool:
        """Stop a request, whatever it is doing; False if it is unknown or finished already."""
        request = self.requests.pop(request_id, None)
        if request is None:
            return False
        self.scheduler.remove(request.group)
        request.abort()
        self._inbox[request_id] = request
        return True

    def reset_prefix_cache(self) -> None:
        """Forget all prefixes, for example because the weights were changed. Whatever is running goes on."""
        if self.scheduler.prefix_cache:
            self.scheduler.prefix_cache.reset()

    def has_unfinished_requests(self) -> bool:
        """Whether another `step` is worth while: something is still to be computed, or to be told."""
        return self.scheduler.has_unfinished or bool(self._inbox.keys() - self._streamed)

    def step(self) -> list[RequestOutput]:
        """Run one step and return what is new of every request that got a token in it, finished or was aborted."""
        self._step()
        return [request.output() for request in self._take_news(self._inbox.keys() - self._streamed)]

    # ---- the five phases of a step

    def _step(self) -> None:
        try:
            plan = self.schedule()
            self.copy(plan)
            if plan.chunks:
                logits = self.forward(plan)
                tokens = self.sample(plan, logits)
                self.update(plan, tokens)
        except BaseException:  # Ctrl-C too: whatever was half done is computed again, and nothing is lost
            self.scheduler.recompute_all()
            for request in [request for request in self.requests.values() if request.finished]:
                self._tell(request)
            raise

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
        ends = [chunk for chunk in plan.chunks if chunk.samplers]
        asking = [(self.requests[c.group.group_id], seq, row) for row, c in enumerate(ends) for seq in c.samplers]
        draws = [(row, request.draw(seq)) for request, seq, row in asking]
        looked_at = {row for request, _, row in asking if request.looks_at_logits}
        tokens = self.runner.sample(logits, [(row, draw) for row, draw in draws if draw])
        seen = self.runner.rows(logits, looked_at)
        choices: dict[Request, list[Choice]] = {}
        next_token = iter(tokens)
        for (request, seq, row), (_, draw) in zip(asking, draws):
            choice = Choice(seq, next(next_token) if draw else None, seen.get(row))
            choices.setdefault(request, []).append(choice)
        return {request: request.choose(its_choices) for request, its_choices in choices.items()}

    def update(self, plan: StepPlan, tokens: NextTokens) -> None:
        """Give the sequences their tokens; those that are finished give their blocks back."""
        self.scheduler.update(plan)
        for request, its_tokens in tokens.items():
            for seq in request.take(its_tokens):
                self.scheduler.finish(request.group, seq)
            self._tell(request)

    # ---- helpers

    def _tell(self, request: Request) -> None:
        """There is news of a request; after the last of it the engine forgets it."""
        self._inbox[request.request_id] = request
        if request.finished:
            del self.requests[request.request_id]

    def _run(self, request_ids: list[str]) -> Generator[Request, None, None]:
        """Step until these requests are done, and yield each whenever it has news."""
        unfinished = dict.fromkeys(request_ids)
        self._streamed |= unfinished.keys()
        try:
            while unfinished:
                news = [request_id for request_id in unfinished if request_id in self._inbox]
                if not news:
                    self._step()
                for request_id in news:
                    request = self._inbox.pop(request_id)
                    if request.finished:
                        del unfinished[request_id]
                        self._streamed.discard(request_id)
                    yield request  # and meanwhile anybody may call step()
        finally:  # closed early, or something failed
            for request_id in unfinished:
                self.abort(request_id)
            self._take_news(unfinished.keys())
            self._streamed -= unfinished.keys()

    def _add_all(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[str]:
        """Add one request for each prompt, or none if one of them is refused."""
        prompts = list_prompts(prompts)
        each = [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InvalidRequestError(
                f"{len(each)} SamplingParams came for {len(prompts)} prompts; give one, or as many."
            )
        request_ids: list[str] = []
        try:
            for prompt, prompt_params in zip(prompts, each, strict=True):
                request_ids.append(self.add_request(prompt, prompt_params))
        except InvalidRequestError as error:
            for request_id in request_ids:
                self.abort(request_id)
            self._take_news(request_ids)
            where = f"prompt {len(request_ids)} of {len(prompts)} (counted from 0): " if len(prompts) > 1 else ""
            raise InvalidRequestError(f"{where}{error}") from None
        return request_ids

    def _take_news(self, request_ids: Collection[str]) -> list[Request]:
        return [self._inbox.pop(request_id) for request_id in list(self._inbox) if request_id in request_ids]

    def _max_num_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """How long a sequence may get: max_tokens more than the prompt, as far as the context goes."""
        if params.max_tokens is not None:
            return min(num_prompt_tokens + params.max_tokens, self.max_model_len)
        slots = self.block_pool.num_blocks * self.block_pool.block_size
        return max(num_prompt_tokens + 1, min(self.max_model_len, slots + 1))  # the last token needs no slot


def find(choice: str | Callable[..., Any], named: dict[str, Any], what: str) -> Any:
    """A function handed in, or the one of that name."""
    if callable(choice):
        return choice
    if choice == "cuda":
        raise ConfigurationError(f"{what} is 'cuda', which needs an NVIDIA GPU and device='cuda'.")
    if choice not in named:
        raise ConfigurationError(f"{what} is {choice!r}; it must be a function or one of {', '.join(named)}.")
    return named[choice]
