// What the drawings on canvas have in common: the canvas itself, axes, scales.

import { element } from "./dom.js";

export const PAD = { left: 46, right: 12, top: 8, bottom: 30 };

// A titled canvas that draws itself again when its size changes. paint(context, width, height, ink)
// draws; at(x, y) -> {segment, title, lines} says what is there, or null.
export function makePanel(name, title, state, tip, selected, paint, at) {
  const canvas = element("canvas", {
    "aria-label": title,
    onmousemove: (event) => {
      const found = state.record && at(event.offsetX, event.offsetY);
      if (found) tip.show(event, found.title, found.lines);
      else tip.hide();
    },
    onmouseleave: tip.hide,
    onclick: (event) => {
      const found = state.record && at(event.offsetX, event.offsetY);
      if (found) selected(found.segment);
    },
  });
  const caption = element("h4", {}, title);
  const room = element("div", { class: "npr-canvas" }, canvas);
  const pane = element("figure", { class: `npr-panel npr-${name}` }, caption, room);
  new ResizeObserver(draw).observe(room);

  function draw() {
    const [width, height] = [room.clientWidth, room.clientHeight];
    if (!state.record || width < 40 || height < 40) return;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.font = "11px system-ui, sans-serif";
    paint(context, width, height, getComputedStyle(pane).color);
  }
  return { pane, caption, draw, room };
}

// x, y: scales made by `linear`; y null: no numbers on that axis.
export function axes(context, ink, width, height, x, y, across, upward) {
  context.fillStyle = ink;
  context.textAlign = "center";
  context.fillText(across, (PAD.left + width - PAD.right) / 2, height - 3);
  for (const tick of ticks(x))
    context.fillText(short(tick), x(tick), height - PAD.bottom + 13);
  context.textAlign = "right";
  for (const tick of y ? ticks(y) : [])
    context.fillText(short(tick), PAD.left - 5, y(tick) + 4);
  context.save();
  context.translate(10, (PAD.top + height - PAD.bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(upward, 0, 0);
  context.restore();
}

const short = (value) => (value >= 10000 ? `${value / 1000}k` : String(+value.toFixed(2)));

function ticks({ low, high, least }) {
  const rough = Math.max(least, (high - low) / 5);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) found.push(tick);
  return found;
}

// Values from low to high on pixels; scale.inverse leads back. least: from one tick to the next.
export function linear(low, high, from, to, least = 1) {
  const scale = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  scale.inverse = (pixel) => low + ((pixel - from) / (to - from)) * (high - low);
  return Object.assign(scale, { low, high, least });
}
