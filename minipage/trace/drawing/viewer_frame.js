// Draws one frame: the texts with their logical blocks on the left, the memory on the right, and lines between them.
//
//   A  To be, or not
//      [To│ be│,│ or] → 3 ─────────╮      ┌ 3 ─── A B ×2 ┐
//   B  To be, and                  ├────▶ │To│ be│,│ or  │
//      [To│ be│,│ or] → 3 ─────────╯      └──────────────┘
//
// Everything is made anew for each frame, from the frame alone (and the one shown before it, to say what is new).
// What can be looked at has a data-key, by which it is found again in the next frame, and a data-block or data-slot, by
// which it is found in the other pane.
"use strict";

const PHASES = ["schedule", "copy", "attend", "forward", "sample", "update", "failed"];
const BIG_POOL = 40, HUGE_POOL = 160, MOST_CELLS = 2000; // blocks: then without words, then without slots, then cut off
const MANY_BLOCKS = 8, LAST_BLOCKS = 4; // a text with this many blocks shows only the words of the last ones
const MANY_WIRES = 28; // with more, only wires that are looked at, or written, are drawn
const LONG_TEXT = 150; // characters

// What html.py leaves out because it is empty.
const EMPTY_FRAME = {
  events: [], story: "", waiting: [], running: [], swapped: [], free_queue: [], num_free: 0, chunks: [], written: [], read: [],
  swap_out: [], swap_in: [], copies: [], chosen: [], preempted: [], finished: [], blocks: {}, sequences: {},
  num_earlier_events: 0, num_queried_tokens: 0, num_hit_tokens: 0, num_computed_tokens: 0, num_used_blocks: 0,
  num_wasted_slots: 0, num_contiguous_blocks: 0,
};
const EMPTY_TEXT = {
  prompt: "", text: "", new_text: "", tokens: [], num_prompt_tokens: 0, num_computed_tokens: 0, blocks: [],
  swap_blocks: [], last_blocks: [], num_preemptions: 0, finish_reason: "",
};
const EMPTY_BLOCK = { ref_count: 0, holders: [], cached: false, tokens: [] };

const byId = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value || value === 0) made.setAttribute(key, value);
  made.append(...children.flat());
  return made;
}

function drawSvg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- words

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const join = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

// Text on one line, with signs for what cannot be seen.
const visible = (text) =>
  text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);

// ---- a frame, made easy to ask

function readable(tree) {
  const frame = { ...EMPTY_FRAME, ...tree };
  frame.sequences = Object.fromEntries(
    Object.entries(frame.sequences)
      .map(([label, text]) => [label, { ...EMPTY_TEXT, ...text }])
      .sort(([a], [b]) => a.length - b.length || (a < b ? -1 : 1)),
  );
  frame.writtenSlots = new Set(frame.written);
  frame.writtenBlocks = new Set(frame.written.map((slot) => Math.floor(slot / frame.block_size)));
  frame.isComputed = PHASES.indexOf(frame.phase) >= PHASES.indexOf("attend"); // K and V of the chosen tokens are there
  frame.attended = frame.attention && !frame.attention.kernel ? frame.attention.steps.at(-1).physical : -1;
  return frame;
}

const blockOf = (frame, number) => ({ ...EMPTY_BLOCK, ...frame.blocks[number] });
const colour = (label) => `--own: var(--own-${(label.charCodeAt(label.length - 1) - 65) % 6})`;
const chip = (label) => make("b", { class: "chip", style: colour(label) }, label);

// "A (logical 1) and B (logical 1)"
function mappers(frame, number) {
  return Object.entries(frame.sequences)
    .filter(([, text]) => text.blocks.includes(number))
    .map(([label, text]) => `${label} (logical block ${text.blocks.indexOf(number)})`);
}

function sayBlock(frame, number) {
  const block = blockOf(frame, number);
  const words = block.tokens.length ? ` It holds “${visible(block.tokens.join(""))}”.` : "";
  const users = mappers(frame, number);
  if (!block.ref_count)
    return `Block ${number} is free${block.cached ? ", but the prefix cache can still find it" : ""}.${words}`;
  const shared = users.length > 1 ? `Block ${number} is shared by ${join(users)}` : `Block ${number} belongs to ${join(users) || "nobody shown"}`;
  return `${shared}: ${count(block.ref_count, "reference")}.${block.cached ? " The prefix cache can find it." : ""}${words}`;
}

