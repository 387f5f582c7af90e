"""`minipage serve --data-parallel-size 2` on a Ray of its own: `pytest -m ray`, where Ray Serve is installed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from minipage import SamplingParams

pytestmark = pytest.mark.ray
pytest.importorskip("ray", reason="Ray Serve is not installed: pip install 'minipage[ray]'")
GREEDY = {"temperature": 0, "ignore_eos": True}


class Started:
    """The command in a process of its own. Whatever it starts has a mark in its environment."""

    def __init__(self, folder, log, *arguments):
        self.mark = f"MINIPAGE_TEST_RAY={uuid4().hex}"
        self.log = log
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | dict([self.mark.split("=")])
        command = [sys.executable, "-m", "minipage", "serve", folder, "--served-model-name", "tiny", "--port", "0"]
        command += ["--block-size", "4", "--num-blocks", "200", *arguments]
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=file, text=True, env=environment
            )
        told = ""
        for line in self.process.stdout:
            told += line
            if found := re.search(r"https?://[^ ;]+", line):
                self.url = found[0]
                return
        raise AssertionError(f"it ended: {told}{Path(log).read_text()}")

    def left(self, name=""):
        """The processes that it has started, by what they call themselves."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                is_ours = self.mark.encode() in (process / "environ").read_bytes()
                title = (process / "cmdline").read_bytes().decode(errors="replace")
            except (OSError, ValueError):
                continue
            if process.name.isdigit() and is_ours and name in title and int(process.name) != self.process.pid:
                found.append(int(process.name))
        return found

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        until(lambda: not self.left())
        return code

    def get(self, path):
        return httpx.get(f"{self.url}{path}", timeout=60)

    def complete(self, prompt, **more):
        body = {"prompt": prompt, "max_tokens": 8, **GREEDY, **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def started(folder, tmp_path_factory):
    started = Started(folder, tmp_path_factory.mktemp("ray") / "log", "--data-parallel-size", 2)
    until(lambda: len(started.get("/load").json()["replicas"]) == 2)
    yield started
    assert started.end() == 0


def cached(answer):
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_texts_are_those_of_one_engine_and_prefixes_are_found(started, offline):
    prompts = [[token, 2, 3, 4] * 6 for token in range(20, 26)]
    params = SamplingParams(max_tokens=8, **GREEDY)
    texts = [output.outputs[0].text for output in offline.generate(prompts, params)]
    for _ in range(2):
        answers = [started.complete(prompt) for prompt in prompts]
        assert [answer.json()["choices"][0]["text"] for answer in answers] == texts
        time.sleep(0.5)
    assert all(cached(answer) >= 20 for answer in answers)
    metrics = started.get("/metrics").text
    served = re.findall(r'vllm:prompt_tokens_total\{engine="(\w+)",model_name="tiny"\} (\S+)', metrics)
    assert len(served) == 2 and all(float(number) > 0 for _, number in served), "both have had some"


def test_streams_and_their_clients_come_and_go(started):
    whole = started.complete([7] * 9, max_tokens=30).json()["choices"][0]["text"]
    body = {"prompt": [7] * 9, "max_tokens": 30, **GREEDY, "stream": True}
    with httpx.stream("POST", f"{started.url}/v1/completions", json=body, timeout=60) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]" and len(lines) > 3
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == whole
    body |= {"max_tokens": 240}
    with httpx.stream("POST", f"{started.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    until(lambda: started.get("/load").json()["server_load"] == 0)
    running = re.findall(r"vllm:num_requests_running\{.*?\} (\S+)", started.get("/metrics").text)
    until(lambda: all(float(number) == 0 for number in running))


def test_a_replica_that_is_killed_loses_no_request_that_had_not_begun_to_answer(started):
    replicas = started.left("ray::ServeReplica:minipage")
    assert len(replicas) == 2
    before = started.get("/load").json()["replicas"].keys()
    answers = {}

    def ask(number):
        is_stream = number % 2 == 0
        answers[number] = started.complete([number + 20] * 9, max_tokens=240, stream=is_stream)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    until(lambda: min(started.get("/load").json()["replicas"].values()) > 3)
    os.kill(replicas[0], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(answers) == 24 and all(answer.status_code == 200 for answer in answers.values())
    for number, answer in answers.items():
        if number % 2:
            assert answer.json()["usage"]["completion_tokens"] == 240
        else:
            *_, last, done = [line for line in answer.text.splitlines() if line]
            assert done == "data: [DONE]"
            assert '"finish_reason": "length"' in last or '"code": "replica_lost"' in last
    until(lambda: len(started.get("/load").json()["replicas"].keys() - before) == 1)  # Ray has started another
    assert started.complete([5] * 9).status_code == 200


def test_a_replica_by_its_name(started):
    [name, *_] = started.get("/load").json()["replicas"]
    assert f'engine="{name}"' in started.get(f"/replicas/{name}/metrics").text
    with httpx.stream("GET", f"{started.url}/replicas/{name}/kv_events", timeout=60) as answer:
        first = next(line for line in answer.iter_lines() if line)
    assert json.loads(first.removeprefix("data: "))["events"][0] == {"type": "AllBlocksCleared"}
    assert started.get("/replicas/nobody/metrics").status_code == 404


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--autoscaling-config", '{"most": 3}'], "autoscaling_config has 'most', which Ray does not know"),
        (["--autoscaling-config", '{"max_replicas": 0}'], "autoscaling_config makes no sense to Ray"),
        (
            ["--data-parallel-size", "2", "--num-blocks", "0"],
            "num_blocks is 0; it must be a whole number of at least 1",
        ),
    ],
)
def test_wrong_options_are_told_in_a_sentence(folder, tmp_path, arguments, sentence):
    with pytest.raises(AssertionError, match=re.escape(sentence)):
        Started(folder, tmp_path / "log", *arguments)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_they_become_more_when_many_wait_and_ray_may_choose(folder, tmp_path):
    scaling = {
        "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 0.5,
        "metrics_interval_s": 0.2, "look_back_period_s": 0.5,
    }  # fmt: skip
    more = ["--router", "ray", "--autoscaling-config", json.dumps(scaling)]
    started = Started(folder, tmp_path / "log", "--data-parallel-size", 1, *more)
    try:
        assert len(started.get("/load").json()["replicas"]) == 1
        is_over = threading.Event()

        def ask():
            while not is_over.is_set():
                assert started.complete([9] * 9, max_tokens=240).status_code == 200

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(started.get("/load").json()["replicas"]) == 2, seconds=120)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    finally:
        assert started.end() == 0
