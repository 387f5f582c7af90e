// Draws what is said of a frame, and the texts with their logical blocks.
//
//   A  To be, or not                        7 of 19 tokens
//      [0 │ To│ be│,│ or → 3]  [1 │ not│ ·│ ·│ · → 7]
//
// What can be looked at has a data-key, by which it is found again in the next frame, and a data-block or data-slot, by
// which it is found in the other pane. data-fly and data-from are for viewer_motion.js.
"use strict";

const MANY_BLOCKS = 8, LAST_BLOCKS = 4; // a text with this many blocks shows only the words of the last ones
const LONG_TEXT = 150; // characters
const MOST_RESERVED = "10.5rem"; // for what is said

function drawTelling(frame, events) {
  byId("story").textContent = frame.story;
  byId("events").replaceChildren(...events.map((event) => make("li", { dir: "auto" }, event)));
}

// At the largest size that any of the frames needs (or nearly any, if some tell a great deal), so that nothing below moves while they come and go.
function reserveTelling(trees, eventsOf) {
  const length = (tree) => (tree.story ?? "").length * 1.6 + eventsOf(tree).reduce((sum, event) => sum + event.length + 45, 0);
  const longest = trees.map((tree) => [length(tree), tree]).sort(([a], [b]) => b - a).slice(0, 8);
  const said = byId("said"), shown = [...said.children].map((part) => [...part.childNodes]);
  said.style.minHeight = "";
  let height = 0;
  for (const [, tree] of longest) {
    drawTelling({ ...EMPTY_FRAME, ...tree }, eventsOf(tree));
    height = Math.max(height, said.scrollHeight);
  }
  [...said.children].forEach((part, i) => part.replaceChildren(...shown[i]));
  said.style.minHeight = `min(${height}px, ${MOST_RESERVED})`;
}

function drawQueues(frame) {
  const done = Object.keys(frame.sequences).filter((label) => frame.sequences[label].status === "finished");
  const queues = { running: frame.running, waiting: frame.waiting, "swapped out": frame.swapped, finished: done };
  const chips = (labels) => labels.map((label) => chip(label, { "data-fly": `queue ${label}` }));
  const earlier = frame.num_more_finished ? ` and ${frame.num_more_finished} earlier` : "";
  byId("queues").replaceChildren(
    ...Object.entries(queues)
      .filter(([name, labels]) => labels.length || name === "running" || name === "waiting")
      .map(([name, labels]) => make("span", {}, `${name} `, labels.length ? chips(labels) : make("i", {}, "nobody"), name === "finished" ? earlier : "")),
  );
}

function drawTexts(frame) {
  sync(byId("texts"), Object.entries(frame.sequences).map(([label, text]) => drawText(frame, label, text)));
}

function drawText(frame, label, text) {
  if (text.status === "finished") return drawFinished(frame, label, text);
  const size = frame.block_size;
  const inPool = text.tables.map((table, group) => table.map((block, i) => (block < 0 ? drawGivenBack(label, text, i, size, group) : drawLogical(frame, label, text, i, block, group))));
  const inSwap = text.swap_blocks.map((block, i) => (block < 0 ? drawGivenBack(label, text, i, size, 0) : drawSwapped(frame, label, text, i, block, size)));
  const tables = text.blocks.length ? inPool : inSwap.length ? [inSwap] : [];
  const status = text.status === "swapped" ? "swapped out" : text.status;
  const again = text.num_preemptions ? `preempted ${text.num_preemptions}×` : "";
  const ahead = frame.gives_way.includes(label) ? "has to give way" : frame.returns.includes(label) ? "can come back" : "";
  const name = `Text ${label}, ${status}`;
  const badges = [ahead, again, status === "running" ? "" : status].filter(Boolean).map((word) => make("span", { class: `badge ${word === ahead ? "alert" : ""}` }, word));
  const length = make("small", {}, `${text.tokens.length} of at most ${count(text.max_num_tokens, "token")}`);
  const article = reuse(`text ${label}`, name, () => make("article", { class: `text ${text.status}`, style: colour(label), "data-label": label, "aria-label": name }, chip(label)));
  sync(article, [article.firstChild, runningText(label, text), make("span", { class: "status" }, ...badges, length),
    tables.length ? drawTables(frame, label, tables) : make("p", { class: "why" }, whyNoBlocks(frame, text))]);
  return article;
}

