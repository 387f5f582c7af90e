"""What lesson 11 shows of the rungs: their own lines, and what is new in each."""

import pytest

from minipage.ladder import RUNGS
from minipage.ladder.hearts import NOTES, PACKAGE, heart, place_on_the_roofline


@pytest.mark.parametrize("name", RUNGS)
def test_a_heart_is_made_of_the_lines_of_its_file(name):
    shown = heart(name)
    lines = (PACKAGE / shown.file).read_text(encoding="utf-8").splitlines()
    assert 8 <= len(shown.lines) <= 70
    assert all(lines[line.number - 1].strip() == line.text.strip() for line in shown.lines)
    assert shown.lines == sorted(shown.lines, key=lambda line: line.number)
    assert any(line.is_new for line in shown.lines) == (name != "1 thread")


@pytest.mark.parametrize(
    ("name", "lit", "unlit"),
    [
        ("2 warp", "highest = max(highest, sum_of_lanes(part))", "block, offset = block_tables"),
        ("3 block", "shrink, weight = exp2", "part += mine[j]"),
        ("4 split", "start, stop = split", "shrink, weight = exp2"),
        ("5 wide", "load(k, u", ""),
        ("6 tensor", "multiply(score, m * HALVES", "for u in range(DEPTH)"),
    ],
)
def test_what_changed_since_the_rung_before_is_lit(name, lit, unlit):
    lines = heart(name).lines
    assert any(line.is_new and lit in line.text for line in lines)
    assert not any(line.is_new and unlit and unlit in line.text for line in lines)
    assert "background" in heart(name)._repr_html_() and "+" in str(heart(name))


def test_a_place_on_the_roofline_is_work_over_time():
    intensity, speed = place_on_the_roofline(microseconds=100, kv_bytes=2 * 10**8, group=4)
    assert intensity == 4  # 10^8 numbers, 4 heads, a product and a sum: 8 * 10^8 operations
    assert speed == pytest.approx(8)


@pytest.mark.parametrize("name", NOTES)
def test_what_made_a_rung_faster_is_said_where_it_is(name):
    lines = heart(name).lines
    assert [line.note for line in lines if line.note] and {line.note for line in lines} - {""} == set(
        NOTES[name].values()
    )
    assert all(line.is_new for line in lines if line.note), "what was there before made nothing faster"
