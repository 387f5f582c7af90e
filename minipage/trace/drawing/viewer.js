// Which frame is shown: reads the trace, and lets buttons, slider and keys walk through it.
"use strict";

// ---- reading

const trace = JSON.parse(byId("trace").textContent);
const outlines = []; // of all frames: see viewer_frames.js
const all = [], ends = []; // where they are; and where to halt when going step by step
const RARE = ["before", "copy", "attend", "failed"]; // phases that are named only where they occur
const HALVES = ["before", "copy"]; // of a step; it is halted there, too, and at every look inside attention
const ever = {}; // the phases that occur
const has = new Set(trace.outline.has); // what else occurs: "swaps", "stories", "queries"

// One more frame, after all the others.
function push(tree) {
  trees.push(tree);
  note(outlineOf(tree));
  if (tree.swapped || tree.swap_out || tree.swap_in) has.add("swaps");
  if (tree.story) has.add("stories");
  if (tree.num_queried_tokens) has.add("queries");
}

// Where one more frame is.
function note(outline) {
  const before = outlines.at(-1), i = outlines.push(outline) - 1;
  if (before && before.step === outline.step && !before.look && !HALVES.includes(before.phase)) ends.pop();
  ends.push(i);
  all.push(i);
  ever[outline.phase] = true;
}

// Other frames in the place of all there were; a live page does that.
function load(others) {
  for (const list of [trees, outlines, all, ends]) list.length = 0;
  others.forEach(push);
}

outlinesOf(trace.outline).forEach(note);
// One for each frame; on a live page more are pushed.
const trees = all.length ? new Recorded(trace, document.querySelectorAll("script.stretch"), all.length) : [];

// ---- where we are

const SECONDS = 1.6; // a frame, at the first speed
const FAR = 12; // frames: a jump over more of them moves nothing, because nobody could see what went where
const now = { index: 0, steps: false, timer: 0, looked: "", frame: null, drawn: -1 };

let beforeShown = () => {}; // a live page may have many texts to show

const places = () => (now.steps ? ends : all);
const place = () => (now.steps ? ends.findIndex((i) => i >= now.index) : now.index);

function nameOf(index) {
  const { step, phase, look } = outlines[index];
  return `step${step}-${phase}${look ? `-${look}` : ""}`;
}

// "#step4-copy", or "#step4" for its end; -1 if there is none.
function indexOf(name) {
  const exact = all.findIndex((i) => nameOf(i) === name);
  return exact >= 0 ? exact : all.findLastIndex((i) => name !== "" && nameOf(i).startsWith(`${name}-`));
}

function show(index) {
  if (!trees.length) return;
  now.index = now.steps ? (ends.find((i) => i >= index) ?? ends.at(-1)) : Math.max(0, Math.min(index, trees.length - 1));
  const tree = trees.at(now.index), at = place();
  const focused = document.activeElement?.dataset?.key;
  const isFar = Math.abs(now.index - now.drawn) > FAR, forward = now.index >= now.drawn;
  const placesBefore = isFar ? new Map() : takePlaces();
  stopMotion();
  beforeShown(tree);
  showFrame(tree, at > 0 ? trees.at(places()[at - 1]) : undefined);
  moveFrom(placesBefore, forward);
  now.drawn = now.index;
  drawClock(tree);
  const slider = byId("slider");
  slider.max = places().length - 1;
  slider.value = at;
  slider.setAttribute("aria-valuetext", nameOf(now.index).replace("-", ", "));
  byId("where").textContent = `${at + 1} / ${places().length}`;
  for (const id of ["first", "back"]) byId(id).setAttribute("aria-disabled", at === 0);
  for (const id of ["next", "last"]) byId(id).setAttribute("aria-disabled", at === places().length - 1);
  prepareWalks(focused);
  look(find(now.looked));
  try {
    history.replaceState(null, "", `#${nameOf(now.index)}`);
  } catch {
    // a page inside another one may have no history
  }
  document.dispatchEvent(new CustomEvent("shown", { detail: tree })); // for what a live page adds
}

function showFrame(tree, before) {
  const frame = readable(tree);
  frame.whole = now.steps && !tree.attention && !HALVES.includes(tree.phase); // it stands for its whole step
  now.frame = frame;
  drawTelling(frame, eventsOf(tree));
  drawCode(frame);
  drawQueues(frame);
  drawTexts(frame);
  drawPool(frame, before ? readable(before) : null, detailFor(frame));
  drawSwap(frame, has.has("swaps"));
  drawFigures(frame, has.has("queries"));
  drawBeside(frame);
  drawEnd();
  fitFinished(); // after all that may bring a scroll bar
  forgetUnseen();
}

