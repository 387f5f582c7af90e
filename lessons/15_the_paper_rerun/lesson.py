# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15. The paper, rerun
#
# *About 35 minutes. Comes after lessons 1, 9 and 13.*
#
# > **"Up to 24 times the throughput": of what, on what, and does it hold for me?** (what everybody quotes, and nobody reruns)
#
# The paper's curves were measured on A100s, with Python of 2023. You have neither. But what they are made of you have: the scheduler, the
# block tables, the swap, the beams. What is missing is only how long a step takes, and that is two divisions. In this lesson you
#
# - predict how long a step takes, from bytes and arithmetic,
# - run the real engine with a runner that computes nothing and only looks at the clock,
# - predict a figure of the paper, run it, and find what moves it,
# - and plan a server of your own with the same tools.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## A step, in two divisions
#
# To decode one token for each of its sequences, a GPU reads **all weights once**, and K and V of every sequence's context. Meanwhile it multiplies
# each token with each parameter. Reading and computing overlap, so the longer of the two counts: a *roofline*.
#
# How many sequences must OPT-13B decode at a time before an A100 waits for its arithmetic and no longer for its memory? Write down a guess.

# %%
from minipage.simulate.configs import find_architecture
from minipage.simulate.cost import CostModel, Sizes, Work
from minipage.simulate.machines import A100_40, GRAPHS, PAPER_SYSTEM

sizes = Sizes.of(find_architecture("OPT-13B"))
cost = CostModel(sizes, A100_40, GRAPHS)
print(
    f"{sizes.num_parameters:,} parameters, {cost.kv_bytes_per_token:,} bytes of K and V a token"
)

batches = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
works = [Work(n, n, n, 443 * n, 443 * n) for n in batches.tolist()]
fig, ax = plt.subplots()
ax.plot(batches, [1000 * cost.products(work) for work in works], "o-", label="products")
ax.plot(
    batches, [1000 * cost.attention(work) for work in works], "s-", label="attention"
)
ax.set(xscale="log", yscale="log", xlabel="sequences of 443 tokens", ylabel="ms a step")
ax.legend(frameon=False)
plt.show()
print(f"reading = computing at {A100_40.flops / A100_40.bandwidth:.0f} sequences")

# %% [markdown]
# Up to more than a hundred sequences the weights cost the same for all. So every sequence that fits into memory is nearly free, and *that* is why memory is throughput.
# But look at the other curve: K and V are each sequence's own, and nobody shares the cost of reading them.
#
# ## The real engine, on a clock that jumps
#
# `minipage.simulate.serve` runs the engine of all earlier lessons: its loop, its scheduler, its tables. Only the runner is another: `StandInRunner.forward` computes
# nothing and puts the clock forward by what the cost model says. Every request knows how long it will get. For the same arrivals, its plans are the engine's
# plans, step by step (a test compares them).

# %%
from minipage.simulate.serve import TITLES, Setting, capacity, serve
from minipage.simulate.workload import SHAREGPT, poisson, until

paper_cost = CostModel(sizes, A100_40, PAPER_SYSTEM)
report = serve(
    Setting(paper_cost, num_slots=15_728), until(poisson(SHAREGPT.draw(0), 1.5, 0), 120)
)
for name, number in report.numbers().items():
    print(f"{name:28} {number:12.3f}")

# %% [markdown]
# Two minutes of an A100, in about a second of yours. (`PAPER_SYSTEM` has what Python took on the host in 2023: 4 ms a step and 0.31 ms a request. The paper does not say;
# the two are fitted to two bars of one figure, and then left alone.)
#
# ## Predict Figure 13, then run it
#
# OPT-13B has 15,728 slots. A running request of the ShareGPT mix holds 443 tokens on average (460 in lesson 1; but here what would be longer than 2,048 is drawn again). **Before you run the next cell:** how many run at a time
# if each reserves the longest, 2,048? How many with paging? And with an oracle that knows each length, but a buddy allocator that rounds up to powers of two?

# %%
mean_batch = {}
for memory in ("max", "pow2", "oracle", "paged"):
    arrivals = until(poisson(SHAREGPT.draw(0), 2.0, 0), 240)
    mean_batch[memory] = serve(
        Setting(paper_cost, 15_728, memory), arrivals, warm=60
    ).mean_batch

