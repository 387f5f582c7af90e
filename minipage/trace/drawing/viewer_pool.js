// Draws the memory: every block with the words in it, the swap space, the free queue, and what paging saves.
"use strict";

const BIG_POOL = 40, HUGE_POOL = 160, MOST_CELLS = 2000; // blocks: then without words, then without slots, then cut off
const DENSE_POOL = 14; // with more blocks than this, cells are narrower
const MOST_ACROSS = 16; // slots beside each other, where they have no words
const MOST_CHIPS = 3; // letters in the head of a block
const FIGURES = { // what they mean; the help of the page says so, too
  "Paged": "How many blocks are in use, and how many of their slots are still empty.",
  "In one piece": "What the same requests would take if each reserved, in one piece and beforehand, room for the longest text that it may become.",
  "This step": "Tokens whose K and V are computed in this step, and those that need not be, because the prefix cache has them.",
  "All prompts": "The same of the prompts of all requests that have begun until now.",
};

// How much a cell can show: "words", "slots" or "letters".
const detailFor = (frame) =>
  frame.num_blocks > HUGE_POOL ? "letters" : frame.num_blocks > BIG_POOL || frame.block_size > 8 ? "slots" : "words";

function drawPool(frame, before, detail) {
  const size = frame.block_size, total = frame.num_blocks;
  byId("memory-size").textContent = `${count(total, "block")} of ${count(size, "token")}`;
  const cells = Array.from({ length: Math.min(total, MOST_CELLS) }, (_, number) => drawCell(frame, before, number, detail));
  if (total > MOST_CELLS) cells.push(make("li", { class: "more" }, `… and ${total - MOST_CELLS} more`));
  byId("pool").style.setProperty("--across", Math.min(size, MOST_ACROSS));
  byId("pool").style.setProperty("--rows", Math.ceil(size / MOST_ACROSS));
  byId("pool").className = `walk ${detail} ${total > DENSE_POOL ? "dense" : "roomy"}`;
  sync(byId("pool"), cells);
  const next = frame.free_queue.map((number) => make("b", { "data-block": number, "data-key": `free ${number}`, "data-fly": `free ${number}`, "data-from": `cell ${number}` }, number));
  const more = frame.num_free > next.length ? [make("span", {}, `… ${frame.num_free - next.length} more`)] : [];
  byId("free").replaceChildren(make("span", {}, "Free queue, next first"), ...(next.length ? next : [make("i", {}, "empty")]), ...more);
}

function drawCell(frame, before, number, detail) {
  const block = blockOf(frame, number), size = frame.block_size;
  // A block that is to be saved still holds what it held.
  const isLeaving = before && frame.phase === "schedule" && frame.swap_out.some(([source]) => source === number);
  const leaving = isLeaving ? blockOf(before, number).tokens : [];
  const tags = tagsOf(frame, before, number, block);
  const owner = block.holders[0];
  const state = block.ref_count ? "used" : block.cached ? "cached" : "free";
  const stripes = block.holders.map((label, i) => {
    const [from, to] = [i, i + 1].map((edge) => `${(edge / block.holders.length) * 100}%`);
    return `var(--own-${(label.charCodeAt(label.length - 1) - 65) % 6}) ${from} ${to}`;
  });
  const style = `${owner ? colour(owner) : ""}; --stripes: linear-gradient(90deg, ${stripes.join(", ") || "transparent, transparent"})`;
  const names = tags.map(([kind]) => kind), words = tags.map(([, word]) => word);
  const said = words.length ? ` Just now: ${words.join(", ")}.` : "";
  const shown = words.length ? words[0] : state === "used" ? "" : state;
  const slots = detail === "letters" ? [] : Array.from({ length: size }, (_, offset) => [number * size + offset, block.tokens[offset] ?? leaving[offset], slotState(frame, number * size + offset, block.tokens[offset], leaving[offset])]);
  const label = sayBlock(frame, number) + said;
  return reuse(`cell ${number}`, [label, detail, shown, ...names, ...slots.flatMap(([, word, now]) => [now, word])].join("~"), () => make("li", { class: `cell ${state} ${names.join(" ")}`, style, tabindex: -1, "data-block": number, "data-key": `block ${number}`,
    "data-fly": `cell ${number}`, "aria-label": label },
    make("span", { class: "head" }, make("span", { class: "number" }, number), chipsOf(frame, number, block, detail),
      block.cached ? make("span", { class: "findable", title: "the prefix cache can find it" }, "◆") : ""),
    make("span", { class: "slots" }, slots.map((slot) => drawSlot(frame, ...slot, block, detail))),
    make("span", { class: "tags" }, make("span", { class: `tag ${names[0] ?? ""}` }, shown),
      block.ref_count > 1 ? make("span", { class: "refs" }, `×${block.ref_count}`) : "")));
}