function sayToken(frame, label, text, position) {
  const offset = position % frame.block_size;
  const block = text.blocks[Math.floor(position / frame.block_size)];
  const what = `“${visible(text.tokens[position])}”, token ${position} of ${label}`;
  return `${what}: slot ${block * frame.block_size + offset} = block ${block} × ${frame.block_size} + ${offset}.`;
}

// ---- above: when, and what happened

function drawTelling(frame, events) {
  byId("story").textContent = frame.story;
  byId("events").replaceChildren(...events.map((event) => make("li", { dir: "auto" }, event)));
}

function drawQueues(frame) {
  const done = Object.keys(frame.sequences).filter((label) => frame.sequences[label].status === "finished");
  const queues = { running: frame.running, waiting: frame.waiting, "swapped out": frame.swapped, finished: done };
  byId("queues").replaceChildren(
    ...Object.entries(queues)
      .filter(([name, labels]) => labels.length || name === "running" || name === "waiting")
      .map(([name, labels]) => make("span", {}, `${name} `, labels.length ? labels.map(chip) : make("i", {}, "nobody"))),
  );
}

// ---- left: the texts

function drawTexts(frame) {
  byId("texts").replaceChildren(...Object.entries(frame.sequences).map(([label, text]) => drawText(frame, label, text)));
}

function drawText(frame, label, text) {
  const size = frame.block_size;
  const inPool = text.blocks.map((block, i) => (block < 0 ? drawGivenBack(label, text, i, size) : drawLogical(frame, label, text, i, block)));
  const inSwap = text.swap_blocks.map((block, i) => drawSwapped(label, text, i, block, size));
  const boxes = inPool.length ? inPool : inSwap;
  const again = text.num_preemptions ? ` · preempted ${text.num_preemptions}×` : "";
  const length = `${text.tokens.length} of at most ${count(text.max_num_tokens, "token")}${again}`;
  const status = text.status === "finished" ? `finished (${text.finish_reason})` : text.status === "swapped" ? "swapped out" : text.status;
  return make("article", { class: `text ${text.status}`, style: colour(label), "data-label": label, "aria-label": `Text ${label}, ${status}` },
    chip(label),
    runningText(text),
    make("span", { class: "status" }, make("span", { class: "badge" }, status), " ", make("small", {}, length)),
    boxes.length ? make("ol", { class: "walk" }, boxes) : make("p", { class: "why" }, whyNoBlocks(frame, text)));
}

function runningText(text) {
  const said = text.new_text ? text.text.slice(0, -text.new_text.length) : text.text;
  const cut = Math.max(0, text.prompt.length + text.text.length - LONG_TEXT);
  const prompt = [...text.prompt.slice(Math.min(cut, text.prompt.length))].join("");
  const rest = said.slice(Math.max(0, cut - text.prompt.length));
  return make("p", { class: "running-text", dir: "auto" }, cut ? "…" : "",
    make("span", { class: "prompt" }, visible(prompt)), visible(rest),
    text.new_text ? make("ins", {}, visible(text.new_text)) : "");
}

function whyNoBlocks(frame, text) {
  if (text.status === "finished") return text.last_blocks.length ? `gave back ${text.last_blocks.join(", ")}` : "held no blocks";
  if (text.status === "running") return "waits for the prompt, which its first sample computes for all samples";
  if (text.status === "swapped") return "swapped out: its K and V are safe in the swap pool";
  const wanted = count(Math.ceil(text.tokens.length / frame.block_size), "block");
  const lost = text.last_blocks.length ? `lost ${text.last_blocks.join(", ")}; ` : "";
  return `${lost}waits for its turn: needs ${wanted}, ${frame.num_free} free`;
}

function drawLogical(frame, label, text, i, block) {
  const size = frame.block_size, isNew = frame.writtenBlocks.has(block);
  const small = text.blocks.length > MANY_BLOCKS && i < text.blocks.length - LAST_BLOCKS && !isNew;
  const slots = small ? [] : Array.from({ length: size }, (_, offset) => {
    const position = i * size + offset;
    if (position >= text.num_computed_tokens) return make("span", { class: "slot empty" }, "·");
    const slot = block * size + offset;
    const now = frame.writtenSlots.has(slot) ? (frame.isComputed ? "written" : "promised") : "";
    return make("span", { class: `slot ${now}`, tabindex: -1, "data-slot": slot, "data-key": `${label} ${position}`, role: "img",
      "aria-label": sayToken(frame, label, text, position) }, make("bdi", {}, visible(text.tokens[position])));
  });
  return make("li", { class: `logical ${small ? "small" : ""} ${frame.attended === block ? "being" : ""}`, tabindex: -1, "data-block": block, "data-key": `${label} block ${i}`,
    role: "group", "aria-label": `Logical block ${i} of ${label}. ${sayBlock(frame, block)}` },
    make("small", { class: "index" }, i), make("span", { class: "slots" }, slots), make("span", { class: "leads" }, `→ ${block}`));
}

