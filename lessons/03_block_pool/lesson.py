# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. The block pool
#
# *About 25 minutes. Lesson 1 helps; nothing else is needed.*
#
# > **"I loaded a tiny model, and vLLM takes 90 % of my GPU. What is it doing with all that memory?"** (vLLM #4723, #235)
#
# It made blocks: thousands of them, before the first request came. From then on nobody allocates memory any more. All that
# is left to do is to say *whose* each block is, and that is the smallest part of the engine: a free queue, and a number
# for each block. It is also where a small mistake does the most harm. You will
#
# - use a block pool and predict what it does,
# - see why the free blocks form a *queue*, and measure what a stack would cost,
# - break reference counting the way real projects did, and watch the engine run dry.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Numbers, not memory
#
# The pool never touches K or V. The arrays exist already; the pool deals in block *numbers*, like a cloakroom that deals
# in tags.

# %%
from minipage.memory import BlockPool

pool = BlockPool(num_blocks=6, block_size=4)
a = pool.allocate()
b, c = pool.allocate_many(2)
print("handed out:", a, b, c, "  free queue:", pool.free_queue)

# %% [markdown]
# > **Predict.** Now block 1 is freed, then block 0, then one block is allocated. Which one? And what is in the queue?

# %%
pool.free(1)
pool.free(0)
print("allocated:", pool.allocate(), "  free queue:", pool.free_queue)

# %% [markdown]
# Not 0, not 1, but 3. Blocks leave at the front of the queue and come back at its end, so the block that has been free
# for the *longest* time goes first.
#
# Every block has a **reference count**: how many block tables hold it. `allocate` sets it to one, `share` adds one, `free`
# takes one away; the block goes back to the queue with the last.

# %%
pool.share(2)
print("block 2 has", pool.ref_count(2), "references")
pool.free(2)
print("after one free:", pool.ref_count(2), "  free queue:", pool.free_queue)
pool.free(2)
print("after another: ", pool.ref_count(2), "  free queue:", pool.free_queue)

# %% [markdown]
# What would a third `free` do? In many programs: put the block into the queue a second time. Later it would be handed to
# two requests, and each would overwrite what the other wrote: both go on talking, fluently, about things that nobody
# asked. So it has to be an error, at the very place where it happens:

# %%
from minipage.errors import MinipageError

for mistake in (lambda: pool.free(2), lambda: pool.share(2), lambda: pool.free(99)):
    try:
        mistake()
    except MinipageError as error:
        print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## All or nothing
#
# `allocate_many(6)` with five blocks free gives nobody anything:

# %%
print("free:", pool.num_free)
try:
    pool.allocate_many(6)
except MinipageError as error:
    print(f"{type(error).__name__}: {error}")
print("free:", pool.num_free)

# %% [markdown]
# Why not take what is there, and wait for the rest? Because two requests may do the same, each hold half of the pool, and
# wait for each other for ever. And because whoever catches the error would have to know how much was taken, to give it
# back. *A failed operation changes nothing* is one of the rules that hold everywhere in this engine, and that
# `check_integrity` and the tests check.
#
# ## A film of the pool
#
# Here is a pool of 12 blocks under random traffic: texts come, take two to four blocks, and go. Time runs downwards.

# %% tags=["hide-input"]
rng = np.random.default_rng(7)
pool, texts, film = BlockPool(12), [], []
for _ in range(26):
    wanted = int(rng.integers(2, 5))
    if not texts or (pool.num_free >= wanted and rng.random() < 0.65):
        texts.append((len(film), pool.allocate_many(wanted)))
    else:
        for block in texts.pop(int(rng.integers(len(texts))))[1]:
            pool.free(block)
    owner = {block: name for name, blocks in texts for block in blocks}
    film.append([owner.get(block, -1) for block in range(12)])

film = np.array(film)  # [time, num_blocks]
names = {name: i for i, name in enumerate(dict.fromkeys(film[film >= 0].tolist()))}
image = np.ones((*film.shape, 3))  # [time, num_blocks, rgb]
for name, i in names.items():
    image[film == name] = plt.cm.tab20(i % 20)[:3]