paper = {"max": 7.00, "pow2": 9.81, "oracle": 13.62, "paged": 30.42}
fig, ax = plt.subplots()
places = np.arange(4)
ax.bar(places - 0.2, mean_batch.values(), 0.4, label="rerun")
ax.bar(places + 0.2, paper.values(), 0.4, label="paper")
ax.set_xticks(places, [TITLES[memory] for memory in mean_batch])
ax.set(ylabel="requests at a time")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Three of the four bars need no clock at all: memory and lengths decide them. The fourth, vLLM's, is not full yet at 2 requests a second, and there Little's law
# holds (lesson 13): requests at a time = rate × time that each is there.
#
# ## From memory to rate
#
# 4.4 times the requests at a time. Is it 4.4 times the rate, too? Guess, then run.

# %%
most = {
    memory: capacity(
        Setting(paper_cost, 15_728, memory), poisson(SHAREGPT.draw(0), 1.0, 0), 250
    )
    for memory in ("max", "oracle", "paged")
}
for memory, rate in most.items():
    print(
        f"{TITLES[memory]:14} {rate:5.2f} requests/s, vLLM serves {most['paged'] / rate:.1f} times as many"
    )

# %% [markdown]
# It is less, because a step with more sequences takes longer: more K and V to read, more tokens for Python to choose. The paper says "1.7 to 2.7 times Orca (Oracle)" and "2.7 to 8
# times Orca (Max)". The first you have just met. The 8 you will not, with any cost of a step: 7 requests at a time against 30 cannot be more than 4.4.
# So the 8 must be something else than the most that is served. Requests come in bunches. So a server of few places (with OPT-66B there are 4) has a queue now and then, long before
# all of them are taken on average. Compared where *waiting begins*, the largest factor is 5 to 9, depending on how you read it off a curve; the book's page
# *The paper, rerun* tells how its authors may have done it.
#
# ## What moves it?
#
# Which of these changes the *ratio* most: a GPU with three times the bandwidth, a host ten times as fast, or twice the memory? The next cell asks the last.

# %%
for num_slots in (8_000, 15_728, 31_456, 62_912):
    ratio = [
        capacity(
            Setting(paper_cost, num_slots, memory),
            poisson(SHAREGPT.draw(0), 1.0, 0),
            200,
        )
        for memory in ("paged", "max")
    ]
    print(
        f"{num_slots:7,} slots: {ratio[0]:5.2f} requests/s, {ratio[0] / ratio[1]:.1f} times Orca (Max)"
    )

# %% [markdown]
# The scarcer the memory, the more it matters how it is managed. With plenty of it (the paper's OPT-175B on Alpaca) nobody needs to be clever.
#
# `python -m minipage.simulate figure all` reruns Figures 2 and 12 to 19 on all cores and prints each number beside the paper's, and whether it is met;
# the results are a page of the book, *The paper, rerun*.
#
# ## And for your server?
#
# The same simulation plans one of your own, from a `config.json` alone:

# %%
from minipage.plan.deployment import Deployment

for utilization in (0.8, 0.9, 0.95):
    plan = Deployment(
        "Llama-3.1-8B",
        gpu="A100-40GB",
        max_model_len=8192,
        gpu_memory_utilization=utilization,
    )
    print(
        f"{utilization:.0%} of the GPU: {plan.blocks():6,} blocks. {plan.concurrency_line()}"
    )

# %% [markdown]
# `minipage plan Llama-3.1-8B --gpu A100-40GB --lengths sharegpt --rate 5` simulates a minute of it too, tells latencies, and tries what to change first.
#
# ## What vLLM does
#
# - It prints the line about concurrency when it starts: blocks divided by the blocks of one request of `max_model_len`. It is the worst case, so your users will be more.
# - What the host takes in a step it has fought ever since: CUDA graphs, and scheduling the next step while the GPU computes this one.
# - Vidur (Agrawal et al., MLSys 2024) simulates vLLM in the same way, with times that were measured operation by operation.
#
# *Checked against vLLM 0.32.0: `vllm/v1/core/kv_cache_utils.py` (the line when it starts), `vllm/v1/core/sched/async_scheduler.py` and `vllm/v1/cudagraph_dispatcher.py`.*
#
# ## Your turn
#
# ```bash
# python -m minipage learn check 15.1    # bytes of a step; then 15.2 seconds of a step, 15.3 the rate that it sustains
# ```
#
# **Going further.** (a) Give `CostModel` an H100 and find the ratio again. (b) `figure 19 --quick`: when is swapping better than recomputing? Change `copy_seconds`. (c) Simulate a policy of your own
# from lesson 6 over an hour of traffic: `build` in `minipage/simulate/serve.py` shows where the scheduler comes in.
#
# Next: **lesson 16**, steps ahead.
