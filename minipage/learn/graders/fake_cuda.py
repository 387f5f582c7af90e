"""Runs a kernel in plain Python, thread by thread, and looks over each thread's shoulder.

Arrays are wrapped, so that an index outside of them, which a GPU would follow into somebody else's memory, is told with
the thread that used it; and so is a place that two threads write.
"""

from types import SimpleNamespace

import numpy as np

from minipage.learn.judge import Wrong


class FakeCuda:
    """As much of numba's `cuda` as a kernel of one dimension needs."""

    def __init__(self, threads_per_block):
        self.blockDim = SimpleNamespace(x=threads_per_block, y=1, z=1)
        self.threadIdx = SimpleNamespace(x=0, y=0, z=0)
        self.blockIdx = SimpleNamespace(x=0, y=0, z=0)
        self.gridDim = SimpleNamespace(x=1, y=1, z=1)

    def grid(self, ndim):
        if ndim != 1:
            raise Wrong("These kernels are started with one dimension: cuda.grid(1).", 1, ndim)
        return self.number

    def gridsize(self, ndim):
        return self.gridDim.x * self.blockDim.x

    @property
    def number(self):
        return self.blockIdx.x * self.blockDim.x + self.threadIdx.x


class Watched:
    """An array in the memory of the device."""

    def __init__(self, name, array, cuda, writable):
        self.name, self.array, self.cuda, self.writable = name, array, cuda, writable
        self.shape, self.ndim, self.dtype, self.size = array.shape, array.ndim, array.dtype, array.size
        self.writers = {}  # place -> the thread that wrote it

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self.array[self.checked(index, "reads")]

    def __setitem__(self, index, value):
        place = self.checked(index, "writes")
        if not self.writable:
            raise Wrong(f"thread {self.cuda.number} writes to {self.name}{list(place)}, which it may only read.")
        first = self.writers.setdefault(place, self.cuda.number)
        if first != self.cuda.number:
            raise Wrong(
                f"threads {first} and {self.cuda.number} both write {self.name}{list(place)}. Threads run at the same "
                "time, so nobody knows whose number stays: every place belongs to one thread."
            )
        self.array[place] = value

    def checked(self, index, does):
        place = index if isinstance(index, tuple) else (index,)
        if len(place) != self.ndim or not all(isinstance(i, int | np.integer) for i in place):
            raise Wrong(
                f"thread {self.cuda.number} {does} {self.name}[{', '.join(map(str, place))}]; a thread deals in single "
                f"numbers, so {self.name} takes {self.ndim} whole numbers as its index."
            )
        place = tuple(int(i) for i in place)
        if not all(0 <= i < n for i, n in zip(place, self.shape)):
            raise Wrong(
                f"thread {self.cuda.number} {does} {self.name}{list(place)}, but its shape is {list(self.shape)}. "
                "On a GPU that is somebody else's memory. Threads that are too many have to do nothing, and a "
                "block table is to be used only as far as there are tokens."
            )
        return place


def launch(module, kernel, num_threads, arguments, written, backwards=False):
    """Run a kernel of `module` with at least `num_threads` threads, blocks of 4; it may write what is in `written`."""
    fake = FakeCuda(4)
    fake.gridDim.x = num_threads // 4 + 1  # some threads too many, always
    real = vars(module).get("cuda")
    module.cuda = fake
    try:
        watched = [
            Watched(name, value, fake, name in written) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        ]
        numbers = [(block, thread) for block in range(fake.gridDim.x) for thread in range(4)]
        for fake.blockIdx.x, fake.threadIdx.x in reversed(numbers) if backwards else numbers:
            getattr(module, kernel)(*watched)
    finally:
        module.cuda = real
