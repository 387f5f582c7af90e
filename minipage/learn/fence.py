"""What a learner's code is kept from doing while it is graded, in its process and for good.

Python tells an audit hook (PEP 578) of everything that reaches out of a program, and a hook that is set can never be
taken away again. This one refuses, with a PermissionError that the code sees like any other:

    outwards   processes, signals, sockets, limits, and files anywhere but in a scratch folder
    inwards    the frames of whoever called it, the garbage collector's lists, ctypes, the code of others' functions
    reading    minipage's solutions and graders, and other people's exercises

An exercise needs none of that. What can only be a trick is also noted, and costs the exercise. Nothing here looks up a
name when it runs: a name in a module could have been changed meanwhile.
"""

from __future__ import annotations

import _imp
import os
import signal
import sys
from _thread import get_ident
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

STARTS = "os.fork os.forkpty os.exec os.posix_spawn os.spawn os.system os.startfile subprocess.Popen pty.spawn"
SIGNALS = "os.kill os.killpg signal.pthread_kill resource.setrlimit resource.prlimit"
NETWORK = "socket.connect socket.bind socket.sendto socket.sendmsg socket.getaddrinfo socket.gethostbyname"
CHANGES = (
    "os.remove os.rename os.rmdir os.mkdir os.truncate os.chmod os.chown os.chflags os.lockf os.utime os.setxattr "
    "os.removexattr sqlite3.connect dbm.open"
)
LINKS = "os.link os.symlink"  # a link in the scratch folder could lead anywhere
INWARDS = (
    "gc.get_objects gc.get_referrers gc.get_referents sys._current_frames sys._current_exceptions sys.settrace "
    "sys.setprofile sys.addaudithook"
)
FRAMES = "tb_frame", "gi_frame", "cr_frame", "ag_frame"
GIVE_FRAMES = "currentframe", "<lambda>", "walk_stack", "stack", "<genexpr>"
LOOK_AT_FRAMES = tuple(
    os.sep.join(name.split("/"))
    for name in (
        "/collections/__init__.py /typing.py /enum.py /dataclasses.py /warnings.py /_py_warnings.py /traceback.py "
        "/logging/__init__.py /inspect.py /annotationlib.py"
    ).split()
)
PARTS = "__code__", "__defaults__", "__kwdefaults__"
MOST_FILES = 256  # files and folders that an exercise may have in the scratch folder
UNHEARD = [  # these do the same, and no hook is told
    ("_posixsubprocess", "fork_exec"), ("subprocess", "_fork_exec"), ("multiprocessing.util", "spawnv_passfds"),
    ("signal", "signal"), ("_signal", "signal"), ("signal", "pidfd_send_signal"), ("_signal", "pidfd_send_signal"),
    *((module, name) for module in ("os", "posix")
      for name in ("setpriority", "sched_setaffinity", "mkfifo", "mknod", "fchmod", "fchown", "ftruncate")),
    ("_posixshmem", "shm_open"), ("_posixshmem", "shm_unlink"), ("gc", "freeze"), ("gc", "unfreeze"),
]  # fmt: skip