function chipsOf(frame, number, block, detail) {
  const isTight = frame.num_blocks > DENSE_POOL && (block.cached || number > 9); // something else stands there, too
  const room = detail === "letters" ? 1 : isTight || block.holders.some((label) => label.length > 1) ? MOST_CHIPS - 1 : MOST_CHIPS;
  const most = block.holders.length > room && detail !== "letters" ? room - 1 : room;
  const chips = block.holders.slice(0, most).map((label) =>
    chip(label, { "data-fly": `ref ${number} ${label}`, "data-from": logicalKey(frame, label, number) }));
  if (block.holders.length > most && detail !== "letters") chips.push(make("small", {}, `+${block.holders.length - most}`));
  return chips;
}

function logicalKey(frame, label, number) {
  const place = placeIn(frame.sequences[label], number);
  return place ? `${label} block ${place.logical}${suffix(place.group)}` : "";
}

// A slot of memory is empty until K and V are there.
function slotState(frame, slot, word, leaving) {
  if (frame.wantedSlots.has(slot)) return "wanted";
  if (word === undefined) return leaving === undefined ? "empty" : "leaving";
  return frame.pendingSlots.has(slot) ? "promised" : frame.writtenSlots.has(slot) && frame.isComputed ? "written" : "";
}

function drawSlot(frame, slot, word, now, block, detail) {
  if (["wanted", "empty", "promised"].includes(now)) return make("span", { class: `slot ${now}`, "data-slot": slot }, now === "wanted" && detail === "words" ? "?" : "");
  const style = detail === "words" ? `--em: ${emsOf(inSlot(word)).toFixed(2)}` : "";
  return make("span", { class: `slot ${now}`, style, "data-slot": slot, "data-fly": `kv ${slot}`, "data-from": originsOf(frame, slot, block).join("|") },
    detail === "words" ? make("bdi", {}, inSlot(word)) : "");
}

// Where the K and V of a slot have come from: a copied block, the swap pool, or the text whose token it is.
function originsOf(frame, slot, block) {
  const size = frame.block_size, number = Math.floor(slot / size), offset = slot % size;
  const copied = frame.copies.find(([, target]) => target === number), back = frame.swap_in.find(([, target]) => target === number);
  const origins = copied ? [`kv ${copied[0] * size + offset}`] : back ? [`swap ${back[0]}`] : [];
  for (const label of block.holders) {
    const place = placeIn(frame.sequences[label], number);
    if (place) origins.push(`${label} ${place.logical * size + offset}${suffix(place.group)}`);
  }
  return origins;
}

// What has just happened to a block, the most important first: [kind, word].
function tagsOf(frame, before, number, block) {
  const tags = [], planned = frame.phase === "schedule", moving = frame.phase === "copy";
  const to = frame.copies.filter(([source]) => source === number).map(([, target]) => target);
  const from = frame.copies.find(([, target]) => target === number);
  if (frame.wants.some(([, , slot]) => Math.floor(slot / frame.block_size) === number)) tags.push(["wants", "shared"]);
  if (to.length && planned) tags.push(["source", "to copy"]);
  if (to.length && moving) tags.push(["copied", `to ${to.join(", ")}`]);
  if (from && planned) tags.push(["target", `${from[0]}'s copy`]);
  if (from && moving) tags.push(["copy", `copy of ${from[0]}`]);
  if (frame.swap_out.some(([source]) => source === number)) {
    if (planned) tags.push(["source", "to save"]);
    if (moving) tags.push(["saved", "saved"]);
  }
  if (frame.swap_in.some(([, target]) => target === number)) {
    if (planned) tags.push(["target", "to restore"]);
    if (moving) tags.push(["restored", "restored"]);
  }
  if (Object.values(frame.finds).some((blocks) => blocks.includes(number))) tags.push(["found", "found"]);
  else if (frame.reusedBlocks.has(number) && block.ref_count) tags.push(["reused", "reused"]);
  const old = before ? blockOf(before, number) : block, was = old.ref_count;
  const isAnothers = block.ref_count && !old.holders.some((label) => block.holders.includes(label));
  if (before && isAnothers && !tags.length) tags.push(["taken", "taken"]);
  if (was && !block.ref_count) tags.push(["back", "given back"]);
  if (frame.attended === number) tags.push(["being", "being read"]);
  if (frame.writtenBlocks.has(number) && (frame.phase === "forward" || (frame.whole && block.ref_count))) tags.push(["computed", "computed"]);
  else if (frame.phase === "forward" && frame.read.includes(number)) tags.push(["read", "read"]);
  return tags;
}

