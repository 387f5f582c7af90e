"""From options to a server that runs, and to its end.

The port is taken before the model is loaded, so that a port in use is known at once. On SIGTERM or Ctrl-C nobody new
comes in, and those who are here may finish within `drain_timeout` seconds; then their requests are aborted, and each
gets what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import FrameType
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.llm import LLM
from minipage.engine.mailbox import Result
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.sampling import SamplingParams
from minipage.serve.app import Settings, make_app
from minipage.serve.limits import Connection, close_silent, limit_greetings

PATIENCE = 5  # added to the engine's niceness; with 19, it is interrupted for long while it has Python's lock
SECONDS_UNTIL_AGAIN = 0.1
KEEP_ALIVE_SECONDS = 65  # longer than clients do, or a connection would be closed just as the next request comes
LAST_WORDS_SECONDS = 5.0  # for what was aborted to be sent
MOST_HEADER_BYTES = 64 * 1024
MOST_NOT_ACCEPTED = 2048  # connections that the system keeps for us until we come to them
MOST_AT_A_TIME = 64  # that are accepted before the others are looked at again, which may have sent their requests


class Server(uvicorn.Server):
    """uvicorn's server, which aborts what is left when it has waited long enough.

    Args:
        end_streams: ends those that have no end of their own.
        abort_all: lets whoever is still here get what there is.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        end_streams: Callable[[], object],
        abort_all: Callable[[], object],
        drain_timeout: float,
        tell: Callable[[str], object],
    ) -> None:
        super().__init__(config)
        self.end_streams = end_streams
        self.abort_all = abort_all
        self.drain_timeout = drain_timeout
        self.tell = tell
        self.has_given_up = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl:
            limit_greetings(asyncio.get_running_loop())
        await super().startup(sockets)
        [listener] = sockets or []
        listener.listen(MOST_NOT_ACCEPTED)  # for asyncio both are one number
        self.tell(address(listener, bool(self.config.ssl)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.end_streams()
        timer = asyncio.get_running_loop().call_later(self.drain_timeout, self.give_up)
        await super().shutdown(sockets)
        timer.cancel()

    def give_up(self) -> None:
        """Those who are here get what there is; those whose requests have not come are not waited for.

        A request whose texts are still being read when the others are stopped comes to the engine later: so once more.
        """
        self.has_given_up = True
        self.abort_all()
        close_silent(self.server_state)
        asyncio.get_running_loop().call_later(SECONDS_UNTIL_AGAIN, self.give_up)  # if it still runs then

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's own would raise the signal again in the end: a server that was told to stop has not failed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.loop = asyncio.get_running_loop()
        known = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in known.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second Ctrl-C ends the waiting; a third leaves whoever is here without an answer, as uvicorn's second."""
        if self.should_exit and sig == signal.SIGINT and not self.has_given_up:
            self.loop.call_soon_threadsafe(self.give_up)
        else:
            super().handle_exit(sig, frame)


def take_port(host: str, port: int) -> socket.socket:
    """Raises OSError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio lets small answers go at once (TCP_NODELAY) only where the protocol is named. Otherwise every answer on a
    # connection except the first would wait about 40 ms for the client's system to acknowledge its headers.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a host that is no name in any alphabet
        sock.close()
        raise OSError(f"cannot listen on {host}, port {port}: {error}") from error
    return sock


def address(sock: socket.socket, is_tls: bool) -> str:
    host, port = sock.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(
    llm: AsyncLLM,
    settings: Settings,
    *,
    drain_timeout: float = 30.0,
    log_level: str = "info",
    tell: Callable[[str], object] = lambda where: None,
    **uvicorn_options: Any,
) -> Server:
    """A server that is ready to run: `server.run(sockets=[take_port(host, port)])`.

    Args:
        tell: called with the address once it answers.
        uvicorn_options: root_path, and TLS files: ssl_keyfile, ssl_certfile, and if clients need certificates of their
            own, ssl_ca_certs.
    """
    app = make_app(llm, settings)

    def abort_all() -> None:
        if llm.is_alive:
            llm.abort_all()

    config = make_config(app, drain_timeout, log_level, **uvicorn_options)
    return Server(config, app.state.live.end, abort_all, drain_timeout, tell)


def make_config(
    app: ASGIApp, drain_timeout: float, log_level: str, root_path: str = "", **uvicorn_options: Any
) -> uvicorn.Config:
    if "ssl_ca_certs" in uvicorn_options:  # which alone would ask nobody for a certificate
        uvicorn_options.setdefault("ssl_cert_reqs", ssl.CERT_REQUIRED)
    return uvicorn.Config(
        behind_proxy(app, f"/{root_path.strip('/')}".rstrip("/")),
        loop="asyncio",  # limits.py reaches into it; uvloop would be taken where it is installed
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning" if log_level == "info" else log_level,  # uvicorn's own lines; ours are in access.py
        access_log=False,
        server_header=False,
        backlog=MOST_AT_A_TIME,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_timeout + LAST_WORDS_SECONDS,  # type: ignore[arg-type]
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        **uvicorn_options,
    )


def behind_proxy(app: ASGIApp, root_path: str) -> ASGIApp:
    """An application that a proxy has put under a path, whether the proxy takes that off or leaves it where it is."""

    async def placed(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        is_whole = f"{path}/".startswith(f"{root_path}/")
        await app({**scope, "root_path": root_path, "path": path if is_whole else root_path + path}, receive, send)

    return placed if root_path else app


def start_log(log_level: str) -> None:
    """Raises ConfigurationError."""
    if log_level not in ("debug", "info", "warning", "error", "critical"):
        raise ConfigurationError(f"log_level is {log_level!r}; it must be debug, info, warning, error or critical.")
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=log_level.upper())


def serve(
    load: Callable[[], AsyncLLM],
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "info",
    **options: Any,
) -> None:
    """Load a model and serve it until SIGTERM or Ctrl-C. Options are those of `make_server`.

    Raises:
        OSError: the port cannot be had, or a TLS file cannot be read.
        ConfigurationError: an option makes no sense.
    """
    start_log(log_level)
    sock = take_port(host, port)
    with sock, load() as llm:
        keep_what_is_here()
        make_server(llm, settings, log_level=log_level, **options).run(sockets=[sock])


def load_llm(engine: dict[str, Any]) -> LLM:
    """A model with these options of LLM, whose first client waits for nothing but his own request."""

    def load() -> LLM:
        llm = LLM(**engine)
        take_memory(llm)
        warm_up(llm)
        return llm

    return apart(load) if engine.get("device", "cpu") == "cpu" else load()


def apart(call: Callable[[], Result]) -> Result:
    """What a call returns that runs in a thread of its own: when that ends, so do the threads it has computed with.

    OpenMP gives helpers to each thread that shares a loop. While there are more of them than processors, GNU's sleep as
    soon as they have nothing to do, and to wake one takes 40 us and more: with those of the thread that has loaded the
    model beside those of the engine's thread, every loop of a step would take that much longer.
    """
    answer: Future[Result] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, name="minipage apart", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # not for ever: a signal that comes just before a wait begins does not end it
        return answer.result()
    except KeyboardInterrupt as error:  # of which only the main thread hears
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(type(error)))
        raise
    finally:
        thread.join()


def take_memory(llm: LLM) -> None:
    """Write zeros to all of this process's KV cache before anything is in it; of several ranks, to the first one's.

    A system hands out memory page by page as it is first written, and until the pool has been used once the prompts of
    clients would wait for that (docs/performance.md has the figures).
    """
    for array in llm.kv_cache.arrays:
        if isinstance(array, np.ndarray):  # and not in a GPU's memory
            array.fill(0)  # [num_layers, num_blocks, ...]


def warm_up(llm: LLM) -> None:
    """Compile what the first clients would wait for otherwise, up to a minute on a new machine. It is not counted, and
    no prefix of it stays known.

    A short prompt and a long one: there are kernels for both.
    """
    for num_tokens in 2, 64:
        prompt = [0] * min(num_tokens, llm.max_model_len - 1)
        with contextlib.suppress(InvalidRequestError):  # a pool, or a context, too small for even that
            llm.generate([prompt], SamplingParams(max_tokens=2, ignore_eos=True))
    llm.reset_stats()
    if cache := llm.scheduler.prefix_cache:
        for block in range(llm.block_pool.num_blocks):  # and no more: a tier may hold what clients will ask for
            cache.forget(block)


def keep_what_is_here() -> None:
    """Python's garbage collector need not look again at what libraries and the model are made of. To look at all of it
    takes 60 ms, in which no thread runs any Python, so neither a step nor /health."""
    gc.collect()
    gc.freeze()


def let_others_go_first(llm: AsyncLLM) -> None:
    """While a step keeps all processors busy, the event loop should get one at once when somebody asks for something.

    Threads that the engine's thread starts to compute with, as those of OpenMP, are as patient as it is.
    """
    if sys.platform == "linux":  # elsewhere it would be the whole process that gives way
        llm.between_steps(lambda: os.nice(PATIENCE)).result()
