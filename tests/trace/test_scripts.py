"""The scripts of a page are one program: two of them may not declare the same name. This needs no browser."""

import re
from collections import Counter

import pytest

from minipage.play.play_page import play_page
from minipage.trace.drawing.html import page
from minipage.trace.watching.live_page import live_page

DECLARED = re.compile(r"^(?:const|let|class|(?:async )?function\*?) +(\w+)", re.MULTILINE)


@pytest.mark.parametrize(
    "document", [page(()), live_page("", words=True), play_page("")], ids=["trace", "live", "play"]
)
def test_each_name_is_declared_once(document):
    script = document[document.rindex("<script>") :]
    names = Counter(DECLARED.findall(script))
    assert names.total() > 50
    assert [name for name, number in names.items() if number > 1] == []
