"""Kernels are the code on the disk, run in any thread and after a fork, and are Python where that is wanted."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from where import CUDA

import minipage
from minipage.simd.options import SHARED_FILES

pytestmark = pytest.mark.skipif(CUDA, reason="about the kernels of the CPU")
PACKAGE = Path(minipage.__file__).parent


def run(code, package=PACKAGE, options=(), arguments=(), **environment):
    """What a Python of its own prints."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_DISABLE")}
    process = subprocess.run(
        [sys.executable, *options, "-c", code, *arguments], capture_output=True, text=True, cwd=package.parent,
        env=known | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
    )  # fmt: skip
    assert process.returncode == 0, (process.returncode, process.stdout, process.stderr)
    return process.stdout.strip(), process.stderr


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, to edit."""
    shutil.copytree(PACKAGE, tmp_path / "minipage", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "minipage"


# The smallest kernel that calls another file's code; that comes out as 1 / (1 + e ** -u), here about 0.84.
GELU = """
import numpy as np
from minipage.model.layers.compiled import gelu
x = np.ones(1, np.float32)
gelu(x)
print(round(float(x[0]), 3))
"""


@pytest.mark.slow
def test_an_edit_of_another_file_shows_at_the_next_run_and_nothing_else_is_compiled_again(copy, tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(GELU, copy, **cache)[0] == "0.841"
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.nb?")}
    assert run(GELU, copy, **cache)[0] == "0.841"
    assert kept and kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.nb?")}
    vectors = copy / "simd" / "vectors.py"
    line = "series = series * r + np.float32(0.6931471805599453)"
    text = vectors.read_text()
    assert line in text
    vectors.write_text(text.replace(line, line.replace("0.69", "0.35")))
    edited = run(GELU, copy, **cache)[0]
    assert edited != "0.841"
    for file in kept:
        file.write_bytes(b"damaged")
    assert run(GELU, copy, **cache)[0] == edited


def test_without_a_place_for_a_cache_there_is_one_warning_and_no_cache(copy):
    for folder in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("not a folder")
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "LOCALAPPDATA"), "/dev/null/nowhere")
    shown, warned = run(GELU, copy, **nowhere)
    assert shown == "0.841"
    assert warned.count("NUMBA_CACHE_DIR") == 1


def test_every_kernel_file_that_others_use_counts_for_the_cache():
    texts = {file: file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py") if "cuda" not in file.parts}
    signs = "\n@compiled", "\n@in_python", "\n@overload", "\n@intrinsic", "\n@kept_on_disk"
    kernels = {file for file, text in texts.items() if any(sign in text for sign in signs)}
    assert {"loops.py", "decode.py", "prefill.py", "vectors.py", "compiled.py"} <= {file.name for file in kernels}
    for file in kernels:
        for node in ast.walk(ast.parse(texts[file])):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("minipage."):
                imported = PACKAGE.parent.joinpath(*node.module.split(".")).with_suffix(".py")
                name = imported.relative_to(PACKAGE).as_posix()
                assert imported not in kernels or name in SHARED_FILES, (file, imported)


KERNELS = """
import os, sys, threading
import numba, numpy as np
from minipage.attention import paged_attention
from minipage.model.layers.compiled import Linear

rng = np.random.default_rng(0)
linear = Linear(rng.standard_normal((64, 256), np.float32), np.zeros(256, np.float32))
x = rng.standard_normal((3, 64), np.float32)
q, (k, v) = rng.standard_normal((4, 4, 16), np.float32), rng.standard_normal((2, 30, 16, 2, 16), np.float32)
batch = np.arange(30).reshape(2, 15), np.array([200, 230]), np.array([0, 1, 4]), 0.25
wanted = [linear(x), paged_attention(q, k, v, *batch)]
wrong = []

def compute(times):
    for _ in range(times):
        found = [linear(x), paged_attention(q, k, v, *batch)]
        wrong.extend(a for a, b in zip(found, wanted) if not np.array_equal(a, b))
"""


@pytest.fixture(params={"omp": "omppool", "workqueue": "workqueue", "tbb": "tbbpool"}.items(), ids=lambda item: item[0])
def threading_layer(request):
    layer, library = request.param
    try:
        run(f"from numba.np.ufunc import {library}")
    except AssertionError:
        pytest.skip(f"{layer} is not there")
    return {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}


THREADS = """
threads = [threading.Thread(target=compute, args=(25,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
FORKS = """
if os.fork() == 0:
    compute(2)
    if os.fork() == 0:
        compute(1)
        os._exit(len(wrong))
    os._exit(len(wrong) + os.wait()[1])
compute(2)
wrong.append(os.wait()[1])
print(wrong)
"""


def test_threads_do_not_get_in_each_others_way_and_forked_processes_compute_the_same(threading_layer):
    code = THREADS + (FORKS if hasattr(os, "fork") else "print([*wrong, 0])")
    assert run(KERNELS + code, **threading_layer)[0] == "[0]"


def test_without_the_compiler_every_instruction_does_what_its_machine_code_does():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("test_vectors.py")),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=PACKAGE.parent, env=environment | {"NUMBA_DISABLE_JIT": "1"}
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_without_the_compiler_attention_is_the_same_over_every_kind_of_cache():
    code = """
import numpy as np
from minipage.attention import KVCache, cpu, loops, reference, write_kv
from minipage.attention.quantize import KV_CACHE_DTYPES

rng = np.random.default_rng(0)
q, (k, v) = rng.standard_normal((4, 4, 16), np.float32), rng.standard_normal((2, 24, 2, 16), np.float32)
for dtype in KV_CACHE_DTYPES.values():
    layer = [array[0] for array in KVCache(1, 6, 4, 2, 16, dtype).arrays]
    write_kv(k, v, *layer[:2], np.arange(24), *layer[2:])
    arguments = q, *layer[:2], np.arange(6).reshape(2, 3), np.array([9, 12]), np.array([0, 1, 4]), 0.25, *layer[2:]
    for kernel in (cpu, loops):
        np.testing.assert_allclose(kernel.paged_attention(*arguments), reference.paged_attention(*arguments), atol=1e-5)
"""
    run(code, options=["-W", "error:::minipage"], NUMBA_DISABLE_JIT="1")


TEXT = """
import sys
from minipage import LLM, SamplingParams
seen = set()
sys.settrace(lambda frame, event, argument: seen.add(frame.f_code.co_name))
llm = LLM(sys.argv[1], load_format="dummy", num_blocks=16)
print(llm.generate([[5, 7, 11, 13, 2]], SamplingParams(max_tokens=4, temperature=0))[0].outputs[0].token_ids)
print(sorted(seen & {"attend_piece", "attend_tile", "add_to_tile", "gelu"}))
"""
CONFIG = {"model_type": "gpt2", "vocab_size": 60, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}


def test_without_the_compiler_the_model_says_the_same_and_a_debugger_sees_every_kernel(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    compiled, seen = run(TEXT, arguments=[str(tmp_path)])[0].splitlines()
    assert seen == "[]"
    options = ["-W", "error:::minipage"]
    plain, seen = run(TEXT, options=options, arguments=[str(tmp_path)], NUMBA_DISABLE_JIT="1")[0].splitlines()
    assert plain == compiled
    assert seen == "['add_to_tile', 'attend_piece', 'attend_tile', 'gelu']"
