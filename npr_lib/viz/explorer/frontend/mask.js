// The attention mask: who sees whom, to scale, by token where there is room.

import { PAD, axes, linear, makePanel } from "./canvas.js";
import { faded, highColor, kindColor } from "./scale.js";

const BY_TOKEN = 3; // px a token from which on single tokens are shown

export function mask(state, tip, selected) {
  let scale = null;
  const panel = makePanel("mask", "Attention mask", state, tip, selected, paint, at);
  panel.update = panel.draw;
  return panel;

  function total() {
    return state.record.segments.at(-1).end;
  }

  function paint(context, width, height, ink) {
    const { segments } = state.record;
    const side = Math.min(width - PAD.left - PAD.right, height - PAD.top - PAD.bottom);
    const x = linear(0, total(), PAD.left, PAD.left + side);
    const y = linear(0, total(), PAD.top, PAD.top + side);
    scale = { x, y };
    const single = side / total() >= BY_TOKEN;
    panel.caption.textContent = `Attention mask, by ${single ? "token" : "segment"}`;
    segments.forEach((query, q) => {
      const strong = q === state.chosen ? 1 : 0.5;
      for (const key of segments.slice(0, q)) {
        context.fillStyle = hides(query, key.start)
          ? faded(highColor(), 0.2)
          : faded(kindColor(key.kind), strong * 0.85);
        context.fillRect(
          x(key.start),
          y(query.start),
          x(key.end) - x(key.start),
          y(query.end) - y(query.start),
        );
      }
      context.fillStyle = faded(kindColor(query.kind), strong * 0.85);
      drawOwn(context, query, single);
    });
    const own = segments[state.chosen];
    context.strokeStyle = ink;
    context.lineWidth = 1.5;
    context.strokeRect(x(0), y(own.start), x(own.end) - x(0), y(own.end) - y(own.start));
    if (state.token !== null) {
      context.fillStyle = ink;
      context.fillRect(x(0), y(state.token), x(state.token + 1) - x(0), Math.max(1, y(1) - y(0)));
    }
    axes(
      context,
      ink,
      PAD.left + side + PAD.right,
      PAD.top + side + PAD.bottom,
      x,
      y,
      "seen token (pale red: hidden sibling)",
      "seeing token",
    );
  }

  // Within a segment a token sees itself and what is before it.
  function drawOwn(context, { start, end }, single) {
    const { x, y } = scale;
    if (!single) {
      context.beginPath();
      context.moveTo(x(start), y(start));
      context.lineTo(x(start), y(end));
      context.lineTo(x(end), y(end));
      context.fill();
      return;
    }
    for (let t = start; t < end; t++)
      context.fillRect(x(start), y(t), x(t + 1) - x(start), y(t + 1) - y(t) - 0.5);
  }

  function hides(query, token) {
    return query.hidden.some(([low, high]) => token >= low && token < high);
  }

  function at(px, py) {
    const [k, q] = [Math.floor(scale.x.inverse(px)), Math.floor(scale.y.inverse(py))];
    if (k < 0 || q < 0 || k >= total() || q >= total()) return null;
    const { segments } = state.record;
    const of = (t) => segments.findIndex((segment) => t < segment.end);
    const [query, key] = [segments[of(q)], segments[of(k)]];
    const verdict =
      k > q ? "comes later" : hides(query, k) ? "is hidden: a sibling branch" : "is seen";
    return {
      segment: of(q),
      title: `${query.name}, token ${q}`,
      lines: [`token ${k} (${key.name}) ${verdict}`],
    };
  }
}
