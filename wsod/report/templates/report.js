"use strict";
(() => {
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  root.classList.add("live", "no-mask");

  // theme: remembered where the browser allows a file to remember anything
  const theme = at("theme");
  const paint = () => { root.dataset.theme = theme.value; };
  try { theme.value = localStorage.getItem("wsod-theme") || "auto"; } catch { theme.value = "auto"; }
  if (!theme.value) theme.value = "auto";
  paint();
  theme.addEventListener("change", () => {
    paint();
    try { localStorage.setItem("wsod-theme", theme.value); } catch { /* a file may not be allowed to */ }
  });

  // tables: a head is a button that sorts
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const number = table.tBodies[0].rows[0]?.cells[column].dataset.value !== undefined;
        const compare = number
          ? (a, b) => Number(value(a)) - Number(value(b))
          : (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
        const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? compare(a, b) : compare(b, a)));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        table.tBodies[0].append(...rows);
      });
    });
  }

  // cases
  const form = at("controls");
  const place = at("cards");
  const cards = all(".card").map((element, order) => ({
    element, order, scores: JSON.parse(element.dataset.scores),
    label: element.dataset.label, image: element.dataset.image,
  }));
  const options = all("#score option");

  const spread = (card, chosen) => {
    // rows differ in this metric: its columns are those named alike before the comma
    const metric = options[chosen]?.textContent.split(",")[0];
    const values = card.scores.filter((value, i) => value !== null && options[i].textContent.split(",")[0] === metric);
    return values.length > 1 ? Math.max(...values) - Math.min(...values) : -1;
  };

  const show = () => {
    const chosen = Number(at("score").value || 0);
    const lower = options[chosen]?.dataset.lower === "1";
    const low = at("low").value === "" ? -Infinity : Number(at("low").value) / 100;
    const high = at("high").value === "" ? Infinity : Number(at("high").value) / 100;
    const bounded = low > -Infinity || high < Infinity;
    const text = at("text").value.trim().toLowerCase();
    const label = at("class").value;
    const order = at("order").value;
    const key = (card) => {
      const value = card.scores[chosen];
      if (order === "spread") return -spread(card, chosen);
      if (value === null || value === undefined) return Infinity;
      return (order === "best") !== lower ? -value : value;
    };
    const sorted = [...cards].sort((a, b) =>
      order === "name" ? a.image.localeCompare(b.image, undefined, { numeric: true }) || a.order - b.order
        : key(a) - key(b) || a.order - b.order);
    let count = 0;
    for (const card of sorted) {
      const value = card.scores[chosen];
      const inside = !bounded || (value !== null && value !== undefined && value >= low - 1e-9 && value <= high + 1e-9);
      const seen = (!label || card.label === label) && card.image.toLowerCase().includes(text) && inside;
      card.element.hidden = !seen;
      count += seen;
    }
    place.append(...sorted.map((card) => card.element));
    at("shown").textContent = count === 1 ? "1 case" : `${count} cases`;
  };

  const draw = () => {
    for (const box of all(".layer")) root.classList.toggle(`no-${box.value}`, !box.checked);
    root.style.setProperty("--strength", at("strength").value / 100);
    root.style.setProperty("--panel", `${at("size").value}px`);
    const hidden = new Set(all(".method").filter((box) => !box.checked).map((box) => box.value));
    for (const panel of all(".panel[data-row]")) panel.hidden = hidden.has(panel.dataset.row);
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  const changed = (event) => (event.target.matches(".layer, .method, [type=range]") ? draw() : show());
  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  form.addEventListener("reset", () => setTimeout(() => { show(); draw(); }));
  show();
  draw();

  addEventListener("beforeprint", () => all("details").forEach((one) => { one.dataset.was = one.open; one.open = one.closest("#provenance") ? one.open : true; }));
  addEventListener("afterprint", () => all("details").forEach((one) => { one.open = one.dataset.was === "true"; }));
})();
