"""minipage: PagedAttention, small enough to read and real enough to use.

    from minipage import LLM, SamplingParams

    llm = LLM()
    print(llm.generate("To be, or", SamplingParams(max_tokens=40, seed=1))[0].outputs[0].text)

The heart, from the bottom up: memory, scheduling, simd, attention, model, sampling, worker, engine.
Around it: trace, train, and the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minipage.renamed import find_moved_modules

if TYPE_CHECKING:
    from minipage.engine.async_llm import AsyncLLM
    from minipage.engine.completion import CompletionOutput
    from minipage.engine.llm import LLM
    from minipage.engine.request import RequestOutput
    from minipage.sampling import SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

find_moved_modules()


def __getattr__(name: str) -> Any:
    """Load the engine when it is first used, so that `python -m minipage --help` need not wait for numba."""
    homes = {
        "LLM": "engine.llm",
        "AsyncLLM": "engine.async_llm",
        "SamplingParams": "sampling",
        "StructuredOutputsParams": "sampling",
        "RequestOutput": "engine.request",
        "CompletionOutput": "engine.completion",
    }
    if name not in homes:
        raise AttributeError(f"module 'minipage' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"minipage.{homes[name]}"), name)
