"""Every benchmark answers --help, whatever is not installed, and says what it lacks in a sentence."""

import json
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
LACKS = {
    "attention": "torch",
    "captures": "torch",
    "gpu": "torch",
    "gpu_engine": "torch",
    "gpu_llama": "torch",
    "gpu_prompts": "torch",
    "gpu_speculation": "torch",
    "page": "playwright",
    "serve": "--group benchmarks",
    "replicas": "pip install 'minipage[ray]' httpx",
}
HELPERS = "asking", "peer_workers"
# One Python runs them all, one after the other, because to start it takes longer than to ask. Each is loaded anew.
ASK_ALL = f"""
import contextlib, io, json, runpy, sys
sys.modules |= dict.fromkeys({NOT_INSTALLED})
answers = {{}}
for line in sys.stdin.read().splitlines():
    name, *sys.argv[1:] = line.split()
    for module in [each for each in sys.modules if each.partition(".")[0] == "benchmarks"]:
        del sys.modules[module]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"benchmarks.{{name}}", None, "__main__", True)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = repr(error)
    answers[line] = code, out.getvalue(), err.getvalue()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers():
    """What each of them ended with, said, and complained of, in a Python that has only what the engine needs."""
    lines = [f"{name} --help" for name in COMMANDS] + [*LACKS, *HELPERS]
    asked = subprocess.run(
        [sys.executable, "-c", ASK_ALL], input="\n".join(lines), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    return json.loads(asked.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_answered_whatever_is_missing(answers, name):
    code, out, err = answers[f"{name} --help"]
    assert (code, err) == (0, "")
    assert out.startswith("usage: ") and name in out


@pytest.mark.parametrize("name", LACKS)
def test_what_is_missing_is_said_in_a_sentence(answers, name):
    code, out, err = answers[name]
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and LACKS[name] in err


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_that_is_started_wrongly_says_how(answers, name):
    code, _, err = answers[name]
    assert code == 2 and err.startswith("usage: ")
