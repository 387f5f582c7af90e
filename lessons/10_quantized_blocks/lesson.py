# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. Quantized blocks
#
# *About 25 minutes. Comes after lesson 2; NumPy is all it needs.*
#
# > **"Can I have more requests at once without another GPU?"** (the most frequent follow-up to "how many fit?", vLLM #8031) and then: **"with
# > `kv_cache_dtype="fp8"`, will my answers get worse?"**
#
# Every number in the cache takes 4 bytes here, 2 on most GPUs. It could be one. You will
#
# - round K and V to 8 bits in two ways, and know the error before you measure it,
# - see why each row needs a scale of its own,
# - measure what it does to logits and to text,
# - and count the blocks that it gives.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Real K and V
#
# Not random numbers: those of the model, reading a text.

# %%
from minipage import LLM, SamplingParams
from minipage.model.dense import dense_attend

llm = LLM(num_blocks=64)
config = llm.config
text = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"
ids = np.array(llm.tokenizer.encode(text))  # [T]
K, V = [], []


def listen(layer, q, k, v):
    K.append(k)
    V.append(v)
    return dense_attend(layer, q, k, v)


llm.model.forward(ids, np.arange(len(ids)), listen)
K, V = np.stack(K), np.stack(V)  # each [n_layer, T, n_head, head_size]

fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
for ax, (name, x) in zip(axes, (("K", K), ("V", V))):
    largest = np.abs(x).max(axis=-1)  # [n_layer, T, n_head]
    for layer in range(config.n_layer):
        ax.hist(largest[layer].ravel(), bins=30, alpha=0.6, label=f"layer {layer}")
    ax.set(title=f"largest magnitude in a row of {name}")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# A *row* is one token's K (or V) in one head: 64 numbers. Rows differ by a factor of several, between layers and between tokens. One scale for all
# would waste most of the 8 bits on the small ones.
#
# ## int8: evenly spaced
#
# Scale each row so that its largest number becomes 127, round, and keep the scale beside it.
#
# > **Predict.** How large is the error at most, if the largest number of a row is 2.54?


# %%
def to_int8(rows):
    scales = np.abs(rows).max(axis=-1, keepdims=True) / 127  # [..., 1]
    return np.rint(rows / scales).astype(np.int8), scales


codes, scales = to_int8(K)
error = np.abs(codes * scales - K)  # like K
print(f"largest error, in steps of its row: {(error / scales).max():.3f}")

# %% [markdown]
# Half a step: 2.54 / 127 / 2 = 0.01. Always, and for every number of the row, the small ones too. That is the weakness: to a number of 0.02 in that
# row, an error of 0.01 is a lot.
#
# ## fp8: finer near zero
#
# A floating-point format spaces its numbers in proportion to their size. e4m3 has a sign, four bits of exponent and three of fraction
# (Micikevicius et al., [2022](https://arxiv.org/abs/2209.05433)). Here are all its positive numbers, beside those of int8, both scaled to 1:

# %% tags=["hide-input"]
from minipage.simd.fp8 import FP8_VALUES

fig, ax = plt.subplots(figsize=(8, 1.5))
ax.plot(FP8_VALUES[:127] / 448, np.ones(127), "|", markersize=18)
ax.plot(np.arange(128) / 127, np.zeros(128), "|", markersize=18)
ax.set(
    yticks=[0, 1],
    yticklabels=["int8", "fp8"],
    ylim=(-0.7, 1.7),
    xlabel="share of the row's largest number",
)
plt.show()

# %%
from minipage.attention.quantize import dequantize, quantize

numbers = K[1].ravel()
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
for ax, (name, dtype) in zip(axes, (("int8", np.int8), ("fp8", np.uint8))):
    codes, scales = quantize(K[1], dtype)
    error = np.abs(dequantize(codes, scales) - K[1]).ravel()
    ax.plot(np.abs(numbers)[::15], error[::15], ".", markersize=2, alpha=0.5)
    ax.set(
        title=f"{name}: root mean square error {np.sqrt((error**2).mean()):.4f}",
        xlabel="magnitude of the number",
    )
axes[0].set(ylabel="error")
plt.show()

# %% [markdown]
# Left, the error is the same at every magnitude, and depends on the row. Right, it grows with the number: at most 1/16 of it. For *these* numbers, int8 is the
# more exact on average. fp8 wins when a row has an outlier that all others have to make room for:

# %%
row = np.random.default_rng(0).standard_normal(64).astype(np.float32)  # [head_size]
for outlier in (1, 10, 100):
    spoiled = row.copy()
    spoiled[0] = 4 * outlier
    errors = {}
    for name, dtype in (("int8", np.int8), ("fp8", np.uint8)):
        codes, scales = quantize(spoiled, dtype)
        errors[name] = np.sqrt(((dequantize(codes, scales) - spoiled)[1:] ** 2).mean())
    print(
        f"one number of {4 * outlier:3}: error of the others",
        {k: round(float(e), 4) for k, e in errors.items()},
    )

# %% [markdown]
# ## Error against bytes
#
# What does attention make of it? Errors of single numbers average out in its sums. Let us vary the number of bits, with a rounding of our own, and
# look at the logits:


# %%
def rounded(x, bits):
    """Evenly spaced, 2**bits - 1 values, a scale for each row."""
    steps = 2 ** (bits - 1) - 1
    scales = np.abs(x).max(axis=-1, keepdims=True) / steps  # [..., 1]
    return (np.rint(x / scales) * scales).astype(np.float32)


def logits_with(round_kv):
    def attend(layer, q, k, v):
        return dense_attend(layer, q, round_kv(k), round_kv(v))

    hidden = llm.model.forward(ids, np.arange(len(ids)), attend)  # [T, n_embd]
    return llm.model.logits(hidden)  # [T, vocab_size]


def fp8(x):
    return dequantize(*quantize(x, np.uint8))


exact = logits_with(lambda x: x)
bits = [2, 3, 4, 5, 6, 7, 8]
changes = [logits_with(lambda x, b=b: rounded(x, b)) - exact for b in bits]
rms = [np.sqrt((c**2).mean()) for c in changes]
agree = [
    100 * ((exact + c).argmax(axis=1) == exact.argmax(axis=1)).mean() for c in changes
]
fp8_change = logits_with(fp8) - exact
fp8_agree = 100 * ((exact + fp8_change).argmax(axis=1) == exact.argmax(axis=1)).mean()

fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
bytes_per_token = [
    2 * config.n_layer * config.n_head * (config.head_size * b / 8 + 4) for b in bits
]
fp8_bytes = 2 * config.n_layer * config.n_head * (config.head_size + 4)
axes[0].plot(bytes_per_token, rms, "o-", label="evenly spaced, 2 to 8 bits")
axes[0].plot(fp8_bytes, np.sqrt((fp8_change**2).mean()), "D", color="C1", label="fp8")
axes[0].set(yscale="log", xlabel="bytes a token", ylabel="error of the logits (rms)")
axes[1].plot(bytes_per_token, agree, "o-")
axes[1].plot(fp8_bytes, fp8_agree, "D", color="C1")
axes[1].set(xlabel="bytes a token", ylabel="same best token, %", ylim=(0, 103))
for ax in axes:
    ax.axvline(8192, color="gray", linestyle=":")
axes[0].text(8100, min(rms), "float32", color="gray", ha="right")
axes[0].legend(frameon=False, fontsize=8)
print(f"the logits themselves have a standard deviation of {exact.std():.1f}")
plt.show()

# %% [markdown]
# Each bit halves the error, and around five bits the best token hardly ever changes. Eight bits are comfortable; that is why a quantized *cache* is usually
# harmless, while quantized *weights* need care.
#
# ## In the engine
#
# Rows are quantized when they are written, and turned back while the kernel reads them, number by number. Nothing else in the engine changes, except the number of blocks:

# %%
prompts = [
    "KING RICHARD III:\nMy kingdom for a",
    "JULIET:\nO Romeo,",
    "ROMEO:\nIt is my lady",
]
greedy = SamplingParams(max_tokens=24, temperature=0)
written = {}
for dtype in ("float32", "int8", "fp8"):
    engine = LLM(memory="1MiB", kv_cache_dtype=dtype)
    outs = engine.generate(prompts, greedy)
    written[dtype] = [out.outputs[0].token_ids for out in outs]
    same = [
        sum(a == b for a, b in zip(x, y))
        for x, y in zip(written[dtype], written["float32"])
    ]
    print(
        f"{dtype:8} {engine.block_pool.num_blocks:4} blocks   tokens as with float32: {same} of 24"
    )

# %% [markdown]
# 3.8 times as many blocks, not 4: the scales take a float32 for 64 numbers.
#
# The same demand in the same bytes, twice. With float32 the third text has to wait or to give way; with int8 there is room for all:

# %%
from minipage.trace import record

nine_blocks = 9 * 4 * 8192  # bytes
traces = {}
for dtype in ("float32", "int8"):
    engine = LLM(block_size=4, memory=nine_blocks, kv_cache_dtype=dtype)
    with record(engine, f"{dtype}: {engine.block_pool.num_blocks} blocks") as traces[
        dtype
    ]:
        engine.generate(prompts, greedy)

