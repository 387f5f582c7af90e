# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Preemption, swapping and watermarks
#
# *About 30 minutes. Comes after lesson 6.*
#
# > **"Why was my request preempted? Was it swapped, or recomputed? And how do I make it stop?"** (vLLM #588, #5578, #18115)
#
# Paging reserves nothing, and so it can promise nothing: blocks may run out while everybody is in the middle of a sentence. Then one
# has to give way, to be continued later. You will
#
# - watch it happen, in both ways that the paper knows,
# - measure what each costs, and when which is cheaper,
# - see what a watermark prevents, and what it costs,
# - and break it as real projects did: by losing tokens, by losing blocks, by waiting for ever.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## Giving way
#
# Two texts, and a pool of nine blocks. Both fit when they come, and both grow. Step to where the pool runs dry.

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

prompts = ["KING RICHARD III:\nMy kingdom for a", "JULIET:\nO Romeo,"]
params = SamplingParams(max_tokens=16, temperature=0)


def watch(**options):
    llm = LLM(block_size=4, num_blocks=9, **options)
    with record(llm, options.get("preemption", "recompute")) as trace:
        outs = llm.generate(prompts, params)
    return trace, [out.outputs[0].text for out in outs]


trace, texts = watch()
trace

# %% [markdown]
# B came last, so B gives way: all its blocks go back, and A goes on. B keeps its *words*, the prompt and what it has written. Only K and V
# are gone, and those can be computed again, all at once, like one long prompt. This is **preemption by recomputation**.
#
# Why all of B's blocks, when one would have done? Because the next token needs *every* K and V of its text. A text with all blocks but one
# cannot go on, and its blocks would lie there unused.
#
# The other way is to **swap**: copy the blocks to another memory (for a GPU, the computer's main memory), and back when there is room.

# %%
trace_swap, texts_swap = watch(preemption="swap", swap_space="1MiB")
trace_swap

# %%
alone = [LLM().generate(prompt, params)[0].outputs[0].text for prompt in prompts]
print("with room for all:", alone[1].splitlines())
print("recomputed:       ", texts[1].splitlines())
print("swapped:          ", texts_swap[1].splitlines())

# %% [markdown]
# The words are the same in all three. Preemption costs time, and nothing else. Here is what each run did, step by step:

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 1, figsize=(8, 3.6), layout="constrained", sharex=True)
for ax, (name, a_trace) in zip(axes, (("recompute", trace), ("swap", trace_swap))):
    colors = {
        "running": "C0",
        "waiting": "#dddddd",
        "swapped": "C1",
        "finished": "white",
    }
    for row, label in enumerate("AB"):
        for frame in a_trace.steps:
            seq = next((s for s in frame.sequences if s.label == label), None)
            if seq is None:
                continue
            n = sum(c.num_tokens for c in frame.chunks if c.label == label)
            color = "C2" if n > 1 else "C0" if n else colors[seq.status]
            ax.barh(row, 0.9, left=frame.step - 0.45, color=color)
            if n > 1:
                ax.text(
                    frame.step,
                    row,
                    n,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )
    ax.set(yticks=[0, 1], yticklabels=["A", "B"], title=name)
    ax.invert_yaxis()
axes[1].set(
    xlabel="step   (blue: a token; green: that many tokens at once; orange: swapped out; grey: waiting)"
)
plt.show()

# %% [markdown]
# ## Which is cheaper?
#
# Recomputing costs arithmetic: all tokens of the text, once more. Swapping costs copying: all its bytes, out and in. Both grow with the
# length; which is cheaper depends on the machine. Measured here, for one text:

# %%
from time import perf_counter

from minipage.attention import KVCache, copy_blocks
from minipage.memory import BlockCopy

llm = LLM(num_blocks=40)
config = llm.config


def recompute_ms(num_tokens):
    ids = np.resize(llm.tokenizer.encode("To be, or not to be, "), num_tokens).tolist()
    times = []
    for _ in range(3):
        llm.add_request(ids, SamplingParams(max_tokens=1))
        start = perf_counter()
        llm.step()
        times.append(perf_counter() - start)
    return 1000 * min(times)


