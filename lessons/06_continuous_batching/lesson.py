# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Continuous batching and chunked prefill
#
# *About 30 minutes. Comes after lesson 2; lessons 3 and 4 help.*
#
# > **"One user sends a very long prompt, and everybody else's text stops. Can that be avoided?"** And its twin, found by running
# > nano-vllm: *one new request every step, and nobody who is already writing ever gets a token again.*
#
# A batch is decided anew at every step. Who is in it, and with how many tokens? This decision is all that a scheduler is, and the two
# questions above are its two ends: too much for those who come, or too much for those who are there. You will
#
# - measure what waiting for a whole batch costs, against deciding at every step,
# - cut long prompts into chunks, and find a good size by measuring,
# - starve somebody, on purpose, and read the rule that prevents it,
# - and write a policy of your own.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## A batch that waits for its slowest
#
# The obvious way to batch: collect eight requests, run them until all are done, collect the next eight. But answers differ in
# length. Count the *seats* that are idle, without running any model:

# %%
rng = np.random.default_rng(0)
lengths = 1 + rng.exponential(40, size=64).astype(int)  # [64] tokens of each answer


def static_batching(lengths, seats):
    steps = [max(lengths[i : i + seats]) for i in range(0, len(lengths), seats)]
    return sum(steps)


def continuous_batching(lengths, seats):
    waiting, running, steps = list(lengths), [], 0
    while waiting or running:
        while waiting and len(running) < seats:  # a free seat is taken at once
            running.append(waiting.pop(0))
        running = [left - 1 for left in running if left > 1]
        steps += 1
    return steps


for name, schedule in (
    ("static", static_batching),
    ("continuous", continuous_batching),
):
    steps = schedule(lengths, 8)
    print(
        f"{name:10}: {steps} steps, {lengths.sum() / (8 * steps):.0%} of the seats used"
    )

# %% [markdown]
# Little more than a third of the seats, or nearly nine tenths. *Iteration-level scheduling* was the idea of Orca (Yu et al., OSDI 2022); today everybody calls it
# **continuous batching**. Watch it: three requests come at different times. Nobody waits for anybody.

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

prompts = [
    "KING RICHARD III:\nMy kingdom for a",
    "JULIET:\nO Romeo,",
    "ROMEO:\nO, she doth teach the torches to",
]
llm = LLM(block_size=4, num_blocks=20, max_num_batched_tokens=8)
with record(llm, "Who comes, runs; who is done, goes") as trace:
    for i, prompt in enumerate(prompts):
        llm.add_request(
            prompt, SamplingParams(max_tokens=10 - 2 * i, temperature=0.8, seed=i)
        )
        llm.step()
        llm.step()
    while llm.has_unfinished_requests():
        llm.step()
trace

# %% [markdown]
# ## A budget of tokens
#
# A step may compute `max_num_batched_tokens` tokens; above, it is 8. A text that is writing needs one. A prompt needs as many as it has. The
# rule of the scheduler, in three lines:
#
# 1. those who are running come first, in order: a token each (or the next piece of their prompt);
# 2. then the others, whether they are new or were preempted (lesson 9), in order, as long as there are tokens, blocks and
#    seats left;
# 3. a prompt that is longer than the tokens that are left is *cut*.
#
# Here is what every step of that run computed. Find the prompt that was cut:


# %% tags=["hide-input"]
def draw_chunks(trace, ax):
    """A bar for each step: whose tokens it computed. Prompt pieces are hatched."""
    letters = sorted({chunk.label for frame in trace.steps for chunk in frame.chunks})
    for frame in trace.steps:
        bottom = 0
        for chunk in frame.chunks:
            is_prompt = chunk.num_tokens > 1
            color = f"C{letters.index(chunk.label)}"
            style = dict(color=color, edgecolor="white", alpha=0.55 if is_prompt else 1)
            ax.bar(frame.step, chunk.num_tokens, bottom=bottom, width=0.9, **style)
            ax.text(
                frame.step,
                bottom + chunk.num_tokens / 2,
                chunk.label,
                ha="center",
                va="center",
                color="white",
                fontsize=8,
            )
            bottom += chunk.num_tokens
    ax.set(xlabel="step", ylabel="tokens computed")


