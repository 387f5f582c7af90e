"""`demo all` writes every scenario: the pictures for somebody's slides, by one command."""

import re

import pytest
from rich.cells import cell_len
from stories import slow_but

from minipage.cli import main
from minipage.trace.playing.scenarios import SCENARIOS

FEW = "basics", "continuous-batching", "copy-on-write"


@pytest.fixture(params=[pytest.param(tuple(SCENARIOS), id="all", marks=pytest.mark.slow), FEW])
def stories(request, monkeypatch):
    """All stories, or a play of three."""
    for name in SCENARIOS.keys() - {*request.param}:
        monkeypatch.delitem(SCENARIOS, name)
    return request.param


def test_every_scenario_gets_a_folder_of_pictures_and_a_page(stories, tmp_path, capsys):
    assert main(["demo", "all", "--steps", "2", "--svg", str(tmp_path / "svg"), "--html", str(tmp_path / "html")]) == 0
    for name in stories:
        pictures = list((tmp_path / "svg" / name).glob("step-*.svg"))
        assert pictures and all("<svg" in p.read_text(encoding="utf-8") for p in pictures)
        assert (tmp_path / "html" / f"{name}.html").exists()
    copied = sorted(path.stem for path in (tmp_path / "svg" / "copy-on-write").iterdir())
    assert copied == ["step-0001", "step-0002", "step-0002-before", "step-0002-copy"]  # copy-on-write in three pictures
    out = capsys.readouterr().out
    assert out.count("wrote ") == 2 * len(stories) and f"open {tmp_path / 'html' / 'index.html'}" in out
    index = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<h3><a href="([^"]+)">[^<]+</a></h3><p>[^<]+[.]</p>', index)
    assert links == [f"{name}.html" for name in stories]
    assert 'src="continuous-batching.html?embed&amp;play"' in index and "learn check 14" in index
    page = (tmp_path / "html" / "basics.html").read_text(encoding="utf-8")
    assert f'"href":"{stories[1]}.html"' in page  # the next story


def test_all_scenarios_cannot_be_shown_one_after_the_other(capsys):
    assert main(["demo", "all"]) == 2
    assert "--svg" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("name", slow_but(SCENARIOS, "basics"))
def test_no_printed_line_is_too_long(name, columns, monkeypatch, capsys):
    """Not even a text at the end, its block table, or the command for the next story."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["demo", name]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if cell_len(line) > columns] == []
