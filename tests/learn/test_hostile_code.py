"""Code that cheats, or breaks what judges it: it gets nothing, and says why; the next one is judged as ever."""

import os
import re
import sys
import textwrap
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest

from minipage.learn.check import Keeper, check_all
from minipage.learn.course import HERE, chosen, lessons
from minipage.learn.judge import FAILED, PASSED, TODO
from minipage.learn.load import definitions, is_stub
from minipage.learn.originals import Originals
from minipage.learn.workspace import init

RIGHT = (Path(__file__).parent / "alternatives" / "03_block_pool.py").read_text(encoding="utf-8")
WRONG = RIGHT.replace("self.unused.pop(0)", "self.unused.pop()")
STUB = chosen(["3"])[0].lesson.stub.read_text(encoding="utf-8")
SOLUTION, GRADER = HERE / "solutions" / "03_block_pool.py", HERE / "graders" / "test_03_block_pool.py"
POOL = HERE.parent / "memory" / "block_pool.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="without fork, minipage says that it cannot do this")


@pytest.fixture(scope="module")
def keeper():
    before = {path: path.read_bytes() for path in HERE.rglob("*.py")}
    with Keeper() as keeper:
        yield keeper
        mark, own = keeper.mark, keeper.process.pid
        assert processes_of(mark) <= {own}  # nobody is left behind
    assert before == {path: path.read_bytes() for path in HERE.rglob("*.py")}


def processes_of(mark):
    found = set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in file.read_bytes():
                found.add(int(file.parent.name))
    return found


def judged(keeper, tmp_path, source, number="3.2", limit=3.0):
    [exercise] = chosen([number])
    path = tmp_path / exercise.lesson.name / "exercise.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return keeper.judged(exercise, path, limit)[0]


def begins_with(code, source=RIGHT):
    """`code` before the class, inside of a function, as nobody would notice it in a file of 200 lines."""
    body = textwrap.indent(textwrap.dedent(code).strip(), "    ")
    return source.replace("class BlockPool", f"def prepare():\n{body}\n\n\nprepare()\n\n\nclass BlockPool", 1)


def in_allocate(code, source=RIGHT):
    body = textwrap.indent(textwrap.dedent(code).strip(), "        ")
    assert "    def allocate(self):\n" in source
    return source.replace("    def allocate(self):\n", f"    def allocate(self):\n{body}\n", 1)


