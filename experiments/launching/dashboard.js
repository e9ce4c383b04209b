// Sorts the table by the column whose head is pressed, and marks the unit that is pointed at.
"use strict";
const table = document.querySelector("table");
const body = table.tBodies[0];
const key = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.number === undefined ? cell.textContent.trim() : Number(cell.dataset.number);
};
const compare = (a, b) => {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  return typeof a === "number" ? -1 : 1;
};
table.tHead.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const head = button.parentElement;
  const falls = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const rows = [...body.rows];
  const known = (row) => row.cells[head.cellIndex].textContent.trim() !== "-";
  rows.sort((a, b) => {
    if (known(a) !== known(b)) return known(a) ? -1 : 1; // what is not known stands last
    const order = compare(key(a, head.cellIndex), key(b, head.cellIndex));
    return falls ? -order : order;
  });
  body.append(...rows);
});
const mark = (unit) => {
  document.body.classList.toggle("marked", Boolean(unit));
  for (const one of document.querySelectorAll("[data-unit]")) one.classList.toggle("this", one.dataset.unit === unit);
};
document.addEventListener("pointerover", (event) => mark(event.target.closest?.("[data-unit]")?.dataset.unit));
