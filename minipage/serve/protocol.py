"""What clients may send. Fields that are not here are ignored, as OpenAI's and vLLM's servers do.

Types are strict: "5" is no number. What a number may be is SamplingParams' business.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())

    model: str | None = None  # None: whichever is served


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None  # a last chunk with no choices and the usage of all
    continuous_usage_stats: bool | None = None  # vLLM's: the usage so far in each chunk


class GenerationBody(Body):
    """What texts and chats have in common."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # who asks; of no consequence
    request_id: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None  # in logprobs; see spelled
    add_special_tokens: bool | None = None

    # of SamplingParams; see params.py
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None  # for the `n` best texts
    length_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_choice: list[str] | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_grammar: str | None = None

    # of vLLM's, what would change the answer and cannot be served; see params.py
    guided_whitespace_pattern: Any = None
    logits_processors: Any = None
    prompt_embeds: Any = None
    truncate_prompt_tokens: Any = None
    logprob_token_ids: Any = None
    repetition_detection: Any = None

    @property
    def wants_only_prompt(self) -> bool:
        """The engine always makes a token; whoever asks for none is told of none."""
        return False

    @property
    def spells_ids(self) -> bool:
        return bool(self.return_tokens_as_token_ids)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_each_chunk(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionBody(GenerationBody):
    prompt: Any = None  # a text, token ids, or a list of either
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None

    @property
    def wants_only_prompt(self) -> bool:
        return bool(self.echo and self.max_tokens == 0)


class ChatBody(GenerationBody):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    chat_template: Any = None
    documents: Any = None
    echo: Any = None
    audio: Any = None


class TokenizeBody(Body):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    return_token_strs: bool | None = None
    tools: list[Any] | None = None
    chat_template: Any = None


class DetokenizeBody(Body):
    tokens: list[int]
