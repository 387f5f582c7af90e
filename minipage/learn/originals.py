"""minipage's own files, as they were before anybody's code ran: if one has changed since, it is put back.

A learner's code cannot write to them by plain Python (fence.py). Should it find another way, the graders that judge the
next one are still the same. What was written is kept beside the file, as NAME.changed.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

KINDS = ".py", ".md"


class Originals:
    def __init__(self, package: Path) -> None:
        self.package, self._lock = package, threading.Lock()
        self.contents = {path: path.read_bytes() for path in self._files() if path.is_file()}
        self._put_back()  # pipes and the like: nobody is to blame for what was there before

    def _files(self) -> list[Path]:
        """Also what lies beside the package, which Python would import in the place of something else."""
        beside = self.package.parent.glob("*.py") if (self.package.parent / "pyproject.toml").exists() else []
        return [path for path in (*self.package.rglob("*"), *beside) if path.suffix in KINDS and not path.is_dir()]

    def put_back(self) -> str:
        """The names of files that were changed, added or lost, and are now as they were; or empty."""
        with self._lock:
            return ", ".join(sorted(self._put_back()))

    def _put_back(self) -> list[str]:
        names = []
        for path in {*self._files(), *self.contents}:
            was, is_there = self.contents.get(path), os.path.lexists(path)
            if (path.read_bytes() if path.is_file() else None) == was and path.is_file() == is_there:
                continue
            names.append(path.name)
            if is_there and not path.is_file():  # a pipe: whoever reads it waits for ever
                path.unlink()
            elif is_there:
                path.replace(path.with_name(path.name + ".changed"))
            if was is not None:
                path.write_bytes(was)
        return names
