"""What an engine can do beyond the heart: attached to one that is ready, and loaded only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minipage.engine.partial_hits import copy_what_is_found
from minipage.errors import ConfigurationError, require_positive


def attach_features(llm: Any, options: Mapping[str, Any], origin: Any, another: Callable[..., Any]) -> None:
    """Attach what `options` of LLM ask for to an LLM.

    origin: what K and V depend on; see offload.py.
    another: makes an LLM of another model on the same device.
    """
    copy_what_is_found(llm)
    if options["kv_events_config"] is not None:
        from minipage.engine.kv_events import announce

        tier = "CPU" if options["device"] == "cpu" else "GPU"
        llm.kv_events = announce(llm.scheduler, options["kv_events_config"], tier)
    size, path = options["kv_offloading_size"], options["kv_offloading_path"]
    if size is not None or path is not None:
        from minipage.engine.offload import Offloading

        llm.offloading = Offloading(llm, size, path, origin)
    if options["speculative_config"] is not None:
        from minipage.engine.speculation import Speculation

        llm.speculation = Speculation(llm, options["speculative_config"], another)
    wanted = options["async_scheduling"]
    if hasattr(llm.runner, "launch") if wanted is None else wanted:
        from minipage.engine.overlap import Overlap

        llm.overlap = Overlap(llm)


def check_ranks(tensor_parallel_size: int) -> None:
    """Raise ConfigurationError unless there is a way for ranks to talk."""
    require_positive(tensor_parallel_size=tensor_parallel_size)
    try:
        import torch.distributed
    except ImportError:
        raise ConfigurationError(
            "tensor_parallel_size needs PyTorch, through which ranks talk: pip install minipage[torch]."
        ) from None
    if not torch.distributed.is_available():
        raise ConfigurationError("tensor_parallel_size needs a PyTorch with torch.distributed, which this one lacks.")
