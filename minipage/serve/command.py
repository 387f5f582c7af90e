"""`minipage serve`: the options of the command line, on their way to the engine and to the server."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from getpass import getpass
from pathlib import Path
from typing import Any

from minipage.engine.async_llm import AsyncLLM
from minipage.errors import ConfigurationError, require_positive, shown
from minipage.model.chat_template import ChatTemplate
from minipage.model.checkpoint import SHIPPED_MODEL
from minipage.serve.app import Settings
from minipage.serve.chat import Render
from minipage.serve.main import let_others_go_first, load_llm, serve

LISTS = "allowed_origins", "allowed_methods", "allowed_headers"
OPTIONS_OF_REPLICAS = {"data_parallel_size", "router", "router_load_limit", "autoscaling_config"}
KEY_VARIABLE = "MINIPAGE_API_KEY"  # so that the key need not be on the command line, which everybody can read


def run(
    engine: dict[str, Any], server: dict[str, Any], sign: Callable[[str], AbstractContextManager[object]] = nullcontext
) -> None:
    """Serve until told to stop.

    Args:
        engine: options of LLM.
        server: options of SERVER in cli_options.py.
        sign: shows a sign of life while something slow goes on.
    """
    if "seed" in server:
        engine["seed"] = server.pop("seed")
    model = str(engine.get("model", SHIPPED_MODEL))
    settings = read_settings(server, model)
    if "model" not in engine and len(settings.served_model_name) > 1:
        *names, last = settings.served_model_name
        message = (
            f"--served-model-name takes all that follows for names, {last} too, and no model is given. Give it first:"
        )
        how = f"minipage serve {last} --served-model-name {' '.join(names)}"
        raise ConfigurationError(f"{message} {how} (the shipped model is called {SHIPPED_MODEL}).")

    def load() -> AsyncLLM:
        print(f"minipage loads {model} ...", flush=True)
        with sign("loading the model"):
            llm = load_llm(engine)
        served = AsyncLLM(llm)
        let_others_go_first(served)
        return served

    def tell(where: str) -> None:
        print(f"minipage serves {', '.join(settings.served_model_name)} on {where}; Ctrl-C stops it.", flush=True)

    if server.keys() & OPTIONS_OF_REPLICAS:
        from minipage.serve.replicas.main import serve_replicas  # what one server does not need is not even loaded

        print(f"minipage starts replicas of {model} ...", flush=True)
        serve_replicas(engine, settings, tell=tell, **server)
    else:
        serve(load, settings, tell=tell, **server)


def read_settings(server: dict[str, Any], model: str) -> Settings:
    """Take what Settings knows out of the options."""
    chosen = {field.name: server.pop(field.name) for field in fields(Settings) if field.name in server}
    chosen.setdefault("served_model_name", [model])
    chosen["root"] = model
    if "chat_template" in chosen:
        chosen["chat_template"] = read_template(chosen["chat_template"])
    if KEY_VARIABLE in os.environ:
        chosen.setdefault("api_key", [os.environ[KEY_VARIABLE]])
    if not all(chosen.get("api_key", ["-"])):
        raise ConfigurationError("the API key is empty; give one that cannot be guessed, or none at all.")
    for name in LISTS:
        if name in chosen:
            chosen[name] = [value for text in chosen[name] for value in read_list(text)]
    settings = Settings(**chosen)
    require_positive(max_body_size=settings.max_body_size)
    patient = server.get("drain_timeout", 0) >= 0  # and a number
    if settings.max_queued_requests < 0 or settings.max_logprobs < 0 or not patient:
        raise ConfigurationError("max_queued_requests, max_logprobs and drain_timeout must be at least 0.")
    if not 0 <= server.get("port", 0) < 2**16:
        raise ConfigurationError(f"port is {server['port']}; it must be from 0 to {2**16 - 1}.")
    if not server.get("host", "-"):
        raise ConfigurationError("host is empty, which would be every address; say 0.0.0.0 if that is what you want.")
    for name in "ssl_certfile", "ssl_keyfile", "ssl_ca_certs":
        if name in server and not Path(server[name]).is_file():
            raise ConfigurationError(f"{name} is {server[name]!r}, and there is no such file.")
        if name in server and "ssl_certfile" not in server:
            raise ConfigurationError(f"{name} is given, and no ssl_certfile: without one there is no https. Give both.")
    if "ssl_certfile" in server:
        check_tls(server)
    return settings


def check_tls(server: dict[str, Any]) -> None:
    """Raise ConfigurationError for files that cannot serve https. If a key has a pass phrase, it is asked for here."""
    context, certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server["ssl_certfile"]

    def load_key(file: str) -> None:  # uvicorn, which loads it again, gets the pass phrase with the other options
        context.load_cert_chain(certificate, file, lambda: server.setdefault("ssl_keyfile_password", getpass()))

    read_certificates = context.load_verify_locations
    reads = ("ssl_certfile", read_certificates), ("ssl_ca_certs", read_certificates), ("ssl_keyfile", load_key)
    for name, read in reads:
        try:
            read(file := server.get(name, certificate))
        except (OSError, EOFError) as error:
            what = f"{file} cannot be used as {name}: {error}"
            raise ConfigurationError(f"{what}. Give files in PEM, and the key of this very certificate.") from error


def read_template(file: str) -> Render:
    try:
        template = ChatTemplate(Path(file).read_text(encoding="utf-8"), origin=file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the chat template {file} cannot be read: {error}") from error
    template.check()
    return template.render


def read_list(text: str) -> list[str]:
    """One value, or several in JSON, as vLLM takes them."""
    if not text.startswith("["):
        return [text]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigurationError(f"{shown(text)} is no list of texts in JSON.")
    return values
