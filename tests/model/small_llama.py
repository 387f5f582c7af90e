"""A small Llama, written against nothing but the contract: what `minipage.model.architecture` says of `Layers`."""

from dataclasses import dataclass

from minipage.errors import ModelError
from minipage.model.architecture import KVSpec, Weight, flat, heads, turned

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True)
class SmallLlama:
    vocab_size: int
    max_model_len: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    epsilon: float
    rope_theta: float

    together = QKV, GATE_UP
    head = "lm_head"

    @property
    def kv(self):
        return KVSpec(self.num_layers, self.num_kv_heads, self.hidden_size // self.num_heads)

    def weights(self):
        C, inner, kv_size = self.hidden_size, self.intermediate_size, self.num_kv_heads * self.kv.head_size
        yield "embed_tokens.weight", Weight((self.vocab_size, C), "in", is_table=True)
        for i in range(self.num_layers):
            yield f"layers.{i}.input_layernorm.weight", Weight((C,))
            for name, size in zip(QKV, (C, kv_size, kv_size), strict=True):
                yield f"layers.{i}.{name}.weight", Weight((C, size), "out")
            yield f"layers.{i}.self_attn.o_proj.weight", Weight((C, C), "in")
            yield f"layers.{i}.post_attention_layernorm.weight", Weight((C,))
            for name in GATE_UP:
                yield f"layers.{i}.{name}.weight", Weight((C, inner), "out")
            yield f"layers.{i}.mlp.down_proj.weight", Weight((inner, C), "in")
        yield "norm.weight", Weight((C,))
        yield "lm_head.weight", Weight((self.vocab_size, C), "in")

    def forward(self, layers, token_ids, positions, attend):
        D, epsilon = self.kv.head_size, self.epsilon
        x = layers.embed("embed_tokens", token_ids)  # [T, C]
        turn = layers.rotation(positions, [self.rope_theta ** (-2 * i / D) for i in range(D // 2)])
        for i in range(self.num_layers):
            block = layers.at(f"layers.{i}")
            h = block.rms_norm("input_layernorm", x, epsilon)  # [T, C]
            q, k, v = (heads(a, D) for a in block.linears(QKV, h))  # [T, n, D] each
            mixed = attend(i, block.rotate(q, turn), block.rotate(k, turn), v)  # [T, n, D]
            x = x + block.linear("self_attn.o_proj", flat(mixed))  # [T, C]
            h = block.rms_norm("post_attention_layernorm", x, epsilon)  # [T, C]
            x = x + block.linear("mlp.down_proj", block.gated(*block.linears(GATE_UP, h)))  # [T, C]
        return layers.rms_norm("norm", x, epsilon)  # [T, C]

    def logits(self, layers, hidden):
        return layers.scores(self.head, hidden)  # [N, V]

    @classmethod
    def of(cls, settings):
        if settings.get("hidden_act") != "silu":
            raise ModelError(f"it says hidden_act = {settings.get('hidden_act')!r}, but only 'silu' is computed.")
        sizes = "vocab_size max_position_embeddings hidden_size intermediate_size num_hidden_layers".split()
        sizes += "num_attention_heads num_key_value_heads rms_norm_eps".split()
        return cls(*(settings[name] for name in sizes), settings["rope_parameters"]["rope_theta"])

    def adapt(self, tensors):
        for name, weight in self.weights():
            yield name, turned(self, tensors, name, weight)
