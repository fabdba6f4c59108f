// The fork/join drawing: top to bottom in the order of thought, branches side by side.

import { drawn, element, plural, visible } from "./dom.js";
import { QUANTITIES, entropy, faded, kindColor, mean, number, surprise, values } from "./scale.js";
import { GAP, columnOf, edgesBetween, neighbour, place } from "./tree.js";

const CHARACTER = 6.7; // px, of the text in a box
const LINES = 3;
const TAGS = /<\/?(?:guideline|plan|step|takeaway)>/g;

// selected(index): a segment was chosen.
export function makeGraph(tip, selected) {
  const stage = element("div", { class: "npr-stage" });
  const pane = element(
    "div",
    {
      class: "npr-graph",
      tabindex: 0,
      role: "tree",
      "aria-label": "reasoning graph",
      onkeydown: press,
    },
    stage,
  );
  const collapsed = new Set();
  let record = null;
  let known = null; // the texts of the response beside this one
  let chosen = 0;
  let quantity = QUANTITIES.kind;
  let drawnAt = null; // the width that the pane had then
  // In the next frame: what is drawn may change the pane's height, which the observer would hear of.
  new ResizeObserver(() => {
    if (record && pane.clientWidth !== drawnAt) requestAnimationFrame(draw);
  }).observe(pane);
  return { pane, show, select, color, compare };

  // grown: it is the same response with more in it.
  function show(next, grown) {
    if (!grown) collapsed.clear();
    chosen = Math.min(chosen, next.segments.length - 1);
    record = next;
    draw();
  }

  // Marks what the other response (null: none) does not say, whatever the order of its branches.
  function compare(other) {
    known = other && new Set(other.segments.map((segment) => textOf(segment)));
    if (record) draw();
  }

  function isNew(segment) {
    return known !== null && !known.has(textOf(segment));
  }

  function color(name) {
    quantity = QUANTITIES[name];
    if (record) draw();
  }

  function draw() {
    const { segments } = record;
    drawnAt = pane.clientWidth;
    const tree = columnOf(
      segments,
      segments.map((_, i) => i),
    );
    const { boxes, width, height } = place(tree, drawnAt - 28, collapsed, linesOf);
    const longest = Math.max(
      ...segments.map((s) => (s.kind === "prompt" ? 0 : s.end - s.start)),
      1,
    );
    stage.classList.toggle("npr-sequential", record.mode === "sequential");
    stage.style.width = `${width}px`;
    stage.style.height = `${height + 8}px`;
    const edges = edgesBetween(record, boxes).map(drawEdge);
    stage.replaceChildren(
      drawn("svg", { width, height, "aria-hidden": "true" }, ...edges),
      ...boxes.map((box) => (box.branches ? drawCollapsed(box) : drawBox(box, longest))),
    );
    mark(false);
  }

  // Plans line by line; of the rest a beginning, without the tags that the box stands for.
  function linesIn(segment) {
    if (segment.kind !== "guideline") return [textOf(segment).slice(0, 400)];
    const plans = segment.tokens.join("").split("<plan>").slice(1, 9);
    return plans.map((plan) => plan.replaceAll(TAGS, "").slice(0, 200));
  }

  function linesOf(index, width) {
    const segment = record.segments[index];
    if (segment.kind === "guideline") return Math.max(1, linesIn(segment).length);
    return Math.min(
      LINES,
      Math.max(1, Math.ceil((textOf(segment).slice(0, 400).length * CHARACTER) / (width - 18))),
    );
  }

  function drawBox(box, longest) {
    const segment = record.segments[box.segment];
    const tokens = segment.end - segment.start;
    const value = quantity.node(record, segment);
    const hue = kindColor(segment.kind);
    const fill =
      value === null
        ? faded(hue, quantity === QUANTITIES.kind ? 0.16 : 0.06)
        : quantity.nodeColor(value);
    const broken = record.violations.filter((violation) => violation.segment === box.segment);
    const flags = [broken.length && "⚠", segment.false.length && "✗", isNew(segment) && "≠"];
    const share = segment.kind === "prompt" ? 0 : (100 * tokens) / longest;
    const fold = segment.kind === "guideline" && blockAfter(box.segment) !== null;
    return element(
      "div",
      {
        class: "npr-box",
        role: "treeitem",
        "data-segment": box.segment,
        "aria-label": `${segment.name}, ${plural(tokens, "token")}`,
        style: `${position(box)};border-color:${hue};background-color:${fill}`,
        onclick: () => selected(box.segment),
        onmousemove: (event) => tip.show(event, segment.name, summary(segment, broken)),
        onmouseleave: tip.hide,
      },
      element(
        "div",
        { class: "npr-box-head" },
        element("b", {}, segment.name),
        element("span", { class: "npr-flags" }, flags.filter(Boolean).join("")),
        element(
          "span",
          { class: "npr-value" },
          value === null ? `${tokens} tok` : quantity.write(value),
        ),
        fold ? foldButton(blockAfter(box.segment), false) : null,
      ),
      ...linesIn(segment).map((line) =>
        element(
          "div",
          {
            class: "npr-line",
            style: `-webkit-line-clamp:${segment.kind === "guideline" ? 1 : LINES}`,
          },
          visible(line),
        ),
      ),
      element("div", {
        class: "npr-length",
        style: `width:${share}%;background:${hue}`,
      }),
    );
  }

  function drawCollapsed(box) {
    const label = `${plural(box.branches.length, "branch")}, ${box.tokens} tokens`;
    return element(
      "div",
      {
        class: "npr-box npr-collapsed",
        role: "treeitem",
        "aria-expanded": "false",
        "data-block": box.block,
        style: position(box),
        onclick: () => toggle(box.block),
      },
      element(
        "div",
        { class: "npr-box-head" },
        element("b", {}, label),
        foldButton(box.block, true),
      ),
    );
  }

  function foldButton(block, closed) {
    const flip = (event) => {
      event.stopPropagation();
      toggle(block);
    };
    return element(
      "button",
      { class: "npr-fold", title: closed ? "expand (Enter)" : "collapse (Enter)", onclick: flip },
      closed ? "+" : "−",
    );
  }

  function position({ x, y, width, height }) {
    return `left:${x}px;top:${y}px;width:${width}px;height:${height}px`;
  }

  function drawEdge([upper, lower]) {
    const [x0, y0] = [upper.x + upper.width / 2, upper.y + upper.height];
    const [x1, y1] = [lower.x + lower.width / 2, lower.y];
    const bend = Math.max(y0, y1 - GAP.y);
    const half = (bend + y1) / 2;
    const path = `M${x0},${y0}L${x0},${bend}C${x0},${half} ${x1},${half} ${x1},${y1}`;
    return drawn("path", { d: path, "data-edge": `${nameOf(upper)}-${nameOf(lower)}` });
  }

  function nameOf(box) {
    return box.segment ?? `block${box.block}`;
  }

  function textOf(segment) {
    const text = segment.tokens.join("").replaceAll(TAGS, "").trim();
    return segment.kind === "step" ? text.replace(/^\d+\s*:/, "") : text;
  }

  function summary(segment, broken) {
    const surprises = values(record, segment, surprise);
    const entropies = values(record, segment, entropy);
    const [first, last] = segment.positions;
    return [
      `${plural(segment.end - segment.start, "token")} at positions ${first}–${last}`,
      surprises.length
        ? `mean surprise ${number(mean(surprises))} nats`
        : record.ideal
          ? ""
          : "not sampled",
      entropies.length ? `mean entropy ${number(mean(entropies))} nats` : "",
      ...broken.map((violation) => `⚠ ${violation.message}`),
      segment.false.length
        ? `✗ ${plural(segment.false.length, "equation")} that does not hold`
        : "",
      isNew(segment) ? "≠ no part of the other response reads like this" : "",
      textOf(segment),
    ];
  }

  // The block that the guideline at `index` opens: that of the first branch behind it.
  function blockAfter(index) {
    const { path } = record.segments[index];
    const next = record.segments[index + 1];
    return next && next.path.length > path.length ? next.path[path.length][0] : null;
  }

  function toggle(block) {
    if (!collapsed.delete(block)) collapsed.add(block);
    draw();
  }

  function select(index, scroll = true) {
    chosen = index;
    const path = record.segments[index].path.map(([block]) => block);
    const hidden = path.filter((block) => collapsed.has(block));
    for (const block of hidden) collapsed.delete(block);
    if (hidden.length) draw();
    mark(scroll);
  }

  function mark(scroll) {
    const blocks = record.segments[chosen].path.map(([block]) => String(block));
    for (const box of stage.querySelectorAll(".npr-box")) {
      const own = box.dataset.segment === String(chosen) || blocks.includes(box.dataset.block);
      box.classList.toggle("selected", own);
      box.setAttribute("aria-selected", own);
      if (own && scroll) reveal(box);
    }
  }

  // scrollIntoView would move the notebook, too.
  function reveal(box) {
    const [room, own] = [pane.getBoundingClientRect(), box.getBoundingClientRect()];
    pane.scrollTop +=
      Math.min(0, own.top - room.top - 8) || Math.max(0, own.bottom - room.bottom + 8);
    pane.scrollLeft +=
      Math.min(0, own.left - room.left - 8) || Math.max(0, own.right - room.right + 8);
  }

  function press(event) {
    if (event.key === "Enter" || event.key === " ") {
      const { kind, path } = record.segments[chosen];
      const block = kind === "guideline" ? blockAfter(chosen) : path.at(-1)?.[0];
      if (block !== null && block !== undefined) toggle(block);
    } else if (event.key.startsWith("Arrow")) selected(neighbour(record, chosen, event.key));
    else return;
    event.preventDefault();
  }
}