// Behind a sliding window: a null block stands in the table.
function drawGivenBack(label, text, i, size) {
  const words = text.tokens.slice(i * size, (i + 1) * size);
  return make("li", { class: "logical small out", tabindex: -1, "data-key": `${label} block ${i}`, role: "group",
    "aria-label": `Logical block ${i} of ${label}, “${visible(words.join(""))}”, lies behind the window and was given back.` },
    make("small", { class: "index" }, i), make("span", { class: "leads" }, "behind"));
}

function drawSwapped(label, text, i, block, size) {
  const words = text.tokens.slice(i * size, Math.min((i + 1) * size, text.num_computed_tokens));
  return make("li", { class: "logical out", tabindex: -1, "data-swap": block, "data-key": `${label} block ${i}`, role: "group",
    "aria-label": `Logical block ${i} of ${label} is in swap block ${block}: “${visible(words.join(""))}”.` },
    make("small", { class: "index" }, i),
    make("span", { class: "slots" }, words.map((word) => make("span", { class: "slot" }, make("bdi", {}, visible(word))))),
    make("span", { class: "leads" }, `→ swap ${block}`));
}

// ---- right: the memory

function drawPool(frame, before, detail) {
  const size = frame.block_size, total = frame.num_blocks;
  byId("memory-size").textContent = `${count(total, "block")} of ${count(size, "token")}`;
  const cells = Array.from({ length: Math.min(total, MOST_CELLS) }, (_, number) => drawCell(frame, before, number, detail));
  if (total > MOST_CELLS) cells.push(make("li", { class: "more" }, `… and ${total - MOST_CELLS} more`));
  byId("pool").className = `walk ${detail}`;
  byId("pool").replaceChildren(...cells);
  const next = frame.free_queue.map((number) => make("b", { "data-block": number, "data-key": `free ${number}` }, number));
  const more = frame.num_free > next.length ? [`… ${frame.num_free - next.length} more`] : [];
  byId("free").replaceChildren("Free queue, next first ", ...(next.length ? next : [make("i", {}, "empty")]), ...more);
}

// How much a cell can show: "words", "slots" or "letters".
const detailFor = (frame) =>
  frame.num_blocks > HUGE_POOL ? "letters" : frame.num_blocks > BIG_POOL || frame.block_size > 8 ? "slots" : "words";

function drawCell(frame, before, number, detail) {
  const block = blockOf(frame, number), size = frame.block_size;
  const tags = tagsOf(frame, before, number, block);
  const owner = block.holders[0];
  const state = block.ref_count ? "used" : block.cached ? "cached" : "free";
  const stripes = block.holders.map((label, i) => {
    const [from, to] = [i, i + 1].map((edge) => `${(edge / block.holders.length) * 100}%`);
    return `var(--own-${(label.charCodeAt(label.length - 1) - 65) % 6}) ${from} ${to}`;
  });
  const style = `${owner ? colour(owner) : ""}; --stripes: linear-gradient(90deg, ${stripes.join(", ") || "transparent, transparent"})`;
  const letters = block.holders.slice(0, 3).map(chip);
  if (block.holders.length > 3) letters.push(make("small", {}, `+${block.holders.length - 3}`));
  const slots = detail === "letters" ? [] : Array.from({ length: size }, (_, offset) => {
    const slot = number * size + offset, word = block.tokens[offset];
    const now = frame.writtenSlots.has(slot) ? (frame.isComputed ? "written" : "promised") : "";
    return make("span", { class: `slot ${word === undefined ? "empty" : now}`, "data-slot": slot },
      detail === "words" && word !== undefined ? make("bdi", {}, visible(word)) : "");
  });
  return make("li", { class: `cell ${state} ${tags.map((tag) => tag.split(" ")[0]).join(" ")}`, style, tabindex: -1,
    "data-block": number, "data-key": `block ${number}`, role: "group", "aria-label": sayBlock(frame, number) + (tags.length ? ` Just now: ${tags.join(", ")}.` : "") },
    make("span", { class: "head" }, make("span", { class: "number" }, number), letters,
      block.ref_count > 1 ? make("span", { class: "refs" }, `×${block.ref_count}`) : "",
      block.cached ? make("span", { class: "findable", title: "the prefix cache can find it" }, "◆") : ""),
    make("span", { class: "slots" }, slots),
    make("span", { class: "tags" }, tags.join(" · ") || (state === "used" ? "" : state === "cached" ? "free, still cached" : "free")));
}

