"""Figures are rerun beside the paper's numbers, and what is missed is said to be missed."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from serve.lookers import until

from minipage.errors import ModelError
from minipage.simulate import __main__ as screen
from minipage.simulate.configs import find_architecture
from minipage.simulate.figures import FIGURES, Scale, rates
from minipage.simulate.figures.jobs import ALL, DATASETS, last_at, rate_at
from minipage.simulate.paper import MEASURED_AT, Row
from minipage.simulate.pictures import Picture, round_up, svg
from minipage.simulate.pools import run_jobs


@pytest.mark.parametrize(
    ("simulated", "paper", "verdict"),
    [(109, 100, "met"), (111, 100, "missed"), (89, 100, "missed"), (2, (1, 3), "met"), (3.2, (1, 3), "met"),
     (3.4, (1, 3), "missed"), (5, None, "")],
)  # fmt: skip
def test_a_number_is_met_within_its_tolerance_and_missed_beyond(simulated, paper, verdict):
    assert Row("", simulated, paper).verdict == verdict


def test_a_picture_is_xml_with_a_mark_for_each_number():
    lines = Picture("a < b", "x", "y", {"one": [(0, 1), (2, 3)], "two": [(1, float("nan"))]})
    root = ElementTree.fromstring(svg(lines))
    assert len(root.findall("{*}circle")) == 2
    bars = Picture("bars", "", "y", {"one": [(0, 1), (1, 3)]}, "bars", ["A", "B"])
    assert "B" in [text.text for text in ElementTree.fromstring(svg(bars)).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(("value", "rounded"), [(0.9, 1), (1.2, 1.5), (7, 8), (45, 50), (0, 1)])
def test_axes_end_at_round_numbers(value, rounded):
    assert round_up(value) == pytest.approx(rounded)


@pytest.mark.parametrize("option", ["--json", "--page", "--svg"])
def test_what_cannot_be_written_is_said_before_anything_runs(option, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    places = [
        tmp_path / "circle",
        *([tmp_path / "file"] if option == "--svg" else [tmp_path, tmp_path / "none" / "file"]),
    ]
    for place in places:
        assert screen.main(["figure", "all", option, str(place)]) == 2
        screens = capsys.readouterr()
        assert screens.out == "" and str(place) in screens.err


def test_a_page_that_is_no_text_and_one_file_for_two_things_are_sentences(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_bytes(b"\xff\xfe")
    assert screen.main(["figure", "all", "--page", str(page)]) == 2
    assert "cannot be read as text" in capsys.readouterr().err
    assert screen.main(["figure", "all", "--page", str(page), "--json", str(tmp_path / "." / "page.md")]) == 2
    assert "name the same file" in capsys.readouterr().err


def test_the_highest_rate_that_still_keeps_a_latency_counts():
    points = [
        (rate, SimpleNamespace(normalized_latency=latency)) for rate, latency in ((1.0, 0.1), (2.0, 0.2), (3, 0.8))
    ]
    assert (last_at(points, 0.3), last_at(points, 0.8)) == (2.0, 3)
    assert last_at(points, 0.05) != last_at(points, 0.05)  # there is none


def test_factors_are_read_at_the_rates_that_the_paper_measured():
    """With curves made up so that all wait from 0.85, 0.35 and 0.15 requests a second on, they are 8 and 2.7."""
    waits_from = {"paged": 0.85, "oracle": 0.35, "pow2": 0.2, "max": 0.15, "static": 0.05}

    def curve(memory, rates):
        return [(rate, SimpleNamespace(normalized_latency=1.0 + (rate > waits_from[memory]))) for rate in rates]

    shares = (0.01, 0.02, 0.1, 0.5, 1.0)
    results = {
        (model, dataset, memory): (1.0, curve(memory, shares))
        for model in rates.MODELS for dataset in DATASETS for memory in ALL
    }  # fmt: skip
    for model, measured in MEASURED_AT.items():
        results |= {(model, memory): curve(memory, at) for memory, at in measured.items()}
    found = {row.what: row.simulated for row in rates.figure_12(results).rows}
    assert found["the most over Orca (Max), at rates that the paper measured"] == pytest.approx(8)
    assert found["the most over Orca (Oracle), at rates that the paper measured"] == pytest.approx(0.8 / 0.3)


def test_table_1_is_met_and_the_command_writes_files(tmp_path, capsys):
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    page.write_text("# Mine\n<!-- results -->\nold")
    assert screen.main(["figure", "table1", "--json", str(numbers), "--page", str(page)]) == 0
    assert "missed" not in capsys.readouterr().out
    [figure] = json.loads(numbers.read_text())
    assert [row["verdict"] for row in figure["rows"]] == ["met"] * 6
    assert page.read_text().startswith("# Mine") and "old" not in page.read_text()
    assert "| OPT-13B: slots in 12 GiB | 15,729 | 15,728 |" in page.read_text()


def test_an_unknown_figure_is_a_sentence(capsys):
    assert screen.main(["figure", "99"]) == 2
    assert "figure 99 is not among 2, 12, 13" in capsys.readouterr().err
    assert screen.main(["figure", "ALL", "--jobs", "0"]) == 2
    assert "--jobs has to be" in capsys.readouterr().err


def test_a_rate_at_a_latency_lies_between_those_that_were_simulated():
    points = [
        (rate, SimpleNamespace(normalized_latency=latency)) for rate, latency in ((1.0, 0.1), (2.0, 0.2), (3, 0.8))
    ]
    assert rate_at(points, 0.4) == pytest.approx(2.5)
    assert rate_at(points, 0.9) != rate_at(points, 0.9)  # it is never reached


def test_a_knee_is_a_dashed_line():
    drawn = svg(Picture("", "", "", {"one": [(0, 1), (2, 3)]}, knees={"one": 1.5}))
    assert drawn.count("stroke-dasharray") == 1
    assert Picture("", "", "", {}).numbers() == {"title": "", "x": "", "y": "", "series": {}}


@pytest.mark.slow
def test_jobs_run_in_this_process_or_in_others_with_the_same_results():
    make_jobs, _ = FIGURES["13"]
    jobs = {key: job for key, job in make_jobs(Scale(0, 0.02)).items() if key[1] in ("max", "oracle")}
    here, there = ({key: str(report.numbers()) for key, report in run_jobs(jobs, n)} for n in (1, 10**23))
    assert len(here) == 4 and here == there


@pytest.mark.ray
def test_jobs_run_on_a_ray_cluster_with_the_same_results():
    make_jobs, _ = FIGURES["13"]
    jobs = {key: job for key, job in make_jobs(Scale(0, 0.02)).items() if key[1] in ("max", "oracle")}
    told = []
    here = dict(run_jobs(jobs, 1))
    there = dict(run_jobs(jobs, 2, lambda: told.append(1), cluster="local"))
    assert {key: str(report.numbers()) for key, report in there.items()} == {
        key: str(report.numbers()) for key, report in here.items()
    }
    assert len(told) == len(jobs)


@pytest.mark.parametrize("cluster", [None, pytest.param("local", marks=pytest.mark.ray)])
def test_a_jobs_own_error_stays_what_it_is(cluster):
    wrong = partial(find_architecture, "nothing.json")
    with pytest.raises(ModelError, match=r"^nothing\.json cannot be read"):
        list(run_jobs({"one": wrong}, 1 if cluster is None else 2, cluster=cluster))


def test_a_cluster_without_ray_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert screen.main(["figure", "2", "--quick", "--cluster", "local"]) == 2
    assert "pip install 'minipage[ray]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "13", "14", "16"])
def test_a_figure_is_met(name):
    make_jobs, make_figure = FIGURES[name]
    results = dict(run_jobs(make_jobs(Scale(0, 1.0 if name == "2" else 0.5)), 2))
    missed = [row.what for row in make_figure(results).rows if row.verdict == "missed"]
    assert missed == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for processes")
def test_ctrl_c_ends_all_processes_without_a_word():
    """Also those that are still importing, as they are for a second."""
    command = [sys.executable, "-m", "minipage.simulate", "figure", "13", "--jobs", "2"]
    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it may be ignored
    try:
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, was)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    until(lambda: len(children.read_text().split()) == 3)  # one of which looks after what they share
    time.sleep(0.3)  # until Python is there
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    said, errors = run.communicate(timeout=60)
    assert (run.returncode, said, errors) == (130, "", "")
