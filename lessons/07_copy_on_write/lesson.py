# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Copy-on-write: samples and beams
#
# *About 30 minutes. Comes after lessons 3 and 4.*
#
# > **"The paper is full of copy-on-write and beam search. I cannot find either in vLLM's code. Where did they go?"**
# > (asked around vLLM's pull requests #8726 and #9105, which took beam search out of its core)
#
# They are here, running. Several texts that begin alike can hold the *same* blocks, as long as nobody writes into them; who
# wants to write gets a copy first. You will
#
# - fork a block table and watch what one token of writing costs,
# - see three samples of one prompt share it, and beams branch and die,
# - measure how many blocks that saves, next to the paper's figure,
# - and take the copying away, to see texts overwrite each other.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Forking costs nothing
#
# A text of ten tokens, in blocks of four:

# %%
from minipage.memory import BlockPool, BlockTable

pool = BlockPool(num_blocks=8, block_size=4)
parent = BlockTable(pool)
parent.append(10)
child = parent.fork()


def show(**tables):
    for name, table in tables.items():
        counts = [f"{block} (×{pool.ref_count(block)})" for block in table]
        print(f"{name:7}", " ".join(counts))


show(parent=parent, child=child)
print(pool.num_used, "blocks for 20 tokens")

# %% [markdown]
# `fork` copies the *table*, three small numbers, and raises three reference counts. No K, no V.
#
# > **Predict.** The child now writes a token. Token 10 belongs into the third block, at offset 2. What has to happen? And what
# > when the parent writes its next token after that? And how would it go if the text had had 12 tokens, not 10?

# %%
print("the child writes: ", child.append(1))
show(parent=parent, child=child)
print("the parent writes:", parent.append(1))
show(parent=parent, child=child)

# %% [markdown]
# The child got a new block and an order to copy the old one; the engine carries it out before anything is written. The
# parent, afterwards, is alone in its last block and writes in place. And with 12 tokens nothing at all is copied, since the next
# token starts a new block anyway. So the copying is at most *one block a fork*, however long the text is. Operating systems
# start processes in this way (`fork` is their word).
#
# ## Three samples, one prompt
#
# The engine uses it whenever a request asks for several texts. Step through the first two steps, phase by phase: ×3 in a block
# says that three tables hold it. The second step is copy-on-write in three pictures: *before*, where all three want to write into
# one shared block; *copy*; and *forward*, the write. Beside them are the lines that decide it, those that you will write.

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

llm = LLM(block_size=4, num_blocks=16)
with record(llm, "Three samples, one prompt") as trace:
    out = llm.generate(
        "KING RICHARD III:\nMy kingdom for a",
        SamplingParams(n=3, max_tokens=9, temperature=0.8, seed=69),
    )
trace

# %%
for text in out[0].outputs:
    print(repr(text.text))

# %% [markdown]
# The prompt was computed once, not three times. Its full blocks stay shared to the end.
#
# ## Without the copy
#
# One tutorial engine had a `fork` that never copies ("writers overwrite each other's tail"). Here it is:


# %%
class NeverCopies(BlockTable):
    def shared_tail(self):
        return None  # "nobody shares my last block"


def samples(table):
    params = SamplingParams(n=3, max_tokens=9, temperature=0.8, seed=69)
    llm = LLM(block_size=4, num_blocks=16, block_table=table)
    return [
        o.text
        for o in llm.generate("KING RICHARD III:\nMy kingdom for a", params)[0].outputs
    ]


for right, wrong in zip(samples(BlockTable), samples(NeverCopies)):
    print(
        "same     " if right == wrong else "DIFFERENT",
        repr(right),
        "" if right == wrong else f"-> {wrong!r}",
    )

# %% [markdown]
# All three write their K and V of token 10 into the same slot, and the last one wins. The others go on with a memory of a
# word that they never said. Again no crash, again fluent, and the test that finds it has to know what should have come out.
#
# ## Beam search: sharing that never stops
#
# Samples share the prompt and part for ever. *Beams* part and die and branch, at every step: of all continuations of all beams,
# the best few survive, whosever they are. A beam with two good children is forked; one with none gives its blocks back.

# %%
llm = LLM(block_size=4, num_blocks=24)
with record(llm, "Beams branch and die") as trace:
    out = llm.generate("JULIET:\nO Romeo,", SamplingParams(beam_width=3, max_tokens=10))
for text in out[0].outputs:
    print(f"{text.score:6.2f} {text.text!r}")
trace

# %% [markdown]
# How the beams descend from each other, drawn from the same trace. A line is a table that holds what its parent wrote:

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.5, 3.2))
before = {}  # the beams one step earlier: (step, row) of each text
for frame in trace.steps:
    here = {}
    for row, seq in enumerate(s for s in frame.sequences if s.finish_reason is None):
        here[seq.token_ids] = place = (frame.step, row)
        if seq.token_ids[:-1] in before:
            ax.plot(*zip(before[seq.token_ids[:-1]], place), color="gray", linewidth=1)
        word = seq.tokens[-1].replace("\n", "⏎")
        box = dict(facecolor="white", edgecolor="C0", boxstyle="round,pad=0.25")
        ax.text(*place, word, ha="center", va="center", fontsize=9, bbox=box)
    before = here
ax.set(
    xlim=(0.5, len(trace.steps) + 0.5), ylim=(2.6, -0.6), xlabel="step", yticks=range(3)
)
ax.set_ylabel("beam, best first")
plt.show()

# %% [markdown]
# ## What it saves
#
# The paper's figure 15 counts blocks: how many there would be without sharing, how many there are, and the difference as a
# share, over a whole run. In the Alpaca workload prompts have 19 tokens and answers 58, on average (only the means are
# published; the spread is our choice). For samples the words do not matter, so tables alone will do:


