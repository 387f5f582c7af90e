# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11. CUDA kernels, rung by rung
#
# *About 45 minutes. Comes after lesson 5. No GPU is needed: kernels run in a simulator. With a GPU, the last part measures.*
#
# > **"I can call the kernel on my own q, K and V now (vLLM #3586). Mine is right as well, and a hundred times slower. What does theirs do?"**
#
# Above all, reading memory in the right order. Attention for one new token does two operations for each number that it reads. A GPU can do hundreds in that time. So everything is about
# reading: how much, how often, by whom. You will
#
# - work out the least time that it can take, before any kernel is written,
# - read and run six kernels, each a rung of a ladder, in a simulator,
# - draw which bytes a warp touches, and count what is wasted,
# - and compare predictions with measurements on a real chip.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## The floor
#
# 32 texts of 4,096 tokens; 32 query heads on 8 heads of K and V, of 128 numbers in bfloat16. A step reads every K and V once. An NVIDIA H100 copies about
# 3,000 GB a second:

# %%
num_seqs, context, heads, kv_heads, head_size, width = 32, 4096, 32, 8, 128, 2
kv_bytes = 2 * num_seqs * context * kv_heads * head_size * width
# q·K and weights·V, a product and a sum each:
flops = 4 * num_seqs * context * heads * head_size
print(f"{kv_bytes / 1e6:.0f} MB: {1e6 * kv_bytes / 3.0e12:.0f} µs at 3.0 TB/s")
print(
    f"{flops / 1e9:.1f} GFLOP: {1e6 * flops / 60e12:.0f} µs on ordinary cores at 60 TFLOP/s, and {1e6 * flops / 990e12:.1f} µs on tensor cores at 990"
)

# %% tags=["hide-input"]
intensity = np.logspace(-1, 3.5, 200)  # [200] operations per byte
fig, ax = plt.subplots(figsize=(7.5, 3))
for peak, name, color in (
    (60e12, "ordinary cores", "C0"),
    (990e12, "tensor cores", "C1"),
):
    ax.plot(
        intensity, np.minimum(peak, 3.0e12 * intensity) / 1e12, color=color, label=name
    )
for group, name in ((1, "decode,\n1 head a KV head"), (4, "4 heads"), (8, "8")):
    ax.axvline(2 * group / 2, color="gray", linestyle=":", linewidth=0.8)
    ax.text(2 * group / 2, 0.25, name, rotation=90, fontsize=8, ha="right")
ax.axvline(1000, color="gray", linestyle=":", linewidth=0.8)
ax.text(1000, 0.25, "a long prompt", rotation=90, fontsize=8, ha="right")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="operations for each byte that is read",
    ylabel="TFLOP/s that are possible",
)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# This picture is called a *roofline*. On its slope, memory decides; under its flat roof, arithmetic. Decoding is far down the slope: its least time is **bytes / bandwidth**, 179 µs here, and every
# kernel is judged by how near it comes. (Prompts are at the other end: each K is used for many queries.)
#
# ## A GPU on one screen
#
# - A **thread** runs the kernel once, with its own numbers in registers.
# - 32 threads are a **warp**. They do the same instruction at the same time, on different numbers. They can read each other's registers (*shuffle*).
# - Up to 32 warps are a **block** of threads (not of tokens!). They share a small fast memory, and can wait for each other (`syncthreads`).
# - Blocks are spread over the chip's 132 multiprocessors. They cannot wait for each other.
# - Memory comes in **sectors** of 32 bytes. A warp's load of 32 neighbouring 2-byte numbers takes two sectors; of 32 scattered ones, 32.
#
# ## Six kernels, run here
#
# `minipage/ladder/` has the same kernel six times; each file opens with what it changes and why. In the simulator a CUDA thread is a small Python task, and memory that nobody wrote is
# poison. It has to be switched on before numba is imported, so it runs in a process of its own:

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("greenlet") is None:  # the simulator's threads
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "greenlet"], check=True
    )


def simulate(code):
    """Run a program with numba's CUDA simulator, and show what it prints."""
    env = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    print(done.stdout + done.stderr[-2000:])
    done.check_returncode()


