# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Why paging
#
# *About 30 minutes. You need Python, and nothing else: no GPU, no earlier lesson.*
#
# The question that everybody asks first, on the day they put a language model on a GPU:
#
# > **How many requests fit at once?** (vLLM issues #8031, #14350, #22291), and right after it:
# > **when is memory for a request taken, and does a large `max_tokens` reserve it up front?** (#27017)
#
# At the end of this lesson you can answer both, with numbers that you measured yourself. You will
#
# - work out how many bytes one token of a conversation costs,
# - see the three ways in which memory was lost before 2023, and measure each,
# - watch paging do without nearly all of that loss,
# - find out why the obvious average gives a wrong answer, and which one is right,
# - and say what more requests at once are good for.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## What a conversation costs
#
# A GPT writes one token at a time. To write the next one, every layer looks back at every earlier token, through two
# vectors that it computed for that token and will need again at every later step: its *key* and its *value*, K and V.
# They are kept, and the place where they are kept is the **KV cache**. (Lesson 2 shows it from the inside.)
#
# What one token costs is simple arithmetic:
#
# ```
# bytes per token = 2 (K and V) × layers × width × bytes per number
# ```

# %%
from minipage import LLM, SamplingParams


def kv_bytes_per_token(layers, width, bytes_per_number):
    return 2 * layers * width * bytes_per_number


llm = LLM(block_size=4, num_blocks=16)  # the small model that comes with minipage
print(
    "the shipped model ",
    f"{kv_bytes_per_token(llm.config.n_layer, llm.config.n_embd, 4):>9,} bytes a token",
)
print("GPT-2 small       ", f"{kv_bytes_per_token(12, 768, 2):>9,}")
print("OPT-13B           ", f"{kv_bytes_per_token(40, 5120, 2):>9,}")
print("OPT-13B, 2,048 tokens", f"{kv_bytes_per_token(40, 5120, 2) * 2048 / 1e9:.1f} GB")

# %% [markdown]
# One conversation of 2,048 tokens with OPT-13B takes 1.7 GB. On a GPU with 40 GB, the weights of that model take 26 GB,
# and about 12 GB are left for K and V ([Kwon et al., 2023](https://arxiv.org/abs/2309.06180), table 1). So:
#
# > **Predict.** How many such conversations fit? And how many conversations of *real* length, if people on average send
# > 161 tokens and get 338 back (the means that the paper gives for ShareGPT)?