// What has just happened to a block, the most important first.
function tagsOf(frame, before, number, block) {
  const tags = [];
  const moving = frame.phase === "copy" || frame.whole;
  const from = frame.copies.find(([source]) => source === number), to = frame.copies.find(([, target]) => target === number);
  if (moving && from) tags.push(`copied to ${from[1]}`);
  if (moving && to) tags.push(`copy of ${to[0]}`);
  if (moving && frame.swap_out.some(([source]) => source === number)) tags.push("saved to swap");
  if (moving && frame.swap_in.some(([, target]) => target === number)) tags.push("restored");
  const was = before ? blockOf(before, number).ref_count : block.ref_count;
  if (!was && block.ref_count && !tags.length) tags.push("taken");
  if (was && !block.ref_count) tags.push("given back");
  if (frame.attended === number) tags.push("being read");
  if (frame.writtenBlocks.has(number) && (frame.phase === "forward" || frame.whole)) tags.push("written");
  else if (frame.phase === "forward" && frame.read.includes(number)) tags.push("read");
  return tags;
}

// Only what is there is known of the swap space.
function drawSwap(frame, everSwaps) {
  const holders = new Map();
  for (const [, number] of frame.swap_out) holders.set(number, "");
  for (const [number] of frame.swap_in) if (frame.phase === "schedule" || frame.phase === "copy" || frame.whole) holders.set(number, "");
  for (const [label, text] of Object.entries(frame.sequences)) for (const number of text.swap_blocks) holders.set(number, label);
  const cells = [...holders].sort(([a], [b]) => a - b).map(([number, label]) =>
    make("li", { class: `cell swap ${label ? "used" : "free"}`, style: label ? colour(label) : "", "data-swap": number, "data-key": `swap ${number}` },
      make("span", { class: "head" }, make("span", { class: "number" }, number), label ? chip(label) : "")));
  byId("swap").hidden = !everSwaps;
  byId("swap").replaceChildren("Swap space ", cells.length ? make("ol", {}, cells) : make("i", {}, "empty"));
}

function drawFigures(frame) {
  const size = frame.block_size, slots = frame.num_blocks * size, one = frame.num_contiguous_blocks * size;
  const scale = 100 / Math.max(slots, one);
  const taken = frame.num_used_blocks * size, stored = taken - frame.num_wasted_slots;
  const bar = (...parts) => make("span", { class: "bar" }, parts.map(([name, n]) => make("span", { class: name, style: `width: ${n * scale}%` })));
  const row = (name, picture, words, alert) => [make("dt", {}, name), make("dd", { class: alert ? "alert" : "" }, picture, words)];
  const tooMuch = one > slots;
  byId("figures").replaceChildren(
    ...row("Paged", bar(["stored", stored], ["wasted", frame.num_wasted_slots], ["rest", slots - taken]),
      `${frame.num_used_blocks} of ${count(frame.num_blocks, "block")}, ${count(frame.num_wasted_slots, "empty slot")} in them`),
    ...row("In one piece", bar(["reserved", Math.min(one, slots)], ["excess", Math.max(0, one - slots)], ["rest", Math.max(0, slots - one)]),
      `${count(frame.num_contiguous_blocks, "block")} reserved${tooMuch ? ": more than there are" : " for the longest case"}`, tooMuch),
    ...row("This step", "", `${frame.num_computed_tokens} of at most ${count(frame.max_num_batched_tokens, "token")} computed`),
    ...row("Prefix cache", "", `${frame.num_hit_tokens} of ${count(frame.num_queried_tokens, "token")} found instead of computed`));
}

// ---- between them: lines from logical to physical blocks, and arrows for what is copied

