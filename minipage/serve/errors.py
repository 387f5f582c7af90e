"""Errors as OpenAI's clients expect them: a status, a sentence, and the name of the field that is to blame."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from minipage.errors import EngineDeadError, InvalidRequestError, RankError

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
OTHER_NAMES = {  # by which clients may say what the engine calls so; one that is given counts before the engine's
    "structured_outputs": ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    "max_tokens": ("max_completion_tokens",),
    "beam_width": ("n", "use_beam_search"),
    "request": ("n",),
    "prompt": ("messages",),
}


class ApiError(Exception):
    """What a client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def as_api_error(error: Exception, body: BaseModel | None = None) -> ApiError:
    """What to tell a client of an error; `body` has the fields that may be to blame."""
    if isinstance(error, ApiError):
        error.param = name_given(error.param, body) or error.param
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(400, str(error), field_to_blame(str(error), body))
    if isinstance(error, EngineDeadError):  # a rank that is lost is nobody's fault here, and a restart mends it
        return ApiError(503 if isinstance(error, RankError) else 500, str(error), code="engine_dead")
    return ApiError(500, str(error) or type(error).__name__)


def field_to_blame(sentence: str, body: BaseModel | None) -> str | None:
    """The engine's sentences begin with the name of what is wrong."""
    first, second, *_ = [*sentence.split(" "), "", ""]
    return name_given((second if first in ("a", "the") else first).rstrip(":,."), body)


def name_given(name: str | None, body: BaseModel | None) -> str | None:
    """What the client has called it; None, if it has not."""
    names = (*OTHER_NAMES.get(name, ()), name) if name else ()
    return next((each for each in names if getattr(body, each, None) is not None), None)


def read_model(model: type[BaseModel], body: bytes) -> Any:
    """A request's body as `model`; ApiError with the field's name if it is none."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        of_one_field = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]  # for each type it may have
        first = max(of_one_field, key=lambda each: len(each["loc"]))  # of the type that was meant
        where = ".".join(str(part) for part in first["loc"] if not is_type_name(part, model)) or None
        if first["type"] == "json_invalid":
            raise ApiError(400, f"the body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}.") from None
        message = f"{where or 'the body'}: {first['msg'].removeprefix('Value error, ')}."
        raise ApiError(400, message, where.split(".")[0] if where else None) from None


def is_type_name(part: object, model: type[BaseModel]) -> bool:
    """Of a field that may be of several types, pydantic says which one it has tried, such as list[str]."""
    return (
        part not in model.model_fields
        and re.fullmatch(r"(str|int|float|bool|list|dict)(\[.*\])?", str(part)) is not None
    )
