// What colours say. A quantity gives a value for a token and for a segment, and a colour for each.
// Hues are Okabe and Ito's; strength is told by opacity, so that any page shows through.

let theme = { kinds: {}, low: "#000000", high: "#000000" };

export function setTheme(colors) {
  theme = colors;
}

export function faded(color, opacity) {
  const channels = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgb(${channels.join(" ")} / ${opacity.toFixed(3)})`;
}

export const kindColor = (kind) => theme.kinds[kind];
export const highColor = () => theme.high;

// One hue from nothing to `top`; two hues around zero where values have a sign.
const rising = (top) => (value) => faded(theme.high, 0.85 * Math.min(1, Math.max(0, value / top)));
const signed = (top) => (value) =>
  faded(value < 0 ? theme.high : theme.low, 0.85 * Math.min(1, Math.abs(value) / top));

// What a record holds of a token of the completion, in its own unit; null where it isn't known.
const read = (field, unit) => (record, t) => {
  const value = record[field][t - record.prompt_len]; // of what is not known there is no list
  return value === null || value === undefined ? null : value / unit;
};
const surprise = read("logprobs", -1000);
const entropy = read("entropies", 1000);
const sampled = read("sampled", 1);

// What a step is of: the engine that decoded the record, or the ideal one of a text.
const stepName = (record) => (record.ideal ? "ideal step" : "decode step");

// values of the tokens of a segment that have one
function values(record, segment, token) {
  const found = [];
  for (let t = segment.start; t < segment.end; t++) {
    const value = token(record, t);
    if (value !== null) found.push(value);
  }
  return found;
}
const mean = (numbers) =>
  numbers.length ? numbers.reduce((sum, x) => sum + x, 0) / numbers.length : null;
const largest = (numbers) => numbers.reduce((top, x) => (top === null || x > top ? x : top), null);
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

// A legend in five colours from `low` to `high`, of which the first, the last and the one between
// are named.
const fifths = (low, high, first, last, between = "") =>
  [first, "", between, "", last].map((name, i) => [name, low + ((high - low) * i) / 4]);

// tokenTop, nodeTop: what is shown at full strength.
const inNats = (name, token, summed, tokenTop, nodeTop) => ({
  name,
  token,
  node: (record, segment) => summed(values(record, segment, token)),
  tokenColor: rising(tokenTop),
  nodeColor: rising(nodeTop),
  write: (value) => number(value),
  legend: fifths(
    0,
    nodeTop,
    "0",
    `≥ ${nodeTop} nats${tokenTop === nodeTop ? "" : ` (a token: ${tokenTop})`}`,
  ),
});

export const QUANTITIES = {
  kind: {
    name: "kind of segment",
    token: () => null,
    node: () => null,
    write: () => "",
  },
  surprise: inNats("surprise: mean −log p", surprise, mean, 3, 0.5),
  worst: inNats("most surprising token", surprise, largest, 3, 3),
  entropy: inNats("entropy: how open the choice was", entropy, mean, 1.5, 0.5),
  sampled: {
    name: "sampled by the policy",
    token: sampled,
    node: (record, segment) => mean(values(record, segment, sampled)),
    tokenColor: (value) => faded(value ? theme.low : theme.high, 0.4),
    nodeColor: (value) => faded(theme.low, 0.75 * value),
    write: (value) => `${(100 * value).toFixed(0)} %`,
    legend: fifths(0, 1, "0 %", "100 % sampled"),
  },
  arithmetic: {
    name: "arithmetic that does not hold",
    token: (record, t, segment) =>
      segment?.false.some(([a, b]) => t - segment.start >= a && t - segment.start <= b) ? 1 : null,
    node: (record, segment) => (segment.kind === "prompt" ? null : segment.false.length),
    tokenColor: () => faded(theme.high, 0.55),
    nodeColor: (value) => faded(value ? theme.high : theme.low, value ? 0.6 : 0.16),
    write: (value) => (value ? `${value} false` : ""),
    legend: [
      ["none found", 0],
      ["a false equation", 1],
    ],
  },
  advantage: {
    name: "advantage",
    token: (record, t) => (sampled(record, t) ? record.advantage : null),
    node: (record, segment) => (segment.kind === "prompt" ? null : record.advantage),
    tokenColor: signed(2),
    nodeColor: signed(2),
    write: (value) => `${value > 0 ? "+" : ""}${number(value)}`,
    legend: fifths(-2, 2, "≤ −2", "≥ +2", "0"),
  },
};

export { entropy, largest, mean, number, sampled, stepName, surprise, values };
