"""`LLM`: an engine from options, and texts from prompts. It has the face of vLLM's class of that name.

Every part can be handed in: a block pool, a block table, a scheduler or an attention kernel of your own runs the real
model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipage.engine.build import (
    DEFAULT_SWAP_SPACE,
    check_options,
    context_len,
    find,
    load_runner,
    make_block_pool,
    make_swap_pool,
)
from minipage.engine.conversations import Conversation, chat_prompts
from minipage.engine.engine import Engine
from minipage.engine.features import attach_features, check_ranks
from minipage.engine.intake import Intake, saying_which
from minipage.engine.partial_hits import prefix_cache_for
from minipage.engine.prompts import Prompt, list_prompts
from minipage.engine.request import Request, RequestOutput
from minipage.engine.stats import Stats
from minipage.engine.windows import groups_for, kinds_of_sequences
from minipage.errors import InvalidRequestError, shown
from minipage.memory import BlockPool, BlockTable
from minipage.memory.eviction import EVICTIONS, Eviction
from minipage.model.checkpoint import SHIPPED_MODEL, load_model
from minipage.model.place import Progress
from minipage.sampling import SamplingParams, is_whole
from minipage.scheduling import POLICIES, Policy, Preemption, Scheduler
from minipage.scheduling.first_chunk import scheduler_for
from minipage.worker.batch import PagedAttention
from minipage.worker.runner import Limits, ModelRunner

if TYPE_CHECKING:
    from minipage.engine.kv_events import KVEvents


class LLM(Engine):
    """A language model that serves any number of requests at once from paged memory.

    Args:
        model: "shakespeare" (shipped), "smollm2", a folder in Hugging Face's layout, a GGUF file, or a model on the
            hub, such as "gpt2"; see ARCHITECTURES in model/checkpoint.py.
        block_size: tokens in a block.
        num_blocks: blocks in the pool; or
        memory: bytes for the KV cache, a number or a text such as "512MiB". Default: "1GiB"; on a GPU, what is
            left of gpu_memory_utilization, as far as it can be of use.
        max_model_len: longest sequence in tokens, prompt included. Default: the model's context.
        max_num_seqs: most sequences that run at once.
        max_num_batched_tokens: most tokens computed in one step; longer prompts are cut into chunks.
        device: "cpu", or "cuda" for an NVIDIA GPU.
        arrays: "numpy", or "torch" to run the same model on PyTorch tensors, the default on a GPU, or "cupy". "plain"
            is NumPy without compiled layers.
        dtype: what the model computes in: "float32", or with arrays="torch" also "bfloat16" or "float16", and with
            "cupy" also "float16".
        attention: "cpu" (numba), "loops" (plain numba), "reference" (NumPy), "cuda" on a GPU, or a function with their
            signature. Default: "cpu", and on a GPU "cuda".
        seed: makes the requests that have no seed of their own repeatable, too.
        kv_cache_dtype: "auto", which is `dtype`; or "float32", "bfloat16" or "float16"; or "int8" or "fp8" for several
            times as many blocks in the same memory.
        enable_prefix_caching: begin with what an earlier sequence has computed of the same text.
        prefix_match_unit: tokens in which the end of a known beginning is measured; it divides block_size, and is
            block_size unless given. See minipage/memory/partial_cache.py.
        preemption: "recompute", "swap" or "auto"; see Scheduler.
        swap_space: bytes for swapped blocks, like `memory`; with 0, preemption is by recomputation.
        policy: "fcfs", "priority", or a function; see minipage/scheduling/policy.py.
        eviction: "lru", "tails-first", "lfu", "scan-resistant", or a function; see minipage/memory/eviction.py.
        watermark: the share of the pool that is left free when a request is admitted.
        scheduler_reserve_full_isl: admit a prompt only if all of it fits; with False, as soon as its first chunk does.
            See minipage/scheduling/first_chunk.py.
        gpu_memory_utilization: the share of a GPU's memory that may be used, by everything together.
        enforce_eager: capture no CUDA graphs; slower, and easier to follow with a profiler.
        tensor_parallel_size: processes that have a part each of the model, with its part of K and V: on GPUs, one each.
        quantization: "int8" keeps the weights of matrices in one byte a number, on a CPU; see model/layers/int8.py.
        kv_offloading_size: GiB of a second memory that evicted blocks go to, and come back from; with prefix caching.
        kv_offloading_path: the file that it is in, on a CPU; the next engine goes on with it. See memory/offload.py.
        speculative_config: guess several tokens ahead, such as {"method": "ngram", "num_speculative_tokens": 7}; see
            drafts.py.
        kv_events_config: {"enable_kv_cache_events": True} lets the prefix cache say what it stores and removes, in
            `llm.kv_events`; see kv_events.py.
        async_scheduling: plan the next step while a GPU computes this one. None: on a GPU, yes. While there are beams,
            penalties, structured outputs, log probabilities or right guesses, steps are plain ones; see overlap.py.
        load_format: "auto", or "dummy" for random weights: then a folder needs no more than a config.json.
        hf_overrides: settings that count instead of those in config.json, such as {"sliding_window": 64}. Names that
            nobody knows are warned of: they have no effect.
        block_pool, block_table, scheduler: parts of your own instead of minipage's. `block_table` is a class. So may
            `scheduler` be: then it gets what Scheduler gets. A pool or a scheduler that is ready has sizes of its own,
            and the options that would set them are refused.
        progress: called with (done, total) while the weights come into memory.

    Raises:
        ModelError: the model cannot be found or read.
        ConfigurationError: another argument makes no sense.
    """

    kv_events: KVEvents | None = None

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
        prefix_match_unit: int | None = None,
        preemption: Preemption = "recompute",
        swap_space: int | str = DEFAULT_SWAP_SPACE,
        policy: str | Policy = "fcfs",
        eviction: str | Eviction = "lru",
        watermark: float = 0.0,
        scheduler_reserve_full_isl: bool = True,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        tensor_parallel_size: int = 1,
        quantization: str | None = None,
        kv_offloading_size: float | None = None,
        kv_offloading_path: str | Path | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        kv_events_config: Mapping[str, Any] | None = None,
        async_scheduling: bool | None = None,
        load_format: str = "auto",
        hf_overrides: Mapping[str, Any] | None = None,
        block_pool: BlockPool | None = None,
        block_table: type[BlockTable] = BlockTable,
        scheduler: Scheduler | Callable[..., Scheduler] | None = None,
        progress: Progress | None = None,
    ) -> None:
        given = dict(locals())
        check_options(given, DEFAULTS)
        ready = None if callable(scheduler) else scheduler
        if ready:
            max_num_seqs, max_num_batched_tokens = ready.max_num_seqs, ready.max_num_batched_tokens
        how: dict[str, Any] = dict(
            arrays=arrays, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype, device=device,
            attention=attention, gpu_memory_utilization=gpu_memory_utilization, enforce_eager=enforce_eager,
        )  # fmt: skip
        runner, weights = self._load(given, (max_num_batched_tokens, max_num_seqs), how)
        runner.kv_groups = groups_for(self.config.kv, block_table, ready)
        if not ready:
            if block_pool is None:
                block_pool = make_block_pool(
                    runner, block_size, num_blocks, memory, eviction=find(eviction, EVICTIONS, "eviction")
                )
            preemption, swap_pool = make_swap_pool(runner, block_pool.block_size, preemption, swap_space)
            make = scheduler_for(scheduler if callable(scheduler) else None, scheduler_reserve_full_isl)
            ready = make(
                block_pool,
                max_num_seqs,
                max_num_batched_tokens,
                policy=find(policy, POLICIES, "policy"),
                prefix_cache=prefix_cache_for(block_pool, runner.kv_groups, enable_prefix_caching, prefix_match_unit),
                swap_pool=swap_pool,
                preemption=preemption,
                watermark=watermark,
            )
        kinds = kinds_of_sequences(runner.kv_groups, block_table, ready.max_num_batched_tokens)
        parts = ready.block_pool, *kinds
        intake = Intake(self.tokenizer, self.config.vocab_size, self.eos_token_ids, self.max_model_len, *parts)
        super().__init__(runner, ready, intake, Stats(self.max_model_len), seed)
        origin = self.config, weights, how  # what K and V depend on
        attach_features(self, given, origin, partial(LLM, device=device))

    def _load(self, given: Mapping[str, Any], most: tuple[int, int], how: dict[str, Any]) -> tuple[ModelRunner, Any]:
        """What runs the model, and its weights; a subclass may have a model already. given: the options."""
        source = given["model"], given["load_format"], given["hf_overrides"]
        self.config, weights, self.tokenizer, self.eos_token_ids = load_model(*source)
        self.max_model_len = context_len(given["max_model_len"], self.config.max_model_len)
        limits = Limits(self.max_model_len, *most)
        num_ranks, progress = given["tensor_parallel_size"], given["progress"]
        if is_whole(num_ranks) and num_ranks == 1:
            return load_runner(self.config, weights, limits, progress, **how), weights
        check_ranks(num_ranks)
        from minipage.engine.ranks import make_ranks  # what one process does not need is not even loaded

        source = str(given["model"]), given["load_format"], dict(given["hf_overrides"] or {})
        return make_ranks(num_ranks, source, self.config, weights, limits, how, progress), weights

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
        for news in self._run(requests):
            with self._changes.lock:
                for request in news:
                    del self._news[request]
        return [request.output() for request in requests]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Like `generate`, for one conversation or many: what a chat model says next in each.

        Args:
            messages: such as [{"role": "user", "content": "Hello"}], or a list of such lists.
            add_generation_prompt: end each with what makes the model answer.
            chat_template_kwargs: what its template knows further, such as {"enable_thinking": False}.

        Raises:
            InvalidRequestError: a conversation cannot be served, or the model has no chat template.
            ModelError: its chat template cannot be read, or is not valid.
        """
        prompts = chat_prompts(messages, self.tokenizer, add_generation_prompt, chat_template_kwargs)
        return self.generate(prompts, params)

    def stream(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Like `generate`, but yield what is known of a request whenever it has got a token.

        Closing the iterator aborts what is not finished.
        """
        with closing(self._run(self._make_all(prompts, params))) as steps:
            for request in chain.from_iterable(steps):
                with self._changes.lock:
                    del self._news[request]
                    output = request.output()
                yield output  # and meanwhile anybody may call step()

    def play(self, port: int = 0) -> Any:
        """In a notebook: a page to play with an engine of the same model and options; this one is left alone.

        Returns what shows the page, and has `close()`. Needs `pip install minipage[serve]`.
        """
        return import_module("minipage.play.main").play(self, port)  # of which the engine knows nothing else

    def _run(self, requests: list[Request]) -> Generator[list[Request], None, None]:
        """Step until these requests are done, and yield those with news, to be looked at, whenever there are some."""
        try:
            for request in requests:
                request.is_claimed = True
            self._queue(requests)
            left = requests
            while left:
                with self._changes.lock:  # others may step meanwhile
                    # Where there is no news of anybody, those that have finished were told before.
                    if self._news.keys().isdisjoint(left) and (left := [each for each in left if not each.finished]):
                        self._changes.make(self._step, self._mend)
                    news = [request for request in left if request in self._news]
                if news:
                    yield news
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
            raise InvalidRequestError(f"params is {shown(params)}; give SamplingParams(...), or a list of them.")
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


DEFAULTS = dict(LLM.__init__.__kwdefaults__ or {})  # of its options, also where somebody has wrapped the method
