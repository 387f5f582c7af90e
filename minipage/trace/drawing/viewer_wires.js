// Draws what lies between texts and memory: lines from logical to physical blocks, and arrows for what is copied.
//
//   [0 To be, → 0]─[1 or not → 2]─╮   │┄┄┄┄┄┄╭──────────╮┄┄┄    A text is a line of a railway map: its blocks hang on it
//   [2 to be  → 3]────────────────┤   │   ╭──┴───╮   ╭──┴───╮   like beads, it goes up a track of its own between the
//                                 ╰───╯   │ 0  A │   │ 2  A │   panes, along a track of its own above each row of cells,
//                                         ╰──────╯   ╰──────╯   and down into the cells that are its own.
//
// So lines of two texts cross, and never run into each other.
"use strict";

const MANY_WIRES = 40; // with more, only wires that are looked at, or written, are drawn
const TRACK = 4; // pixels between two tracks, if there is room
const HEAD = 7; // the length of an arrow's last piece

function drawWires(frame) {
  const wires = byId("wires"), arrows = byId("arrows");
  wires.replaceChildren();
  arrows.replaceChildren(arrowHead());
  if (!frame) return;
  const area = byId("stage").getBoundingClientRect(), at = (element) => element && inView(element, area);
  wires.append(...wiresOf(frame, area, at));
  if (frame.phase === "copy") arrows.append(...arrowsOf(frame, at));
}

const cellOf = (kind, number) => document.querySelector(`#${kind === "swap" ? "swap" : "pool"} .cell[data-${kind}="${number}"]`);

// Where an element is in the stage, or null if its pane has scrolled it away.
function inView(element, area) {
  const rect = element.getBoundingClientRect(), pane = element.closest(".pane").getBoundingClientRect();
  const y = rect.top + rect.height / 2;
  if (y < Math.max(pane.top, area.top) || y > Math.min(pane.bottom, area.bottom)) return null;
  const [left, top] = [rect.left - area.left, rect.top - area.top];
  return { left, top, right: left + rect.width, bottom: top + rect.height, x: left + rect.width / 2, y: top + rect.height / 2,
    width: rect.width, height: rect.height };
}

// ---- lines

function wiresOf(frame, area, at) {
  const boxes = [...document.querySelectorAll(document.body.classList.contains("crowded") ? "#texts .logical.lit" : "#texts .logical")];
  const pool = byId("pool").getBoundingClientRect(), texts = byId("texts").getBoundingClientRect();
  const isStacked = pool.top > texts.bottom; // one pane below the other
  const lines = [];
  for (const box of boxes) {
    const kind = box.dataset.swap === undefined ? "block" : "swap", number = box.dataset[kind];
    const [from, to] = [at(box), at(cellOf(kind, number))];
    const isLit = box.classList.contains("lit"), isStrong = isLit || frame.writtenBlocks.has(Number(number));
    if (!from || !to || !(isStacked ? isLit : isStrong || boxes.length <= MANY_WIRES)) continue;
    const text = box.closest(".text"), label = text.dataset.label;
    const holders = kind === "block" ? blockOf(frame, number).holders : [label], place = Math.max(0, holders.indexOf(label));
    const x = to.left + ((place + 0.5) / Math.max(1, holders.length)) * to.width; // under its own colour
    lines.push({ label, from, to, x, style: text.getAttribute("style"), isLit, isStrong });
  }
  const gutter = { left: texts.right - area.left + 4, right: pool.left - area.left - 5 }, tracks = tracksOf(lines, gutter);
  lines.sort((a, b) => a.isLit - b.isLit || a.isStrong - b.isStrong); // what matters lies above
  return lines.map((line) => drawSvg("path", { d: isStacked ? curve(line) : rounded(...railway(line, tracks)), style: line.style,
    class: `wire${line.isStrong ? " strong" : ""}${line.isLit ? " lit" : ""}` }));
}

// The track of each text between the panes, and above each row of cells. The first text's is the leftmost, and the
// highest: so, where cells lie above their texts, no line crosses another before it turns down.
function tracksOf(lines, gutter) {
  const labels = [...new Set(lines.map(({ label }) => label))], rows = new Map();
  for (const { label, to } of lines) rows.set(Math.round(to.top), (rows.get(Math.round(to.top)) ?? new Set()).add(label));
  const gap = parseFloat(getComputedStyle(byId("pool")).rowGap) - 5;
  const apart = (room, number) => Math.min(TRACK, room / Math.max(1, number - 1));
  const across = apart(gutter.right - gutter.left, labels.length);
  const column = (label) => gutter.right - across * (labels.length - 1 - labels.indexOf(label));
  const row = (label, top) => {
    const users = labels.filter((each) => rows.get(Math.round(top)).has(each));
    return top - 3 - apart(gap, users.length) * (users.length - 1 - users.indexOf(label));
  };
  return { column, row };
}