# %%
def samples_saved(n, prompt_mean=19.31, block_size=16, num_requests=150):
    """% of blocks saved when each request wants n texts."""
    rng = np.random.default_rng(0)
    logical = physical = 0
    for _ in range(num_requests):
        pool = BlockPool(10_000 // block_size, block_size)
        tables = [BlockTable(pool)]
        tables[0].append(1 + int(rng.exponential(prompt_mean - 1)))
        tables += [tables[0].fork() for _ in range(n - 1)]
        for _ in range(1 + int(rng.exponential(58.45 - 1))):
            for table in tables:
                table.append(1)
            logical += sum(map(len, tables))
            physical += pool.num_used
    return 100 * (1 - physical / logical)


# %% [markdown]
# Beams share what they wrote, too, and how much depends on the model. So beams run for real:


# %%
def beams_saved(width):
    llm = LLM(num_blocks=60)
    token_ids = llm.tokenizer.encode("To be, or not to be, that is the question:\n" * 3)
    for prompt_len in (8, 30):
        params = SamplingParams(beam_width=width, max_tokens=58)
        llm.add_request(token_ids[:prompt_len], params)
    logical = physical = 0
    while llm.has_unfinished_requests():
        llm.step()
        groups = llm.scheduler.running
        logical += sum(
            len(seq.block_table) for group in groups for seq in group.sequences
        )
        physical += llm.block_pool.num_used
    return 100 * (1 - physical / logical)


PAPER = {"samples": [6.09, 8.53, 9.79], "beams": [37.56, 53.13, 55.16]}  # %
saved = {
    "samples": [samples_saved(n) for n in (2, 4, 6)],
    "beams": [beams_saved(n) for n in (2, 4, 6)],
}
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for ax, kind in zip(axes, saved):
    x = np.arange(3)  # [3]
    ax.bar(x - 0.2, PAPER[kind], 0.4, color="lightgray", label="paper, OPT-13B")
    ax.bar(x + 0.2, saved[kind], 0.4, label="here")
    ax.set_xticks(x, [f"{n} {kind}" for n in (2, 4, 6)])
axes[0].set(ylabel="blocks saved, %")
axes[0].legend(frameon=False)
print({kind: np.round(values, 1).tolist() for kind, values in saved.items()})
plt.show()

# %% [markdown]
# Samples save little when prompts are short: often there is not even one full block. Beams save a lot, since they share not
# only the prompt but most of what they wrote. (Ours is a far smaller model than the paper's, and its beams part at other
# places. That the bars come out alike says that sharing is above all a matter of lengths.)
#
# > **Predict.** Smaller blocks: do they save more, or less? And a longer prompt?

# %%
block_sizes = [2, 4, 8, 16, 32]
fig, ax = plt.subplots()
for prompt_mean, style in ((19, "o-"), (161, "s--")):
    values = [samples_saved(4, prompt_mean, size, 40) for size in block_sizes]
    ax.plot(
        block_sizes,
        values,
        style,
        label=f"4 samples, prompts of {prompt_mean} on average",
    )
ax.set(xscale="log", xlabel="block size", ylabel="blocks saved, %", ylim=0)
ax.set_xticks(block_sizes, block_sizes)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Together or not at all
#
# The texts of one request share blocks, so it makes no sense to preempt one of them: its blocks would stay, held by the
# others, and nothing would be gained. So they are scheduled, preempted and resumed together, as a *sequence group*
# ("gang scheduling", section 4.5 of the paper). `minipage/scheduling/group.py` is about them. Admission has to look ahead
# for all of them, too:

# %%
from minipage.errors import InvalidRequestError

try:
    LLM(block_size=4, num_blocks=16).add_request(
        "To be, or", SamplingParams(n=8, max_tokens=20)
    )
except InvalidRequestError as error:
    print(error)

# %% [markdown]
# ## What vLLM does
#
# - The first version had all of this in its block manager: `fork`, `append_slots` with copy-on-write, groups.
# - Version 1 of its engine does without. A request with `n=3` becomes three requests, and the *prefix cache* (lesson 8) lets the
#   second and third find the prompt's full blocks; the part-full last one is computed again by each.
# - Beam search lives outside the engine (`LLM.beam_search`): at every step it sends the best texts back as new prompts, and
#   relies on the prefix cache to make that cheap. That was the point of #8726 and #9105: simpler code in the core for a feature that few
#   use, at the price of some recomputation.
# - Copy-on-write came back in June 2026 (RFC #45702, #46384), for another reason: *partial prefix hits* (lesson 8). Who goes on from the
#   middle of a block that somebody else has filled gets a copy first, and both blocks are held until the copy is made: the
#   order that you have just seen. minipage does the same (`prefix_match_unit`, `minipage/memory/partial_cache.py`).
# - TensorRT-LLM keeps beams in its core, with shared blocks for the prompt.
#
# *Checked against vLLM 0.32.0: `vllm/v1/engine/parallel_sampling.py` (`ParentRequest`), `vllm/entrypoints/generate/beam_search/offline.py` and `vllm/v1/core/kv_cache_manager.py` (`take_kv_cache_block_copies`).*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 7.1      # fork; then 7.2 shared_tail, 7.3 blocks_to_allocate, 7.4 append
# python -m minipage demo beam --mine .
# ```
#
# **Going further.** (a) How would you do what version 1 does for samples, here? Which lines of `block_table.py` could go? (b) Give the beam
# search a `length_penalty` of −1 and of 2, and explain what you get.
#
# Next: **lesson 8**, sharing between texts of *different* requests.
