"""Whatever is given as an option, LLM says in a sentence what is wrong with it."""

import numpy as np
import pytest

from minipage import LLM
from minipage.engine.llm import DEFAULTS
from minipage.errors import ConfigurationError, MinipageError
from minipage.memory import BlockPool
from minipage.scheduling import Scheduler


class Incomparable:
    __hash__ = None

    def __eq__(self, other):
        raise ZeroDivisionError("nobody may compare this")


STRANGE = [np.array(["float32", "x"]), np.array([1, 2]), np.array("cpu"), ["cpu", "cuda"], {"a": 1}, Incomparable()]
NAMES = {
    "device": "cpu", "arrays": "torch", "dtype": "float32", "kv_cache_dtype": "fp8", "quantization": "int8",
    "load_format": "dummy", "preemption": "swap", "attention": "a function or .*loops", "policy": "priority",
    "eviction": "lfu",
}  # fmt: skip
UNUSED = {"gpu_memory_utilization", "hf_overrides"}  # on a CPU; any key of config.json
strange = pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)


@strange
def test_no_option_takes_what_is_no_value_of_its_own(tiny, value):
    for name in sorted(DEFAULTS.keys() - UNUSED):
        options = {"num_blocks": None if name == "memory" else 8, "enable_prefix_caching": True, name: value}
        with pytest.raises(MinipageError, match=rf"{name}\b"):
            LLM(tiny, **options)


@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("value", ["plenty", float("nan"), -1, True])
def test_swap_space_is_a_number_of_bytes_also_where_nothing_swaps(tiny, value, preemption):
    with pytest.raises(ConfigurationError, match=r"^swap_space is .*; it must be a number of bytes"):
        LLM(tiny, num_blocks=8, preemption=preemption, swap_space=value)


def test_a_swap_space_without_room_for_a_block_is_told_in_bytes_as_the_block_is(tiny):
    with pytest.raises(ConfigurationError, match=r"^swap_space is 512, too small for one block: .* [\d,]+ bytes here"):
        LLM(tiny, num_blocks=8, preemption="swap", swap_space="0.5KiB")


@pytest.mark.parametrize("value", [0, "0", "0MiB"])
def test_without_swap_space_nothing_swaps(tiny, value):
    assert LLM(tiny, num_blocks=8, preemption="swap", swap_space=value).scheduler.preemption == "recompute"


@strange
def test_what_is_no_name_is_told_which_there_are(tiny, value):
    for name, one in NAMES.items():
        with pytest.raises(ConfigurationError, match=rf"^{name} is .*; it must be .*\b{one}\b"):
            LLM(tiny, num_blocks=8, **{name: value})


@strange
def test_nor_do_speculative_config_and_parts_that_are_ready(tiny, value):
    for name in "method", "model", "num_speculative_tokens", "prompt_lookup_min", "only_if_quicker":
        with pytest.raises(ConfigurationError, match=name):
            LLM(tiny, num_blocks=8, speculative_config={"method": "ngram", name: value})
    for part, names in (
        ({"block_pool": BlockPool(8)}, ("block_size", "num_blocks", "memory", "eviction")),
        ({"scheduler": Scheduler(BlockPool(8))}, ("max_num_seqs", "num_blocks", "watermark", "swap_space", "policy")),
    ):
        for name in names:
            with pytest.raises(ConfigurationError, match=rf"{name}\b"):
                LLM(tiny, **part, **{name: value})


def test_names_of_other_libraries_and_the_usual_values_are_taken(tiny):
    llm = LLM(tiny, dtype=np.str_("float32"), policy=np.str_("fcfs"), block_pool=BlockPool(8), block_size=np.int64(16))
    assert llm.block_pool.num_blocks == 8
