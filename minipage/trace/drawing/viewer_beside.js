// Draws what stands beside the engine: other memories that serve the same requests, or the inside of an attention call.
"use strict";

const SHARES = [["stored", "words"], ["reserved", "kept for later"], ["internal", "never used"], ["free", "free"]];

function drawBeside(frame) {
  const drawn = frame.contiguous ? drawLanes(frame) : frame.attention ? [drawWalk(frame, frame.attention)] : [];
  byId("beside").hidden = !drawn.length;
  byId("beside").replaceChildren(...drawn);
}

// ---- memories side by side

function drawLanes(frame) {
  const numSlots = frame.num_blocks * frame.block_size;
  const done = Object.values(frame.sequences).filter((text) => text.status === "finished").length;
  const own = { name: "in blocks", running: frame.running.length, waiting: frame.waiting.length + frame.swapped.length, done, pieces: ownPieces(frame) };
  const others = frame.contiguous.map(({ name, pieces = {}, waiting = [], finished = [] }) => ({
    name, running: Object.keys(pieces).length, waiting: waiting.length, done: finished.length,
    pieces: Object.entries(pieces).map(([label, [atLast, reserved, start, stored]]) => ({ label, start, stored, wanted: Math.min(atLast, reserved), held: reserved })),
  }));
  const key = make("p", { class: "key" }, [["words", "words"], ["later", "kept for words to come"], ["never", "kept, never used"], ["", "free"]]
    .map(([name, words]) => make("span", {}, make("span", { class: `swatch ${name}` }), words)));
  return [...[...others, own].map((lane) => drawLane(lane, numSlots)), key];
}

// A block counts for its first holder; what is empty in it is kept for later.
const ownPieces = (frame) => Object.entries(frame.blocks).filter(([, block]) => block.holders?.length).map(([number, block]) => ({
  label: block.holders[0], start: number * frame.block_size, stored: block.tokens?.length ?? 0, wanted: frame.block_size, held: frame.block_size, block: number,
}));

function drawLane(lane, numSlots) {
  const sum = (measure) => lane.pieces.reduce((total, piece) => total + measure(piece), 0);
  const slots = [sum((p) => p.stored), sum((p) => p.wanted - p.stored), sum((p) => p.held - p.wanted)];
  const percent = [...slots, numSlots - sum((p) => p.held)].map((number) => Math.round((100 * number) / numSlots));
  const shares = SHARES.map(([, words], i) => make(i ? "span" : "b", {}, `${percent[i]} % ${words}`));
  const said = `${lane.name}: ${lane.running} run, ${lane.waiting} wait, ${lane.done} done; ${SHARES.map(([, words], i) => `${percent[i]} % ${words}`).join(", ")}`;
  const picture = drawSvg("svg", { viewBox: `0 0 ${numSlots} 100`, preserveAspectRatio: "none", role: "group", class: "walk", "aria-label": said },
    drawSvg("defs", {}, drawSvg("pattern", { id: "never", width: 24, height: 24, patternUnits: "userSpaceOnUse", patternTransform: "scale(1 2) rotate(45)" },
      drawSvg("line", { x1: 0, y1: 0, x2: 0, y2: 24 }))),
    ...lane.pieces.map((piece) => drawPiece(lane, piece)));
  const isThin = byId("scroll").clientWidth < 3 * lane.pieces.length; // an edge around each would be all there is to see
  return make("article", { class: `lane ${isThin ? "thin" : ""}` }, make("h2", {}, lane.name),
    make("p", {}, make("b", {}, `${lane.running} run`), make("span", {}, `${lane.waiting} wait`), make("span", {}, `${lane.done} done`), shares), picture);
}

function drawPiece(lane, { label, start, stored, wanted, held, block }) {
  const part = (name, from, to) => (to > from ? [drawSvg("rect", { class: name, x: start + from, y: 0, width: to - from, height: 100 })] : []);
  const what = `${label} ${lane.name}: slots ${start} to ${start + held - 1}, of which ${stored} hold a word, ${wanted - stored} may get one, ${held - wanted} never will.`;
  const links = block === undefined ? {} : { "data-block": block };
  return drawSvg("g", { style: colour(label), tabindex: -1, role: "img", "data-key": `${lane.name} ${label} ${start}`, "data-owner": label, "aria-label": what, ...links },
    ...part("stored", 0, stored), ...part("reserved", stored, wanted), ...part("internal", wanted, held), ...part("piece", 0, held), drawSvg("title", {}, what));
}

// ---- inside attention

function drawWalk(frame, walk) {
  const text = frame.sequences[walk.label], step = walk.steps.at(-1);
  const largest = Math.max(...walk.steps.flatMap((each) => each.output.map(Math.abs)), ...(walk.result ?? []).map(Math.abs));
  const row = (name, cells, now) => make("tr", { class: now ? "now" : "" }, make("td", {}, name), cells.map((cell) => make("td", {}, cell)));
  const number = (value) => value.toFixed(2).replace("-", "−");
  const head = (...names) => make("tr", {}, names.map((name) => make("th", { scope: "col" }, name)));
  const words = step.scores.map((score, i) => {
    const word = visible(text.tokens[step.logical * frame.block_size + i] ?? "");
    const bar = make("span", { class: "weight", style: `width: ${100 * step.weights[i]}%`, title: `weight ${number(step.weights[i])}` });
    return row(`“${word}”`, [number(score), number(step.weights[i]), bar], score === step.maximum);
  });
  const kept = walk.steps.map((each) => row(`after block ${each.physical}`,
    [each.logical ? `× ${number(each.shrink)}` : "", number(each.maximum), number(each.total), strip(each.output, largest)], each === step && !walk.kernel));
  const end = walk.kernel ? [row("output ÷ sum", ["", "", "", strip(walk.result, Math.max(...walk.result.map(Math.abs)))], true),
    row("the kernel", ["", "", "", strip(walk.kernel, Math.max(...walk.result.map(Math.abs)))], true)] : [];
  const asked = `The query of token ${walk.position + 1} of ${walk.label}, “${visible(text.tokens[walk.position])}”, in layer ${walk.layer + 1}, head ${walk.head + 1}`;
  const left = walk.kernel
    ? make("div", {}, make("h2", {}, "The walk is over"), make("p", {}, `All ${walk.kernel.length} numbers are what the engine’s kernel returned; the largest difference is ${walk.difference}.`))
    : make("div", {}, make("h2", {}, `Block ${step.physical} is read`), make("table", {}, head("word", "score", "weight", "e^(score − maximum)"), words));
  return make("div", { class: "walked", style: colour(walk.label) }, left,
    make("div", {}, make("h2", {}, asked), make("table", {}, head("what is kept", "shrunk", "maximum", "sum", `output, ${step.output.length} numbers`), kept, end)));
}

// Numbers as a strip of colour: one hue above zero, another below.
function strip(numbers, largest) {
  const picture = drawSvg("svg", { viewBox: `0 0 ${numbers.length} 1`, preserveAspectRatio: "none", role: "img", "aria-label": numbers.map((value) => value.toFixed(3)).join(" ") });
  numbers.forEach((value, i) => picture.append(drawSvg("rect", { x: i, y: 0, width: 1.02, height: 1, fill: value < 0 ? "#56B4E9" : "#E69F00", "fill-opacity": Math.abs(value) / largest })));
  return picture;
}
