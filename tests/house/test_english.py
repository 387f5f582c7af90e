"""Plain English, as a second-language reader understands it at once: habits that cost a reader are kept out."""

import io
import re
import tokenize
from pathlib import Path

import minipage

PACKAGE = Path(minipage.__file__).parent
HABITS = {
    r"\bso many\b": "this many, or the number's name",
    r"\bmostly\b": "usually",
    r"\bshall\b": "should",
    r"\bsome \d": "about",
    r"\bbut for\b": "except",
}


def prose(path):
    """(line number, text) of every comment and every string of a file; of one that has no habit in it, nothing."""
    text = path.read_text(encoding="utf-8")
    if not any(re.search(habit, text, re.IGNORECASE) for habit in HABITS):
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.split("\n"), token.start[0])


def test_habits_that_cost_a_reader_are_kept_out():
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {match[0]!r}; say {better}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in prose(path)
        for habit, better in HABITS.items()
        for match in re.finditer(habit, line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_the_habits_are_found_where_they_are(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text('"""So many words."""\nx = 1  # it shall cost some 75 us\n')
    words = " ".join(line for _, line in prose(bad))
    assert sum(len(re.findall(habit, words, re.IGNORECASE)) for habit in HABITS) == 3