// A list of logical blocks; of several KV cache groups one for each, below what its layers see.
function drawTables(frame, label, tables) {
  const lists = tables.map((boxes, group) => {
    const list = reuse(`blocks of ${label}${suffix(group)}`, "", () => make("ol", { class: "walk" }));
    sync(list, boxes);
    return list;
  });
  if (lists.length === 1) return lists[0];
  const groups = reuse(`groups of ${label}`, "", () => make("div", { class: "groups" }));
  sync(groups, lists.flatMap((list, group) => [reuse(`name of group ${group} of ${label}`, "", () => make("small", {}, groupName(frame, group))), list]));
  return groups;
}

// A line of its own is enough for whoever is done.
function drawFinished(frame, label, text) {
  return reuse(`text ${label}`, `finished ${text.text}`, () => drawFinishedAnew(label, text));
}

function drawFinishedAnew(label, text) {
  const held = text.last_blocks.filter((block) => block >= 0); // the others lie behind a window
  const gave = held.length ? `gave back ${count(held.length, "block")}` : "held no blocks";
  const all = held.length ? `gave back ${held.join(", ")}` : gave;
  return make("article", { class: "text finished", style: colour(label), "data-label": label, "aria-label": `Text ${label}, finished`, title: `${text.prompt}${text.text}` },
    chip(label), make("p", { class: "running-text", dir: "auto", "data-end": visible(text.prompt + text.text) }),
    make("span", { class: "status" }, make("span", { class: "badge" }, text.finish_reason.startsWith("beaten") ? text.finish_reason : `finished (${text.finish_reason})`), make("small", { title: all }, gave)));
}

// As much of the end of a finished text as its line has room for.
function fitFinished() {
  for (const line of document.querySelectorAll("#texts .finished .running-text")) {
    const whole = line.dataset.end, room = line.clientWidth - 2, font = fontOf(line);
    let shown = whole;
    for (let start = 0; shown !== "…" && widthOf(shown, font) > room; shown = `…${endOf(whole, start)}`) {
      const space = whole.indexOf(" ", start + 1);
      start = space > 0 && widthOf(`…${whole.slice(start)}`, font) < room * 3 ? space : start + 8;
      if (start >= whole.length) { shown = "…"; break; }
    }
    if (line.textContent !== shown) line.textContent = shown;
  }
}

function runningText(label, text) {
  const said = text.new_text ? text.text.slice(0, -text.new_text.length) : text.text;
  const cut = Math.max(0, text.prompt.length + text.text.length - LONG_TEXT);
  const prompt = endOf(text.prompt, cut), rest = endOf(said, Math.max(0, cut - text.prompt.length));
  const newest = visible(text.new_text), word = newest.trimStart() || newest; // a blank before it may end a line
  const isSlotless = text.new_text && text.num_computed_tokens === text.tokens.length - 1;
  return make("p", { class: "running-text", dir: "auto" }, cut ? "…" : "",
    make("span", { class: "prompt", "data-fly": `${label} said` }, visible(prompt)), visible(rest),
    newest.slice(0, newest.length - word.length), newest ? make("ins", { "data-fly": `${label} newest` }, word) : "",
    text.blocks.length ? make("small", { class: `slotless ${isSlotless ? "" : "later"}` }, " no slot yet") : ""); // its room stays
}

function whyNoBlocks(frame, text) {
  if (text.status === "running") return "waits for the prompt, which its first sample computes for all samples";
  if (text.status === "swapped") return "swapped out: its K and V are safe in the swap pool";
  const wanted = count(Math.ceil(text.tokens.length / frame.block_size) * Math.max(1, frame.windows.length), "block");
  const held = text.last_blocks.filter((block) => block >= 0);
  const lost = held.length ? `lost ${held.length > 1 ? "blocks" : "block"} ${held.join(", ")}; ` : "";
  return `${lost}waits for its turn: needs ${wanted}, ${frame.num_free} free`;
}

