"""No call of a kernel ends the process, whatever it is given: strangers.py, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from where import CUDA, DEVICE


@pytest.mark.skipif(DEVICE, reason="CuPy has no arrays in most of these layouts")
@pytest.mark.parametrize("_", [pytest.param("", marks=[pytest.mark.slow] * CUDA)])  # long in the simulator
def test_kernels_survive_whatever_they_are_given(_):
    where = [f"--cuda={os.environ['MINIPAGE_TEST_CUDA']}"] if CUDA else []
    file = Path(__file__).with_name("strangers.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *where, str(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=file.parents[2])
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