simulate("""
import numpy as np
from minipage.attention import reference
from minipage.ladder import RUNGS, rung, simulator

simulator.install()
rng = np.random.default_rng(0)
q = rng.standard_normal((2, 4, 64), np.float32)  # [num_seqs, num_heads, head_size]
k, v = (rng.standard_normal((8, 16, 2, 64), np.float32) for _ in "kv")  # [num_blocks, block_size, num_kv_heads, head_size]
q16, k16, v16 = (x.astype(np.float16) for x in (q, k, v))
tables = np.array([[5, 2, 7], [1, 0, 0]], np.int32)  # [num_seqs, max_blocks]
lens = np.array([40, 7], np.int32)  # [num_seqs]
exact = reference.paged_attention(*(x.astype(np.float32) for x in (q16, k16, v16)), tables, lens, np.array([0, 1, 2]), 0.125)
for name in RUNGS:
    out = np.zeros_like(q16)  # [num_seqs, num_heads, head_size]
    rung(name)(q16, k16, v16, tables, lens, 0.125, out)
    print(f"rung {name:9} largest difference from the reference: {abs(out - exact).max():.1e}")
""")

# %% [markdown]
# All six are right, up to the 11 bits of a float16. But a right answer is no proof here: the threads of a block run at the same time, and two that use one place of shared memory without a barrier in
# between, one of them writing, do so in an order that is an accident. That is a *race*. The simulator looks for it, in whatever order it runs them. In rung 3 each
# thread leaves its results in shared memory, waits, and then joins those of all. Without the wait, the first two of 128 threads are enough:

# %%
simulate("""
import inspect
import numpy as np
from minipage.ladder import rung3_block, simulator

simulator.install()
source = inspect.getsource(rung3_block).replace("cuda.syncthreads()", "pass")
exec(compile(source, "rung3_block.py", "exec"))
q = np.ones((1, 1, 64), np.float32)  # [num_seqs, num_heads, head_size]
k = np.ones((1, 16, 1, 64), np.float32)  # [num_blocks, block_size, num_kv_heads, head_size]
try:
    decode(q, k, k, np.zeros((1, 1), np.int32), np.full(1, 16, np.int32), 0.125, np.zeros_like(q))
except RuntimeError as error:
    print(error)
""")

# %% [markdown]
# (On a GPU, NVIDIA's `compute-sanitizer --tool racecheck` looks for the same. Exercise 11.4 is how it is done.)
#
# Now for what sets the six apart: of each, the loop over the context, as its file has it. Pale lines are not in the rung
# before, and bright ones made it faster.

# %% tags=["hide-input"]
from minipage.ladder.hearts import heart, place_on_the_roofline

# µs a call on an H100: docs/gpu.md has the measurements, and what was predicted
measured = {"1 thread": 68_700, "2 warp": 6400, "3 block": 2170}
measured |= {"4 split": 1950, "5 wide": 221, "6 tensor": 186}


