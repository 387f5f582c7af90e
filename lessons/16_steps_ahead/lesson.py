# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16. Steps ahead
#
# *About 40 minutes. Comes after lessons 4 and 6; lesson 15 helps.*
#
# > **"Why one token at a time? And if it guesses several: does that change my text? And why is my GPU idle between steps?"**
#
# A step reads all weights and makes one token of each text. Most of the machine's arithmetic has nothing to do meanwhile. So let somebody
# cheap guess how the text goes on, and let one step check all guesses. You will
#
# - predict how many tokens a step makes when guesses are right with some probability,
# - measure it on a text that repeats itself, and on one that nobody can guess,
# - watch slots being allocated ahead and given back,
# - see why the text is the same to the last token, greedy or sampled,
# - and draw what host and device do when, with steps that overlap and without.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## What do more tokens in a step cost?
#
# The cost model of lesson 15 knows: a step takes as long as reading takes, or computing, whichever is longer.
#
# > **Predict.** A single text on an A100 with OPT-13B. A step computes 1 token. How much longer does it take with 5 tokens? With 64?

# %%
from minipage.simulate.configs import find_architecture
from minipage.simulate.cost import CostModel, Sizes, Work
from minipage.simulate.machines import A100_40, GRAPHS

cost = CostModel(Sizes.of(find_architecture("OPT-13B")), A100_40, GRAPHS)
one = cost.products(Work(1, 1, 1, 500, 500))
for n in (1, 2, 5, 16, 64, 256):
    seconds = cost.products(Work(n, 1, n, 500, 500 * n))
    print(f"{n:4} tokens: {1000 * seconds:5.1f} ms, {seconds / one:.2f} times as long")

# %% [markdown]
# The weights are read once, whatever is multiplied with them. A batch of many texts uses that already (lesson 6). A *single* text cannot: its next token has to be
# there before the one after it. Except if somebody guesses:
#
# ```
# the text     ... the king of | France and the      the last token, and three drafts: slots are allocated ahead
# drawn after             of: France  France: and  and: her       what the model says at each place
# kept                        France          and       her       two drafts were right, one token is new,
#                                                                 and the slot of "the" is given back
# ```
#
# All four are rows of one ragged batch, as in a chunk of a prompt (lesson 6). The causal mask does the rest: each draft looks at the text and the drafts before it.
#
# ## Predict acceptance
#
# Let each draft be right with probability *a*, if those before it were. With *k* drafts a step makes 1 + a + a² + … + aᵏ tokens on average (Leviathan et al.,
# [2023](https://arxiv.org/abs/2211.17192), equation 1).
#
# > **Predict.** Four drafts, each right in 8 of 10 cases: how many tokens does a step make? And how many of the drafts were in vain?

# %%
a = np.linspace(0, 1, 101)  # [101]
fig, ax = plt.subplots()
for k in (1, 2, 4, 8):
    tokens = sum(a**i for i in range(k + 1))  # [101]
    ax.plot(a, tokens, label=f"{k} drafts")
    print(f"{k} drafts, a = 0.8: {sum(0.8**i for i in range(k + 1)):.2f} tokens a step")
ax.set(xlabel="probability that a draft is right", ylabel="tokens a step")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Eight drafts compute nearly twice the rows of four, and make only 1.3 times the tokens: a later one counts only if all before it were right.
#
# ## Measure it
#
# Who guesses? The cheapest of all is the text itself: *what followed these words the last time?* (an n-gram proposer, exercise 16.1). So it depends on the text.
#
# > **Predict.** 150 tokens, four drafts. How many steps does a speech take that repeats itself? And one that is drawn at a temperature of 1.5?

# %%
from minipage import LLM, SamplingParams

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "only_if_quicker": False,  # whatever it costs: we want to see what happens
}
CITIZENS = "SICINIUS:\nSpeak, good friend.\n\nBRUTUS:\nSpeak, good friend.\n\n" * 3
RICHARD = "KING RICHARD III:\nMy kingdom for a"


def run(prompt, config, **params):
    """The tokens, the number of steps, and the engine's counts."""
    llm = LLM(speculative_config=config) if config else LLM()
    llm.add_request(prompt, SamplingParams(max_tokens=150, ignore_eos=True, **params))
    num_steps = 0
    while llm.has_unfinished_requests():
        outputs = llm.step()
        num_steps += 1
    return outputs[0].outputs[0].token_ids, num_steps, llm.stats()


cases = {
    "repeats itself": (CITIZENS, {"temperature": 0}),
    "greedy": (RICHARD, {"temperature": 0}),
    "temperature 0.8": (RICHARD, {"temperature": 0.8, "seed": 1}),
    "temperature 1.5": (RICHARD, {"temperature": 1.5, "seed": 1}),
}
runs = {
    name: (run(prompt, None, **params), run(prompt, NGRAM, **params))
    for name, (prompt, params) in cases.items()
}
for name, ((_, plain, _), (_, ahead, stats)) in runs.items():
    drafts = stats["vllm:spec_decode_num_draft_tokens"]
    right = stats["vllm:spec_decode_num_accepted_tokens"]
    print(
        f"{name:16} {plain} steps without drafts, {ahead:3} with; {right:3} of {drafts:3} drafts right"
    )

# %% [markdown]
# A text that repeats itself takes a third of the steps. In a text that cannot be guessed nearly all drafts are wrong, and there are few of them: to guess
# costs little, so every text is guessed at; but a guess is computed only if the last one came true (`_was_right` in `engine/speculation.py`).
#
# Is the acceptance the same at each position, as the formula has it?

# %%
stats = runs["repeats itself"][1][2]
accepted = stats["vllm:spec_decode_num_accepted_tokens_per_pos"]
reached = [stats["vllm:spec_decode_num_drafts"], *accepted]
for i, (right, of) in enumerate(zip(accepted, reached)):
    print(f"draft {i + 1}: {right} right, of {of} times that all before it were right")
made = 1 + sum(accepted) / reached[0]
print(f"a step with drafts made {made:.2f} tokens; the formula says", end=" ")
print(f"{sum(0.9**i for i in range(5)):.2f} for a = 0.9")

# %% [markdown]
# Here it is nearly so, about 9 of 10, and the formula is close. (Other texts: once a long passage is found again, later drafts are better than the first.)
#
# ## Does it change my text?
#
# > **Predict.** In which of the four cases are the tokens with drafts the same as without?

# %%
for name, ((plain, _, _), (ahead, _, _)) in runs.items():
    print(f"{name:16} the same 150 tokens: {plain == ahead}")

# %% [markdown]
# In all of them, sampled ones too. Nothing was approximated, for two reasons:
#
# - A token is kept only if all tokens before it are what the text has. So the model's logits there are those of a step without drafts.
# - A draw depends on *seed, sample and position* only: the random number for token 57 of this text is the same, whoever computes it and in whichever step. So "what would have been drawn here" has one answer, and a
#   draft is right if it is that.
#
# ## Watch the slots
#
# A wrong draft has had a slot, and its K and V were written there. When it is rejected, the table forgets the slot (`BlockTable.truncate`, exercise 16.3), and a block that holds nothing
# else goes back to the pool. Nobody clears it: the right token will write over it.

# %%
from minipage.trace import record

WHEREFORE = "JULIET:\nO Romeo, Romeo, wherefore art thou Romeo?\n\nJULIET:\nO Romeo,"
llm = LLM(
    block_size=4,
    num_blocks=24,
    speculative_config=NGRAM | {"num_speculative_tokens": 3},
)
with record(llm, "Steps ahead") as trace:
    llm.generate([WHEREFORE], SamplingParams(temperature=0, max_tokens=24))
for frame in trace.steps:
    for event in frame.events:
        if "guess" in event:
            print(f"step {frame.step}: {event}")

# %%
trace

# %% [markdown]
# The same as a story: `python -m minipage demo speculation`.
#
# Two rules keep the rest of the engine out of it. *Nobody is preempted for a guess*: if no block is free, there are fewer drafts. And a block is published in the prefix cache (lesson 8) only when all
# its tokens are really the text's: otherwise somebody else could find a text that nobody said.
#
# ## When it does not pay
#
# With many texts in the batch, the weights are shared already, and drafts only add arithmetic. On a CPU that point comes early. Here nothing is drafted once a step has 16 tokens:

# %%
for num_texts in (1, 4, 16, 32):
    llm = LLM(speculative_config=NGRAM)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    llm.generate([CITIZENS] * num_texts, params)
    stats = llm.stats()
    print(
        f"{num_texts:2} texts: {stats['vllm:spec_decode_num_draft_tokens']:3} tokens drafted for {40 * num_texts} that were made"
    )

# %% [markdown]
# ## A smaller model guesses
#
# A text that does not repeat itself can still be guessed, by a smaller model of the same tokenizer: `speculative_config={"model": "distilgpt2"}` for a GPT-2, say. It has to be several times faster, since it makes
# its drafts one token at a time. The limit of it is a model that guesses for itself:

# %%
config = {"model": "shakespeare", "num_speculative_tokens": 4, "only_if_quicker": False}
llm = LLM(speculative_config=config)
llm.generate([RICHARD], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
stats = llm.stats()
print(
    f"{stats['vllm:spec_decode_num_accepted_tokens']} of {stats['vllm:spec_decode_num_draft_tokens']} drafts right"
)

# %% [markdown]
# All right, and nothing gained: each draft took as long as a step. Without `only_if_quicker: False` the engine finds that out by itself. It keeps an account of time (`engine/account.py`) for each
# number of texts: what steps with guesses took, beside what their tokens would take in plain steps. As soon as one plain step is lost, nobody is asked for a guess any more, until a 50th of the time of all steps
# makes up for it. So what nobody can guess takes hardly more than 2 % longer, on any machine.
#
# > **Predict.** The first five steps of an account, and five of each 128 later, go without guesses. Why?
#
# The draft model's K and V have other sizes, so it has a pool of its own here.
#
# ## Overlap: while the device computes, the host plans
#
# Guessing saves steps. Something else can be saved *between* them. A step has a part for the host (plan it, make its inputs, hand out its tokens, look for stop strings) and a part for the device. One after the other, the GPU waits for the host
# in between: GPT-2 with 256 requests keeps an H200 busy for 1.1 ms, and a plain step takes 3.
#
# > **Predict.** The host needs 0.4 ms for a step, the device 1 ms. How long does a step take if the host may plan the next one meanwhile? And if the host needs 2 ms?
#
# What could keep it from doing so? The next step's tokens are not drawn yet. But a plan does not need them: it asks how *many* tokens there are, and which slots they get. So *placeholders* stand where the tokens will be, and the
# device puts them there itself. Here a pretend device takes 1 ms for a step and computes nothing, so that the lanes can be drawn on any computer; what the host does is real.

# %%
from minipage.simulate.device import PretendDevice
from minipage.trace.recording.lanes import watch_lanes

fig, axes = plt.subplots(2, 1, sharex=True, figsize=(8, 3))
colors = {"plan": "tab:orange", "update": "tab:olive"}
for ax, overlap in zip(axes, (False, True)):
    llm = LLM(max_num_batched_tokens=8192)
    PretendDevice(llm, seconds=0.001, overlap=overlap)
    params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0)
    with watch_lanes(llm) as lanes:
        llm.generate(["To be, or not to be"] * 32, params)
    begin = lanes.of("device")[30].start
    for row, lane in enumerate(("device", "host")):
        for span in lanes.of(lane):
            place = 1000 * (span.start - begin), 1000 * (span.stop - span.start)
            ax.broken_barh([place], (row, 0.8), color=colors.get(span.name, "tab:blue"))
    ax.set(yticks=[0.4, 1.4], yticklabels=["device", "host"], xlim=(0, 6))
    ax.set_title(
        "steps that overlap" if overlap else "plain steps", loc="left", fontsize=9
    )
    print(
        f"overlap={overlap!s:5}: the device is idle for {100 * lanes.idle:.0f} % of the time"
    )
axes[-1].set_xlabel(
    "ms; orange: plan and launch, olive: hand out tokens, blue: compute"
)
plt.show()

# %% [markdown]
# A step now takes as long as the slower of the two lanes. (`lanes.save("lanes.json")` writes them for [Perfetto](https://ui.perfetto.dev).) On an H200 a step of GPT-2 with 1 and with 64 requests came down from 439 and 1,147 µs to 297 and 711, of which the GPU is busy for 293 and
# 690. With 256 requests the host needs longer than the GPU's 1,139 µs, and sets the pace: 2,769 µs became 1,313.
#
# > **Predict.** One text ends by its length, one by a stop token. For which of the two does the device compute a token too many?

# %%
for name, how in {
    "length": {"max_tokens": 20},
    "a stop string": {"stop": ["lord"]},
}.items():
    # On a CPU nothing is gained, but all is done in the same way.
    llm = LLM(async_scheduling=True)
    [output] = llm.generate(
        [RICHARD], SamplingParams(**({"max_tokens": 99, "temperature": 0} | how))
    )
    print(
        f"ended by {name}: {llm.overlap.num_surplus} surplus; ...{output.outputs[0].text[-30:]!r}"
    )

# %% [markdown]
# That a text ends by its length is known before. A stop token or a stop string the host sees only when the next step is on its way. What is drawn there for that text is *surplus*, and is dropped; its slot goes back with the text's blocks, and
# nothing of it was published in the prefix cache, because only what the host has seen is published. An error in a step loses nothing either: what was launched counts for nothing, and is computed again.
#
# Some requests cannot be planned without their last token: beams, penalties, structured outputs, log probabilities. While one of them is there, steps are plain. So they are while somebody records a trace, and with speculation as soon as
# guesses come true: whose next tokens are guessed, his last one must be known.
#
# ## What vLLM does
#
# - `--speculative-config '{"method": "ngram", "num_speculative_tokens": 4}'`, the same names as here. Without `prompt_lookup_min` and `prompt_lookup_max` it looks for exactly 5 tokens, and takes the first place of several;
#   here it is 16 to 1, and the first of several, too (in exercise 16.1, the last). And in vLLM every guess is computed, also after wrong ones.
# - The n-gram proposer is numba code there, too. Besides, there are draft models, EAGLE (a small head that guesses from the hidden states), Medusa and suffix trees.
# - Its scheduler allocates look-ahead slots with the others, and takes a rejection back by subtracting it from `num_computed_tokens`: the request keeps its blocks, because it will need them soon.
# - Sampled texts: a rejection sampler accepts a draft with probability min(1, p / q), and otherwise draws from what is left of p. The *distribution* is exactly the model's; the text of a given seed may be another one than without drafts. minipage's
#   draws are bound to positions, so here it is the text itself that stays.
# - Overlap is called async scheduling there (`--async-scheduling`), and is on unless something rules it out. `AsyncScheduler` counts placeholders for tokens that are not sampled yet; the sampled ones stay on the GPU as the next step's input. It goes together with structured outputs
#   and with most ways to speculate (n-grams on the CPU rule it out), which minipage's does not.
# - The counters have the same names: `vllm:spec_decode_num_drafts`, `vllm:spec_decode_num_draft_tokens`, `vllm:spec_decode_num_accepted_tokens` and `..._per_pos`.
#
# *Checked against vLLM 0.32.0: `vllm/v1/spec_decode/ngram_proposer.py`, `vllm/v1/spec_decode/metrics.py`, `vllm/v1/sample/rejection_sampler.py`, `vllm/v1/core/sched/scheduler.py`, `vllm/v1/core/sched/async_scheduler.py` and `vllm/config/speculative.py`.*
#
# ## Your turn
#
# ```bash
# python -m minipage learn check 16.1    # propose; then 16.2 verify, 16.3 give back, 16.4 keep the device busy
# ```
#
# **Going further.** (a) Hand in a proposer of your own: `llm.speculation.proposer` needs one method, `propose(texts, counts)`. One that knows the speech by heart makes five tokens a step. (b) Let a request for JSON under a schema
# (`structured_outputs`) run with n-grams: which of its tokens are guessed? (c) Raise `CHEAP_ROWS` in `engine/speculation.py` and find where your machine stops gaining: `python -m benchmarks.speculation`.
#
# Next: **lesson 17**, blocks that travel.
