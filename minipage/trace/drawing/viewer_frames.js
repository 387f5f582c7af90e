// The frames of a trace. Of each is kept what differs from the one before; it is put together when somebody looks at it.
//
//     deltas     0 1 2 … 63 │ 64 65 … │ 128 …
//     begins     ▲          ▲         ▲            a whole frame, before the first of each stretch
//     near                    ▒▒▒▒                 the frames of the stretch that is looked at, as far as anybody went
//
// So ten thousand steps open as fast as ten. What has to be known of all frames at once is in their outlines.
"use strict";

const STRETCH = 64; // frames
const OUTLINED = ["step", "phase", "attention", "story", "events", "num_earlier_events", "num_stopped_events", "chosen"];

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

const outlineOf = (tree) => Object.fromEntries(OUTLINED.filter((name) => name in tree).map((name) => [name, tree[name]]));

// Of a recorded trace. A live page has an Array of frames in its place: both have length, at and push.
class Recorded {
  constructor(deltas) {
    this.deltas = deltas;
    this.begins = [{}];
    this.near = [];
    this.stretch = 0;
  }

  get length() {
    return this.deltas.length;
  }

  at(index) {
    const i = index < 0 ? this.length + index : index;
    if (!(i >= 0 && i < this.length)) return undefined;
    const stretch = Math.floor(i / STRETCH);
    while (this.begins.length <= stretch) this.goOn();
    if (stretch !== this.stretch) [this.stretch, this.near] = [stretch, []];
    const first = stretch * STRETCH;
    while (this.near.length <= i - first) this.near.push(patch(this.near.at(-1) ?? this.begins[stretch], this.deltas[first + this.near.length]));
    return this.near[i - first];
  }

  // Know how one more stretch begins; false if all are known.
  goOn() {
    const from = (this.begins.length - 1) * STRETCH;
    if (from + STRETCH >= this.length) return false;
    this.begins.push(this.deltas.slice(from, from + STRETCH).reduce(patch, this.begins.at(-1)));
    return true;
  }
}

// In the pauses of the browser, so that a jump to the end is as quick as a step.
function goOnAtLeisure(recorded) {
  const more = (idle) => {
    while (idle.timeRemaining() > 3) if (!recorded.goOn()) return;
    requestIdleCallback(more);
  };
  globalThis.requestIdleCallback?.(more);
}
