# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. A GPT and its KV cache
#
# *About 30 minutes. You need to have seen a matrix product; everything else is here.*
#
# > **"Why is the first token so slow, and the others so fast? And why does the cache keep K and V, but not Q?"**
#
# Both come up wherever somebody watches a model write for the first time. In this lesson you run a GPT without any engine,
# see that almost all it computes for a new token it has computed before, and keep that. You will
#
# - write a text with nothing but `forward` and an `argmax`,
# - find out which numbers stay the same from token to token, by comparing them,
# - write a KV cache in ten lines, and measure what it is worth,
# - and see why a prompt is computed at a very different speed from an answer.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Text in, scores out
#
# A GPT takes tokens, small pieces of text with numbers, and gives a score (*logit*) to every token that there is, to be
# the next one. The model that comes with minipage has 3.8 million parameters, and has read Shakespeare.

# %%
from minipage.model.architecture import Model
from minipage.model.checkpoint import load_model
from minipage.model.dense import dense_attend
from minipage.model.layers.plain import PlainLayers

config, weights, tokenizer, _ = load_model("shakespeare")
layers = PlainLayers(config, weights)  # how: here in NumPy
model = Model(config, layers)  # what is computed
print(config)

text = "JULIET:\nO Romeo, Romeo, wherefore art"
ids = tokenizer.encode(text)
print([tokenizer.decode([i]) for i in ids])

# %%
hidden = model.forward(np.array(ids), np.arange(len(ids)), dense_attend)  # [T, n_embd]
logits = model.logits(hidden)  # [T, vocab_size]
probabilities = np.exp(logits[-1] - logits[-1].max())  # [vocab_size]
probabilities /= probabilities.sum()
best = np.argsort(-probabilities)[:8]  # [8] token ids

fig, ax = plt.subplots(figsize=(7.5, 2.2))
ax.bar([repr(tokenizer.decode([i])) for i in best], probabilities[best])
ax.set(ylabel="probability", title="what comes after “…wherefore art”?")
plt.show()

# %% [markdown]
# `forward` is in `minipage/model/gpt2.py`, and it is short: read it now. Four layers; in each, *attention* (a token looks at the
# tokens before it) and a small network that works on each token by itself. Two things about it matter to us:
#
# - attention is **handed in**: `dense_attend(layer, q, k, v)` looks at the whole text, and is the only place where tokens meet;
# - there is a row for *every* token, though only the last one is wanted.
#
# ## Writing, the plain way
#
# To write, take the likeliest token, append it, and run the model on the longer text:

# %%
from time import perf_counter


def write_plainly(text, num_tokens):
    ids, times = tokenizer.encode(text), []
    for _ in range(num_tokens):
        start = perf_counter()
        tokens, positions = np.array(ids), np.arange(len(ids))  # [T], [T]
        hidden = model.forward(tokens, positions, dense_attend)  # [T, n_embd]
        ids.append(int(model.logits(hidden[-1:]).argmax()))
        times.append(perf_counter() - start)
    return ids, times


ids_plain, times_plain = write_plainly("JULIET:\nO Romeo, Romeo,", 60)
print(tokenizer.decode(ids_plain))

# %% [markdown]
# > **Predict.** How does the time of a token grow with the length of the text? And the time of the whole text?
#
# ## What stays the same
#
# Let us listen in on attention, in two runs of which the second has one token more:


# %%
def listen(ids):
    """Q, K and V of each layer, as [n_layer, T, n_head, head_size]."""
    heard = {"q": [], "k": [], "v": []}

    def attend(layer, q, k, v):
        for name, array in (("q", q), ("k", k), ("v", v)):
            heard[name].append(array)
        return dense_attend(layer, q, k, v)

    model.forward(np.array(ids), np.arange(len(ids)), attend)
    return {name: np.stack(arrays) for name, arrays in heard.items()}


short, long = listen(ids_plain[:30]), listen(ids_plain[:31])
for name in "qkv":
    same = np.allclose(short[name], long[name][:, :30], atol=1e-4)
    print(f"{name} of the first 30 tokens, in all layers: the same = {same}")