def put_up(path: Path, scratch: Path, hidden_files: list[Path], sources: list[str]) -> list[str]:
    """From here on, for this process: what the file at `path` may not do. It can write in the folder `scratch`.

    Nobody but Python's own imports reads the `sources`: a traceback shows no lines of them.

    Returns a list: what was refused and can only have been a trick, with the line. It grows.
    """
    own, inside, itself = str(path), f"{scratch}{os.sep}", str(scratch)
    stat, getframe = os.stat, sys._getframe
    hidden = frozenset((found.st_dev, found.st_ino) for found in map(os.stat, hidden_files))
    closed_sources = set[tuple[int, int]]()  # filled when it is asked for
    own_number = (os.stat(own).st_dev, os.stat(own).st_ino) if os.path.exists(own) else (-1, -1)
    refused: list[str] = []
    there: set[str] = set()  # names in the scratch folder that something has, or had
    busy: set[int] = set()  # threads that are in the hook: it makes events itself

    def line_of_caller() -> int:
        """The line of the learner's code that all this comes from; 0: it comes from elsewhere."""
        frame: FrameType | None = getframe()
        while frame is not None and frame.f_code.co_filename != own:
            frame = frame.f_back
        return frame.f_lineno if frame else 0

    def caller_behind(*parts: str) -> int:
        """The line, if the learner's code calls for it itself, or through files whose names contain one of `parts`."""
        frame: FrameType | None = getframe(1)
        while frame is not None and (
            frame.f_code.co_filename == __file__ or any(part in frame.f_code.co_filename for part in parts)
        ):
            frame = frame.f_back
        return frame.f_lineno if frame and frame.f_code.co_filename == own else 0

    def refuse(what: str, trick_at: int = 0) -> None:
        if trick_at:
            refused.append(f"line {trick_at} tries to {what}, which an exercise may not.")
        raise PermissionError(f"an exercise may not {what}")

    def is_inside(name: object) -> bool:
        return type(name) is str and (name in (os_devnull, itself) or (name.startswith(inside) and ".." not in name))

    def on_write(name: str) -> None:
        there.add(name)
        if len(there) > most_files:
            refuse(f"have more than {most_files} files")

    def on_remove(args: tuple[Any, ...]) -> None:
        on_change(args)
        there.discard(args[0])

    def on_change(args: tuple[Any, ...]) -> None:
        names = [arg for arg in args if not isinstance(arg, int | float) and arg is not None]
        if type(args[0]) is int or not all(
            is_inside(name) or name == ":memory:" for name in names if type(name) is not tuple
        ):
            refuse("change files")
        for name in names:
            if type(name) is str:
                on_write(name)

    def on_open(args: tuple[Any, ...]) -> None:
        name, _, flags = args
        if isinstance(name, int):
            return
        if flags & writing:
            if not is_inside(name):
                refuse("write files")
            on_write(name)
            return
        try:
            found = stat(name)
        except (OSError, ValueError):
            return
        if found.st_mode & 0o170000 == 0o040000:  # with a folder's descriptor, names mean something else
            if not is_inside(name):
                refuse("open folders")
        elif is_hidden(name, found) and (line := line_of_caller()):
            refuse("read minipage's solutions and graders, or another exercise", line)
        elif line_of_caller() and not is_import() and is_source(found):
            refuse("read minipage's own code")

    def is_source(found: os.stat_result) -> bool:
        if not closed_sources:
            for file in sources:
                try:
                    one = stat(file)
                except FileNotFoundError:  # compiled files come and go
                    continue
                closed_sources.add((one.st_dev, one.st_ino))
        return (found.st_dev, found.st_ino) in closed_sources

    def is_import() -> bool:
        """Whether an import statement opens the file: with what Python imports by, anybody could read any file."""
        frame: FrameType | None = getframe(2)
        while frame is not None and str.startswith(frame.f_code.co_filename, ("<frozen importlib", __file__)):
            if frame.f_code.co_name == "_find_and_load":
                return True
            frame = frame.f_back
        return False

    def is_hidden(name: Any, found: os.stat_result) -> bool:
        number = found.st_dev, found.st_ino
        is_exercise = not isinstance(name, str) or str.endswith(name, ("exercise.py", ".bak"))
        return number in hidden or (is_exercise and number != own_number)

    def on_frame(args: tuple[Any, ...]) -> None:
        if line := caller_behind("/inspect.py", "\\inspect.py"):
            refuse("look at the frames of whoever called it", line)

    def on_getframe(args: tuple[Any, ...]) -> None:
        """Python's library looks at frames to name or place something; it hands none out, but by these functions."""
        frame = getframe(2)
        while frame.f_back and is_library(frame) and frame.f_code.co_name in give_frames:
            frame = frame.f_back
        if frame.f_code.co_filename == own:
            refuse("look at the frames of whoever called it", frame.f_lineno)
        if is_library(frame) and not str.endswith(frame.f_code.co_filename, look_at_frames) and line_of_caller():
            refuse("look at the frames of whoever called it")

    def is_library(frame: FrameType) -> bool:
        file = frame.f_code.co_filename
        return str.startswith(file, library) and "site-packages" not in file

    def on_getattr(args: tuple[Any, ...]) -> None:
        if args[1] in function_parts:
            on_part(args)
        if args[1] in frame_names:
            file = getframe(2).f_code.co_filename
            walked = getframe(2).f_code.co_name in ("walk_tb", "walk_stack")  # generators, and made for whom?
            if line := caller_behind("traceback.py", "inspect.py") if walked else file == own and line_of_caller():
                refuse("look at the frames of whoever called it", line)

    def on_part(args: tuple[Any, ...]) -> None:
        """The code and the defaults of functions that are not theirs: neither seen nor changed."""
        file = getattr(getattr(args[0], "__code__", None), "co_filename", "<>")
        if file != own and not file.startswith("<") and (line := caller_behind("functools.py")):
            refuse("look into a function that is not its own, or change it", line)
        if file == watching and line_of_caller():  # by inspect.signature, say
            refuse("look into a function that is not its own")

    def on_inward(args: tuple[Any, ...]) -> None:
        if line := line_of_caller():
            refuse("look into the program that runs it", line)

    def on_ctypes(args: tuple[Any, ...]) -> None:
        if line := caller_behind(f"{os_sep}ctypes{os_sep}"):
            refuse("use ctypes", line)

    def refusing(what: str) -> Callable[[tuple[Any, ...]], None]:
        return lambda args: refuse(what)

    def on_signal(args: tuple[Any, ...]) -> None:
        refuse("send signals, or change its limits", line_of_caller())

    watching = os.path.join(os.path.dirname(__file__), "origin.py")  # its functions hold the reference's
    library, look_at_frames, give_frames = (os.path.dirname(os.__file__) + os.sep, "<"), LOOK_AT_FRAMES, GIVE_FRAMES
    os_sep, os_devnull, frame_names, function_parts, most_files = os.sep, os.devnull, FRAMES, PARTS, MOST_FILES
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    rules: dict[str, Callable[[tuple[Any, ...]], None]] = {
        "open": on_open, "object.__getattr__": on_getattr, "object.__setattr__": on_part,
        "sys._getframe": on_getframe,
    }  # fmt: skip
    groups = (STARTS, refusing("start a process")), (SIGNALS, on_signal), (NETWORK, refusing("use the network"))
    for names, rule in (*groups, (CHANGES, on_change), (LINKS, refusing("make links")), (INWARDS, on_inward)):
        rules |= dict.fromkeys(names.split(), rule)
    rules["os.remove"] = on_remove

    def hook(event: str, args: tuple[Any, ...]) -> None:
        rule = rules.get(event)
        if rule is None:
            if not event.startswith("ctypes."):
                return
            rule = on_ctypes
        if (me := get_ident()) in busy:
            return
        busy.add(me)
        try:
            rule(args)
        finally:
            busy.discard(me)

    close_what_no_hook_hears()
    sys.addaudithook(hook)
    return refused


class Refused(PermissionError, ValueError):
    """asyncio, for one, can do without signals where a ValueError says that it has to."""


def load_what_no_hook_hears() -> None:
    """A keeper does it once, so that no cell has to."""
    for module, _ in UNHEARD:
        with suppress(ImportError):
            import_module(module)


def close_what_no_hook_hears() -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise Refused("an exercise may not start processes, handle signals, or make special files")

    def create_builtin(spec: Any) -> Any:
        """What Python makes a built-in module with: it could make a second `posix`, as complete as the first."""
        if spec.name in closed:
            refused()
        return create(spec)

    signal.set_wakeup_fd(-1)
    closed, create = {"_imp", *(module for module, _ in UNHEARD)}, _imp.create_builtin
    for module, name in UNHEARD:
        with suppress(ImportError):
            if hasattr(import_module(module), name):
                setattr(sys.modules[module], name, refused)
    _imp.create_builtin = create_builtin
