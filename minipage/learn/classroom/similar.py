"""Which solutions are alike, and where: fingerprints of token sequences, by winnowing.

The method is Schleimer, Wilkerson and Aiken's (SIGMOD 2003).

    source      total = total + x
    tokens      name = name + name                      what things are called does not matter
    grams       every K tokens in a row, as a number
    winnowed    of every WINDOW grams in a row the smallest: who shares K + WINDOW - 1 tokens shares one of these

What the stub gives everybody is taken out first, and so is what many have: short right answers are alike by nature. Two
files that are the same token by token are always reported, however many others are like them.
"""

from __future__ import annotations

import keyword
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from pathlib import Path

from minipage.learn.course import Lesson
from minipage.learn.load import UNREADABLE, CodeError, is_untouched, read, tokens_that_run

K = 16  # tokens in a gram
WINDOW = 8
LEAST_SHARED = 6  # fingerprints
SIMILAR = 0.7  # this share of the smaller one's fingerprints is in the other
COMMON = 0.2  # a gram that this share of all files has is nobody's own (from FEW_FILES on)
FEW_FILES = 10
LEAST_TOKENS = 30  # of their own, in files that are the same


@dataclass(frozen=True)
class Token:
    kind: str  # the same for everything that is a name
    text: str
    line: int


@dataclass(frozen=True)
class Alike:
    """Learners whose files of a lesson are alike."""

    lesson: str  # such as "03_block_pool"
    learners: tuple[str, ...]
    share: float  # 1.0: token by token, whatever things are called in comments
    is_same: bool
    lines: tuple[tuple[int, int], ...]  # of the first learner's file
    others: tuple[tuple[int, int], ...]  # the same places in the second one's

    @property
    def sentence(self) -> str:
        who = f"{', '.join(self.learners[:-1])} and {self.learners[-1]}"
        where = f"{self.lesson}/exercise.py, lines {ranges(self.lines)}"
        if self.is_same:
            return f"{who}: the same code in {where}."
        return f"{who}: {self.share:.0%} alike in {where} of {self.learners[0]}, {ranges(self.others)} of the other."


def ranges(lines: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in lines)


def alike(folders: dict[str, Path], lessons: list[Lesson]) -> list[Alike]:
    """`folders` by learner. Groups with the same code first, then pairs, the most alike first."""
    found: list[Alike] = []
    for lesson in lessons:
        files = dict(written_files(folders, lesson))
        found += in_one_lesson(lesson, files)
    return sorted(found, key=lambda each: (not each.is_same, -each.share, each.lesson, each.learners))


def written_files(folders: dict[str, Path], lesson: Lesson) -> Iterator[tuple[str, list[Token]]]:
    for learner, folder in folders.items():
        path = folder / lesson.name / "exercise.py"
        try:
            if not is_untouched(path, lesson):
                yield learner, tokens_of(read(path))
        except (CodeError, tokenize.TokenError, *UNREADABLE):
            continue


def in_one_lesson(lesson: Lesson, files: dict[str, list[Token]]) -> list[Alike]:
    stub = tokens_of(lesson.stub.read_text(encoding="utf-8"))
    given = {gram for gram, _ in grams(stub, by_text)}
    same: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for learner, tokens in files.items():
        same[tuple(token.text for token in tokens)].append(learner)
    groups = list(same.values())
    found = []
    for learners in groups:
        own = own_lines(files[learners[0]], given)
        if len(learners) > 1 and own_tokens(files[learners[0]], given) >= LEAST_TOKENS:
            found.append(Alike(lesson.name, tuple(learners), 1.0, True, own, own))
    return found + pairs(lesson, {learners[0]: files[learners[0]] for learners in groups}, stub)


def pairs(lesson: Lesson, files: dict[str, list[Token]], stub: list[Token]) -> list[Alike]:
    """Two files of which a good part is alike, though they are not the same."""
    given = {gram for gram, _ in grams(stub, by_kind)}
    prints = {learner: winnowed(grams(tokens, by_kind)) for learner, tokens in files.items()}
    prints = {learner: {gram: at for gram, at in own.items() if gram not in given} for learner, own in prints.items()}
    times = Counter(gram for own in prints.values() for gram in own)
    most = max(3, COMMON * len(files)) if len(files) >= FEW_FILES else len(files)
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for learner, own in prints.items():
        for gram in own:
            if times[gram] <= most:
                owners[gram].append(learner)
    shared = Counter(pair for learners in owners.values() for pair in combinations(learners, 2))
    found = []
    for (one, other), count in shared.items():
        rare = min(len([gram for gram in prints[who] if times[gram] <= most]) for who in (one, other))
        if count >= LEAST_SHARED and count >= SIMILAR * rare:
            both = [gram for gram in prints[one] if gram in prints[other] and times[gram] <= most]
            places = [merged(lines_at(files[who], prints[who][gram]) for gram in both) for who in (one, other)]
            found.append(Alike(lesson.name, (one, other), count / rare, False, *places))
    return found


# ---- tokens and their fingerprints


def tokens_of(source: str) -> list[Token]:
    """Without comments, docstrings, line ends and what depends on them. Raises what tokenize raises."""
    found: list[Token] = []
    for token in tokens_that_run(source):
        is_name = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
        kind = "name" if is_name else "text" if token.type == tokenize.STRING else token.string
        found.append(Token(kind, token.string, token.start[0]))
    return found


def by_kind(token: Token) -> str:
    return token.kind


def by_text(token: Token) -> str:
    return token.text


def grams(tokens: list[Token], what: Callable[[Token], str]) -> Iterator[tuple[int, int]]:
    """(number, index of the first token) of every K tokens in a row."""
    words = [what(token) for token in tokens]
    for i in range(len(words) - K + 1):
        digest = blake2b("\0".join(words[i : i + K]).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        yield int.from_bytes(digest, "big"), i


def winnowed(found: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Of each WINDOW grams in a row the smallest, the last one of equals; number -> index of its first token."""
    row = list(found)
    chosen: dict[int, int] = {}
    for i in range(max(1, len(row) - WINDOW + 1)):
        window = row[i : i + WINDOW]
        if window:
            gram, at = min(window, key=lambda each: (each[0], -each[1]))
            chosen.setdefault(gram, at)
    return chosen


def own_indices(tokens: list[Token], given: set[int]) -> set[int]:
    """Which tokens are in no gram of the stub."""
    theirs = set(range(len(tokens)))
    for gram, at in grams(tokens, by_text):
        if gram in given:
            theirs -= set(range(at, at + K))
    return theirs


def own_tokens(tokens: list[Token], given: set[int]) -> int:
    return len(own_indices(tokens, given))


def own_lines(tokens: list[Token], given: set[int]) -> tuple[tuple[int, int], ...]:
    return merged((tokens[i].line, tokens[i].line) for i in own_indices(tokens, given))


def lines_at(tokens: list[Token], index: int) -> tuple[int, int]:
    return tokens[index].line, tokens[min(index + K, len(tokens)) - 1].line


def merged(lines: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges of lines, those that touch made one; a line between two does not part them."""
    found: list[list[int]] = []
    for first, last in sorted(lines):
        if found and first <= found[-1][1] + 2:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last])
    return tuple((first, last) for first, last in found)