fig, ax = plt.subplots(figsize=(7.5, 2.4))
for dtype, trace in traces.items():
    ax.step(
        [f.step for f in trace.steps],
        [len(f.running) for f in trace.steps],
        where="mid",
        label=dtype,
    )
ax.set(xlabel="step", ylabel="texts running", yticks=range(4))
ax.legend(frameon=False)
plt.show()

# %%
traces["int8"]

# %% [markdown]
# And the time? A kernel that is limited by memory reads a quarter of the bytes. Whether it gets faster depends on how cheap turning them back is: on a GPU it is nearly
# free, on a processor not always. Measure it on yours:

# %%
from time import perf_counter

from minipage.attention import paged_attention

rng = np.random.default_rng(0)
shape = 64, 16, 4, 64
k = rng.standard_normal(shape, np.float32)  # [num_blocks, block_size, H, D]
v = rng.standard_normal(shape, np.float32)  # [num_blocks, block_size, H, D]
batch = np.arange(64).reshape(1, 64), np.array([1024]), np.array([0, 1]), 0.125
q = rng.standard_normal((1, 4, 64), np.float32)  # [num_tokens, num_heads, head_size]
caches = {"float32": (k, v, None, None)}
for name, dtype in (("int8", np.int8), ("fp8", np.uint8)):
    (kc, ks), (vc, vs) = quantize(k, dtype), quantize(v, dtype)
    caches[name] = kc, vc, ks, vs
for name, (kc, vc, ks, vs) in caches.items():
    paged_attention(q, kc, vc, *batch, ks, vs)  # compiles
    times = []
    for _ in range(30):
        start = perf_counter()
        paged_attention(q, kc, vc, *batch, ks, vs)
        times.append(perf_counter() - start)
    print(
        f"{name:8} {1e6 * np.median(times):6.0f} µs for a context of 1,024, in {(kc.nbytes + vc.nbytes) >> 10} KiB"
    )

# %% [markdown]
# ## What vLLM does
#
# - `kv_cache_dtype="fp8"` (e4m3 or e5m2), with *one scale for each layer* (or attention head), taken from the checkpoint or measured on calibration data, not one a row: less to store and to read, but outliers hurt
#   more. Since 2026 there are also `"int8_per_token_head"` and `"fp8_per_token_head"` (#38378): a scale for each row, computed when it is written, as here.
# - Weights and activations are quantized separately, by other options, above all `quantization`. Ours has one value, `LLM(quantization="int8")`: the weights of matrices in one byte a number, with a scale for
#   each *column*, because a column makes one number of the result, so that its scale can wait until the sum is there (`model/layers/int8.py`; the cell below). Activations are rounded to 16 bits
#   on their way into a product, because a processor multiplies such numbers by int8 twice as fast as float32.
# - FlashAttention 3 and FlashInfer compute directly on fp8; older kernels convert first, as we do.
# - LMDeploy has int8 with a scale (and a zero point) for each token and head, TensorRT-LLM int8 with one for each layer; KIVI (Liu et al., [2024](https://arxiv.org/abs/2402.02750)) goes down to 2 bits, with K scaled by *channel*.
#
# ## Weights, too
#
# A step of one text reads every weight once, and does little else. In one byte a number that is a quarter of the bytes. What does it cost? Perplexity is how many tokens the model hesitates between, on average, for a
# text that it is told. **Predict:** by how much does it rise?

# %%
from math import exp

TOLD = "What must the king do now? must he submit?\nThe king shall do it: must he be deposed?\nThe king shall be contented: must he lose\nThe name of king?"
for kind in (None, "int8"):
    told = (
        LLM(quantization=kind)
        .generate(TOLD, SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
        .prompt_logprobs[1:]
    )
    mean = sum(next(iter(top.values())).logprob for top in told) / len(told)
    print(f"{kind or 'float32'}: perplexity {exp(-mean):.3f}")

# %% [markdown]
# Not by a hundredth. With 4 bits it would: then one scale serves only some dozens of rows, and the rounding takes the inputs into account (GPTQ, AWQ).
#
# *Checked against vLLM 0.32.0: `vllm/config/cache.py` (the names of `kv_cache_dtype`).*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 10.1    # quantize rows; then 10.2 back, 10.3 bytes of a block
# ```
#
# **Going further.** (a) One scale for a whole layer: how much worse do logits get? (b) K has channels that are large for every token. Scale by channel before quantizing, and
# measure again. (c) Quantize only blocks that are full, and leave the last one exact. What would have to change?
#
# Next: **lesson 11**, the kernel on a GPU.
