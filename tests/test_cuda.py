"""The CUDA kernels pass the tests of paged attention, and their own: on a GPU if there is one, else in the simulator.

numba is told which when it is imported, so these tests run in processes of their own: `pytest --cuda=simulator tests`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from where import device_name

TESTS = Path(__file__).parent
ENGINE = "cuda/test_gpu_engine.py"
KERNELS = sorted({f"cuda/{file.name}" for file in (TESTS / "cuda").glob("test_*.py")} - {ENGINE})
PARTS = {  # a process each, as to load the libraries takes a while; about as long as each other
    "engine": [ENGINE, "attention", *["engine"] * bool(device_name())],
    "kernels": KERNELS,
}


@pytest.mark.parametrize("part", PARTS)
def test_cuda_kernels(part):
    run_tests(PARTS[part])


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_what_takes_the_simulator_long(part):
    if device_name():
        pytest.skip("a GPU runs all of it by default")
    run_tests(PARTS[part], "-m", "slow")


def run_tests(files, *options):
    where = "device" if device_name() else "simulator"
    paths = [str(TESTS / file) for file in files]
    command = [sys.executable, "-m", "pytest", f"--cuda={where}", "-p", "no:cacheprovider", *paths, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS.parent)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
    assert " passed" in run.stdout and f"CUDA kernels: {where}" in run.stdout, run.stdout
