// Surprise token by token: where the policy hesitated. Dashes, where it is known: the entropy, which
// is the surprise to be expected. What the engine wrote has neither.

import { PAD, axes, linear, makePanel } from "./canvas.js";
import { entropy, faded, kindColor, largest, mean, number, surprise, values } from "./scale.js";

export function surprises(state, tip, selected) {
  let scale = null;
  const panel = makePanel("surprises", "Surprise", state, tip, selected, paint, at);
  panel.update = () => {
    const own = all(surprise);
    const title = own.length ? `mean ${number(mean(own))} nats a chosen token` : "nothing sampled";
    panel.caption.textContent = `Surprise: ${title}${all(entropy).length ? " · dashes: entropy" : ""}`;
    panel.draw();
  };
  return panel;

  function all(quantity) {
    const { record } = state;
    return record.segments.flatMap((segment) => values(record, segment, quantity));
  }

  function paint(context, width, height, ink) {
    const { record, chosen, token } = state;
    const { segments, prompt_len: prompt } = record;
    const most = Math.max(0.1, largest(all(surprise)) ?? 0, largest(all(entropy)) ?? 0);
    const x = linear(prompt, segments.at(-1).end, PAD.left, width - PAD.right);
    const y = linear(0, most, height - PAD.bottom, PAD.top, 0.01);
    scale = x;
    const wide = x(1) - x(0);
    const bar = Math.max(1, wide > 4 ? wide - 1 : wide);
    segments.forEach((segment, index) => {
      for (let t = segment.start; t < segment.end; t++) {
        const [nats, open] = [surprise(record, t), entropy(record, t)];
        context.fillStyle = faded(kindColor(segment.kind), index === chosen ? 1 : 0.6);
        if (nats !== null) context.fillRect(x(t), y(nats), bar, y(0) - y(nats));
        context.fillStyle = ink;
        if (open !== null) context.fillRect(x(t), y(open) - 0.75, bar, 1.5);
      }
    });
    if (token !== null && token >= prompt)
      context.fillRect(x(token + 0.5) - 0.5, PAD.top, 1, height - PAD.top - PAD.bottom);
    axes(context, ink, width, height, x, y, "token (prompt + completion)", "−log p (nats)");
  }

  function at(px) {
    const { record } = state;
    const t = Math.floor(scale.inverse(px));
    const index = record.segments.findIndex((segment) => t < segment.end);
    if (t < record.prompt_len || index < 0) return null;
    const { name, start, end, tokens } = record.segments[index];
    const written = tokens.length === end - start ? `, “${tokens[t - start]}”` : "";
    const [nats, open] = [surprise(record, t), entropy(record, t)];
    const lines = [
      nats === null ? "written by the engine" : `−log p ${number(nats)} nats`,
      open === null ? "" : `entropy ${number(open)} nats`,
    ];
    return { segment: index, title: `${name}, token ${t}${written}`, lines };
  }
}
