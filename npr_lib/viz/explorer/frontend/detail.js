// The selected segment: what it says, token by token, and what is known of it.

import { element, formula, shortened, visible } from "./dom.js";
import {
  QUANTITIES,
  entropy,
  kindColor,
  largest,
  mean,
  number,
  sampled,
  stepName,
  surprise,
  values,
} from "./scale.js";

const AT_ONCE = 1500; // tokens; more follow when one scrolls to them
const LISTED = 5; // equations; the rest is marked in the text
const TAG = /^<\/?(?:guideline|plan|step|takeaway)>$/;

const nats = (values) => `mean ${number(mean(values))}, most ${number(largest(values))} nats`;
const chanceOf = (surprise) => `p = ${number(100 * Math.exp(-surprise), 1)} %`;

// hovered(token or null): the pointer is on a token of the text. edits: what can be done with the
// segment, with its pane, or null; a click on a token says where a resampling begins.
export function makeDetail(tip, hovered, edits) {
  const head = element("div", { class: "npr-facts" });
  const text = element("div", { class: "npr-text", dir: "auto" });
  const pane = element(
    "section",
    { class: "npr-detail", "aria-label": "selected segment" },
    head,
    edits?.pane ?? null,
    text,
  );
  const watcher = new IntersectionObserver(
    (entries) => entries.some((entry) => entry.isIntersecting) && append(),
    { root: pane, rootMargin: "400px" },
  );
  let [record, segment, quantity, next, set] = [null, null, QUANTITIES.kind, 0, false];
  let begin = null; // the token to resample from
  return { pane, show, color };

  function show(newRecord, index) {
    const grown = segment?.name === newRecord.segments[index].name;
    const top = grown ? pane.scrollTop : 0;
    [record, segment] = [newRecord, newRecord.segments[index]];
    start(null);
    head.replaceChildren(
      element("h3", { style: `border-color:${kindColor(segment.kind)}` }, segment.name),
      segment.formulas.length ? setter() : "",
      ...notes(index),
      facts(),
    );
    write();
    pane.scrollTop = top;
  }

  function color(name) {
    quantity = QUANTITIES[name];
    if (segment) write();
  }

  // Between the tokens as they were written and the text with its formulas set.
  function setter() {
    const flip = (event) => {
      set = event.target.checked;
      write();
    };
    const box = element("input", { type: "checkbox", checked: set, onchange: flip });
    return element("label", { class: "npr-set" }, box, "set formulas");
  }

  function facts() {
    const size = segment.end - segment.start;
    const [first, last] = segment.positions;
    const surprises = values(record, segment, surprise);
    const entropies = values(record, segment, entropy);
    const own = values(record, segment, sampled);
    const known = {
      tokens: `${size.toLocaleString("en")} (index ${segment.start}–${segment.end - 1})`,
      positions: `${first}–${last}`,
      "KV slots": `${size.toLocaleString("en")} own, ${segment.shared.toLocaleString("en")} shared`,
      [`${stepName(record)}s`]: steps(),
      surprise: surprises.length ? nats(surprises) : null,
      entropy: entropies.length ? nats(entropies) : null,
      sampled: own.length ? `${own.filter(Boolean).length} of ${own.length}` : null,
    };
    const rows = Object.entries(known).filter(([, value]) => value !== null);
    return element(
      "div",
      { class: "npr-known" },
      ...rows.map(([name, value]) => element("div", {}, element("small", {}, name), value)),
    );
  }

  function steps() {
    if (segment.start < record.prompt_len) return "prefill";
    const own = record.steps.slice(
      segment.start - record.prompt_len,
      segment.end - record.prompt_len,
    );
    const [first, last] = [own[0], own.at(-1)];
    return first === last ? String(first) : `${first}–${last}`;
  }

  function notes(index) {
    const broken = record.violations.filter((violation) => violation.segment === index);
    const { suspect } = record;
    return [
      suspect?.segment === index && suspect.token !== null ? doubt(suspect.token) : "",
      ...broken.map(({ kind, message }) =>
        element("p", { class: "npr-note" }, `⚠ ${kind}: ${visible(message)}`),
      ),
      ...segment.false.slice(0, LISTED).map(([a, b]) => {
        const equation = segment.tokens.slice(a, b + 1).join("");
        return element("p", { class: "npr-note" }, `✗ does not hold: ${visible(equation)}`);
      }),
      segment.false.length > LISTED
        ? element("p", { class: "npr-note" }, `✗ and ${segment.false.length - LISTED} more`)
        : "",
    ];
  }

  function doubt(token) {
    const whole = segment.tokens.length !== segment.end - segment.start;
    const written = whole ? "" : ` “${shortened(segment.tokens[token - segment.start], 40)}”,`;
    const chance = chanceOf(surprise(record, token));
    const note = `? the policy was least sure here (guidelines apart):${written} ${chance}`;
    return element("p", { class: "npr-note" }, visible(note));
  }

  function write() {
    text.replaceChildren();
    next = 0;
    text.classList.toggle("npr-prose", set && segment.formulas.length > 0);
    if (set && segment.formulas.length) text.append(...prose());
    else append();
  }

  function prose() {
    const whole = segment.tokens.join("");
    const parts = [];
    let at = 0;
    for (const [source, tree] of segment.formulas) {
      const start = whole.indexOf(source, at);
      parts.push(visible(whole.slice(at, start)), formula(tree));
      at = start + source.length;
    }
    return [...parts, visible(whole.slice(at))];
  }

  function append() {
    watcher.disconnect();
    const last = Math.min(next + AT_ONCE, segment.tokens.length);
    const broken = new Map(
      record.violations
        .filter((violation) => record.segments[violation.segment] === segment)
        .map((violation) => [violation.token, violation]),
    );
    const spans = [];
    for (; next < last; next++) {
      if (broken.has(next)) spans.push(warning(broken.get(next)));
      spans.push(token(next));
    }
    text.append(...spans);
    if (next < segment.tokens.length) watcher.observe(spans.at(-1));
  }

  // From the token that was clicked on; again, or on another segment: from the segment's start.
  function start(token) {
    text.querySelector(".npr-from")?.classList.remove("npr-from");
    begin = token === begin ? null : token;
    text.querySelector(`[data-token="${begin}"]`)?.classList.add("npr-from");
    edits?.start(begin, segment.tokens[begin - segment.start]);
  }

  function warning({ kind, message }) {
    const label = `${kind}: ${message}`;
    return element("mark", { title: visible(label), "aria-label": visible(label) }, "⚠");
  }

  function token(i) {
    const written = segment.tokens[i];
    const whole = segment.tokens.length !== segment.end - segment.start;
    const t = segment.start + i;
    const value = whole ? null : quantity.token(record, t, segment);
    const classes = ["npr-token"];
    if (TAG.test(written)) classes.push("npr-tag");
    if (!whole && sampled(record, t) === 0) classes.push("npr-written");
    if (!whole && segment.false.some(([a, b]) => i >= a && i <= b)) classes.push("npr-false");
    const node = element("span", { class: classes.join(" "), "data-token": t }, visible(written));
    if (value !== null && value !== undefined)
      node.style.backgroundColor = quantity.tokenColor(value);
    if (whole) return node;
    if (t === record.suspect?.token) node.classList.add("npr-doubt");
    if (t === begin) node.classList.add("npr-from");
    if (segment.edits?.length && t >= record.prompt_len) {
      node.classList.add("npr-cuttable");
      node.addEventListener("click", () => start(t));
    }
    node.addEventListener("mousemove", (event) => {
      tip.show(event, `“${written}”`, known(t, i));
      hovered(t);
    });
    node.addEventListener("mouseleave", () => {
      tip.hide();
      hovered(null);
    });
    return node;
  }

  function writer(own) {
    if (own === null) return "";
    return own ? "sampled by the policy" : "written by the engine";
  }

  function known(t, i) {
    const logprob = surprise(record, t);
    const open = entropy(record, t);
    const own = sampled(record, t);
    return [
      logprob === null
        ? ""
        : `−log p ${number(logprob)} nats (${chanceOf(logprob)})`,
      open === null ? "" : `entropy ${number(open)} nats`,
      t < record.prompt_len ? "prompt" : writer(own),
      `token ${t}, position ${segment.positions[0] + i}`,
      t < record.prompt_len ? "" : `${stepName(record)} ${record.steps[t - record.prompt_len]}`,
    ];
  }
}
