// Everything that is wrong with the layout of a page of a trace, in words: text that is cut off, things that overlap, and lines that run over a block.
() => {
  const found = [];
  const name = (element) => `${element.tagName.toLowerCase()}${element.id ? `#${element.id}` : ""}${element.className?.split ? `.${element.className.trim().split(/\s+/).join(".")}` : ""}`;
  const isShown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const isAside = (element) => element.closest("#flights, .unseen, dialog, noscript, script, style, option, select");
  const known = new Map(); // what is asked of an element once for each text in it
  const looksOf = (box) => {
    if (!known.has(box)) {
      const { display, overflowY } = getComputedStyle(box);
      known.set(box, { display, overflowY, edge: box.getBoundingClientRect() });
    }
    return known.get(box);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange(); // one for all: each that lives is looked after at every change of the page
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || isAside(element) || !isShown(element)) continue;
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      for (let box = element; box && box !== document.documentElement; box = box.parentElement) {
        const { display, overflowY, edge } = looksOf(box);
        if (display === "inline" || display === "contents") continue;
        const scrollsDown = ["auto", "scroll"].includes(overflowY);
        const isCut = rect.left < edge.left - 1.5 || rect.right > edge.right + 1.5 || (!scrollsDown && overflowY !== "visible" && (rect.top < edge.top - 2.5 || rect.bottom > edge.bottom + 2.5));
        if (isCut) {
          found.push(`“${node.data.trim().slice(0, 30)}” is cut off by ${name(box)}: ${[rect.left - edge.left, edge.right - rect.right, rect.top - edge.top, edge.bottom - rect.bottom].map(Math.round)}`);
          break;
        }
        if (scrollsDown) break; // what is scrolled away is not lost; sideways, nothing may have to be scrolled
      }
    }
  }
  for (const box of document.querySelectorAll("#scroll, .pane, #said, #code, #beside"))
    if (isShown(box) && box.scrollWidth > box.clientWidth + 1) found.push(`${name(box)} has to be scrolled sideways: ${box.scrollWidth} in ${box.clientWidth}`);
  for (const slot of document.querySelectorAll("#pool .slot"))
    if (isShown(slot) && slot.getBoundingClientRect().width < 1) found.push(`a slot of ${name(slot.closest(".cell"))} is too narrow to be seen`);
  const families = ["#pool > .cell", ".text", ".logical", ".logical .slot", ".cell .slot", ".head > *", ".tags > *", "#figures > *", "#figures dd > *", "#free > *", "#swap .cell", "#top > *", "#phases li", "#controls > *", "#queues > *",
    ".text > *", ".lane > *", ".walked td", "#telling > *", "#said > *", "#events > li", "#stage > .pane", "#pool, #free, #swap, #figures", "body > header, body > main, body > footer, body > p"];
  for (const family of families) {
    const boxes = [...document.querySelectorAll(family)].filter((element) => isShown(element) && !isAside(element)).map((element) => [element, element.getBoundingClientRect()]).filter(([, rect]) => rect.width && rect.height);
    boxes.sort(([, a], [, b]) => a.top - b.top);
    for (let i = 0; i < boxes.length; i++)
      for (let j = i + 1; j < boxes.length && boxes[j][1].top < boxes[i][1].bottom - 1; j++) {
        const [a, b] = [boxes[i][1], boxes[j][1]];
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5)
          found.push(`${name(boxes[i][0])} “${boxes[i][0].textContent.slice(0, 20)}” overlaps ${name(boxes[j][0])} “${boxes[j][0].textContent.slice(0, 20)}”`);
      }
  }
  const cells = [...document.querySelectorAll("#pool > .cell")].map((cell) => [cell, cell.getBoundingClientRect()]);
  const sampled = (path) => Array.from({ length: Math.ceil(path.getTotalLength() / 8) }, (_, i) => path.getPointAtLength(8 * i)).map(({ x, y }) => [x, y]);
  const corners = (path) => [...path.getAttribute("d").matchAll(/(-?[\d.]+) (-?[\d.]+)/g)].map((point) => point.slice(1).map(Number));
  for (const path of document.querySelectorAll("#wires .wire, #arrows .arrow")) {
    const { left, top } = path.ownerSVGElement.getBoundingClientRect(), over = new Set();
    const points = path.getAttribute("d").includes("C") ? sampled(path) : corners(path);
    for (let i = 1; i < points.length; i++) { // its pieces are level or upright, or as short as a bend
      const [[x, y], [toX, toY]] = [points[i - 1], points[i]];
      for (const [cell, rect] of cells)
        if (left + Math.max(x, toX) > rect.left + 3 && left + Math.min(x, toX) < rect.right - 3 && top + Math.max(y, toY) > rect.top + 3 && top + Math.min(y, toY) < rect.bottom - 3) over.add(cell.dataset.block);
    }
    if (over.size) found.push(`a${path.classList.contains("arrow") ? "n arrow" : " line"} runs over block ${[...over].join(", ")}`);
  }
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) found.push(`the page is ${page.scrollWidth} wide in a window of ${innerWidth}`);
  return found;
}