# %%
slots = 15_728  # tokens that fit into those 12 GB; a place for one token's K and V is called a slot
print("conversations of 2,048 tokens:", slots // 2048)
print("conversations of 161 + 338   :", slots // (161 + 338))

# %% [markdown]
# Seven, or 31. The whole lesson is about that gap, because before paging the answer was seven, whatever people
# sent. (And 31 is not the last word: it counts every answer as if it were finished. We come back to it.)
#
# ## Reserving: one piece, sized for the worst case
#
# K and V of a request used to be one array, and an array lies in one piece. It cannot grow where it lies, since
# something else lies behind it. So its room was reserved when the request came, as large as the request *might* become.
# `minipage.simulate.baselines` has such a memory. Here it is in small: 64 slots, where no text may be longer than 32.

# %%
from minipage.errors import OutOfBlocksError
from minipage.simulate.baselines import BuddyAllocator, ContiguousTable, slot_usage

allocator = BuddyAllocator(64)
# tokens of the prompt, and of the answer that it will get in the end
requests = {"A": (4, 10), "B": (3, 6)}
tables = {name: ContiguousTable(allocator, num_reserved=32) for name in requests}
for name, (prompt, answer) in requests.items():
    # half of the answer has been written so far
    tables[name].append(prompt + answer // 2)

usage = slot_usage(
    64, [(tables[name], prompt + answer) for name, (prompt, answer) in requests.items()]
)
print(usage)

try:
    ContiguousTable(allocator, num_reserved=32).append(5)
except OutOfBlocksError as error:
    print("\nA third request, of 5 tokens?", error)

# %% [markdown]
# 64 slots, 15 tokens in them, and the memory is full. Each slot is in one of four states, and the names will stay with
# us:
#
# | | |
# |---|---|
# | **token state** | holds the K and V of a token |
# | **reserved** | free now; its request will use it later, and until then nobody else can |
# | **internal waste** | belongs to a request that will never use it: too much was reserved |
# | **external waste** | belongs to nobody, but lies where nobody can use it |


# %% tags=["hide-input"]
def draw_memory(ax, tables, final_len, num_slots):
    """A row of slots: dark holds a token, light will hold one, hatched never will, white is nobody's."""
    for i, (name, table) in enumerate(tables.items()):
        start, color = table.start, f"C{i}"
        ends = [table.num_tokens, final_len[name], table.num_reserved]
        for begin, end, alpha, hatch in zip(
            [0, *ends], ends, [1, 0.4, 0.15], ["", "", "////"]
        ):
            style = dict(color=color, alpha=alpha, hatch=hatch, edgecolor=color)
            ax.barh(0, end - begin, left=start + begin, **style)
        ax.text(start + 0.5, 0, name, va="center", color="white", weight="bold")
    ax.barh(0, num_slots, color="none", edgecolor="gray")
    ax.set(xlim=(0, num_slots), yticks=[], xlabel="slot")
    ax.spines["left"].set_visible(False)


fig, ax = plt.subplots(figsize=(7.5, 1.1))
draw_memory(ax, tables, {name: sum(lengths) for name, lengths in requests.items()}, 64)
plt.show()

# %% [markdown]
# Dark: tokens. Light: will be used. Hatched: never will be.
#
# ### Could we not just guess better?
#
# Suppose we knew how long each answer gets, and reserved exactly that. Then there is no internal waste, and there is
# still trouble. Watch what happens when texts of different lengths come and go.

# %%
allocator = BuddyAllocator(64)
sizes = {"A": 15, "B": 14, "C": 16, "D": 13}
tables = {name: ContiguousTable(allocator, size) for name, size in sizes.items()}
for name, table in tables.items():
    table.append(sizes[name])

for name in "AC":  # two are done
    tables.pop(name).free()
print("free slots:", allocator.num_free)

try:
    ContiguousTable(allocator, 30).append(30)
except OutOfBlocksError as error:
    print("a text of 30?", error)

fig, ax = plt.subplots(figsize=(7.5, 1.1))
draw_memory(ax, tables, sizes, 64)
plt.show()

# %% [markdown]
# 32 slots are free, and a text of 30 finds no place: the free ones are not neighbours. That is **external
# fragmentation**, and even an oracle that knows every length cannot help it.
#
# > **Try.** Free `B` as well, or `A` and `B` instead of `A` and `C`. When does the text of 30 fit? (A buddy allocator
# > joins two halves only if they were one piece before: 0–15 with 16–31, never 16–31 with 32–47.)
#
# ### The same for a whole GPU
#
# Now with realistic traffic over those 15,728 slots. `minipage.simulate` draws requests of ShareGPT's mean lengths,
# starts each as soon as it finds a place, gives every running one a token per step, and counts slots all the while.
# *Max* reserves 2,048 slots for each, *Pow2* guesses the answer's length up to the next power of two, *Oracle* knows it.

# %%
from minipage.simulate import NUM_SLOTS, PAPER, draw_requests, memories, simulate

results = {
    name: simulate(memory, draw_requests(seed=1), NUM_SLOTS, num_requests=300)
    for name, memory in memories().items()
}
for name, result in results.items():
    print(
        f"{name:14}",
        "  ".join(
            f"{use} {share:4.1f} %" for use, share in result.shares._asdict().items()
        ),
    )

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), gridspec_kw={"width_ratios": [2, 1]})
names = list(results)
left = np.zeros(len(names))  # [4]
for use, color in zip(
    ["token_states", "reserved", "internal", "external"],
    ["#0072B2", "#56B4E9", "#E69F00", "#999999"],
):
    share = np.array([getattr(results[name].shares, use) for name in names])  # [4]
    axes[0].barh(names, share, left=left, color=color, label=use.replace("_", " "))
    left += share
axes[0].plot(
    [PAPER[name][0].token_states for name in names],
    names,
    "kD",
    markersize=5,
    label="token states, paper",
)
axes[0].invert_yaxis()
axes[0].set(xlabel="% of the KV memory", title="what slots are used for")
axes[0].legend(
    fontsize=8,
    loc="upper center",
    bbox_to_anchor=(0.5, -0.2),
    ncols=5,
    frameon=False,
    columnspacing=1,
)
axes[1].barh(names, [results[name].mean_batch for name in names], color="#009E73")
axes[1].plot([PAPER[name][1] for name in names], names, "kD", markersize=5)
axes[1].invert_yaxis()
axes[1].set(yticks=[], title="requests at once")
plt.show()

# %% [markdown]
# The diamonds are what the paper measured on real systems (figures 2 and 13a). *Max* holds tokens in a fifth of the
# memory. Even the oracle, which nobody can build, holds them in less than two fifths: a quarter is reserved for later,
# and more than a third lies in gaps. The last bar, *paged*, is what comes next: 34 requests at once, in the same memory.
#
# ## Paging: blocks, taken when they are needed
#
# Operating systems met the same problem in the 1960s, and found the answer that we copy: cut the memory into **blocks**
# of equal size, and let a text have *any* blocks, in any order, with a table that says which. A text of 30 tokens in
# blocks of 4 takes 8 blocks, wherever they are. Nothing is reserved: when the last block is full, the next token gets a
# new one.

# %%
from minipage.memory import BlockPool, BlockTable

pool = BlockPool(num_blocks=16, block_size=4)  # the same 64 slots
tables = {name: BlockTable(pool) for name in "ABCD"}
for name, size in sizes.items():
    tables[name].append(size)
print("full? free blocks:", pool.num_free)
for name in "AC":
    tables.pop(name).free()

newcomer = BlockTable(pool)
newcomer.append(30)
print("a text of 30 lies in blocks", newcomer.blocks)

# %% [markdown]
# All that is lost is the empty end of each text's last block: less than one block a text, and half a block on average.
# With 64 requests of 50 to 2,000 tokens, drawn so that short ones are more common (log-uniform), and 2,000 reserved for
# each where things lie in one piece:

# %%
from minipage.simulate import draw_lengths, worked_example

lengths = draw_lengths("log-uniform", 64, 50, 2000, seed=0)
example = worked_example(lengths, longest=2000, block_size=16)
print(example)
print(
    f"reserved: {example.num_tokens / example.contiguous:.0%} in use    paged: {example.num_tokens / example.paged:.0%}"
)

# %% [markdown]
# > **Predict.** How does the loss of paging depend on the block size? With blocks of 1 it must be zero. So why not
# > blocks of 1? (You will know after lesson 5.)

# %%
block_sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
lost = [
    worked_example(lengths, 2000, size).paged - example.num_tokens
    for size in block_sizes
]
expected = [len(lengths) * (size - 1) / 2 for size in block_sizes]

fig, ax = plt.subplots()
ax.plot(block_sizes, lost, "o-", label="measured")
ax.plot(block_sizes, expected, "--", color="gray", label="half a block for each text")
ax.set(xscale="log", xlabel="block size", ylabel="slots lost, of 64 texts")
ax.set_xticks(block_sizes, block_sizes)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Watch it happen
#
# So far nothing was computed. Now the real engine: the small GPT that comes with minipage, three requests, and a pool of
# 16 blocks. `record` watches it from outside, and a trace shows itself. Step through it with the slider or the arrow
# keys, and look at the two bars under the pool: what paging uses, and what reserving for the longest case would.

# %%
from minipage.trace import record

prompts = [
    "KING RICHARD III:\nMy kingdom for a",
    "JULIET:\nO Romeo,",
    "ROMEO:\nO, she doth teach",
]
with record(llm, "Three texts share one pool") as trace:
    for i, (prompt, max_tokens) in enumerate(zip(prompts, (14, 18, 12))):
        llm.add_request(
            prompt, SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=68 + i)
        )
        llm.step()
        llm.step()
    while llm.has_unfinished_requests():
        llm.step()
