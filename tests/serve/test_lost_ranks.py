"""A server whose model is in several ranks, when one of them is lost; and ranks that torchrun starts. All slow."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROMPT = "KING RICHARD III:\nMy kingdom for a"
ENVIRONMENT = os.environ | {"NUMBA_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def ask(port, **more):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 12, "temperature": 0, **more}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def children(pid):
    """The processes that a process has started: the other ranks."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Served:
    """`minipage serve` in a process of its own."""

    def __init__(self, port):
        command = [sys.executable, "-m", "minipage", "serve", "--port", str(port), "--tensor-parallel-size", "2"]
        self.port = port
        self.process = subprocess.Popen(
            [*command, "--num-blocks", "64", "--drain-timeout", "2"], env=ENVIRONMENT,
            stdout=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        for line in self.process.stdout:
            if "serves" in line:
                break

    def ranks(self):
        return [
            pid for pid in children(self.process.pid) if b"engine.rank" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_server_that_has_lost_a_rank_says_503_and_works_after_a_restart():
    port = free_port()
    server = Served(port)
    try:
        status, before = ask(port)
        assert status == 200
        [rank] = server.ranks()
        os.kill(rank, signal.SIGKILL)
        begin = time.monotonic()
        status, told = ask(port)
        assert time.monotonic() - begin < 10
        assert status == 503 and "rank 1 is lost" in json.dumps(told)
        assert ask(port)[0] == 503
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
        assert server.ranks() == []
    finally:
        server.stop()
    server = Served(port)
    try:
        status, after = ask(port)
        assert status == 200 and after["choices"][0]["text"] == before["choices"][0]["text"]
        ranks = server.ranks()
    finally:
        assert server.stop() == 0
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_ranks_end_when_rank_0_is_killed():
    server = Served(free_port())
    ranks = server.ranks()
    assert len(ranks) == 1
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.1)


def generate(*options):
    command = ["-m", "minipage", "generate", PROMPT, "--max-tokens", "12", "--temperature", "0", *options]
    return command


def text_of_one_process():
    return subprocess.run(
        [sys.executable, *generate()], env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout


def test_a_story_names_the_ranks():
    command = [sys.executable, "-m", "minipage", "demo", "ranks", "--plain"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", check=True)
    told = " ".join(done.stdout.split())
    assert "rank 0 keeps heads 0 to 1" in told and "rank 1 keeps heads 2 to 3" in told


def test_torchrun_starts_ranks_on_one_machine():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, *generate()], env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == text_of_one_process()  # once: only rank 0 says anything


def test_torchrun_starts_ranks_on_two_machines_which_are_this_one():
    rendezvous = f"127.0.0.1:{free_port()}"
    nodes = []
    for node in range(2):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)]
        launcher += [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            rendezvous,
            "--rdzv-id",
            "two",
            "--local-addr",
            "127.0.0.1",
        ]
        nodes.append(
            subprocess.Popen(
                [sys.executable, *launcher, *generate()],
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        )
    told = [node.communicate(timeout=180) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], [errors[-2000:] for _, errors in told]
    assert "".join(said for said, _ in told) == text_of_one_process()


def test_ranks_with_different_models_are_refused(tmp_path):
    """Each process of torchrun is told another model: whoever has rank 1 gets a changed copy."""
    import shutil

    from minipage.model.checkpoint import SHIPPED_MODEL, find_folder

    for rank in range(2):
        shutil.copytree(find_folder(SHIPPED_MODEL), tmp_path / str(rank))
    weights = tmp_path / "1" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for place in range(len(data) // 2, len(data), 50):
        data[place] ^= 1
    weights.write_bytes(data)
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom minipage import LLM\n"
        f"LLM(f'{tmp_path}/' + os.environ['RANK'], num_blocks=32, tensor_parallel_size=2)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launcher, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode != 0
    assert "rank 1 has another content of its weights" in done.stderr
