"""Tiny random checkpoints, written by transformers, and what a dense forward pass with no cache says about them.

Small random weights make a dull model: whatever the prompt, it repeats one token for ever, and a test that compares
such texts would pass with half of the K and V wrong. So the matrices are drawn large, and attention looks sharply at
different places: change any one token of the prompt, and the greedy text is another.
"""

import os

# minipage asks for threads that sleep while they wait, but torch may have started OpenMP by then.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, MistralConfig, Qwen2Config

from minipage.model.architecture import Model
from minipage.model.checkpoint import load_model
from minipage.model.dense import dense_attend
from minipage.model.layers.plain import PlainLayers
from minipage.sampling.sampler import probabilities, random_number

VOCAB, CONTEXT = 60, 64
EOS = VOCAB - 1

LINES = """The sea is a wide grey field and nobody mows it.
Every wave begins again where another wave began, and every gull says so.
Naïve café owners bring £5 to the señor; 你好 says one, 🙂 says the other.
"""


def save_gpt2(folder, seed=0, **sizes):
    """Write config.json and model.safetensors of a random GPT-2 into `folder`; returns transformers' own model."""
    tiny = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "eos_token_id": EOS}
    model = GPT2LMHeadModel(GPT2Config(**(tiny | sizes), bos_token_id=None)).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                weight.normal_(1, 0.15, generator=rng)
            elif weight.ndim == 2 and ".h." in name:
                weight.normal_(0, 3 / weight.shape[0] ** 0.5, generator=rng)  # stored (in, out)
            else:
                weight.normal_(0, 0.15, generator=rng)
    model.save_pretrained(folder)
    return model


def save_llama(folder, config=LlamaConfig, **sizes):
    """The same of a Llama: two heads of q share one of K and V, and both are turned by their positions."""
    tiny = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "eos_token_id": EOS}  # fmt: skip
    made = config(**(tiny | sizes), bos_token_id=None, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(made).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1, 0.15, generator=rng)
            elif ".layers." in name:
                weight.normal_(0, 3 / weight.shape[1] ** 0.5, generator=rng)  # stored (out, in)
            else:
                weight.normal_(0, 0.4, generator=rng)
    model.save_pretrained(folder)
    return model


def save_mistral(folder, **sizes):
    """All layers see the last 6 tokens."""
    return save_llama(folder, MistralConfig, **({"sliding_window": 6} | sizes))


def save_hybrid(folder, **sizes):
    """A Qwen2 whose first layer sees everything, and two more the last 6 tokens: three KV cache groups."""
    windows = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3}
    return save_llama(folder, Qwen2Config, **(windows | sizes))


SAVE = {"gpt2": save_gpt2, "llama": save_llama, "mistral": save_mistral, "hybrid": save_hybrid}
# A test with one of these marks runs for several kinds of models: with it, `tiny` is one after the other.
every_model = pytest.mark.parametrize("tiny", ["gpt2", "llama"], indirect=True)
with_windows = pytest.mark.parametrize("tiny", ["mistral", "hybrid"], indirect=True)


def save_tokenizer(folder, vocab_size=300):
    """Train a byte-level BPE, as GPT-2 has, on a few lines. Its tokens include all bytes, so it can say anything."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bytes_first = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=bytes_first, show_progress=False
    )
    tokenizer.train_from_iterator([LINES], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


class Dense:
    """The model of a folder, run over a whole sequence at once: no cache, no blocks, no batch."""

    def __init__(self, folder):
        architecture, weights, _, self.eos_token_ids = load_model(folder)
        self.model = Model(architecture, PlainLayers(architecture, weights))

    def attend(self, layer, q, k, v):
        windows = self.model.kv.windows
        return dense_attend(layer, q, k, v, windows[layer] if windows else None)

    def logits(self, token_ids, attend=None):
        """[T, V]: the scores of what follows each token."""
        attend = attend or self.attend
        positions = np.arange(len(token_ids))
        return self.model.logits(self.model.forward(np.array(token_ids), positions, attend))

    def greedy(self, prompt, num_tokens):
        """The likeliest continuation, grown token by token, every time from the beginning."""
        token_ids = list(prompt)
        for _ in range(num_tokens):
            token_ids.append(int(self.logits(token_ids)[-1].argmax()))
        return token_ids[len(prompt) :]

    def kv(self, token_ids):
        """K and V, each [num_layers, T, H, D]: what the cache has to hold for these tokens."""
        keys, values = [], []

        def attend(layer, q, k, v):
            keys.append(k)
            values.append(v)
            return self.attend(layer, q, k, v)

        self.logits(token_ids, attend)
        return np.stack(keys), np.stack(values)

    def explains(self, prompt, output, params, index=0):
        """Whether each token of `output` is what `params` choose after those before it, for sample number `index`.

        Paged and dense sums differ in the last digits, so a choice is also right if it was a tie up to these.
        """
        rows = self.logits([*prompt, *output])[len(prompt) - 1 :]  # row i gave output[i]
        for position, (token, logits) in enumerate(zip(output, rows, strict=False), len(prompt)):
            if params.temperature == 0:
                if logits[token] < logits.max() - 1e-4:
                    return False
            else:
                edges = np.concatenate([[0.0], np.cumsum(probabilities(logits, params))])
                draw = random_number(params.seed, index, position) * edges[-1]
                if not edges[token] - 1e-4 <= draw <= edges[token + 1] + 1e-4:
                    return False
        return True
