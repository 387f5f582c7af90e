# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Prefix caching
#
# *About 35 minutes. Comes after lessons 3 and 4.*
#
# > **"I send the same prompt twice, and the hit rate is 0 %. Why?"** (vLLM #54607, #3942)
# >
# > **"One word in the middle has changed. Is anything after it shared?"** (#1414)
# >
# > **"Usage fell to 0 %. Is my prefix gone?"** (#5176)
# >
# > **"Why does prefix caching change my output?"** (#5543)
# >
# > **"Are hash collisions a security problem?"** (#12621, #15297)
#
# Five questions, one mechanism. Most requests to a real server begin like another one: the same system prompt, the same
# document, the conversation so far. Their K and V are the same numbers, and they may still be there. You will
#
# - measure what is found, and when nothing is,
# - build the hash that a block is found by, and break a bad one,
# - see blocks that are free and yet not empty, and in which order they are lost,
# - and answer all five questions.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## The same beginning, computed once
#
# A long system prompt, and two users. The second asks something else, after the same beginning:

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

SYSTEM = "First Citizen:\nBefore we proceed any further, hear me speak.\n"
llm = LLM(
    block_size=4, num_blocks=20, enable_prefix_caching=True, max_num_batched_tokens=16
)
with record(llm, "What was computed once") as trace:
    for question in ("All:\nSpeak", "KING RICHARD III:\nMy kingdom"):
        llm.generate(SYSTEM + question, SamplingParams(max_tokens=5, temperature=0))
trace

# %% [markdown]
# Step to the end of the first text. Its blocks go back into the free queue, and the pool is empty: usage 0 %. But look at their
# colour. They are *free and cached*: nobody holds them, they still contain what was written, and they can be found. When
# the second request comes, they are taken out of the queue, from the middle: they are *reused* (green), and only the rest of
# its prompt is *computed* (blue).
#
# That answers **"usage fell to 0 %, is my prefix gone?"** Usage counts what is held. A prefix is gone only when its block is
# handed out for something else.
#
# ## Only whole blocks
#
# None of this needs a model: the prefix cache is plain Python, and knows only token ids and block numbers.
#
# > **Predict.** A text of 40 tokens was computed, in blocks of 16. The same text comes again. How many of its tokens are found?

# %%
from minipage.memory import BlockPool, BlockTable, PrefixCache


def serve(tokens, cache, table_class=BlockTable):
    """What the engine does with a prompt, except the computing. Returns how many tokens were found."""
    table = table_class(cache.pool)
    blocks, hashes = cache.find(tokens)
    cache.adopt(table, blocks, hashes)
    num_found = table.num_tokens
    table.append(len(tokens) - num_found)  # here the engine would compute these
    cache.publish(table, tokens)
    table.free()
    return num_found


def found(first, second, block_size=16):
    cache = PrefixCache(BlockPool(100, block_size))
    serve(first, cache)
    return serve(second, cache)


rng = np.random.default_rng(0)
text = rng.integers(0, 2000, size=100).tolist()
for length in (15, 16, 17, 32, 33, 40):
    print(
        f"the same {length} tokens again: {found(text[:length], text[:length])} found"
    )

# %% [markdown]
# 32 of 40, and **0 of 15**: the first answer to "why 0 %?". Blocks that are not full cannot be found. They will still be written
# into, and a block that changes cannot be shared. The second surprise is at 16 and 32: *one block less* than there is.
# At least one token is always left to compute, because the next token is drawn from the *logits* of the last one, and logits
# are not cached. (nano-vllm #114: it found everything, had nothing to compute, and crashed.)

# %% tags=["hide-input"]
lengths = range(1, 100)
fig, ax = plt.subplots()
for size in (4, 16, 32):
    ax.step(
        lengths,
        [found(text[:n], text[:n], size) for n in lengths],
        where="post",
        label=f"blocks of {size}",
    )
ax.plot(lengths, lengths, ":", color="gray", label="all of it")
ax.set(xlabel="tokens of a prompt that comes again", ylabel="tokens found")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## One changed word
#
# > **Predict.** A prompt of 96 tokens comes again with one token changed, at place *p*. Draw how many are found, over *p*.


# %%
def changed_at(place, tokens=text[:96]):
    changed = tokens.copy()
    changed[place] = (changed[place] + 1) % 2000
    return found(tokens, changed)


places = range(96)
fig, ax = plt.subplots()
ax.step(places, [changed_at(p) for p in places], where="post")
ax.set(xlabel="place of the changed token", ylabel="tokens found, of 96")
plt.show()

# %% [markdown]
# Whatever comes after a change is lost, even if the words are the same. Not because the cache is simple-minded: K and V of a token
# depend on *all tokens before it*. Behind a changed word, the same words have other K and V. Let us look:

# %%
from minipage.model.dense import dense_attend


def last_values(tokens):
    """The V of every token in the last layer; [T, n_head * head_size]."""
    seen = []

    def attend(layer, q, k, v):
        seen.append(v.reshape(len(tokens), -1))
        return dense_attend(layer, q, k, v)

    llm.model.forward(np.array(tokens), np.arange(len(tokens)), attend)
    return seen[-1]


changed = text[:60].copy()
changed[20] = 7
difference = np.abs(last_values(text[:60]) - last_values(changed)).max(axis=1)  # [60]
fig, ax = plt.subplots(figsize=(7.5, 2.2))
ax.bar(range(60), difference)
ax.set(xlabel="token (number 20 was changed)", ylabel="largest change of V")
plt.show()

# %% [markdown]
# So put what changes to the *end* of a prompt. A timestamp in the first line of a system prompt makes every hit impossible:
# the second common answer to "why 0 %?"
#
# ## A hash for each block
#
# How is a block found? By a hash that stands for everything up to its end. It is made of the hash of the block before, and of its
# own tokens:
#
# ```
# root = H(salt)    hash 0 = H(root, tokens 0-15)    hash 1 = H(hash 0, tokens 16-31)    hash 2 = H(hash 1, ...)  ...
# ```

# %%
import hashlib


def block_hash(parent, tokens):
    return hashlib.sha256(parent + b"|" + ",".join(map(str, tokens)).encode()).digest()


def hashes(tokens, block_size=4, salt=b""):
    chain = [hashlib.sha256(salt).digest()]  # the root
    for start in range(0, len(tokens) - block_size + 1, block_size):
        chain.append(block_hash(chain[-1], tokens[start : start + block_size]))
    return [h.hex()[:8] for h in chain[1:]]


a = llm.tokenizer.encode("To be, or not to be, that is the question")
b = llm.tokenizer.encode("To be, or not to see, that is the question")
print(hashes(a))
print(hashes(b))

# %% [markdown]
# The first blocks agree, and from the changed one on all hashes differ, though the last words are alike. `find` is a walk along
# this chain through a dictionary; it stops at the first hash that is not there. `minipage/memory/prefix_cache.py` is no more
# than that.
#
# ### When hashes collide
#
# Does the hash have to be a good one? Megatron-LM (#4158) had one that collided when one token went up and its neighbour went
# down: like a sum. Give the engine such a hash:


# %%
class SumCache(PrefixCache):
    """A hash that is only a sum: order and balance are lost."""

    def block_hash(self, parent, token_ids):
        total = int.from_bytes(parent, "big") + sum(token_ids)
        return (total % 2**256).to_bytes(32, "big")


from minipage.scheduling import Scheduler


def answers(cache_class, prompts):
    pool = BlockPool(64, 4)
    engine = LLM(scheduler=Scheduler(pool, prefix_cache=cache_class(pool)))
    params = SamplingParams(max_tokens=12, temperature=0)
    return [engine.generate([p], params)[0].outputs[0].text for p in prompts]


def with_sum(target, words):
    """Four tokens of the wanted sum: as many of the words as possible, then padding."""
    for keep in (3, 2, 1, 0):
        rest, places = target - sum(words[:keep]), 4 - keep
        if 0 <= rest <= 1999 * places:
            return words[:keep] + [
                rest // places + (i < rest % places) for i in range(places)
            ]


alice = llm.tokenizer.encode(
    "ROMEO:\nI love thee, Juliet, with all my heart.\nJULIET:\nO"
)
war = llm.tokenizer.encode(
    "KING HENRY:\nTo war! To war, my lords! We march on France" * 2
)
bob = []
for i in range(0, len(alice) - 4, 4):
    bob += with_sum(sum(alice[i : i + 4]), war[i : i + 4])
bob += war[len(bob) : len(alice)]
print("Bob writes:", repr(llm.tokenizer.decode(bob)), "\n")
for cache_class in (PrefixCache, SumCache):
    print(
        f"{cache_class.__name__:12} Bob reads: {answers(cache_class, [alice, bob])[1]!r}"
    )

# %% [markdown]
# Bob has chosen words so that the sums agree. With the bad hash his prompt finds Alice's blocks, and the model answers to what *Alice* wrote. In a real
# service that is a leak of her prompt. So **yes, collisions are a security problem**, even with good hash functions, if they are
# *predictable*: who can compute hashes can search for two prompts with the same one (vLLM #12621: it
# used Python's built-in `hash`, which gives `None` the same number everywhere since Python 3.12).
# minipage uses a cryptographic hash with a secret drawn for each cache.
#
# There is another leak, without any collision: *time*. A prompt that is found is answered sooner. Who measures that can ask "has
# anybody sent this text before?":

# %%
from time import perf_counter

cached = LLM(enable_prefix_caching=True, num_blocks=100)
secret = SYSTEM * 8
cached.generate("warm up the machine, please " * 10, SamplingParams(max_tokens=1))
cached.generate(secret + "Speak", SamplingParams(max_tokens=1))


def milliseconds(prompt, salt=""):
    start = perf_counter()
    cached.add_request(prompt, SamplingParams(max_tokens=1), cache_salt=salt)
    while cached.has_unfinished_requests():
        cached.step()
    return 1000 * (perf_counter() - start)


print(
    f"somebody has sent it:     {np.median([milliseconds(secret + 'Speak') for _ in range(5)]):6.1f} ms"
)
print(
    f"nobody has (other words): {np.median([milliseconds(f'{i} ' + secret) for i in range(5)]):6.1f} ms"
)
print(
    f"sent, but not by me:      {np.median([milliseconds(secret + 'Speak', f'user {i}') for i in range(5)]):6.1f} ms"
)

# %% [markdown]
# The last line has a `cache_salt`, which goes into the root: only requests with the same salt share.
#
# (The first two lines are also the *good* news of this lesson: that is what a hit saves. Kwon et al. got 1.67 times the
# throughput from a shared prefix of 80 tokens, and 3.58 times from one of 341; figure 16.)
#
# ## What is lost first
#
# Free blocks are reused in the order in which they were freed (lesson 3), so what nobody wanted for the longest time goes first. But
# the blocks of *one* text are freed together. In which order? Its last block first. See what happens if a table frees from its
# beginning instead (one of the bugs that vLLM has a test against):


# %%
class FreesHeadFirst(BlockTable):
    def free(self):
        self.blocks.reverse()
        super().free()


def tokens_found_again(table_class, num_others):
    """A text of 81 tokens; then others come; then the first again."""
    rng = np.random.default_rng(1)
    cache = PrefixCache(BlockPool(60, 4))
    first = rng.integers(0, 2000, size=81).tolist()
    serve(first, cache, table_class)
    for _ in range(num_others):
        serve(rng.integers(0, 2000, size=20).tolist(), cache, table_class)
    return serve(first, cache, table_class)


others = range(0, 16)
fig, ax = plt.subplots()
ax.step(
    others,
    [tokens_found_again(BlockTable, n) for n in others],
    where="mid",
    label="tail first",
)
ax.step(
    others,
    [tokens_found_again(FreesHeadFirst, n) for n in others],
    where="mid",
    label="head first",
)
ax.set(
    xlabel="other prompts of 20 tokens in between", ylabel="tokens found again, of 80"
)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Up to eight other prompts fit beside it, and nothing is lost. Then, tail first, each further one costs a few blocks at
# the *end* of the text. Head first, the very first block that goes makes all the others useless: nobody can find block 2 without
# block 1.
#
# ## A stale hash
#
# When a block is handed out, its hash must be forgotten at that moment. nano-vllm (#163) forgot to forget: a block that had been
# reallocated kept its old hash, and a later request got another prompt's K and V, silently. In minipage the pool calls
# `on_evict`; let us cut that wire:


# %%
class NeverForgets(PrefixCache):
    def forget(self, block):
        pass


def with_a_small_pool(cache_class):
    pool = BlockPool(10, 4)
    engine = LLM(scheduler=Scheduler(pool, prefix_cache=cache_class(pool)))
    params = SamplingParams(max_tokens=12, temperature=0)
    for prompt in (
        SYSTEM + "All:",
        "JULIET:\nO Romeo, Romeo, wherefore art thou Romeo?\nDeny thy father",
    ):
        engine.generate(prompt, params)
    return engine.generate(SYSTEM + "All:", params)[0].outputs[0].text


for cache_class in (PrefixCache, NeverForgets):
    print(f"{cache_class.__name__:12} {with_a_small_pool(cache_class)!r}")

# %% [markdown]
# ## "Why does it change my output?"
#
# With an honest cache, K and V are the same, so the text should be, too. Nearly:

# %%
prompt = llm.tokenizer.encode(SYSTEM * 4)[:65]


def logits(llm, prompt):
    llm.add_request(prompt, SamplingParams(max_tokens=1))
    plan = llm.schedule()
    rows = llm.forward(plan)  # [1, vocab_size]
    llm.update(plan, llm.sample(plan, rows))
    llm.step()
    return rows[0]  # [vocab_size]


engine = LLM(enable_prefix_caching=True, num_blocks=100)
first, second = logits(engine, prompt), logits(engine, prompt)
print("tokens found:", engine.scheduler.num_hit_tokens, "of", len(prompt))
print("largest difference between the logits:", np.abs(first - second).max())
best = np.sort(first)[-2:]  # [2]
print("distance from the best token to the next:", best[1] - best[0])

# %% [markdown]
# Differences in the last digits: the first time, products of matrices with 65 rows; the second time, with one. Libraries add up the
# products in another order for another shape, and a floating-point sum depends on the order. When two tokens are equally likely up
# to the seventh digit, the other one may win, and from there the texts differ. That is not a bug of the cache; any change of the
# batch does the same (in bf16, with three digits, far more often).
#
# ## Whose contents go first?
#
# A free block keeps what it holds until it is handed out, and the free queue is in the order in which blocks were freed: what
# was not wanted for the longest time goes first (*least recently used*). That is a choice, and there are traffics where it is
# the wrong one: many documents that come once push out the instructions that come again and again. The order is a part of the
# engine, `eviction=`, like `policy=`; a queue of your own is a mapping whose keys are the free blocks in the order of
# eviction (`minipage/memory/eviction.py`).

# %%
import random

from minipage.memory.eviction import EVICTIONS


def tokens_of(name, length):
    rng = random.Random(name)
    return [rng.randrange(50_000) for _ in range(length)]


def hit_rate(eviction, texts, num_blocks=200):
    pool = BlockPool(num_blocks, 16, eviction)
    cache = PrefixCache(pool)
    found = 0
    for tokens in texts:
        table = BlockTable(pool)
        cache.adopt(table, *cache.find(tokens))
        found += table.num_tokens
        table.append(len(tokens) - table.num_tokens)
        cache.publish(table, tokens)
        table.free()
    return found / sum(map(len, texts))


rng = random.Random(0)
scans = [
    tokens_of(f"instructions {rng.randrange(8)}", 256) + tokens_of(f"question {i}", 24)
    if rng.random() < 0.3
    else tokens_of(f"document {i}", 640)
    for i in range(300)
]
fashions = [
    tokens_of(f"fashion {i // 50} {rng.randrange(12)}", 256)
    + tokens_of(f"question {i}", 24)
    for i in range(300)
]
for name, eviction in EVICTIONS.items():
    print(
        f"{name:15} scans {hit_rate(eviction, scans):6.1%}   fashions {hit_rate(eviction, fashions):6.1%}"
    )

# %% [markdown]
# Each loses somewhere. What counts how often something was found (`lfu`) keeps yesterday's fashion for ever; what waits until
# something was found once (`scan-resistant`) is late for what comes twice in a row. `tails-first` is LRU with one
# exception: a last block that is only part full cannot be found by anybody, so it goes before all others. `python -m
# benchmarks.eviction` has a third workload, and `demo eviction` shows one step by step. Exercise 8.8 is the scan-resistant one.

# %% [markdown]
# ## Inside a block
#
# Only whole blocks are found, because a block that changes cannot be shared. But it can be *copied*: lesson 7 has the tool. With
# `prefix_match_unit`, a block is known by each of its beginnings as well, under a chain of hashes of its own, in steps of that many tokens. Who
# begins alike and goes on otherwise inside a block gets a copy of it, and writes into that. What the copy holds beyond the common
# beginning is written over before anybody reads it, so the owner of the block may even be writing there:
#
#     known        [ a b c d | e f g h ]        blocks of 4, a unit of 2
#     wanted       [ a b c d | e f X Y ]
#     found        [ a b c d | e f . . ]        the first block is shared, the second is a copy
#
# > **Predict.** A text of 500 tokens comes again, each time with another token changed. Which share is found, on average, in whole blocks of
# > 16 and of 256? In units of 16, and of 1?

# %%
from minipage.memory.partial_cache import PartialPrefixCache


def share_found(words, block_size, unit=None):
    found = 0
    places = range(0, len(words), 25)
    for place in places:
        pool = BlockPool(200, block_size)
        cache = PartialPrefixCache(pool, unit) if unit else PrefixCache(pool)
        serve(words, cache)
        changed = [*words[:place], -words[place], *words[place + 1 :]]
        found += serve(changed, cache)
    return found / len(words) / len(places)


words = [1 + token for token in tokens_of("a document", 500)]
for size in (16, 64, 256):
    whole, units_of_16, tokens = (share_found(words, size, u) for u in (None, 16, 1))
    print(
        f"blocks of {size:3}: whole blocks {whole:.1%}, units of 16 {units_of_16:.1%}, of 1 {tokens:.1%}"
    )

# %% [markdown]
# The unit decides, and no longer the block. With small blocks it hardly matters; in blocks of 256 twice as much is found. What comes after the
# changed word is lost in any case. `python -m benchmarks.partial_hits` measures chats and system prompts, too. And in the
# engine, where the second prompt comes while the first is still being written:

# %%
from minipage import LLM, SamplingParams
from minipage.trace import record

llm = LLM(block_size=16, num_blocks=12, enable_prefix_caching=True, prefix_match_unit=1)
with record(llm, "One changed word") as trace:
    llm.add_request(SYSTEM + "KING RICHARD III:\nMy", SamplingParams(max_tokens=6))
    llm.step()
    llm.add_request(SYSTEM + "JULIET:\nO", SamplingParams(max_tokens=6))
    while llm.has_unfinished_requests():
        llm.step()
print("tokens found:", llm.scheduler.num_hit_tokens)
print("copies:", [tuple(copy) for frame in trace.steps for copy in frame.copies])

# %% [markdown]
# ## What vLLM does
#
# - Prefix caching is on by default. Hash chains as here, over the parent's hash, the block's tokens, and "extra keys": LoRA
#   adapter, images, `cache_salt`. The hash is SHA-256 by default in recent versions.
# - Free and cached blocks stay in the free queue until they are reused; eviction is by that order, tails first, as you measured. Since May 2026
#   blocks without a hash (part-full ends) do not stand in line with them: they are reused first (#42656).
# - The metric "prefix cache hit rate" counts tokens of whole blocks. Short prompts show 0 %. How short? In #54607 the shared prompt had
#   240 tokens and the block 784: models that mix attention with Mamba layers have blocks as large as a Mamba state.
# - For those models a hit may end inside a block since June 2026: `prefix_match_unit` says how fine the hashes are, and copy-on-write
#   (lesson 7) gives the newcomer its own copy of the block that is shared in part (RFC #45702, #45939, #46384): what you have just
#   seen, under the same name. There it is for models with Mamba layers, here for all without windows.
# - Two requests with the same new prompt *in one step* both compute it. minipage then keeps one copy
#   (`PrefixCache.publish`); vLLM keeps both.
# - SGLang keeps a *radix tree* of tokens in place of the hash table, and with pages of one token it finds prefixes to the token.
#
# *Checked against vLLM 0.32.0: `vllm/v1/core/kv_cache_utils.py` (`hash_block_tokens`, `generate_block_hash_extra_keys`), `vllm/v1/core/block_pool.py` and `vllm/config/cache.py` (`prefix_match_unit`).*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 8.1    # hash; 8.2 publish, 8.3 find, 8.4 adopt, 8.5 forget and reset, 8.6 twins
# python -m minipage learn check 8.7    # parts of blocks; 8.8 what is evicted: both beside the engine's part
# python -m minipage demo prefix --mine .
# ```
#
# **Going further.** (a) What does `prefix_match_unit=1` cost with blocks of 256, in hashes for each block? From which unit on is it worth it? (b) A chat of
# ten turns, each sent with the whole history: which share of all prompt tokens is found? (c) Should blocks of a long text
# be worth more than those of a short one? Write an eviction order of your own, and hand it to `LLM(eviction=...)`.
#
# Next: **lesson 9**, what happens when the pool is empty and everybody wants more.
