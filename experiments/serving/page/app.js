// The page: joins the prompt, the runs, the passages, the search and the documents.

import { about, change, documentOf, search, useKey } from "./api.js";
import { find, make } from "./elements.js";
import { chunkCards, passageCard } from "./passages.js";
import { Run } from "./run.js";

const RESULTS = 20;
const runs = [
  new Run(find("run-a"), "A", { retrieval: true, onChunk: look }),
  new Run(find("run-b"), "B", { retrieval: false, onChunk: look }),
];
const TABS = ["passages", "search", "documents"];
let looked = null; // the chunk whose passages are shown
let writing = null;
let mayChange = false;

async function start() {
  passagesEmpty();
  await learn();
  find("prompt").focus({ preventScroll: true });
}

async function learn() {
  try {
    const said = await about();
    mayChange = said.documents_enabled === true;
    const facts = [
      said.model,
      ...databaseFacts(said.database),
    ].filter(Boolean);
    find("about").textContent = facts.join(" \u00b7 ");
    if (said.limits?.max_tokens) find("length").max = said.limits.max_tokens;
    for (const run of runs) run.offer(said.num_neighbours, said.retrieval !== false);
  } catch (error) {
    if (error.status === 401) find("key-row").hidden = false;
    find("about").textContent = error.message;
  }
  find("document-form").hidden = !mayChange;
  find("documents-off").hidden = mayChange;
}

function databaseFacts(database) {
  if (!database) return ["no database"];
  const { documents, version } = database;
  return [
    documents === undefined ? "" : `${Number(documents).toLocaleString("en")} documents`,
    version === undefined ? "" : `version ${version}`,
  ];
}

// Passages of a chunk.

function look(run, number, { hover = false, tap = false } = {}) {
  if (hover && find("passages").hidden) return; // who searches is not called away
  const isStacked = find("passages").getBoundingClientRect().top > run.prose.getBoundingClientRect().bottom;
  if (tap && isStacked) find("sources").scrollIntoView({ block: "start" });
  if (looked?.span === run.spans[number]) return;
  looked = { run, span: run.spans[number] };
  for (const each of runs) each.press(each === run ? number : null);
  const cards = chunkCards(run, number, {
    onSpan: searchFor,
    onReplace: mayChange ? changeOf : null,
  });
  const back = make("button", {
    class: "quiet back", type: "button", text: "Back to the text",
    onclick: () => run.chunks[number].scrollIntoView({ block: "center" }),
  });
  find("passages").replaceChildren(back, ...cards);
  if (!hover) open("passages");
}

function passagesEmpty() {
  looked = null;
  find("passages").replaceChildren(
    make("p", { class: "hint", text: "Point at a chunk of the text, tap it or reach it with the arrow keys: here stands what was read for it, and how much each passage mattered." }),
  );
}

// Runs.

async function write(which) {
  const prompt = find("prompt").value;
  if (!prompt.trim()) {
    find("prompt").focus();
    return;
  }
  writing?.abort();
  const mine = (writing = new AbortController());
  find("stop").hidden = false;
  find("again").hidden = true;
  passagesEmpty();
  open("passages");
  const body = {
    prompt,
    max_tokens: Number(find("length").value) || 128,
    temperature: Number(find("temperature").value) || 0,
    top_p: Number(find("top-p").value) || 1,
    seed: Number(find("seed").value) || 0,
  };
  find("live").textContent = "Writing.";
  await Promise.all(which.map((run) => run.write(body, mine.signal)));
  if (writing !== mine) return;
  writing = null;
  find("stop").hidden = true;
  find("live").textContent = "The text is there.";
}

function shown() {
  return find("compare").checked ? runs : runs.slice(0, 1);
}

find("compare").addEventListener("change", () => {
  find("run-b").hidden = !find("compare").checked;
  find("runs").classList.toggle("two", find("compare").checked);
});
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  write(shown());
});
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    write(shown());
  }
});
find("stop").addEventListener("click", () => writing?.abort());
find("key").addEventListener("change", () => {
  useKey(find("key").value);
  learn();
});

// Tabs.

function open(name, focus = false) {
  for (const each of TABS) {
    const tab = find(`tab-${each}`), is = each === name;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    find(each).hidden = !is;
    if (is && focus) tab.focus();
  }
}

for (const name of TABS) {
  const tab = find(`tab-${name}`);
  tab.addEventListener("click", () => open(name));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: TABS.length - 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    open(TABS[(TABS.indexOf(name) + step) % TABS.length], true);
  });
}

// Search.

async function searchFor(words) {
  open("search");
  find("query").value = words;
  await runSearch(words);
  find("query").focus();
}

async function runSearch(query) {
  const status = find("search-status"), words = query.trim();
  find("results").replaceChildren();
  status.textContent = "Searching.";
  try {
    const found = await search(query, RESULTS);
    const holds = (p) => (p.text + p.continuation).includes(words);
    const sorted = [...found.filter(holds), ...found.filter((p) => !holds(p))];
    const exact = found.filter(holds).length;
    find("results").replaceChildren(...sorted.map((passage) =>
      passageCard(passage, {
        found: words, onSpan: searchFor, onReplace: mayChange ? changeOf : null,
      })));
    const count = found.length === 1 ? "1 passage" : `${found.length} passages`;
    status.textContent = found.length ? `${count}; ${exact === 1 ? "1 holds" : `${exact} hold`} these words exactly.` : "Nothing was found.";
  } catch (error) {
    status.textContent = error.message;
  }
}

find("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  runSearch(find("query").value);
});

// Documents.

async function changeOf(passage) {
  open("documents");
  find("document-id").value = passage.document;
  find("document-title").value = passage.title;
  find("document-text").value = "";
  find("document-status").textContent = "Fetching the document.";
  try {
    find("document-text").value = (await documentOf(passage.document)).text;
    find("document-status").textContent = "";
  } catch (error) {
    find("document-status").textContent = error.message;
  }
  find("document-text").focus();
}

let asked = ""; // the document whose deletion was asked for once
find("document-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const kind = event.submitter?.value ?? "add", status = find("document-status");
  const document = {
    id: find("document-id").value,
    title: find("document-title").value,
    text: find("document-text").value,
  };
  if (kind !== "delete" && !document.text.trim()) {
    status.textContent = "Give the document a text.";
    return;
  }
  if (kind === "delete" && asked !== document.id) {
    asked = document.id;
    status.textContent = `Press Delete again, and ${document.id} is gone.`;
    return;
  }
  asked = "";
  status.textContent = "Changing.";
  try {
    const said = await change(kind, document);
    const done = { add: "Added", replace: "Replaced", delete: "Deleted" }[kind];
    const version = said.version === undefined ? "" : ` The database is version ${said.version} now.`;
    status.textContent = `${done}: ${document.id}.${version}`;
    find("again").hidden = !runs[0].text;
    learn();
  } catch (error) {
    status.textContent = error.message;
    if (error.status === 401) find("key-row").hidden = false;
  }
});

// The earlier text stays in A; B is written with A's settings, on what the database is now.
find("again").addEventListener("click", () => {
  const [first, second] = runs;
  second.retrieval.checked = first.retrieval.checked;
  second.k.value = first.k.value;
  second.k.disabled = first.k.disabled;
  if (!find("compare").checked) find("compare").click();
  write([second]);
});

start();
