# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Paged attention
#
# *About 40 minutes. Comes after lesson 4; NumPy is all it needs.*
#
# > **"Why are blocks 16 tokens? Or 32, or 256?"** (vLLM #2331, #14319), and from people who have found the heart of it:
# > **"How do I call the kernel on my own q, K and V?"** (#3586)
#
# K and V lie in blocks, all over the pool. In this lesson you write the attention that reads them there. Five steps, each
# a few lines of NumPy, each checked against the one before:
#
# 1. attention for one new token, over K and V in one piece;
# 2. the same, with a gather through the block table;
# 3. block by block, without a gather: and a problem with the softmax;
# 4. the *online* softmax, which solves it, and which is the idea under FlashAttention too;
# 5. all texts of a step at once, with the signature that every kernel in this project has.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Step 1: one token looks back
#
# A new token asks with its query `q`. Each earlier token has a key; the better the two fit, the more of that token's value
# goes into the answer. One head, 37 tokens, vectors of 8 numbers:

# %%
rng = np.random.default_rng(0)
head_size, context_len = 8, 37
q = rng.standard_normal(head_size)  # [head_size]
k = rng.standard_normal((context_len, head_size))  # [context_len, head_size]
v = rng.standard_normal((context_len, head_size))  # [context_len, head_size]
scale = head_size**-0.5


def attend(q, k, v):
    scores = k @ q * scale  # [context_len]
    weights = np.exp(scores - scores.max())  # [context_len]
    return weights @ v / weights.sum()  # [head_size]


answer = attend(q, k, v)  # [head_size]
print(answer.round(3))

# %% [markdown]
# Why `- scores.max()`? The result is the same without it, since numerator and denominator shrink by the same factor. But
# `exp(1000)` is infinite, and ∞/∞ is not a number. Keep that maximum in mind; it makes all the trouble in step 3.
#
# ## Step 2: gather, then attend
#
# Now K and V are where lesson 4 has put them. Here is a cache of ten blocks, full of somebody else's numbers, and a table:

