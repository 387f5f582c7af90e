"""The engine on a GPU. A reader who wants to know how paging works can skip this folder: it decides nothing.

checked.py     the same steps as minipage/worker/runner.py, with arrays on the GPU: PyTorch's or CuPy's
memory.py      how much of the GPU's memory is left for K and V
graphs.py      the fast path, for PyTorch: one copy brings a step's inputs, decodes are replayed as CUDA graphs
fused.py       layers with kernels of our own, where PyTorch takes many launches
few_rows.py    products of few rows, with all that is done to their results
capture.py     how a graph is captured, undisturbed
inputs.py      that one copy
next_batch.py  a step's inputs, which usually follow from the last step's
draw.py        tokens are drawn where the logits are
ahead.py       steps that are launched before the last one's tokens are known to the host
nccl.py        how several GPUs talk
peer_sums.py   sums between the GPUs of one host, in one kernel with what comes next
peer_layers.py layers that use them
views.py       the model's arrays as the kernels take them, also in the simulator
"""

from __future__ import annotations

from array_api_compat import is_torch_namespace

from minipage.errors import ConfigurationError
from minipage.model.architecture import Model
from minipage.worker.batch import PagedAttention
from minipage.worker.gpu.checked import GPURunner
from minipage.worker.runner import Limits, ModelRunner


def gpu_runner(
    model: Model,
    kv_dtype: type,
    attention: str | PagedAttention | None,
    limits: Limits,
    gpu_memory_utilization: float,
    enforce_eager: bool,
) -> ModelRunner:
    """The runner for a model whose weights are on a GPU; for the arguments see LLM."""
    if not 0 < gpu_memory_utilization <= 1:
        raise ConfigurationError(
            f"gpu_memory_utilization is {gpu_memory_utilization!r}; it must be a share, above 0 and at most 1."
        )
    if callable(attention):
        return GPURunner(model, kv_dtype, limits, gpu_memory_utilization, attention)
    if attention not in (None, "cuda"):
        raise ConfigurationError(
            f"attention is {attention!r}, but on a GPU it must be 'cuda', the default, or a function for arrays there."
        )
    if not is_torch_namespace(model.layers.xp):
        return GPURunner(model, kv_dtype, limits, gpu_memory_utilization)
    from minipage.worker.gpu.graphs import GraphRunner  # needs PyTorch

    return GraphRunner(model, kv_dtype, limits, gpu_memory_utilization, enforce_eager)
