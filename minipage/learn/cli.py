"""`python -m minipage learn`: the exercises, one step at a time."""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipage.errors import LearnError
from minipage.languages import tell
from minipage.learn.classroom.commands import add_export, add_grade, export, grade
from minipage.learn.projects.commands import add_project, project
from minipage.learn.quiz.commands import add_quiz, quiz
from minipage.learn.slides.commands import add_slides, slides

if TYPE_CHECKING:
    from minipage.learn.course import Exercise
    from minipage.learn.workspace import Workspace

COMMANDS = {
    "init": "make a folder with the exercises",
    "list": "the lessons, and how far you are",
    "next": "what to do next",
    "check": "check the current lesson up to the first step that does not pass; or the exercises named",
    "watch": "check whenever a file is saved",
    "hint": "a hint; ask again for the next, there are three",
    "solution": "minipage's own version, and why it is so; for exercises that you have passed",
    "reset": "put an exercise (3.2) or a whole file (3) back as it was given; yours is kept beside it",
    "grade": "for instructors: the points of a folder of exercises, or of a whole class",
    "project": "ten projects, each with a file to start from and a benchmark that scores it",
    "translate": "bring the file of a language up to date",
    "quiz": "for instructors: thirty questions with answers, by a seed",
    "slides": "for instructors: pictures of every story, and a deck for a lecture",
    "export": "for instructors: files for Gradescope, GitHub Classroom, nbgrader, or a container",
}


def add_learn(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_learn, learn="list", dir=None, exercises=[])
    commands = parser.add_subparsers(title="commands", metavar="{" + ",".join(COMMANDS) + "}")
    for name, meaning in COMMANDS.items():
        sub = commands.add_parser(name, help=meaning, description=meaning)
        sub.set_defaults(learn=name)
        if name == "init":
            sub.add_argument("folder", metavar="DIR", help="the folder; it need not exist yet")
            sub.add_argument(
                "--seed", default="", metavar="NAME", help="other numbers in the examples, for this learner"
            )
        elif name == "grade":
            add_grade(sub)
        elif name == "export":
            add_export(sub)
        elif name == "project":
            add_project(sub)
        elif name == "translate":
            sub.add_argument("file", metavar="FILE", help="such as minipage/languages/fr.json")
        elif name == "quiz":
            add_quiz(sub)
        elif name == "slides":
            add_slides(sub)
        else:
            sub.add_argument("--dir", metavar="DIR", help="the folder with the exercises (default: where you are)")
            if name not in ("next", "watch"):
                sub.add_argument("exercises", nargs="*", metavar="N", help="such as 3.2, or 3 for a lesson")
        if name in ("check", "grade", "watch"):
            sub.add_argument(
                "--time-limit", type=float, default=10.0, metavar="S", help="seconds for each (default 10)"
            )


def run_learn(args: argparse.Namespace) -> int:
    """Run one command; 1 if something that was checked does not pass."""
    if getattr(args, "folder", None) == "":  # of a variable that is not set, say; to Path it is where one is
        raise LearnError("the name of the folder is empty; give it one.")
    if args.learn == "init":
        return init(Path(args.folder), args.seed)
    if getattr(args, "time_limit", 1) <= 0:
        raise LearnError("--time-limit must be more than 0 seconds.")
    if args.learn == "grade":
        return grade(args)
    if args.learn == "export":
        return export(args)
    if args.learn == "project":
        return project(args)
    if args.learn == "translate":
        return translate(Path(args.file))
    if args.learn == "quiz":
        return quiz(args)
    if args.learn == "slides":
        return slides(args)
    from minipage.learn import workspace

    if args.learn == "list" and args.dir is None and not workspace.is_inside_one():
        return show_catalogue()
    space = workspace.find(args.dir)
    if args.learn == "check":
        return check(space, args.exercises, args.time_limit)
    if args.learn == "watch":
        return watch(space, args.time_limit)
    return SIMPLE[args.learn](space, args.exercises)


# ---- commands


def init(folder: Path, seed: str = "") -> int:
    from minipage.learn.course import exercises, lessons
    from minipage.learn.screen import PROGRAM, Screen
    from minipage.learn.workspace import init
    from minipage.model.tokenizer import without_surrogates

    if folder.exists() and not folder.is_dir():
        raise LearnError(f"{folder} is a file; give the name of a folder.")
    new = init(folder, seed=without_surrogates(seed))
    screen = Screen()
    if not new:
        screen.line(f"{folder} has all the exercises already.")
    else:
        screen.line(f"{folder} has {len(exercises())} exercises in {len(lessons())} lessons. Now:")
    screen.line(f"    cd {folder}")
    screen.line(f"    {PROGRAM} learn next       what to do first")
    screen.line(f"    {PROGRAM} learn watch      checks whenever you save")
    from importlib.util import find_spec

    if find_spec("hypothesis") is None:
        screen.line()
        screen.line("Checking needs one more package: pip install hypothesis")
    return 0


def translate(path: Path) -> int:
    from minipage.learn.translate import bring_up_to_date

    num_texts, num_told = bring_up_to_date(path)
    print(f"{path}: {num_told} of {num_texts} texts are translated")
    return 0


def show_catalogue() -> int:
    """What there is, for somebody who has no workspace yet."""
    from minipage.learn.course import exercises, lessons
    from minipage.learn.screen import PROGRAM, Screen

    screen = Screen()
    screen.line(f"{len(exercises())} exercises in {len(lessons())} lessons; together they are a paged engine:")
    screen.line()
    for lesson in lessons():
        screen.line(f"{lesson.number:>3} {lesson.title:<34} {len(lesson.exercises)} steps")
    screen.line()
    screen.line(f"To begin:  {PROGRAM} learn init my-minipage")
    return 0


