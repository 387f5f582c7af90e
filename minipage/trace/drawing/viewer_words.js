// Words, and a frame made easy to ask: what all the other scripts draw with.
"use strict";

const PHASES = ["before", "schedule", "copy", "attend", "forward", "sample", "update", "failed"];

// What html.py leaves out because it is empty.
const EMPTY_FRAME = {
  events: [], story: "", waiting: [], running: [], swapped: [], free_queue: [], num_free: 0, chunks: [], written: [], read: [],
  swap_out: [], swap_in: [], copies: [], chosen: [], preempted: [], finished: [], blocks: {}, sequences: {}, pending: [],
  wants: [], gives_way: [], finds: {}, returns: [], reused: [], code: {}, windows: [],
  num_earlier_events: 0, num_stopped_events: 0, num_queried_tokens: 0, num_hit_tokens: 0, num_computed_tokens: 0,
  num_used_blocks: 0, num_wasted_slots: 0, num_contiguous_blocks: 0, num_more_finished: 0,
};
const EMPTY_TEXT = {
  prompt: "", text: "", new_text: "", tokens: [], num_prompt_tokens: 0, num_computed_tokens: 0, blocks: [], more_blocks: [],
  swap_blocks: [], last_blocks: [], num_preemptions: 0, finish_reason: "", drafts: [],
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

// What looks as it did in the frame before is not made again: a large memory is mostly what it was.
const made = new Map(); // name -> [what it was made of, the element]
function reuse(name, of, build) {
  const known = made.get(name);
  if (known?.[0] === of) return known[1];
  const element = build();
  made.set(name, [of, element]);
  return element;
}

// In a long run many texts come and go; what is not shown any more need not be kept.
const MOST_MADE = 3000; // elements
function forgetUnseen() {
  if (made.size > MOST_MADE) for (const [name, [, element]] of made) if (!element.isConnected) made.delete(name);
}

// Let an element have these children, and touch only those that are others than before.
function sync(parent, children) {
  const wanted = new Set(children);
  children.forEach((child, i) => {
    const there = parent.childNodes[i];
    if (there === child) return;
    if (there && !wanted.has(there)) parent.replaceChild(child, there);
    else parent.insertBefore(child, there ?? null);
  });
  while (parent.childNodes.length > children.length) parent.lastChild.remove();
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const join = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

// Text on one line, with signs for what cannot be seen.
const visible = (text) =>
  text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);

// A word alone: one that is nothing but blanks would look like no word at all.
const inSlot = (word) => (/^ +$/.test(word) ? "␣".repeat(word.length) : visible(word));

// A text from a place on: not from the middle of a sign, such as an emoji, that is two units of JavaScript's.
const endOf = (text, start) => text.slice(start).replace(/^[\uDC00-\uDFFF]/, "");

// How wide a text is in the font of an element, without laying anything out.
const ruler = document.createElement("canvas").getContext("2d");
const widths = new Map();
function emsOf(word) {
  if (!widths.has(word)) widths.set(word, Math.max(1, widthOf(word, "100px system-ui, sans-serif") / 100));
  return widths.get(word);
}
// Of its parts, because the whole is empty where the system has colours of its own.
function fontOf(element) {
  const { fontWeight, fontSize, fontFamily } = getComputedStyle(element);
  return `${fontWeight} ${fontSize} ${fontFamily}`;
}
function widthOf(text, font) {
  ruler.font = font;
  return ruler.measureText(text).width;
}

// ---- a frame, made easy to ask

// What its slots are for: its tokens, and guesses how it goes on, each with a question mark.
// And its block tables: one, or that of each KV cache group.
const withSlotWords = (text) => ({ ...text, slotWords: [...text.tokens, ...text.drafts.map((word) => `${word}?`)], tables: [text.blocks, ...text.more_blocks] });

function readable(tree) {
  const frame = { ...EMPTY_FRAME, ...tree };
  frame.sequences = Object.fromEntries(
    Object.entries(frame.sequences)
      .map(([label, text]) => [label, withSlotWords({ ...EMPTY_TEXT, ...text })])
      .sort(([a], [b]) => a.length - b.length || (a < b ? -1 : 1)),
  );
  frame.writtenSlots = new Set(frame.written);
  frame.writtenBlocks = new Set(frame.written.map((slot) => Math.floor(slot / frame.block_size)));
  frame.pendingSlots = new Set(frame.pending); // somebody's already, but K and V are not there yet
  frame.wantedSlots = new Set(frame.wants.map(([, , slot]) => slot));
  frame.reusedBlocks = new Set(frame.reused);
  frame.isComputed = PHASES.indexOf(frame.phase) >= PHASES.indexOf("attend"); // K and V of the chosen tokens are there
  frame.attended = frame.attention && !frame.attention.kernel ? frame.attention.steps.at(-1).physical : -1;
  return frame;
}

const blockOf = (frame, number) => ({ ...EMPTY_BLOCK, ...frame.blocks[number] });
const colour = (label) => `--own: var(--own-${(label.charCodeAt(label.length - 1) - 65) % 6})`;
const chip = (label, attributes = {}) => make("b", { class: "chip", style: colour(label), ...attributes }, label);

// The words whose K and V lie in a block.
const storedWords = (frame, number, block) => block.tokens.filter((_, i) => !frame.pendingSlots.has(number * frame.block_size + i));

// Layers that see equally much have a block table in common: the names of the groups, if there are several.
const groupName = (frame, group) => (frame.windows.length < 2 ? "" : frame.windows[group] ? `last ${frame.windows[group]} tokens` : "all tokens");
const suffix = (group) => (group ? ` in ${group}` : ""); // of keys, which are all different

// Which table of a text has a block, and where; null if none has.
function placeIn(text, number) {
  const group = text?.tables.findIndex((table) => table.includes(number)) ?? -1;
  return group < 0 ? null : { group, logical: text.tables[group].indexOf(number) };
}

// "A (logical block 1)", of everybody whose block table has it
function mappers(frame, number) {
  return Object.entries(frame.sequences)
    .map(([label, text]) => [label, placeIn(text, number)])
    .filter(([, place]) => place)
    .map(([label, { group, logical }]) => `${label} (logical block ${logical}${groupName(frame, group) && `, ${groupName(frame, group)}`})`);
}

function sayBlock(frame, number) {
  const block = blockOf(frame, number);
  const stored = storedWords(frame, number, block);
  const words = stored.length ? ` It holds “${visible(stored.join(""))}”.` : "";
  const users = mappers(frame, number);
  if (!block.ref_count)
    return `Block ${number} is free${block.cached ? ", but the prefix cache can still find it" : ""}.${words}`;
  const shared = users.length > 1 ? `Block ${number} is shared by ${join(users)}` : `Block ${number} belongs to ${join(users) || "nobody shown"}`;
  return `${shared}: ${count(block.ref_count, "reference")}.${block.cached ? " The prefix cache can find it." : ""}${words}`;
}

function sayToken(frame, label, text, position, block) {
  const offset = position % frame.block_size;
  const isGuess = position >= text.tokens.length;
  const what = `“${visible(text.slotWords[position])}”, ${isGuess ? "a guess at " : ""}token ${position} of ${label}`;
  return `${what}: slot ${block * frame.block_size + offset} = block ${block} × ${frame.block_size} + ${offset}.`;
}