def show_place(name):
    """Where a rung lies under the roofline, with those before it."""
    _, ax = plt.subplots(figsize=(7.5, 2.2))
    x = np.logspace(-0.5, 2, 50)  # [50] operations per byte
    ax.plot(x, np.minimum(60, 3.0 * x), color="C0", label="ordinary cores")
    ax.plot(x, np.minimum(990, 3.0 * x), color="C1", label="tensor cores")
    for each, time in measured.items():
        at, speed = place_on_the_roofline(time, kv_bytes, heads // kv_heads)
        ax.plot(at, speed, "o", color="C4" if each == name else "lightgray")
        if each == name:
            share = speed / (3.0 * at)
            ax.annotate(
                f"  rung {name}: {time:,} µs, {share:.0%} of the roof",
                (at, speed),
                va="top",
            )
            break
    ax.set(xscale="log", yscale="log", ylim=(0.01, 1500), ylabel="TFLOP/s")
    ax.set(xlabel="operations for each byte that has to be read")
    ax.legend(frameon=False, fontsize=8)
    plt.show()


# %%
heart("1 thread")

# %%
show_place("1 thread")

# %% [markdown]
# ## Rung 1 to 2: who stands where
#
# Rung 1 is the obvious one: a thread for each query head, which walks along the table. Neighbouring threads are neighbouring *heads*, so at any moment a warp reads one number from each of many rows.
# In rung 2, a warp works on *one* row, and its 32 lanes stand side by side.
#
# > **Predict.** 32 threads read 2 bytes each. How many sectors of 32 bytes are fetched in rung 1, if neighbours are 256 bytes apart? How many in rung 2? Which share of the bytes is wanted?


# %%
def sectors(addresses):
    return len(set(np.asarray(addresses) // 32))


lanes = np.arange(32)  # [32]
# bytes from the first
patterns = {"rung 1": lanes * 128 * 2, "rung 2": lanes * 2, "rung 5": lanes * 16}
loaded = {"rung 1": 2, "rung 2": 2, "rung 5": 16}
fig, axes = plt.subplots(3, 1, figsize=(8.5, 3), layout="constrained")
for ax, (name, addresses) in zip(axes, patterns.items()):
    span = np.zeros(512 if name != "rung 1" else 1600)
    for address in addresses[addresses < len(span)]:
        span[address // 32 * 32 : address // 32 * 32 + 32] = 0.3  # fetched
    for address in addresses[addresses < len(span)]:
        span[address : address + loaded[name]] = 1  # wanted
    ax.imshow(
        span[None],
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1.1,
        extent=(0, len(span), 0, 1),
    )
    used = 32 * loaded[name] / (32 * sectors(addresses))
    ax.set(yticks=[], ylabel=name)
    ax.set_title(
        f"{sectors(addresses)} sectors for one load of a warp, {used:.0%} of their bytes wanted",
        fontsize=9,
    )
axes[-1].set(xlabel="byte   (dark: wanted, light: fetched with it)")
plt.show()

# %% [markdown]
# (The rest of rung 1's sectors is wanted soon, but by then others may have thrown it out of the cache.) In rung 2 every lane has a part of the score, and they have to be added. No memory is needed for that: in five
# shuffles, each lane adds the register of the lane that is 16, 8, 4, 2, 1 places away.

# %%
values = np.arange(8)  # [8] lanes, to keep it small
for distance in (4, 2, 1):
    values = values + values[np.arange(8) ^ distance]
    print(f"after adding the lane {distance} away:", values.tolist())

# %% [markdown]
# After log₂ 32 = 5 steps every lane knows the sum. `lane ^ distance` is a *butterfly*: everybody gives and everybody gets.

# %%
heart("2 warp")

# %%
show_place("2 warp")

# %% [markdown]
# ## Rung 3: the online softmax again
#
# Rungs 1 and 2 go along the context twice, first for the highest score. You know from lesson 5 how to do it in one pass. Rung 3 does, and lets four warps share a context: each keeps its
# `(highest, total, acc)`, and at the end they are joined: with the `join` that you wrote there. The same loop again; K and V of a token are now read one after the other, and the `range`
# says that each warp takes every fourth token:

# %%
heart("3 block")

# %%
show_place("3 block")

# %% [markdown]
# ## Rung 4: enough work for the whole chip
#
# A block of threads for each head of each text: with 32 texts and 32 heads, 1,024 blocks for 132 multiprocessors. With *one* long text?

# %%
multiprocessors = 132
fig, ax = plt.subplots(figsize=(7.5, 2.6))
contexts = np.array([512, 2048, 8192, 32768, 131072])  # [5]
ax.plot(contexts, np.full(5, 32), "o-", label="rung 3: a block for each of 32 heads")
ax.plot(
    contexts,
    32 * np.ceil(contexts / 512),
    "s-",
    label="rung 4: one for every 512 tokens, too",
)
ax.axhline(multiprocessors, color="gray", linestyle=":")
ax.text(
    512, multiprocessors * 1.15, "multiprocessors of an H100", fontsize=9, color="gray"
)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="tokens of the only text",
    ylabel="blocks of threads",
)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Since blocks cannot wait for each other, each leaves its part in memory, with the logarithm of its total, and a second small kernel joins them ("flash-decoding"). It costs a few microseconds and makes all the difference for long texts; for large batches it
# is not needed. (In rungs 5 and 6 the block that comes last joins, without a second kernel.) What changes is where a block starts and stops:

# %%
heart("4 split")

# %%
show_place("4 split")

# %% [markdown]
# ## Rungs 5 and 6: fewer instructions
#
# Rung 5 loads 16 bytes at a time instead of 2, and computes all query heads that share K and V from the same registers: with 4 of them, a quarter of the reading. Rung 6 lets tensor cores do the products, 2,048 with one instruction.
# By then arithmetic hides behind reading, and nothing but memory is left. Both are the engine's own kernels, and nearly every line is another than before; only the bright ones made them faster.
#
# To read them: words in capitals are constants of the kernel, known when it is compiled. Here `QUANTIZED`, `PREFILL` and `WINDOW` are false, so what is behind them is not there. `r` counts rows of q, the query heads that
# share K and V; `u` the tokens whose loads are under way at once, four. `multiply`, which the loop calls, is shown with it. (The ladder's rung 5 multiplies two numbers with one instruction; the engine's, as here, one.)
#
# In rung 5, four loads of K and four of V are on their way before any is used, and one `x` of K meets all rows of q:

# %%
heart("5 wide")

# %%
show_place("5 wide")

# %% [markdown]
# What is left there is arithmetic: three loops around `score[u, r] +=`, and four around `acc[r, ...] +=`. In rung 6 both are gone. The products of 16 tokens with 8 rows of q are calls of `multiply`, one instruction each, and so
# are those with V. A tensor core wants its numbers cut in a way of its own. A warp that loaded them like that would touch 64 bytes of each row of K, half a line of memory. So whole rows are asked for, some steps
# ahead, and come into memory that the warp's lanes share; from there each takes its pieces. (`m` counts the times 16 tokens of a step, `n` the two times 8 of these, `half` the times 8 rows of q; `pack` rounds weights
# to the two bytes that tensor cores take; `stage` is where in shared memory a step's K and V are. `weigh`, which is not shown, is rung 5's online softmax.)

# %%
heart("6 tensor")

# %%
show_place("6 tensor")

# %% [markdown]
# So these lines made rung 6 faster than rung 5:
#
# | In rung 5 | In rung 6 | What is gained |
# |---|---|---|
# | `score[u, r] += q_kept[...] * x`, in loops over numbers and rows | `multiply(score, m * HALVES + half, a, ...)` | q·K on tensor cores |
# | `acc[r, ...] += score[u, r] * x`, in loops over tokens, numbers and rows | `multiply(acc, t, a, ...)` | weights·V on tensor cores |
# | `load(k, u, ...)` and `load(v, u, ...)`: a lane's own pieces, into registers | `request(...)`, `wait_for_oldest()`, `load_k(...)`, `load_v(...)`: whole rows, through shared memory | tensor cores get their pieces, and memory is still read in whole lines |
#
# How much is due to which? `docs/gpu.md` has the versions on the way, measured on an H100 before contexts were cut into equal shares (which made both rungs faster): rung 5, 262 µs; the products on tensor cores, with loads
# of the pieces into registers, 223; the pieces asked for ahead, 236; whole rows asked for ahead, through shared memory, 197. So tensor cores gained 39 µs and whole lines 26, and asking ahead was worth nothing by itself,
# though it had been expected to be.
#
# All else (the highest score, `shrink`, `weight`, `total`) is rung 5's online softmax, laid out as the tensor cores want it. How many instructions are the products? For 16 tokens and a group of
# 4 query heads, of 128 numbers:

# %%
rows, tokens = 4, 16
# twice: q·K and weights·V
products = 2 * rows * tokens * head_size
# a warp's 32 lanes do one each
print(f"rung 5: {products // 32} instructions of a warp")
# 8 rows, of which 4 are empty; 16 tokens (or numbers of V); 16 at a time
print(f"rung 6: {products * 8 // rows // 2048} instructions of a warp")

# %% [markdown]
# ## Prompts: under the roof
#
# A prompt's queries see the same K and V, one token more each. So a block brings K and V once for many rows of q, and operations decide, not bytes. Where one warp multiplies 16 tokens with 16 rows by `mma`, each piece
# of K has to come from shared memory into its lanes' registers first: of 470 instructions for 16 tokens, 32 were products. GPUs of the Hopper kind (H100, H200) have `wgmma`: four warps, a *warpgroup*, name two places in shared memory,
# and the tensor cores fetch both matrices themselves, 64 rows and 64 tokens. How many instructions of a warp, for 64 rows of q, 64 tokens and heads of 128?

# %%
rows, tokens = 64, 64
# twice: q·K and weights·V
products = 2 * rows * tokens * head_size
print(
    f"mma: {products // (16 * 8 * 16)} in all, by 4 warps {products // (16 * 8 * 16) // 4} each"
)
# q·K: 64 tokens, 16 numbers at a time; weights·V: 128 numbers, 16 tokens at a time
print(f"wgmma: {head_size // 16 + tokens // 16} for each of the 4 warps")

# %% [markdown]
# The engine's kernel for prompts on these GPUs, `minipage/attention/cuda/warpgroups.py`, is otherwise rung 6 as you know it: request, wait, scores, `weigh`, sums. On an H200 it reaches 421 to 510 TFLOP/s with prompts, in heads of
# 128, where `mma` reached 138 to 178; large products of matrices reach 760 to 790. (`python -m benchmarks.gpu_prompts`; `docs/gpu.md` has every step on the way, and what was predicted.)
#
# One thing has to be right before tensor cores can read shared memory fast. It has 32 **banks**, each 4 bytes wide; what is asked of one bank at the same time comes one after the other. A row of 128 bytes goes through all banks once.
# So the first 16 bytes of eight rows are all in banks 0 to 3, and to read them takes eight turns. The way out is a **swizzle**: each row has its pieces in another order.
#
# ```text
# banks     0-3  4-7  8-11 12-15 16-19 20-23 24-27 28-31
# row 0      0    1    2     3     4     5     6     7
# row 1      1    0    3     2     5     4     7     6       the numbers of the row's pieces
# row 2      2    3    0     1     6     7     4     5
# ...
# ```
#
# In eight rows every column has each piece once. So piece 3 of all eight rows, for example, comes in one turn. Exercise 11.3 is to write such an order.
#
# What bounds prompts now? In each cycle, a multiprocessor's tensor cores can do 2,048 multiplications with their additions (NVIDIA's white paper on the H100), and shared memory can give 128 bytes. One `wgmma` of q·K takes 16 numbers of
# each row:

# %%
for tokens in 64, 128:
    cycles = 64 * tokens * 16 // 2048
    bytes_read = (64 + tokens) * 16 * 2
    print(f"{tokens} tokens: tensor cores {cycles} cycles, memory {bytes_read // 128}")

# %% [markdown]
# With 64 tokens both are equally busy, and K and V also have to come through shared memory. Why not always 128? Scores of 64 rows and 128 tokens are 64 registers of each lane; sums, with heads of 128, are 64 more. With two blocks on a
# multiprocessor a thread has 128 registers, and none would be left for the rest. With heads of 64 sums are 32, so there the kernel takes 128 tokens at once.
#
# K and V of one byte a number are no matrices for these tensor cores, if q is bfloat16. So the threads widen them first, in shared memory (`minipage/attention/cuda/widening.py`).
#
# ## Into the kernel
#
# The demo has a scenario that steps through one query, block by block. The same three numbers on all rungs from 3 on:

# %%
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import find_scenario

scenario = find_scenario("kernel")
demo = Demo(make_engine(scenario, {}), scenario)
list(demo.frames())
demo.trace

# %% [markdown]
# ## What was predicted, and what came of it
#
# Before any rung had run on a GPU, each got a prediction, from counting as above. They are kept in `docs/gpu.md`, together with what was measured:

# %%
# µs a call
predicted = {"1 thread": 30_000, "2 warp": 3400, "3 block": 600}
predicted |= {"4 split": 600, "5 wide": 200, "6 tensor": 188}
fig, ax = plt.subplots(figsize=(7.5, 3))
x = np.arange(len(predicted))
ax.bar(x - 0.2, predicted.values(), 0.4, color="lightgray", label="predicted")
ax.bar(x + 0.2, measured.values(), 0.4, label="measured on an H100")
ax.axhline(179, color="C1", linestyle="--", label="the floor: bytes / bandwidth")
ax.set(yscale="log", ylabel="µs a call", ylim=(100, None))
ax.set_xticks(x, list(predicted))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The first three were thought too well of: a load waits for the one before it, and threads do not hide that wait as they were expected to. The last one
# reaches 96 % of what copying reaches. Prediction first, measurement second: the habit is worth more than any trick here. Where the two differ, there is something that you do not know yet.
#
# ## With a GPU
#
# If this machine has one, here is the ladder on it; otherwise a sentence says so. (On Colab: *Runtime, Change runtime type, GPU*, and `pip install "minipage[cuda12]"`.)

# %%
MEASURE = """
import numpy as np
try:
    from numba import cuda
    cuda.current_context()
except Exception as error:
    raise SystemExit("No GPU here: " + type(error).__name__)
from minipage.ladder import RUNGS, rung

rng = np.random.default_rng(0)
seqs, context, heads, kv, d, size = 32, 2048, 32, 8, 128, 16
blocks = seqs * context // size
q = cuda.to_device(rng.standard_normal((seqs, heads, d), np.float32).astype(np.float16))
k, v = (cuda.to_device(rng.standard_normal((blocks, size, kv, d), np.float32).astype(np.float16)) for _ in "kv")
tables = cuda.to_device(rng.permutation(blocks).reshape(seqs, -1).astype(np.int32))
lens, out = cuda.to_device(np.full(seqs, context, np.int32)), cuda.device_array((seqs, heads, d), np.float16)
for name in RUNGS:
    times = []
    for _ in range(12):
        start, end = cuda.event(), cuda.event()
        start.record()
        rung(name)(q, k, v, tables, lens, d**-0.5, out)
        end.record()
        end.synchronize()
        times.append(1000 * cuda.event_elapsed_time(start, end))
    print(f"rung {name:9} {np.median(times[2:]):9.0f} us, {2 * k.nbytes / np.median(times[2:]) / 1e6:6.3f} TB/s")
"""
done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
print(done.stdout or done.stderr.strip().splitlines()[-1])

# %% [markdown]
# ## What vLLM does
#
# - Its first kernels, `paged_attention_v1` and `v2`, are about rungs 3 and 4, with wide loads: a warp reads a token's K in pieces of 16 bytes, from a cache whose layout was made for that.
# - FlashAttention 2/3 and FlashInfer, which it usually calls, are rung 6 with many refinements: loads that run ahead of the computing (`cp.async`, TMA), several queries at a time, schedules for ragged batches.
# - Writing K and V into their slots is a kernel of its own (`reshape_and_cache`), as is copying blocks: the three kernels of the paper's section 5.1.
# - All of a decode step is captured in a *CUDA graph*, since launching dozens of small kernels from Python would take longer than running them.
#
# *Checked against vLLM 0.32.0: `vllm/_custom_ops.py` (`reshape_and_cache`; `paged_attention_v1` and `v2` are there no more), `vllm/v1/attention/backends/flash_attn.py` and `vllm/v1/cudagraph_dispatcher.py`.*
#
# ## Your turn
#
# Two kernels, in the simulator, and two functions in plain Python. In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 11.1    # copy blocks; then 11.2 paged attention, 11.3 a swizzle of shared memory, 11.4 races
# ```
#
# **Going further.** (a) How many bytes does rung 2 read, from memory at the worst, and from caches at the best? (b) What is the floor for int8 blocks? (c) Read `minipage/attention/cuda/tensor_cores.py` with rung 6 beside it, then `warpgroups.py`.
#
# Next: **lesson 12**, two processes.
