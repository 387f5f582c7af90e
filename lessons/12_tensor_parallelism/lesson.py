# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12. Tensor parallelism, in two processes
#
# *About 35 minutes. Comes after lessons 2 and 4.*
#
# > **"I have two GPUs. Do I get twice the memory for K and V? And whose are the block tables?"**
#
# A model that is too large for one GPU is split: each gets *half of every layer*, and they compute side by side. What does paging have to do with that? Very little, and
# that is the beauty of it. You will
#
# - split attention and the MLP so that the halves hardly have to talk,
# - run two processes, each with its half of the model and of the cache, under *one* scheduler,
# - check that the logits are those of one process,
# - and measure the talking.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## On paper: columns, then rows
#
# The MLP of a layer is two matrix products with a nonlinearity between them: `gelu(x @ A) @ B`. Split `A` by its *columns*: each half computes half of the
# hidden numbers, and needs nothing from the other, because `gelu` works on each number alone. Split `B` by its *rows*, just those that belong to these hidden
# numbers. Each half then has a *part of the sum*:
#
# ```
#            A₁ │ A₂            B₁        process 1:  gelu(x A₁) B₁ ─┐
#                               ──                                   ├─ + ─▶ the result, needed by both
#                               B₂        process 2:  gelu(x A₂) B₂ ─┘
# ```
#
# Adding up the parts so that both have the sum is called an **all-reduce**, and it is the only time that they talk. (Shoeybi et al., Megatron-LM, [2019](https://arxiv.org/abs/1909.08053).)

# %%
rng = np.random.default_rng(0)
x = rng.standard_normal((5, 8))  # [T, C]
A, B = rng.standard_normal((8, 32)), rng.standard_normal((32, 8))  # [C, 4C], [4C, C]
halves = slice(0, 16), slice(16, 32)
parts = [np.tanh(x @ A[:, half]) @ B[half] for half in halves]  # each [T, C]
print(np.allclose(sum(parts), np.tanh(x @ A) @ B))

# %% [markdown]
# > **Predict.** What if `A` were split by rows, too? When would they have to talk then?
#
# Attention splits even better: its **heads** do not know of each other. Give each process half of the heads, with their columns of the q-, k- and v-weights, and the rows of the
# output projection that belong to them. So each process has K and V *of its own heads only*: half of the cache, and yes, that is the answer to the first question: with
# the same memory each, there is room for twice as many tokens.
#
# And the block tables? A block is still a block of 16 *tokens*. Token 35 is in the third block, on both; one part of its K here, the other there. So **the same block table
# is right for every process**, and one scheduler decides for all (section 4.6 of the paper). Blocks, slots, reference counts, prefix cache: nothing of it has to be
# known anywhere else.
#
# ## A half of the model
#
# Each weight says how it is cut, beside its shape, in the architecture (`minipage/model/gpt2.py`): `"out"` for columns, `"in"` for rows, and `heads="q"` where the columns or rows
# belong to heads, which are never cut themselves. `Shard` reads that, for one *rank* (the number of a process; 0 is the one that schedules):

# %%
from minipage import LLM, SamplingParams
from minipage.model.checkpoint import load_model
from minipage.model.shard import Shard

config, weights, _, _ = load_model("shakespeare")
halves = [Shard(config, rank, 2) for rank in range(2)]
for name, weight in config.weights():
    if name.startswith("h.0.") or name.startswith("w"):
        of_each = [
            str(dict(half.weights())[name].shape)
            if name in dict(half.weights())
            else "-"
            for half in halves
        ]
        print(
            f"{name:24} {weight.split or 'all':4} {weight.shape!s:12} "
            + "   ".join(of_each)
        )

# %% [markdown]
# Two things are worth a second look. The biases of the two output projections are on rank 0 only; otherwise they would be added twice. That is one of the two classic mistakes. The other one cannot be seen here: in the
# checkpoint q, k and v are one matrix, `c_attn`, whose columns are all of q, then all of k, then all of v. minipage takes it apart when it is read (`GPT2.adapt`), and each of the three is cut by itself.
# Who cuts the 3·C columns in the middle gives q and half of k to one, and the rest to the other.
#
# Then the layers. They are those of one process, except where something was cut by rows (`minipage/model/layers/sharded.py`):

# %%
import inspect

from minipage.model.layers.sharded import ShardedLayers

print(inspect.getsource(ShardedLayers.linear))

# %% [markdown]
# ## Two processes, one scheduler
#
# The engine does the rest. It starts the other process, which reads its part of the weights and then waits for messages. (They talk through PyTorch: `pip install "minipage[torch]"`.)

# %%
one = LLM(num_blocks=64)
two = LLM(num_blocks=64, tensor_parallel_size=2)
bytes_of_kv = two.runner.ask("num_bytes")
print(
    f"bytes of K and V: one process {one.kv_cache.nbytes:,}",
    " two:",
    [f"{n:,}" for n in bytes_of_kv],
)

# %%
prompts = [
    "KING RICHARD III:\nMy kingdom for a",
    "JULIET:\nO Romeo,",
    "ROMEO:\nIt is my lady",
]
params = SamplingParams(max_tokens=12, temperature=0.8, seed=3, n=2)
texts = [
    [o.text for out in engine.generate(prompts, params) for o in out.outputs]
    for engine in (one, two)
]
print("the same six texts:", texts[0] == texts[1])
print(texts[1][0])

# %% [markdown]
# Six texts, two samples of each prompt, with copy-on-write. Equal texts could be luck; so, the logits:


# %%
def logits_of(engine, prompt):
    request = engine.add_request(prompt, SamplingParams(max_tokens=2))
    plan = engine.schedule()
    engine.copy(plan)
    logits = engine.forward(plan)  # [1, vocab_size]
    engine.abort(request)
    engine.step()
    return logits[0]  # [vocab_size]