// What is said of a frame: what its phase did; going step by step, what was not said when the step was halted last.
function eventsOf(tree) {
  const since = now.steps && !tree.attention ? tree.num_stopped_events : tree.num_earlier_events;
  const events = (tree.events ?? []).slice(since ?? 0);
  if (events.length) return events;
  const who = [...new Set((tree.chosen ?? []).map(([label]) => label))];
  if (tree.phase !== "update" || !who.length) return ["Nothing to tell of this phase."];
  return [`${who.length > 8 ? `${who.length} texts have` : `${join(who)} ${who.length === 1 ? "has" : "have"}`} the new ${who.length === 1 ? "token" : "tokens"}.`];
}

// At the end of a story, where the next one is.
function drawEnd() {
  const next = trace.next, isEnd = place() === places().length - 1;
  byId("onward").hidden = !(next && isEnd);
  if (byId("onward").hidden || byId("onward").hasChildNodes()) return;
  const name = next.href ? make("a", { href: next.href }, `${next.title} →`) : make("code", {}, `python -m minipage demo ${next.name}`);
  byId("onward").replaceChildren("Next story: ", name);
}

// For what the frames of the first stretch have to tell; a later one that tells more is scrolled.
function reserve() {
  document.body.classList.toggle("tells", has.has("stories"));
  reserveTelling(all.slice(0, trace.stretch).map((i) => trees.at(i)), eventsOf);
}

// "Step 4" and its phases: the ones that this step has, the one that is shown, and a way to the others.
function drawClock(tree) {
  byId("step").textContent = `Step ${tree.step ?? 0}`;
  let first = now.index, end = now.index + 1; // of this step
  while (first && outlines[first - 1].step === tree.step) first--;
  while (end < outlines.length && outlines[end].step === tree.step) end++;
  const walk = outlines.slice(first, end);
  const items = PHASES.filter((phase) => ever[phase] || !RARE.includes(phase)).map((phase) => {
    const there = walk.findIndex((each) => each.phase === phase), index = there < 0 ? -1 : first + there;
    const button = make("button", { type: "button", disabled: index < 0 && "disabled", "data-key": `phase ${phase}`,
      "aria-current": (now.steps || phase === tree.phase) && index >= 0 && "step" }, phase);
    button.onclick = () => (setSteps(false), pause(), show(index));
    return make("li", {}, button);
  });
  byId("phases").replaceChildren(...items);
}

// ---- going on

const go = (to) => (pause(), show(places()[Math.max(0, Math.min(to, places().length - 1))]));
const step = (by) => go(place() + by);

function play() {
  if (place() === places().length - 1) show(0);
  document.body.classList.add("playing");
  byId("play").setAttribute("aria-label", "Pause");
  byId("telling").setAttribute("aria-live", "off"); // nobody can listen that fast
  wait();
}

function wait() {
  clearTimeout(now.timer);
  now.timer = setTimeout(() => {
    show(places()[place() + 1] ?? 0);
    if (place() === places().length - 1 && !isLiving) pause();
    else wait();
  }, (SECONDS * 1000) / Number(byId("speed").value));
}

function pause() {
  clearTimeout(now.timer);
  document.body.classList.remove("playing");
  byId("play").setAttribute("aria-label", "Play");
  byId("telling").setAttribute("aria-live", "polite");
}

const isLiving = /\bplay\b/.test(location.search); // on a front page: it plays again and again, until somebody takes over

const isPlaying = () => document.body.classList.contains("playing");
const playOrPause = () => (isPlaying() ? pause() : play());

function setSteps(steps) {
  now.steps = steps;
  reserve();
  document.querySelector(`[name=pace][value=${steps ? "steps" : "phases"}]`).checked = true;
}

function showHelp() {
  byId("help").showModal(); // with the focus on its end, where it can be closed
  byId("help").scrollTop = 0;
}

byId("first").onclick = () => go(0);
byId("back").onclick = () => step(-1);
byId("next").onclick = () => step(1);
byId("last").onclick = () => go(Infinity);
byId("play").onclick = playOrPause;
byId("slider").oninput = (event) => go(Number(event.target.value));
byId("speed").onchange = () => isPlaying() && wait();
byId("pace").onchange = (event) => (setSteps(event.target.value === "steps"), show(now.index));
byId("ask").onclick = showHelp;
byId("theme").onclick = () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
};

const KEYS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), Home: () => go(0), End: () => go(Infinity),
  " ": playOrPause, p: playOrPause, s: () => (setSteps(!now.steps), show(now.index)), "?": showHelp,
  ArrowDown: () => walk(1), ArrowUp: () => walk(-1),
};

