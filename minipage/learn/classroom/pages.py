"""A page for each learner: what passed, what did not, the smallest calls that show it, and the picture of the pool.

index.html has everybody, and what is alike; it is for the instructor. A learner's page names nobody else.
"""

from __future__ import annotations

import re
from hashlib import sha256
from html import escape
from pathlib import Path

from minipage.learn.classroom.grade import Graded
from minipage.learn.classroom.similar import Alike
from minipage.learn.course import Exercise
from minipage.learn.judge import FAILED, PASSED, Verdict
from minipage.learn.load import CodeError, lines_of, read

AROUND = 3  # lines of code before and after the one that is named
LONGEST = 4000  # letters of anything that a learner's code says
LOOKS = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #b42318; --todo: #9a6700 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { padding: .2rem .6rem; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid var(--line) } pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line) }
section { margin: 2rem 0 } .passed { color: var(--good) } .failed { color: var(--bad) } .todo { color: var(--todo) }
.mark { background: #fc05 } dt { font-weight: 600 } .wide { overflow-x: auto }
"""


def write_pages(folder: Path, results: list[Graded], exercises: list[Exercise], alike: list[Alike]) -> list[Path]:
    """All pages; returns those of the learners, in order. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for graded in results:
        path = folder / file_name(graded.submission.learner)
        path.write_text(learner_page(graded, exercises), encoding="utf-8")
        written.append(path)
    (folder / "index.html").write_text(index(results, exercises, alike, written), encoding="utf-8")
    return written


def file_name(learner: str) -> str:
    """A name that any file system takes, and nobody else's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", learner).strip("-.")[:80]
    if plain == learner and plain.lower() != "index":
        return f"{plain}.html"
    return f"{plain or 'learner'}-{sha256(learner.encode()).hexdigest()[:8]}.html"


def page(title: str, *body: str) -> str:
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en">\n{head}\n<style>{LOOKS}</style>\n<body>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def learner_page(graded: Graded, exercises: list[Exercise]) -> str:
    it = graded.submission
    most = sum(exercise.points for exercise in exercises)
    said = [f"<h1>{escape(it.learner)}: {graded.points(exercises)} of {most} points</h1>"]
    when = f", handed in {it.handed_in:%Y-%m-%d %H:%M %Z}" if it.handed_in else ""
    said.append(f"<p>{escape(it.status)}{escape(when)}. {escape(it.note)}</p>")
    if not graded.verdicts:
        return page(it.learner, *said)
    verdicts = list(zip(exercises, graded.verdicts))
    said += ["<table>", "<tr><th>Exercise<th><th>Result<th>Points</tr>"]
    for exercise, verdict in verdicts:
        name, kind = f"{exercise.number} {exercise.title}", kind_of(verdict)
        link = f'<a href="#e{exercise.number}">{escape(name)}</a>' if verdict.status == FAILED else escape(name)
        points = exercise.points if verdict.status == PASSED else 0
        said.append(f'<tr><td>{link}<td><td class="{kind}">{verdict.status}<td>{points} of {exercise.points}</tr>')
    said.append("</table>")
    said += [failure(e, v, it.folder) for e, v in verdicts if v.status == FAILED]
    return page(it.learner, *said)


def kind_of(verdict: Verdict) -> str:
    return verdict.status.replace(" ", "")


def failure(exercise: Exercise, verdict: Verdict, folder: Path | None) -> str:
    said = [f'<section id="e{exercise.number}">', f"<h2>{escape(f'{exercise.number} {exercise.title}')}</h2>"]
    said.append(f"<p>{escape(verdict.message[:LONGEST])}</p>")
    if verdict.calls:
        said += ["<p>The smallest case that shows it:</p>", block("\n".join(verdict.calls))]
    if verdict.expected or verdict.got:
        said.append(f"<dl><dt>Expected<dd>{block(verdict.expected)}<dt>Got<dd>{block(verdict.got)}</dl>")
    if verdict.picture:
        said += ["<p>The pool after that:</p>", block("\n".join(verdict.picture))]
    if verdict.printed:
        said += ["<p>The code printed:</p>", block(verdict.printed)]
    if folder and verdict.line:
        said.append(code(folder / exercise.lesson.name / "exercise.py", exercise.lesson.name, verdict.line))
    return "\n".join([*said, "</section>"])


def block(text: str) -> str:
    return f"<pre>{escape(text[:LONGEST])}</pre>"


def code(path: Path, lesson: str, line: int) -> str:
    """The lines around the one that is named, which is lit."""
    try:
        lines = lines_of(read(path))
    except CodeError:
        return ""
    first = max(0, line - 1 - AROUND)
    shown = []
    for number, text in enumerate(lines[first : line + AROUND], first + 1):
        row = escape(f"{number:4}  {text[:300]}")
        shown.append(f'<span class="mark">{row}</span>' if number == line else row)
    return f"<p>{escape(lesson)}/exercise.py, line {line}:</p><pre>" + "\n".join(shown) + "</pre>"


def index(results: list[Graded], exercises: list[Exercise], alike: list[Alike], pages: list[Path]) -> str:
    most = sum(exercise.points for exercise in exercises)
    statuses = [graded.submission.status for graded in results]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in ("graded", "late", "missing") if s in statuses)
    said = ["<h1>Grades</h1>", f"<p>{len(results)} learners: {counts}. {most} points at most.</p>"]
    said += ["<table>", "<tr><th>Learner<th>Status<th>Points<th>Alike with others in</tr>"]
    for graded, path in zip(results, pages):
        it = graded.submission
        where = ", ".join(sorted({each.lesson for each in alike if it.learner in each.learners}))
        link = f'<a href="{escape(path.name)}">{escape(it.learner)}</a>'
        said.append(f"<tr><td>{link}<td>{it.status}<td>{graded.points(exercises)}<td>{escape(where)}</tr>")
    said.append("</table>")
    if alike:
        said += ["<h2>Alike</h2>", "<p>Short right answers are alike by nature: look before you ask.</p>", "<ul>"]
        said += [f"<li>{escape(each.sentence)}</li>" for each in alike] + ["</ul>"]
    return page("Grades", *said)
