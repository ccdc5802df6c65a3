"use strict";
(() => {
  const root = document.documentElement;
  const one = (id) => document.getElementById(id);
  const table = one("claims-table");
  const claims = [...table.tBodies];
  const form = one("controls");
  const FILTERS = ["theme", "kind", "verdict", "fidelity"].filter((name) => form.elements[name]);
  const DATA = { theme: "themeName" }; // data-theme is the page's own
  const NUMBERS = new Set(["p", "runs", "order"]);

  // Filter, sort, and the same in the address, so that a link shows what its writer saw.
  const state = { text: "", sort: "", reverse: "" };
  for (const name of FILTERS) state[name] = "";

  const matches = (claim) =>
    FILTERS.every((name) => !state[name] || claim.dataset[DATA[name] || name] === state[name]) &&
    state.text.toLowerCase().split(/\s+/).every((word) => claim.dataset.text.includes(word));

  function compare(a, b) {
    const key = state.sort || "order";
    const [x, y] = [a.dataset[key], b.dataset[key]];
    const found = NUMBERS.has(key) ? Number(x) - Number(y) : x.localeCompare(y);
    return (state.reverse ? -found : found) || Number(a.dataset.order) - Number(b.dataset.order);
  }

  function show() {
    let count = 0;
    for (const claim of claims) {
      claim.hidden = !matches(claim);
      count += !claim.hidden;
    }
    table.append(...[...claims].sort(compare));
    for (const head of table.tHead.querySelectorAll("[data-sort]")) {
      if (head.dataset.sort !== state.sort) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", state.reverse ? "descending" : "ascending");
    }
    const all = claims.length;
    one("shown").textContent = count === all ? `${all} claims` : `${count} of ${all} claims shown`;
    one("none").hidden = count > 0;
    table.hidden = count === 0;
    one("direction").setAttribute("aria-pressed", String(Boolean(state.reverse)));
    for (const [name, value] of Object.entries(state)) {
      const field = form.elements[name];
      if (field && field.value !== value) field.value = value;
    }
  }

  function remember() {
    const chosen = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
    history.replaceState(null, "", chosen.size ? `#${chosen}` : location.pathname + location.search);
  }

  function change(values) {
    Object.assign(state, values);
    show();
    remember();
  }

  const clear = () => change(Object.fromEntries(Object.keys(state).map((name) => [name, ""])));

  /** What an address names: a choice of claims, or a place on the page, which is then shown. */
  function restore() {
    const hash = location.hash.slice(1);
    if (hash.includes("=")) {
      const given = new URLSearchParams(hash);
      for (const name of Object.keys(state)) state[name] = given.get(name) || "";
      for (const name of FILTERS) {
        const known = [...form.elements[name].options].some((option) => option.value === state[name]);
        if (!known) state[name] = "";
      }
      show();
      return;
    }
    const place = one(hash); // names of claims are written as they are
    if (!place || !place.classList.contains("claim")) return;
    if (place.hidden) {
      for (const name of Object.keys(state)) state[name] = "";
      show();
    }
    place.querySelector("details").open = true;
    place.scrollIntoView();
  }

  form.addEventListener("input", (event) => {
    if (event.target.name) change({ [event.target.name]: event.target.value.trim() });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => { event.preventDefault(); clear(); });
  one("clear-too").addEventListener("click", () => { clear(); form.elements.text.focus(); });
  one("direction").addEventListener("click", () => change({ reverse: state.reverse ? "" : "yes" }));
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("button.sort")?.closest("[data-sort]");
    if (!head) return;
    const again = state.sort === head.dataset.sort;
    // up, down, and back to the order of the report
    if (!again) change({ sort: head.dataset.sort, reverse: "" });
    else if (!state.reverse) change({ reverse: "yes" });
    else change({ sort: "", reverse: "" });
  });

  const opener = one("open");
  opener.addEventListener("click", () => {
    const open = opener.textContent === "Open all";
    for (const claim of claims) claim.querySelector("details").open = open;
    opener.textContent = open ? "Close all" : "Open all";
  });

  // Theme: the system's until a reader chooses; the choice is kept for this file.
  const button = one("toggle");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    try {
      localStorage.setItem(`fedlora-sim theme ${location.pathname}`, root.dataset.theme);
    } catch (error) { /* no storage: for this visit alone */ }
  });
  system.addEventListener("change", name);

  // Paper shows all that is on the page, unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of folded) part.open = false; });

  // Trajectories: one round at a time, in all panels and in the table below them.
  const slider = one("round");
  if (slider) {
    const data = JSON.parse(one("energies").textContent);
    const panels = [...document.querySelectorAll(".panels .chart")];
    const last = data.rounds.length - 1;
    const at = () => {
      const i = Number(slider.value);
      for (const panel of panels) {
        const [left, right] = [Number(panel.dataset.left), Number(panel.dataset.right)];
        const first = data.rounds[0];
        const x = left + ((right - left) * (data.rounds[i] - first)) / (data.rounds[last] - first);
        const cross = panel.querySelector(".cross");
        cross.setAttribute("x1", x);
        cross.setAttribute("x2", x);
      }
      for (const cell of document.querySelectorAll("#readout [data-at]")) {
        const [rule, part] = cell.dataset.at.split(",").map(Number);
        cell.innerHTML = data[cell.dataset.of][rule][part][i]; // a number, written with its power
      }
      one("round-value").textContent = one("readout-round").textContent = data.rounds[i];
      slider.setAttribute("aria-valuetext", `round ${data.rounds[i]}`);
    };
    slider.addEventListener("input", at);
    for (const panel of panels) {
      panel.addEventListener("pointermove", (event) => {
        const box = panel.getBoundingClientRect();
        const scale = panel.viewBox.baseVal.width / box.width;
        const [left, right] = [Number(panel.dataset.left), Number(panel.dataset.right)];
        const share = ((event.clientX - box.left) * scale - left) / (right - left);
        slider.value = Math.round(Math.min(Math.max(share, 0), 1) * last);
        at();
      });
    }
    at();
  }

  addEventListener("hashchange", restore);
  name();
  show();
  restore();
})();