trace

# %% [markdown]
# Each frame of a trace is plain data, so whatever you want to know about the run can be plotted:

# %% tags=["hide-input"]
steps = [frame.step for frame in trace.steps]
fig, ax = plt.subplots()
ax.step(
    steps,
    [f.num_contiguous_blocks for f in trace.steps],
    where="mid",
    color="C1",
    label="reserving would take",
)
ax.step(
    steps, [f.num_used_blocks for f in trace.steps], where="mid", label="paging takes"
)
ax.fill_between(
    steps,
    [f.num_stored_tokens / f.block_size for f in trace.steps],
    step="mid",
    alpha=0.2,
    label="tokens",
)
ax.axhline(16, color="gray", linestyle=":")
ax.text(1, 16.2, "all there is", color="gray", fontsize=9)
ax.set(xlabel="step", ylabel="blocks", ylim=0)
ax.legend(frameon=False, loc="lower center", ncols=3)
plt.show()

# %% [markdown]
# ## What it is good for
#
# A GPU that writes one token for one text has to read all the weights for it. Writing one token for each of thirty texts
# reads the same weights once. So as long as the memory for K and V holds more texts, throughput grows almost for free:
# that is why Kwon et al. served 1.7 to 2.7 times as many requests as the oracle on ShareGPT (figure 12), with the same
# model on the same GPU.
#
# Even here, on a processor and with a small model, it is easy to see:

# %%
from time import perf_counter