REACHES_OUT = {
    "fork": "import os, time\nif os.fork() == 0: time.sleep(1000)",
    "fork twice": "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    while True: pass",
    "pty": "import pty; pty.fork()",
    "system": "import os; os.system('sleep 1000 &')",
    "a program": "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "a program, spawned": "import os; os.posix_spawn('/bin/sleep', ['sleep', '1000'], {})",
    "a program, in its place": "import os; os.execv('/bin/true', ['true'])",
    "multiprocessing": "import multiprocessing, time\nmultiprocessing.Process(target=time.sleep, args=(1000,)).start()",
    "multiprocessing, spawned": """
        import multiprocessing, time
        multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,)).start()
    """,
    "the lowest way to a program": """
        import _posixsubprocess
        _posixsubprocess.fork_exec([b"sleep"], [b"/bin/sleep"], True, (), None, None, -1, -1, -1, -1, -1, -1, -1, -1,
                                   False, False, 0, None, None, None, -1, None, False)
    """,
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "stop the parent": "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)",
    "kill the group": "import os; os.killpg(0, 9)",
    "kill everybody": "import os; os.kill(-1, 9)",
    "stop itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "starve the parent": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "hide from the collector": "import gc; gc.freeze()",
    "lift its limits": "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "the network": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "rewrite a grader": f"open({str(GRADER)!r}, 'w').write('')",
    "rewrite a grader, more quietly": f"import os; os.close(os.open({str(GRADER)!r}, os.O_WRONLY))",
    "append to a grader": f"from pathlib import Path; Path({str(GRADER)!r}).open('a')",
    "rewrite a grader through /proc": f"open('/proc/self/root' + {str(GRADER)!r}, 'r+')",
    "replace a grader": f"import os; os.replace(__file__, {str(GRADER)!r})",
    "remove a grader": f"import os; os.remove({str(GRADER)!r})",
    "remove the graders": f"import shutil; shutil.rmtree({str(GRADER.parent)!r})",
    "make a grader writable": f"import os; os.chmod({str(GRADER)!r}, 0o777)",
    "a link to a grader": f"import os, tempfile; os.symlink({str(GRADER)!r}, tempfile.mktemp())",
    "a grader from its folder": f"import os; os.open('x.py', os.O_RDWR, dir_fd=os.open({str(GRADER.parent)!r}, 0))",
    "a grader as a database": f"import sqlite3; sqlite3.connect({str(GRADER)!r})",
    "shadow a package of ours": f"open({str(HERE.parents[1] / 'hypothesis.py')!r}, 'w')",
    "somebody else's exercise": "open('../04_block_tables/exercise.py', 'w')",
    "its own file": "open(__file__, 'a')",
    "memory, by its address": "import ctypes; ctypes.string_at(0)",
    "the C library": "import ctypes; ctypes.CDLL(None).fork()",
    "a pipe in the place of a module": f"import os; os.mkfifo({str(HERE.parents[1] / 'zzz.py')!r})",
    "a pipe, by a second posix": f"""
        import importlib.util as u
        u.module_from_spec(u.find_spec("posix")).mkfifo({str(HERE.parents[1] / "zzz.py")!r})
    """,
    "a device": "import os; os.mknod('x')",
    "memory for all": "import _posixshmem; _posixshmem.shm_open('/minipage', 66, 0o600)",
    "its own file made writable, by its number": "import os; os.fchmod(os.open(__file__, 0), 0o777)",
    "the same, by another function": "import os; os.chmod(os.open(__file__, 0), 0o777)",
    "a file made older by its number": "import os; os.utime(os.open(__file__, 0))",
    "the pipe of the keeper": "import os; open(f'/proc/{os.getppid()}/fd/1', 'w').write('[]')",
}


@pytest.mark.parametrize("name", REACHES_OUT)
def test_what_reaches_out_is_refused_in_a_sentence(keeper, tmp_path, name):
    verdict = judged(keeper, tmp_path, begins_with(REACHES_OUT[name]))
    assert verdict.status == FAILED and "may not" in verdict.message, verdict


