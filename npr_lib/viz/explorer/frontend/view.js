// One trajectory: its graph, the selected segment, and the drawings linked to it.

import { element, plural, shortened, visible } from "./dom.js";
import { number, surprise } from "./scale.js";
import { makeGraph } from "./graph.js";
import { makeDetail } from "./detail.js";
import { makeEdits } from "./edits.js";
import { makePanels } from "./panels.js";

// What the explorer shows of a trajectory.
export const VIEWS = ["graph", "text", "timeline", "mask", "positions"];

// Where an answer may have gone wrong: {segment} that says something false, or else that of the most
// surprising {token}; guidelines apart, since the order of plans is free to choose.
function suspect(record) {
  const { segments } = record;
  let found = { segment: segments.findIndex((segment) => segment.false.length > 0), token: null };
  if (found.segment >= 0) return found;
  let most = 0;
  segments.forEach(({ kind, start, end }, segment) => {
    for (let token = start; kind !== "guideline" && token < end; token++) {
      if ((surprise(record, token) ?? 0) <= most) continue;
      most = surprise(record, token);
      found = { segment, token };
    }
  });
  return found;
}

// What tells a rollout from the others of its table.
function titleOf({ columns, size }, row) {
  const edit = columns.edit?.[row];
  if (edit) return `row ${columns.origin[row]}, ${edit} · seed ${columns.seed[row]}`;
  const parts = ["stage", "checkpoint", "step"]
    .filter((name) => columns[name])
    .map((name) => columns[name][row]);
  const temperature = columns.temperature?.[row] ?? null;
  if (temperature !== null) parts.push(temperature === 0 ? "greedy" : `T = ${temperature}`);
  if (columns.sample) parts.push(`sample ${columns.sample[row]}`);
  return visible(parts.join(" · ") || (size > 1 ? `rollout ${row}` : ""));
}

