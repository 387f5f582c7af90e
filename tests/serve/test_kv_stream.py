"""`GET /kv_events`, read as a router would read it."""

import gc
import json

import httpx
from serve.lookers import until

KEY = {"Authorization": "Bearer secret"}
ENABLED = {
    "enable_prefix_caching": True, "kv_events_config": {"enable_kv_cache_events": True}, "block_size": 4,
    "attention": "reference", "settings": {"api_key": ["secret"]},
}  # fmt: skip


def batches(lines):
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def complete(url, prompt):
    body = {"prompt": prompt, "max_tokens": 1}
    return httpx.post(f"{url}/v1/completions", json=body, headers=KEY, timeout=60).raise_for_status()


def reading(url):
    return httpx.stream("GET", url, headers=KEY, timeout=60)


def test_a_reader_who_goes_leaves_nothing_behind(serve, caplog):
    """Not even a task that waits for news; Python says so when it finds one."""
    served = serve(**ENABLED)
    with reading(f"{served.url}/kv_events") as response:
        next(batches(response.iter_lines()))
    until(lambda: not served.server.server_state.tasks)
    gc.collect()
    assert "destroyed" not in caplog.text


def test_a_reader_is_told_what_is_there_and_then_what_comes_until_the_server_stops(serve):
    served = serve(**ENABLED)
    url = f"{served.url}/kv_events"
    assert httpx.get(url).status_code == 401
    assert httpx.get(f"{url}?after=x", headers=KEY).json()["error"]["param"] == "after"
    complete(served.url, [5] * 9)
    with reading(url) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = batches(response.iter_lines())
        first = next(told)
        assert first["events"][0] == {"type": "AllBlocksCleared"}
        assert [5] * 4 in [event["token_ids"] for event in first["events"][1:]]
        complete(served.url, [5] * 8 + [6] * 5)
        second = next(told)
        [stored] = second["events"]
        assert (stored["type"], stored["token_ids"], second["seq"]) == ("BlockStored", [6] * 4, first["seq"] + 1)
    with reading(f"{url}?after={first['seq']}") as response:
        lines = response.iter_lines()
        assert next(batches(lines))["events"] == second["events"]
        served.stop()  # which waits for nobody who reads
        assert list(batches(lines)) == []


def test_without_events_or_from_elsewhere_a_sentence(served):
    answer = httpx.get(f"{served.url}/kv_events")
    assert answer.status_code == 404
    assert "--kv-events-config" in answer.json()["error"]["message"]
    for elsewhere in {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}:
        assert httpx.get(f"{served.url}/kv_events", headers=elsewhere).status_code == 403