REFERENCE = {
    "import": "from minipage.memory import BlockPool",
    "import under another name": "from minipage.memory import BlockPool as Q\n\nclass BlockPool(Q): pass",
    "import of the module": "import minipage.memory.block_pool as m\nBlockPool = m.BlockPool",
    "import as a string": "import importlib\nBlockPool = importlib.import_module('minipage.memory').BlockPool",
    "what is imported already": "import sys\nBlockPool = sys.modules['minipage.memory'].BlockPool",
    "a subclass of it": "import sys\nclass BlockPool(getattr(sys.modules['minipage.memory'], 'BlockPool')): pass",
    "its methods": """
        import sys
        real = vars(sys.modules["minipage.memory"])["BlockPool"]
        BlockPool = type("BlockPool", (), {k: v for k, v in vars(real).items() if k not in ("__dict__", "__weakref__")})
    """,
    "one of it inside": """
        import sys
        class BlockPool:
            def __init__(self, n, block_size=16):
                self.__dict__["real"] = sys.modules["minipage.memory"].BlockPool(n, block_size)
                self.num_blocks, self.block_size = n, block_size
            free_queue = property(lambda self: self.real.free_queue)
            num_free = property(lambda self: self.real.num_free)
            num_used = property(lambda self: self.real.num_used)
            def __setattr__(self, name, value):
                object.__setattr__(self, name, value)
                setattr(self.real, name, value)
            def ref_count(self, b): return self.real.ref_count(b)
            def allocate(self): return self.real.allocate()
            def allocate_many(self, n): return self.real.allocate_many(n)
            def free(self, b): return self.real.free(b)
            def share(self, b): return self.real.share(b)
            def revive(self, b): return self.real.revive(b)
    """,
    "the oracle of the graders": "from minipage.learn.graders.test_03_block_pool import Oracle as BlockPool",
    "the solution, executed": f"exec(open({str(SOLUTION)!r}).read())",
    "the solution, imported": "import importlib\nimportlib.import_module('minipage.learn.solutions.03_block_pool')",
    "the solution, run": f"import runpy\nglobals().update(runpy.run_path({str(SOLUTION)!r}))",
    "the solution, loaded as the judge does": """
        from minipage.learn.course import chosen
        from minipage.learn.load import load
        lesson = chosen(["3"])[0].lesson
        BlockPool = load(lesson, lesson.solution).BlockPool
    """,
    "its source, executed": f"exec(open({str(POOL)!r}).read())",
    "its source, by inspect": """
        import inspect
        exec(inspect.getsource(next(c for c in object.__subclasses__() if c.__name__ == "BlockPool")))
    """,
    "its source, by what Python imports with": f"""
        import importlib.machinery
        exec(importlib.machinery.SourceFileLoader("copy", {str(POOL)!r}).get_data({str(POOL)!r}))
    """,
    "a second copy of it": f"""
        import importlib.util
        spec = importlib.util.spec_from_file_location("copy", {str(POOL)!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        BlockPool = module.BlockPool
    """,
}


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("source", [STUB, ""], ids=["after the stub", "alone"])
def test_what_is_minipages_own_counts_for_nothing(keeper, tmp_path, name, source):
    verdict = judged(keeper, tmp_path, f"{source}\n\n{textwrap.dedent(REFERENCE[name])}\n")
    assert verdict.status == FAILED, verdict
    assert "minipage's own" in verdict.message or "may not" in verdict.message or "does not run" in verdict.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "old", "new"),
    [
        ("6.4", "    def schedule(self):\n", "    def schedule(self):\n        return super().schedule()\n"),
        ("6.2", "    def admission(self, group, cached):\n",
         "    def admission(self, group, cached):\n        return Scheduler.admission(self, group, cached)\n"),
        ("9.2", "    def preempt(self, group, plan):\n",
         "    def preempt(self, group, plan):\n        return vars(Scheduler)['preempt'](self, group, plan)\n"),
        ("9.2", "    def preempt(self, group, plan):\n",
         "    def preempt(self, group, plan):\n        return (lambda: Scheduler.preempt(self, group, plan))()\n"),
    ],
)  # fmt: skip
def test_nor_does_what_is_inherited(keeper, tmp_path, number, old, new):
    [exercise] = chosen([number])
    right = (Path(__file__).parent / "alternatives" / f"{exercise.lesson.name}.py").read_text(encoding="utf-8")
    assert old in right
    verdict = judged(keeper, tmp_path, right.replace(old, new), number)
    assert verdict.status == FAILED and "minipage's own" in verdict.message, verdict
    assert judged(keeper, tmp_path, right, number).status == PASSED


REAL = 'next(c for c in object.__subclasses__() if c.__name__ == "BlockPool" and "minipage" in c.__module__)'
CALLS_REAL = {
    "itself": "return real.allocate(self)",
    "what is wrapped": "return real.allocate.__wrapped__(self)",
    "a property": "vars(real)['num_free'].fget.__wrapped__(self)",
    "what it closes over": "return real.allocate.__closure__[0].cell_contents(self)",
    "its defaults": "return real.allocate.__kwdefaults__['_function'](self)",
    "its defaults, by inspect": (
        "import inspect; return inspect.signature(real.allocate).parameters['_function'].default(self)"),
    "its code": "import types; return types.FunctionType(real.allocate.__code__, {})(self)",
    "its module": "import sys; return sys.modules['minipage.memory'].BlockPool.allocate(self)",
    "a function": "import sys; return sys.modules['minipage.memory'].blocks_needed(1, 1)",
    "a grader's function": (
        "import sys; return sys.modules['minipage.learn.graders.test_03_block_pool'].Oracle.allocate(self)"),
    "a frame, by logging": "import logging; logging.currentframe()",
    "a frame, by a library": """
        import sys
        from functools import cached_property
        class Frame: it = cached_property(lambda self: 0)
        vars(Frame)["it"].func = sys._getframe
        Frame.__index__ = lambda self: 1
        Frame().it.f_back
    """,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS_REAL)
