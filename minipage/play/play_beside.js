// Before and after: what a change of options has changed, in figures and as two memories side by side.

const COMPARED = {
  steps: ["steps", String], served: ["requests served", String], most_blocks: ["most blocks in use", String],
  waste: ["empty slots in them", (share) => `${Math.round(100 * share)} %`], preemptions: ["preemptions", String],
  computed: ["tokens computed", String], recomputed: ["of them once more", String],
  hit_rate: ["hit rate", (share) => `${Math.round(100 * share)} %`],
};
const NAMES = {
  num_blocks: "blocks in the pool", block_size: "block size", max_num_batched_tokens: "tokens a step", max_num_seqs: "texts at once",
  policy: "policy", preemption: "preemption", enable_prefix_caching: "prefix caching",
};
const past = { trees: [] }; // the run before: one frame a step

const plain = (value) => (value === true ? "on" : value === false ? "off" : String(value));

function tellComparison(compared) {
  byId("compare").hidden = !compared;
  if (!compared) return;
  const [before, after] = compared.figures;
  byId("changed").textContent = Object.entries(compared.changed).map(([name, [old, now]]) => `${NAMES[name]}: ${plain(old)} → ${plain(now)}`).join("; ");
  byId("figures-compared").replaceChildren(...Object.entries(COMPARED).map(([name, [words, told]]) =>
    make("tr", { class: before[name] === after[name] ? "" : "differs", "data-figure": name },
      make("th", { scope: "row" }, words), make("td", {}, told(before[name])), make("td", {}, told(after[name])))));
}

function tellBefore(before) {
  past.trees = [];
  for (const delta of before?.deltas ?? []) past.trees.push(patch(past.trees.at(-1) ?? {}, delta));
  past.name = before ? Object.entries(live.facts.compare.changed).map(([name, [old]]) => `${NAMES[name]} ${plain(old)}`).join(", ") : "";
  if (now.frame) show(now.index);
}

// The same step of both runs; where the old one was done already, its end.
document.addEventListener("shown", ({ detail: tree }) => {
  if (!past.trees.length) return;
  const old = readable(past.trees.findLast((each) => each.step <= tree.step) ?? past.trees[0]), frame = readable(tree);
  const slots = Math.max(...[old, frame].map((each) => each.num_blocks * each.block_size));
  byId("beside").hidden = false;
  byId("beside").replaceChildren(drawLane(laneOf(old, `before: ${past.name}`), slots), drawLane(laneOf(frame, "now"), slots));
  drawWires(now.frame); // the stage has become smaller
});

const laneOf = (frame, name) => ({
  name, running: frame.running.length, waiting: frame.waiting.length + frame.swapped.length,
  done: Object.values(frame.sequences).filter((text) => text.status === "finished").length, pieces: ownPieces(frame),
});
