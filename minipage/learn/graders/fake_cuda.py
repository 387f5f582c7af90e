"""Runs a kernel in plain Python, thread by thread, and looks over each thread's shoulder.

Arrays are wrapped, so that an index outside of them, which a GPU would follow into somebody else's memory, is told with
the thread that used it; and so is a place that two threads write. A part of an array (`cache[3]`, `q[s, h]`) is watched
in the same way. Whatever else of numba a kernel may use, such as local arrays and functions of one's own under
`cuda.jit`, works here as it does in numba's simulator; what a GPU's compiler would refuse is kernel_source.py's affair.
"""

import math
from contextlib import contextmanager
from numbers import Integral
from types import FunctionType, SimpleNamespace

import numba
import numpy as np

from minipage.learn.graders.common import name_of
from minipage.learn.judge import Wrong

MOST_LOCAL = 256  # numbers that a thread may keep to itself


class FakeCuda:
    """As much of numba's `cuda` as a kernel of one dimension needs."""

    def __init__(self, threads_per_block):
        self.blockDim = SimpleNamespace(x=threads_per_block, y=1, z=1)
        self.threadIdx = SimpleNamespace(x=0, y=0, z=0)
        self.blockIdx = SimpleNamespace(x=0, y=0, z=0)
        self.gridDim = SimpleNamespace(x=1, y=1, z=1)
        self.local = SimpleNamespace(array=self._local_array)

    def grid(self, ndim):
        if ndim != 1:
            raise Wrong("These kernels are started with one dimension: cuda.grid(1).", 1, ndim)
        return self.number

    def gridsize(self, ndim):
        return self.gridDim.x * self.blockDim.x

    @property
    def number(self):
        return self.blockIdx.x * self.blockDim.x + self.threadIdx.x

    def jit(self, function=None, **options):
        return function if callable(function) else lambda function: function

    def syncthreads(self):
        """Nobody has to wait: what threads share is only what they read."""

    def _local_array(self, shape, dtype):
        shape = (shape,) if isinstance(shape, Integral) else tuple(shape)
        if math.prod(shape) > MOST_LOCAL:
            raise Wrong(
                f"thread {self.number} wants {math.prod(shape)} numbers of its own (cuda.local.array), and has room "
                f"for {MOST_LOCAL}: for one head, but not for all scores or all of K."
            )
        dtype = dtype if isinstance(dtype, type) else str(dtype)
        return Watched("its local array", np.full(shape, 77, dtype), self)  # rubbish, as on a GPU

    def __getattr__(self, name):
        raise Wrong(
            f"cuda.{name} is not needed here, and the threads of this exercise run one after the other: use "
            "cuda.grid(1), cuda.threadIdx, blockIdx and blockDim, cuda.local.array, and your own functions."
        )