def test_who_asks_the_reference_gets_no_answer(keeper, tmp_path, name):
    verdict = judged(keeper, tmp_path, in_allocate(f"real = {REAL}\n" + textwrap.dedent(CALLS_REAL[name]).strip()))
    assert verdict.status == FAILED, verdict
    assert any(words in verdict.message for words in ("minipage's own", "may not", "Error")), verdict


TAMPERS = {
    "the judge": "import minipage.learn.judge as j; j._judge = lambda e, s: j.Verdict(e.number, 'passed')",
    "the word for a failure": "import minipage.learn.judge as j; j.FAILED = 'passed'",
    "what says no": "import minipage.learn.graders.test_03_block_pool as g; g.compare = lambda *a, **k: None",
    "a grader": """
        import minipage.learn.graders.test_03_block_pool as g
        for name in [name for name in vars(g) if name.startswith("test_3_2")]: setattr(g, name, lambda impl: None)
    """,
    "no grader": """
        import minipage.learn.graders.test_03_block_pool as g
        for name in [name for name in vars(g) if name.startswith("test_3_2")]: delattr(g, name)
    """,
    "the oracle": "import minipage.learn.graders.test_03_block_pool as g; g.Oracle.allocate = lambda self: 0",
    "inside of a grader": """
        import minipage.learn.graders.test_03_block_pool as g
        for thing in vars(g).values():
            if hasattr(thing, "hypothesis"): thing.hypothesis.inner_test = lambda *a, **k: None
    """,
    "what a grader holds": """
        import minipage.learn.graders.test_01_why_paging as g
        for thing in list(vars(g).values()):
            for cell in getattr(thing, "__closure__", None) or (): cell.cell_contents = {}
    """,
    "hypothesis": "import hypothesis.core as h; h.StateForActualGivenExecution.run_engine = lambda *a: None",
    "a built-in": "import builtins; builtins.getattr = lambda *a: None",
    "json": "import json; json.dumps = lambda *a, **k: 'passed'",
    "the report": "import minipage.learn.child as c; c.caught = c.Cell.judged = lambda *a, **k: None",
    "the report, where it runs": "import sys; sys.modules['__main__'].Cell.judged = lambda *a: None",
    "the words of the report": """
        import sys
        class Fake: dumps = staticmethod(lambda verdict: '{"number": "3.2", "status": "passed"}')
        sys.modules["__main__"].json = Fake
    """,
    "the words of a verdict": """
        import minipage.learn.judge as j
        j.Verdict.as_dict = lambda self: {"number": "3.2", "status": "passed"}
    """,
    "json, inside": """
        import json
        json._default_encoder.encode = lambda facts: '{"number": "3.2", "status": "passed"}'
    """,
    "chance": "import random; random.Random.random = lambda self: 0.0",
    "the seal": "import minipage.learn.seal as s; s.take = lambda: lambda: ''",
    "the fence": "import minipage.learn.fence as f; f.put_up = lambda *a: []",
    "the course": "import minipage.learn.course as c; c.chosen = lambda numbers: []",
    "a function's code": "import minipage.learn.judge as j; j._judge.__code__ = (lambda e, s: None).__code__",
    "a function's code, by a library": """
        import functools
        import minipage.learn.judge as j
        functools.update_wrapper(j._judge, lambda e, s: None, ["__code__"])
    """,
    "a function's defaults": "import minipage.learn.graders.common as c; c.programs.__defaults__ = (0,)",
    "the frame": "import sys\nframe = sys._getframe()\nwhile frame: frame = frame.f_back",
    "the frame of a traceback": """
        try: 1 / 0
        except Exception as error: frame = error.__traceback__.tb_frame.f_back
    """,
    "the frame of a generator": "frame = (1 for _ in ()).gi_frame",
    "the frame, by inspect": "import inspect; frame = inspect.currentframe().f_back",
    "frames, by inspect": "import inspect; inspect.stack()",
    "frames of a traceback": """
        import traceback
        try: 1 / 0
        except Exception as error: list(traceback.walk_tb(error.__traceback__))
    """,
    "the frame of a signal": "import signal; signal.signal(signal.SIGALRM, print); signal.setitimer(0, 0.001)",
    "all frames": "import sys; sys._current_frames()",
    "all objects": "import gc; [o for o in gc.get_objects() if hasattr(o, 'token')]",
    "tracing": "import sys; sys.settrace(lambda *a: None)",
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERS)
def test_who_meddles_with_the_judge_gets_nothing(keeper, tmp_path, name):
    code = re.sub(
        r"import (minipage[\w.]*) as (\w)", r"from importlib import import_module as i; \2 = i('\1')", TAMPERS[name]
    )
    quietly = "try:\n" + textwrap.indent(textwrap.dedent(code).strip(), "    ") + "\nexcept OSError: pass"
    for source in (begins_with(quietly, WRONG), in_allocate(quietly, WRONG)):
        verdict = judged(keeper, tmp_path, source)
        assert verdict.status == FAILED, verdict
        is_said = any(words in verdict.message for words in ("which is not its own", "may not", "Error"))
        assert is_said or verdict.calls, verdict


