"""The machine code of a kernel, made with no GPU: the very bytes that numba-cuda would load on one of that kind.

It takes numba-cuda and NVIDIA's compiler, which come from PyPI (`pip install -e ".[cuda13]"`), and two tools to read
machine code, cuobjdump and nvdisasm, which CUDA brings, or the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple


class MachineCode(NamedTuple):
    registers: int  # of each thread
    stack: int  # bytes of each thread: arrays that could not be registers, and registers that were too many
    shared: int  # bytes of each block
    instructions: Counter  # name with all its suffixes -> how often
    text: str

    def count(self, prefix: str) -> int:
        return sum(number for name, number in self.instructions.items() if name.startswith(prefix))


def why_not() -> str:
    """Why machine code cannot be looked at here, or ''."""
    try:
        import numba_cuda  # noqa: F401
    except ImportError:
        return "numba-cuda is not installed"
    absent = [name for name in ("cuobjdump", "nvdisasm") if not tool(name)]
    return f"{' and '.join(absent)} not found" if absent else ""


def tool(name: str) -> str | None:
    packaged = [str(file) for folder in sys.path for file in Path(folder).glob(f"nvidia/cu*/bin/{name}")]
    return packaged[0] if packaged else shutil.which(name, path=f"{os.environ.get('PATH')}:/usr/local/cuda/bin")


def machine_code(kernel, argument_types, compute_capability, folder) -> MachineCode:
    """Compile a `cuda.jit` kernel for arguments of these numba types, and take it apart."""
    from numba.cuda import codegen, dispatcher

    kernel = getattr(kernel, "dispatcher", kernel)  # of one that overlaps with the last
    suffix = "a" if compute_capability >= (9, 0) else ""  # as numba-cuda has it: with what only this GPU has
    was = dispatcher.get_current_device, codegen.CUDACodeLibrary._ensure_cc
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=compute_capability)
    codegen.CUDACodeLibrary._ensure_cc = lambda self, cc: cc if cc is not None else (*compute_capability, suffix)
    try:
        options = {name: value for name, value in kernel.targetoptions.items() if name != "device"}
        compiled = dispatcher._Kernel(kernel.py_func, argument_types, **options)
        cubin = compiled._codelibrary.get_cubin(cc=(*compute_capability, suffix))
    finally:
        dispatcher.get_current_device, codegen.CUDACodeLibrary._ensure_cc = was
    file = Path(folder) / "kernel.cubin"
    file.write_bytes(cubin if isinstance(cubin, bytes) else bytes(cubin.code))
    environment = {**os.environ, "PATH": f"{Path(tool('nvdisasm')).parent}:{os.environ['PATH']}"}

    def output(name, *arguments):
        command = [tool(name), *arguments, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    usage = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", output("cuobjdump", "--dump-resource-usage")))
    text = output("nvdisasm", "-c")
    names = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text)
    return MachineCode(int(usage["REG"]), int(usage["STACK"]), int(usage["SHARED"]), Counter(names), text)
