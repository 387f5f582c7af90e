"""From options to a playground that runs: on the command line until Ctrl-C, in a notebook until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import webbrowser
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import uvicorn

from minipage.errors import ConfigurationError
from minipage.play.acts import MOST
from minipage.play.app import Pages, make_app
from minipage.play.challenges import BASE
from minipage.play.playground import Playground
from minipage.play.run import Build
from minipage.play.siblings import Sibling
from minipage.scheduling import POLICIES
from minipage.serve.limits import Connection
from minipage.serve.main import address, take_port, warm_up
from minipage.trace.playing.spinner import spinner

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

HOST = "127.0.0.1"  # and nothing else: whoever can reach a playground can play
BEGIN: dict[str, Any] = BASE | {"swap_space": "16MiB"}
FRAME_HEIGHT = 860  # pixels, in a notebook
PATIENCE = 2.0  # seconds that it begins in, on a machine where it has begun before; then it is said what takes long


class Server(uvicorn.Server):
    """uvicorn's server, which does not wait for streams that have no end."""

    def __init__(self, playground: Playground, subtitle: str) -> None:
        self.pages = Pages(playground, subtitle)
        config = uvicorn.Config(
            make_app(self.pages),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)

    async def shutdown(self, sockets: Any = None) -> None:
        self.pages.end()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """In a notebook signals are the notebook's; on the command line Ctrl-C ends the loop."""
        yield


class Table:
    """A playground with its server, in threads of their own.

    Raises:
        OSError: the port cannot be had.
        ConfigurationError: an option makes no sense.
    """

    def __init__(
        self,
        build: Build,
        options: dict[str, Any],
        subtitle: str = "",
        port: int = 0,
        blamed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._socket = take_port(HOST, port)
        try:
            self.playground = Playground(build, options, blamed)
        except BaseException:
            self._socket.close()
            raise
        self._socket.listen()  # so that who comes before the server has begun is not turned away
        self.url = address(self._socket, is_tls=False)
        self._server = Server(self.playground, subtitle)
        self._thread = threading.Thread(target=self._serve, name="minipage play server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        """Nothing runs any more, and the pages are told so."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self.playground.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """In a notebook it shows itself."""
        return (
            f'<iframe src="{self.url}/?embed" title="minipage: play" style="width: 100%; border: 0" '
            f'height="{FRAME_HEIGHT}"></iframe>'
        )


def run(
    engine: dict[str, Any],
    port: int = 0,
    no_browser: bool = False,
    build: Build | None = None,
    note: str = "",
    blamed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Play until Ctrl-C.

    Args:
        engine: options of LLM.
        build: makes engines of them, in place of LLM.
        note: for the title.
    """
    from minipage.engine.llm import LLM  # with numba and all it takes half a second

    engine = dict(engine)
    if not 0 <= port < 2**16:
        raise ConfigurationError(f"port is {port}; it must be from 0 to {2**16 - 1}.")
    options = BEGIN | engine
    if "memory" in options:
        del options["num_blocks"]
    with spinner("loading the model", long=PATIENCE):
        first = (build or LLM)(**options)
        options.pop("memory", None)
        options["num_blocks"] = first.block_pool.num_blocks
        check_sizes(options)
        if build is None:  # a learner's parts have their first step on the page
            warm_up(first)  # or a page would stand still for half a minute on a new machine, and could not say why
    make: Build = build or builder(first)
    subtitle = ", ".join(filter(None, [str(engine.get("model", "")), note])) or "the shipped model"
    with Table(make, options, subtitle, port, blamed) as table:
        print(f"minipage plays on {table.url}; Ctrl-C ends it.", flush=True)
        if not no_browser:
            webbrowser.open(table.url)
        threading.Event().wait()


def check_sizes(options: dict[str, Any]) -> None:
    """Raise ConfigurationError for what the page could not show."""
    for name, most in MOST.items():
        if options[name] > most:
            raise ConfigurationError(f"{name} is {options[name]:,}; a page to play with shows at most {most:,}.")


def builder(llm: LLM) -> Build:
    """Makes engines with the model of one that is there: it is not loaded again."""
    return lambda **options: Sibling(llm, **options)


def play(llm: LLM, port: int = 0) -> Table:
    """For a notebook: a playground with the model and the options of an engine, which itself is left alone."""
    scheduler, pool = llm.scheduler, llm.block_pool
    policies = {function: name for name, function in POLICIES.items()}
    options = BEGIN | {
        "block_size": pool.block_size,
        "num_blocks": pool.num_blocks,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "policy": policies.get(scheduler.policy, "fcfs"),
        "preemption": "swap" if scheduler.swap_pool else "recompute",
        "enable_prefix_caching": scheduler.prefix_cache is not None,
    }
    for name, most in MOST.items():
        options[name] = min(options[name], most)  # what a page can show
    return Table(builder(llm), options, "", port)
