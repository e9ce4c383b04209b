// Elements whose text is only ever text: nothing here reads markup.

export function make(tag, { text, ...attributes } = {}, children = []) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function find(id) {
  return document.getElementById(id);
}

// An address of the web that may become a link, or null: a database may hold any others.
export function webAddress(uri) {
  try {
    const url = new URL(uri);
    return ["http:", "https:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// Where parts of a text stand in it: [{start, end, numbers}], in order, without overlaps.
export function stretches(text, parts) {
  const borders = new Set([0, text.length]);
  const places = [];
  for (const { part, number } of parts) {
    const start = part ? text.indexOf(part) : -1;
    if (start < 0) continue;
    places.push({ start, end: start + part.length, number });
    borders.add(start).add(start + part.length);
  }
  const cuts = [...borders].sort((a, b) => a - b), found = [];
  for (let i = 0; i + 1 < cuts.length; i++) {
    const [start, end] = [cuts[i], cuts[i + 1]];
    const numbers = places.filter((p) => p.start <= start && end <= p.end).map((p) => p.number);
    found.push({ start, end, numbers: [...new Set(numbers)] });
  }
  return found;
}
