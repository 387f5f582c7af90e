"""Rotary position embedding: by which angle each pair of numbers turns from one token to the next.

    pair i of a head turns by   position * frequency i        frequency i = theta ** (-2 i / D)

So the first pairs tell neighbours apart, and the last ones tell one end of a long text from the other. A model that was
trained on short texts can be stretched to long ones by slower turns:

    linear   all pairs alike
    llama3   only the slow pairs, and those between a little (Llama 3.1)
    yarn     the same idea with other borders, and attention a little sharper (Peng et al., arXiv 2309.00071)

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv 2104.09864).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from minipage.errors import ModelError, shown

KNOWN = "default", "linear", "dynamic", "llama3", "yarn"
LARGEST_HEAD = 2**16  # numbers: no model has nearly as many, and a frequency for each two is listed


class Rotary(NamedTuple):
    """What the heads of a model are turned by."""

    frequencies: tuple[float, ...]  # radians a token, of each pair; numbers of a head behind the pairs are not turned
    magnitude: float = 1.0  # what sines and cosines are multiplied with


def read_rotary(settings: Mapping[str, Any], head_size: int, may_be_partial: bool = True) -> Rotary:
    """From the settings in config.json, of today (`rope_parameters`) and before (`rope_theta` and `rope_scaling`).

    Args:
        may_be_partial: of some models a part of each head is turned, which two settings say: `partial_rotary_factor` is
            a share, and `rope.dimension_count`, of GGUF files alone, a number. Of others, a share means nothing to
            transformers 5, and something to vLLM: nobody knows what they were trained with, so they are refused.

    Raises ModelError for a scaling that is not computed, or one that makes no sense.
    """
    if head_size > LARGEST_HEAD:
        raise ModelError(f"its heads have {head_size:,} numbers, which cannot be. Fetch config.json again.")
    given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ModelError(f"its rope_scaling is {shown(given)}; it should be an object. Fetch config.json again.")
    rope = {"rope_theta": settings.get("rope_theta") or 10_000.0, **given}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if "long_factor" in rope else kind  # which early Phi-3s call su, or yarn
    if kind not in KNOWN:
        raise ModelError(f"its rope_scaling is {shown(kind)}, but minipage computes only {', '.join(KNOWN)}.")
    if several := [name for name, value in rope.items() if isinstance(value, dict)]:
        raise ModelError(f"its rope_parameters are of {', '.join(several)}, but minipage turns all layers alike.")
    try:
        share = rope.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0
        if not 0 < share <= 1:
            raise ValueError(f"partial_rotary_factor is {shown(share)}, which is no share of a head")
        if share != 1 and not may_be_partial:
            raise ModelError(
                f"its partial_rotary_factor is {shown(share)}, which transformers ignores in such a model, and vLLM "
                "heeds. To turn whole heads, as transformers does, give hf_overrides={'partial_rotary_factor': 1.0}."
            )
        if not (theta := float(rope["rope_theta"])) > 0:
            raise ValueError(f"rope_theta is {shown(theta)}, which is not above 0")
        size = settings.get("rope.dimension_count") or int(head_size * share)
        if not 0 < size <= head_size:
            raise ValueError(f"{shown(size)} of the {head_size} numbers of a head are to be turned")
        frequencies = [theta ** (-i / size) for i in range(0, size, 2)]
        if kind == "linear":
            frequencies = [frequency / rope["factor"] for frequency in frequencies]
        if kind in ("default", "linear", "dynamic"):  # the last one changes only texts that are longer than the context
            return Rotary(tuple(frequencies))
        trained = settings.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        trained = trained or settings["max_position_embeddings"]
        stretch = stretch_llama3 if kind == "llama3" else stretch_yarn
        return stretch(frequencies, rope, trained)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"its rope_scaling {shown(given)} makes no sense: {reason}. Fetch config.json again."
        ) from None


def stretch_llama3(frequencies: list[float], rope: Mapping[str, Any], trained: int) -> Rotary:
    """Pairs that turn less than `low` times in the length that was trained turn slower; more than `high`: as before."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    stretched = []
    for frequency in frequencies:
        turns = trained * frequency / (2 * math.pi)
        as_before = min(1.0, max(0.0, (turns - low) / (high - low)))  # 0: slower by the whole factor; 1: as before
        stretched.append(frequency * as_before + frequency / factor * (1 - as_before))
    return Rotary(tuple(stretched))


def stretch_yarn(frequencies: list[float], rope: Mapping[str, Any], trained: int) -> Rotary:
    """The same between two pairs, found by how often they turn in the length that was trained."""
    factor, size = rope["factor"], 2 * len(frequencies)
    ends = [
        size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))
        for turns in (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1)
    ]
    if rope.get("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], size - 1)
    last = last + 0.001 if first == last else last
    stretched = []
    for i, frequency in enumerate(frequencies):
        slower = min(1.0, max(0.0, (i - first) / (last - first)))
        stretched.append(frequency / factor * slower + frequency * (1 - slower))
    magnitude = rope.get("attention_factor")
    if magnitude is None:
        one, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
        magnitude = sharpness(factor, one) / sharpness(factor, all_dim) if one and all_dim else sharpness(factor, 1)
    return Rotary(tuple(stretched), float(magnitude))


def sharpness(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