fig, ax = plt.subplots(figsize=(5, 4.2))
ax.imshow(image, aspect="auto")
ax.set(
    xlabel="block",
    ylabel="time",
    xticks=range(12),
    title="a colour for each text; white is free",
)
ax.set_xticks(np.arange(13) - 0.5, minor=True)
ax.grid(which="minor", axis="x", color="lightgray")
plt.show()

# %% [markdown]
# Look at one column. It belongs to one text, is white for a while, and belongs to another. Nobody's blocks need to be
# neighbours, and there is never a gap that is too small.
#
# ## Why a queue
#
# A stack would do as well, it seems: give out the block that was freed last. Its data are even still warm in the
# processor's cache. But a free block still holds the K and V of its last owner, and in lesson 8 we will want them back:
# if the same prompt comes again, there they are. So how long does a block keep its contents once it is free?


# %%
class StackPool(BlockPool):
    """Hands out the block that was freed last."""

    def allocate_many(self, count):
        for block in list(self._free_queue)[::-1][:count][::-1]:
            self._free_queue.move_to_end(block, last=False)
        return super().allocate_many(count)


def survival(pool, steps=3000):
    """For each block that is handed out again: how many steps its old contents were there to be found."""
    rng = np.random.default_rng(0)
    texts, freed_at, times = [], {}, []
    for step in range(steps):
        if len(texts) == 8:  # most of the pool stays free
            for block in texts.pop(int(rng.integers(8))):
                pool.free(block)
                freed_at[block] = step
        blocks = pool.allocate_many(int(rng.integers(2, 5)))
        times += [step - freed_at.pop(block) for block in blocks if block in freed_at]
        texts.append(blocks)
    return times


fig, ax = plt.subplots()
for name, pool in (("stack", StackPool(100)), ("queue", BlockPool(100))):
    times = survival(pool)
    ax.hist(
        times,
        bins=np.arange(0, 40),
        alpha=0.8,
        label=f"{name}: {np.mean(times):.1f} steps",
    )
ax.set(xlabel="steps from being freed to being overwritten", ylabel="blocks")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The stack overwrites at once what was freed last, which is exactly what is most likely to be wanted again. The queue
# overwrites what nobody has wanted for the longest time: it is a *least recently used* cache, and costs nothing extra.
#
# ## However large the pool
#
# A GPU with 80 GB has tens of thousands of blocks, and each step allocates for hundreds of texts. Finding a free block
# must not mean looking for one. Compare the pool with the first thing that comes to mind, a list of flags:

# %%
from time import perf_counter


class FlagPool:
    def __init__(self, num_blocks):
        self.is_free = [True] * num_blocks

    def allocate(self):
        block = self.is_free.index(True)
        self.is_free[block] = False
        return block

    def free(self, block):
        self.is_free[block] = True


def microseconds(pool, num_used):
    for _ in range(num_used):
        last = pool.allocate()
    times = []
    for _ in range(300):
        start = perf_counter()
        pool.free(last)
        last = pool.allocate()
        times.append(perf_counter() - start)
    return 1e6 * np.median(times)


