// One run: its own settings, and its text as it comes.

import { complete } from "./api.js";
import { find, make, stretches } from "./elements.js";
import { sourcesOf } from "./passages.js";

const LEAST_VERBATIM = 12; // characters; shorter parts stand anywhere

export class Run {
  // `onChunk(run, number, {hover, tap})` is called when a chunk is looked at.
  constructor(section, name, { retrieval, onChunk }) {
    Object.assign(this, { section, name, onChunk });
    this.retrieval = make("input", { type: "checkbox", id: `retrieval-${name}`, checked: retrieval });
    this.k = make("input", {
      type: "number", id: `k-${name}`, min: 1, max: 16, value: 2, inputmode: "numeric",
    });
    this.summary = make("section", { class: "summary", "aria-label": `Sources of run ${name}` });
    this.note = make("p", { class: "hint note" });
    this.problem = make("p", { class: "problem", role: "alert", hidden: true });
    this.prose = make("div", { class: "prose", role: "group", "aria-label": `Text of run ${name}` });
    this.retrieval.addEventListener("change", () => (this.k.disabled = !this.retrieval.checked));
    this.k.disabled = !retrieval;
    section.replaceChildren(
      make("div", { class: "run-head" }, [
        make("h2", { text: name }),
        make("label", { class: "check" }, [this.retrieval, " Read"]),
        this.k,
        make("label", { class: "check", for: `k-${name}`, text: "passages" }),
      ]),
      this.problem, this.prose, this.note, this.summary,
    );
    this.prose.addEventListener("keydown", (event) => this.#move(event));
    this.clear();
    this.prose.append(make("p", {
      class: "empty",
      text: "Write, and the text will stand here. Each chunk tells what was read for it.",
    }));
  }

  // What the server has: at most so many passages a chunk, or none at all.
  offer(most, retrieves) {
    if (most) this.k.max = most;
    if (most && !this.text) this.k.value = most;
    this.retrieval.disabled = !retrieves;
    if (!retrieves) this.retrieval.checked = false;
    this.k.disabled = !this.retrieval.checked;
  }

  clear() {
    this.text = "";
    this.spans = [];
    this.sources = new Map(); // id of a passage -> its number
    this.chunks = [];
    this.prose.replaceChildren();
    this.problem.hidden = true;
    this.note.textContent = "";
    this.summary.replaceChildren();
  }

  settings() {
    return this.retrieval.checked
      ? { retrieval: true, num_neighbours: Number(this.k.value) || null, effects: true }
      : { retrieval: false };
  }

  async write(body, signal) {
    this.clear();
    const sent = { ...body, ...this.settings() };
    this.prose.append(make("span", { class: "given", text: body.prompt }));
    this.pending = make("span", { class: "pending" });
    this.prose.append(this.pending);
    this.prose.setAttribute("aria-busy", "true");
    let finish = null;
    try {
      await complete(sent, signal, (chunk) => {
        this.text += chunk.text;
        finish = chunk.finish ?? finish;
        for (const span of chunk.spans) this.#add(span);
        this.#showRest();
        if (chunk.spans.length) this.summary.replaceChildren(...sourcesOf(this));
      });
      this.note.textContent = ended(finish, sent.retrieval, this.spans);
    } catch (error) {
      if (error.name === "AbortError") this.note.textContent = "Stopped.";
      else {
        this.problem.textContent = error.message;
        this.problem.hidden = false;
        if (error.status === 401) find("key-row").hidden = false;
      }
    } finally {
      this.prose.setAttribute("aria-busy", "false");
      this.pending.classList.remove("pending");
    }
  }

  numberOf(passage) {
    if (!this.sources.has(passage.id)) this.sources.set(passage.id, this.sources.size + 1);
    return this.sources.get(passage.id);
  }

  largestEffect() {
    const all = this.spans.flatMap((span) => span.passages.map((p) => Math.abs(p.effect ?? 0)));
    return Math.max(1, ...all);
  }

  textOf(span) {
    return Array.from(this.text).slice(span.start, span.end).join("");
  }

  // Shows a chunk's text, or what is known of it now if it stands there already.
  #add(span) {
    const known = this.spans.findIndex((each) => each.start === span.start);
    if (known >= 0) {
      this.spans[known] = span;
      this.chunks[known].replaceChildren(...this.#marked(span));
      return;
    }
    const shown = this.spans.at(-1)?.end ?? 0;
    const between = Array.from(this.text).slice(shown, span.start).join("");
    this.spans.push(span);
    const number = this.spans.length - 1;
    const told = span.problem || `${span.passages.length} passages`;
    const chunk = make("span", {
      class: "chunk", role: "button", tabindex: number ? -1 : 0, "aria-pressed": "false",
      "aria-description": `Chunk ${number + 1}, ${told}`,
      onclick: () => this.onChunk(this, number, { tap: true }),
      onfocus: () => this.onChunk(this, number),
      onmouseenter: () => this.onChunk(this, number, { hover: true }),
    }, this.#marked(span));
    // What goes on from the same passage needs its number once.
    const before = this.chunks.at(-1)?.lastChild, first = chunk.firstChild;
    if (!between && before?.localName === "sup" && first?.localName === "mark"
      && chunk.querySelector("sup").textContent === before.textContent) before.remove();
    this.chunks.push(chunk);
    this.pending.before(between, chunk);
    find("live").textContent = `Chunk ${number + 1} is there: ${told}.`;
    if (!number) this.onChunk(this, 0);
  }

  #marked(span) {
    const text = this.textOf(span);
    const parts = span.passages
      .map((p) => ({ part: p.verbatim.trim(), number: this.numberOf(p) }))
      .filter(({ part }) => part.length >= LEAST_VERBATIM);
    const shown = [];
    let read = new Set(); // numbers of what is marked up to here, without a gap
    const close = () => {
      if (!read.size) return;
      const numbers = [...read].sort((a, b) => a - b).join(",");
      shown.push(make("sup", { text: numbers, title: `word for word in passage ${numbers}` }));
      read = new Set();
    };
    for (const { start, end, numbers } of stretches(text, parts)) {
      const words = text.slice(start, end);
      if (!numbers.length) close();
      shown.push(numbers.length ? make("mark", { text: words }) : words);
      numbers.forEach((number) => read.add(number));
    }
    close();
    return shown;
  }

  #showRest() {
    const shown = this.spans.at(-1)?.end ?? 0;
    this.pending.textContent = Array.from(this.text).slice(shown).join("");
  }

  press(number) {
    this.chunks.forEach((chunk, place) => {
      chunk.setAttribute("aria-pressed", String(place === number));
      if (number !== null) chunk.tabIndex = place === number ? 0 : -1;
    });
  }

  #move(event) {
    const at = this.chunks.indexOf(event.target);
    if (at < 0) return;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const last = this.chunks.length - 1;
    let to = null;
    if (event.key in steps) to = Math.min(Math.max(at + steps[event.key], 0), last);
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = last;
    else if (event.key === "Enter" || event.key === " ") find("passages").focus();
    else return;
    event.preventDefault();
    if (to !== null) this.chunks[to].focus();
  }
}

function ended(finish, retrieval, spans) {
  const read = !retrieval
    ? "No passages: reading was off."
    : spans.some((span) => span.passages.length) ? "" : "No passages: none were found.";
  const why = finish === "length" ? "Ends at the number of tokens." : "The text has ended.";
  return [why, read].filter(Boolean).join(" ");
}
