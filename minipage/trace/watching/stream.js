// A page that is live: it asks the server that it came from for frames, and pushes them to the viewer as they come.
// Whoever looks at the last frame follows; whoever has gone back stays there, and follows again from the end on.

const BREAK = 2; // times as long as a drawing took, it rests
const HIDDEN_SECONDS = 5; // a page that nobody sees asks for nothing
const live = { key: "", stop: null, hidden: 0, facts: {}, timer: 0, drawing: 0, nextDrawing: 0, follows: false, mostFrames: 120 }; // frames that one can go back

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

const isAtEnd = () => live.follows || !trees.length || now.index >= (now.steps ? ends : all).at(-1);

// A browser that takes long to draw leaves frames out, so that it has time for whoever uses it.
function showNewest() {
  clearTimeout(live.drawing);
  live.follows = true;
  const wait = live.nextDrawing - performance.now();
  if (wait > 0) return (live.drawing = setTimeout(() => live.follows && showNewest(), wait));
  const begin = performance.now();
  show(Infinity);
  live.nextDrawing = performance.now() + BREAK * (performance.now() - begin);
}

// Whoever has gone back sees no other frame; only how many there are by now.
function tellPlace() {
  const at = place();
  byId("slider").max = places().length - 1;
  byId("slider").value = at;
  byId("where").textContent = `${at + 1} / ${places().length}`;
  for (const id of ["next", "last"]) byId(id).setAttribute("aria-disabled", at === places().length - 1);
}

function receive({ anew, frames = [], facts }) {
  const follows = anew || (isAtEnd() && !isPlaying());
  if (facts?.functions) trace.functions = facts.functions;
  if (anew) load([]);
  for (const delta of frames) push(patch(trees.at(-1) ?? {}, delta));
  if (trees.length > 1.25 * live.mostFrames) {
    const gone = trees.length - live.mostFrames;
    load(trees.slice(gone));
    now.index = Math.max(0, now.index - gone);
  }
  if (frames.length && (follows || now.index >= trees.length)) showNewest();
  else if (frames.length) tellPlace();
  if (facts) tellFacts(Object.assign(live.facts, facts), facts);
}

// Whoever goes back while a frame waits to be drawn does not want it any more.
document.addEventListener("shown", () => (live.follows = false));

document.addEventListener("visibilitychange", () => {
  clearTimeout(live.timer);
  live.hidden = 0;
  if (document.hidden) live.timer = setTimeout(() => ((live.hidden = 1), live.stop?.abort()), 1000 * HIDDEN_SECONDS);
});
