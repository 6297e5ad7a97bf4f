"use strict";
// Tables sort by a click on a column's head: up, down, as they were. Without this script they stay as they are.
(() => {
  const number = (text) => {
    const found = text.replace("−", "-").match(/[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?/i);
    return found ? Number(found[0].replace(/,/g, "")) : NaN;
  };
  const words = (row, column) => row.children[column].textContent.trim();

  function compare(column) {
    return (one, other) => {
      const [a, b] = [words(one, column), words(other, column)], [x, y] = [number(a), number(b)];
      if (column === 0 || (isNaN(x) && isNaN(y))) return a.localeCompare(b, undefined, { numeric: true });
      if (isNaN(x) || isNaN(y)) return isNaN(x) ? 1 : -1; // what has no number comes last, either way
      return x - y;
    };
  }

  function sort(table, heads, at) {
    const body = table.tBodies[0], head = heads[at];
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") || "none"];
    for (const one of heads) one.removeAttribute("aria-sort");
    const rows = [...body.rows];
    for (const [position, row] of rows.entries()) row.dataset.position ??= position;
    rows.sort((one, other) => one.dataset.position - other.dataset.position);
    if (next !== "none") {
      head.setAttribute("aria-sort", next);
      const order = compare(head.cellIndex), turn = next === "descending" ? -1 : 1;
      rows.sort((one, other) => {
        const gone = [one, other].map((row) => isNaN(number(words(row, head.cellIndex))) && head.cellIndex > 0);
        return (gone[0] === gone[1] ? turn : 1) * order(one, other);
      });
    }
    body.append(...rows);
  }

  for (const table of document.querySelectorAll(".scroll table")) {
    const heads = [...table.tHead.rows[0].cells].filter((cell) => cell.tagName === "TH");
    if (table.tBodies[0].rows.length < 2) continue;
    for (const [at, head] of heads.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, heads, at));
      head.append(button);
    }
  }
})();
