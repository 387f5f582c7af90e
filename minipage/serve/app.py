"""The application: which address is answered by what.

    Access (id, key, log) ─▶ route ─▶ body read and checked ─▶ Job ─▶ AsyncLLM ─▶ answer, whole or as events

Nothing here takes long on the event loop: what does (a step, a long text to be cut into tokens) is done by threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from minipage import __version__
from minipage.engine.async_llm import AsyncLLM
from minipage.engine.prompts import Prompt
from minipage.errors import shown
from minipage.serve import chat, completions
from minipage.serve.access import GOOD_ID, Access, Keys, log_failure, logger, tally_of
from minipage.serve.chat import Render
from minipage.serve.errors import ApiError, as_api_error, read_model
from minipage.serve.generation import Job
from minipage.serve.kv_stream import KVStream
from minipage.serve.limits import Queue, read_body, unless_gone
from minipage.serve.live import Live
from minipage.serve.metrics import make_registry
from minipage.serve.params import refuse
from minipage.serve.protocol import Body, ChatBody, CompletionBody, DetokenizeBody, GenerationBody, TokenizeBody


@dataclass(frozen=True)
class Settings:
    """How the server behaves. The engine has options of its own."""

    served_model_name: Sequence[str] = ("minipage",)  # the first is told, and all are understood
    root: str = ""  # the model as it was given to the command: where load testers find its tokenizer
    api_key: Sequence[str] = ()  # any of them opens; without one, everybody may come in
    chat_template: Render | None = None  # in place of the model's own
    max_queued_requests: int = 1024  # beside those that run
    max_body_size: int = 4 * 2**20  # bytes
    max_logprobs: int = 20
    allowed_origins: Sequence[str] = ()  # of pages in browsers
    allowed_methods: Sequence[str] = ("*",)
    allowed_headers: Sequence[str] = ("*",)
    allow_credentials: bool = False
    enable_log_requests: bool = False  # prompts, too
    disable_live_page: bool = False
    hide_live_texts: bool = False  # on that page, a dot for each token
    engine: str = "0"  # the label of its metrics; of several replicas, which one it is


Handler = Callable[..., Coroutine[Any, Any, None]]  # of a checked body, and scope, receive and send


class Endpoint:
    """An address that takes JSON: reads and checks it, and lets `handle` answer until the client goes away."""

    def __init__(self, model: type[Body], handle: Handler, server: Api) -> None:
        self.model = model
        self.handle = handle
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = None
        try:
            raw = await read_body(scope, receive, self.server.settings.max_body_size)
            body = read_model(self.model, raw)
            self.server.check_model(body.model or None)
            await unless_gone(receive, self.handle(body, scope, receive, send))
        except Exception as error:
            log_failure(scope, error)
            raise as_api_error(error, body) from error


class Api:
    """What the addresses answer, for one engine."""

    def __init__(self, llm: AsyncLLM, settings: Settings) -> None:
        self.llm = llm
        self.engine: Any = llm.engine
        self.settings = settings
        own = getattr(getattr(llm.engine, "tokenizer", None), "chat_template", None)
        self.template = settings.chat_template or (own.render if own else None)
        self.most_characters = longest_text(llm.engine)
        self.queue = Queue(settings.max_queued_requests + self.engine.scheduler.max_num_seqs)
        self.registry = make_registry(llm.stats, settings.served_model_name[0], settings.engine)
        self.begin = int(time.time())
        self.keys = Keys(settings.api_key)
        self.live = Live(llm, settings.served_model_name[0], not settings.hide_live_texts, self.keys)
        self.kv_stream = KVStream(getattr(self.engine, "kv_events", None), self.keys, self.live.is_over)

    def routes(self) -> list[Route]:
        def post(path: str, model: type[Body], handle: Handler) -> Route:
            return Route(path, Endpoint(model, handle, self), methods=["POST"])

        live = [Route("/", self.live.page), Route("/live", self.live)]
        return [
            *(live if not self.settings.disable_live_page else []),
            post("/v1/completions", CompletionBody, self.complete),
            post("/v1/chat/completions", ChatBody, self.chat),
            post("/tokenize", TokenizeBody, self.tokenize),
            post("/detokenize", DetokenizeBody, self.detokenize),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/version", self.version),
            Route("/load", self.load),
            Route("/metrics", self.metrics),
            Route("/kv_events", self.kv_stream),
            Route("/reset_prefix_cache", self.reset_prefix_cache, methods=["POST"]),
        ]

    # ---- generation

    async def complete(self, body: CompletionBody, *asgi: Any) -> None:
        params = completions.read_params(body, self.settings.max_logprobs)
        prompts = completions.read_prompts(body.prompt)
        with self.queue.place_for(len(prompts)):
            special = body.add_special_tokens is not False
            read = [await self.read_prompt(prompt, special) for prompt in prompts]
            job = self.job("cmpl", read, params, body, asgi[0])
            await completions.Completions(job, body, self.engine.tokenizer).answer(self.llm, *asgi)

    async def chat(self, body: ChatBody, *asgi: Any) -> None:
        params = chat.read_params(body, self.settings.max_logprobs)
        text = await self.render(body, body.messages)
        with self.queue.place_for(1):
            prompt = await self.read_prompt(text, bool(body.add_special_tokens))
            job = self.job("chatcmpl", [prompt], params, body, asgi[0])
            await chat.Chat(job, body, self.engine.tokenizer).answer(self.llm, *asgi)

    async def render(self, body: ChatBody | TokenizeBody, messages: list[dict[str, Any]]) -> str:
        return await asyncio.to_thread(chat.render, self.template, messages, chat.template_options(body))

    async def read_prompt(self, prompt: Prompt, add_special_tokens: bool) -> Prompt:
        """The prompt with its token ids; on the way, prompts that cannot be served are refused."""
        token_ids: Any = prompt
        limit = self.engine.max_model_len
        its_length = f"this model's maximum context length is {limit} tokens"  # words that clients look for
        if isinstance(prompt, str):
            if len(prompt) > self.most_characters:  # it would take seconds to say how many tokens it has
                message = f"the prompt has {len(prompt):,} characters; {its_length}, far less than that."
                raise ApiError(400, message, "prompt", "context_length_exceeded")
            token_ids = await asyncio.to_thread(self.encode, prompt, add_special_tokens)
            prompt = {"prompt": prompt, "prompt_token_ids": token_ids}
        if len(token_ids) >= limit:
            message = f"the prompt has {len(token_ids):,} tokens; {its_length}, which leaves room for {limit - 1:,}."
            raise ApiError(400, f"{message} Shorten it.", "prompt", "context_length_exceeded")
        return prompt

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.engine.tokenizer is None:
            raise ApiError(400, "this model has no tokenizer: send token ids.", "prompt")
        return list(self.engine.tokenizer.encode(text, add_special_tokens))

    def job(self, kind: str, prompts: list[Prompt], params: Any, body: GenerationBody, scope: Scope) -> Job:
        if not self.llm.is_alive:
            raise ApiError(503, "the engine has stopped, or is about to.", code="engine_dead")
        request_id = scope["minipage.request_id"]
        if body.request_id and GOOD_ID.fullmatch(body.request_id):
            request_id = body.request_id
        if self.settings.enable_log_requests:
            logger.info("%s asks %r of %r", request_id, params, prompts)
        name = self.settings.served_model_name[0]
        return Job(prompts, params, body, f"{kind}-{request_id}", name, int(time.time()), tally_of(scope))

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.settings.served_model_name:
            served = ", ".join(self.settings.served_model_name)
            raise ApiError(404, f"there is no model {shown(name)} here; served: {served}.", "model", "model_not_found")

    # ---- texts and token ids

    async def tokenize(self, body: TokenizeBody, *asgi: Any) -> None:
        text, special = body.prompt, body.add_special_tokens is not False
        refuse(body, ("tools", "chat_template"))
        if body.messages is not None:
            text = await self.render(body, body.messages)
            special = bool(body.add_special_tokens)
        if text is None:
            raise ApiError(400, "give a prompt, or messages.", "prompt")
        token_ids = await asyncio.to_thread(self.encode, text, special)
        answer = {"count": len(token_ids), "max_model_len": self.engine.max_model_len, "tokens": token_ids}
        if body.return_token_strs:
            answer["token_strs"] = await asyncio.to_thread(list, map(self.engine.tokenizer.token, token_ids))
        await JSONResponse(answer)(*asgi)

    async def detokenize(self, body: DetokenizeBody, *asgi: Any) -> None:
        if self.engine.tokenizer is None:
            raise ApiError(400, "this model has no tokenizer.", "tokens")
        if any(not 0 <= token_id < 2**31 for token_id in body.tokens):
            raise ApiError(400, "tokens has an id that no tokenizer knows.", "tokens")
        text = await asyncio.to_thread(self.engine.tokenizer.decode, body.tokens)
        await JSONResponse({"prompt": text})(*asgi)

    # ---- about the server

    def card(self, name: str) -> dict[str, Any]:
        facts = {"id": name, "object": "model", "created": self.begin, "owned_by": "minipage"}
        facts["root"] = self.settings.root or name
        return facts | {"parent": None, "max_model_len": self.engine.max_model_len, "permission": []}

    async def models(self, request: Request) -> Response:
        cards = [self.card(name) for name in self.settings.served_model_name]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        self.check_model(request.path_params["name"])
        return JSONResponse(self.card(request.path_params["name"]))

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.llm.is_alive else 503)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def load(self, request: Request) -> Response:
        return JSONResponse({"server_load": self.queue.num_prompts})

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def reset_prefix_cache(self, request: Request) -> Response:
        await self.llm.reset_prefix_cache()
        return Response(status_code=200)


def longest_text(engine: Any) -> float:
    """No text of more characters can fit into the context, whatever its tokens are."""
    if getattr(engine, "tokenizer", None) is None:
        return float("inf")
    return float(engine.max_model_len * max(map(len, engine.tokenizer.backend.get_vocab())))


async def no_such_page(request: Request, error: Exception) -> Response:
    """404 and 405 in OpenAI's format, too."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()


async def told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    tally_of(request.scope).refused = ", ".join(filter(None, [error.param, error.code]))
    return error.response()


def answering(routes: Sequence[BaseRoute], keys: Keys, settings: Settings) -> Starlette:
    """An application of these addresses, behind what stands before all of them."""
    middleware = [Middleware(Access, keys, settings.allowed_origins)]
    if settings.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=settings.allowed_methods,
            allow_headers=settings.allowed_headers,
            allow_credentials=settings.allow_credentials,
            expose_headers=["X-Request-Id"],
        )
        middleware.insert(0, cors)  # a browser asks for permission without a key
    handlers = {HTTPException: no_such_page, ApiError: told}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def make_app(llm: AsyncLLM, settings: Settings | None = None) -> Starlette:
    """An ASGI application for an engine. It does not shut the engine down: that is for whoever has made it."""
    settings = settings or Settings()
    api = Api(llm, settings)
    app = answering(api.routes(), api.keys, settings)
    app.state.live = api.live  # whose streams have to be ended before the server can be
    return app
