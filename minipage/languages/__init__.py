"""What is told in another language: the stories of the demo, and what `learn` says, where somebody has translated it.

    MINIPAGE_LANGUAGE=de python -m minipage demo

Each language is a file beside this one: {"stories": {English: German, ...}, "hints": {...}, "learn": {...}}. en.json
has all texts there are. What a file lacks is told in English. `python -m minipage learn translate FILE` begins a new
one, or adds what has come since, and docs/howto.md says how.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

VARIABLE = "MINIPAGE_LANGUAGE"
HERE = Path(__file__).parent


def tell(text: str) -> str:
    """The text in the chosen language, or as it is. A text of several sentences may be known sentence by sentence."""
    known = translations(os.environ.get(VARIABLE, ""))
    if not known or text in known:
        return known.get(text, text)
    for sentence, told in known.items():
        if len(sentence) > 20 and sentence in text:
            text = text.replace(sentence, told)
    return text


@cache
def translations(language: str) -> dict[str, str]:
    """English -> the language; nothing for English, and for one that nobody has translated."""
    path = HERE / f"{language}.json"
    if not language.isalpha() or language == "en" or not path.exists():
        return {}
    groups = json.loads(path.read_text(encoding="utf-8"))
    return {english: told for group in groups.values() for english, told in group.items() if told}
