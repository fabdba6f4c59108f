// Positions against token index: sibling branches begin at one position, so the line falls back.

import { PAD, axes, linear, makePanel } from "./canvas.js";
import { plural } from "./dom.js";
import { faded, kindColor } from "./scale.js";

export function positions(state, tip, selected) {
  let scale = null;
  const panel = makePanel("positions", "Positions", state, tip, selected, paint, at);
  panel.update = () => {
    const { work, span } = state.record;
    const title = `${plural(work, "token")} on ${span.toLocaleString("en")}`;
    panel.caption.textContent = `Positions: ${title}`;
    panel.draw();
  };
  return panel;

  function paint(context, width, height, ink) {
    const { segments, prompt_len: prompt, span } = state.record;
    const x = linear(0, segments.at(-1).end, PAD.left, width - PAD.right);
    const y = linear(0, prompt + span, height - PAD.bottom, PAD.top);
    scale = { x, y };
    segments.forEach((segment, index) => {
      const [first, last] = segment.positions;
      context.strokeStyle = faded(kindColor(segment.kind), 1);
      context.lineWidth = index === state.chosen ? 5 : 2;
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(x(segment.start), y(first));
      context.lineTo(x(segment.end - 1) + 0.5, y(last));
      context.stroke();
    });
    if (state.token !== null) {
      context.fillStyle = ink;
      context.fillRect(x(state.token) - 1, PAD.top, 2, height - PAD.top - PAD.bottom);
    }
    axes(context, ink, width, height, x, y, "token (prompt + completion)", "position");
  }

  function at(px) {
    const t = Math.floor(scale.x.inverse(px));
    const { segments } = state.record;
    const index = segments.findIndex((segment) => t < segment.end);
    if (t < 0 || index < 0) return null;
    const { name, start, positions: own } = segments[index];
    return { segment: index, title: name, lines: [`token ${t} at position ${own[0] + t - start}`] };
  }
}
