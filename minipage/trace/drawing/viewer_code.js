// Draws the lines of source that did what a frame shows: each function that was at work, and around its lines a few more.
"use strict";

const AROUND = 1; // lines before and after one that is lit

function drawCode(frame) {
  const drawn = Object.entries(frame.code).map(([name, lit]) => drawFunction(frame, name, lit)).filter(Boolean);
  byId("code").replaceChildren(...(drawn.length ? drawn : [make("p", { class: "why" }, "No line of Python to show here.")]));
  // The innermost function is the last: as many whole ones as there is room for, up to the end, and no half one above.
  const room = byId("code").clientHeight, lines = drawn.at(-1)?.getElementsByTagName("li") ?? [];
  const isTall = () => drawn.at(-1)?.offsetHeight > room - 8; // alone; then what comes after its lit lines may go
  while (isTall() && lines[lines.length - 1].className !== "did") lines[lines.length - 1].remove();
  const end = byId("code").scrollHeight;
  if (end <= room) return;
  const first = drawn.find((figure) => end - figure.offsetTop <= room) ?? drawn.at(-1);
  drawn.at(-1).style.marginBottom = `${Math.max(0, room - (end - first.offsetTop))}px`;
  byId("code").scrollTop = first.offsetTop - 2;
}

// name: "file function", as html.py puts it together.
function drawFunction(frame, name, lit) {
  const source = trace.functions?.[name];
  if (!source) return null;
  const [file, title] = name.split(" ");
  const numbers = Object.keys(lit).map(Number), shown = new Set(numbers.flatMap((number) => [number - AROUND, number, number + AROUND]));
  const lines = source.lines.map((text, i) => [source.first + i, text]).filter(([number, text]) => shown.has(number) && (number in lit || (/\w/.test(text) && !/^\s*raise\b/.test(text))));
  const indents = lines.map(([, text]) => text.match(/^ */)[0].length), least = Math.min(...indents);
  const said = lines.flatMap(([number, text], i) => {
    const gap = i > 0 && number > lines[i - 1][0] + 1 ? [make("li", { class: "gap", "aria-hidden": "true" }, "⋮")] : [];
    return [...gap, drawLine(frame, name, number, text.trim(), indents[i] - least, lit[number])];
  });
  return make("figure", {}, make("figcaption", {}, make("b", {}, title), " ", make("span", {}, file)), make("ol", {}, said));
}

function drawLine(frame, name, number, text, indent, blocks) {
  const code = make("code", { style: `--indent: ${indent}` }, text);
  if (!blocks) return make("li", { class: "near" }, code);
  const did = blocksOf(frame, blocks);
  const what = did.length ? `Line ${number} dealt with ${count(did.length, "block")}: ${did.join(", ")}` : `Line ${number} was at work`;
  return make("li", { class: "did", "data-key": `line ${name} ${number}`, "data-lights": did.join(" "), tabindex: -1, "aria-label": `${what}. ${text}` }, code);
}

// What a line did: to the blocks that are named, or to all that were written, read, copied or waited for.
function blocksOf(frame, blocks) {
  if (blocks.length) return blocks;
  if (frame.phase === "before") {
    const found = Object.values(frame.finds).flat();
    return [...new Set([...found, ...frame.wants.map(([, , slot]) => Math.floor(slot / frame.block_size)),
      ...frame.gives_way.flatMap((label) => frame.sequences[label].tables.flat().filter((block) => block >= 0))])];
  }
  if (frame.phase === "copy") return [...new Set([...frame.copies.flat(), ...frame.swap_out.map(([block]) => block), ...frame.swap_in.map(([, block]) => block)])];
  return frame.phase === "forward" || frame.phase === "attend" || frame.phase === "schedule" ? [...frame.writtenBlocks] : [];
}
