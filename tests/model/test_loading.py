"""How weights come into memory: random ones, those of two bytes, and those of a large checkpoint."""

import json
import re
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from engine.checkpoints import save_llama
from torch.utils._python_dispatch import TorchDispatchMode

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, ModelError
from minipage.model.checkpoint import ARCHITECTURES, load_model
from minipage.model.llama import Llama
from minipage.model.place import as_arrays, place_model
from minipage.sampling import SamplingParams

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": SMALL | {"ffn_dim": 64, "max_position_embeddings": 64},
    "llama": SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "qwen3": SMALL | {"intermediate_size": 48, "head_dim": 16, "max_position_embeddings": 64},
    "falcon": SMALL | {"multi_query": True},
}


def config_alone(folder, kind):
    (folder / "config.json").write_text(json.dumps({"model_type": kind} | CONFIGS[kind]))
    return folder


# ---- random weights


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_is_enough_for_random_weights_which_are_the_same_every_time(kind, tmp_path):
    folder = config_alone(tmp_path, kind)
    params = SamplingParams(seed=0, max_tokens=8, ignore_eos=True)
    for options in {"arrays": "numpy"}, {"arrays": "torch", "dtype": "float16"}:
        one, other = (
            LLM(folder, load_format="dummy", num_blocks=8, attention="reference", **options) for _ in range(2)
        )
        texts = [llm.generate([[1, 2, 3], [4]], params) for llm in (one, other)]
        assert [o.error for o in texts[0]] == [None, None], "a logit overflowed"
        assert [o.outputs for o in texts[0]] == [o.outputs for o in texts[1]]


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_random_weights_are_spread_as_before_training(arrays, tmp_path):
    loaded = load_model(config_alone(tmp_path, "llama"), "dummy")
    weights = {name: np.asarray(array) for name, array in as_arrays(loaded.weights, arrays)}
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in loaded.architecture.weights()
    }
    for name, weight in weights.items():
        assert weight.mean() == pytest.approx(float("norm" in name), abs=0.01), name
        assert weight.std() == pytest.approx(0.02, rel=0.5), name
    assert not np.array_equal(*(weights[f"layers.{i}.self_attn.q_proj.weight"] for i in (0, 1)))


def test_random_weights_read_no_file_of_weights(tmp_path):
    save_llama(tmp_path)
    (tmp_path / "model.safetensors").write_text("nonsense")
    assert load_model(tmp_path, "dummy").architecture.num_heads == 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system says that there is too little, or swaps")
@pytest.mark.parametrize(
    ("options", "needed"), [({}, "32,000.4 GiB in float32"), ({"quantization": "int8"}, "8,000.1 GiB in int8")]
)
def test_random_weights_that_no_memory_holds_are_refused_with_how_much_there_is(tmp_path, options, needed):
    config = {"model_type": "llama"} | CONFIGS["llama"] | {"vocab_size": 2**30, "hidden_size": 4000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=rf"{needed}.*there are [1-9][\d,.]+ GiB of memory left"):
        LLM(tmp_path, load_format="dummy", **options)


def test_a_system_that_does_not_say_how_much_memory_is_left_refuses_nothing(tmp_path, monkeypatch):
    folder, options = config_alone(tmp_path, "gpt2"), {"load_format": "dummy", "num_blocks": 8}
    read = Path.read_text

    def read_text(path, *args, **kwargs):
        return told if path.name == "meminfo" else read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    told = "MemTotal: 8 kB\nMemAvailable: 8 kB\n"
    with pytest.raises(ConfigurationError, match=r"there are 0\.0 GiB of memory left"):
        LLM(folder, **options)
    told = "MemTotal: 8 kB\n"  # as some say that only look like Linux
    LLM(folder, **options)


@pytest.mark.parametrize("value", ["magic", None, True, np.zeros(2)], ids=str)
def test_another_way_to_load_is_refused(tmp_path, value):
    with pytest.raises(ConfigurationError, match=r"load_format is .*; it must be one of auto, dummy"):
        LLM(config_alone(tmp_path, "llama"), load_format=value)


# ---- hf_overrides