// Only what is there is known of the swap space.
function drawSwap(frame, everSwaps) {
  const saved = new Map(frame.swap_out.map(([block, number]) => [number, block])), holders = new Map();
  for (const number of saved.keys()) holders.set(number, "");
  for (const [number, block] of frame.swap_in) // until it is copied, what is saved stays there
    if (frame.phase === "schedule") holders.set(number, blockOf(frame, block).holders[0] ?? "");
    else if (frame.phase === "copy") holders.set(number, "");
  for (const [label, text] of Object.entries(frame.sequences)) for (const number of text.swap_blocks) holders.set(number, label);
  const cells = [...holders].sort(([a], [b]) => a - b).map(([number, label]) => {
    const coming = frame.phase === "schedule" && saved.has(number);
    return make("li", { class: `cell swap ${coming ? "promised" : label ? "used" : "free"}`, style: label ? colour(label) : "", "data-swap": number, "data-key": `swap ${number}`,
      "data-fly": coming ? "" : `swap ${number}`, "data-from": saved.has(number) ? `cell ${saved.get(number)}` : "" },
      make("span", { class: "head" }, make("span", { class: "number" }, number), label ? chip(label) : ""));
  });
  byId("swap").hidden = !everSwaps;
  byId("swap").replaceChildren(make("span", {}, "Swap space"), cells.length ? make("ol", {}, cells) : make("i", {}, "empty"));
}

function drawFigures(frame, everCaches) {
  const size = frame.block_size, slots = frame.num_blocks * size, one = frame.num_contiguous_blocks * size;
  const scale = 100 / Math.max(slots, one);
  const taken = frame.num_used_blocks * size, stored = taken - frame.num_wasted_slots;
  const bar = (...parts) => make("span", { class: "bar" }, parts.map(([name, n]) => make("span", { class: name, style: `width: ${n * scale}%` })));
  const row = (name, picture, words, alert) => [make("dt", { title: FIGURES[name] }, name), make("dd", { class: alert ? "alert" : "" }, picture, make("span", {}, words))];
  const tooMuch = one > slots;
  const reused = frame.reused.length * size, isAhead = frame.phase === "before"; // then nothing is reused yet, or counted
  const done = isAhead || ["schedule", "copy"].includes(frame.phase) ? "planned" : "computed";
  byId("figures").replaceChildren(
    ...row("Paged", bar(["stored", stored], ["wasted", frame.num_wasted_slots], ["rest", slots - taken]),
      `${frame.num_used_blocks} of ${count(frame.num_blocks, "block")}, ${count(frame.num_wasted_slots, "empty slot")} in them`),
    ...row("In one piece", bar(["reserved", Math.min(one, slots)], ["excess", Math.max(0, one - slots)], ["rest", Math.max(0, slots - one)]),
      `${count(frame.num_contiguous_blocks, "block")} reserved${tooMuch ? ": too many" : " for the longest case"}`, tooMuch),
    ...row("This step", "", [`${frame.num_computed_tokens} of at most ${count(frame.max_num_batched_tokens, "token")} ${done}`,
      ...(reused ? [", ", make("b", { class: "reused-word" }, `${reused} ${isAhead ? "found" : "reused"}`)] : [])]),
    ...(everCaches ? row("All prompts", "", `${frame.num_hit_tokens} of their ${count(frame.num_queried_tokens, "token")} reused, ${frame.num_queried_tokens - frame.num_hit_tokens} computed`) : []));
}
