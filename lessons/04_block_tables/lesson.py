# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Block tables and slot mapping
#
# *About 25 minutes. Comes after lesson 3.*
#
# > **"`len(seq) % block_size == 1`: surely that is an off-by-one? A new block is needed when the last one is *full*, so it
# > should be `== 0`."** (eight threads of one project say so; MinivLLM #75 and #85 "fixed" it, and so broke it)
#
# The line was right. That so many people stumble over it says something else: it is the wrong way to write it. In this
# lesson you
#
# - translate token numbers to blocks and slots, by hand and in code,
# - find the rule that says when a block is needed, in a form that nobody misreads,
# - store real keys and values through a table, and get them back,
# - and see what one slot too far does to a text.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## A page table for text
#
# In lesson 3 blocks were handed out. Which of them holds which words? That is what each text's **block table** says. Its
# first entry is the *physical* block of the text's first `block_size` tokens (its *logical* block 0), the next entry that
# of the next ones. A processor's page table does the same for the pages of a program.

# %%
from minipage import LLM, SamplingParams
from minipage.memory import BlockPool, BlockTable, blocks_needed

llm = LLM(block_size=4, num_blocks=16)
text = "To be, or not to be, that is the question"
token_ids = llm.tokenizer.encode(text)
words = [llm.tokenizer.decode([token]) for token in token_ids]

pool = BlockPool(num_blocks=8, block_size=4)
others = pool.allocate_many(5)  # somebody else was here before, ...
table = BlockTable(pool)
table.append(5)
for block in (others[1], others[3]):  # ... and gives two blocks back
    pool.free(block)
table.append(len(words) - 5)

for logical, physical in enumerate(table):
    print(
        f"logical block {logical} -> physical block {physical}:",
        words[4 * logical : 4 * logical + 4],
    )

# %% [markdown]
# A **slot** is a place for one token's K and V. Slots are numbered through the whole pool, so block 5 with 4 tokens has
# the slots 20 to 23.
#
# > **Predict.** In which slot is token 9 of this text? Work it out on paper: which logical block, at which offset, in which
# > physical block?


# %%
def slot_of(token, blocks, block_size):
    logical, offset = divmod(token, block_size)
    return blocks[logical] * block_size + offset


print("token 9 is in slot", slot_of(9, table.blocks, 4))
print([slot_of(i, table.blocks, 4) for i in range(table.num_tokens)])
print(table.slot_mapping(0, table.num_tokens))

# %% [markdown]
# That is all the address arithmetic there is. Drawn, for two texts that grow in turns:

# %% tags=["hide-input"]
pool = BlockPool(num_blocks=16, block_size=4)
pair = [BlockTable(pool), BlockTable(pool)]
for _ in range(26):
    for table, num_tokens in zip(pair, (1, 1)):
        table.append(num_tokens)
fig, ax = plt.subplots()
for name, table in zip("AB", pair):
    ax.plot(
        table.slot_mapping(0, 26),
        "o",
        markersize=4,
        label=f"text {name}: blocks {table.blocks}",
    )
for block in range(0, 65, 4):
    ax.axhline(block - 0.5, color="lightgray", linewidth=0.5)
ax.set(xlabel="token of the text", ylabel="slot in the pool (lines: blocks)")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Within a block, the slots of neighbouring tokens are neighbours. At each end of a block there is a jump, to wherever there
# was room. A kernel that reads K and V has to follow the jumps: that is the "paged" in paged attention (lesson 5).
#
# ## When is a block needed?
#
# Let one text grow, token by token:

# %%
pool = BlockPool(num_blocks=8, block_size=4)
table = BlockTable(pool)
for length in range(1, 11):
    before = len(table)
    table.append(1)
    print(
        f"{length:2} tokens, {len(table)} blocks",
        "<- a new one" if len(table) > before else "",
    )

# %% [markdown]
# At 1, 5 and 9: so when `length % 4 == 1`. The formula in question is right, *if* `length` already counts the new token,
# and *if* the token is the only new one, and *if* blocks have more than one slot. Three ifs that the line does not state.
# Here is the rule itself:
#
# > A block is needed when the text's tokens need more blocks than its table has.
#
# `blocks_needed(length, block_size) > len(table)`: nobody can read it wrongly, and it has no ifs. Compare the three over all
# small cases:


# %%
def really_needed(length, block_size, new_tokens):
    """By counting: blocks for `length` tokens, of which the last `new_tokens` are new."""
    return blocks_needed(length, block_size) - blocks_needed(
        length - new_tokens, block_size
    )


rules = {
    "% == 1": lambda length, size: int(length % size == 1),
    "% == 0": lambda length, size: int(length % size == 0),
}
for new_tokens in (1, 3):
    for size in (1, 2, 4, 16):
        lengths = range(new_tokens, 200)
        wrong = {
            name: sum(
                rule(n, size) != really_needed(n, size, new_tokens) for n in lengths
            )
            for name, rule in rules.items()
        }
        print(
            f"{new_tokens} new tokens, blocks of {size:2}: wrong answers of about 200:",
            wrong,
        )

# %% [markdown]
# With one new token, `% == 1` is right for every block size but 1, where it never asks for a block at all (that is a bug
# people have hit, too: nano-vllm indexes past the end of the table). With a chunk of three tokens both rules are
# wrong, for every block size. What was derived from a special case stays right only in it.
#
# ## Through the table and back
#
# Now with real numbers. `write_kv` takes the K and V of new tokens and puts each into its slot; a gather through the table
# brings them back in order.

# %%
from minipage.attention import KVCache, write_kv

cache = KVCache(num_layers=1, num_blocks=8, block_size=4, num_kv_heads=2, head_size=3)
rng = np.random.default_rng(0)
k = rng.standard_normal((10, 2, 3), np.float32)  # [num_tokens, num_kv_heads, head_size]
v = rng.standard_normal((10, 2, 3), np.float32)  # [num_tokens, num_kv_heads, head_size]

slots = np.array(table.slot_mapping(0, 10))  # [num_tokens]
write_kv(k, v, cache.k[0], cache.v[0], slots)

blocks = cache.k[0][table.blocks]  # [num_blocks, block_size, num_kv_heads, head_size]
gathered = blocks.reshape(-1, 2, 3)[:10]  # [num_tokens, num_kv_heads, head_size]
print("the same as before:", np.array_equal(gathered, k))

# %% [markdown]
# NumPy's indexing does the whole gather: `cache[table]`. The price is a copy of all K and V at every step, and lesson 5 gets
# rid of it.
#
# ## What the model gets
#
# A step of the engine computes tokens of many texts at once. They are laid out flat, and for each text its table goes
# along. Here is a step with a prompt of five tokens and two texts that are in the middle of writing:

# %%
from minipage.scheduling import Chunk, Sequence, SequenceGroup
from minipage.worker.batch import make_batch


def a_sequence(name, num_tokens, pool):
    return Sequence(name, list(range(100, 100 + num_tokens)), BlockTable(pool))


pool = BlockPool(num_blocks=16, block_size=4)
chunks = []
for name, computed, new in (("A", 0, 5), ("B", 6, 1), ("C", 3, 1)):
    seq = a_sequence(name, computed + new, pool)
    seq.block_table.append(computed + new)
    chunks.append(Chunk(SequenceGroup(name, [seq], 99), seq, computed, new))

for name, array in make_batch(chunks)._asdict().items():
    print(f"{name:16}", array.tolist())

# %% [markdown]
# Seven tokens to compute, and no padding except in the rectangle of block tables, where the entries behind a text's last block
# are never read. `query_start_loc` says that rows 0–4 are A's, row 5 is B's, row 6 is C's.
#
# > **Try.** Which slots would change if block 1 had been taken by somebody else? Check with `pool.allocate()` before the loop.
#
# ## One slot too far
#
# Issue #67 of nano-vllm: positions in decoding off by one. What does such a mistake look like from outside? The engine
# takes any block table, so let us give it one that is wrong by one slot, from the second block on.


# %%
class OffByOne(BlockTable):
    def slot_mapping(self, start, stop):
        slots = super().slot_mapping(start, stop)
        return [
            slot + (i >= self.pool.block_size) for i, slot in enumerate(slots, start)
        ]


prompt = "KING RICHARD III:\nMy kingdom for a"
greedy = SamplingParams(max_tokens=20, temperature=0)
for kind in (BlockTable, OffByOne):
    engine = LLM(block_size=4, num_blocks=15, block_table=kind)
    print(
        f"--- {kind.__name__}\n{engine.generate(prompt, greedy)[0].outputs[0].text}\n"
    )

# %% [markdown]
# No crash. English words, in lines, with a speaker in front: only not the text that the model would have written. Mistakes
# of this kind are found by comparing with an oracle (here: the same model without any paging), never by looking. Let us do
# that: the logits of the next token, once through the paged cache, and once with plain attention over the whole text.

# %%
from minipage.model.dense import dense_attend

ids = np.array(llm.tokenizer.encode(prompt))  # [T]
hidden = llm.model.forward(ids, np.arange(len(ids)), dense_attend)  # [T, n_embd]
oracle = llm.model.logits(hidden[-1:])[0]  # [vocab_size]

for kind in (BlockTable, OffByOne):
    engine = LLM(block_size=4, num_blocks=15, block_table=kind)
    engine.add_request(prompt, greedy)
    logits = engine.forward(engine.schedule())[0]  # [vocab_size]
    print(
        f"{kind.__name__:12} largest difference from the oracle: {np.abs(logits - oracle).max():.2g}"
    )

# %% [markdown]
# ## Watch a table grow
#
# In the trace, the arrows are block tables. Point at a word to see its slot.

# %%
from minipage.trace import record

with record(llm, "A text in pages") as trace:
    llm.generate([prompt, "JULIET:\nO Romeo,"], SamplingParams(max_tokens=14, seed=3))
trace

# %% [markdown]
# ## "The model's max seq len is larger than the KV cache"
#
# Another message that people meet in their first hour with vLLM (#2418, #10517). Now it needs no explanation: a text of the
# longest allowed length needs `blocks_needed(max_model_len)` blocks, and the pool has fewer. No scheduling helps, even with
# the text alone. So it is refused at once, with the numbers:

# %%
from minipage.errors import InvalidRequestError

small = LLM(block_size=4, num_blocks=8)
print(
    "blocks for the longest text:",
    blocks_needed(small.max_model_len, 4),
    "  in the pool:",
    8,
)
try:
    small.add_request(prompt, SamplingParams(max_tokens=30))
except InvalidRequestError as error:
    print(error)

# %% [markdown]
# minipage refuses the single request that is too long; vLLM refuses to start, unless `max_model_len` is lowered. Both are
# better than what nano-vllm did (#274, #277): accept it, and fail or spin when the pool is empty.
#
# ## A window that moves on
#
# Many models since the paper have *sliding windows*: a layer lets each token see the last W tokens only. Then a block that lies
# wholly behind the window of the next token will never be read again, and its text can give it back while it goes on. In the
# table a *null block* stands in its place, so that token `i` is found in logical block `i // block_size` as before.
# The shipped model has no window, but it can be given one:

# %%
from minipage import LLM, SamplingParams

llm = LLM(
    block_size=4,
    num_blocks=40,
    max_num_batched_tokens=16,
    hf_overrides={"sliding_window": 12},
)
llm.add_request(
    "To be, or not to be, that is the question",
    SamplingParams(max_tokens=60, ignore_eos=True),
)
while llm.has_unfinished_requests():
    llm.step()
    for group in llm.scheduler.running:
        table = group.leader.block_table
        if table.num_tokens % 16 == 0:
            shown = " ".join(
                "-" if block < 0 else str(block) for block in table.parts[0]
            )
            print(
                f"{table.num_tokens:3} tokens, {llm.block_pool.num_used} blocks in use: {shown}"
            )

# %% [markdown]
# Of 12 tokens before the next one, 11 can be seen: with a window W and n tokens computed, `max(0, n + 1 - W) // block_size`
# blocks lie behind. A model that mixes such layers with full ones gives every sequence a table for each *kind*, over one pool;
# vLLM calls the kinds KV cache groups (`minipage/memory/kv_groups.py`). `demo window` shows blocks coming home, and exercise
# 4.5 is to write it.
#
# ## What vLLM does
#
# - The block table is a row of a large integer tensor, `[max_num_seqs, max_blocks]`, kept on the GPU between steps, so that
#   only what has changed is written.
# - The slot mapping is computed on the GPU as well, by the formula that you have used: block × `block_size` + offset. Padding
#   is slot −1: the kernel that writes K and V skips it.
# - The decision when a block is needed is in `KVCacheManager.allocate_slots`, as `cdiv(num_tokens, block_size)` minus the
#   blocks that are there: the rule in words, not the modulo.
# - Names: block table and slot mapping are called that there, too. TensorRT-LLM speaks of *KV cache block offsets*.
#
# *Checked against vLLM 0.32.0: `vllm/v1/worker/block_table.py` (`BlockTable`, the slot mapping) and `vllm/v1/core/kv_cache_manager.py` (`allocate_slots`).*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 4.1            # blocks_needed; then 4.2 append, 4.3 slot_mapping, 4.4 free, 4.5 what a window leaves
# python -m minipage demo --mine .              # the engine, on your table (and your pool)
# ```
#
# **Going further.** (a) A table of two levels saves memory for very long texts, as on your computer. From how many blocks on
# would it pay? (b) Make blocks of 1. What is the slot mapping now?
#
# Next: **lesson 5**, attention that follows the table.
