// The explorer: the table, and beside it one trajectory or two. Or, with the names of views, a still
// of one trajectory that is as tall as what it shows.

import { element, makeTip } from "./dom.js";
import { QUANTITIES, setTheme } from "./scale.js";
import { makeTable } from "./table.js";
import { VIEWS, makeView } from "./view.js";

export function mount(root, source, shown = null) {
  setTheme(source.table.theme);
  const shell = element("div", { class: shown ? "npr npr-still" : "npr" });
  const makeOne = (heard) => makeView(tip, source, shown ?? VIEWS, heard);
  const tip = makeTip(shell);
  // A still is one response, which there is no table for, nor any edit.
  const pick = (row, beside) => (beside ? compare(row) : open(row));
  const table = shown ? null : makeTable(source, pick);
  const heard = { changed: differ, compared: compare, edited: shown ? null : edit };
  const views = [makeOne({ ...heard, selected: follow(1) })];
  const stage = element("div", { class: "npr-views" }, views[0].pane);
  const grown = new Map(); // row -> its latest record, not yet drawn
  shell.append(toolbar(), element("div", { class: "npr-main" }, table?.pane ?? null, stage));
  root.replaceChildren(shell);
  paint();
  size();
  open(0);
  return source.watch({
    record(row, record) {
      grown.set(row, record);
      grow();
    },
    table() {
      table?.renew();
      offer(shell.querySelector(".npr-color"));
      for (const view of views) view.renew();
      size();
    },
  });

  // Not between press and release: the click would be lost with the box that was pressed.
  function grow() {
    if (shell.matches(":active")) {
      setTimeout(grow, 50);
      return;
    }
    if (grown.size) tip.hide();
    for (const view of views) if (grown.has(view.row())) view.grow(grown.get(view.row()));
    grown.clear();
  }

  // One response needs no table to choose from.
  function size() {
    shell.classList.toggle("npr-single", source.table.size === 1);
  }

  function open(row) {
    views[0].open(row);
    tell();
  }

  // What is selected in one view is selected in the other, where there is a segment of its name.
  function follow(other) {
    return (name) => views[other]?.chooseNamed(name);
  }

  function compare(row) {
    if (!views[1]) {
      views.push(makeOne({ ...heard, selected: follow(0), closed: close }));
      stage.append(views[1].pane);
      shell.classList.add("npr-two");
      paint();
    }
    views[1].open(row, views[0].chosen());
    tell();
  }

  // The response as it was on the left, what became of it on the right.
  async function edit(row, segment, label, text, token) {
    const { row: made, error } = await source.edit({ row, segment, label, text, token });
    if (error) return error;
    if (views[0].row() !== row) await views[0].open(row, views[1]?.chosen());
    compare(made);
    return null;
  }

  function close() {
    views.pop().pane.remove();
    shell.classList.remove("npr-two");
    differ();
    tell();
  }

  function differ() {
    views.forEach((view, i) => view.compare(views[1 - i]?.record() ?? null));
  }

  function tell() {
    table?.show(views.map((view) => view.row()));
  }

  function toolbar() {
    const select = element("select", { class: "npr-color", onchange: paint });
    offer(select);
    const dark = element(
      "button",
      { class: "npr-theme", title: "light or dark", onclick: turn },
      "◐",
    );
    const walk = "↑ ↓ ← → walk through the graph · Enter folds a block";
    const hint = shown ? walk : `${walk} · “vs” or Shift+click compares`;
    return element(
      "nav",
      { class: "npr-toolbar" },
      element("label", {}, "colour by ", select),
      element("span", { class: "npr-legend" }),
      element("span", { class: "npr-hint" }, hint),
      dark,
    );
  }

  // The quantities that some response has.
  function offer(select) {
    const { columns, entropies, logprobs } = source.table;
    const known = { advantage: columns.advantage, entropy: entropies };
    Object.assign(known, { surprise: logprobs, worst: logprobs, sampled: logprobs });
    const names = Object.keys(QUANTITIES).filter((name) => known[name] ?? !(name in known));
    const chosen = select.value || names[0];
    const options = names.map((name) => element("option", { value: name }, QUANTITIES[name].name));
    select.replaceChildren(...options);
    select.value = chosen;
  }

  function turn() {
    const now = getComputedStyle(shell).colorScheme;
    const isDark =
      now === "dark" ||
      (now.includes("dark") &&
        now.includes("light") &&
        matchMedia("(prefers-color-scheme: dark)").matches);
    shell.style.colorScheme = isDark ? "light" : "dark";
    paint();
  }

  function paint() {
    const name = shell.querySelector(".npr-color").value;
    const quantity = QUANTITIES[name];
    for (const view of views) view.color(name, quantity);
    shell.querySelector(".npr-legend").replaceChildren(...legend(name, quantity));
  }

  function legend(name, quantity) {
    const entries =
      name === "kind"
        ? Object.entries(source.table.theme.kinds)
        : quantity.legend.map(([label, value]) => [label, quantity.nodeColor(value)]);
    return entries.map(([label, color]) =>
      element("span", {}, element("i", { style: `background:${color}` }), label),
    );
  }
}

