"""All texts that can be translated, found where they are: `learn translate FILE` brings a language up to date."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from minipage.errors import LearnError
from minipage.learn.course import HERE, exercises
from minipage.trace.playing import scenarios
from minipage.trace.playing.scenarios import SCENARIOS

Groups = dict[str, list[str]]


def texts_there_are() -> Groups:
    """In order: what stories tell, the hints and titles of exercises, what `learn` says."""
    stories: list[str] = []
    for story in SCENARIOS.values():
        stories += [story.title, story.about]
        for turn in story.turns:
            stories += [turn.say, turn.otherwise if isinstance(turn.otherwise, str) else ""]
    stories += [scenarios.NEVER_COPIED, scenarios.NO_SECOND_TOKEN, scenarios.LAST_BLOCK_FULL]
    hints = [text for each in exercises() for text in (each.title, *each.hints)]
    said = [text for path in sorted(HERE.glob("*.py")) for text in told_in(path)]
    groups = {"stories": stories, "hints": hints, "learn": said}
    return {name: [text for text in dict.fromkeys(texts) if text] for name, texts in groups.items()}


def told_in(path: Path) -> list[str]:
    """The texts in calls of `tell("...")`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "tell" and call.args]
    constants = [call.args[0] for call in sorted(calls, key=lambda call: call.lineno)]
    return [part.value for part in constants if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def bring_up_to_date(path: Path) -> tuple[int, int]:
    """Write all texts into a language's file; what was translated stays, what is gone goes. (texts, translated)"""
    known: dict[str, str] = {}
    if path.exists():
        try:
            for group in json.loads(path.read_text(encoding="utf-8")).values():
                known |= group
        except (ValueError, AttributeError, TypeError):
            raise LearnError(f"{path} is no file of a language: it should be what this command has written.") from None
    is_english = path.stem == "en"
    groups = {
        name: {text: text if is_english else known.get(text, "") for text in texts}
        for name, texts in texts_there_are().items()
    }
    path.write_text(json.dumps(groups, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told = [text for group in groups.values() for text in group.values()]
    return len(told), sum(map(bool, told))