difference = np.abs(logits_of(one, prompts[0]) - logits_of(two, prompts[0])).max()
print(f"largest difference: {difference:.1e}")

# %% [markdown]
# Not zero, since sums are added up in another order; but in the last digits of a float32.
#
# The trace sees no difference at all. The scheduler, the pool and the tables are the same:

# %%
from minipage.trace import record

with record(two, "Two processes, one block table") as trace:
    two.generate(prompts[0], SamplingParams(n=2, max_tokens=8, temperature=0.8, seed=1))
trace

# %% [markdown]
# And here is one block of it, as each process has it: the first block of a text, K of layer 0, its first four tokens. The number of the block is the same; the heads are different ones.

# %%
two.add_request(prompts[0], SamplingParams(max_tokens=2))
two.step()
[request] = two.requests.values()
block = next(iter(request.group.leader.block_table))
for rank, (k, _) in enumerate(two.runner.ask("block", layer=0, block=block)):
    k = np.array(k)  # [block_size, heads of this rank, head_size]
    print(
        f"rank {rank}: block {block} has {k.shape[1]} heads;",
        "first numbers of each token:",
        k[:4, 0, 0].round(2),
    )
while two.has_unfinished_requests():
    two.step()

# %% [markdown]
# ## What the talking costs
#
# Two all-reduces a layer and one for the embedding, each of one vector of the model's width for each token. (Rank 1 also sends its half of the scores of the words, once a step.)

# %%
group = two.runner.group
num_sums, num_bytes = group.num_reduced, group.num_bytes
two.generate([[1] * 100], SamplingParams(max_tokens=1))
print(
    f"a prompt of 100 tokens: {group.num_reduced - num_sums} all-reduces, {group.num_bytes - num_bytes:,} bytes sent by each"
)
print(
    f"by the formula: {2 * config.n_layer + 1}, {(2 * config.n_layer + 1) * 100 * config.n_embd * 4:,}"
)

# %% [markdown]
# Before that, rank 0 tells the others what to do: one message, with the flat arrays of the step and nothing about requests.

# %%
from minipage.worker.ranks.message import pack_step

request = two.add_request(prompts[0], SamplingParams(max_tokens=2))
plan = two.schedule()
[batch] = two.runner.runner.batches(plan)
print(batch)
print(f"the message: {pack_step(plan, [batch])[0]} numbers")
two.copy(plan)
two.forward(plan)
two.abort(request)
ended = two.step()

# %%
from time import perf_counter


def milliseconds(engine, num_tokens):
    times = []
    for _ in range(2):
        engine.add_request([1] * num_tokens, SamplingParams(max_tokens=1))
        start = perf_counter()
        engine.step()
        times.append(1000 * (perf_counter() - start))
    return min(times)


lengths = [1, 4, 16, 64, 256]
fig, ax = plt.subplots(figsize=(7.5, 2.8))
ax.plot(lengths, [milliseconds(one, n) for n in lengths], "o-", label="one process")
ax.plot(lengths, [milliseconds(two, n) for n in lengths], "s-", label="two processes")
ax.set(xscale="log", yscale="log", xlabel="tokens computed in a step", ylabel="ms")
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %%
two.runner.shutdown()

# %% [markdown]
# On a laptop there is little to gain: a single process uses all cores already, and a connection between processes takes longer than a link between GPUs. What is worth seeing is the *shape*: for a single
# token the talking is all there is, for many the computing counts.
#
# On GPUs it is the same. Sixteen bytes or sixteen thousand take about as long, a few microseconds, because small messages are all latency. So tensor parallelism is used *within* a machine, where GPUs have fast
# links (NVLink: hundreds of GB/s), and pipelines or data parallelism between machines. With *N* processes, a ring all-reduce sends 2·(N−1)/N of the bytes from each, hardly more for eight than for two:

# %%
n = np.arange(2, 17)  # [15]
fig, axes = plt.subplots(1, 2, figsize=(9, 2.5), layout="constrained")
axes[0].plot(n, 2 * (n - 1) / n, "o-")
axes[0].set(xlabel="processes", ylabel="bytes sent by each / size", ylim=(0, 2.1))
axes[1].plot(n, 100 / n, "o-", label="weights and K, V held by each")
axes[1].set(xlabel="processes", ylabel="%", ylim=0)
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# And the most that there can be? Heads cannot be cut: not more processes than heads of q, and with more than heads of K and V some of these are kept twice. (Our model: 4. Llama 3: 8.)
#
# ## What vLLM does
#
# - `tensor_parallel_size=2`: the same cut (`ColumnParallelLinear`, `RowParallelLinear`, `QKVParallelLinear`), a worker process for each GPU, NCCL or custom kernels for the all-reduce.
# - One scheduler in the engine's process; what it sends to the workers at each step is a `SchedulerOutput`, with block ids that are the same for all.
# - The vocabulary is split as well, in the embedding and for the logits, as here.
# - In vLLM's log, the size of the KV cache is in *tokens*, and so the same number for one GPU and for all of them: each token is on all, a part of it on each.
#
# *Checked against vLLM 0.32.0: `vllm/model_executor/layers/linear.py` (the three classes) and `vllm/v1/core/sched/output.py` (`SchedulerOutput`).*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 12.1    # columns; then 12.2 rows, 12.3 heads, 12.4 all-reduce
# ```
#
# **Going further.** (a) Only the best token is wanted: what would rank 1 have to send, in place of all its scores? (b) Start four processes, and measure again; then six. (c) End one of them (`two.runner.meeting.processes[1].kill()`)
# while it works: what do requests end with, and what became of their blocks?
#
# Next: **lesson 13**, measuring a server.