def swap_ms(num_tokens, block_size=16):
    num_blocks = -(-num_tokens // block_size)
    sizes = config.n_layer, num_blocks, block_size, config.n_head, config.head_size
    here, there = KVCache(*sizes), KVCache(*sizes)
    copies = [BlockCopy(i, i) for i in range(num_blocks)]
    times = []
    for _ in range(5):
        start = perf_counter()
        copy_blocks(here, there, copies)
        copy_blocks(there, here, copies)
        times.append(perf_counter() - start)
    return 1000 * min(times)


lengths = [32, 64, 128, 256, 500]
fig, ax = plt.subplots()
ax.plot(lengths, [recompute_ms(n) for n in lengths], "o-", label="recompute")
ax.plot(lengths, [swap_ms(n) for n in lengths], "s-", label="swap out and in")
ax.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel="ms")
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Here both memories are the same main memory, so swapping is a copy, and cheap. Between a GPU and main memory the bytes have to cross PCIe,
# and the GPU computes fast: there recomputing often wins. The paper (figure 19) found recomputation independent of the block size, and
# swapping *bad at small blocks*: many small transfers instead of few large ones. Does a copy within a processor's memory mind?

# %%
sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
fig, ax = plt.subplots(figsize=(7.5, 2.5))
ax.plot(sizes, [swap_ms(500, size) for size in sizes], "s-", color="C1")
ax.set(xscale="log", xlabel="block size", ylabel="ms to swap 500 tokens", ylim=0)
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
plt.show()

# %% [markdown]
# For texts that share blocks (samples, beams: lesson 7), recomputing costs more: once for each text. So `preemption="auto"` swaps those, and
# recomputes single ones.
#
# ## Who has to go?
#
# The last. The first in line is *never* preempted for another, so it finishes; then the next is first. That is the whole proof that everybody
# finishes some day. And a text that could not finish even alone in the pool is refused when it comes. (nano-vllm #274, #277: it was
# not, and the engine died on an assert, or tried again for ever.)
#
# ## Too many at once
#
# Preemption is cheap if it is rare. When too many are admitted, the engine spends its time computing what it had already. Twelve texts, a pool
# for three or four:


# %%
def run(num_blocks=24, watermark=0.0, max_num_seqs=256, preemption="recompute"):
    llm = LLM(
        block_size=4,
        num_blocks=num_blocks,
        watermark=watermark,
        max_num_seqs=max_num_seqs,
        preemption=preemption,
        swap_space="4MiB",
    )
    for i in range(12):
        llm.add_request("To be, or not to be", SamplingParams(max_tokens=24, seed=i))
    return count_work(llm)


def count_work(llm):
    steps = computed = preemptions = 0
    while llm.scheduler.has_unfinished:
        steps += 1
        plan = llm.schedule()
        computed += sum(chunk.num_tokens for chunk in plan.chunks)
        preemptions += len(plan.preempted)
        llm.copy(plan)
        if plan.chunks:
            llm.update(plan, llm.sample(plan, llm.forward(plan)))
    return steps, computed, preemptions


# %% [markdown]
# A **watermark** is a share of the pool that admission leaves free, so that those who are running have room to grow.
#
# > **Predict.** What do a small and a large watermark do to the number of preemptions? To the number of steps?