big = LLM(num_blocks=200)
params = SamplingParams(max_tokens=8, seed=0)
batch_sizes = [1, 2, 4, 8, 16, 32]
speeds = []
for batch_size in batch_sizes:
    seconds = []
    for _ in range(2):
        start = perf_counter()
        big.generate(["To be, or not to be"] * batch_size, params)
        seconds.append(perf_counter() - start)
    speeds.append(8 * batch_size / min(seconds))

fig, ax = plt.subplots()
ax.plot(batch_sizes, speeds, "o-")
ax.plot(
    batch_sizes,
    np.array(batch_sizes) * speeds[0],
    "--",
    color="gray",
    label="if more cost nothing",
)
ax.set(xscale="log", xlabel="texts at once", ylabel="tokens per second")
ax.set_xticks(batch_sizes, batch_sizes)
ax.minorticks_off()
ax.set_ylim(0, 1.3 * max(speeds))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# (On your machine the curve depends on how many cores there are, and on what else is running.)
#
# ## So, how many requests fit?
#
# Divide: the memory for K and V, by the bytes of a token, by the tokens that a request holds *on average while it runs*.
# How many are these? A request starts with its prompt and ends with its prompt and its whole answer. On average it holds,
# it seems, the prompt and half of the answer:
#
# > **Predict.** With 161 + 338 / 2 tokens each, 48 requests fit into the 15,728 slots. The simulation above has counted how
# > many ran at once, `results["paged"].mean_batch`. Is it 48?

# %%
print(f"half of the answer:  {slots / (161 + 338 / 2):.1f}")
print(f"counted:             {results['paged'].mean_batch:.1f}")
print(f"slots in use:        {results['paged'].shares.token_states:.1f} %")

# %% [markdown]
# Fewer by a third, and it is not that memory was lost: 97 % of it holds tokens. It is the average that is wrong. An answer
# of 1,000 tokens runs for 1,000 steps, one of 10 tokens for 10 steps. So at any moment you meet the long one a hundred
# times as often, though just as many of both were sent. **Those who are running are not an average of those who come:
# long answers are seen in proportion to their length.** (Statisticians call it *length bias*, or the *inspection paradox*.
# You know it from waiting for a bus: you are more likely to arrive in a long gap between two buses than in a short one.)
#
# So let us count properly. A request with a prompt of P and an answer of O tokens runs for O steps, and in step number j it
# holds P + j tokens. Over its whole life, that is
#
# ```
# (P + 1) + (P + 2) + ... + (P + O)  =  O × P + O × (O + 1) / 2
# ```
#
# Add this up over all requests, and divide by all the steps that they ran. That is the mean number of tokens of somebody who
# is running. With E for the mean over all requests that come, and answers that do not depend on their prompts:
#
# ```
# held  =  E[O × P + O² / 2] / E[O]
#       =  E[P] + E[O²] / (2 × E[O])
#       =  prompt + answer / 2 × (1 + (spread / answer)²)
# ```
#
# (Half a token is left out.) The last line is the same in words: *answer* is the mean of the answers, *spread* their standard
# deviation, and E[O²] is answer² + spread². "Half of the answer" is right only if the spread is zero, so if all answers are
# equally long. In our traffic the spread is 296:

# %%
held = 161 + 338 / 2 * (1 + (296 / 338) ** 2)
print(f"{held:.0f} tokens on average while it runs, so {slots / held:.1f} requests fit")

# %% [markdown]
# Is that so in general? Here are five kinds of traffic. All have prompts of 161 tokens and answers of 338 *on average*;
# only the spread differs. On the left, for one of them, the answers of those who come and of those whom you see running:

# %%
from itertools import islice

from minipage.simulate import Request, gamma_parameters

kinds = {
    "all equal": lambda rng: 338,
    "uniform": lambda rng: rng.uniform(1, 675),
    "gamma, spread 296": lambda rng: rng.gamma(*gamma_parameters(338, 296)),
    "exponential": lambda rng: rng.exponential(338),
    "70 % have 100, others 893": lambda rng: 100 if rng.random() < 0.7 else 893,
}


def traffic(draw_answer):
    rng = np.random.default_rng(1)
    while True:
        yield Request(161, max(1, round(draw_answer(rng))))


counted, predicted = [], []
for draw_answer in kinds.values():
    memory = memories()["paged"]
    counted.append(simulate(memory, traffic(draw_answer), NUM_SLOTS, 1000).mean_batch)
    answers = np.array([a for _, a in islice(traffic(draw_answer), 1000)])  # [1000]
    held = 161 + (answers**2).mean() / (2 * answers.mean())
    predicted.append(NUM_SLOTS / held)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