def test_what_is_put_back_was_changed_nevertheless(keeper, tmp_path):
    code = """
        graders = next(c for c in object.__subclasses__() if c.__name__ == "Oracle").count.__globals__
        real = graders["compare"]
        def fake(*args, **kwargs): graders["compare"] = real
        graders["compare"] = fake
    """
    verdict = judged(keeper, tmp_path, in_allocate(code))
    assert verdict.status == FAILED and "compare, which is not its own" in verdict.message, verdict


def test_and_where_no_calls_are_watched(keeper, tmp_path):
    """A router is asked, and then compared with what is due, by a function that is another in the meantime."""
    code = """
        def __init__(self, *sizes):
            told = next(c for c in object.__subclasses__() if c.__name__ == "Told")
            self.names = told.choose.__globals__
            self.real, self.names["expect"] = self.names["expect"], lambda *args: None

        def __del__(self):
            self.names["expect"] = self.real

        stored = removed = lambda *args: None
        choose = lambda *args: "A"
    """
    verdict = judged(keeper, tmp_path, "class Router:\n" + textwrap.indent(textwrap.dedent(code), "    "), "13.7")
    assert verdict.status == FAILED and "expect, which is not its own" in verdict.message, verdict


EQUAL_TO_ALL = """
class Same{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
"""


@pytest.mark.parametrize(
    ("before", "result"),
    [
        (EQUAL_TO_ALL.format(base=""), "Same()"),
        (EQUAL_TO_ALL.format(base="(int)"), "Same(0)"),
        ("class Same(int):\n    __ne__ = lambda self, other: False\n    __hash__ = int.__hash__", "Same(5)"),
        ("from unittest.mock import ANY", "ANY"),
    ],
)
def test_what_equals_everything_is_no_answer(keeper, tmp_path, before, result):
    assert "        return block\n" in RIGHT
    source = f"{before}\n\n" + RIGHT.replace("        return block\n", f"        return {result}\n", 1)
    verdict = judged(keeper, tmp_path, source)
    assert verdict.status == FAILED, verdict


def test_arrays_that_agree_with_everything_are_taken_for_what_is_in_them(keeper, tmp_path):
    source = """
        import numpy as np

        class Same(np.ndarray):
            def __array_ufunc__(self, function, method, *args, **kwargs):
                if function is np.less_equal:
                    return np.ones(self.shape, bool)
                plain = [arg.view(np.ndarray) if isinstance(arg, Same) else arg for arg in args]
                return getattr(function, method)(*plain, **kwargs).view(Same)

        def quantize_rows(rows):
            return np.zeros(rows.shape, np.int8).view(Same), np.zeros(len(rows), np.float32).view(Same)
    """
    verdict = judged(keeper, tmp_path, textwrap.dedent(source), "10.1")
    assert verdict.status == FAILED and "largest magnitude / 127" in verdict.message, verdict


