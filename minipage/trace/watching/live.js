// What is beside the frames on the page of a server: numbers of now, and who had to give way.

const QUIET_SECONDS = 4; // a server that has work tells of it every three seconds at least

function tellFacts(facts) {
  const { stats = {}, seconds: at } = facts;
  if (stats.generation_tokens < live.earlier?.stats.generation_tokens) live.earlier = null; // another server
  const before = (live.earlier ??= { ...facts });
  const passed = at - before.seconds, made = stats.generation_tokens - before.stats.generation_tokens;
  if (passed >= 1) {
    live.speed = Math.round(made / passed);
    live.earlier = { ...facts };
  }
  tellNumbers(facts);
  clearTimeout(live.quiet);
  live.quiet = setTimeout(() => {
    live.speed = 0;
    live.earlier = null;
    tellNumbers(facts);
  }, 1000 * QUIET_SECONDS);
  if (facts.end) say(facts.end);
}

function tellNumbers({ stats = {} }) {
  const told = { running: stats.num_requests_running, waiting: stats.num_requests_waiting, preemptions: stats.num_preemptions,
    "tokens generated": stats.generation_tokens, "tokens a second": live.speed ?? 0 };
  byId("numbers").replaceChildren(...Object.entries(told).map(([name, value]) => make("li", {}, make("b", {}, (value ?? 0).toLocaleString("en")), ` ${name}`)));
}

document.addEventListener("shown", ({ detail: tree }) => {
  const remembered = (tree.remembered ?? []).toReversed();
  byId("remembered").replaceChildren(...remembered.map(([step, words]) => make("li", {}, make("b", {}, `Step ${step} `), words)));
  byId("remembered").hidden = !remembered.length;
  if (tree.num_more_waiting) byId("queues").append(make("span", {}, `and ${count(tree.num_more_waiting, "more text")} waiting`));
});

// Many texts: each in two lines, the end of what it says and the numbers of its blocks, and nothing moves.
const CROWD = 8;
beforeShown = (tree) => document.body.classList.toggle("crowded", Object.keys(tree.sequences ?? {}).length > CROWD);

document.body.classList.add("live");
setSteps(true);
listen();
