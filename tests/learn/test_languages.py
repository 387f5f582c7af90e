"""Translations: all texts are in en.json, German has all the stories, and a language changes nothing but words."""

import json
import re

import pytest

from minipage.cli import main
from minipage.languages import HERE, VARIABLE, tell, translations
from minipage.learn.translate import texts_there_are

LANGUAGES = sorted(path.stem for path in HERE.glob("*.json"))


def groups(language):
    return json.loads((HERE / f"{language}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_the_texts_there_are(language):
    hint = f"run: python -m minipage learn translate minipage/languages/{language}.json"
    assert {name: list(texts) for name, texts in groups(language).items()} == texts_there_are(), hint


def test_english_is_english_and_german_has_all_the_stories():
    assert all(text == told for group in groups("en").values() for text, told in group.items())
    stories = groups("de")["stories"]
    assert all(stories.values()) and len(stories) > 70
    assert [text for text, told in stories.items() if told == text] == []


@pytest.mark.parametrize("language", [each for each in LANGUAGES if each != "en"])
def test_numbers_names_and_places_to_fill_stay(language):
    for text, told in translations(language).items():
        for pattern in (r"\{\w+\}", r"`[^`]+`", r"\b\d{1,3}\b(?![.,]\d)"):
            assert sorted(re.findall(pattern, text)) == sorted(re.findall(pattern, told)), (text, told)


def test_a_story_is_told_in_german_and_computes_the_same(monkeypatch, capsys):
    words = ["demo", "copy-on-write", "--plain", "--steps", "6"]
    main(words)
    english = capsys.readouterr().out
    monkeypatch.setenv(VARIABLE, "de")
    main(words)
    german = capsys.readouterr().out
    assert "Drei Texte aus einem Prompt" in " ".join(german.split()) and "Three texts of one" not in german
    tables = [re.findall(r"→\d+", out) for out in (english, german)]
    assert tables[0] == tables[1] != []


def test_what_nobody_has_translated_is_told_in_english(monkeypatch):
    monkeypatch.setenv(VARIABLE, "de")
    assert tell("no such text") == "no such text"
    assert tell("Nothing was copied: nobody wrote into a block while it was shared. (And so on.)").startswith(
        "Nichts wurde"
    )
    for nobody_s in ("xx", "../de", "", "en"):
        monkeypatch.setenv(VARIABLE, nobody_s)
        assert tell("expected") == "expected"


def test_a_new_language_begins_with_a_file_that_keeps_what_is_told(tmp_path, capsys):
    path = tmp_path / "fr.json"
    assert main(["learn", "translate", str(path)]) == 0 and "0 of " in capsys.readouterr().out
    begun = json.loads(path.read_text(encoding="utf-8"))
    begun["learn"]["expected"] = "attendu"
    begun["learn"]["gone since"] = "disparu"
    path.write_text(json.dumps(begun), encoding="utf-8")
    main(["learn", "translate", str(path)])
    renewed = json.loads(path.read_text(encoding="utf-8"))["learn"]
    assert renewed["expected"] == "attendu" and "gone since" not in renewed and "1 of " in capsys.readouterr().out
    path.write_text("[1]")
    assert main(["learn", "translate", str(path)]) == 2