fig, ax = plt.subplots()
draw_chunks(trace, ax)
ax.axhline(8, color="gray", linestyle=":")
plt.show()

# %% [markdown]
# (Light: pieces of a prompt. Full colour: one token of an answer. Dotted: the budget.)
#
# ## The long prompt
#
# Now the question at the top. Somebody is writing; then a prompt of 400 tokens comes. How long does the writer wait for the next token?

# %%
from time import perf_counter


def gaps_while_a_long_prompt_comes(budget):
    """Milliseconds between the writer's tokens; and until the long prompt got its first token."""
    llm = LLM(num_blocks=100, max_num_batched_tokens=budget)
    llm.generate("warm up", SamplingParams(max_tokens=2))
    llm.add_request(
        "JULIET:\nO Romeo,", SamplingParams(max_tokens=80, seed=0), request_id="writer"
    )
    long_prompt = (
        llm.tokenizer.encode("To be, or not to be, that is the question. ") * 40
    )[:400]
    gaps, first_token, last = [], None, None
    for step in range(70):
        if step == 10:
            llm.add_request(
                long_prompt, SamplingParams(max_tokens=4), request_id="long"
            )
            arrival = perf_counter()
        for output in llm.step():
            now = perf_counter()
            if output.request_id == "writer":
                gaps.append(1000 * (now - (last or now)))
                last = now
            elif first_token is None:
                first_token = 1000 * (now - arrival)
        if first_token and step > 20:
            break
    return np.array(gaps[1:]), first_token


fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for ax, budget in zip(axes, (512, 32)):
    gaps, first = gaps_while_a_long_prompt_comes(budget)
    ax.bar(range(1, len(gaps) + 1), gaps)
    ax.set(title=f"{budget} tokens a step", xlabel="token of the writer")
    ax.text(
        0.98,
        0.93,
        f"the long prompt's first token:\nafter {first:.0f} ms",
        transform=ax.transAxes,
        ha="right",
        va="top",
    )
axes[0].set(ylabel="ms since the last token")
axes[0].set_ylim(0, 1.4 * axes[0].get_ylim()[1])
plt.show()

# %% [markdown]
# Left, the whole prompt is computed in one step, and the writer pauses for it. Right, it comes in pieces of 31, beside the writer's one
# token a step, and the pause is spread out. This is **chunked prefill** (Agrawal et al., Sarathi,
# [2023](https://arxiv.org/abs/2308.16369)).
#
# > **Predict.** What does the smaller budget cost? Think of lesson 2's curve of tokens per second.

# %%
budgets = [8, 16, 32, 64, 128, 256, 512]
runs = [gaps_while_a_long_prompt_comes(budget) for budget in budgets]
worst = [gaps.max() for gaps, _ in runs]
firsts = [first for _, first in runs]

fig, ax = plt.subplots()
ax.plot(budgets, worst, "o-", label="longest pause of the writer")
ax.plot(budgets, firsts, "s-", label="until the long prompt's first token")
ax.set(xscale="log", yscale="log", xlabel="max_num_batched_tokens", ylabel="ms")
ax.set_xticks(budgets, budgets)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The two pull in opposite directions: a small budget is kind to those who are writing, a large one to those who come. Where to stand between them is a decision about people,
# not about machines. (vLLM's defaults lie between 2,048 and 16,384 tokens, depending on the GPU.)
#
# ## Starving
#
# nano-vllm, before it had chunked prefill, gave *prompts* the priority: a step computed prompts if there were any, and answers otherwise. With a new
# request at every step, there are always prompts. Here is that rule, in our scheduler:

# %%
from minipage.memory import BlockPool
from minipage.scheduling import Scheduler, StepPlan


class PromptsFirst(Scheduler):
    def schedule(self):
        plan = StepPlan()
        self._admit(plan, self.max_num_batched_tokens)
        return plan if plan.chunks else super().schedule()