function drawWires(frame) {
  const area = byId("stage").getBoundingClientRect();
  const wires = byId("wires"), arrows = byId("arrows");
  wires.replaceChildren();
  arrows.replaceChildren(arrowHead());
  if (!frame) return;
  const at = (element) => inView(element, area);
  const logical = [...document.querySelectorAll("#texts .logical")];
  const lanes = Object.keys(frame.sequences);
  for (const box of logical) {
    const name = box.dataset.swap === undefined ? "block" : "swap", number = box.dataset[name];
    const cell = document.querySelector(`#${name === "block" ? "pool" : "swap"} .cell[data-${name}="${number}"]`);
    const strong = box.classList.contains("lit") || frame.writtenBlocks.has(Number(number));
    const [from, to] = [at(box), cell && at(cell)];
    if (from && to && (strong || logical.length <= MANY_WIRES)) {
      const text = box.closest(".text"), style = text.getAttribute("style");
      const lit = box.classList.contains("lit") ? " lit" : "";
      wires.append(drawSvg("path", { d: wire(from, to, lanes.indexOf(text.dataset.label)), style, class: `wire${strong ? " strong" : ""}${lit}` }));
    }
  }
  if (frame.phase !== "copy" && !frame.whole) return;
  const cell = (kind, number) => document.querySelector(`#${kind === "swap" ? "swap" : "pool"} .cell[data-${kind}="${number}"]`);
  const moves = [["copies", "block", "block", "copy"], ["swap_out", "block", "swap", ""], ["swap_in", "swap", "block", ""]];
  for (const [name, fromKind, toKind, word] of moves)
    for (const [source, target] of frame[name]) {
      const [from, to] = [cell(fromKind, source), cell(toKind, target)].map((element) => element && at(element));
      if (from && to) arrows.append(...arrow(from, to, word));
    }
}

// Where an element is in the stage, or null if its pane has scrolled it away.
function inView(element, area) {
  const rect = element.getBoundingClientRect(), pane = element.closest(".pane").getBoundingClientRect();
  const y = rect.top + rect.height / 2;
  if (y < Math.max(pane.top, area.top) || y > Math.min(pane.bottom, area.bottom)) return null;
  const [left, top] = [rect.left - area.left, rect.top - area.top];
  return { left, top, right: left + rect.width, bottom: top + rect.height, x: left + rect.width / 2, y: top + rect.height / 2,
    width: rect.width, height: rect.height };
}

// From a logical block into the gutter between the panes, along the gap above a row of cells, and down into the cell.
// Each text has a lane of its own, so that two texts that share a block arrive side by side.
function wire(from, to, lane) {
  const x = to.left + 14 + (lane % 6) * 7, y = to.top - 3 - (lane % 4) * 2.5;
  const gutter = byId("pool").getBoundingClientRect().left - byId("stage").getBoundingClientRect().left - 10;
  if (gutter > from.right) {
    const bend = (gutter - from.right) / 2;
    return `M${from.right} ${from.y} C${from.right + bend} ${from.y} ${gutter - bend} ${y} ${gutter} ${y} H${x - 4} Q${x} ${y} ${x} ${to.top + 1}`;
  }
  const bend = Math.max(16, (y - from.bottom) / 2); // one pane below the other
  return `M${from.x} ${from.bottom} C${from.x} ${from.bottom + bend} ${x} ${y - bend} ${x} ${to.top + 1}`;
}

// Between neighbours in a row the arrow hangs below them; otherwise it goes from edge to edge.
function arrow(from, to, word) {
  const inRow = Math.abs(from.y - to.y) < from.height / 2;
  const sag = inRow ? 56 : 0, drop = inRow ? 4 : 0;
  const bend = { x: (from.x + to.x) / 2, y: inRow ? Math.max(from.bottom, to.bottom) + sag : (from.y + to.y) / 2 };
  const [a, b] = inRow ? [{ x: from.x, y: from.bottom }, { x: to.x, y: to.bottom + drop }] : [edge(from, bend), edge(to, bend)];
  const middle = { x: (a.x + 2 * bend.x + b.x) / 4, y: (a.y + 2 * bend.y + b.y) / 4 };
  const d = `M${a.x} ${a.y} Q${bend.x} ${bend.y} ${b.x} ${b.y}`;
  return [
    drawSvg("path", { d, class: "halo" }),
    drawSvg("path", { d, class: "arrow", pathLength: 1, "marker-end": "url(#head)" }),
    drawSvg("text", { x: middle.x, y: middle.y + 5, class: "arrow-word" }, word),
  ];
}

// Where the line from the middle of a rectangle to a point leaves the rectangle.
function edge(rect, point) {
  const [dx, dy] = [point.x - rect.x, point.y - rect.y];
  const reach = Math.min(rect.width / 2 / (Math.abs(dx) || 1e-9), rect.height / 2 / (Math.abs(dy) || 1e-9), 1);
  return { x: rect.x + dx * reach, y: rect.y + dy * reach };
}

const arrowHead = () =>
  drawSvg("defs", {}, drawSvg("marker", { id: "head", viewBox: "0 0 10 10", refX: 8, refY: 5, markerWidth: 4.5, markerHeight: 4.5, orient: "auto" },
    drawSvg("path", { d: "M0 0 10 5 0 10z" })));
