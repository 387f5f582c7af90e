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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
# What follows goes into a file, because other processes will import it. The architecture, `minipage/model/gpt2.py`, stays as it is: it never counts heads, and beside each weight's shape it
# says how that weight is cut ("out": each rank has some of the columns, "in": some of the rows). Read the file from the top: cutting the weights, layers that add up what was cut by rows, and
# the loop of a worker.

# %%
WORKER = '''

from minipage.attention import KVCache, copy_blocks
from minipage.worker.batch import paged_attend
from minipage.attention import paged_attention
from minipage.model.architecture import Model
from minipage.model.checkpoint import load_model
from minipage.model.layers.plain import PlainLayers


def cut(w, split, rank, size):
    """This rank's part of a weight: of the columns, of the rows, or all of it."""
    return w if split is None else np.split(w, size, axis=-1 if split == "out" else 0)[rank]


class Shard:
    """An architecture as one rank sees it: the same names, fewer columns or rows. Everybody has whole embeddings."""

    def __init__(self, architecture, rank, size):
        self.architecture, self.rank, self.size = architecture, rank, size
        self.together, self.head = architecture.together, architecture.head
        self.split = {name: None if w.is_table else w.split for name, w in architecture.weights()}

    def weights(self):
        for name, w in self.architecture.weights():
            yield name, w._replace(shape=cut(np.broadcast_to(0, w.shape), self.split[name], self.rank, self.size).shape)

    def shard(self, weights):
        for name, w in weights.items():
            is_added = name.endswith(".bias") and self.split[name.replace(".bias", ".weight")] == "in"
            w = w if self.rank == 0 or not is_added else np.zeros_like(w)  # a bias that is added after an all-reduce
            yield name, cut(w, self.split[name], self.rank, self.size)


class HalfLayers(PlainLayers):
    """Layers of one rank. What it makes with some of the rows of a matrix is a part of a sum."""

    def __init__(self, shard, weights, all_reduce):
        super().__init__(shard, shard.shard(weights))
        self.all_reduce = all_reduce
        self.by_rows = {"attn.c_proj", "mlp.c_proj"}

    def linear(self, name, x, then=None):
        x = super().linear(name, x, then)  # [T, in / size or in] -> [T, out or out / size]
        return self.all_reduce(x) if name in self.by_rows else x


def work(rank, size, num_blocks, block_size, manager, peer):
    """One process: its half of the weights and of the cache, and whatever the manager sends."""
    talked = [0, 0]  # all-reduces, bytes sent

    def all_reduce(part):
        """The sum over both processes, in both. Rank 0 sends first, so that they never wait for each other."""
        talked[0] += 1
        talked[1] += part.nbytes
        if rank == 0:
            peer.send_bytes(np.ascontiguousarray(part))
        other = np.frombuffer(peer.recv_bytes(), part.dtype).reshape(part.shape)
        if rank == 1:
            peer.send_bytes(np.ascontiguousarray(part))
        return part + other if rank == 0 else other + part  # the same order, so the same last bit

    config, weights, _, _ = load_model("shakespeare")
    model = Model(config, HalfLayers(Shard(config, rank, size), weights, all_reduce))
    cache = KVCache(config.n_layer, num_blocks, block_size, config.n_head // size, config.head_size)
    manager.send(cache.nbytes)
    while (order := manager.recv()) is not None:
        copies, batch = order
        copy_blocks(cache, cache, copies)
        if batch is not None:
            hidden = model.forward(batch.token_ids, batch.positions, paged_attend(batch, cache, paged_attention))
            logits = model.logits(hidden[batch.sampled_rows])  # [num_sampled, vocab_size]
            manager.send((logits if rank == 0 else None, tuple(talked)))
'''