class Watched:
    """An array in the memory of the device, or a part of one."""

    def __init__(self, name, array, cuda, writable=True, whole=None, places=None):
        self.name, self.array, self.cuda, self.writable = name, array, cuda, writable
        self.shape, self.ndim, self.dtype, self.size = array.shape, array.ndim, array.dtype, array.size
        self.whole = self if whole is None else whole  # the array that this is a part of
        self.places = np.arange(array.size).reshape(array.shape) if places is None else places  # in the whole, flat
        self.writers = {}  # of the whole: flat place -> the thread that wrote it

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        index = self.checked(index, "reads")
        part = self.array[index]
        if isinstance(part, np.ndarray):
            return Watched(self.name, part, self.cuda, self.writable, self.whole, self.places[index])
        return part

    def __setitem__(self, index, value):
        index = self.checked(index, "writes")
        thread, whole = self.cuda.number, self.whole
        for place in np.ravel(self.places[index]).tolist():
            at = f"{self.name}{[int(i) for i in np.unravel_index(place, whole.shape)]}"
            if not self.writable:
                raise Wrong(f"thread {thread} writes to {at}, which it may only read.")
            first = whole.writers.setdefault(place, thread)
            if first != thread:
                raise Wrong(
                    f"threads {first} and {thread} both write {at}. Threads run at the same time, so nobody knows "
                    "whose number stays: every place belongs to one thread."
                )
        self.array[index] = value.array if isinstance(value, Watched) else value

    def checked(self, index, does):
        index = index if isinstance(index, tuple) else (index,)
        shown = f"thread {self.cuda.number} {does} {self.name}[{', '.join(map(str, index))}]"
        if not all(isinstance(i, Integral | slice) and not isinstance(i, bool) for i in index):
            raise Wrong(f"{shown}; an index is a whole number (i // n, not i / n), or a slice.")
        if len(index) > self.ndim:
            raise Wrong(f"{shown}, but it has {self.ndim} dimension(s): its shape is {list(self.shape)}.")
        if not all(isinstance(i, slice) or 0 <= i < n for i, n in zip(index, self.shape)):
            raise Wrong(
                f"{shown}, but its shape is {list(self.shape)}. "
                "On a GPU that is somebody else's memory. Threads that are too many have to do nothing, and a "
                "block table is to be used only as far as there are tokens."
            )
        return index

    def __array__(self, *args, **kwargs):
        raise Wrong(f"a part of {self.name} goes into a function of NumPy's, which a GPU does not have: write a loop.")

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise Wrong(
            f"{self.name}.{attribute}: an array on a GPU has a shape, ndim, dtype and size, and single numbers to "
            "compute with; what NumPy's arrays can do besides is not there. Write a loop."
        )

    def _cannot_compute(self, *others):
        raise Wrong(
            f"thread {self.cuda.number} computes with a part of {self.name} of shape {list(self.shape)} as if it were "
            "a number. A thread deals in single numbers: write a loop over them."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __neg__ = (
        _cannot_compute
    )
    __lt__ = __gt__ = __le__ = __ge__ = __float__ = __int__ = __index__ = __bool__ = __pow__ = _cannot_compute


# ---- starting it


def launch(module, kernel, num_threads, arguments, written, backwards=False, threads_per_block=4):
    """Run a kernel of `module` with more than `num_threads` threads; it may write what is in `written`.

    Returns the watched arrays, which know who wrote what."""
    fake = FakeCuda(threads_per_block)
    fake.gridDim.x = num_threads // threads_per_block + 2  # some threads too many, always
    watched = {
        name: Watched(name, value, fake, name in written) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    numbers = [(block, thread) for block in range(fake.gridDim.x) for thread in range(threads_per_block)]
    function = python_of(getattr(module, kernel))
    with in_place_of_numba(module, fake):
        for fake.blockIdx.x, fake.threadIdx.x in reversed(numbers) if backwards else numbers:
            try:
                result = function(*watched.values())
            except OverflowError as error:
                raise Wrong(
                    f"thread {fake.number}: {error}. math.exp of a large score is too large for any number: take the "
                    "highest score off first, of this head and so far. Softmax does not change."
                ) from error
            if result is not None:
                raise Wrong(f"A kernel returns nothing, it writes; here {name_of(result)} came back.", None, result)
    return watched


def python_of(thing):
    """The Python function that numba was given, if it was given one."""
    if isinstance(thing, FunctionType) or not type(thing).__module__.startswith("numba"):
        return thing
    inner = [getattr(thing, name, None) for name in ("py_func", "fn")]
    return next((function for function in inner if isinstance(function, FunctionType)), thing)


@contextmanager
def in_place_of_numba(module, fake):
    """Whatever the module knows of numba's cuda, under any name, is the fake one for a while."""
    names = ("grid", "gridsize", "threadIdx", "blockIdx", "blockDim", "gridDim", "local")
    real = {name: getattr(numba.cuda, name, None) for name in names}
    before = dict(vars(module))
    for name, thing in before.items():
        if thing is numba.cuda:
            fakes = fake
        elif thing is numba:
            fakes = SimpleNamespace(**{**vars(numba), "cuda": fake})
        elif name in real and thing is real[name]:
            fakes = getattr(fake, name)
        else:
            fakes = python_of(thing)
        setattr(module, name, fakes)
    try:
        yield
    finally:
        vars(module).update(before)
