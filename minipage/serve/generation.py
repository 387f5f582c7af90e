"""What /v1/completions and /v1/chat/completions share: prompts go in, outputs come as they are known, all at the end or
as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.completion import CompletionOutput
from minipage.engine.prompts import Prompt
from minipage.engine.request import RequestOutput
from minipage.sampling import SamplingParams
from minipage.sampling.processors import EXCLUDED
from minipage.serve.access import Tally, log_failure
from minipage.serve.errors import ApiError, as_api_error, field_to_blame
from minipage.serve.protocol import GenerationBody

Item = TypeVar("Item")
encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each event


class Job(NamedTuple):
    """One HTTP request: one or several prompts, which are generated for side by side."""

    prompts: Sequence[Prompt]
    params: SamplingParams
    body: GenerationBody
    response_id: str
    model: str
    created: int
    tally: Tally

    async def outputs(self, llm: AsyncLLM) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """(which prompt, what is known of it), whenever there is news of one. Closing it aborts all of them."""
        begin, name, body = time.perf_counter(), f"{self.response_id}-{uuid4().hex[:8]}", self.body
        options = {"priority": body.priority or 0, "cache_salt": body.cache_salt or ""}
        streams = [
            llm.generate(prompt, self.params, f"{name}-{i}", **options)  # type: ignore[arg-type]
            for i, prompt in enumerate(self.prompts)
        ]
        newest: dict[int, RequestOutput] = {}
        try:
            async for i, output in merge(streams):
                if output.error:
                    _, is_its_own, names = output.error.partition(EXCLUDED)
                    raise ApiError(400 if is_its_own else 500, output.error, field_to_blame(names, body))
                if not newest:
                    self.tally.first_token_seconds = time.perf_counter() - begin
                newest[i] = output
                yield i, output
        finally:
            self._count(newest)

    def usage(self, outputs: dict[int, RequestOutput]) -> dict[str, Any]:
        """How many tokens there were, of all prompts together."""
        num_prompt = sum(len(output.prompt_token_ids) for output in outputs.values())
        num_generated = sum(len(text.token_ids) for output in outputs.values() for text in output.outputs)
        num_generated = 0 if self.body.wants_only_prompt else num_generated
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
            "prompt_tokens_details": {"cached_tokens": sum(o.num_cached_tokens for o in outputs.values())},
        }

    def head(self, kind: str) -> dict[str, Any]:
        """How each answer begins, and each chunk of one."""
        return {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}

    def _count(self, outputs: dict[int, RequestOutput]) -> None:
        usage, tally = self.usage(outputs), self.tally
        tally.num_prompt_tokens = usage["prompt_tokens"]
        tally.num_cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        tally.num_generated_tokens = usage["completion_tokens"]
        reasons = {str(text.finish_reason) for output in outputs.values() for text in output.outputs}
        tally.finish_reason = None if "None" in reasons or not reasons else "/".join(sorted(reasons))


async def merge(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """What several iterators yield, each with its number, in the order in which it comes."""
    if len(streams) == 1:  # nearly always, and then no tasks are needed, which take as long as all the rest
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return
    waiting = {asyncio.ensure_future(anext(stream)): i for i, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                i = waiting.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                yield i, item
                waiting[asyncio.ensure_future(anext(streams[i]))] = i
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


class Unsent:
    """How much of one text has been sent already."""

    def __init__(self) -> None:
        self.num_characters = 0
        self.num_tokens = 0
        self.is_finished = False

    def has_news(self, text: CompletionOutput) -> bool:
        return not self.is_finished and (len(text.token_ids) > self.num_tokens or text.finish_reason is not None)

    def take(self, text: CompletionOutput) -> tuple[str, slice]:
        """The characters that are new, and where the new tokens are."""
        characters, tokens = text.text[self.num_characters :], slice(self.num_tokens, len(text.token_ids))
        self.num_characters += len(characters)
        self.num_tokens = len(text.token_ids)
        self.is_finished = text.finish_reason is not None
        return characters, tokens


# ---- answers


async def answer_whole(
    job: Job, llm: AsyncLLM, whole: Callable[[dict[int, RequestOutput]], dict[str, Any]], *asgi: Any
) -> None:
    """Send everything at the end. `asgi`: scope, receive and send."""
    outputs: dict[int, RequestOutput] = {}
    async for i, output in job.outputs(llm):
        outputs[i] = output
    await JSONResponse(whole(outputs) | {"usage": job.usage(outputs)})(*asgi)


Chunks = Callable[[int, RequestOutput], Sequence[dict[str, Any]]]


async def answer_stream(
    job: Job, llm: AsyncLLM, kind: str, chunks: Chunks, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send each piece as a server-sent event as soon as it is known.

    Nothing is sent before the first output, so that a request that is refused gets the right status. While the client
    does not read, `send` waits; what comes meanwhile is one newer output.
    """
    events = stream_events(job, llm, kind, chunks)
    try:
        first = await anext(events)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_event(send, first)
        try:
            async for event in events:
                await send_event(send, event)
        except Exception as error:  # too late for a status
            log_failure(scope, error)
            await send_event(send, json.dumps(as_api_error(error).body()))
        await send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        await events.aclose()


async def stream_events(job: Job, llm: AsyncLLM, kind: str, chunks: Chunks) -> AsyncGenerator[str, None]:
    """The events of a stream: chunks, and in the end the usage, if it was asked for."""
    head, body, newest = encode(job.head(kind)), job.body, dict[int, RequestOutput]()
    outputs = job.outputs(llm)
    try:
        async for i, output in outputs:
            newest[i] = output
            for rest in chunks(i, output):
                if body.include_usage:
                    rest["usage"] = job.usage(newest) if body.usage_in_each_chunk else None
                yield join(head, rest)
        if body.include_usage:
            yield join(head, {"choices": [], "usage": job.usage(newest)})
    finally:
        await outputs.aclose()


def join(head: str, rest: dict[str, Any]) -> str:
    """One object in JSON. How all chunks of a stream begin is `head`, an object that need not be encoded each time."""
    return f"{head[:-1]}, {encode(rest)[1:]}"


async def send_event(send: Send, data: str) -> None:
    event = f"data: {data}\n\n".encode("utf-8", "replace")
    await send({"type": "http.response.body", "body": event, "more_body": True})
