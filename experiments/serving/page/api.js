// All that the page asks of the server, and the one place that knows the form of its answers.

let key = "";

export function useKey(given) {
  key = given;
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function asked(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer.");
  }
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    const said = await answer.json();
    return String(said.error?.message ?? `Status ${answer.status}`);
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

export async function about() {
  return (await asked("/health")).json();
}

export async function search(query, k) {
  const answer = await (await asked("/v1/search", { method: "POST", body: { query, k } })).json();
  return list(answer.data).map(passage);
}

function placeOf(id) {
  return `/v1/documents/${encodeURIComponent(id)}`;
}

export async function documentOf(id) {
  const said = await (await asked(placeOf(id))).json();
  return { id, title: String(said.title ?? ""), text: String(said.text ?? "") };
}

export async function change(kind, { id, title, text }) {
  const sent = {
    add: ["/v1/documents", "POST", { documents: [{ id, title, text }] }],
    replace: [placeOf(id), "PUT", { title, text }],
    delete: [placeOf(id), "DELETE", undefined],
  };
  const [path, method, body] = sent[kind];
  return (await asked(path, { method, body })).json();
}

// Calls `onChunk({text, spans, finish})` for each chunk of a stream.
export async function complete(body, signal, onChunk) {
  const answer = await asked("/v1/completions", {
    method: "POST", signal, body: { ...body, stream: true },
  });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const said = JSON.parse(data);
    if (said.error) throw new Refused(0, String(said.error.message));
    const choice = list(said.choices)[0] ?? {};
    onChunk({
      text: String(choice.text ?? ""),
      finish: choice.finish_reason ?? null,
      spans: list(choice.sources).map(span),
    });
  }
}

async function* events(stream) {
  const reader = stream.getReader(), decoder = new TextDecoder();
  let kept = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      kept += decoder.decode(value, { stream: true });
      const parts = kept.split(/\r?\n\r?\n/);
      kept = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function span(given) {
  return {
    start: number(given.start) ?? 0,
    end: number(given.end) ?? 0,
    problem: given.problem ? String(given.problem) : "",
    passages: list(given.passages).map(passage),
  };
}

function passage(given) {
  const text = (name) => String(given[name] ?? "");
  return {
    id: text("chunk_id"),
    document: text("document_id"),
    title: text("title"),
    uri: text("uri"),
    licence: text("licence"),
    offset: number(given.offset),
    distance: number(given.distance),
    version: number(given.version),
    text: text("text"),
    continuation: text("continuation"),
    attention: number(given.attention),
    effect: number(given.effect),
    verbatim: text("verbatim"),
  };
}
