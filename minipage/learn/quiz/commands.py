"""`learn quiz`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from minipage.errors import LearnError


def add_quiz(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seed", default="", metavar="NAME", help="other questions for another name")
    sub.add_argument("--answers", action="store_true", help="with the answers, and where they are explained")
    sub.add_argument("--frames", action="store_true", help="only those that ask what the next step does")
    sub.add_argument("--json", action="store_true", help="as a JSON list, with the answers")
    sub.add_argument("--to", metavar="FILE", help="write it there, as Markdown, and the answers beside it")


def quiz(args: argparse.Namespace) -> int:
    from minipage.trace.playing.spinner import spinner

    if args.to and Path(args.to).is_dir():
        raise LearnError(f"--to is {args.to!r}, which is a folder; give the name of a file.")

    with spinner("drawing up the questions"):
        from minipage.learn.quiz.paper import as_markdown, quiz
        from minipage.model.tokenizer import without_surrogates

        seed = without_surrogates(args.seed)  # which stand for bytes that are not UTF-8
        questions = [question for question in quiz(seed) if question.is_frame or not args.frames]
    title = f"{len(questions)} questions" + (f" ({seed})" if seed else "")
    if args.json:
        print(json.dumps([asdict(question) for question in questions], indent=1, ensure_ascii=False))
    elif args.to:
        path = Path(args.to)
        answers = path.with_name(f"{path.stem}-answers{path.suffix}")
        for file, with_answers in ((path, False), (answers, True)):
            file.write_text(as_markdown(questions, title, with_answers), encoding="utf-8")
            print(f"wrote {file}")
    else:
        print(as_markdown(questions, title, args.answers))
    return 0
