// The frames of a trace. Of each is kept what differs from the one before; it is put together when somebody looks at it.
//
//     elements   trace            stretch            stretch          JSON, which is read when it is needed
//     deltas     0 1 2 … 511   │  512 513 … 1023  │  1024 …           the first of each stretch is a whole frame
//     read                        ▒▒▒▒▒                               two stretches, as far as anybody went
//
// So ten thousand steps open as fast as ten. What has to be known of all frames at once is in the outline.
"use strict";

// The other half of `difference` in html.py. What has not changed is shared with the old one.
function patch(old, change) {
  if (Array.isArray(change)) {
    const [kept, rest] = change;
    if (typeof rest === "string") return kept ? [...old].slice(0, kept).join("") + rest : rest;
    return kept ? [...old.slice(0, kept), ...rest] : rest;
  }
  if (change === null || typeof change !== "object") return change;
  const next = old && typeof old === "object" && !Array.isArray(old) ? { ...old } : {};
  for (const [key, value] of Object.entries(change)) {
    if (value === null) delete next[key];
    else next[key] = patch(next[key], value);
  }
  return next;
}

// Of a recorded trace. A live page has an Array of frames in its place: both have length, at and push.
class Recorded {
  constructor({ deltas, stretch }, elements, length) {
    this.first = deltas;
    this.size = stretch; // frames
    this.elements = elements; // one for each further stretch
    this.length = length;
    this.read = new Map(); // the number of a stretch -> its deltas and frames; of two, because a frame is drawn beside the last
  }

  at(index) {
    const i = index < 0 ? this.length + index : index;
    if (!(i >= 0 && i < this.length)) return undefined;
    const { deltas, frames } = this.stretch(Math.floor(i / this.size)), place = i % this.size;
    while (frames.length <= place) frames.push(patch(frames.at(-1) ?? {}, deltas[frames.length]));
    return frames[place];
  }

  stretch(number) {
    const known = this.read.get(number) ?? { deltas: number ? JSON.parse(this.elements[number - 1].textContent) : this.first, frames: [] };
    this.read.delete(number);
    this.read.set(number, known); // the one that was used last comes last
    if (this.read.size > 2) this.read.delete(this.read.keys().next().value);
    return known;
  }
}

// Where each frame is: its step, its phase, and the number of the look inside attention, or 0.
const outlineOf = ({ step, phase, attention }) => ({ step, phase, look: attention ? attention.steps.length + (attention.kernel ? 1 : 0) : 0 });

// The same, as html.py has written it down: which steps have which frames.
function outlinesOf({ walks, steps }) {
  const frames = walks.map((walk) => walk.split(" ").map((name) => name.split("-")));
  return steps.flatMap(([step, walk]) => frames[walk].map(([phase, look]) => ({ step, phase, look: Number(look ?? 0) })));
}
