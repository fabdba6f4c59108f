// The table of rollouts: sorted, filtered, searched, grouped by problem; only rows in sight exist.

import { element, plural, shortened, visible } from "./dom.js";
import { number } from "./scale.js";

const ROW = 26;
const MOST_CHOICES = 12; // a column of no more values can be chosen from
const CHOSEN_FROM = ["verdict", "stage", "checkpoint", "temperature", "mode", "finish_reason"];
const WIDTHS = {
  ...{ verdict: 22, problem: 190, stage: 72, checkpoint: 72, temperature: 30, sample: 24 },
  ...{ edit: 150, origin: 48, seed: 40, branches: 66 },
  ...{ violations: 150, speedup: 66, advantage: 66, mode: 72, finish_reason: 52, answer: 64 },
};
const CONDITION = /^([\w/#]+?)(>=|<=|!=|=|<|>)(.+)$/;
const HINT = "words, or conditions on columns: widest>=3 work<90 reward=-1";

// chosen(row, beside): a row was chosen, to be shown alone or beside the present one.
export function makeTable(source, chosen) {
  let { columns, headings, groups, size } = source.table;
  const state = { sort: null, up: false, grouped: true, words: "", found: null };
  const picked = {}; // name of a menu -> the text of its chosen option
  const passes = {}; // name of a menu, or "search" -> whether a row passes
  const inSight = new Map(); // number of a line -> its element
  let lines = [];
  let open = [];
  const canvas = element("div", { class: "npr-rows" });
  const head = element("div", { class: "npr-row npr-head", role: "row" });
  const viewport = element(
    "div",
    { class: "npr-viewport", tabindex: 0, role: "grid", onscroll: draw, onkeydown: move },
    head,
    canvas,
  );
  const count = element("span", { class: "npr-count", role: "status" });
  const menus = element("div", { class: "npr-menus" });
  const pane = element("section", { class: "npr-table" }, tools(), viewport);
  new ResizeObserver(draw).observe(viewport);
  refresh();
  return { pane, show, renew };

  // The source has another table: more rows, or more columns.
  function renew() {
    ({ columns, headings, groups, size } = source.table);
    fillMenus();
    refresh();
  }

  function tools() {
    const search = element("input", {
      type: "search",
      placeholder: "search",
      title: HINT,
      "aria-label": HINT,
      class: "npr-search",
      oninput: (event) => look(event.target.value),
    });
    const group = element("input", {
      type: "checkbox",
      checked: true,
      class: "npr-grouped",
      onchange: (event) => {
        state.grouped = event.target.checked;
        refresh();
      },
    });
    const box = element("label", {}, group, "by problem");
    fillMenus();
    const narrow = element("div", { class: "npr-filters" }, menus, box);
    return element("div", { class: "npr-tools" }, search, narrow, count);
  }

  // What was chosen stays chosen, as long as there is such a value.
  function fillMenus() {
    const { search } = passes;
    for (const name of Object.keys(passes)) delete passes[name];
    passes.search = search;
    menus.replaceChildren(...filters());
  }

  function filters() {
    const made = [];
    for (const name of CHOSEN_FROM.filter((one) => columns[one])) {
      const values = [...new Set(columns[name])].filter((value) => value !== null);
      if (values.length > MOST_CHOICES) continue;
      made.push(
        choice(
          name,
          values.map((value) => [String(value), (row) => columns[name][row] === value]),
        ),
      );
    }
    if (columns.violations) {
      const kinds = new Set(columns.violations.flatMap((text) => text.split(", ")).filter(Boolean));
      const has = (kind) => (row) => columns.violations[row].split(", ").includes(kind);
      made.push(
        choice("violations", [
          ["none", (row) => !columns.violations[row]],
          ["any", (row) => columns.violations[row] !== ""],
          ...[...kinds].sort().map((kind) => [kind, has(kind)]),
        ]),
      );
    }
    return made;
  }

  function choice(name, options) {
    const label = name === "verdict" ? "right or wrong" : headings[name];
    const select = element(
      "select",
      {
        "aria-label": label,
        "data-filter": name,
        onchange: () => {
          picked[name] = options[select.value]?.[0];
          passes[name] = options[select.value]?.[1];
          refresh();
        },
      },
      element("option", { value: "" }, label),
      ...options.map(([text], i) => element("option", { value: i }, visible(text))),
    );
    const at = options.findIndex(([text]) => text === picked[name]);
    if (at >= 0) [select.value, passes[name]] = [at, options[at][1]];
    return select;
  }

  // Conditions ("work>=90") are read here, the rest is looked for in the texts.
  async function look(text) {
    const parts = text.trim().split(/\s+/);
    const conditions = parts.map((part) => part.match(CONDITION)).filter((m) => m && named(m[1]));
    passes.search = (row) =>
      conditions.every(([, name, sign, value]) => holds(columns[named(name)][row], sign, value));
    const taken = new Set(conditions.map((match) => match[0]));
    const words = parts.filter((part) => !taken.has(part)).join(" ");
    state.words = words;
    const found = words ? await source.find(words) : null;
    if (state.words !== words) return; // typed on meanwhile
    state.found = found;
    refresh();
  }

  // A column by its own name or by its heading.
  function named(name) {
    return columns[name] ? name : Object.keys(columns).find((other) => headings[other] === name);
  }

  function holds(have, sign, value) {
    const wanted = Number(value);
    const [a, b] = Number.isNaN(wanted) ? [String(have), value] : [have, wanted];
    if (have === null) return false;
    return { ">=": a >= b, "<=": a <= b, "=": a === b, "!=": a !== b, "<": a < b, ">": a > b }[
      sign
    ];
  }

  function refresh() {
    const tests = Object.values(passes).filter(Boolean);
    let rows = Array.from({ length: size }, (_, i) => i).filter((row) =>
      tests.every((test) => test(row)),
    );
    if (state.found) rows = rows.filter((row) => state.found.has(row));
    if (state.sort) rows.sort(compare(columns[state.sort], state.up ? 1 : -1));
    const together = Map.groupBy(rows, (row) => groups[row]);
    lines = state.grouped
      ? [...together].flatMap(([, own]) => [{ group: own }, ...own.map((row) => ({ row }))])
      : rows.map((row) => ({ row }));
    count.textContent = `${plural(rows.length, "rollout")} of ${plural(together.size, "problem")}`;
    canvas.style.height = `${lines.length * ROW}px`;
    canvas.replaceChildren();
    inSight.clear();
    drawHead();
    draw();
  }

  function compare(values, sign) {
    return (a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === y) return a - b;
      if (x === null || y === null) return x === null ? 1 : -1;
      return x < y ? -sign : sign;
    };
  }

  function shownColumns() {
    return Object.keys(columns).filter((name) => !(state.grouped && name === "problem"));
  }

  function drawHead() {
    const widths = shownColumns().map((name) => `${WIDTHS[name] ?? 48}px`);
    pane.style.setProperty("--npr-columns", widths.join(" "));
    pane.style.setProperty("--npr-width", `calc(${widths.join(" + ")})`);
    head.replaceChildren(
      ...shownColumns().map((name) => {
        const arrow = state.sort === name ? (state.up ? " ↑" : " ↓") : "";
        const sort = () => {
          state.up = state.sort === name && !state.up;
          state.sort = name;
          refresh();
        };
        const label = (headings[name] || "✓") + arrow;
        const isNumber = typeof columns[name].find((value) => value !== null) === "number";
        const title = `sort by ${headings[name] || "verdict"}`;
        return element(
          "button",
          { class: isNumber ? "npr-number" : "", "data-sort": name, onclick: sort, title },
          label,
        );
      }),
    );
  }

  function draw() {
    const first = Math.max(0, Math.floor(viewport.scrollTop / ROW) - 4);
    const last = Math.ceil((viewport.scrollTop + viewport.clientHeight) / ROW) + 4;
    for (const [i, node] of inSight) {
      if (i >= first && i < last) continue;
      node.remove();
      inSight.delete(i);
    }
    for (let i = first; i < Math.min(last, lines.length); i++) {
      if (inSight.has(i)) continue;
      inSight.set(i, drawLine(lines[i], i));
      canvas.append(inSight.get(i));
    }
  }

  function drawLine(line, i) {
    const style = `top:${i * ROW}px`;
    if (line.group) {
      const verdicts = line.group.map((row) => columns.verdict?.[row]).filter(Boolean);
      const right = verdicts.filter((verdict) => verdict === "right").length;
      const score = verdicts.length
        ? `${right} of ${verdicts.length} right`
        : plural(line.group.length, "rollout");
      return element(
        "div",
        { class: "npr-group", style },
        element(
          "div",
          {},
          element("span", { class: "npr-name" }, title(line.group[0])),
          element("span", { class: "npr-score" }, score),
        ),
      );
    }
    const beside = element(
      "button",
      {
        class: "npr-beside",
        title: "show beside the present one",
        onclick: (event) => pick(event, true),
      },
      "vs",
    );
    function pick(event, side) {
      event.stopPropagation();
      chosen(line.row, side);
    }
    return element(
      "div",
      {
        class: open.includes(line.row) ? "npr-row selected" : "npr-row",
        role: "row",
        style,
        "data-row": line.row,
        onclick: (event) => pick(event, event.shiftKey),
      },
      ...shownColumns().map((name) => cell(name, columns[name][line.row])),
      beside,
    );
  }

  function cell(name, value) {
    if (name === "verdict" && value !== null) {
      return element("span", { class: value, title: value }, value === "right" ? "✓" : "✗");
    }
    const isNumber = typeof value === "number";
    const text =
      value === null ? "–" : isNumber ? written(value) : visible(shortened(String(value), 80));
    return element("span", { class: isNumber ? "npr-number" : "", title: text }, text);
  }

  function title(row) {
    const text = columns.problem?.[row] ?? `rollout ${row}`;
    return visible(shortened(String(text), 160));
  }

  function move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    let i = lines.findIndex((line) => line.row === open[0]) + step;
    while (lines[i] && lines[i].group) i += step;
    if (!lines[i]) return;
    chosen(lines[i].row, false);
    const top = i * ROW;
    if (top < viewport.scrollTop) viewport.scrollTop = top - ROW;
    if (top + 2 * ROW > viewport.scrollTop + viewport.clientHeight)
      viewport.scrollTop = top + 2 * ROW - viewport.clientHeight;
  }

  function show(rows) {
    open = rows;
    for (const [i, node] of inSight) node.classList.toggle("selected", open.includes(lines[i].row));
  }
}

function written(value) {
  return Number.isInteger(value) ? String(value).replace("-", "−") : number(value);
}
