"""The attention weights of one's own run, beside what the engine's kernel made of the same q, K and V."""

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from minipage import LLM, SamplingParams
from minipage.errors import InvalidRequestError
from minipage.model.tokenizer import Tokenizer
from minipage.trace.recording.attention_weights import attention_weights


@pytest.fixture(scope="module")
def llm():
    return LLM(block_size=4, num_blocks=16, max_num_batched_tokens=5)  # the prompt comes in chunks


def test_they_are_what_the_kernel_used(llm):
    params = SamplingParams(max_tokens=6, temperature=0)
    seen = attention_weights(llm, "To be, or not to be, that", params, layer=2)
    num_tokens = len(llm.tokenizer.encode("To be, or not to be, that")) + 5
    assert seen.weights.shape == (llm.config.num_heads, num_tokens, num_tokens) and len(seen.words) == num_tokens
    assert "".join(seen.words).startswith("To be, or not to be, that")
    assert np.allclose(seen.weights.sum(axis=-1), 1) and not np.triu(seen.weights, 1).any()
    assert seen.largest_difference < 1e-5
    assert not np.allclose(seen.weights, attention_weights(llm, "To be, or not to be, that", params, layer=0).weights)


def test_words_keep_their_spaces_with_a_tokenizer_like_llamas(llm, monkeypatch):
    backend = Backend(models.WordLevel({f"▁w{i}": i for i in range(llm.config.vocab_size)}))
    backend.decoder = decoders.Metaspace()
    monkeypatch.setattr(llm, "tokenizer", Tokenizer(backend))
    assert attention_weights(llm, [5, 7, 9], SamplingParams(max_tokens=1)).words == [" w5", " w7", " w9"]


def test_bad_input_is_a_sentence(llm):
    with pytest.raises(InvalidRequestError, match="layers 0 to"):
        attention_weights(llm, "To be", layer=99)
    request = llm.add_request("To be", SamplingParams(max_tokens=2))
    with pytest.raises(InvalidRequestError, match="other requests"):
        attention_weights(llm, "To be")
    llm.abort(request)
