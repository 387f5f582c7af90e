"""The headline's contenders, with a small model on a CPU: all of them run, one after the other, and say the same."""

import json

import pytest

from benchmarks.headline import ENGINES, PLAIN, TEXTS, Deadline, add_engine, small_task
from benchmarks.headline_peers import continuous

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.slow
def test_all_contenders_run_in_the_headlines_order_and_say_the_same(tmp_path):
    small = small_task(str(tmp_path), "cpu")._replace(limit=600.0)  # on a busy machine compiling takes minutes
    measured = small._replace(weights=False)
    results = {TEXTS: {}, "engines": {}}
    for who in ENGINES:
        add_engine(results, who, measured, small, PLAIN, Deadline(3600.0))
    assert [who for who, result in results["engines"].items() if "error" in result] == []
    texts = results[TEXTS]
    assert list(texts) == list(ENGINES) and [who for who in ENGINES if texts[who] != texts["minipage"]] == []
    assert [len(text) for text in texts["minipage"]] == [num_tokens for _, num_tokens in small.requests]
    assert all(result["tokens"] == 4 * 24 for result in results["engines"].values())
    json.dumps(results)


@pytest.mark.slow
def test_continuous_batching_is_warmed_up_outside_inference_mode(tmp_path, monkeypatch):
    """transformers 5.17 generates in a thread that is not in it, and may then not write to what the warm-up made."""
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    modes = []
    warmup = ContinuousBatchingManager.warmup
    monkeypatch.setattr(
        ContinuousBatchingManager, "warmup",
        lambda manager: (modes.append(torch.is_inference_mode_enabled()), warmup(manager)),
    )  # fmt: skip
    assert len(continuous(small_task(str(tmp_path), "cpu"), PLAIN)["texts"]) == 4
    assert modes == [False]
