"""/v1/completions: texts to be continued."""

from __future__ import annotations

from typing import Any

from starlette.types import Receive, Scope, Send

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.completion import CompletionOutput
from minipage.engine.prompts import Prompt
from minipage.engine.request import RequestOutput
from minipage.output import by_token_id
from minipage.sampling import SamplingParams, is_whole
from minipage.serve.errors import ApiError
from minipage.serve.generation import Job, Unsent, answer_stream, answer_whole
from minipage.serve.logprobs import Places, for_texts, spelled
from minipage.serve.params import sampling_params
from minipage.serve.protocol import CompletionBody


def read_prompts(prompt: Any) -> list[Prompt]:
    """A text, token ids, or a list of either -> a list of prompts."""
    is_one = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(is_whole, prompt)))
    prompts = [prompt] if is_one else prompt
    if (
        not isinstance(prompts, list)
        or not prompts
        or not all(isinstance(each, str | list) and each for each in prompts)
    ):
        message = "prompt must be a text, a list of token ids, or a list of either, and not empty."
        raise ApiError(400, message, "prompt")
    return prompts


def read_params(body: CompletionBody, max_logprobs: int) -> SamplingParams:
    if body.suffix:
        raise ApiError(400, "suffix is not supported: a text is continued, not filled in.", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of is not supported: ask for n texts, and choose.", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= max_logprobs:
        raise ApiError(400, f"logprobs is {body.logprobs}; it must be from 0 to {max_logprobs}.", "logprobs")
    more: dict[str, Any] = {}
    if body.echo and body.logprobs is not None:
        more["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    if body.wants_only_prompt:
        more |= {"max_tokens": 1, "ignore_eos": True, "stop": None, "stop_token_ids": None, "structured_outputs": None}
    return sampling_params(body, max_logprobs, **more)


class Completions:
    """The answer to one request, in the making."""

    def __init__(self, job: Job, body: CompletionBody, tokenizer: Any) -> None:
        self.job = job
        self.body = body
        self.tokenizer = tokenizer
        self.num_texts = job.params.beam_width or job.params.n
        self.unsent: dict[tuple[int, int], Unsent] = {}
        self.places: dict[tuple[int, int], Places] = {}  # of its tokens, if somebody asks for logprobs

    async def answer(self, llm: AsyncLLM, scope: Scope, receive: Receive, send: Send) -> None:
        if self.body.stream:
            await answer_stream(self.job, llm, "text_completion", self.chunks, scope, receive, send)
        else:
            await answer_whole(self.job, llm, self.whole, scope, receive, send)

    def whole(self, outputs: dict[int, RequestOutput]) -> dict[str, Any]:
        choices = [self.choice(i, outputs[i], text, Unsent()) for i in sorted(outputs) for text in outputs[i].outputs]
        return self.job.head("text_completion") | {"choices": choices}

    def chunks(self, i: int, output: RequestOutput) -> list[dict[str, Any]]:
        chunks = []
        for text in output.outputs:
            unsent = self.unsent.setdefault((i, text.index), Unsent())
            if unsent.has_news(text):
                chunks.append({"choices": [self.choice(i, output, text, unsent)]})
        return chunks

    def choice(self, i: int, output: RequestOutput, text: CompletionOutput, unsent: Unsent) -> dict[str, Any]:
        """What is new of one text."""
        is_first = unsent.num_tokens == 0
        characters, where = unsent.take(text)
        token_ids, logprobs = text.token_ids[where], (text.logprobs or [])[where]
        if self.body.wants_only_prompt:
            characters, token_ids, logprobs = "", [], []
        if self.body.echo and is_first:
            characters = self.prompt_text(output) + characters
        choice: dict[str, Any] = {
            "index": i * self.num_texts + text.index,
            "text": characters,
            "logprobs": None,
            "finish_reason": text.finish_reason,
            "stop_reason": text.stop_reason,
        }
        if self.body.logprobs is not None:
            if is_first:
                begin = len(self.prompt_text(output)) if self.body.echo else 0
                skip = self.job.params.skip_special_tokens
                self.places[i, text.index] = Places(self.tokenizer, skip, output.prompt_token_ids, begin)
            offsets = self.places[i, text.index].of(token_ids)
            told = for_texts(token_ids, logprobs, offsets, self.body.spells_ids)
            if self.body.echo and is_first:
                told = {name: of_prompt + told[name] for name, of_prompt in self.prompt_logprobs(output).items()}
            choice["logprobs"] = told
        if self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = by_token_id(output.prompt_logprobs or [])
        if self.body.return_token_ids:
            choice |= {"token_ids": token_ids, "prompt_token_ids": output.prompt_token_ids if is_first else None}
        return choice

    def prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is None and self.tokenizer:
            return str(self.tokenizer.decode(output.prompt_token_ids))
        return output.prompt or ""

    def prompt_logprobs(self, output: RequestOutput) -> dict[str, Any]:
        """What `logprobs` says of a prompt that is echoed."""
        token_ids, tokenizer = output.prompt_token_ids, self.tokenizer
        begin = tokenizer.decode(token_ids).rfind(self.prompt_text(output)) if tokenizer else 0  # behind <s>
        places = Places(tokenizer, False, [], -max(0, begin)).of(token_ids)  # below 0: not found, as it was normalized
        offsets = [max(0, place) for place in places]
        spells_ids = self.body.spells_ids
        told = for_texts(token_ids, output.prompt_logprobs or [], offsets, spells_ids)
        if tokenizer:  # the first token has no log probability, but it has a text
            told["tokens"][0] = spelled(token_ids[0], tokenizer.token_text(token_ids[0]), spells_ids)
        return told
