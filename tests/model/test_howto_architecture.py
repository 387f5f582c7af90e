"""What docs/howto.md says of adding an architecture: its code runs, and computes what transformers computes."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from minipage.errors import ModelError
from minipage.model import checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "howto.md"
BLOCK = re.compile(r"^```(?:\{code-cell\} ipython3|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(heading):
    """The blocks of code in a section, in order."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return BLOCK.findall(section)


@pytest.fixture(scope="module")
def page():
    """The section's names, after the imports that the page makes earlier."""
    module = ModuleType("howto_page")
    sys.modules[module.__name__] = module  # where a dataclass looks for its module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "ARCHITECTURES", dict(checkpoint.ARCHITECTURES))
        names = vars(module)
        before = blocks("The kernel on your own q, K and V")[:1] + blocks("A model of your own")
        exec("from minipage import LLM, SamplingParams", names)
        for block in before + blocks("Add an architecture"):
            exec(compile(block, str(PAGE), "exec"), names)  # the last one compares with transformers
        yield names
    del sys.modules[module.__name__]


def test_the_code_of_the_page_runs_and_agrees_with_transformers(page):
    assert page["theirs"].std() > 0.1, "this test compares next to nothing: all logits are about the same"
    assert page["ours"].shape == page["theirs"].shape == (5, 50)


def test_60_greedy_tokens_are_those_of_transformers(page):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [1, 2, 3]
    theirs = AutoModelForCausalLM.from_pretrained(page["folder"])
    expected = theirs.generate(torch.tensor([prompt]), do_sample=False, min_new_tokens=60, max_new_tokens=60)
    assert len(set(expected[0].tolist())) > 8, "this test compares a text of hardly any different tokens"
    params = page["SamplingParams"](temperature=0, max_tokens=60, ignore_eos=True)
    for arrays in "numpy", "torch":
        llm = page["LLM"](page["folder"], block_size=4, num_blocks=16, arrays=arrays)
        assert llm.generate(prompt, params)[0].outputs[0].token_ids == expected[0, 3:].tolist(), arrays


@pytest.mark.parametrize("variant", [{"use_parallel_residual": False}, {"hidden_act": "relu"}, {"hidden_size": None}])
def test_what_it_does_not_compute_is_refused_in_a_sentence(page, variant):
    with pytest.raises(ModelError, match=next(iter(variant))):
        page["NeoX"].of(page["config"] | variant)