document.addEventListener("keydown", (event) => {
  const own = event.target.closest?.("input, select") ? /^(Arrow|Home|End| )/ : event.target.closest?.("button") ? /^ $/ : /^$/;
  const act = KEYS[event.key];
  if (!act || event.ctrlKey || event.altKey || event.metaKey || byId("help").open || own.test(event.key)) return;
  if (event.key.startsWith("Arrow") && act() === false) return; // nothing to walk along: the page may scroll
  if (!event.key.startsWith("Arrow")) act();
  event.preventDefault();
});

// ---- looking at something: it lights up wherever else it is

const find = (key) => (key ? document.querySelector(`[data-key="${CSS.escape(key)}"]`) : null);

function look(element) {
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  now.looked = element?.dataset.key ?? "";
  const { slot, block, swap, owner, lights } = element?.dataset ?? {};
  const [name, value] = slot !== undefined ? ["slot", slot] : block !== undefined ? ["block", block] : owner ? ["owner", owner] : ["swap", swap];
  if (value !== undefined) for (const same of document.querySelectorAll(`[data-${name}="${value}"]`)) same.classList.add("lit");
  if (name === "slot")
    for (const holder of document.querySelectorAll(`#stage [data-block="${Math.floor(value / now.frame.block_size)}"]`)) holder.classList.add("lit");
  if (lights !== undefined)
    for (const number of lights.split(" ")) for (const same of document.querySelectorAll(`#stage [data-block="${number}"]`)) same.classList.add("lit");
  document.body.classList.toggle("looking", value !== undefined || Boolean(lights));
  byId("looked-at").textContent = element ? element.getAttribute("aria-label") ?? (block ? sayBlock(now.frame, Number(block)) : "") : "";
  drawWires(now.frame);
}

const lookable = (target) => target.closest?.("#stage [data-key], #beside [data-key], #code [data-key]") ?? null;

for (const place of [byId("stage"), byId("beside"), byId("code")]) {
  place.addEventListener("pointerover", (event) => look(lookable(event.target) ?? lookable(document.activeElement)));
  place.addEventListener("pointerleave", () => look(lookable(document.activeElement)));
}
document.addEventListener("focusin", (event) => look(lookable(event.target)));
document.addEventListener("focusout", () => look(null));

// One stop for Tab in each text and one in the memory; ↑ and ↓ walk along what is in there.
function prepareWalks(focused) {
  for (const list of document.querySelectorAll(".walk")) {
    list.querySelectorAll("[data-key]").forEach((item, i) => { if (item.tabIndex !== (i ? -1 : 0)) item.tabIndex = i ? -1 : 0; });
  }
  const same = find(focused);
  if (same && same !== document.activeElement) same.focus({ preventScroll: true });
}

function walk(by) {
  const here = document.activeElement, list = here.closest(".walk");
  if (!list) return false;
  const items = [...list.querySelectorAll("[data-key]")];
  const there = items[items.indexOf(here) + by];
  if (there) {
    here.tabIndex = -1;
    there.tabIndex = 0;
    there.focus();
  }
}

// ---- beginning

trace.palette.forEach((colour, i) => document.documentElement.style.setProperty(`--own-${i}`, colour));

document.body.classList.toggle("embedded", /\bembed\b/.test(location.search));
byId("legend").replaceChildren(...[
  ["legend-written", "computed in this step"], ["legend-promised", "has its slot, but K and V are not there yet"],
  ["legend-reused", "reused: the prefix cache had found it"], ["legend-wanted", "somebody wants to write here, and others hold it too"],
  ["legend-free", "free"], ["legend-cached", "free, but its words are still there"],
  ["legend-findable", "the prefix cache can find it, in use or free"], ["legend-shared", "shared: the edge has the colours of all, the rest that of the first"],
].map(([name, words]) => make("li", {}, make("span", { class: `swatch ${name}` }), words)));
for (const pane of document.querySelectorAll(".pane")) pane.addEventListener("scroll", () => drawWires(now.frame), { passive: true });
new ResizeObserver(() => (fitFinished(), drawWires(now.frame))).observe(byId("stage"));
new ResizeObserver(reserve).observe(byId("said"));
byId("scroll").addEventListener("scroll", () => drawWires(now.frame), { passive: true });
addEventListener("hashchange", () => {
  const index = indexOf(location.hash.slice(1));
  if (index >= 0 && index !== now.index) show(index);
});
reserve();
show(Math.max(0, indexOf(location.hash.slice(1))));
if (isLiving && trees.length && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