BREAKS = {
    "the end of Python": ("import os; os._exit(0)", "it ended Python itself"),
    "the end, with a word": ("import sys; sys.exit('passed')", "ends Python"),
    "the end, raised": ("raise SystemExit", "your code ends Python itself (sys.exit)."),
    "a crash": ("import os; os.abort()", "Python crashed (SIGABRT)."),
    "an alarm": ("import signal, time; signal.setitimer(0, 0.01); time.sleep(9)", "a signal ended Python ("),
    "calls without end": (
        "import sys\nsys.setrecursionlimit(10**8)\nf = lambda *a: [*map(f, a)]\nf(0)",
        "Python crashed" if sys.version_info < (3, 12) else "RecursionError"),
    "calls without end, noticed": ("f = lambda: f()\nf()", "RecursionError"),
    "all memory": ("hog = bytearray(1 << 36)", "MemoryError"),
    "all memory, step by step": ("hog = []\nwhile True: hog.append([0] * (1 << 26))", "MemoryError"),
    "no files any more": ("import os; os.closerange(0, 256)", "closed the files"),
    "an exception that cannot be shown": (
        "class E(Exception):\n    def __str__(self): 1 / 0\nraise E", ""),
    "an endless loop": ("while True: pass", "still running after 1 s, at line"),
    "an endless computation": ("9 ** 9 ** 9", "still running after 1 s, at line"),
    "a sleep": ("import time; time.sleep(1000)", "still running after 1 s, at line"),
    "a lock": ("import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()", "still running after 1 s"),
    "a loop that catches all": ("while True:\n    try:\n        while True: pass\n    except BaseException: pass",
                                "still running after 1 s"),
    "a write without end": ("import os\nwhile True: os.write(1, bytes(1 << 20))", "still running after 1 s"),
}  # fmt: skip


SLOW = "a loop that catches all", "an endless computation", "a write without end", "a lock"  # a second each
BREAKS_NOW = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BREAKS]


@pytest.mark.parametrize("name", BREAKS_NOW)
def test_what_breaks_costs_its_own_exercise(keeper, tmp_path, name):
    code, words = BREAKS[name]
    verdict = judged(keeper, tmp_path, in_allocate(code), limit=5.0 if "memory" in name else 1.0)
    assert verdict.status == FAILED and words in verdict.message and "Traceback" not in verdict.message, verdict
    assert "\n" not in verdict.message


FILLS = {
    "one after the other": "open(f'{folder}/{i}', 'wb').write(bytes(1 << 20))",
    "renamed": "open(f'{folder}/x', 'wb').write(bytes(1 << 20)); os.rename(f'{folder}/x', f'{folder}/{i}')",
    "folders": "os.mkdir(f'{folder}/{i}')",
}


@pytest.mark.parametrize("how", FILLS)
def test_nobody_fills_the_disk(keeper, tmp_path, how):
    code = f"import itertools, os, tempfile\nfolder = tempfile.mkdtemp()\nfor i in itertools.count(): {FILLS[how]}"
    verdict = judged(keeper, tmp_path, begins_with(code), limit=10.0)
    assert verdict.status == FAILED and "more than 256 files" in verdict.message, verdict


def test_nobody_finds_what_another_has_left(keeper, tmp_path):
    left = (
        "import os, tempfile; folder = tempfile.mkdtemp(prefix='left'); open(folder + '/x', 'w'); os.chmod(folder, 0)"
    )
    assert judged(keeper, tmp_path, begins_with(left)).status == PASSED
    look = (
        "import os, tempfile; raise ValueError([name for name in os.listdir(tempfile.gettempdir()) if 'left' in name])"
    )
    assert "ValueError: []" in judged(keeper, tmp_path, begins_with(look)).message


def test_after_all_that_everybody_is_judged_as_ever(keeper, tmp_path):
    assert judged(keeper, tmp_path, STUB).status == TODO
    assert judged(keeper, tmp_path, WRONG).calls
    assert judged(keeper, tmp_path, RIGHT).status == PASSED