HEEDED = {
    "gpt2": {"sliding_window": 8, "n_inner": 48, "layer_norm_epsilon": 1e-3},
    "opt": {"do_layer_norm_before": False, "word_embed_proj_dim": 16, "enable_bias": False},
    "llama": {"rope_theta": 5.0, "head_dim": 4, "mlp_bias": True, "sliding_window": 8, "attention_bias": True},
    "qwen3": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "layer_types": None, "use_sliding_window": True},
    "falcon": {"parallel_attn": False, "ffn_hidden_size": 48, "new_decoder_architecture": True, "alibi": False},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_of_overrides_those_that_nobody_knows_are_warned_of_and_no_others(kind, tmp_path):
    folder = config_alone(tmp_path, kind)
    known = HEEDED[kind] | {"vocab_size": 61, "eos_token_id": 5, "tie_word_embeddings": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(folder, "dummy", known).architecture.vocab_size == 61
    with pytest.warns(UserWarning) as said:
        load_model(folder, "dummy", known | {"nonsense": 1, "vocab_sise": 9, 5: 6})
    sentences = [str(warning.message) for warning in said]
    assert [sentence.split()[2] for sentence in sentences] == ["'nonsense',", "'vocab_sise',", "5,"]
    assert "no effect" in sentences[0] and "'vocab_size'?" in sentences[1]


def test_what_config_json_has_may_be_overridden_even_if_nobody_reads_it_and_weights_make_no_difference(tmp_path):
    save_llama(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(
            tmp_path, hf_overrides={"architectures": ["Other"], "use_cache": False, "partial_rotary_factor": 1.0}
        )
    with pytest.warns(UserWarning, match="'nonsense'"):
        load_model(tmp_path, hf_overrides={"nonsense": None})


@pytest.mark.parametrize("wrong", [{"sliding_window": 0}, {"n_layer": 5}, {"n_head": 3}], ids=str)
def test_what_an_override_has_broken_is_not_blamed_on_the_files_alone(wrong):
    with pytest.raises(ModelError, match=rf"Or is it the fault of hf_overrides, {re.escape(str(wrong))}\?$"):
        load_model("shakespeare", hf_overrides=wrong)


def test_an_architecture_of_anybodys_may_read_all_of_them(tmp_path, monkeypatch):
    class Own(Llama):
        @classmethod
        def of(cls, settings):
            return super().of({**settings} if "nonsense" in settings else dict(settings))

    monkeypatch.setitem(ARCHITECTURES, "llama", Own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(config_alone(tmp_path, "llama"), "dummy", {"nonsense": 1})
        load_model(config_alone(tmp_path, "llama"), "dummy", {"other_nonsense": 1})


# ---- the memory that loading takes


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint in bfloat16 of several files."""
    folder = tmp_path_factory.mktemp("large")
    config = hf.LlamaConfig(vocab_size=500, hidden_size=256, intermediate_size=1024, num_hidden_layers=32,
                            num_attention_heads=8, max_position_embeddings=64)  # fmt: skip
    hf.LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="30MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


class Made(TorchDispatchMode):
    """The dtypes of all tensors that PyTorch makes meanwhile."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.dtypes |= {made.dtype} if isinstance(made, torch.Tensor) else set()
        return made


def test_two_bytes_stay_two_bytes_all_the_way(large):
    """No copy that NumPy makes, which tracemalloc sees, and no float32 of PyTorch."""
    weights = load_model(large).weights
    stored = dict(weights.stored())
    tracemalloc.start()
    try:
        with Made() as made:
            placed = dict(as_arrays(weights, "torch", "bfloat16"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    total = sum(array.nbytes for array in stored.values())
    assert peak < total / 20, f"{peak:,} bytes of {total:,} were copied on the way"
    assert made.dtypes <= {torch.uint16, torch.bfloat16}
    for name, tensor in placed.items():
        assert tensor.dtype == torch.bfloat16
        assert np.array_equal(tensor.view(torch.uint16).numpy(), stored[name]), name


SCRIPT = """
import sys, numpy as np
from minipage.model.checkpoint import ARCHITECTURES, load_model
from minipage.model.llama import Llama
from minipage.model.place import place_model
folder, arrays, dtype = sys.argv[1:]

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

loaded = load_model(folder)
if arrays == "torch":
    import torch
    torch.zeros(9, dtype=torch.bfloat16) @ torch.zeros(9, 9, dtype=torch.bfloat16)
    import minipage.model.layers.onednn
before = memory("VmRSS")
model = place_model(loaded.architecture, loaded.weights, arrays, dtype)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc here")
@pytest.mark.parametrize(("arrays", "dtype", "num_bytes"), [("numpy", "float32", 4), ("torch", "bfloat16", 2)])
def test_a_checkpoint_of_several_files_takes_what_stays_and_little_more(large, arrays, dtype, num_bytes):
    """The most memory of a process, files that it has mapped included."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(large), arrays, dtype], capture_output=True, text=True, check=True
    )
    stays = num_bytes * sum(int(np.prod(w.shape)) for _, w in load_model(large).architecture.weights())
    largest = max(file.stat().st_size for file in large.glob("*.safetensors"))
    assert 0.9 * stays < int(run.stdout) < stays + 1.3 * largest, f"{int(run.stdout):,} bytes for {stays:,} that stay"


def test_whoever_waits_is_told_how_far_it_is(tmp_path):
    save_llama(tmp_path)
    loaded, told = load_model(tmp_path), []
    place_model(loaded.architecture, loaded.weights, progress=lambda *numbers: told.append(numbers))
    assert told == [(done, len(loaded.weights)) for done in range(len(loaded.weights) + 1)]
