"""Never a dead screen: where no kernel is compiled the demo needs none, and says so."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minipage import LLM
from minipage.attention import cpu
from minipage.trace.playing import quick_start
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.quick_start import NOTE, NUMPY, TEXT, kernel_name, quick_options
from minipage.trace.playing.scenarios import SCENARIOS, story_after


def test_a_machine_that_has_compiled_nothing_shows_the_demo_and_compiles_nothing(tmp_path):
    command = [sys.executable, "-m", "minipage", "demo", "basics", "--steps", "2"]
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert f"minipage: {NOTE}" in run.stderr and "block table 0 1" in run.stdout
    assert not list(tmp_path.rglob("*.nbc"))
    assert "Next story: One memory, four ways to deal it out:\n    python -m minipage demo fragmentation" in run.stdout


def test_the_text_that_is_advised_needs_all_kernels(monkeypatch):
    """With a shorter one, which is no prefill, the advice could be followed for ever."""
    used = set()
    for name in ("prefill", "decode"):
        kernel = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *args, name=name, kernel=kernel: used.add(name) or kernel(*args))
    LLM(num_blocks=16).generate(TEXT)
    assert used == {"prefill", "decode"}


def test_the_kernel_of_several_ranks_is_that_of_the_first():
    ranks = SimpleNamespace(runner=SimpleNamespace(runner=SimpleNamespace(paged_attention=cpu.paged_attention)))
    assert kernel_name(ranks) == "attention: numba, compiled"


def test_who_has_chosen_gets_what_was_chosen(monkeypatch):
    monkeypatch.setattr(quick_start, "are_compiled", lambda: False)
    assert quick_options({"block_size": 4}) == NUMPY
    for option in ("model", "device", "arrays", "attention", "dtype"):
        assert quick_options({option: "mine"}) == {}
    monkeypatch.setattr(quick_start, "are_compiled", lambda: True)
    assert quick_options({}) == {}


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "numba, compiled"), (NUMPY, "NumPy (the reference)"), ({"attention": lambda *args: None}, "your own")],
)
def test_it_is_said_which_kernel_runs(options, name):
    assert kernel_name(LLM(num_blocks=4, **options)) == f"attention: {name}"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS if name != "basics"]


@pytest.mark.parametrize("name", ["basics", *SLOW])
def test_every_story_says_the_same_in_numpy(name):
    def texts(options):
        *_, last = Demo(make_engine(SCENARIOS[name], options), SCENARIOS[name]).frames()
        return [seq.text for seq in last.all_sequences]

    assert texts({}) == texts(NUMPY)


def test_after_each_story_comes_another_one():
    names = list(SCENARIOS)
    assert [story_after(name).name for name in names[:-1]] == names[1:]
    assert story_after(names[-1]) is None and story_after("unheard of") is None