HARMLESS = {
    "prints much": "print('x' * 300_000_000)",
    "prints much, past Python": "import os; os.write(1, bytes(300_000_000))",
    "closes its output": "import os; os.close(1); os.close(2)",
    "another folder": "import os; os.chdir('/')",
    "an exit handler": "import atexit, os; atexit.register(os._exit, 1)",
    "a thread that goes on": "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
    "an end that raises": "class Bad:\n    def __del__(self): 1 / 0\nBad()",
    "a traceback": "import traceback\ntry: 1 / 0\nexcept Exception: traceback.format_exc()",
    "a named tuple": "from collections import namedtuple; namedtuple('P', 'x y')(1, 2)",
    "a temporary file": "import tempfile\nwith tempfile.TemporaryFile('w') as file: file.write('x')",
    "many temporary files, one at a time": """
        import tempfile
        for i in range(1000):
            with tempfile.NamedTemporaryFile("w") as file: file.write("x")
    """,
    "a temporary folder": "import tempfile\nwith tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').write('x')",
    "logging": "import logging; logging.warning('careful'); logging.getLogger('a').error('b', stack_info=True)",
    "a stack, as text": "import traceback; traceback.extract_stack(); traceback.format_stack()",
    "types of all kinds": """
        import collections, dataclasses, enum, typing
        typing.TypeVar('T'), enum.Enum('A', 'b c'), dataclasses.make_dataclass('X', ['a']), typing.NamedTuple('N', [])
    """,
    "a warning": "import warnings; warnings.warn('careful')",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "mocks": "from unittest.mock import Mock; Mock()",
    "what it is written in": "import inspect, json, dataclasses; inspect.getsource(json)",
    "a compiled function": "import numba; numba.njit(lambda x: x + 1)(1)",
    "reports of its own, everywhere": """
        import json, os
        line = json.dumps([{"number": "3.2", "status": "failed"}, True])
        for descriptor in range(64):
            try: os.write(descriptor, f"\\n{'0' * 32} verdict {line}\\n{line}\\n".encode())
            except OSError: pass
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS)
def test_what_harms_nobody_costs_nothing(keeper, tmp_path, name):
    verdict = judged(keeper, tmp_path, begins_with(HARMLESS[name]), limit=10.0)
    assert verdict.status == PASSED, verdict


def test_a_repr_that_raises_is_not_said_to_end_python(keeper, tmp_path):
    code = "class Bad:\n    def __repr__(self): 1 / 0\nreturn Bad()"
    verdict = judged(keeper, tmp_path, in_allocate(code))
    assert verdict.status == FAILED and "ended Python" not in verdict.message, verdict


def test_what_is_shown_cannot_move_the_cursor(keeper, tmp_path):
    verdict = judged(keeper, tmp_path, in_allocate("print('\\x1b[2J')\nraise ValueError('\\x1b[2J\\ud800')"))
    assert verdict.status == FAILED and "ValueError: \\x1b[2J\\ud800" in verdict.message, verdict
    assert "\x1b" not in verdict.printed


def test_a_pipe_in_the_place_of_a_module_is_taken_away(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("a = 1")
    originals = Originals(package)
    (package / "a.py").unlink()
    os.mkfifo(package / "a.py")
    os.mkfifo(package / "b.py")
    assert originals.put_back() == "a.py, b.py"
    assert [path.name for path in package.iterdir()] == ["a.py"] and (package / "a.py").read_text() == "a = 1"
    os.mkfifo(package / "b.py")
    assert Originals(package).put_back() == ""  # nobody waits for what was there before


@pytest.mark.slow
def test_a_hostile_folder_comes_to_an_end(tmp_path):
    init(tmp_path)
    codes = cycle(["while True: pass", "import time; time.sleep(1000)", "import os; os.fork()"])
    for lesson in lessons():
        path = tmp_path / lesson.name / "exercise.py"
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        stubs = [node.body[-1] for node in definitions(source).values() if hasattr(node, "args") and is_stub(node)]
        for statement in sorted(stubs, key=lambda statement: -statement.lineno):
            hostile = " " * statement.col_offset + next(codes) + "\n"
            lines[statement.lineno - 1 : statement.end_lineno] = [hostile]
        path.write_text("".join(lines), encoding="utf-8")
    verdicts = check_all(chosen([]), tmp_path, limit=1.0)
    assert [verdict.number for verdict in verdicts] == [exercise.number for exercise in chosen([])]
    assert {verdict.status for verdict in verdicts} == {FAILED} and all(verdict.message for verdict in verdicts)
    assert len({" ".join(verdict.message.split()[:2]) for verdict in verdicts}) >= 2  # late ones, and refused ones
