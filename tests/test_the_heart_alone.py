"""All around the heart can be deleted, and it still runs and is still tested.

In a copy of minipage without those rooms, the heart's own tests pass.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AROUND = ["play", "serve", "chat", "trace", "learn", "ladder", "simulate", "plan", "languages", "train"]
AROUND += ["cli.py", "cli_options.py", "cli_defaults.py", "output.py", "info.py", "lesson.py"]
AROUND += ["__main__.py"]
EVERY_MODULE_AND_A_FEW_TOKENS = """
import pkgutil, sys, minipage
from importlib import import_module
for module in pkgutil.walk_packages(minipage.__path__, "minipage."):
    import_module(module.name)
assert minipage.__file__.startswith(sys.argv[1]), minipage.__file__
[output] = minipage.LLM().generate("To be, or", minipage.SamplingParams(max_tokens=3))
assert len(output.outputs[0].token_ids) == 3
"""


@pytest.fixture
def heart(tmp_path):
    """A folder with minipage, less what is around its heart, and the tests."""
    shutil.copytree(ROOT / "minipage", tmp_path / "minipage", ignore=shutil.ignore_patterns("assets"))
    (tmp_path / "minipage" / "assets").symlink_to(ROOT / "minipage" / "assets")
    for name in AROUND:
        gone = tmp_path / "minipage" / name
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink(missing_ok=True)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(heart, *command, **variables):
    environment = os.environ | {"PYTHONPATH": str(heart)} | variables
    done = subprocess.run(
        [sys.executable, *command], cwd=heart, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_what_is_around_the_heart_can_be_deleted(heart):
    run(heart, "-c", EVERY_MODULE_AND_A_FEW_TOKENS, str(heart), NUMBA_ENABLE_CUDASIM="1")
    assert " passed" in run(
        heart, "-m", "pytest", "-v", "tests/memory/test_block_table.py", "tests/scheduling/test_scheduler.py"
    )


@pytest.mark.slow
def test_and_all_tests_of_the_heart_pass(heart):
    assert " passed" in run(heart, "-m", "pytest", "-v", "tests/memory", "tests/scheduling", "tests/engine")