# %% [markdown]
# Only rank 0 adds the biases of the two output projections; otherwise they would be added twice. That is one of the two classic mistakes. The other one cannot be seen here: in the checkpoint
# q, k and v are one matrix, `c_attn`, whose columns are all of q, then all of k, then all of v. minipage takes it apart when it is read (`GPT2.adapt`), and each of the three is cut by itself.
# Who cuts the 3·C columns in the middle gives q and half of k to one, and the rest to the other.
#
# ## Two processes, one scheduler
#
# The engine stays as it is: `LLM` schedules, samples and frees. Only its two phases that touch K and V, `copy` and `forward`, are sent to the workers:

# %%
import importlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from minipage import LLM, SamplingParams
from minipage.worker.batch import make_batch

folder = tempfile.mkdtemp()
(Path(folder) / "tensor_parallel_worker.py").write_text(WORKER, encoding="utf-8")
sys.path.insert(0, folder)
worker = importlib.import_module("tensor_parallel_worker")

# Each worker gets half of the cores; it reads this when it starts.
names = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
HALF = dict.fromkeys(names, str(max(1, os.cpu_count() // 2)))


class TwoProcesses(LLM):
    """An LLM whose model runs in two worker processes. Ends them with `close`."""

    def __init__(self, num_blocks, block_size=16):
        super().__init__(num_blocks=num_blocks, block_size=block_size)
        context = multiprocessing.get_context("spawn")
        peers = context.Pipe()
        self.pipes, self.workers, self.talked = [], [], (0, 0)
        for rank in range(2):
            here, there = context.Pipe()
            args = (rank, 2, num_blocks, block_size, there, peers[rank])
            process = context.Process(target=worker.work, args=args, daemon=True)
            with patch.dict(os.environ, HALF):
                process.start()
            self.pipes.append(here)
            self.workers.append(process)
        self.cache_bytes = [pipe.recv() for pipe in self.pipes]

    def copy(self, plan):
        self.copies = plan.copies

    def forward(self, plan):
        # the same for both: token ids, slots, block tables
        batch = make_batch(plan.chunks)
        for pipe in self.pipes:
            pipe.send((self.copies, batch))
        (logits, self.talked), _ = [pipe.recv() for pipe in self.pipes]
        return logits

    def close(self):
        for pipe, process in zip(self.pipes, self.workers):
            pipe.send(None)
            process.join()


one = LLM(num_blocks=64)
two = TwoProcesses(num_blocks=64)
print(
    "bytes of K and V: one process",
    f"{one.kv_cache.nbytes:,}",
    " two:",
    [f"{n:,}" for n in two.cache_bytes],
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
# ## What the talking costs
#
# Two all-reduces a layer, each of one vector of the model's width for each token.

# %%
before = two.talked
two.generate([[1] * 100], SamplingParams(max_tokens=1))
reduces, sent = np.subtract(two.talked, before)
print(f"a prompt of 100 tokens: {reduces} all-reduces, {sent:,} bytes sent by each")
print(
    f"by the formula: {2 * one.config.n_layer}, {2 * one.config.n_layer * 100 * one.config.n_embd * 4:,}"
)

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
two.close()

# %% [markdown]
# On a laptop there is little to gain: a single process uses all cores already, and a pipe between processes takes longer than a link between GPUs. What is worth seeing is the *shape*: for a single
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
# And the most that there can be? Heads cannot be cut: not more processes than heads of K and V, or else heads are kept twice. (Our model: 4. Llama 3: 8.)
#
# ## What vLLM does
#
# - `tensor_parallel_size=2`: the same cut (`ColumnParallelLinear`, `RowParallelLinear`, `QKVParallelLinear`), a worker process for each GPU, NCCL or custom kernels for the all-reduce.
# - One scheduler in the engine's process; what it sends to the workers at each step is a `SchedulerOutput`, with block ids that are the same for all.
# - The vocabulary is split as well, in the embedding and for the logits. (We left it whole, for simplicity.)
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
# **Going further.** (a) Split the vocabulary: which rank has the best token? (b) Make it four processes, with a ring. (c) Let both workers use all cores (leave `HALF` out), and compare again. Why is it
# slower, and by how much?
#
# Next: **lesson 13**, measuring a server.
