"""K and V of one byte, on their way to tensor cores that read shared memory: there they have to be bfloat16.

They come as they lie in the cache, and their scales with them. Then each thread widens what it requested itself: 16
bytes of a row become two pieces of 16 bytes of a tile (wgmma.py). A number is multiplied by the scale of its row before
it is rounded to bfloat16; so nothing after it has to know of scales.
"""

from __future__ import annotations

from typing import Any

from minipage.attention.cuda.compat import device_function, types
from minipage.attention.cuda.kinds import Kind, halves_of
from minipage.attention.cuda.ptx import high_half, low_half, pack_bfloats, put_16_bytes, shared_16_bytes
from minipage.attention.cuda.wgmma import swizzled

float32 = types.float32


def widener(kv: Kind) -> Any:
    """(shared, at, scale, tile, row, word): the 16 numbers from `at` on, times the scale, become 8 words of a row of a
    tile, from `word` on."""
    halves, unit = halves_of(kv)
    PER_UNIT = float32(1 / unit)

    @device_function
    def bfloats(word, pair, factor):
        two = halves(word, pair)
        return pack_bfloats(low_half(two) * factor, high_half(two) * factor)

    @device_function
    def put(shared, to, first, second, factor):
        """Two words of four numbers each, as four words of two."""
        words = (bfloats(first, 0, factor), bfloats(first, 1, factor))
        put_16_bytes(shared, to, (*words, bfloats(second, 0, factor), bfloats(second, 1, factor)))

    def widen(shared, at, scale, tile, row, word):
        factor = scale * PER_UNIT
        words = shared_16_bytes(shared, at)
        put(shared, tile + swizzled(row, word), words[0], words[1], factor)
        put(shared, tile + swizzled(row, word + 4), words[2], words[3], factor)

    return device_function(widen)
