"""`learn project`: list them, begin one, score it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from minipage.errors import LearnError

STARTERS = Path(__file__).parent / "starters"


def add_project(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("project", nargs="?", metavar="NAME", help="a project (default: list them)")
    sub.add_argument("file", nargs="?", metavar="FILE", help="your file: written if it is not there, scored if it is")
    sub.add_argument("--board", metavar="FILE", help="a leaderboard to enter it in, as JSON; a table is printed")
    sub.add_argument(
        "--name", default="", metavar="WHO", help="whose it is, on the leaderboard (default: the file's name)"
    )
    sub.add_argument("--json", action="store_true", help="print the scores as JSON")


def project(args: argparse.Namespace) -> int:
    from minipage.learn.projects.scores import SCORES

    if args.project is None:
        for name in SCORES:
            print(f"{name:<10} {about(name)}")
        return 0
    if args.project not in SCORES:
        raise LearnError(f"there is no project {args.project!r}; there are {', '.join(SCORES)}.")
    if args.file is None:
        print((STARTERS / f"{args.project}.py").read_text(encoding="utf-8"), end="")
        return 0
    path = Path(args.file)
    if not path.exists():
        path.write_text((STARTERS / f"{args.project}.py").read_text(encoding="utf-8"), encoding="utf-8")
        print(f"wrote {path}; change it, and give the same command again to score it.")
        return 0
    scores = scored(args.project, path)
    mean = sum(scores.values()) / len(scores)
    if args.json:
        print(json.dumps({"project": args.project, "scores": scores, "mean": mean}))
    else:
        for name, score in {**scores, "mean": mean}.items():
            print(f"{name:<14} {score:8.2f}")
    if args.board:
        print(enter(Path(args.board), args.project, args.name or path.stem, scores, mean), file=sys.stderr)
    return 0


def about(name: str) -> str:
    """The first sentence of its starting file."""
    return (STARTERS / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0]


def scored(name: str, path: Path) -> dict[str, float]:
    """The score on each workload. The file is run as it is, not kept apart. Raises LearnError if it does not run."""
    from minipage.learn.projects.scores import SCORES

    try:
        return SCORES[name](module_of(path))
    except LearnError:
        raise
    except Exception as error:
        raise LearnError(f"{path} stops with {type(error).__name__}: {error}") from error


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_of_yours", path)
    if spec is None or spec.loader is None:
        raise LearnError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def enter(board: Path, project: str, who: str, scores: dict[str, float], mean: float) -> str:
    """Write an entry; returns the table of this project, the best first. An older entry of the same name goes."""
    entries: list[dict[str, Any]] = []
    if board.exists():
        try:
            entries = json.loads(board.read_text(encoding="utf-8"))
            entries = [entry for entry in entries if (entry["project"], entry["name"]) != (project, who)]
        except (ValueError, TypeError, KeyError):
            raise LearnError(
                f"{board} is no leaderboard: it should be a JSON list that this command has written."
            ) from None
    entries.append(
        {"project": project, "name": who, "mean": round(mean, 4), "scores": {k: round(v, 4) for k, v in scores.items()}}
    )
    entries.sort(key=lambda entry: (entry["project"], -entry["mean"]))
    board.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    heads = list(scores)
    rows = [f"| {project} | mean | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for entry in entries:
        if entry["project"] == project:
            row = " | ".join(f"{entry['scores'].get(head, 0):.2f}" for head in heads)
            rows.append(f"| {entry['name']} | {entry['mean']:.2f} | {row} |")
    return "\n".join(rows)
