// A page that is live: it asks the server that it came from for frames, and pushes them to the viewer as they come.
// Whoever looks at the last frame follows; whoever has gone back stays there, and follows again from the end on.

const MOST_FRAMES = 120; // which one can go back; the server keeps none
const HIDDEN_SECONDS = 5; // a page that nobody sees asks for nothing
const live = { key: "", stop: null, hidden: 0, facts: {}, earlier: null };

const seconds = (number) => new Promise((go) => setTimeout(go, 1000 * number));
const say = (words) => (byId("live-state").textContent = words);

async function listen() {
  for (;;) {
    if (document.hidden && live.hidden) await once(document, "visibilitychange");
    try {
      live.stop = new AbortController();
      const headers = live.key ? { Authorization: `Bearer ${live.key}` } : {};
      const answer = await fetch("live", { headers, cache: "no-store", signal: live.stop.signal });
      if (answer.status === 401) await askForKey();
      else if (!answer.ok) say((await answer.json()).error.message);
      else await follow(answer.body.pipeThrough(new TextDecoderStream()).getReader());
    } catch (error) {
      if (error.name !== "AbortError") say("The server does not answer. It is asked again every second.");
    }
    await seconds(1);
  }
}

const once = (target, name) => new Promise((go) => target.addEventListener(name, go, { once: true }));

async function askForKey() {
  say(live.key ? "This is not the key." : "This server has an API key; without it, it shows nothing.");
  byId("key").hidden = false;
  byId("key-field").focus();
  await once(byId("key"), "submit");
  live.key = byId("key-field").value;
}

byId("key").addEventListener("submit", (event) => event.preventDefault());

// Server-sent events, which an EventSource would read; but that sends no key.
async function follow(reader) {
  byId("key").hidden = true;
  say("Live");
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return say("The connection has ended. The server is asked again every second.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) receive(JSON.parse(event.slice(6)));
  }
}

const isAtEnd = () => !trees.length || now.index >= (now.steps ? ends : all).at(-1);

function receive({ anew, frames = [], facts }) {
  const follows = anew || (isAtEnd() && !isPlaying());
  if (anew) load([]);
  for (const delta of frames) push(patch(trees.at(-1) ?? {}, delta));
  if (trees.length > 1.25 * MOST_FRAMES) {
    const gone = trees.length - MOST_FRAMES;
    load(trees.slice(gone));
    now.index = Math.max(0, now.index - gone);
  }
  if (frames.length) show(follows ? Infinity : now.index);
  if (facts) tellFacts(facts);
}

function tellFacts(facts) {
  const { stats = {}, seconds: at } = facts, before = (live.earlier ??= facts);
  const passed = at - before.seconds, made = stats.generation_tokens - before.stats.generation_tokens;
  if (passed >= 1) {
    live.speed = Math.round(made / passed);
    live.earlier = facts;
  }
  const told = { running: stats.num_requests_running, waiting: stats.num_requests_waiting, preemptions: stats.num_preemptions,
    "tokens generated": stats.generation_tokens, "tokens a second": live.speed ?? 0 };
  byId("numbers").replaceChildren(...Object.entries(told).map(([name, value]) => make("li", {}, make("b", {}, (value ?? 0).toLocaleString("en")), ` ${name}`)));
  if (facts.end) say(facts.end);
}

document.addEventListener("shown", ({ detail: tree }) => {
  const remembered = (tree.remembered ?? []).toReversed();
  byId("remembered").replaceChildren(...remembered.map(([step, words]) => make("li", {}, make("b", {}, `Step ${step} `), words)));
  byId("remembered").hidden = !remembered.length;
  document.body.classList.toggle("crowded", Object.keys(tree.sequences ?? {}).length > 8);
  if (tree.num_more_waiting) byId("queues").append(make("span", {}, `and ${count(tree.num_more_waiting, "more text")} waiting`));
});

document.addEventListener("visibilitychange", () => {
  clearTimeout(live.timer);
  live.hidden = 0;
  if (document.hidden) live.timer = setTimeout(() => ((live.hidden = 1), live.stop?.abort()), 1000 * HIDDEN_SECONDS);
});

document.body.classList.add("live");
setSteps(true);
listen();
