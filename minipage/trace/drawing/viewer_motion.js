// Moves what has moved, between one frame and the next: 250 ms, and then everything is where the new frame has it.
//
// A frame is drawn anew, so nothing moves by itself. But what stands for the same thing has the same `data-fly` in both,
// and what is new says in `data-from` where such a thing comes from: a block from the free queue, a word in a slot from
// its text, a copy from the block that was copied. So there is one rule for all of it:
//
//     in both frames        it slides from where it was to where it is
//     in the new one only   going on, a double of it flies here from its origin; without one it fades in
//     in the old one only   going back, a double of it flies home to its origin
//
// Nothing waits for a motion: the next frame may come at any time, and begins from what is seen at that moment.
"use strict";

const MOTION = 250; // milliseconds
const MOST_FLIGHTS = 120; // in one frame; beyond that nobody could follow
const EASE = "cubic-bezier(0.3, 0, 0.2, 1)";
const COPIED_STYLES = ["fontFamily", "fontSize", "fontWeight", "lineHeight", "color", "backgroundColor", "border", "borderRadius", "padding", "textAlign", "fontVariantNumeric", "whiteSpace", "display", "gap", "alignItems", "boxShadow"];
const moving = new Set();

const wantsMotion = () => !document.body.classList.contains("crowded") && !matchMedia("(prefers-reduced-motion: reduce)").matches;

// Where everything is now, in the middle of a motion or not.
function takePlaces() {
  const places = new Map();
  if (!wantsMotion() || document.hidden) return places;
  for (const element of document.querySelectorAll("#stage [data-fly]")) {
    if (element.dataset.fly && !places.has(element.dataset.fly)) places.set(element.dataset.fly, { element, rect: element.getBoundingClientRect(), from: element.dataset.from });
  }
  return places;
}

function stopMotion() {
  for (const motion of moving) motion.cancel();
  moving.clear();
  byId("flights").replaceChildren();
}

// forward: whether the new frame is later than the old one.
function moveFrom(before, forward) {
  if (!before.size) return;
  const after = takePlaces(), panes = [...document.querySelectorAll(".pane")].map((pane) => pane.getBoundingClientRect());
  const flights = [], inFlight = new Set(); // what is in something that flies, flies with it
  for (const [key, { element, rect, from }] of after) {
    const old = before.get(key);
    if (old) slide(element, old.rect, rect);
    else {
      if (inFlight.has(element.parentElement.closest("[data-fly]"))) { inFlight.add(element); continue; }
      const origin = forward && from ? from.split("|").map((name) => before.get(name) ?? after.get(name)).find(Boolean) : undefined;
      inFlight.add(element);
      if (origin && flights.length < MOST_FLIGHTS) flights.push([element, element, origin.rect, rect]);
      else perform(element, [{ opacity: 0 }, { opacity: 1 }]);
    }
  }
  if (!forward)
    for (const [key, { element, rect, from }] of before) {
      const home = after.has(key) || !from ? undefined : from.split("|").map((name) => after.get(name)).find(Boolean);
      if (home && flights.length < MOST_FLIGHTS) flights.push([null, element, rect, home.rect]);
    }
  const isSeen = (rect) => panes.some((pane) => rect.left < pane.right && rect.right > pane.left && rect.top < pane.bottom && rect.bottom > pane.top);
  for (const flight of flights) if (isSeen(flight[2]) && isSeen(flight[3])) fly(...flight);
}

function perform(element, steps, options = {}) {
  const motion = element.animate(steps, { duration: MOTION, easing: EASE, ...options });
  moving.add(motion);
  motion.finished.then(() => moving.delete(motion), () => {}); // it was interrupted
  return motion;
}

function slide(element, old, rect) {
  const [x, y] = [old.left - rect.left, old.top - rect.top];
  if (Math.abs(x) > 0.5 || Math.abs(y) > 0.5) perform(element, [{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }]);
}

// A double of `looks` flies over everything from one place to another, while `hidden` waits for it there.
function fly(hidden, looks, from, to) {
  const double = looks.cloneNode(true), style = getComputedStyle(hidden ?? byId("flights"));
  for (const copied of [double, ...double.querySelectorAll("[data-key], [data-fly]")])
    for (const name of ["data-key", "data-fly", "data-from", "data-block", "data-slot", "tabindex", "aria-label", "role"]) copied.removeAttribute(name);
  const own = looks.closest("[style*='--own']")?.style.getPropertyValue("--own");
  if (own) double.style.setProperty("--own", own);
  if (hidden) for (const name of COPIED_STYLES) double.style[name] = style[name];
  else double.classList.add("going-home");
  Object.assign(double.style, { position: "fixed", margin: 0, left: `${to.left}px`, top: `${to.top}px`, width: `${to.width}px`, height: `${to.height}px`, overflow: "hidden" });
  byId("flights").append(double);
  const [x, y] = [from.left + from.width / 2 - to.left - to.width / 2, from.top + from.height / 2 - to.top - to.height / 2];
  const steps = [{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }];
  if (hidden) perform(hidden, [{ opacity: 0 }, { opacity: 0 }], { easing: "linear" });
  else steps[1].opacity = 0.2;
  perform(double, steps).finished.then(() => double.remove(), () => double.remove());
}