come = np.array([a for _, a in islice(traffic(kinds["gamma, spread 296"]), 20_000)])
bins = np.arange(0, 2001, 50)
axes[0].hist(come, bins, density=True, alpha=0.6, label=f"come: mean {come.mean():.0f}")
seen = np.average(come, weights=come)
axes[0].hist(
    come,
    bins,
    density=True,
    weights=come,
    alpha=0.6,
    label=f"are running: mean {seen:.0f}",
)
axes[0].set(xlabel="tokens of the whole answer", yticks=[])
axes[0].legend(frameon=False)
axes[1].barh(list(kinds), counted, color="C2", label="counted")
axes[1].plot(predicted, list(kinds), "kD", markersize=5, label="slots / held")
axes[1].axvline(NUM_SLOTS / (161 + 338 / 2), color="gray", linestyle=":")
axes[1].text(48.2, 4.4, "half of\nthe answer", fontsize=8, color="gray")
axes[1].invert_yaxis()
axes[1].set(xlabel="requests at once", xlim=(0, 58))
fig.legend(
    *axes[1].get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=2
)
plt.show()

# %% [markdown]
# The same mean, and between 29 and 46 requests. What you have to know about your traffic is not only how long answers are,
# but how much they differ. (With an exponential distribution the spread equals the mean, and a running request
# holds *all* of a mean answer on average. Then the 31 of the beginning is right, by accident.)
#
# Where the division is only approximate:
#
# - It deals out all slots. A few per cent are always the ends of last blocks, or free blocks too few for the next in line: so the
#   bars end a little before the diamonds. Multiply by the share in use, and they agree.
# - It takes the answer's length to be independent of the prompt's. If long prompts get long answers, they are seen more
#   often, too, and fewer requests fit; `minipage.simulate.mean_held` takes both lengths of each request, and needs no
#   such assumption.
# - It counts the steps that write a token. A prompt that is computed in several chunks (lesson 6) holds blocks in those steps, too.
# - It is an average over a long time, with somebody always waiting. With less traffic fewer are inside, by Little's law
#   (lesson 13); the paper's 30.42 was counted at two requests a second, and with its own spread, which it does not tell.
#
# Note what is *not* in it: the longest text that the model can do, and `max_tokens`. **Neither reserves anything.** What
# `max_tokens` does is bound how long a text may get; a request that could never fit, even alone, is refused when it arrives.

# %%
from minipage.errors import InvalidRequestError

try:
    LLM(block_size=4, num_blocks=16).add_request(
        prompts[0], SamplingParams(max_tokens=200)
    )
except InvalidRequestError as error:
    print(error)

# %% [markdown]
# The price: since nothing is reserved, blocks can run out while everybody is in the middle of a sentence. Then somebody
# has to give way. That is lesson 9.
#
# ## What vLLM does
#
# - When it starts, vLLM runs the model once at its largest batch, sees how much GPU memory is left of
#   `gpu_memory_utilization` (0.92 by default in 2026, 0.9 before), and makes *all* of that into KV blocks. So a tiny model
#   takes 90 % of the GPU (#4723, #235): not because it needs to, but because more blocks mean more requests at once.
# - It logs the size of the cache in tokens, and a "maximum concurrency": that number / `max_model_len`, which is the
#   worst case, seven in our example. Real traffic is shorter, and more of it fits.
# - Blocks have 16 tokens by default on NVIDIA GPUs, and are taken as tokens come. `max_tokens` reserves nothing.
# - What minipage calls slot, block and block table has the same name there.
#
# *Checked against vLLM 0.32.0: `vllm/config/cache.py` (`gpu_memory_utilization`, the block size) and `vllm/v1/core/kv_cache_utils.py` (what it logs).*
#
# ## Your turn
#
# `exercise.py` beside this notebook has three functions to write: what reserving wastes (1.1), what paging wastes (1.2),
# and how many requests fit (1.3).
#
# ```bash
# python -m minipage learn init my-minipage     # once: copies all lessons and exercises into a folder of yours
# cd my-minipage
# python -m minipage learn check 1.1            # and then 1.2, 1.3; `learn hint 1.1` if you are stuck
# ```
#
# **Going further.** (a) `python -m minipage.simulate --block-size 256`: which column grows? (b) What do the shares look
# like for chats with a long system prompt, say 1,000 tokens in and 50 out? Change `draw_requests` and see.
# (c) `python -m minipage demo fragmentation` deals
# out one memory in four ways, side by side, in your terminal.
#
# Next: **lesson 2**, what K and V are, and why keeping them is worth it.