def tokens_of_the_first(scheduler_class, num_steps=30):
    llm = LLM(scheduler=scheduler_class(BlockPool(200, 4), max_num_batched_tokens=16))
    llm.add_request(
        "JULIET:\nO Romeo,", SamplingParams(max_tokens=40, seed=0), request_id="first"
    )
    counts, so_far = [], 0
    for i in range(num_steps):
        llm.add_request("To be", SamplingParams(max_tokens=3, seed=i))
        for output in llm.step():
            if output.request_id == "first":
                so_far = len(output.outputs[0].token_ids)
        counts.append(so_far)
    return counts


fig, ax = plt.subplots(figsize=(7.5, 2.6))
ax.plot(tokens_of_the_first(Scheduler), label="running first (minipage)")
ax.plot(tokens_of_the_first(PromptsFirst), label="prompts first")
ax.set(xlabel="step, with a new request at each", ylabel="tokens of the first text")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Flat for ever: the first text never gets its second token, as long as requests keep coming. "Running first" cannot do that: whoever has
# started gets a token in *every* step, unless memory runs out. And those who wait? They are admitted in order, and nobody
# overtakes, even if a shorter one would fit: otherwise a long prompt would wait for ever behind a stream of short ones.
#
# > **Try.** Prove to yourself that everybody finishes. Who is never preempted? What has happened at the latest when that one is done?
#
# ## A policy of your own
#
# "In order" is a function, and you can hand in another. Shortest job first is known to have the shortest *average* waiting time:


# %%
def shortest_first(group):
    return group.max_num_tokens, group.arrival


def waiting_steps(policy, seed=3):
    rng = np.random.default_rng(seed)
    llm = LLM(num_blocks=60, max_num_seqs=2, policy=policy)
    jobs = {f"{i}": int(n) for i, n in enumerate(1 + rng.exponential(12, size=14))}
    for name, max_tokens in jobs.items():
        llm.add_request(
            "To be", SamplingParams(max_tokens=max_tokens, seed=0), request_id=name
        )
    finished, step = {}, 0
    while llm.has_unfinished_requests():
        step += 1
        finished |= {o.request_id: step for o in llm.step() if o.finished}
    return np.array([finished[name] for name in jobs]), np.array(list(jobs.values()))


fig, ax = plt.subplots()
for name, policy in (
    ("first come, first served", "fcfs"),
    ("shortest first", shortest_first),
):
    done, tokens = waiting_steps(policy)
    ax.plot(
        tokens,
        done,
        "o",
        label=f"{name}: on average done after {done.mean():.0f} steps",
    )
ax.set(xlabel="tokens wanted", ylabel="done after this many steps", ylim=(0, 120))
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# Better on average, and worse for the longest. (And it needs to know the lengths, which are only guessed by `max_tokens`.)
#
# ## What vLLM does
#
# - Version 1 has the same loop as `Scheduler.schedule`: running requests first, then waiting ones, one budget of tokens for both, and no
#   phases. "Prefill" and "decode" are only words for how many tokens are missing.
# - Chunked prefill is on by default. Beside the budget, `long_prefill_token_threshold` bounds how much of one prompt a step computes, so that
#   several can advance together. (A limit for how *many* do, `max_num_partial_prefills`, was version 0's; version 1 does not heed it, and users ask for it, #57413.)
# - *Async scheduling*: the next step is planned while the GPU still computes this one, with placeholders for the tokens that are not known yet.
# - TensorRT-LLM says *in-flight batching*, and *chunked context*.
# - Policies: `fcfs` and `priority`, as here.
#
# *Checked against vLLM 0.32.0: `vllm/v1/core/sched/scheduler.py` (`Scheduler.schedule`), `vllm/v1/core/sched/async_scheduler.py` and `vllm/config/scheduler.py`.*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 6.1    # share out the budget; 6.2 admission, 6.3 letting them in, 6.4 schedule
# python -m minipage demo continuous-batching --mine .
# python -m minipage play --mine .      # or live, with prompts of your own
# ```
#
# **Going further.** (a) A policy that ages: short jobs first, but everybody's turn comes. (b) A budget that adapts: as large as the writers'
# patience (say 30 ms a step) allows.
#
# Next: **lesson 7**, several texts of one prompt.
