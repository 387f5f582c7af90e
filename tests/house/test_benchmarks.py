"""Every benchmark answers --help, whatever is not installed, and says what it lacks in a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = (
    "cupy", "flashinfer", "httpx", "matplotlib", "playwright", "prometheus_client", "pydantic", "ray", "starlette",
    "threadpoolctl", "torch", "transformers", "uvicorn", "vllm", "numba.cuda",
)  # fmt: skip
COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8"))


def started(name, *arguments):
    """The benchmark in a Python that has nothing but what the engine needs."""
    hidden = f"import runpy, sys; sys.modules |= dict.fromkeys({NOT_INSTALLED})"
    code = f"{hidden}; sys.argv[1:] = {list(arguments)}; runpy.run_module('benchmarks.{name}', None, '__main__', True)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_answered_whatever_is_missing(name):
    ended = started(name, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: ") and name in ended.stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("attention", "torch"),
        ("captures", "torch"),
        ("gpu", "torch"),
        ("gpu_engine", "torch"),
        ("gpu_llama", "torch"),
        ("gpu_prompts", "torch"),
        ("gpu_speculation", "torch"),
        ("page", "playwright"),
        ("serve", "--group benchmarks"),
        ("replicas", "pip install 'minipage[ray]' httpx"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(name, sentence):
    ended = started(name)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1 and sentence in ended.stderr


@pytest.mark.parametrize("name", ["asking", "peer_workers"])
def test_a_helper_that_is_started_wrongly_says_how(name):
    ended = started(name)
    assert ended.returncode == 2 and ended.stderr.startswith("usage: ") and "Traceback" not in ended.stderr
