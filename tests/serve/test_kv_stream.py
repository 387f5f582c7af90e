"""`GET /kv_events`, read as a router would read it."""

import json

import httpx
import pytest

ENABLED = {"enable_prefix_caching": True, "kv_events_config": {"enable_kv_cache_events": True}}


def batches(lines):
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def complete(url, prompt, **headers):
    body = {"prompt": prompt, "max_tokens": 1}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60).raise_for_status()


def test_a_reader_is_told_what_is_there_and_then_what_comes(serve):
    served = serve(block_size=4, **ENABLED)
    complete(served.url, [5] * 9)
    with httpx.stream("GET", f"{served.url}/kv_events", timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = batches(response.iter_lines())
        first = next(told)
        assert first["events"][0] == {"type": "AllBlocksCleared"}
        assert [5] * 4 in [event["token_ids"] for event in first["events"][1:]]
        complete(served.url, [5] * 8 + [6] * 5)
        second = next(told)
        [stored] = second["events"]
        assert (stored["type"], stored["token_ids"], second["seq"]) == ("BlockStored", [6] * 4, first["seq"] + 1)
    with httpx.stream("GET", f"{served.url}/kv_events?after={first['seq']}", timeout=60) as response:
        assert next(batches(response.iter_lines()))["events"] == second["events"]


def test_who_may_not_read_them(serve):
    served = serve(settings={"api_key": ["secret"]}, **ENABLED)
    assert httpx.get(f"{served.url}/kv_events").status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert httpx.get(f"{served.url}/kv_events?after=x", headers=key).json()["error"]["param"] == "after"
    foreign = key | {"Sec-Fetch-Site": "cross-site"}
    assert httpx.get(f"{served.url}/kv_events", headers=foreign).status_code == 403


@pytest.mark.parametrize("host", ["evil.example"])
def test_without_events_or_from_elsewhere_a_sentence(served, host):
    answer = httpx.get(f"{served.url}/kv_events")
    assert answer.status_code == 404
    assert "--kv-events-config" in answer.json()["error"]["message"]
    assert httpx.get(f"{served.url}/kv_events", headers={"Host": host}).status_code == 403


def test_a_server_that_stops_does_not_wait_for_readers(serve):
    served = serve(**ENABLED)
    with httpx.stream("GET", f"{served.url}/kv_events", timeout=60) as response:
        lines = response.iter_lines()
        next(batches(lines))
        served.stop()
        assert list(batches(lines)) == []