def show_list(space: Workspace, numbers: list[str]) -> int:
    from minipage.learn.course import chosen
    from minipage.learn.screen import Screen

    screen = Screen()
    if numbers:
        for lesson in dict.fromkeys(exercise.lesson for exercise in chosen(numbers)):
            screen.lesson(lesson, space)
    else:
        screen.overview(space)
    return 0


def show_next(space: Workspace, numbers: list[str]) -> int:
    from minipage.learn.screen import Screen

    exercise = space.next()
    if exercise is None:
        return show_list(space, [])
    Screen().task(exercise, space)
    return 0


def check(space: Workspace, numbers: list[str], limit: float) -> int:
    """Check those named; or the current lesson, up to the first exercise that does not pass."""
    from minipage.learn.check import check
    from minipage.learn.course import chosen
    from minipage.learn.judge import PASSED
    from minipage.learn.screen import Screen, relative

    screen = Screen()
    if numbers:
        exercises = chosen(numbers)
    else:
        upcoming = space.next()
        lesson = upcoming.lesson if upcoming and not space.is_begun(space.current()) else space.current()
        exercises = lesson.exercises
    verdicts = check(exercises, space.folder, limit)
    all_passed = True
    for exercise in exercises:
        with spinner(f"checking {exercise.number}"):
            verdict = next(verdicts)
        space.record(exercise, verdict.status == PASSED)
        screen.verdict(exercise, verdict, relative(space.file(exercise.lesson)))
        all_passed &= verdict.status == PASSED
        if verdict.status != PASSED and not numbers:
            break
    if all_passed:
        what_now(screen, space, exercises)
    return 0 if all_passed else 1


def what_now(screen: Any, space: Workspace, exercises: list[Exercise]) -> None:
    """After a success: what minipage does, what comes next, and where the part can be seen at work."""
    from minipage.learn.screen import PROGRAM, relative

    lesson, upcoming = exercises[-1].lesson, space.next()
    screen.line()
    screen.line(f"{tell('How minipage does it, and why:')}  {PROGRAM} learn solution {exercises[-1].number}", "dim")
    if lesson.part and all(map(space.has_passed, lesson.exercises)):
        screen.line(f"See your {lesson.part} at work:  {PROGRAM} demo --mine {relative(space.folder)}", "dim")
    if upcoming is not None:
        screen.line(f"Next is {upcoming.number} {upcoming.title}:  {PROGRAM} learn next", "dim")


def watch(space: Workspace, limit: float) -> int:
    """Check whenever a file is saved, until Ctrl-C."""
    from minipage.learn.screen import Screen

    screen = Screen()
    seen: object = None
    while True:
        if (now := modification_times(space)) != seen:
            seen = now
            if screen.console.is_terminal:
                screen.console.clear()
            check(space, [], limit)
            screen.line()
            screen.line(tell("Waiting for a file to be saved; Ctrl-C ends this."), "dim")
        time.sleep(0.3)


def modification_times(space: Workspace) -> list[float]:
    from minipage.learn.course import lessons

    files = [space.file(lesson) for lesson in lessons()]
    return [file.stat().st_mtime if file.exists() else 0 for file in files]


def hint(space: Workspace, numbers: list[str]) -> int:
    from minipage.learn.screen import Screen

    exercise = one_exercise(space, numbers)
    level = min(space.hints.get(exercise.number, 0) + 1, len(exercise.hints))
    space.hints[exercise.number] = level
    space.save()
    screen = Screen()
    screen.line(f"{exercise.number} {exercise.title}: hint {level} of {len(exercise.hints)}", "bold")
    screen.paragraph(tell(exercise.hints[level - 1]))
    if level < len(exercise.hints):
        screen.line(tell("Ask again for the next one."), "dim")
    else:
        space.hints[exercise.number] = 0  # round again
        space.save()
    return 0


def solution(space: Workspace, numbers: list[str]) -> int:
    from minipage.learn.screen import Screen

    exercise = one_exercise(space, numbers)
    if not space.has_passed(exercise):
        raise LearnError(
            f"you have not passed {exercise.number} yet; `learn check {exercise.number}` first. The third "
            f"hint is nearly the code: learn hint {exercise.number}"
        )
    Screen().solution(exercise)
    return 0


def reset(space: Workspace, numbers: list[str]) -> int:
    from minipage.learn.course import chosen
    from minipage.learn.screen import Screen, relative

    if len(numbers) != 1:
        raise LearnError("say what to reset: one exercise, such as 3.2, or a whole lesson, such as 3.")
    exercises = chosen(numbers)
    is_file = "." not in numbers[0]
    path, backup = space.reset(exercises, whole_file=is_file)
    what = f"{relative(path)}" if is_file else f"{numbers[0]} in {relative(path)}"
    Screen().line(f"{what} is as it was given" + f"; what you had is in {backup.name}" * backup.exists() + ".")
    return 0


SIMPLE = {"list": show_list, "next": show_next, "hint": hint, "solution": solution, "reset": reset}


def one_exercise(space: Workspace, numbers: list[str]) -> Exercise:
    """The exercise that is named, or else the next."""
    from minipage.learn.course import chosen

    if len(numbers) > 1 or (numbers and "." not in numbers[0]):
        raise LearnError("name one exercise, such as 3.2.")
    exercise = chosen(numbers)[0] if numbers else space.next()
    if exercise is None:
        raise LearnError("you have passed them all; name one, such as 3.2.")
    return exercise


def spinner(text: str) -> AbstractContextManager[object]:
    from minipage.trace.playing.spinner import spinner

    return spinner(text)
