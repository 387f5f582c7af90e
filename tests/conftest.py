"""Two hypothesis profiles, and where the CUDA kernels run.

ci        the default: the same examples every time, so a red test is red for everybody
thorough  MINIPAGE_HYPOTHESIS=thorough: many more, new ones each time, for a change to the memory manager or scheduler

--cuda=simulator   tests/attention and tests/cuda with the CUDA kernels, in numba's simulator
--cuda=device      the same, on a GPU, and tests/engine with every engine there
--cuda=auto        (the default) everything else; and tests/test_cuda.py runs one of the two in processes of its own,
                   since numba cannot change between them: the device if there is one
"""

import gc
import os
import sys
from pathlib import Path

# Tests share their cores with one another; threads of BLAS that wait for each other make them many times slower.
# It is read when NumPy is first loaded, hence before any other import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import chromium
import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "cuda"))  # its helpers, for tests of the attention that both share

# Modules and thousands of collected tests stay until the end. While they are made nothing is garbage; afterwards the
# collector leaves them alone: each time that it looks at all of them takes a second.
gc.disable()

# No deadline: the first call of a kernel compiles it, which takes seconds.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("thorough", max_examples=2_000, stateful_step_count=100, deadline=None)
settings.register_profile("cuda", derandomize=True, deadline=None, max_examples=12)
settings.load_profile(os.environ.get("MINIPAGE_HYPOTHESIS", "ci"))


@pytest.fixture(autouse=True, scope="session")
def one_thread_in_each_of_several_processes():
    """Threads of several processes that wait for each other make the tests of engines many times slower."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import numba  # not before: it is told in pytest_configure whether to simulate GPUs
        import torch

        numba.set_num_threads(1)
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def few_blocks():
    """By default there is 1 GiB for K and V: of a tiny model a quarter of a million blocks, which take a few tenths of
    a second to count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minipage.worker.runner.DEFAULT_MEMORY", "16MiB")
        yield


@pytest.fixture(scope="module")
def browser():
    with chromium.started() as browser:
        yield browser


def pytest_addoption(parser):
    where = ("auto", "simulator", "device")
    parser.addoption("--cuda", choices=where, default="auto", help="where the CUDA kernels run (see tests/conftest.py)")


def pytest_configure(config):
    where = config.getoption("--cuda")
    if where == "auto":
        os.environ.pop("MINIPAGE_TEST_CUDA", None)
        return
    os.environ["MINIPAGE_TEST_CUDA"] = where
    settings.load_profile("cuda")
    if where == "simulator":
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        from minipage.ladder import simulator

        simulator.install()


def pytest_ignore_collect(collection_path, config):
    """With --cuda, only what has to do with CUDA kernels; without it, everything else."""
    root = Path(__file__).parent
    if collection_path.suffix != ".py" or root not in collection_path.parents:
        return None
    folder = collection_path.relative_to(root).parts[0]
    if config.getoption("--cuda") == "auto":
        return True if folder == "cuda" else None
    folders = ["cuda", "attention", "conftest.py"] + ["engine"] * (config.getoption("--cuda") == "device")
    return None if folder in folders else True


def pytest_collection_modifyitems(items):
    """Of several processes one begins with the longest, and nobody waits for it in the end. Meanwhile another one
    compiles the CPU's kernels, which both would do otherwise."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name != "test_cuda.py")


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # of what a test makes little is garbage in circles
    gc.enable()


def pytest_terminal_summary(terminalreporter, config):
    from where import description

    terminalreporter.write_line(description(config.getoption("--cuda")))
