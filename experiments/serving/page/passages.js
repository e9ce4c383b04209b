// What a chunk read: a card for each passage, with how much it mattered.

import { make, stretches, webAddress } from "./elements.js";

// Cards of the passages of a chunk of a run.
export function chunkCards(run, number, { onSpan, onReplace }) {
  const span = run.spans[number];
  const head = [
    make("h2", { text: `Chunk ${number + 1}, run ${run.name}` }),
    make("blockquote", { text: run.textOf(span).trim() }),
  ];
  if (span.problem) {
    return [...head, make("p", { class: "problem", text: `It went on without passages: ${span.problem}` })];
  }
  if (!span.passages.length) {
    return [...head, make("p", { class: "hint", text: "No passage was read for this chunk." })];
  }
  const cards = span.passages.map((passage) => {
    const card = passageCard(passage, { number: run.numberOf(passage), onSpan, onReplace });
    card.querySelector(".where").after(evidence(passage, run.largestEffect()));
    return card;
  });
  return [...head, make("ol", { class: "cards" }, cards)];
}

// One passage; `found` is what was searched for, which is marked in it.
export function passageCard(passage, { number, found, onSpan, onReplace }) {
  const part = found ?? passage.verbatim.trim();
  const whole = passage.text + passage.continuation;
  const pieces = stretches(whole, [{ part, number: 0 }]).map(({ start, end, numbers }) => {
    const words = whole.slice(start, end);
    if (!numbers.length) return words;
    if (found || part.length < 2) return make("mark", { text: words });
    // No button: that would not break over lines as text does.
    return make("span", {
      class: "span", role: "button", tabindex: 0, text: words,
      title: "Search all documents that hold these words",
      onclick: () => onSpan(words),
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        onSpan(words);
      },
    });
  });
  const name = passage.title || passage.document;
  const head = make("h3", {}, [
    ...(number ? [make("span", { class: "number", text: String(number) }), " "] : []),
    name,
  ]);
  const body = [head, where(passage), make("p", { class: "passage" }, pieces)];
  if (onReplace) {
    body.push(make("button", {
      class: "quiet", type: "button", text: "Change this document",
      "aria-label": `Change the document ${name}`,
      onclick: () => onReplace(passage),
    }));
  }
  return make("li", { class: "card" }, body);
}

function where(passage) {
  const address = webAddress(passage.uri);
  const uri = address
    ? make("a", { href: address, rel: "noopener noreferrer", target: "_blank", text: passage.uri })
    : passage.uri;
  const rest = [
    passage.document !== passage.title && passage.title ? passage.document : "",
    uri,
    passage.offset === null ? "" : `byte ${passage.offset.toLocaleString("en")}`,
    passage.licence,
    passage.distance === null ? "" : `distance ${passage.distance.toFixed(2)}`,
    passage.version === null ? "" : `version ${passage.version}`,
  ].filter(Boolean);
  return make("p", { class: "where" }, rest.flatMap((each, at) => (at ? [" · ", each] : [each])));
}

function evidence(passage, largest) {
  const rows = [];
  if (passage.attention !== null) {
    const share = Math.min(Math.max(passage.attention, 0), 1);
    rows.push(row("Attention", `${Math.round(100 * share)} %`, bar("attention", 0, share)));
  }
  if (passage.effect !== null) {
    const size = Math.min(Math.abs(passage.effect) / largest, 1) / 2;
    const start = passage.effect < 0 ? 0.5 - size : 0.5;
    const drawn = bar(passage.effect < 0 ? "effect against" : "effect", start, size);
    rows.push(row("Effect", likelier(passage.effect), drawn));
  }
  return make("dl", { class: "evidence" }, rows.flat());
}

function row(name, value, drawn) {
  return [make("dt", { text: name }), make("dd", {}, [make("span", { text: value }), drawn])];
}

// All passages of a run, those that mattered most first: what they did to the whole text.
export function sourcesOf(run) {
  const all = new Map();
  for (const span of run.spans) {
    for (const passage of span.passages) {
      const known = all.get(passage.id) ?? { passage, chunks: 0, effect: 0, attention: 0 };
      known.chunks += 1;
      known.effect += passage.effect ?? 0;
      known.attention += passage.attention ?? 0;
      all.set(passage.id, known);
    }
  }
  const rows = [...all.values()].sort(
    (a, b) => b.effect - a.effect || b.attention - a.attention,
  );
  const largest = Math.max(1e-9, ...rows.map((row) => Math.abs(row.effect)));
  const lines = rows.map(({ passage, chunks, effect }) => {
    const size = Math.min(Math.abs(effect) / largest, 1) / 2;
    return make("li", {}, [
      make("span", { class: "number", text: String(run.numberOf(passage)) }),
      make("span", { class: "name", text: passage.title || passage.document }),
      bar(effect < 0 ? "effect against" : "effect", effect < 0 ? 0.5 - size : 0.5, size),
      make("span", {
        class: "value",
        text: `${signed(effect)} nats in ${chunks === 1 ? "1 chunk" : `${chunks} chunks`}`,
      }),
    ]);
  });
  if (!lines.length) return [];
  const unit = "Effect: the text against the same text with this passage taken away. "
    + "One nat more is 2.7 times as likely.";
  return [
    make("h3", { text: "How much each passage mattered" }),
    make("ol", {}, lines),
    make("p", { class: "hint", text: unit }),
  ];
}

function bar(kind, start, size) {
  const fill = make("span", { class: "fill" });
  fill.style.left = `${100 * start}%`;
  fill.style.width = `${100 * size}%`;
  return make("span", { class: `bar ${kind}`, "aria-hidden": "true" }, [fill]);
}

// Nats in words: what the passage did to the chance of what was said.
export function likelier(nats) {
  const size = Math.abs(nats);
  if (size < 0.05) return "no difference";
  const times = Math.exp(size);
  const shown = times >= 1000 ? "over 1,000" : times >= 10 ? times.toFixed(0) : times.toFixed(1);
  return `${shown}\u00d7 ${nats < 0 ? "less likely" : "likelier"} (${signed(nats)} nats)`;
}

function signed(nats) {
  const size = Math.abs(nats).toFixed(1);
  return size === "0.0" ? size : `${nats < 0 ? "\u2212" : "+"}${size}`;
}
