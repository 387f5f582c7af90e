// What can be touched: prompts, the engine's pace and its options, challenges. Everything is done by the engine; this
// asks for it, and shows what comes back.

live.mostFrames = 600; // as many as the server keeps
live.touched = null; // the field of the engine's options that somebody is changing
live.touches = 0;
const OPTIONS = [...document.querySelectorAll("[data-option]")];
const optionOf = (name) => OPTIONS.find((field) => field.dataset.option === name);

// Ask for something; what is wrong with it is said in a sentence.
async function act(name, more = {}) {
  try {
    const answer = await fetch("act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ act: name, ...more }) });
    const told = await answer.json();
    byId("alert").textContent = answer.ok ? "" : told.error.message;
    return answer.ok;
  } catch {
    byId("alert").textContent = "The playground does not answer.";
    return false;
  }
}

// ---- what is so

function tellFacts(facts, news) {
  if (news.mode) tellMode(facts.mode);
  if (news.options) tellOptions(facts.options);
  if (news.requests) tellRequests(facts.requests);
  if ("failure" in news) byId("alert").textContent = facts.failure;
  if ("compare" in news) tellComparison(facts.compare);
  if ("before" in news) tellBefore(facts.before);
  if (news.challenges) tellChallenges(facts.challenges);
}

function tellMode({ runs, pace, has_work: hasWork }) {
  say(runs ? "The engine runs." : hasWork ? "The engine stands still." : "The engine has nothing to do. Send it something.");
  byId("run").textContent = runs ? "Pause" : "Run";
  byId("run").setAttribute("aria-pressed", runs);
  document.body.classList.toggle("runs", runs);
  byId("play").setAttribute("aria-label", runs ? "Pause" : "Play");
  tellNext();
  for (const id of ["run", "one-step", "one-phase"]) byId(id).disabled = !hasWork;
  byId("pace-of-engine").value = [...byId("pace-of-engine").options].find((option) => Number(option.value) === pace)?.value ?? "";
}

function tellOptions(options) {
  const locked = (live.facts.challenges?.all ?? []).find((each) => each.name === live.facts.challenges.here)?.locked ?? [];
  for (const field of OPTIONS) {
    const value = options[field.dataset.option];
    if (field.type === "checkbox") field.checked = value;
    else {
      if (field.type === "range") field.max = Math.max(field.max, value);
      if (field !== live.touched) field.value = value; // and not under somebody's fingers
    }
    field.disabled = locked.includes(field.dataset.option);
  }
  byId("blocks-shown").textContent = optionOf("num_blocks").value;
}

function tellRequests(requests) {
  const items = requests.map((request) => {
    const { max_tokens: most, n, beam_width: beams } = request.params;
    const what = `${count(most, "token")}${beams ? `, ${beams} beams` : n > 1 ? `, ${n} samples` : ""}`;
    const state = request.error || request.done || "";
    const button = make("button", { type: "button", "aria-label": `Abort request ${request.id}`, disabled: request.done && "disabled" }, "Abort");
    button.onclick = () => act("abort", { request_id: request.id });
    return make("li", {}, make("b", {}, request.id), make("span", { dir: "auto" }, visible(request.prompt)), make("small", {}, `${what}${state ? ` · ${state}` : ""}`), button);
  });
  const focused = document.activeElement?.getAttribute?.("aria-label");
  byId("requests").replaceChildren(...(items.length ? items : [make("li", {}, make("i", {}, "none yet"))]));
  if (focused?.startsWith("Abort")) [...byId("requests").querySelectorAll("button")].find((b) => b.getAttribute("aria-label") === focused)?.focus();
}

function tellChallenges({ here, missing, all }) {
  byId("challenges-part").hidden = !all.length;
  byId("num-solved").textContent = `${all.filter((each) => each.solved).length} of ${all.length} solved`;
  const now = all.find((each) => each.name === here);
  byId("goal").textContent = now ? (missing ? `${now.goal} ${missing}` : `Solved: ${now.goal}`) : "";
  byId("goal").className = now && !missing ? "solved" : "";
  const focused = document.activeElement?.dataset?.challenge;
  byId("challenges").replaceChildren(...all.map((each) => {
    const button = make("button", { type: "button", "data-challenge": each.name, "aria-pressed": String(each.name === here) }, each.name === here ? "Leave" : "Try");
    button.setAttribute("aria-label", `${each.name === here ? "Leave" : "Try"}: ${each.goal}`);
    button.onclick = () => (each.name === here ? act("clear") : act("challenge", { name: each.name }));
    const hint = make("details", {}, make("summary", {}, "Hint"), each.hint);
    return make("li", { class: each.solved ? "solved" : "" }, make("span", {}, `${each.solved ? "✓ " : ""}${each.goal}`), button, hint);
  }));
  if (focused) byId("challenges").querySelector(`[data-challenge="${focused}"]`)?.focus();
  if (live.facts.options) tellOptions(live.facts.options);
}

// ---- what is done

byId("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const number = (id) => Number(byId(id).value), texts = number("num-texts");
  const kind = byId("kind").value === "beams" ? { beam_width: texts } : { n: texts };
  await act("add", { prompts: byId("prompts").value.split("\n"), max_tokens: number("max-tokens"), priority: number("priority"), ...kind });
});

// Whoever lets the engine go on wants to see it, also after having gone back.
function goOn(name) {
  if (!isAtEnd()) go(Infinity);
  return act(name);
}

const runOrPause = () => (live.facts.mode?.runs ? act("pause") : goOn("run"));
byId("run").onclick = runOrPause;
byId("one-step").onclick = () => goOn("step");
byId("one-phase").onclick = () => goOn("phase");
byId("clear").onclick = () => act("clear");
byId("pace-of-engine").onchange = (event) => act("pace", { seconds: Number(event.target.value) });
byId("options-form").addEventListener("submit", (event) => event.preventDefault());

for (const field of OPTIONS) {
  const change = async () => {
    const touches = live.touches, value = field.type === "checkbox" ? field.checked : field.tagName === "SELECT" ? field.value : Number(field.value);
    const isTaken = await act("configure", { options: { [field.dataset.option]: value } });
    if (touches !== live.touches) return; // it has been touched again
    live.touched = null;
    if (!isTaken) tellOptions(live.facts.options); // what is so; of what was taken the stream may not have told yet
  };
  const touch = () => {
    live.touched = field;
    live.touches += 1;
  };
  if (field.type === "range") {
    field.oninput = () => {
      touch();
      byId("blocks-shown").textContent = field.value;
      clearTimeout(live.dragging);
      live.dragging = setTimeout(change, 150); // while it is being dragged, not each pixel
    };
  } else {
    field.oninput = touch;
    field.onchange = change;
  }
}

// The footer walks through what has been; from its end on it is the engine that goes on.
const onward = () => (isAtEnd() ? act("phase") : step(1));
Object.assign(KEYS, { ArrowRight: () => void onward(), " ": runOrPause, p: runOrPause });
byId("next").onclick = onward;
byId("play").onclick = runOrPause;
byId("panel").addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea")) event.stopPropagation(); // letters that are typed are no orders
});

const tellNext = () => byId("next").setAttribute("aria-disabled", isAtEnd() && !live.facts.mode?.has_work);
document.addEventListener("shown", tellNext);

document.body.classList.add("plays");
listen();
