"""The timeline is what Perfetto and chrome://tracing read: the JSON form of the Trace Event Format."""

import json
from itertools import pairwise

import pytest

from minipage.cli import main

REQUIRED = {  # kind of event -> the keys that the format asks for
    "X": {"name", "ph", "ts", "dur", "pid", "tid"},  # complete: something that lasts
    "C": {"name", "ph", "ts", "pid", "args"},  # counter
    "M": {"name", "ph", "pid", "args"},  # metadata
}


@pytest.fixture(scope="module", params=["preemption", "swap"])
def timeline(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("timeline") / "run.json"
    assert main(["demo", request.param, "--timeline", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_event_has_what_the_format_asks_for(timeline):
    assert timeline["displayTimeUnit"] in ("ms", "ns")
    for event in timeline["traceEvents"]:
        assert REQUIRED[event["ph"]] <= event.keys()
        assert all(isinstance(event[key], int) for key in ("ts", "dur", "pid", "tid") if key in event)
        assert event.get("ts", 0) >= 0 and event.get("dur", 1) > 0
        if event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and isinstance(event["args"]["name"], str)


def test_nothing_overlaps_in_a_track(timeline):
    """Events of one thread must nest or follow one another; ours follow, and leave no gap."""
    tracks = {}
    for event in timeline["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault(event["tid"], []).append(event)
    names = {event["tid"] for event in timeline["traceEvents"] if event["name"] == "thread_name"}
    assert names == tracks.keys() and len(tracks) == 2
    for events in tracks.values():
        for before, after in pairwise(events):
            assert before["ts"] + before["dur"] == after["ts"] and before["name"] != after["name"]
    doing = [event["name"] for events in tracks.values() for event in events]
    assert {"prefill", "decode"} <= set(doing) and {"waiting", "swapped"} & set(doing)
