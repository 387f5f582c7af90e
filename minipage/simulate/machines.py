"""What a machine can do in a second: the constants that a step's time is worked out from.

    memory ── bandwidth ──▶ arithmetic units (flops)          host: says what comes next (Overheads)
                                  └── link ──▶ the other devices

A GPU's sheet says what could be done if nothing were in the way. What is used here is what programs reach: of the
bandwidth a copy, of the arithmetic a large product. Every number has its source beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minipage.errors import ConfigurationError, shown

GB, GiB, TB, TFLOPS = 1e9, 2.0**30, 1e12, 1e12


@dataclass(frozen=True)
class Machine:
    """One device, of which there may be several, and the host it is in."""

    name: str
    memory: float  # bytes
    bandwidth: float  # bytes a second, read from its memory by kernels
    flops: float  # additions and multiplications a second in 16-bit products (float32 on a CPU)
    link_bandwidth: float = 0.0  # bytes a second to the other devices, in an all-reduce
    link_seconds: float = 0.0  # that an all-reduce takes however little is sent
    host_bandwidth: float = 25 * GB  # bytes a second to the host's memory, for swapping
    copy_seconds: float = 10e-6  # that each copy to the host's memory takes however small it is
    # How well reading and computing overlap: their times a and b make (a ** overlap + b ** overlap) ** (1 / overlap).
    # 1: one after the other; very large: the longer one alone, which is the textbook's roofline.
    overlap: float = 4.0


@dataclass(frozen=True)
class Overheads:
    """What a system takes besides reading and computing."""

    name: str
    step: float  # seconds of the host in every step
    request: float  # and for every request in it
    kernel: float  # between two kernels on the device: a launch, and a pipeline that has to fill
    kernels_per_layer: int
    # Seconds of the host for each layer of a step that is not of decodes alone: CUDA graphs are for decodes, and the
    # kernels of other steps are launched one by one. 0 if that is so for all steps, and in `step` already.
    eager: float = 0.0
    few_tokens: int = 0  # a step of up to this many is a graph, whatever it computes
    overlaps: bool = False  # the host plans and launches a step while the device computes the one before


# Memory: what drivers report. Bandwidth: copies measured here reach 4.25 of an H200's 4.8 TB/s and 3.0 of an H100's
# 3.35 (`python -m benchmarks.gpu_llama`, `python -m benchmarks.gpu`), 88 and 90 %; an A100's is taken to be 88 %, too.
# Arithmetic: large products are taken to reach 80 % of an A100's sheet in bfloat16, and two thirds of an H100's and
# H200's, which their power limit holds back. Links: 80 % of NVLink in one direction. None of these three was measured.
A100_40 = Machine(
    "A100-40GB", 39.4 * GiB, 0.88 * 1.555 * TB, 250 * TFLOPS, 240 * GB, 12e-6
)  # NVIDIA A100 datasheet: 1,555 GB/s, 312 TFLOP/s, NVLink 600 GB/s
A100_80 = Machine(
    "A100-80GB", 79.2 * GiB, 0.88 * 2.039 * TB, 250 * TFLOPS, 240 * GB, 12e-6
)  # the same sheet: 2,039 GB/s
H100 = Machine(
    "H100", 79.2 * GiB, 3.0 * TB, 660 * TFLOPS, 360 * GB, 10e-6, 50 * GB
)  # H100 SXM datasheet: 3.35 TB/s, 989 TFLOP/s, NVLink 900 GB/s; a copy measured 3.0 TB/s
H200 = Machine(
    "H200", 139.8 * GiB, 4.25 * TB, 660 * TFLOPS, 360 * GB, 10e-6, 50 * GB
)  # H200 datasheet: 4.8 TB/s; a copy measured 4.25 TB/s
# Two cores of an AMD EPYC: 33 GB/s in a straight line, 224 GFLOP/s in a loop of products (docs/performance.md).
# `python -m benchmarks.simulate` measures the machine that it runs on.
EPYC_2_CORES = Machine("EPYC-2-cores", 16 * GiB, 33 * GB, 224e9, host_bandwidth=8 * GB, copy_seconds=2e-6, overlap=1.5)

MACHINES = {machine.name: machine for machine in (A100_40, A100_80, H100, H200, EPYC_2_CORES)}

# The system that the paper measured, vLLM in the summer of 2023: Python chose every request's tokens by itself, and
# launched every kernel by itself. The paper tells no time per step, so two numbers, `step` and `request`, are fitted
# to two bars of its Figure 13, those of vLLM; see docs/paper.md. All other figures use them as they are.
PAPER_SYSTEM = Overheads("the paper's system", step=4e-3, request=0.31e-3, kernel=5e-6, kernels_per_layer=12)
# FasterTransformer: C++, kernels fused, tokens chosen on the GPU.
FASTER_TRANSFORMER = Overheads("FasterTransformer", step=1e-3, request=0.0, kernel=4e-6, kernels_per_layer=8)
# minipage with CUDA graphs: 0.2 ms of the host for one sequence, 1.5 ms for 256 (docs/gpu.md: a step less its replay);
# in a graph a kernel costs about 3 us, wherever it comes from; 5.1 ms of the host to launch 12 layers without a graph
# (the same page). Its steps overlap.
GRAPHS = Overheads(
    "minipage with CUDA graphs", step=0.2e-3, request=5e-6, kernel=3e-6, kernels_per_layer=11, eager=0.4e-3,
    few_tokens=512, overlaps=True,
)  # fmt: skip
# minipage on a CPU: a parallel region costs 75 us of waking, half of which is spun away (docs/performance.md).
ON_CPU = Overheads("minipage on a CPU", step=0.3e-3, request=30e-6, kernel=20e-6, kernels_per_layer=6)


def find_machine(name: str) -> Machine:
    """By name, however it is spelled: "H100", "a100-40gb"."""
    known = {key.lower(): machine for key, machine in MACHINES.items()}
    if not isinstance(name, str) or name.lower() not in known:
        raise ConfigurationError(
            f"the machine {shown(name)} is unknown; it must be one of {', '.join(MACHINES)}. For another, take the one "
            "whose bandwidth is nearest, and say how much memory yours has (`--memory 180GiB`)."
        )
    return known[name.lower()]
