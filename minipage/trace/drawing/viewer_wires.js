// Draws what lies between texts and memory: lines from logical to physical blocks, and arrows for what is copied.
"use strict";

const MANY_WIRES = 28; // with more, only wires that are looked at, or written, are drawn

function drawWires(frame) {
  const area = byId("stage").getBoundingClientRect();
  const wires = byId("wires"), arrows = byId("arrows");
  wires.replaceChildren();
  arrows.replaceChildren(arrowHead());
  if (!frame) return;
  const at = (element) => inView(element, area);
  const logical = [...document.querySelectorAll(document.body.classList.contains("crowded") ? "#texts .logical.lit" : "#texts .logical")];
  const lanes = Object.keys(frame.sequences);
  for (const box of logical) {
    const name = box.dataset.swap === undefined ? "block" : "swap", number = box.dataset[name];
    const cell = document.querySelector(`#${name === "block" ? "pool" : "swap"} .cell[data-${name}="${number}"]`);
    const strong = box.classList.contains("lit") || frame.writtenBlocks.has(Number(number));
    const [from, to] = [at(box), cell && at(cell)];
    const isStacked = byId("pool").getBoundingClientRect().top > byId("texts").getBoundingClientRect().bottom;
    if (from && to && (isStacked ? box.classList.contains("lit") : strong || logical.length <= MANY_WIRES)) {
      const text = box.closest(".text"), style = text.getAttribute("style");
      const lit = box.classList.contains("lit") ? " lit" : "";
      wires.append(drawSvg("path", { d: wire(from, to, lanes.indexOf(text.dataset.label)), style, class: `wire${strong ? " strong" : ""}${lit}` }));
    }
  }
  if (frame.phase !== "copy") return;
  const cell = (kind, number) => document.querySelector(`#${kind === "swap" ? "swap" : "pool"} .cell[data-${kind}="${number}"]`);
  const moves = [["copies", "block", "block", "copy"], ["swap_out", "block", "swap", ""], ["swap_in", "swap", "block", ""]];
  for (const [name, fromKind, toKind, word] of moves)
    for (const [source, target] of frame[name]) {
      const [from, to] = [cell(fromKind, source), cell(toKind, target)].map((element) => element && at(element));
      const isLast = frame[name].findLast(([first]) => first === source)[1] === target;
      if (from && to) arrows.append(...arrow(from, to, isLast ? word : ""));
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
  const sag = inRow ? 30 + Math.abs(from.x - to.x) / 6 : 0, drop = inRow ? 3 : 0;
  const bend = { x: (from.x + to.x) / 2, y: inRow ? Math.max(from.bottom, to.bottom) + sag : (from.y + to.y) / 2 };
  const [a, b] = inRow ? [{ x: from.x, y: from.bottom }, { x: to.x, y: to.bottom + drop }] : [edge(from, bend), edge(to, bend)];
  const middle = { x: (a.x + 2 * bend.x + b.x) / 4, y: (a.y + 2 * bend.y + b.y) / 4 };
  const d = `M${a.x} ${a.y} Q${bend.x} ${bend.y} ${b.x} ${b.y}`;
  return [
    drawSvg("path", { d, class: "halo" }),
    drawSvg("path", { d, class: "arrow", pathLength: 1, "marker-end": "url(#head)" }),
    ...(word ? [drawSvg("text", { x: middle.x, y: middle.y + (inRow ? 17 : 5), class: "arrow-word" }, word)] : []),
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
