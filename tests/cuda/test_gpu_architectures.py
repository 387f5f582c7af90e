"""Every architecture says on the GPU what transformers says: all variants on a device, one of each kind simulated."""

import pytest
import torch
from model.test_architectures import TOKEN_IDS, VARIANTS, save
from where import DEVICE

from minipage.engine.llm import LLM
from minipage.sampling import SamplingParams

SIMULATED = "OPT", "Qwen3", "Falcon 7B's layout"
NUM_TOKENS = 40 if DEVICE else 2


@pytest.mark.parametrize("variant", VARIANTS if DEVICE else SIMULATED)
def test_greedy_texts_of_prompts_of_different_lengths(variant, tmp_path):
    theirs = save(tmp_path, *VARIANTS[variant])
    prompts = [TOKEN_IDS[:9], TOKEN_IDS[20:23], TOKEN_IDS[50:51]]
    llm = LLM(tmp_path, device="cuda", block_size=4, num_blocks=64, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
        (expected,) = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            pad_token_id=0,
        )
        assert output.outputs[0].token_ids == expected[len(prompt) :].tolist()
