// The timeline: a lane a branch, a cell a token, above it how many were decided at once.

import { PAD, axes, linear, makePanel } from "./canvas.js";
import { element, plural } from "./dom.js";
import { QUANTITIES, faded, kindColor, sampled, stepName } from "./scale.js";

const STRIP = 34; // px of the strip that shows how many branches decoded at once

export function timeline(state, tip, selected) {
  const labels = element("div", { class: "npr-lanes" });
  let scale = null;
  let known = null; // the record that byStep was made of
  let byStep = new Map(); // decode step -> [segment, token] of all tokens decided in it
  const panel = makePanel("timeline", "Timeline", state, tip, selected, paint, at);
  panel.room.prepend(labels);
  panel.update = () => {
    if (known !== state.record) sortByStep();
    panel.draw();
  };
  return panel;

  function sortByStep() {
    known = state.record;
    byStep = new Map();
    const { segments, steps, prompt_len: prompt, lanes, work } = known;
    segments.forEach((segment, index) => {
      for (let t = Math.max(segment.start, prompt); t < segment.end; t++) {
        const step = steps[t - prompt];
        if (!byStep.has(step)) byStep.set(step, []);
        byStep.get(step).push([index, t]);
      }
    });
    panel.room.style.minHeight = `${PAD.top + STRIP + PAD.bottom + 14 * lanes.length}px`;
    const busy = plural(busySteps(), known.ideal ? "ideal step" : "step");
    const title = `${plural(work, "token")} in ${busy}${known.ideal ? "" : " of the engine"}`;
    panel.caption.textContent = `Timeline: ${title}`;
  }

  function busySteps() {
    const { record } = state;
    const own = record.steps.filter((_, i) => record.sampled[i]);
    return new Set(own.length ? own : record.steps).size;
  }

  function laneHeight(height) {
    return Math.min(30, (height - PAD.top - STRIP - PAD.bottom) / state.record.lanes.length);
  }

  function paint(context, width, height, ink) {
    const { record } = state;
    const steps = [...byStep.keys()];
    const [low, high] = [
      steps.reduce((a, b) => Math.min(a, b)),
      steps.reduce((a, b) => Math.max(a, b)) + 1,
    ];
    const x = linear(low, high, PAD.left + 34, width - PAD.right);
    const tall = laneHeight(height);
    const top = PAD.top + STRIP;
    scale = { x, tall, top };
    const own = record.segments[state.chosen];
    drawLabels(tall, top, own);
    if (own.kind !== "prompt") {
      context.fillStyle = faded(kindColor(own.kind), 0.14);
      context.fillRect(x(low), top + own.lane * tall, x(high) - x(low), tall);
    }
    const cell = Math.max(1, x(low + 1) - x(low) - (x(low + 1) - x(low) > 4 ? 1 : 0));
    for (const { step, segment, t } of strongest(x)) {
      for (const color of tokenColors(state, segment, t)) {
        context.fillStyle = color;
        context.fillRect(x(step), top + segment.lane * tall + 2, cell, tall - 4);
      }
    }
    drawWidths(context, x, ink);
    outline(context, x, top, tall, own, ink);
    axes(context, ink, width + 34, height, x, null, stepName(record), "");
  }

  // Of the tokens that fall on one pixel of a lane the one with the largest value, else the first
  // that the policy chose: see-through colours must not pile up.
  function strongest(x) {
    const found = new Map();
    for (const [step, tokens] of byStep) {
      for (const [index, t] of tokens) {
        const segment = state.record.segments[index];
        const key = segment.lane * 1e5 + Math.floor(x(step));
        const rank = state.quantity.token(state.record, t, segment) ?? sampled(state.record, t) - 9;
        if (!(found.get(key)?.rank >= rank)) found.set(key, { step, segment, t, rank });
      }
    }
    return found.values();
  }

  function drawLabels(tall, top, own) {
    labels.style.top = `${top}px`;
    labels.replaceChildren(
      ...state.record.lanes.map((name, lane) => {
        const first = state.record.segments.findIndex(
          (s) => s.lane === lane && s.kind !== "prompt",
        );
        const chosen = own.lane === lane && own.kind !== "prompt";
        return element(
          "button",
          {
            class: chosen ? "npr-lane selected" : "npr-lane",
            "data-lane": lane,
            style: `height:${tall}px`,
            onclick: () => first >= 0 && selected(first),
          },
          name,
        );
      }),
    );
  }

  function drawWidths(context, x, ink) {
    const { record } = state;
    const counts = [...byStep].map(([step, tokens]) => [
      step,
      tokens.filter(([, t]) => sampled(record, t) !== 0).length,
    ]);
    const most = Math.max(1, ...new Set(counts.map(([, n]) => n)));
    const base = PAD.top + STRIP - 6;
    context.fillStyle = ink;
    context.globalAlpha = 0.45;
    context.beginPath();
    for (const [step, n] of counts) {
      const tall = ((STRIP - 10) * n) / most;
      context.rect(x(step), base - tall, Math.max(1, x(step + 1) - x(step)), tall);
    }
    context.fill();
    context.globalAlpha = 1;
    context.textAlign = "right";
    context.fillText(`${most} at once`, PAD.left + 28, PAD.top + 9);
  }

  function outline(context, x, top, tall, own, ink) {
    const { record } = state;
    if (own.kind === "prompt") return;
    const steps = record.steps.slice(own.start - record.prompt_len, own.end - record.prompt_len);
    context.strokeStyle = ink;
    context.lineWidth = 1.5;
    context.strokeRect(
      x(steps[0]) - 1,
      top + own.lane * tall + 1,
      x(steps.at(-1) + 1) - x(steps[0]) + 2,
      tall - 2,
    );
    if (state.token !== null && state.token >= record.prompt_len) {
      context.fillStyle = ink;
      context.fillRect(
        x(record.steps[state.token - record.prompt_len] + 0.5) - 1,
        PAD.top,
        2,
        top - PAD.top + tall * record.lanes.length,
      );
    }
  }

  function at(x, y) {
    const step = Math.floor(scale.x.inverse(x));
    const tokens = byStep.get(step);
    if (!tokens) return null;
    const lane = Math.floor((y - scale.top) / scale.tall);
    const { record } = state;
    const lines = tokens.slice(0, 8).map(([index, t]) => {
      const segment = record.segments[index];
      const text =
        segment.tokens.length === segment.end - segment.start
          ? segment.tokens[t - segment.start]
          : "";
      return `${segment.name}: ${text}${sampled(record, t) === 0 ? " (engine)" : ""}`;
    });
    const here = tokens.find(([index]) => record.segments[index].lane === lane) ?? tokens[0];
    const title = `${stepName(record)} ${step}: ${plural(tokens.length, "token")}`;
    return { segment: here[0], title, lines };
  }
}

// The kind, pale where the engine wrote, or paler under a quantity.
function tokenColors(state, segment, t) {
  const own = sampled(state.record, t) !== 0;
  if (state.quantity === QUANTITIES.kind) return [faded(kindColor(segment.kind), own ? 0.9 : 0.35)];
  const value = state.quantity.token(state.record, t, segment);
  const ground = faded(kindColor(segment.kind), 0.2);
  return value === null || value === undefined
    ? [ground]
    : [ground, state.quantity.tokenColor(value)];
}
