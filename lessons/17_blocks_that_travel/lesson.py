# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 17. Blocks that travel
#
# *About 30 minutes. Comes after lessons 8 and 9.*
#
# > **"My users come back after lunch, and their chats are computed all over again. And why does everybody stutter when somebody pastes a book?"**
#
# Two questions, one answer: K and V of a block are the same numbers wherever they are. So they can wait in a larger memory, and they can be made by another engine. You will
#
# - lose a prefix to eviction, and get it back from a tier below the pool, in memory or in a file,
# - damage the file, and see that no text changes,
# - predict when bringing back is cheaper than computing anew, and measure it,
# - and let one process compute prompts for another: *disaggregated prefill*.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## A pool that is too small
#
# Five chats take turns. Each has said 200 tokens so far and asks again, after all others have. The pool has room for three of them.
#
# > **Predict.** In the second round, which share of the tokens is found in the prefix cache (lesson 8)? The pool evicts what was not wanted for the longest time.

# %%
from time import perf_counter

from minipage import LLM, SamplingParams

ONE = SamplingParams(temperature=0, max_tokens=1)
rng = np.random.default_rng(0)
texts = rng.integers(1, 500, (5, 200)).tolist()  # [5, 200]
CHATS = [{"prompt_token_ids": text} for text in texts]
POOL = {"block_size": 16, "num_blocks": 40, "enable_prefix_caching": True}


def two_rounds(**options):
    """An engine, and for each round: what all have said, tokens from the pool, tokens from the tier, milliseconds a chat."""
    llm, rounds = LLM(**POOL, **options), []
    for _ in range(2):
        llm.reset_stats()
        start = perf_counter()
        said = [llm.generate([chat], ONE)[0].outputs[0].token_ids for chat in CHATS]
        milliseconds = 1000 * (perf_counter() - start) / len(CHATS)
        stats = llm.stats()
        rounds.append(
            (
                said,
                stats["vllm:prefix_cache_hits"],
                stats.get("vllm:external_prefix_cache_hits", 0),
                milliseconds,
            )
        )
    return llm, rounds


_, plain = two_rounds()
for i, (_, pool, *_) in enumerate(plain, 1):
    print(f"round {i}: of 1,000 tokens {pool} were found in the pool")

# %% [markdown]
# None at all. With five in turn and room for three, LRU evicts each chat just before it comes back. A larger pool would help, but there is none: the GPU is full. Its host has ten times as much memory, and a disk.
#
# ## A tier below
#
# `kv_offloading_size` is a number of GiB. What can be found by its hash and is evicted goes there first, and comes back on a hit:
#
# ```
# pool     [ 7: "To be or" ]  is evicted ─▶ save under its hash      a text is looked for
# tier     [ slot 0: .... ] [ slot 1: "To be or" ] [ slot 2: .... ]  ─▶ load into a free block of the pool, publish
# ```
#
# > **Predict.** And now, in the second round?

# %%
llm, with_tier = two_rounds(kv_offloading_size=0.05)
for i, (_, pool, tier, _) in enumerate(with_tier, 1):
    print(f"round {i}: {pool} were found in the pool, {tier} came back from the tier")
print("the same texts:", [r[0] for r in plain] == [r[0] for r in with_tier])

# %% [markdown]
# 192 of each chat's 200 tokens, its twelve full blocks. In vLLM's metrics these are two pairs: `vllm:prefix_cache_hits` counts what was in the pool, `vllm:external_prefix_cache_hits` what came from elsewhere.
#
# `find` is the whole trick (`memory/offload.py`). It looks in both memories as if they were one. What is found below is copied into free blocks and known from then on, like blocks that were just computed; and then it is found once more. So neither
# the scheduler nor a kernel knows of a tier. It is the heir of swapping (lesson 9): there a preempted text waits in a second memory for itself; here every block waits, for whoever begins alike.

# %%
from minipage.trace import record

llm = LLM(
    block_size=4,
    num_blocks=10,
    enable_prefix_caching=True,
    kv_offloading_size=0.01,
)
FRIENDS = "First Citizen:\nBefore we proceed any further, hear me speak."
with record(llm, "Evicted, found again, came back") as trace:
    for prompt in (
        FRIENDS,
        "KING RICHARD III:\nMy kingdom for a horse, or for a kingdom, or nothing at all",
        FRIENDS,
    ):
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=4))
for frame in trace.steps:
    for event in frame.events:
        if "tier" in event or "comes back" in event:
            print(f"step {frame.step}: {event}")