// selected(name): a segment of that name was chosen here; changed(): another response is shown;
// edited(row, segment, label, text, token): something is to be done with it, promise of what went
// wrong; left out where nothing can be. views: which of VIEWS and PANELS are shown.
export function makeView(tip, source, views, heard) {
  const { selected, changed, compared, edited, closed } = heard;
  const graph = makeGraph(tip, (index) => choose(index));
  const edits = edited ? makeEdits((...what) => edited(row, ...what)) : null;
  const detail = makeDetail(tip, (token) => panels.set({ token }), edits);
  const panels = makePanels(tip, (index) => choose(index), views);
  const head = element("header", { class: "npr-view-head" });
  const middle = [["graph", graph.pane], ["text", detail.pane]]
    .filter(([name]) => views.includes(name))
    .map(([, pane]) => pane);
  const pane = element(
    "article",
    { class: "npr-view" },
    head,
    middle.length ? element("div", { class: "npr-middle" }, ...middle) : null,
    panels.pane,
  );
  let [row, record, name] = [null, null, null]; // name: of the selected segment
  let picked = false; // by a person: then it stays selected while the response grows
  return {
    pane,
    open,
    grow,
    renew: () => record && drawHead(),
    chooseNamed,
    color,
    compare: graph.compare,
    row: () => row,
    record: () => record,
    chosen: () => name,
  };

  // Shows a row; the segment of the given name is selected, else what may be wrong, else a branch.
  async function open(next, wanted) {
    row = next;
    const found = await source.record(next);
    if (row === next) update(found, wanted);
  }

  // The response as it is now: what was picked stays selected, else the newest part is.
  function grow(next) {
    if (record === null) return update(next);
    show(next, true);
    const at = picked ? next.segments.findIndex((segment) => segment.name === name) : -1;
    choose(at >= 0 ? at : next.segments.length - 1, false, at < 0);
    changed();
  }

  function show(next, grown) {
    const { advantage, verdict } = source.table.columns;
    record = { ...next, advantage: advantage?.[row] ?? null };
    record.suspect = verdict?.[row] === "wrong" ? suspect(record) : null;
    pane.dataset.row = row;
    drawHead();
    graph.show(record, grown);
    panels.set({ token: null });
  }

  function update(next, wanted) {
    show(next, false);
    picked = false;
    const { segments } = record;
    const named = segments.findIndex((segment) => segment.name === wanted);
    const branch = segments.findIndex((segment) => segment.path.length > 0);
    const wrong = record.suspect?.segment ?? -1;
    choose([named, wrong, branch].find((index) => index >= 0) ?? segments.length - 1, false);
    changed();
  }

  // tell: a person chose it, and whoever is beside hears of it.
  function choose(index, tell = true, scroll = true) {
    name = record.segments[index].name;
    panels.set({ record, chosen: index });
    graph.select(index, scroll);
    edits?.show(record.segments[index], index);
    detail.show(record, index);
    if (!tell) return;
    picked = true;
    selected(name);
  }

  function chooseNamed(wanted) {
    const index = record.segments.findIndex((segment) => segment.name === wanted);
    if (index >= 0) choose(index, false);
  }

  function color(name, quantity) {
    graph.color(name);
    detail.color(name);
    panels.set({ quantity });
  }

  function drawHead() {
    const { columns } = source.table;
    const verdict = columns.verdict?.[row];
    const problem = columns.problem?.[row] ?? "";
    const expected = columns.answer?.[row];
    const blocks = new Set(
      record.segments.flatMap((segment) => segment.path.map(([block]) => block)),
    );
    const facts = [
      titleOf(source.table, row),
      record.boxed === null ? "no answer" : `answer ${visible(shortened(record.boxed, 40))}`,
      expected === undefined || expected === null
        ? ""
        : `expected ${visible(shortened(String(expected), 40))}`,
      blocks.size ? plural(blocks.size, "block") : "no parallel block",
      `work ${record.work.toLocaleString("en")}`,
      `span ${record.span.toLocaleString("en")}`,
      `work/span ${number(record.work / record.span)}×`,
      record.mode === "sequential" && blocks.size
        ? "written as branches, decoded one after the other"
        : "",
      ending(),
      record.violations.length ? `⚠ ${plural(record.violations.length, "violation")}` : "",
    ];
    head.replaceChildren(
      element(
        "div",
        { class: "npr-title" },
        verdict
          ? element(
              "span",
              { class: `npr-badge ${verdict}` },
              verdict === "right" ? "✓ right" : "✗ wrong",
            )
          : null,
        element(
          "b",
          { title: visible(shortened(problem, 2000)) },
          visible(shortened(problem, 200)),
        ),
      ),
      element(
        "div",
        { class: "npr-chips" },
        ...facts.filter(Boolean).map((fact) => element("span", {}, fact)),
      ),
      element(
        "div",
        { class: "npr-actions" },
        others(),
        closed
          ? element("button", { class: "npr-close", title: "close", onclick: closed }, "✕")
          : null,
      ),
    );
  }

  function ending() {
    const { ended, ideal, mode } = record;
    if (ideal) return `as ideal parallel decoding${ended ? `, ended: ${visible(ended)}` : ""}`;
    return ended === null ? "decoding …" : `${mode}, ended: ${visible(shortened(ended, 80))}`;
  }

  function others() {
    const { groups } = source.table;
    const rows = groups.flatMap((group, other) =>
      group === groups[row] && other !== row ? [other] : [],
    );
    if (closed || !rows.length) return null;
    const verdicts = source.table.columns.verdict;
    const begin = (event) => {
      compared(Number(event.target.value));
      event.target.value = "";
    };
    const mark = (other) => ({ right: "✓ ", wrong: "✗ " })[verdicts?.[other]] ?? "";
    const label = (other) => `${mark(other)}${titleOf(source.table, other)}`;
    return element(
      "select",
      { class: "npr-compare", "aria-label": "compare with another response", onchange: begin },
      element("option", { value: "" }, "compare with …"),
      ...rows.map((other) => element("option", { value: other }, label(other))),
    );
  }
}