# %%
watermarks = [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
results = np.array([run(watermark=w) for w in watermarks])  # [8, 3]
fig, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
for ax, column, title in zip(
    axes, (2, 1, 0), ("preemptions", "tokens computed", "steps")
):
    ax.plot(watermarks, results[:, column], "o-")
    ax.set(title=title, xlabel="watermark", ylim=0)
plt.show()

# %% [markdown]
# Without one, far more tokens are computed than there are. With too much, fewer run at once, and it takes more steps. A little is best, and how
# much depends on how long answers get: it is a bet on the future. The other knob is `max_num_seqs`:


# %%
def tell(name, steps, computed, preemptions):
    print(
        f"{name:18} {steps:3} steps, {computed:4} tokens computed, {preemptions:2} preemptions"
    )


for seats in (2, 3, 4, 6, 12):
    tell(f"at most {seats} at once:", *run(max_num_seqs=seats))
tell("12, with swapping:", *run(preemption="swap"))

# %% [markdown]
# ## All of it, or the first chunk?
#
# A long prompt is computed in chunks (lesson 6). May it come in as soon as there is room for the first one? Or must all of it fit? vLLM calls the
# second `scheduler_reserve_full_isl`, and so does minipage; both reserve unless they are told otherwise.
#
# > **Predict.** Eight prompts of about 80 tokens, in chunks of 16, and a pool for two of them. What does admission by the first chunk do to the tokens
# > that are computed?

# %%
long_prompt = "To be, or not to be, that is the question: " * 5
for reserve in (True, False):
    for watermark in (0, 0.1):
        llm = LLM(
            block_size=4,
            num_blocks=64,
            max_num_batched_tokens=16,
            watermark=watermark,
            scheduler_reserve_full_isl=reserve,
        )
        for i in range(8):
            params_long = SamplingParams(max_tokens=40, ignore_eos=True, seed=i)
            llm.add_request(long_prompt, params_long)
        what = "all of it" if reserve else "first chunk"
        tell(f"{what}, {watermark:.0%}:", *count_work(llm))

# %% [markdown]
# Who comes in by a first chunk takes blocks that it will lose: the pool runs dry in the middle of its prompt, the last in line gives way, and comes in
# again as soon as a chunk fits. Nobody waits for ever (the first in line is never preempted), but the same tokens are computed again and again. On the
# virtual clock of lesson 15, with prompts of 1,200 tokens, `python -m benchmarks.admission` counts 2.2 preemptions a request, and less than
# 0.1 if all of the prompt has to fit. `demo admission` is the story, and exercise 9.5 asks you to write it.

# %% [markdown]
# ## How real projects broke it
#
# **Losing what was written** (nano-vllm #103, and a tutorial): the text starts again from its prompt. Its user sees words appear that contradict
# those already sent:

# %%
from minipage.memory import BlockPool
from minipage.scheduling import Scheduler


class Forgets(Scheduler):
    def preempt(self, group, plan):
        super().preempt(group, plan)
        for seq in group.sequences:
            del seq.token_ids[seq.num_prompt_tokens :]
            group.shared_len = len(seq.token_ids)


params_drawn = SamplingParams(max_tokens=16, temperature=0.8, seed=4)
for scheduler in (Scheduler, Forgets):
    llm = LLM(scheduler=scheduler(BlockPool(9, 4)))
    seen = []
    for output in llm.stream(prompts, params_drawn):
        if output.prompt == prompts[1]:
            seen.append(len(output.outputs[0].token_ids))
    print(f"{scheduler.__name__:10} number of tokens the user has seen: {seen}")

# %% [markdown]
# A stream that goes back to one. **Losing blocks** (another project): swapping copied the data and never freed the block, so each preemption left
# less memory, and caused the next. And vLLM #546: the scheduler **stopped for good** when the swap space was full. Here a group that
# finds no room there is recomputed:

# %%
room = 4 * 8192  # for a single block
llm = LLM(block_size=4, num_blocks=9, preemption="swap", swap_space=room)
outs = llm.generate(prompts, params)
print(
    [out.outputs[0].text == text for out, text in zip(outs, alone)],
    "preempted:",
    outs[1].metrics.num_preemptions,
)

# %% [markdown]
# ## What vLLM does
#
# - Version 1 always recomputes. With prefix caching on, much of what was computed is often still there when the text comes back, so that
#   only its end is computed again. Swapping was in version 0.
# - The watermark was in version 0 (1 % by default), went with it, and came back in June 2026 to reduce preemptions
#   (`watermark`, #44594; 0 by default). A prompt is admitted only if all of it finds room, even if it is computed in chunks
#   (`scheduler_reserve_full_isl`, #37307; until spring 2026 the first chunk was enough). Both are options here, under those names.
# - It warns in the log when preemptions happen, and counts them in a metric. The advice there is what you measured: more memory, or
#   fewer sequences and tokens at once.
# - Swapping has an heir, *KV offloading*: main memory (then disk, or other machines) as a second cache level behind the prefix cache, with an eviction order of
#   its own. Blocks are kept there for whoever needs them, not for one preempted request.
#
# *Checked against vLLM 0.32.0: `vllm/v1/core/sched/scheduler.py` (`_preempt_request`), `vllm/config/scheduler.py` (`watermark`, `scheduler_reserve_full_isl`) and the folder `vllm/v1/kv_offload/`.*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 9.1    # make room; 9.2 recomputation, 9.3 swapping out, 9.4 and in, 9.5 who may come in
# python -m minipage demo preemption --mine .
# python -m minipage play --mine .      # or live: make the pool smaller until somebody gives way
# ```
#
# **Going further.** (a) Preempt the one with the most blocks, not the last: who may starve? (b) Turn on `enable_prefix_caching` in `run`: how many
# tokens are computed now? (c) Choose between swap and recompute by length, from your own measurement above.
#
# Next: **lesson 10**, nearly four times as many blocks from the same memory.
