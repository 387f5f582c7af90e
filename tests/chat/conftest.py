"""A small random chat model: a Llama whose queries share K and V, with the template that SmolLM2 has."""

import pytest
import torch
from engine.checkpoints import save_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system\nBe kind."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 512


def save_llama(folder):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.15 if "norm" in name else 3 / 32**0.5)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def mute(tmp_path_factory):
    """The folder of a model that has a tokenizer, and no chat template."""
    folder = tmp_path_factory.mktemp("mute")
    save_llama(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def chatter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chatter")
    save_llama(folder)
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder
