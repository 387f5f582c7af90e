# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13. Measuring a server
#
# *About 45 minutes. Comes after lesson 6; lesson 9 helps.*
#
# > **"How many users can I serve with this GPU, and how long will they wait?"** (the question behind vLLM #8031 and #22291, asked in money)
#
# All earlier lessons counted blocks and tokens. Users count seconds. In this one you drive the real engine with traffic that comes when it
# likes, and
#
# - tell four latencies apart, and see which one your users feel,
# - find the rate at which everything tips over, and a law that predicts it,
# - learn what a percentile is worth, and how many requests it takes,
# - plan a server's capacity with a division,
# - and measure `minipage serve` from outside, with others' clients and with its own `/metrics`.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from minipage.lesson import setup  # missing? pip install "minipage[lessons]"

plt, np = setup()

# %% [markdown]
# ## One request, four times
#
# Every output carries its times.

# %%
from time import perf_counter, sleep

from minipage import LLM, SamplingParams

llm = LLM(num_blocks=400)
llm.generate(["warm up"] * 8, SamplingParams(max_tokens=4))
output = llm.generate("JULIET:\nO Romeo,", SamplingParams(max_tokens=24, seed=0))[0]
metrics, num_tokens = output.metrics, len(output.outputs[0].token_ids)

ttft = metrics.first_token_time - metrics.arrival_time
total = metrics.finished_time - metrics.arrival_time
print(
    f"time to first token (TTFT)       {1000 * ttft:6.2f} ms    what a chat feels like at first"
)
print(
    f"inter-token latency (ITL)        {1000 * (total - ttft) / (num_tokens - 1):6.2f} ms    how fast it reads afterwards"
)
print(
    f"end to end                       {1000 * total:6.2f} ms    what a program that waits for the answer feels"
)
print(
    f"normalised: end to end / tokens  {1000 * total / num_tokens:6.2f} ms    the paper's measure; fair to long answers"
)

# %% [markdown]
# **Throughput** is something else: tokens per second, of all users together. It is what the *owner* feels.
#
# ## As fast as it can
#
# First with traffic that is always there: keep *n* requests running, whatever happens. That is how most benchmarks measure ("closed loop").


# %%
def closed_loop(n, num_tokens=24):
    """Tokens per second of all, and milliseconds a token for each."""
    params = [SamplingParams(max_tokens=num_tokens, seed=i) for i in range(n)]
    start = perf_counter()
    outs = llm.generate(["To be, or not to be"] * n, params)
    seconds = perf_counter() - start
    itl = [
        (o.metrics.finished_time - o.metrics.first_token_time) / (num_tokens - 1)
        for o in outs
    ]
    return n * num_tokens / seconds, 1000 * np.mean(itl)


ns = [1, 2, 4, 8, 16, 32, 64]
throughput, itl = np.array([closed_loop(n) for n in ns]).T
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot(ns, throughput, "o-")
axes[0].set(ylabel="tokens per second, all together", ylim=0)
axes[1].plot(ns, itl, "o-", color="C1")
axes[1].set(ylabel="ms a token, for each", ylim=0)
for ax in axes:
    ax.set(xscale="log", xlabel="requests at once")
    ax.set_xticks(ns, ns)
    ax.minorticks_off()
plt.show()

# %% [markdown]
# The owner wants to be at the right end, the user at the left. Any number for "the speed" of a server that does not say where on this curve it was
# taken says nothing.
#
# ## Traffic that comes when it likes
#
# Users do not wait for each other's answers before they ask. They come at random, independently: a **Poisson** process, whose gaps are exponentially distributed.
# Here is a driver for that ("open loop"). It hands a request in when its time has come, and lets the engine step in between:


# %%
def open_loop(rate, num_requests=60, engine=None, mean_tokens=12, seed=0):
    """Poisson arrivals at `rate` requests a second. Returns one row a request: arrival, first token, end, tokens."""
    engine = engine or llm
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, num_requests)  # [num_requests] seconds
    arrivals = np.cumsum(gaps)  # [num_requests]
    drawn = rng.exponential(mean_tokens - 1, num_requests)  # [num_requests]
    lengths = 1 + drawn.astype(int)  # [num_requests]
    # four blocks hold the longest, with its prompt
    lengths = np.minimum(lengths, 48)  # [num_requests]
    due, rows = 0, {}
    start = perf_counter()
    while len(rows) < num_requests:
        now = perf_counter() - start
        while due < num_requests and arrivals[due] <= now:
            params = SamplingParams(max_tokens=int(lengths[due]), seed=due)
            engine.add_request("To be, or not to be", params, request_id=str(due))
            due += 1
        if not engine.has_unfinished_requests():
            sleep(max(0, arrivals[due] - (perf_counter() - start)))
            continue
        for out in engine.step():
            if out.finished:
                m, i = out.metrics, int(out.request_id)
                first, end = m.first_token_time - start, m.finished_time - start
                rows[i] = arrivals[i], first, end, len(out.outputs[0].token_ids)
    return np.array([rows[i] for i in range(num_requests)])  # [num_requests, 4]


# %% [markdown]
# Note that a request's time begins when it *should* have come, even if the driver was busy then. A driver that starts the clock only when it gets round to sending
# leaves out just the waiting that it was to measure ("coordinated omission").
#
# Our server has eight seats (`max_num_seqs=8`). What it can do at most, in requests per second, is its throughput with eight at once divided by the tokens of
# an answer. Let us go from far below to beyond it.
#
# > **Predict.** Draw the normalised latency over the rate, before you look.

# %%
server = LLM(num_blocks=400, max_num_seqs=8)
most = throughput[ns.index(8)] / 12  # requests per second
rates = most * np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.5])
runs = {
    rate: open_loop(rate, int(np.clip(1.3 * rate, 8, 200)), server) for rate in rates
}

fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.8), layout="constrained")
for ax, title, values in zip(
    axes,
    ("TTFT, ms", "normalised latency, ms", "served, requests a second"),
    (
        [1000 * np.median(r[:, 1] - r[:, 0]) for r in runs.values()],
        [1000 * np.mean((r[:, 2] - r[:, 0]) / r[:, 3]) for r in runs.values()],
        [len(r) / (r[:, 2].max() - r[:, 0].min()) for r in runs.values()],
    ),
):
    ax.plot(rates, values, "o-")
    ax.set(title=title, xlabel="requests that come a second", ylim=0)
axes[2].plot(rates, rates, ":", color="gray")
plt.show()

# %% [markdown]
# Nearly flat, and then it climbs like a wall. Left of it the machine has time to spare; right of it more comes than it can serve, the queue grows as long as the experiment lasts, and
# the latencies say how long *that* was and nothing about the server. Compare servers by the rate at which the curve leaves the
# floor. The paper's figure 12 has this shape, and the 1.7 to 2.7 times are measured along the rate, not the latency.
#
# ## Little's law
#
# One law holds for everything that things enter and leave: on average,
#
# ```
# number inside = rate of arrival × time that each spends inside
# ```

# %%
for rate, rows in list(runs.items())[:-1]:
    arrival, end = rows[:, 0], rows[:, 2]
    duration = end.max() - arrival.min()
    moments = np.linspace(arrival.min(), end.max(), 2000)  # [2000]
    begun = arrival[:, None] <= moments  # [num_requests, 2000]
    there = begun & (moments < end[:, None])  # [num_requests, 2000]
    inside = there.sum(axis=0)  # [2000]
    law = len(rows) / duration * (end - arrival).mean()
    print(
        f"{rate:6.1f} a second: counted {inside.mean():6.2f} inside, the law says {law:6.2f}"
    )

# %% [markdown]
# It needs no assumption at all, which makes it the tool for planning. All that it asks for is how many fit inside, and there lies the trap of lesson 1: those who
# are inside at some moment are *not* an average of those who come, because long answers stay for longer. In the traffic that we have just served:

# %%
rows = runs[rates[1]]
tokens, spent = rows[:, 3], rows[:, 2] - rows[:, 0]  # [num_requests] each
print(f"mean answer of all who came:            {tokens.mean():5.1f} tokens")
print(
    f"mean answer of whom you meet inside:    {np.average(tokens, weights=spent):5.1f}"
)
print(
    f"predicted, mean of squares / mean:      {(tokens**2).mean() / tokens.mean():5.1f}"
)

# %% [markdown]
# So, the plan. OPT-13B on an A100 has 15,728 slots (lesson 1). A request holds its prompt and, on average while it runs, half of the answer *that you meet inside*:
# 161 + E[O²] / (2 E[O]) tokens. For answers of 338 tokens with a spread of 296 that is 460, so 34 fit. (With half of the *mean* answer, 330, one would plan for 48, which is
# 14 too many.) Suppose each is to be done in 15 seconds:

# %%
slots, prompt, answer, spread, seconds = 15_728, 161, 338, 296, 15
held = prompt + (answer**2 + spread**2) / (2 * answer)
fit = slots / held
print(f"{slots} slots / {held:.0f} tokens held by each = {fit:.0f} inside")
print(
    f"{fit:.0f} inside / {seconds} s each = {fit / seconds:.1f} requests a second at most"
)
print(
    f"the paper's vLLM, at 2 requests a second with 30.42 inside: {30.42 / 2:.1f} s each"
)

# %% [markdown]
# By this estimate the paper's server was near its limit: 30 of the 34 that fit, and 2 of the 2.3 requests a second that it could have served at 15 seconds each. (The spread is ours; the paper does not
# give it.)
#
# That is capacity planning: *count* bytes for what a request holds while it runs, with the squares of your own answers' lengths; divide; *measure* the time inside at that
# batch; divide again. Then leave room: near the wall a small burst makes a long queue.
#
# ## Honest percentiles
#
# Averages hide those who wait longest, so people quote p99: 99 % were faster. Of how many requests? The p99 of 60 requests is nearly the slowest of them. How far does
# an estimate scatter? Take a distribution that is known (log-normal, true p99 = 1), and ask again and again:

# %%
rng = np.random.default_rng(0)
fig, ax = plt.subplots(figsize=(7.5, 2.8))
counts = [30, 100, 300, 1000, 3000]
for q, color in ((50, "C0"), (90, "C2"), (99, "C1")):
    draws = [np.percentile(rng.lognormal(0, 1, (400, n)), q, axis=1) for n in counts]
    true = np.percentile(rng.lognormal(0, 1, 1_000_000), q)
    low, high = (np.array([np.percentile(d, p) / true for d in draws]) for p in (5, 95))
    ax.fill_between(counts, low, high, alpha=0.3, color=color, label=f"p{q}")
ax.axhline(1, color="gray", linewidth=0.8)
ax.set(
    xscale="log", xlabel="requests measured", ylabel="estimate / truth (90 % of tries)"
)
ax.set_xticks(counts, counts)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# With 100 requests, a p99 may be wrong by half. Three rules: say how many requests; do not quote a percentile beyond what they can tell (ten requests above it is a good
# minimum, so 1,000 for p99); and never *average* percentiles of several runs, but pool their requests.
#
# A number with a range is honest in little space. Here for the second rate, by drawing from the measured requests again and again (bootstrap):

# %%
rows = runs[rates[1]]
normalised = 1000 * (rows[:, 2] - rows[:, 0]) / rows[:, 3]  # [num_requests] ms
for q in (50, 90, 99):
    drawn = rng.choice(normalised, (2000, len(normalised)))  # [2000, num_requests]
    again = np.percentile(drawn, q, axis=1)  # [2000]
    low, high = np.percentile(again, [5, 95])
    print(
        f"p{q}: {np.percentile(normalised, q):5.2f} ms, likely {low:5.2f} to {high:5.2f}"
    )

# %% [markdown]
# ## What is it that you promise?
#
# Users do not care for averages of yours, but whether *theirs* was fast enough. So promise a limit ("the first token within … ms"), and count who got it. The
# rate at which, say, 95 % get it is the **goodput**. With a limit of five times the unloaded TTFT:

# %%
limit = 5 * np.median(runs[rates[0]][:, 1] - runs[rates[0]][:, 0])
within = [100 * np.mean(r[:, 1] - r[:, 0] <= limit) for r in runs.values()]
fig, ax = plt.subplots(figsize=(7.5, 2.4))
ax.plot(rates, within, "o-")
ax.axhline(95, color="gray", linestyle=":")
ax.set(
    xlabel="requests that come a second",
    ylabel=f"first token within {1000 * limit:.0f} ms, %",
    ylim=(0, 103),
)
plt.show()

# %% [markdown]
# ## Memory, again
#
# The wall may be arithmetic, or it may be *blocks*. The same traffic with less memory:

# %%
rate = rates[1]
fig, ax = plt.subplots(figsize=(7.5, 2.6))
for num_blocks in (400, 6, 4):
    engine = LLM(num_blocks=num_blocks, max_num_seqs=8)
    rows = open_loop(rate, len(runs[rate]), engine)
    waits = np.sort(1000 * (rows[:, 1] - rows[:, 0]))  # [num_requests] ms
    ax.plot(
        waits,
        np.arange(1, len(waits) + 1) / len(waits),
        drawstyle="steps-post",
        label=f"{num_blocks} blocks",
    )
ax.set(xscale="log", xlabel="time to first token, ms", ylabel="share of requests")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# A curve further to the right is a longer wait. With too few blocks requests queue, though the processor has time: now you know which of the two to buy.
#
# What does such a moment look like from inside? The trace of eight requests on six blocks:

# %%
from minipage.trace import record

engine = LLM(block_size=4, num_blocks=6)
with record(engine, "Eight requests, and room for two or three") as trace:
    for i in range(8):
        engine.add_request(
            "To be, or not", SamplingParams(max_tokens=4 + 2 * (i % 4), seed=i)
        )
        engine.step()
    while engine.has_unfinished_requests():
        engine.step()
trace

# %% [markdown]
# ## The same, from outside
#
# Until now the program that was measured has measured itself. That leaves out HTTP, JSON and the waiting in front of the door, and who writes his own client
# measures what he thought of. So: a server in a process of its own (it needs `pip install "minipage[serve]"`), and load from others.

# %%
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from threading import Event
from urllib.request import Request, urlopen

if find_spec("uvicorn") is None:
    extra = ["prometheus-client", "pydantic", "starlette", "uvicorn"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *extra], check=True
    )

command = "-m minipage serve --port 0 --served-model-name it --max-num-seqs 8 --log-level warning"
process = subprocess.Popen(
    [sys.executable, *command.split()], stdout=subprocess.PIPE, text=True
)
lines = (line for line in process.stdout if " on http" in line)
url = next(lines).partition(" on ")[2].partition(";")[0]
print(url)

# %% [markdown]
# Three load testers that others wrote run against it by a command each, without the network, because the model's folder is their tokenizer: `vllm bench serve`,
# `aiperf` and `guidellm` (`docs/serving.md` has the commands, and the reports). They bring hundreds of megabytes, each into an environment of its own. If `aiperf`
# is on your PATH, it runs here:

# %%
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from minipage.model.checkpoint import find_folder


def aiperf():
    options = (
        f"profile --url {url} --model it --tokenizer {find_folder('shakespeare')} --endpoint-type completions "
        "--streaming --synthetic-input-tokens-mean 64 --output-tokens-mean 32 --extra-inputs ignore_eos:true "
        "--use-server-token-count --concurrency 16 --request-count 200 --ui none"
    )
    with TemporaryDirectory() as folder:
        subprocess.run(
            ["aiperf", *options.split(), "--output-artifact-dir", folder],
            check=True,
            capture_output=True,
        )
        return json.loads(Path(folder, "profile_export_aiperf.json").read_text())


if shutil.which("aiperf"):
    report = aiperf()
    for name in (
        "time_to_first_token",
        "inter_token_latency",
        "request_latency",
        "output_token_throughput",
    ):
        of = report[name]
        print(
            f"{name:24}",
            {
                key: round(of[key], 1)
                for key in of
                if key in ("unit", "avg", "p50", "p99")
            },
        )
