"""The kernels work with all threads here, so that joining what several of them have found is tested, too."""

import pytest


@pytest.fixture(autouse=True)
def all_threads():
    import numba  # not before: see tests/conftest.py

    before = numba.get_num_threads()
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    yield
    numba.set_num_threads(before)
