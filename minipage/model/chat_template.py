"""From the messages of a conversation to the text that a chat model was trained on.

    [{"role": "user", "content": "Why is the sea salty?"}]
        ─▶ "<|im_start|>user\\nWhy is the sea salty?<|im_end|>\\n<|im_start|>assistant\\n"

Each model has its own way, so it brings a template: a small program in Jinja that came with its files. It runs in a
sandbox, within bounds (chat_sandbox.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from minipage.errors import InvalidRequestError, ModelError, shown
from minipage.model.settings import TOKENIZER_CONFIG, read_token_files, why

CHAT_TEMPLATE_FILE, TOOLS_FILE = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"
ROLES = ("system", "developer", "user", "assistant", "tool")
TEXTS = ("text", "refusal")  # kinds of a content's parts, whose texts lie under the same names
MARK = "\ue000the last message ends here\ue000 "  # while a template is at work, where it is to be continued
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

Message = dict[str, Any]


class ChatTemplate:
    """A model's chat template, compiled when it is first used.

    Args:
        source: the template
        special_tokens: what it may call bos_token, eos_token, ...
        origin: where it was found, for error messages
        problem: why it could not be read; whoever chats will hear of it, and who has a text continued need not
        for_tools: counts instead, if the model is told of tools
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        origin: str = "the model",
        problem: str = "",
        for_tools: ChatTemplate | None = None,
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.origin = origin
        self.problem = problem
        self.for_tools = for_tools
        self._compiled: Any = None  # (environment, template)
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: what it was made of."""
        return ChatTemplate, (self.source, self.special_tokens, self.origin, self.problem, self.for_tools)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **values: Any,
    ) -> str:
        """The text of a conversation, ready to be made into tokens (without a further token at its beginning: the
        template has written that).

        Args:
            messages: each with a role and a content, which is a text or a list of {"type": "text", "text": ...}; an
                answer may have none
            add_generation_prompt: end with what makes the model answer
            continue_final_message: end within the last message instead, so that the model goes on with that
            values: what the template knows further, such as enable_thinking

        Raises:
            ModelError: the template could not be read, or is no valid Jinja.
            InvalidRequestError: what is given are no messages, or the template refuses them, fails, or does not end.
        """
        if self.for_tools and values.get("tools") is not None:
            return self.for_tools.render(messages, add_generation_prompt, continue_final_message, **values)
        plain = check_messages(messages)
        if continue_final_message:
            add_generation_prompt, plain[-1]["content"] = False, plain[-1]["content"] + MARK
        with self._lock:  # it counts what one rendering uses up
            environment, template = self._compile()
            given = {"tools": None, "documents": None, **self.special_tokens, **values}
            given |= {"messages": plain, "add_generation_prompt": add_generation_prompt}
            try:
                text = str(environment.render(template, given))
            except Exception as error:  # whatever it does: divides by zero, calls itself, runs out of memory, ...
                raise InvalidRequestError(self._failure(error)) from error
        return self._up_to_mark(text) if continue_final_message else text

    def _up_to_mark(self, text: str) -> str:
        """Without what the template says after the last message. Many a template drops spaces at the end of one."""
        begin, mark, rest = text.rpartition(MARK.rstrip())
        if not mark:
            message = f"the chat template of {self.origin} does not show the last message, so it cannot be continued."
            raise InvalidRequestError(message)
        return begin if rest.startswith(" ") else begin.rstrip()

    def check(self) -> None:
        """Raise ModelError if no conversation could be rendered, whatever is said in it."""
        with self._lock:
            self._compile()

    def _compile(self) -> Any:
        if self.problem:
            raise ModelError(self.problem)
        if self._compiled is None:
            from minipage.model.chat_sandbox import BoundedEnvironment  # Jinja is only loaded for those who chat

            environment = BoundedEnvironment()
            try:
                self._compiled = environment, environment.template(self.source)
            except Exception as error:  # too deep for Python, or not Jinja
                reason = f"line {error.lineno}: {error}" if hasattr(error, "lineno") else f"{error}"
                raise ModelError(f"the chat template of {self.origin} is not valid ({reason}).") from error
        return self._compiled

    def _failure(self, error: Exception) -> str:
        from minipage.model.chat_sandbox import EndlessTemplateError, RefusedError

        if isinstance(error, RefusedError):
            return f"the chat template of {self.origin} refuses these messages: {error}"
        if isinstance(error, EndlessTemplateError):
            return f"the chat template of {self.origin} was stopped: {error}. Use the model's own template."
        return f"the chat template of {self.origin} fails on these messages ({type(error).__name__}: {error})."


def check_messages(messages: object) -> list[Message]:
    """The messages of a conversation, each content as one text.

    Raises:
        InvalidRequestError: there are none, or one is not {"role": ..., "content": ...}.
    """
    example = 'like [{"role": "user", "content": "Hello"}]'
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidRequestError(f"messages is {shown(messages)}; it must be a list of messages, {example}.")
    if not messages:
        raise InvalidRequestError(f"messages is empty; give at least one, {example}.")
    return [check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def check_message(message: object, name: str) -> Message:
    if not isinstance(message, Mapping):
        form = '{"role": "user", "content": "Hello"}'
        raise InvalidRequestError(f"{name} is {shown(message)}; it must be like {form}.")
    role, content = message.get("role"), message.get("content")
    is_answer = role == "assistant"  # sent back as some server gave it: there may have been no words, but tool calls
    if role is None or (content is None and not is_answer):
        raise InvalidRequestError(f"{name} has no {'role' if role is None else 'content'}: {shown(dict(message))}.")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequestError(f"{name} has the role {shown(role)}; it must be one of {', '.join(ROLES)}.")
    plain = {"role": str(role), "content": "" if is_answer and content in (None, []) else text_of(content, name)}
    # A name, a reasoning_content, ...: some templates know these. What is no text, such as an audio, none does.
    plain = {key: str(value) for key, value in message.items() if isinstance(value, str)} | plain
    calls = message.get("tool_calls") if is_answer else None
    return plain | {"tool_calls": tool_calls(calls, name)} if calls else plain


def tool_calls(calls: object, name: str) -> list[dict[str, Any]]:
    """As templates know them: the arguments, which clients send as a text in JSON, are a dict."""
    if not isinstance(calls, list) or not all(map(is_tool_call, calls)):
        form = '[{"type": "function", "function": {"name": ..., "arguments": ...}}]'
        raise InvalidRequestError(f"{name} has the tool_calls {shown(calls)}; they must be like {form}.")
    functions = [{**call["function"], "arguments": arguments_of(call["function"])} for call in calls]
    return [{**call, "function": function} for call, function in zip(calls, functions)]


def is_tool_call(call: object) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)


def arguments_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """Empty if they are not valid: a model wrote them, and whoever sends them back can do nothing about it."""
    arguments: Any = function.get("arguments")
    with suppress(ValueError, TypeError, RecursionError):
        arguments = json.loads(arguments)
    return arguments if isinstance(arguments, dict) else {}


def text_of(content: object, name: str) -> str:
    """A content's text; the parts of one that comes in parts are joined by new lines, as vLLM does."""
    if isinstance(content, str):
        return str(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequestError(f"{name} has the content {shown(content)}; it must be a text or a list of parts.")
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
    texts = [part[kind] if kind in TEXTS and kind in part else None for part, kind in zip(content, kinds)]
    if not texts or not all(isinstance(text, str) for text in texts):
        wrong = next((part for part, text in zip(content, texts) if not isinstance(text, str)), content)
        form = '{"type": "text", "text": ...}; minipage reads no images or sounds'
        raise InvalidRequestError(f"{name} has {shown(wrong)} in its content; each part must be {form}.")
    return "\n".join(str(text) for text in texts)


def find_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a folder of Hugging Face: chat_template.jinja, or one in tokenizer_config.json.

    If a file cannot be read, or has several templates and none is the default, that is the template's `problem`.
    """
    try:
        return read_chat_template(folder)
    except ModelError as error:
        return ChatTemplate("", problem=str(error))


def read_chat_template(folder: Path) -> ChatTemplate | None:
    config_path, path = folder / TOKENIZER_CONFIG, folder / CHAT_TEMPLATE_FILE
    _, special, config = read_token_files(folder)
    found = {name: (config | special).get(name) for name in SPECIAL_TOKENS}
    texts = {name: each.get("content") if isinstance(each, dict) else each for name, each in found.items()}
    tokens = {name: text for name, text in texts.items() if isinstance(text, str)}
    if path.exists():
        tools = folder / TOOLS_FILE
        return read_file(path, tokens, for_tools=read_file(tools, tokens) if tools.exists() else None)
    template, with_tools = config.get("chat_template"), None
    if isinstance(template, list):  # several, each with a name
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template, with_tools = named.get("default", ""), named.get("tool_use")
    if template is None:
        return None
    if not isinstance(template, str) or not template:
        raise ModelError(f"{config_path} has no chat template of the name default. Put one into {path.name}.")
    for_tools = ChatTemplate(with_tools, tokens, str(config_path)) if isinstance(with_tools, str) else None
    return ChatTemplate(template, tokens, str(config_path), for_tools=for_tools)


def read_file(path: Path, tokens: Mapping[str, str], for_tools: ChatTemplate | None = None) -> ChatTemplate:
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), tokens, str(path), for_tools=for_tools)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({why(path, error)}). Fetch it again.") from error
