"""A class, made of the reference, the alternatives, wrong solutions and hostile code; and what each learner gets."""

import hashlib
import random
from pathlib import Path

from minipage.learn.course import HERE, lessons
from minipage.learn.judge import FAILED, PASSED, TODO
from tests.learn import test_hostile_code as hostile
from tests.learn.mistakes import MISTAKES
from tests.learn.subtle_mistakes import SUBTLE

ALTERNATIVES = Path(__file__).parent.parent / "alternatives"
HOSTILE = {
    **{name: hostile.begins_with(code) for name, code in hostile.REACHES_OUT.items()},
    "a loop": hostile.RIGHT.replace("    def allocate(self):\n", "    def allocate(self):\n        while True: pass\n"),
    "memory": hostile.begins_with("a = bytearray(1 << 33)"),
    "python ends": hostile.begins_with("import os; os._exit(0)"),
    "a page": hostile.RIGHT.replace('"none is free"', '"<script>alert(1)</script>\\x1b[2J"').replace(
        ".pop(0)", ".pop()"
    ),
}


def wrong(lesson, draw):
    """(number of an exercise that fails, the file)"""
    mistake = draw.choice([m for m in (*MISTAKES, *SUBTLE) if m.exercise.split(".")[0] == lesson.number])
    right = (ALTERNATIVES / f"{lesson.name}.py").read_text(encoding="utf-8")
    return mistake.exercise, right.replace(mistake.old, mistake.new)


def make(folder, number, numbers=(), own=True):
    """Learner `number` hands in; {exercise: status} of those that are known.

    `own`: no two of them have the same code, except who copies minipage's own, which counts word for word only.
    """
    draw, expected = random.Random(number), {}
    for lesson in lessons():
        if numbers and lesson.number not in numbers:
            continue
        kind = draw.choice(("reference", "alternative", "second", "wrong", "wrong", "stub", "nothing"))
        known = dict.fromkeys((e.number for e in lesson.exercises), PASSED)
        source = lesson.solution.read_text(encoding="utf-8")
        if kind == "alternative":
            source = (ALTERNATIVES / f"{lesson.name}.py").read_text(encoding="utf-8")
        elif kind == "second":
            source = (ALTERNATIVES / "second" / f"{lesson.name}.py").read_text(encoding="utf-8")
        elif kind == "wrong":
            fails, source = wrong(lesson, draw)
            known = {fails: FAILED}
        elif kind == "stub":
            known, source = dict.fromkeys(known, TODO), lesson.stub.read_text(encoding="utf-8")
        elif kind == "nothing":
            expected |= dict.fromkeys(known, FAILED)
            continue
        if lesson.number == "3" and number % 10 == 9:
            source, known = draw.choice(list(HOSTILE.values())), {}
        path = folder / lesson.name / "exercise.py"
        path.parent.mkdir(parents=True)
        mark = "# learner" if source == lesson.solution.read_text(encoding="utf-8") else "WHO ="
        path.write_text(source + f"\n{mark} {number}\n" * own, encoding="utf-8")
        expected |= known
    return expected


def installation():
    """What must not change: every file of minipage that is not made by Python itself."""
    files = [path for path in HERE.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path: path.read_bytes() for path in files}


def hash_of(files):
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(HERE.parent)}\0{len(files[path])}\0".encode() + files[path])
    return digest.hexdigest()