else:
    print("There is no aiperf here.")

# %% [markdown]
# Compare its numbers with the ones above: which latency has HTTP made longer, and why does "time to first token" hardly say anything about the model when 16 want
# the 8 seats?
#
# ## What the server says of itself
#
# Nobody runs a load tester against a server that people use. One looks at `/metrics`. Sixteen clients, each of whom asks again as soon as it is answered:


# %%
from prometheus_client.parser import text_string_to_metric_families

NAME = "vllm:e2e_request_latency_seconds"


def look():
    """The numbers of /metrics by name; those of histograms' buckets by (name, upper bound)."""
    with urlopen(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        (s.name, float(s.labels["le"])) if "le" in s.labels else s.name: s.value
        for s in samples
    }


def ask(i):
    """How long one answer took, seen by the one who waits."""
    body = {"prompt": "To be, or not to be", "max_tokens": 4 + i % 29, "seed": i}
    begin = perf_counter()
    with urlopen(Request(f"{url}/v1/completions", json.dumps(body).encode())) as answer:
        answer.read()
    return perf_counter() - begin


def watch(is_over):
    """How many are inside, looked at again and again."""
    seen = []
    while not is_over.wait(0.02):
        now = look()
        seen.append(now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"])
    return seen


with ThreadPoolExecutor(17) as pool:
    list(pool.map(ask, range(16)))  # warm up
    is_over, before, begin = Event(), look(), perf_counter()
    watching = pool.submit(watch, is_over)
    waits = list(pool.map(ask, range(300)))
    after, seconds = look(), perf_counter() - begin
    is_over.set()
    seen = watching.result()

ended = after[NAME + "_count"] - before[NAME + "_count"]
mean_time = (after[NAME + "_sum"] - before[NAME + "_sum"]) / ended
print(
    f"{ended:.0f} answers in {seconds:.2f} s, {1000 * mean_time:.1f} ms each: Little's law says {ended / seconds * mean_time:.2f} inside"
)
print(f"looked at {len(seen)} times: {np.mean(seen):.2f} inside")
print(f"by the clients' watches: {1000 * np.mean(waits):.1f} ms each")

# %% [markdown]
# Sixteen clients, and fewer inside: the rest of the time a request is on its way, in HTTP, in JSON, in the client. Two instruments that should agree are worth more than one that is
# precise.
#
# Percentiles from `/metrics` are another matter. A histogram knows of each request only between which bounds it fell:

# %%
bounds = [key[1] for key in after if key[0] == NAME + "_bucket"]
counts = [after[NAME + "_bucket", b] - before[NAME + "_bucket", b] for b in bounds]
fig, ax = plt.subplots(figsize=(7.5, 2.6))
waits = np.sort(waits)
ax.plot(
    waits, np.arange(1, len(waits) + 1) / len(waits), label="measured by the clients"
)
ax.plot(
    [0, *bounds[:-1]],
    np.array([0, *counts[:-1]]) / ended,
    "o-",
    label="what /metrics knows",
)
ax.set(
    xlim=(0, max(0.6, waits[-1])), xlabel="end to end, s", ylabel="share of requests"
)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# vLLM's first bound for this one is 0.3 s: made for large models. Whatever lies below is spread evenly, so that a dashboard says "p50 = 0.15 s" of
# a server all of whose answers take 50 ms. Before you believe a percentile on a dashboard, look at its buckets. What they are good for: counts may be *added*, over servers and over hours, which percentiles may not. In the
# exercises you read both out of a histogram.

# %%
process.terminate()
process.wait()

# %% [markdown]
# ## More servers than one
#
# When one server is at its wall, put another beside it. Each has a prefix cache of its own, so it now matters who gets a request: a conversation that goes on at another
# server is computed from its beginning there. A balancer that goes round does just that. One that *knows* what lies where does not, and the servers can tell it: whenever their
# prefix cache stores or evicts a block, they announce it (**KV events**: BlockStored, BlockRemoved, AllBlocksCleared). Three users who talk in turn, two replicas:

# %%
from minipage.serve.replicas.routing import PrefixRouter, RoundRobin


def talk(router, num_users=3, num_turns=5):
    """The share of prompt tokens that were found in a prefix cache."""
    options = {"enable_prefix_caching": True, "num_blocks": 100}
    events = {"kv_events_config": {"enable_kv_cache_events": True}}
    replicas = {name: LLM(**options, **events) for name in "AB"}
    readers = {name: llm.kv_events.subscribe() for name, llm in replicas.items()}
    texts = [
        llm.tokenizer.encode(f"User {i}: To be, or not to be?")
        for i in range(num_users)
    ]
    found, asked = 0, 0
    for turn in range(num_turns * num_users):
        text = texts[turn % num_users]
        chosen = router.choose(text, "", {"A": 0, "B": 0})  # nobody else is waiting
        params = SamplingParams(max_tokens=24, seed=turn, ignore_eos=True)
        output = replicas[chosen].generate([text], params)[0]
        found, asked = found + output.num_cached_tokens, asked + len(text)
        text += output.outputs[0].token_ids + llm.tokenizer.encode("\nUser: And then?")
        batch = readers[chosen].take()
        router.tell(chosen, batch.events if batch else [])
    return found / asked


print(f"round robin             {talk(RoundRobin()):4.0%} of the prompts' tokens found")
print(f"where the prefix is     {talk(PrefixRouter()):4.0%}")

# %% [markdown]
# The router never sees a hash that it could compare between servers, because each cache draws a secret of its own. It compares tokens: an event says which tokens a block holds and
# which block lies before it, so a prompt can be followed from block to block. And it keeps an eye on the load, or whoever has the most popular beginning would get
# everybody. `minipage serve --data-parallel-size 2` does this with real servers, on Ray Serve (`docs/serving.md`). In exercise 13.7 the router is yours.

# %% [markdown]
# ## What vLLM does
#
# - `vllm bench serve` is an open loop with a `--request-rate` (Poisson by default, with `--burstiness` for worse), and prints TTFT, TPOT (its word for the mean ITL of
#   a request) and ITL with percentiles; `--goodput` takes limits.
# - A server exports histograms of the same (`vllm:time_to_first_token_seconds`, `vllm:inter_token_latency_seconds`, `vllm:e2e_request_latency_seconds`), the numbers
#   running and waiting (`vllm:num_requests_running`, `vllm:num_requests_waiting`), `vllm:kv_cache_usage_perc`, and `vllm:num_preemptions_total`.
#   "Waiting" that grows while usage is at 100 % is a lack of blocks; with usage low, of arithmetic.
# - The line "Maximum concurrency for 4,096 tokens per request" at its start is this lesson's division with the worst case put in.
# - For your own mean of squares, its histograms `vllm:request_prompt_tokens` and `vllm:request_generation_tokens` have the lengths that were served.
# - `vllm serve --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq"}'` announces the same events over ZeroMQ, for routers such as llm-d's, Dynamo's or AIBrix's.
#
# *Checked against vLLM 0.32.0: `vllm/v1/metrics/loggers.py` (the names), `vllm/distributed/kv_events.py`, `vllm/v1/core/kv_cache_utils.py` (the line at its start) and `vllm/benchmarks/serve.py`.*
#
# ## Your turn
#
# In your folder (`learn init my-minipage` makes it, once):
#
# ```bash
# python -m minipage learn check 13.1    # percentile; then 13.2 throughput, 13.3 normalised latency, 13.4 capacity,
#                                        # 13.5 percentiles and 13.6 Little's law from /metrics, 13.7 a router
# ```
#
# **Going further.** (a) Let requests come in bursts of five, at the same mean rate. Where is the wall now? (b) Prompts of 300 tokens: which latency suffers? Choose `max_num_batched_tokens` (lesson 6) by
# goodput. (c) `benchmarks/` compares minipage with others; read how it takes turns.
#
# Next: **lesson 14**, a model of your own.