function drawLogical(frame, label, text, i, block, group) {
  const numBlocks = text.tables[group].length, key = `${label} block ${i}${suffix(group)}`;
  const size = frame.block_size, isNew = frame.writtenBlocks.has(block);
  const crowded = document.body.classList.contains("crowded"); // a live page with many texts: numbers are enough
  const small = crowded || numBlocks > MANY_BLOCKS && i < numBlocks - LAST_BLOCKS && !isNew;
  const slots = small ? [] : Array.from({ length: size }, (_, offset) => [i * size + offset, block * size + offset, stateOf(frame, label, text, i * size + offset, block * size + offset)]);
  const reused = frame.reusedBlocks.has(block) && !isNew;
  const state = [small && "small", frame.attended === block && "being", reused && "reused"].filter(Boolean).join(" ");
  // It comes out of the free queue; or it is one that another text has already, or that was in the swap pool.
  const origins = crowded ? [] : [`free ${block}`, ...Object.keys(frame.sequences).filter((other) => other !== label).map((other) => `${other} block ${i}${suffix(group)}`)];
  const said = `Logical block ${i} of ${label}. ${sayBlock(frame, block)}`;
  const looks = slots.map(([, , state]) => state).join();
  const words = text.slotWords.slice(i * size, (i + 1) * size).join("|");
  return reuse(key, [block, state, looks, words, said].join("~"), () => make("li", { class: `logical ${state}`, tabindex: -1, "data-block": block, "data-key": key,
    "data-fly": key, "data-from": origins.join("|"), "aria-label": said },
    make("small", { class: "index" }, i),
    make("span", { class: `slots ${size > 8 ? "many" : ""}` }, slots.map((slot) => drawLogicalSlot(frame, label, text, group, ...slot))),
    make("span", { class: "leads" }, `→ ${block}`)));
}

function stateOf(frame, label, text, position, slot) {
  if (frame.wants.some(([who, , wanted]) => who === label && wanted === slot)) return "wanted";
  if (position >= text.num_computed_tokens) return "empty";
  return frame.pendingSlots.has(slot) ? "promised" : frame.writtenSlots.has(slot) && frame.isComputed ? "written" : "";
}

function drawLogicalSlot(frame, label, text, group, position, slot, now) {
  const key = `${label} ${position}${suffix(group)}`, block = Math.floor(slot / frame.block_size);
  if (now === "wanted")
    return make("span", { class: "slot wanted", "data-slot": slot, role: "img", "aria-label": `${label} wants to write here` }, make("bdi", {}, visible(text.tokens[position] ?? "?")));
  if (now === "empty") return make("span", { class: "slot empty" }, "·");
  return make("span", { class: `slot ${now}`, tabindex: -1, "data-slot": slot, "data-key": key, role: "img",
    "data-fly": key, "data-from": `${label} newest|${label} said`, "aria-label": sayToken(frame, label, text, position, block) },
    make("bdi", {}, inSlot(text.slotWords[position])));
}

// Behind a sliding window: a null block stands in the table.
function drawGivenBack(label, text, i, size, group) {
  const words = text.tokens.slice(i * size, (i + 1) * size);
  return make("li", { class: "logical small out", tabindex: -1, "data-key": `${label} block ${i}${suffix(group)}`,
    "aria-label": `Logical block ${i} of ${label}, “${visible(words.join(""))}”, lies behind the window and was given back.` },
    make("small", { class: "index" }, i), make("span", { class: "leads" }, "behind"));
}

function drawSwapped(frame, label, text, i, block, size) {
  const words = text.tokens.slice(i * size, Math.min((i + 1) * size, text.num_computed_tokens));
  return make("li", { class: "logical out", tabindex: -1, "data-swap": block, "data-key": `${label} block ${i}`, "data-fly": `${label} block ${i}`,
    "aria-label": `Logical block ${i} of ${label} is in swap block ${block}: “${visible(words.join(""))}”.` },
    make("small", { class: "index" }, i),
    make("span", { class: "slots" }, words.map((word) => make("span", { class: "slot" }, make("bdi", {}, visible(word))))),
    make("span", { class: "leads" }, `→ swap ${block}`));
}