# %%
block_size = 8
shape = 10, block_size, head_size
k_cache = rng.standard_normal(shape)  # [num_blocks, block_size, head_size]
v_cache = rng.standard_normal(shape)  # [num_blocks, block_size, head_size]
table = [7, 2, 9, 0, 4]  # 37 tokens, five blocks; the last is part empty
for i in range(context_len):
    k_cache[table[i // block_size], i % block_size] = k[i]
    v_cache[table[i // block_size], i % block_size] = v[i]


def attend_gathered(q, k_cache, v_cache, table, context_len):
    k = k_cache[table].reshape(-1, head_size)[:context_len]  # [context_len, head_size]
    v = v_cache[table].reshape(-1, head_size)[:context_len]  # [context_len, head_size]
    return attend(q, k, v)  # [head_size]


print(np.array_equal(attend_gathered(q, k_cache, v_cache, table, context_len), answer))

# %% [markdown]
# > **Predict.** What happens without `[:context_len]`? Try it.
#
# Three slots behind the end would be read, and they hold *something*: zeros if the block is new, and otherwise what its last
# owner left there. One variant of this bug has a test of its own in
# vLLM: it is not enough to give those slots the weight zero, because there may be a NaN in them, and 0 × NaN is NaN.

# %%
poisoned = v_cache.copy()  # [num_blocks, block_size, head_size]
poisoned[4, 37 % block_size :] = np.nan
weights = np.zeros(40)  # [40]
weights[:37] = 1 / 37
print("weight 0, but read:", (weights @ poisoned[table].reshape(-1, head_size))[:3])
print("not read at all:   ", attend_gathered(q, k_cache, poisoned, table, 37)[:3])

# %% [markdown]
# The gather is right, and it is what `minipage/attention/reference.py` does. Its price is a copy of all K and V, at every
# step, in every layer: read once, written once, and read again. Attention for one new token does almost no arithmetic; its
# time *is* the time it takes to read. So the copy makes it about three times as slow.
#
# ## Step 3: block by block
#
# So let us walk along the table, and read each block where it is. Scores first:


# %%
def attend_in_two_passes(q, k_cache, v_cache, table, context_len):
    scores = []
    for first in range(0, context_len, block_size):
        block, filled = table[first // block_size], min(block_size, context_len - first)
        scores.extend(k_cache[block, :filled] @ q * scale)
    highest = max(scores)
    total, acc = 0.0, np.zeros(head_size)  # acc: [head_size]
    for i, score in enumerate(scores):
        weight = np.exp(score - highest)
        total += weight
        acc += weight * v_cache[table[i // block_size], i % block_size]
    return acc / total  # [head_size]


print(
    np.allclose(attend_in_two_passes(q, k_cache, v_cache, table, context_len), answer)
)

# %% [markdown]
# No copy any more, but two passes: the weights need the highest of *all* scores, which is known only at the end. So all
# scores have to be stored, a row for each head and each token: for a prompt of 100,000 tokens, five billion numbers a head.
#
# ## Step 4: the online softmax
#
# Here is the trick (Milakov and Gimelshein, [2018](https://arxiv.org/abs/1805.02867)). Use the highest score *so far*. When a
# higher one turns up, everything that was summed is too large by the same known factor, `exp(new highest − old highest)`.
# So divide it by that, and go on:


# %%
def attend_online(q, k_cache, v_cache, table, context_len, watch=None):
    highest, total, acc = -np.inf, 0.0, np.zeros(head_size)  # acc: [head_size]
    for first in range(0, context_len, block_size):
        block, filled = table[first // block_size], min(block_size, context_len - first)
        for offset in range(filled):
            score = k_cache[block, offset] @ q * scale
            if score > highest:
                shrink = np.exp(highest - score)
                total, acc, highest = total * shrink, acc * shrink, score
            weight = np.exp(score - highest)
            total += weight
            acc = acc + weight * v_cache[block, offset]  # [head_size]
            if watch is not None:
                watch.append((score, highest, total, acc / total))
    return acc / total  # [head_size]


watch = []
print(
    np.allclose(attend_online(q, k_cache, v_cache, table, context_len, watch), answer)
)

# %% [markdown]
# Three things are remembered, however long the text: the highest score, the sum of the weights, the weighted sum of V. Look
# at them on the way. At every point the last line is the *exact* answer for the tokens read so far.

# %% tags=["hide-input"]
scores, highest, total, so_far = (np.array(a) for a in zip(*watch))
fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.8), layout="constrained")
axes[0].plot(scores, ".", color="gray", label="score")
axes[0].step(range(37), highest, where="mid", label="highest so far")
axes[0].legend(frameon=False, fontsize=8)
axes[1].plot(total, color="C2")
axes[1].set(title="sum of the weights (drops: shrunk)")
axes[2].plot(so_far[:, :3])
axes[2].plot([37] * 3, answer[:3], "k<", label="dense attention")
axes[2].set(title="answer so far (3 of 8 numbers)")
axes[2].legend(frameon=False, fontsize=8)
for ax in axes:
    ax.set(xlabel="tokens read")
plt.show()

# %% [markdown]
# The demo has this in slow motion, inside the real engine: a query, and block after block. (The last steps are the ones to look at.)

# %%
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import find_scenario

scenario = find_scenario("kernel")
demo = Demo(make_engine(scenario, {}), scenario)
list(demo.frames())
demo.trace

# %% [markdown]
# > **Try.** Parts can be joined: run it over blocks 0–2 and over blocks 3–4 *separately*, keep `(highest, total, acc)` of each,
# > and combine the two. That is how a GPU splits one long text among many processors ("split-K", "flash decoding").
#
# <details><summary>A solution</summary>
#
# ```python
# def join(a, b):  # each (highest, total, acc)
#     highest = max(a[0], b[0])
#     shrink_a, shrink_b = np.exp(a[0] - highest), np.exp(b[0] - highest)
#     return highest, a[1] * shrink_a + b[1] * shrink_b, a[2] * shrink_a + b[2] * shrink_b
# ```
#
# </details>
#
# ## Step 5: a whole step's work
#
# The engine computes many texts at once: some bring one new token, some a chunk of a prompt. The queries of all lie in one
# array, one text after the other, and a query sees its text up to itself. This is the signature that every attention in
# minipage has, whether in NumPy, on the CPU or on a GPU:


# %%
def paged_attention(
    q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale
):
    """q: [num_tokens, num_heads, head_size]; caches: [num_blocks, block_size, num_kv_heads, head_size]."""
    out = np.empty_like(q)  # [num_tokens, num_heads, head_size]
    size, group = k_cache.shape[1], q.shape[1] // k_cache.shape[2]
    for s, context_len in enumerate(context_lens):
        begin, end = query_start_loc[s], query_start_loc[s + 1]
        for row in range(begin, end):
            visible = context_len - (end - 1 - row)  # the last query sees all
            for head in range(q.shape[1]):
                highest, total, acc = -np.inf, 0.0, 0.0
                for first in range(0, visible, size):
                    block = block_tables[s, first // size]
                    filled = min(size, visible - first)
                    k = k_cache[block, :filled, head // group]  # [filled, head_size]
                    v = v_cache[block, :filled, head // group]  # [filled, head_size]
                    scores = k @ q[row, head] * scale  # [filled]
                    new_highest = max(highest, scores.max())
                    weights = np.exp(scores - new_highest)  # [filled]
                    shrink = np.exp(highest - new_highest)
                    total = total * shrink + weights.sum()
                    acc = acc * shrink + weights @ v  # [head_size]
                    highest = new_highest
                out[row, head] = acc / total
    return out


# %% [markdown]
# (`head // group`: with *grouped queries*, several query heads share one head of K and V, which makes the cache smaller by
# that factor. Ainslie et al., [2023](https://arxiv.org/abs/2305.13245).)
#
# It steps by whole blocks, as the fast ones do: one maximum and one shrinking a block. Against three of minipage's own, on
# random ragged batches:

# %%
from minipage.attention import cpu, loops, reference


def random_batch(
    rng, context_lens, query_lens, heads=4, kv_heads=2, head_size=8, size=8
):
    num_blocks = [-(-n // size) for n in context_lens]
    order = rng.permutation(sum(num_blocks) + 3)
    size_of_all = len(num_blocks), max(num_blocks)
    tables = np.zeros(size_of_all, np.int32)  # [num_seqs, max_blocks]
    for s, n in enumerate(num_blocks):
        tables[s, :n], order = order[:n], order[n:]
    shape = (sum(num_blocks) + 3, size, kv_heads, head_size)
    caches = [rng.standard_normal(shape, np.float32) for _ in "kv"]
    rows = sum(query_lens), heads, head_size
    q = rng.standard_normal(rows, np.float32)  # [T, H, D]
    lens = np.array(context_lens, np.int32)  # [num_seqs]
    starts = np.cumsum([0, *query_lens], dtype=np.int32)  # [num_seqs + 1]
    return q, *caches, tables, lens, starts, head_size**-0.5


for _ in range(5):
    query_lens = rng.integers(1, 6, size=4)  # [num_seqs]
    batch = random_batch(rng, query_lens + rng.integers(0, 40, size=4), query_lens)
    mine = paged_attention(*batch)  # [T, H, D]
    print("largest difference:", end="")
    for kernel in (reference, loops, cpu):
        theirs = kernel.paged_attention(*batch)  # [T, H, D]
        print(f"  {kernel.__name__} {abs(mine - theirs).max():.1e}", end="")
    print()

# %% [markdown]
# A few times 10⁻⁷: the last bit of a float32. They sum in another order, and floating-point sums depend on the order.
# (That is also why switching prefix caching on may change a word now and then, vLLM #5543. Lesson 8 measures it.)
#
# And does it run the model? Hand it to the engine:

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

texts = []
for attention in (paged_attention, "cpu"):
    llm = LLM(block_size=4, num_blocks=16, attention=attention)
    with record(llm, "Attention follows the table") as trace:
        out = llm.generate(
            "ROMEO:\nIt is my", SamplingParams(max_tokens=10, temperature=0)
        )
    texts.append(out[0].outputs[0].text)
print(texts[0] == texts[1], repr(texts[0]))
trace

# %% [markdown]
# Look at the phase *forward* of a step: the blocks that attention reads are marked. It is always the whole table.
#
# ## The same in loops
#
# `attend_online` calls NumPy a few times for each token, and each call works on one small array: the time goes into calling.
# `numba` compiles Python to machine code, and then plain loops cost next to nothing. So `minipage/attention/loops.py` is
# steps 4 and 5 with every loop written out, over sequences, queries, heads, tokens, and the numbers of a row. This is all of
# it that computes:

# %% tags=["hide-input"]
import inspect

print(inspect.getsource(getattr(loops.attend, "py_func", loops.attend)))

# %% [markdown]
# Find the three lines of the online softmax that you know. (`number` looks up what one or two bytes stand for, if the cache
# is narrow: lesson 10.) With `NUMBA_DISABLE_JIT=1` it is not compiled, and a debugger walks through it line by line.
#
# > **Predict.** One new token, contexts of growing length, 4 texts of 8 heads of 64. Step 5 in NumPy, the gather, the loops,
# > and `minipage/attention/cpu.py`, which the engine uses: which is slowest, and by how much?

# %%
from time import perf_counter


def seconds(function, batch, repeats=5):
    times = []
    for _ in range(repeats):
        start = perf_counter()
        function(*batch)
        times.append(perf_counter() - start)
    return np.median(times)


lengths = [64, 256, 1024, 4096]
kinds = {
    "step 5, NumPy": paged_attention,
    "reference: gather, NumPy": reference.paged_attention,
    "loops: numba": loops.paged_attention,
    "cpu: numba, vectors": cpu.paged_attention,
}
fig, ax = plt.subplots()
for name, function in kinds.items():
    batches = [random_batch(rng, [n] * 4, [1] * 4, 8, 8, 64, 16) for n in lengths]
    ax.plot(
        lengths, [1e3 * seconds(function, batch) for batch in batches], "o-", label=name
    )
ax.set(
    xscale="log", yscale="log", xlabel="context length of 4 texts", ylabel="ms a call"
)
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Step 5 is slowest by far. For short texts the loops win against the gather, too: nothing is called and nothing is copied.
# For long ones both wait for the memory. The loops take one head after the other, so of each token's row they fetch 256
# bytes, compute with them, and only then ask for the next.
#
# ## What vectors buy
#
# On one core of an AMD EPYC `cpu.py` was 1.8 times as fast as the loops at 256 tokens, and 3.5 times at 4,096. Its algorithm
# is the same; the six lines at its top are the loops that you have just read. What is different is how the processor is
# asked, in `decode.py` and, for chunks of a prompt, in `prefill.py`:
#
# - 16 numbers at a time (`LANES`), in float32. The compiler makes vectors of the loops over `d` too, but sums in float64,
#   where half as many fit into a register, and each number has to be converted first;
# - four tokens at a time, so that one sum need not wait for another;
# - all heads of a token before the next token, as they lie in memory, and the rows that come next are asked for beforehand
#   (`prefetch`);
# - all cores: long contexts are cut into pieces, which are joined as in the exercise above.
#
# Read `decode.py` now, with `loops.py` beside it.
#
# ## So, how large should a block be?
#
# Small blocks waste little: half a block a text, as lesson 1 measured. Large blocks make long runs of memory, short tables
# and few jumps. Both costs, measured here, for eight texts of 1,000 tokens on average:

# %%
sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
context_lens = rng.integers(500, 1500, size=8)  # [num_seqs]
times, waste = [], []
for size in sizes:
    batch = random_batch(rng, context_lens, [1] * 8, 8, 8, 64, size)
    times.append(1e3 * seconds(cpu.paged_attention, batch, 9))
    slots = (-(-context_lens // size) * size).sum()
    waste.append(100 * (1 - context_lens.sum() / slots))

fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot(sizes, times, "o-")
axes[0].set(title="time of a call, ms", ylim=0)
axes[1].plot(sizes, waste, "o-", color="C1")
axes[1].set(title="slots wasted, %")
for ax in axes:
    ax.set(xscale="log", xlabel="block size")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
plt.show()

# %% [markdown]
# On a processor the kernel hardly minds: each token's K is a run of memory anyway. On a GPU, hundreds of threads read side by
# side, and want long runs; the paper found 16 to 128 good for long texts and 16 to 32 for short ones (figure 18b), and chose
# 16. There is a third cost that neither picture shows: only *whole* blocks can be shared between texts (lesson 8), so large
# blocks share less.
#
# ## Your own q, K and V
#
# The function needs no engine and no model. This is all there is to it (the answer to #3586):

# %%
import minipage.attention

# q has a token each of two texts: [num_tokens, num_heads, head_size]
q = rng.standard_normal((2, 4, 8), np.float32)  # [2, 4, 8]
# the cache is [num_blocks, block_size, num_kv_heads, head_size]
k_cache = rng.standard_normal((6, 16, 2, 8), np.float32)  # [6, 16, 2, 8]
v_cache = rng.standard_normal((6, 16, 2, 8), np.float32)
out = minipage.attention.paged_attention(
    q,
    k_cache,
    v_cache,
    block_tables=np.array([[4, 1], [3, 0]]),  # [num_seqs, max_blocks]
    context_lens=np.array([20, 7]),  # [num_seqs]; the new token is counted
    query_start_loc=np.array([0, 1, 2]),  # [num_seqs + 1]
    scale=8**-0.5,
)
print(out.shape)

# %% [markdown]
# ## The weights of your own run
#
# No kernel keeps the attention weights: three numbers a query are all it has. To look at them, they are made again from the q and K that the kernels of a run were given,
# and multiplied with V, to see that it is what the kernels returned. One array for a layer: `[num_heads, T, T]`.

# %%
from minipage.trace.recording.attention_weights import attention_weights

llm = LLM(block_size=4, num_blocks=32)
prompt = "ROMEO:\nO, she doth teach the torches to"
params = SamplingParams(max_tokens=8, temperature=0)
words, weights, difference = attention_weights(llm, prompt, params, layer=3)
words = [word.replace("\n", "⏎") for word in words]
print(weights.shape, f"largest difference from the kernel: {difference:.0e}")

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained", sharey=True)
for ax, head in zip(axes, (0, 1, 3)):
    ax.imshow(np.sqrt(weights[head]), cmap="Blues", vmin=0, vmax=1)
    ax.set_title(f"layer 3, head {head}", fontsize=9)
    ax.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
    ax.vlines(np.arange(3.5, len(words), 4), -0.5, len(words) - 0.5, color="C1", lw=0.4)
axes[0].set_yticks(range(len(words)), words, fontsize=6)
plt.show()

# %% [markdown]
# A row is a token, and shows where it looked back; the thin lines are the borders of blocks (the colour is the square root of the weight, so that small ones are seen). Nothing changes at a border: where K lies
# has no part in what it says. Try another prompt, layer or head: which heads look at the token just before, which at the line break?
#
# ## What vLLM does
#
# - Its first kernel (`paged_attention_v1`, in CUDA) is step 3: all scores of a token in fast shared memory, then a second
#   pass. `v2` splits long texts into parts of 512 tokens and joins them, as in the exercise above.
# - Today it usually calls FlashAttention or FlashInfer, which do step 5 for blocks of queries at once on tensor cores, and take
#   a block table as an argument, as ours does.
# - The block size is 16 by default, and hundreds of tokens for models that mix attention with Mamba layers, because all
#   layers share one pool of blocks of equal bytes (lesson 8 says what that does to prefix caching). nano-vllm has 256, because the version of FlashAttention that it calls asked for a
#   multiple of 256 in paged mode.
# - Kwon et al. measured their paged kernel 20 to 26 % slower than one over contiguous memory (figure 18a), and the whole
#   system two to four times as fast: the batch grows by more than the kernel loses.
#
# *Checked against vLLM 0.32.0: `vllm/v1/attention/backends/flash_attn.py` and `flashinfer.py`, which pass the block table on; `paged_attention_v1` and `v2` are in `vllm/_custom_ops.py` no more.*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 5.1    # gather; then 5.2 one query, 5.3 the ragged batch, 5.4 online
# python -m minipage generate --mine . "To be, or not"
# ```
#
# **Going further.** (a) The kernel reads K and V once for *each query head*. With grouped queries, could it read them once for
# the group? Where in `decode.py`? (b) Attention over a sliding window of the last 100 tokens: which two lines change?
#
# Next: **lesson 6**, who gets to compute how many tokens in a step. (Lesson 11 takes this kernel to a GPU.)