# %% [markdown]
# The same as a story: `python -m minipage demo offload`.
#
# ## When is it worth while?
#
# A token's K and V are so many bytes, and a bus moves so many a second; computing the token takes so many operations. Three models on an H200, in bfloat16, with 50 GB/s between the host and the GPU:
#
# > **Predict.** For which of them does bringing a token back take less than a third of the time of computing it?

# %%
from minipage.simulate.configs import find_architecture
from minipage.simulate.cost import Sizes

BUS = 50e9  # bytes a second
COMPUTE = 600e12  # operations a second, as far as long prompts get near it
BYTES = 2 * 2  # of K and V, two for each number
for name in ("Llama-2-7B", "Llama-3.1-8B", "Llama-3.1-70B"):
    architecture = find_architecture(name)
    kv = architecture.kv
    num_bytes = BYTES * kv.num_layers * kv.num_kv_heads * kv.head_size
    operations = 2 * Sizes.of(architecture).num_parameters
    bring, compute = 1e6 * num_bytes / BUS, 1e6 * operations / COMPUTE
    print(
        f"{name:14} {num_bytes / 1024:5.0f} KiB a token: {bring:5.1f} µs to bring back, {compute:6.1f} to compute, {bring / compute:.2f}"
    )

# %% [markdown]
# It depends on the heads of K and V. Llama 2's 7B has as many as of q, so its tokens are large, and the bus is hardly faster than the GPU. Where four or eight heads of q share one of K and V (lesson 5), a token is
# small, and the larger the model, the better the bargain. Long prompts gain more than this, because attention makes their later tokens dearer.
#
# On this computer there is no bus, but a copy of a few megabytes:

# %%
for name, rounds in (("computed anew", plain), ("from the tier", with_tier)):
    print(f"round 2, {name}: {rounds[1][3]:5.1f} ms a chat, its first token included")

# %% [markdown]
# (`python -m benchmarks.offload` measures it with the shape of GPT-2, and on a GPU.) On a GPU there is one thing more to take care of: *nobody may wait for a copy*. Evicted blocks are gathered on the GPU in microseconds, and leave on a stream of their own while
# the next steps run; blocks that come back travel on it, too, and whoever waits for them is admitted when they are there (`worker/gpu/offload.py`).
#
# ## In a file
#
# With `kv_offloading_path` the tier is a file, mapped into memory. It outlives the engine: the next one with the same model, options and block size goes on with it. After a restart nothing has to be computed again.
#
# > **Predict.** Somebody damages the file: one bit in each of its slots. What do the texts say?

# %%
import tempfile
from pathlib import Path

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "kv"
two_rounds(kv_offloading_size=0.05, kv_offloading_path=path)
llm, after_restart = two_rounds(kv_offloading_size=0.05, kv_offloading_path=path)
print(f"after a restart, round 1: {after_restart[0][2]} tokens came back from the file")

llm.offloading.store.rows[:, 1000] ^= 1  # one bit in each slot
before = llm.stats()["vllm:external_prefix_cache_hits"]
said = [llm.generate([chat], ONE)[0].outputs[0].token_ids for chat in CHATS]
hits = llm.stats()["vllm:external_prefix_cache_hits"] - before
print(
    f"damaged: {hits} tokens came back, and the texts are the same: {said == plain[0][0]}"
)

# %% [markdown]
# A damaged slot is a miss, never a wrong text. Each has a label: the hash, and a checksum of what belongs to it. What is loaded is checked, whatever has happened to the file: a crash in the middle of a write, a disk that forgets, another
# engine that writes to it. (A wrong K would not be noticed by anybody. The text would merely be a little worse.)
#
# ## Somebody pastes a book
#
# The other question. A long prompt takes as long as hundreds of steps of those who are being answered. Chunked prefill (lesson 6) spreads it, but it is still the same GPU that computes it.
#
# > **Predict.** Eight texts are written while somebody pastes 250 tokens, in chunks of 64. What is the longest time between two tokens of the eight, compared with the median? And if the book were computed elsewhere?
#
# Elsewhere is another process here, with an engine that computes prompts only. What it hands over is a block table and its blocks, through memory that both processes share:
#
# ```
# first engine     table [ 7 | 1 | 3 ]  17 tokens        hand_over(llm, prompt)
#                         ▼   ▼   ▼
# shared memory         [ 0 | 1 | 2 ]   K and V          a Handover: which tokens, how many blocks, where they are
#                         ▼   ▼   ▼
# second engine    table [ 4 | 0 | 9 ]                   take_over(llm, handover)
# ```

# %%
from functools import partial

from minipage.engine.handover import elsewhere, take_over

