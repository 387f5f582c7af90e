"""/v1/chat/completions: messages to be answered, by way of the model's chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from starlette.types import Receive, Scope, Send

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.completion import CompletionOutput
from minipage.engine.request import RequestOutput
from minipage.errors import InvalidRequestError, ModelError
from minipage.model.chat_template import check_messages
from minipage.output import by_token_id
from minipage.sampling import SamplingParams
from minipage.serve.errors import ApiError
from minipage.serve.generation import Job, Unsent, answer_stream, answer_whole
from minipage.serve.logprobs import for_chats
from minipage.serve.params import refuse, sampling_params
from minipage.serve.protocol import ChatBody, TokenizeBody

UNSERVED = ("chat_template", "documents", "echo", "audio")
# Called with the messages, add_generation_prompt and whatever chat_template_kwargs says; returns the prompt's text.
Render: TypeAlias = Callable[..., str]


def render(template: Render | None, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The text that stands for a chat. Raises ApiError if there is no template, or it refuses the messages."""
    if template is None:
        message = "this model has no chat template: use /v1/completions, or a model that was trained to chat."
        raise ApiError(400, message, "messages")
    for name in {"self", "messages"} & options.keys():
        raise ApiError(400, f"{name} is not for chat_template_kwargs to say.", "chat_template_kwargs")
    try:
        return template(check_messages(messages), **options)
    except (InvalidRequestError, ModelError) as error:  # the latter is the template's fault, and texts are still served
        raise ApiError(400, str(error), "messages") from error


def template_options(body: ChatBody | TokenizeBody) -> dict[str, Any]:
    """What the template is told beside the messages."""
    options = {"add_generation_prompt": body.add_generation_prompt is not False, **(body.chat_template_kwargs or {})}
    if body.reasoning_effort is not None:  # many templates know it as enable_thinking
        options = {"enable_thinking": body.reasoning_effort != "none"} | options
        options["reasoning_effort"] = body.reasoning_effort
    if body.continue_final_message:
        options |= {"continue_final_message": True, "add_generation_prompt": False}
    return options


def read_params(body: ChatBody, max_logprobs: int) -> SamplingParams:
    refuse_tools(body)
    refuse(body, UNSERVED)
    num_top = body.top_logprobs or 0
    if not 0 <= num_top <= max_logprobs or (num_top and not body.logprobs):
        message = f"top_logprobs is {body.top_logprobs}; it must be from 0 to {max_logprobs}, and logprobs true."
        raise ApiError(400, message, "top_logprobs")
    longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = num_top if body.logprobs else None
    return sampling_params(
        body, max_logprobs, max_tokens=longest, logprobs=logprobs
    )  # None: as long as there is room for


def refuse_tools(body: ChatBody) -> None:
    for name in "tools", "functions":
        if getattr(body, name):
            raise ApiError(400, f"{name} are not supported: this server answers in plain text. Leave them out.", name)
    for name in "tool_choice", "function_call":
        if getattr(body, name) not in (None, "none", "auto"):
            raise ApiError(400, f"{name} is not supported, because there are no tools. Leave it out.", name)


class Chat:
    """The answer to one request, in the making."""

    def __init__(self, job: Job, body: ChatBody, tokenizer: Any) -> None:
        self.job = job
        self.body = body
        self.tokenizer = tokenizer
        self.unsent: dict[int, Unsent] = {}

    async def answer(self, llm: AsyncLLM, scope: Scope, receive: Receive, send: Send) -> None:
        if self.body.stream:
            await answer_stream(self.job, llm, "chat.completion.chunk", self.chunks, scope, receive, send)
        else:
            await answer_whole(self.job, llm, self.whole, scope, receive, send)

    def whole(self, outputs: dict[int, RequestOutput]) -> dict[str, Any]:
        choices = []
        for text in outputs[0].outputs:
            message = {"role": "assistant", "content": text.text, "refusal": None}
            choices.append({"message": message} | self.rest(outputs[0], text, slice(None)))
        answer = self.job.head("chat.completion") | {"choices": choices}
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = outputs[0].prompt_token_ids
        if self.body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = by_token_id(outputs[0].prompt_logprobs or [])
        return answer

    def chunks(self, _: int, output: RequestOutput) -> list[dict[str, Any]]:
        chunks = []
        for text in output.outputs:
            unsent = self.unsent.setdefault(text.index, Unsent())
            if unsent.has_news(text):
                is_first = unsent.num_tokens == 0
                characters, where = unsent.take(text)
                role = {"role": "assistant"} if is_first else {}
                choice = {"delta": role | {"content": characters}} | self.rest(output, text, where)
                chunk: dict[str, Any] = {"choices": [choice]}
                if is_first and self.body.return_token_ids:
                    chunk["prompt_token_ids"] = output.prompt_token_ids
                chunks.append(chunk)
        return chunks

    def rest(self, output: RequestOutput, text: CompletionOutput, where: slice) -> dict[str, Any]:
        """What a choice says beside its text; `where` the tokens are that it is about."""
        token_ids = text.token_ids[where]
        choice: dict[str, Any] = {
            "index": text.index,
            "logprobs": None,
            "finish_reason": text.finish_reason,
            "stop_reason": text.stop_reason,
        }
        if text.logprobs is not None:
            known, num_top = text.logprobs[where], self.body.top_logprobs or 0
            choice["logprobs"] = for_chats(token_ids, known, num_top, self.tokenizer, self.body.spells_ids)
        if self.body.return_token_ids:
            choice["token_ids"] = token_ids
        return choice
