"""Small GGUF files, written as llama.cpp's converter writes them, from random models of transformers."""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

VOCAB_SIZE = 300
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,  # Q4_K has blocks of 256
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
PARTS = {  # of Hugging Face's names, to GGUF's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "transformer.h.": "blk.",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def random_model(architecture, **settings):
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = GPT2Config(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=64, n_layer=2, n_head=4, **settings)
    else:
        config = CONFIGS[architecture](**SIZES | {"tie_word_embeddings": True} | settings)
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():  # norms and biases, too, so that none is left out unnoticed
        torch.nn.init.normal_(weight, mean=float("norm" in name or "ln_" in name), std=0.1)
    return model.eval()


def tensors_of(model):
    """(GGUF's name, array) of each weight."""
    config = model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if config.model_type == "gpt2" and array.ndim == 2 and ".h." in name:
            array = np.ascontiguousarray(array.T)
        if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        for theirs, ours in PARTS.items():
            name = name.replace(theirs, ours)
        yield name, array


def quantized(array, kind, rng):
    """A matrix in a kind of quantization; Q4_K, which the package only reads, is of random bytes."""
    if kind != Kind.Q4_K:
        return gguf.quantize(array, kind)
    blocks = rng.integers(0, 256, (array.size // 256, 144), dtype=np.uint8)
    blocks[:, :4] = np.full((len(blocks), 2), 0.01, np.float16).view(np.uint8)  # two scales, of a sensible size
    return blocks.reshape(len(array), -1)


def write_gguf(path, model, kind=Kind.F32, tokenizer=None, extra_tensors=None, drop=(), **metadata):
    """Write a model. `metadata` are further entries (a None leaves one out), `drop` the tensors to leave out."""
    config = model.config
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (sizes_of(config) | (tokenizer or {}) | metadata).items():
        if value is not None:
            add_entry(writer, name.replace("ARCH", architecture), value)
    rng = np.random.default_rng(0)
    for name, array in [*tensors_of(model), *(extra_tensors or {}).items()]:
        if name not in drop:
            is_matrix = array.ndim == 2 and name != "position_embd.weight"
            data = quantized(array, kind, rng) if is_matrix else array
            writer.add_tensor(name, data, raw_dtype=kind if is_matrix else Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_entry(writer, name, value):
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def sizes_of(config):
    if config.model_type == "gpt2":
        return {
            "gpt2.context_length": config.n_positions,
            "gpt2.embedding_length": config.n_embd,
            "gpt2.feed_forward_length": 4 * config.n_embd,
            "gpt2.block_count": config.n_layer,
            "gpt2.attention.head_count": config.n_head,
            "gpt2.attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    sizes = {
        "ARCH.context_length": config.max_position_embeddings,
        "ARCH.embedding_length": config.hidden_size,
        "ARCH.feed_forward_length": config.intermediate_size,
        "ARCH.block_count": config.num_hidden_layers,
        "ARCH.attention.head_count": config.num_attention_heads,
        "ARCH.attention.head_count_kv": config.num_key_value_heads,
        "ARCH.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "ARCH.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "ARCH.vocab_size": config.vocab_size,
    }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sizes | {
        "ARCH.rope.dimension_count": head_dim,
        "ARCH.attention.key_length": head_dim,
        "ARCH.attention.value_length": head_dim,
    }