const railway = ({ label, from, to, x }, { column, row }) => [[from.right, from.y], [column(label), from.y], [column(label), row(label, to.top)], [x, row(label, to.top)], [x, to.top + 1]];

function curve({ from, to, x }) {
  const bend = Math.max(16, (to.top - from.bottom) / 2);
  return `M${from.x} ${from.bottom} C${from.x} ${from.bottom + bend} ${x} ${to.top - bend} ${x} ${to.top + 1}`;
}

// A path along corners, which are rounded.
function rounded(...corners) {
  const [[x, y], ...rest] = corners;
  const bends = rest.slice(0, -1).map((corner, i) => {
    const [before, after] = [corners[i], rest[i + 1]].map((other) => towards(corner, other, 5));
    return `L${before.join(" ")} Q${corner.join(" ")} ${after.join(" ")}`;
  });
  return `M${x} ${y} ${bends.join(" ")} L${rest.at(-1).join(" ")}`;
}

// So many pixels from one point towards another, at most half of the way.
function towards([x, y], [toX, toY], pixels) {
  const length = Math.hypot(toX - x, toY - y), share = length ? Math.min(pixels / length, 0.5) : 0;
  return [x + (toX - x) * share, y + (toY - y) * share];
}

// ---- arrows: they go between the rows and the columns of cells, not over them

function arrowsOf(frame, at) {
  const gap = parseFloat(getComputedStyle(byId("pool")).rowGap);
  const kinds = [["copies", "block", "block", gap - HEAD - 3], ["swap_out", "block", "swap", 2 * HEAD], ["swap_in", "swap", "block", 2 * HEAD]];
  return kinds.flatMap(([name, fromKind, toKind, room]) => {
    const moves = frame[name].map(([source, target]) => ({ from: at(cellOf(fromKind, source)), to: at(cellOf(toKind, target)) }));
    const seen = moves.filter(({ from, to }) => from && to).sort((a, b) => turn(a) - turn(b));
    const columns = seen.map(columnOf);
    const apart = Math.min(TRACK, Math.max(0, room) / Math.max(1, seen.length - 1));
    return seen.flatMap(({ from, to }, i) => {
      const d = rounded(...detour(from, to, i * apart, columns));
      return [drawSvg("path", { d, class: "halo" }), drawSvg("path", { d, class: "arrow", pathLength: 1, "marker-end": "url(#head)" })];
    });
  });
}

// An arrow past other rows goes along the gap to the right of its upper cell, which is that cell's alone.
const columnOf = ({ from, to }) => (to.y > from.y ? from : to).right + 3;

// Of two arrows to the same side, the one whose lower end is nearer has the nearer track: so they never cross.
function turn({ from, to }) {
  const [upper, lower] = to.y >= from.y ? [from, to] : [to, from];
  const side = Math.sign(lower.x - upper.x);
  return side * (1e5 + lower.x);
}

// The corners of an arrow. Its long track lies above the lower of the two cells, or, if they are in one row, below that.
// aside: how far the track is from that of the first arrow, and columns: those of all, so that no two run into each other.
function detour(from, to, aside, columns = []) {
  const clear = (x) => (columns.some((column) => Math.abs(column - x) < TRACK) ? x + 2 * TRACK : x);
  const side = Math.sign(to.x - from.x || 1), x = clear(from.x + side * Math.max(-from.width / 4, 6 - aside)), end = clear(to.x);
  if (Math.abs(from.y - to.y) < from.height / 2) {
    const track = from.bottom + HEAD + aside;
    return [[x, from.bottom], [x, track], [end, track], [end, to.bottom]];
  }
  const isDown = to.y > from.y, [upper, lower] = isDown ? [from, to] : [to, from];
  const [leaves, arrives] = isDown ? [from.bottom, to.top] : [from.top, to.bottom];
  const track = lower.top - (isDown ? HEAD : 5) - aside;
  if (lower.top - upper.bottom < upper.height) return [[x, leaves], [x, track], [end, track], [end, arrives]]; // no row between
  const high = upper.bottom + (isDown ? 5 : HEAD), column = columnOf({ from, to });
  const [first, last] = isDown ? [high, track] : [track, high];
  return [[x, leaves], [x, first], [column, first], [column, last], [end, last], [end, arrives]];
}

const arrowHead = () =>
  drawSvg("defs", {}, drawSvg("marker", { id: "head", viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 7, markerHeight: 7, markerUnits: "userSpaceOnUse", orient: "auto" },
    drawSvg("path", { d: "M0 0 10 5 0 10z" })));