sizes = [100, 300, 1000, 3000, 10_000]
fig, ax = plt.subplots()
ax.plot(
    sizes,
    [microseconds(FlagPool(n), n * 9 // 10) for n in sizes],
    "o-",
    color="C1",
    label="a list of flags",
)
ax.plot(
    sizes,
    [microseconds(BlockPool(n), n * 9 // 10) for n in sizes],
    "o-",
    label="BlockPool",
)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="blocks in the pool, 90 % in use",
    ylabel="µs: free one, allocate one",
)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The queue is an `OrderedDict`, whose keys are the free blocks in order: both ends, and (needed in lesson 8) the middle,
# in constant time. Read `minipage/memory/block_pool.py` now; it is about 140 lines, and you know all of it except `revive`
# and what else lesson 8 needs (`eviction`, `is_known`, `on_evict`).
#
# ## In the engine
#
# Two texts, a pool of ten blocks. Follow the free queue at the bottom: which block is next, and in what order blocks come
# back when a text is done. (The last block of a text first. Why? Lesson 8 again: the *beginning* of a text is what others
# may share, so it should survive longest.)

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

llm = LLM(block_size=4, num_blocks=10)
with record(llm, "Who has which block") as trace:
    llm.generate(
        ["ROMEO:\nIt is my", "First Citizen:\nSpeak"],
        [SamplingParams(max_tokens=n, temperature=0) for n in (6, 12)],
    )
trace

# %% [markdown]
# ## A leak
#
# Now break it. In MinivLLM (issue #84) blocks that nobody else shared went from one reference to *minus* one, and never
# came back. Here is the same mistake: a pool that asks for exactly zero, after taking off too much.


# %%
class LeakyPool(BlockPool):
    def free(self, block):
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == -1:  # should be 0
            self._free_queue[block] = None


def free_after_each_request(pool, num_requests=8):
    llm = LLM(block_pool=pool)
    num_free = [pool.num_free]
    for i in range(num_requests):
        llm.add_request(f"Speak {i}", SamplingParams(max_tokens=30, seed=i))
        for _ in range(100):  # three times what it takes
            if llm.has_unfinished_requests():
                llm.step()
        if llm.has_unfinished_requests():
            print(
                f"request {i}: still not done after 100 steps, {pool.num_free} blocks free"
            )
            break
        num_free.append(pool.num_free)
    return num_free


fig, ax = plt.subplots()
for name, pool in (("BlockPool", BlockPool(20, 4)), ("LeakyPool", LeakyPool(20, 4))):
    ax.plot(free_after_each_request(pool), "o-", label=name)
ax.set(xlabel="requests done", ylabel="free blocks, with nobody there")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# At first, requests are served as if nothing were wrong. Then one comes, and nothing is ever served again: the engine waits
# for blocks that nobody has. (We stopped it after 100 steps.) That is what a leak looks like in production, too: the
# symptom comes hours after the cause. `check_integrity` names the cause:

# %%
pool = LeakyPool(20, 4)
llm = LLM(block_pool=pool)
llm.generate("Speak", SamplingParams(max_tokens=4))
try:
    llm.scheduler.check_integrity()
except MinipageError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# The rule that it checks is short enough to remember, and true at any time between two operations:
#
# > A block's reference count is the number of block-table entries that name it, and the free blocks are those where that
# > number is zero.
#
# ## What vLLM does
#
# - `vllm/v1/core/block_pool.py` has a `BlockPool` with the same job. Its free queue is a doubly linked list that runs
#   through the block objects themselves, so that allocating creates no Python object at all.
# - Block 0 is never handed out. It is the *null block*, a placeholder for table entries whose contents are not needed, as
#   behind a sliding window.
# - Freed blocks go to the end of the queue, and a text's last block goes first: the same order as here. Since May 2026
#   (#42656) that holds for blocks that the prefix cache can find; a last block that is only part full goes to the *front*,
#   because nobody will look for it. With prefix caching off, the pool there is a stack.
# - The arrays are made once, when the server starts, out of `gpu_memory_utilization` of the GPU. That is the answer to the
#   question above: the memory is not *used*, it is *divided*.
#
# *Checked against vLLM 0.32.0: `vllm/v1/core/block_pool.py` (`BlockPool.free_blocks`, the null block) and `vllm/v1/core/kv_cache_utils.py` (`FreeKVCacheBlockQueue`).*
#
# ## Your turn
#
# Write the pool yourself, in six small steps, and let the engine run on it. In your folder (`learn init my-minipage` makes
# it, once):
#
# ```bash
# python -m minipage learn check 3.1            # and then 3.2 to 3.6; `learn hint 3.1` if you are stuck
# python -m minipage demo --mine .              # the demo, on your pool
# ```
#
# **Going further.** (a) Replace the queue by a random choice: does anything but the survival time change? (b) Write
# `check_integrity` from the rule above, without looking. (c) What would a pool need so that two processes can share it?
#
# Next: **lesson 4**, the table that says which of these blocks holds what.
