"use strict";

// Colours: the system's, or a choice that is kept where the browser allows it.
(() => {
  const theme = document.getElementById("theme");
  if (!theme) return;
  const kept = {
    get() { try { return localStorage.getItem("zeropoint-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("zeropoint-theme", value); } catch { /* not kept */ } },
  };
  const show = (value) => {
    if (value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = value;
  };
  const chosen = theme.querySelector(`input[value="${kept.get() === "dark" ? "dark" : kept.get() === "light" ? "light" : "auto"}"]`);
  chosen.checked = true;
  show(chosen.value);
  theme.addEventListener("change", (event) => {
    show(event.target.value);
    kept.set(event.target.value);
  });
  theme.hidden = false;
})();

// Tables that can be sorted: the heads of their columns become buttons.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "" || text === "–" ? NaN : text;
  };
  const sort = (column, descending) => {
    const keyed = [...body.rows].map((row, index) => ({ row, index, key: value(row, column) }));
    const missing = (key) => typeof key === "number" && Number.isNaN(key);
    keyed.sort((a, b) => {
      // What has no value comes last in both directions.
      if (missing(a.key) || missing(b.key)) return missing(a.key) - missing(b.key) || a.index - b.index;
      const order = typeof a.key === "number" && typeof b.key === "number"
        ? a.key - b.key
        : String(a.key).localeCompare(String(b.key), "en", { numeric: true });
      return (descending ? -order : order) || a.index - b.index;
    });
    body.append(...keyed.map(({ row }) => row));
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending"));
    head.append(button);
  });
}