OPTIONS = {
    "block_size": 16,
    "num_blocks": 400,
    "enable_prefix_caching": True,
    "max_num_batched_tokens": 64,
}
BOOK = {"prompt_token_ids": rng.integers(1, 500, 250).tolist()}  # [250]
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


def write_eight(llm, bring=None):
    """Times between steps of eight texts, in milliseconds, and what the book's reader is told; `bring` hands the book over."""
    for i in range(8):
        llm.add_request(f"Text {i}. To be, or not to be", LONG)
    times, told = [], None
    for step in range(60):
        if step == 30:
            if bring:
                bring()
            llm.add_request(
                BOOK,
                SamplingParams(temperature=0, max_tokens=8),
                request_id="book",
            )
        start = perf_counter()
        for output in llm.step():
            if output.request_id == "book":
                told = output.outputs[0].token_ids
        times.append(1000 * (perf_counter() - start))
    return times[10:], told


here = LLM(**OPTIONS)
write_eight(here)  # a first time, to compile
here.reset_prefix_cache()
times_here, told_here = write_eight(here)

second = LLM(**OPTIONS)
taken = []


def bring():
    start = perf_counter()
    take_over(second, handover)
    taken.append(1000 * (perf_counter() - start))


with elsewhere(partial(LLM, **OPTIONS)) as prefill:
    handover = prefill(BOOK)  # meanwhile, on another device
    times_there, told_there = write_eight(second, bring)
    handover.discard()

print(
    f"{len(handover.token_ids)} tokens travel as {handover.num_blocks} blocks, {handover.num_bytes:,} bytes, taken over in {taken[0]:.1f} ms"
)
for name, times in (("here", times_here), ("elsewhere", times_there)):
    print(
        f"the book is computed {name:9}: median {np.median(times):.2f} ms, longest {max(times):.2f}"
    )
print("the same text:", told_here == told_there)

# %%
fig, ax = plt.subplots()
ax.plot(range(10, 60), times_here, label="computed here, in chunks")
ax.plot(range(10, 60), times_there, label="computed elsewhere, handed over")
ax.set(xlabel="step", ylabel="ms from one token to the next", ylim=0)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The book's reader is told the same, to the last token, and the others hardly notice. The second engine has the blocks in other places, and nothing else differs. It publishes them under hashes of its own; the request finds them like any prefix (lesson 8), and
# computes the rest: what is left over in the last block, or with `prefix_match_unit=1` the last token only, whose logits are wanted.
#
# It is no gift. The prompt costs what it cost before, on another device, and its blocks must travel. It pays where a promise of *every* token's time is kept (lesson 13), or where the two kinds of work want two kinds of hardware: prefill needs arithmetic, decoding needs bandwidth.
# The same as a story: `python -m minipage demo hand-over`.
#
# ## What vLLM does
#
# - `--kv-offloading-size 64`: GiB of the host's memory, under the same name. Its OffloadingConnector saves blocks *as they are filled*, not when they are evicted: at an eviction there is nothing left to copy, but everything travels, wanted or not. Copies run on streams of their own
#   (`cudaMemcpyAsync`), and the order of eviction in the tier is LRU or ARC.
# - Below the host's memory there may be further tiers, in a file system for example.
# - `vllm:external_prefix_cache_queries` and `..._hits` count what connectors were asked for and had, in tokens.
# - Swapping is gone: a preempted request is computed again, and finds its blocks, if they were not evicted, or were offloaded.
# - Disaggregated prefill: two servers, a proxy before them that sends each request to both, and a connector (NIXL, for RDMA between GPUs). `kv_transfer_params` carry the numbers of the blocks from one to the other; the second one computes the last token itself.
#
# *Checked against vLLM 0.32.0: `docs/features/kv_offloading_usage.md`, `vllm/config/cache.py` (`kv_offloading_size`), `vllm/v1/metrics/loggers.py` (the names) and `vllm/v1/core/sched/scheduler.py` (queries and hits).*
#
# ## Your turn
#
# ```bash
# python -m minipage learn check 17.1    # a tier; then 17.2, a table that moves
# ```
#
# **Going further.** (a) Save blocks when they are filled, not when they are evicted: override `publish` in a subclass of `Offloaded`. What is copied in vain? (b) Give the tier another order: what is found often should stay (lesson 8's orders are one line each). (c) Hand a *running* text over:
# its table holds more than the prompt, and the sampler needs nothing but the seed.
#
# That was the course. What now? Write a policy, add the model that you miss, read vLLM, or send us the lesson that was missing.
