"""Load testers that others wrote, run by the commands of docs/serving.md: `pytest -m peers tests/serve`.

Each is a program that is looked for on PATH, and skipped if it is not there. What it has counted is what /metrics says.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve.started import Started

from benchmarks import servers
from minipage.model.checkpoint import SHIPPED_MODEL, find_folder

pytestmark = pytest.mark.peers

PAGE = Path(__file__).parents[2] / "docs/serving.md"
NUM_REQUESTS, TOKENS_IN, TOKENS_OUT = 64, 64, 32


@pytest.fixture(scope="module")
def server():
    started = Started("--port", 0, "--served-model-name", "it", "--log-level", "warning")
    yield started
    assert started.end(signal.SIGTERM) == (0, "")


def documented(tool):
    """The words of the command that the page has for a tool."""
    lines = PAGE.read_text().replace("\\\n", " ").splitlines()
    [command] = [line for line in lines if re.match(rf"{tool} (bench|profile|run)\b", line)]
    return shlex.split(command)


def run(tool, server, folder, *more):
    """Run a tool in a folder, against a server, and give back what it printed."""
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"there is no {tool} on PATH: pip install {tool} into an environment of its own, and add its bin.")
    places = {"http://127.0.0.1:8000": server.url, "path/to/model": str(find_folder(SHIPPED_MODEL))}
    words = [program, *documented(tool)[1:], *more]
    if tool == "vllm":
        words[:1] = servers.vllm_command()
    for example, real in places.items():
        words = [word.replace(example, real) for word in words]
    done = subprocess.run(
        words, cwd=folder, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counted(server):
    """(requests, tokens in, tokens out) so far, by the server's metrics."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    values = {}
    for sample in (sample for family in families for sample in family.samples):
        values[sample.name] = values.get(sample.name, 0) + sample.value
    names = "request_success_total", "prompt_tokens_total", "generation_tokens_total"
    return [values[f"vllm:{name}"] for name in names]


def check(server, before, num_requests, tokens_in, tokens_out):
    """What a tool has counted is what it was told to ask for, and what the server has counted."""
    assert (num_requests, tokens_out) == (NUM_REQUESTS, NUM_REQUESTS * TOKENS_OUT)
    assert tokens_in == pytest.approx(NUM_REQUESTS * TOKENS_IN, rel=0.02)  # a random text may become a token more
    assert [after - then for after, then in zip(counted(server), before)] == [num_requests, tokens_in, tokens_out]


def test_vllm_bench_serve(server, tmp_path):
    before = counted(server)
    printed = run("vllm", server, tmp_path, "--save-result", "--result-filename", "result.json")
    assert "Serving Benchmark Result" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failed"] == 0 and result["median_ttft_ms"] > 0
    found = result["completed"], result["total_input_tokens"], result["total_output_tokens"]
    check(server, before, *found)


def test_aiperf(server, tmp_path):
    before = counted(server)
    printed = run("aiperf", server, tmp_path, "--output-artifact-dir", "here", "--ui", "none")
    assert "Time to First Token" in printed
    result = json.loads((tmp_path / "here/profile_export_aiperf.json").read_text())
    check(server, before, *(result[name]["avg"] for name in ("request_count", "total_isl", "total_osl")))
    of_server = (tmp_path / "here/server_metrics_export.json").read_text()
    assert "vllm:kv_cache_usage_perc" in of_server and "vllm:num_requests_running" in of_server


def test_guidellm(server, tmp_path):
    before = counted(server)
    printed = run("guidellm", server, tmp_path, "--output", "kind=console", "--output", "kind=json,path=result.json")
    assert "Request Latency Statistics" in printed
    [benchmark] = json.loads((tmp_path / "result.json").read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"]["errored"] == 0 and metrics["time_to_first_token_ms"]["successful"]["median"] > 0
    tokens = [metrics[f"{which}_token_count"]["successful"]["total_sum"] for which in ("prompt", "output")]
    check(server, before, metrics["request_totals"]["successful"], *tokens)