# %% [markdown]
# All of them are the same. A token looks only at tokens *before* it, so a new one at the end changes nothing for the others, in
# any layer. Everything but the last row was computed for nothing.
#
# What does the new row need from the others? In attention, its own `q` meets the `k` of every earlier token, and takes from
# every `v`. The *other* tokens' `q` do not come into it: a token asks once, when it is new. That is why **K and V are
# kept, and Q is not.**
#
# ## A cache in ten lines
#
# So hand in another `attend`: one that remembers.


# %%
class CachedAttention:
    def __init__(self, num_layers):
        self.k = [
            np.zeros((0, config.n_head, config.head_size), np.float32)
        ] * num_layers
        self.v = list(self.k)

    def __call__(self, layer, q, k, v):
        k = self.k[layer] = np.concatenate([self.k[layer], k])  # [context_len, H, D]
        v = self.v[layer] = np.concatenate([self.v[layer], v])  # [context_len, H, D]
        scores = np.einsum("qhd,khd->hqk", q, k)  # [H, T, context_len]
        scores /= np.sqrt(q.shape[-1])
        position = np.arange(len(k))  # [context_len]
        scores[:, position > position[-len(q) :, None]] = -np.inf  # nobody looks ahead
        highest = scores.max(axis=-1, keepdims=True)  # [H, T, 1]
        weights = np.exp(scores - highest)  # [H, T, context_len]
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, v)  # [T, H, D]


def write_cached(text, num_tokens, shift=0):
    ids, times = tokenizer.encode(text), []
    attend, computed = CachedAttention(config.n_layer), 0
    for _ in range(num_tokens):
        start = perf_counter()
        new = np.array(ids[computed:])  # the whole prompt at first, then one token
        positions = np.arange(computed, len(ids)) + (shift if computed else 0)
        hidden = model.forward(new, positions, attend)  # [T, n_embd]
        computed = len(ids)
        ids.append(int(model.logits(hidden[-1:]).argmax()))
        times.append(perf_counter() - start)
    return ids, times


ids_cached, times_cached = write_cached("JULIET:\nO Romeo, Romeo,", 60)
print("the same text:", ids_cached == ids_plain)

# %%
_, times_plain = write_plainly("JULIET:\nO Romeo, Romeo,", 250)
_, times_cached = write_cached("JULIET:\nO Romeo, Romeo,", 250)

fig, ax = plt.subplots()
ax.plot(1000 * np.array(times_plain), ".", markersize=4, color="C1", label="all anew")
ax.plot(1000 * np.array(times_cached), ".", markersize=4, label="with a KV cache")
top = 1000 * np.percentile(times_plain, 98)
ax.set(xlabel="token", ylabel="ms a token", ylim=(0, 1.1 * top))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Without the cache, each token takes longer than the one before. With it, the time is nearly flat: only attention grows, and in a model
# this small hardly. What grows instead is *memory*, by the same number of bytes with each token:

# %%
per_token = 2 * config.n_layer * config.n_embd * 4
print(
    f"{per_token:,} bytes a token, {per_token * config.n_positions / 2**20:.0f} MiB for the longest text;"
)
print(f"the weights have {sum(w.nbytes for w in weights.values()) / 2**20:.1f} MiB")

# %% [markdown]
# For this model a handful of long texts take as much memory as the model itself. `np.concatenate` also copies the whole cache at every
# token, or else room must be reserved in advance. Where should K and V lie, then? That is the subject of the rest of the course.
#
# ## Off by one
#
# A token also has a *position*, and in decoding it is easy to get wrong (nano-vllm #67 did). What happens if all positions
# after the prompt are one too large?

# %%
for prompt in ("ROMEO:\nIt is my lady", "KING RICHARD III:\nMy kingdom for a"):
    for name, shift in (("right", 0), ("wrong", 1)):
        written, _ = write_cached(prompt, 30, shift)
        print(f"{name}: {tokenizer.decode(written)!r}")

# %% [markdown]
# It still writes. Nothing crashes, nothing looks broken, and the second prompt does not even notice: a test with that one prompt would have
# passed. Compare with an oracle, always, and the numbers rather than the words.
#
# ## Two speeds: prefill and decode
#
# The first token takes the longest, since the whole prompt is computed for it: that is the *time to first token* (TTFT). But per *token*, the
# prompt is far cheaper than the answer:


# %%
def seconds_for(num_tokens, repeats=7):
    ids = np.resize(np.array(ids_plain), num_tokens)  # [num_tokens]
    times = []
    for _ in range(repeats):
        start = perf_counter()
        model.forward(ids, np.arange(num_tokens), CachedAttention(config.n_layer))
        times.append(perf_counter() - start)
    return np.median(times)


at_once = [1, 2, 4, 8, 16, 32, 64, 128, 256]
per_second = [n / seconds_for(n) for n in at_once]
fig, ax = plt.subplots()
ax.plot(at_once, per_second, "o-")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="tokens computed at once",
    ylabel="tokens per second",
)
ax.set_xticks(at_once, at_once)
ax.minorticks_off()
plt.show()

# %% [markdown]
# To compute *one* token, every weight is fetched from memory and used once. To compute 64, every weight is fetched once, too, and used 64
# times. Computing a prompt (**prefill**) keeps the arithmetic units busy; writing an answer (**decode**) keeps the memory busy,
# and the arithmetic waits. So it pays to put many answers into one batch, and to fill it up with pieces of prompts: lesson 6.
#
# ## Two texts in one batch
#
# How do you batch texts of different lengths? Many programs pad them to a rectangle. Here they are simply laid one after the other. Each
# token is on its own in every operation, except attention, and `attend` can keep them apart:

# %%
a, b = (
    tokenizer.encode("JULIET:\nO Romeo,"),
    tokenizer.encode("First Citizen:\nSpeak, speak."),
)


def attend_both(layer, q, k, v):
    parts = [slice(0, len(a)), slice(len(a), None)]
    return np.concatenate([dense_attend(layer, q[p], k[p], v[p]) for p in parts])


positions = np.concatenate([np.arange(len(a)), np.arange(len(b))])  # [T]
hidden = model.forward(np.array(a + b), positions, attend_both)  # [T, n_embd]
together = model.logits(hidden)  # [T, vocab_size]
for name, ids, row in (("a", a, len(a) - 1), ("b", b, -1)):
    tokens = np.array(ids)  # [T]
    hidden = model.forward(tokens, np.arange(len(ids)), dense_attend)  # [T, n_embd]
    alone = model.logits(hidden)[-1]  # [vocab_size]
    print(name, "together as alone:", np.allclose(together[row], alone, atol=1e-4))

# %% [markdown]
# That is how the engine does it: one flat batch, no padding, and an `attend` that knows whose token is whose.
#
# ## In the engine
#
# The same model, with K and V in blocks. In the first step of each text the whole prompt is computed, afterwards one token a step:

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

llm = LLM(block_size=4, num_blocks=12)
with record(llm, "A prompt at once, then token by token") as trace:
    llm.generate(
        "JULIET:\nO Romeo, Romeo,", SamplingParams(max_tokens=12, temperature=0)
    )
trace

# %% [markdown]
# ## What vLLM does
#
# - The same split: the model calls an attention layer, and that layer writes K and V into the cache and reads them from there. The model
#   code knows nothing of blocks.
# - The batch is flat there, too, with positions and slot mapping per token.
# - K and V are in bf16 by default, 2 bytes a number, or in fp8. Models with *grouped queries* (Llama 3 has 8 heads of K and V for 32 or 64
#   of Q) have a cache that is four or eight times smaller. DeepSeek's latent attention stores one short vector in place of K and V.
# - "Time to first token" and "inter-token latency" are the two speeds above, as a user feels them (lesson 13).
#
# *Checked against vLLM 0.32.0: `vllm/model_executor/layers/attention/attention.py` (the layer that reads and writes the cache) and `vllm/v1/worker/gpu_model_runner.py` (the flat batch).*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 2.1    # causal attention; then 2.2 the cache, 2.3 writing
# ```
#
# **Going further.** (a) Give `write_cached` a prompt of 200 tokens, and cut it into chunks of 50: is the text the same? (b) How many
# multiplications does a token take? (Two for each parameter, nearly.) How many per second is that on your machine, in prefill and in
# decode?
#
# Next: **lesson 3**, blocks.
