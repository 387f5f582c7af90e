"""How many blocks a memory holds."""

from __future__ import annotations

import re

import numpy as np

from minipage.attention.arguments import QUANTIZED
from minipage.errors import ConfigurationError, count, require_positive, shown

DEFAULT_MEMORY = "1GiB"  # for K and V, unless told otherwise, or measured (on a GPU)
SCALE_BYTES = 4  # float32
LARGEST_MEMORY = 2**63  # bytes; no array has as many


def blocks_that_fit(
    memory: int | str,
    block_size: int,
    num_layers: int,
    num_kv_heads: int,
    head_size: int,
    dtype: type = np.float32,
    name: str = "memory",
) -> int:
    """How many blocks of K and V, in all layers, `memory` holds: a number of bytes, or a text such as "512MiB".

    Raises ConfigurationError if `memory` (an option called `name`) or `block_size` makes no sense, or no block fits.
    """
    num_bytes = read_bytes(memory, name)
    require_positive(block_size=block_size)
    bytes_per_head = 2 * (head_size * np.dtype(dtype).itemsize + (SCALE_BYTES if dtype in QUANTIZED else 0))
    bytes_per_token = num_layers * num_kv_heads * bytes_per_head
    bytes_per_block = int(block_size) * bytes_per_token
    if num_bytes < bytes_per_block:
        raise ConfigurationError(
            f"{name} is {shown(memory)}, too small for one block: {count(block_size, 'token')} of "
            f"{count(bytes_per_token, 'byte')} each make {count(bytes_per_block, 'byte')} here. "
            "Give more memory, or a smaller block_size."
        )
    return num_bytes // bytes_per_block


def read_bytes(memory: int | str, name: str) -> int:
    """A number of bytes, or a text such as "512MiB", as a number that a machine can have."""
    try:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", str(memory).lower())
    except Exception:  # an integer of over 4,300 digits, or an object with a text of its own
        match = None
    if match and not isinstance(memory, bool):
        power = " kmgt".index(match[2] or " ")
        num_bytes = float(match[1]) * (1024 if match[3] else 1000) ** power
        if num_bytes < LARGEST_MEMORY:
            return int(num_bytes)
    raise ConfigurationError(
        f"{name} is {shown(memory)}; it must be a number of bytes, or a text such as '512MiB', below 2**63."
    )
