// The fork/join layout: segments, depth first, become columns of items; a fork is columns side by
// side. A branch is as wide as its tokens say, but never too narrow to be read.

export const GAP = { x: 12, y: 24 };
const NARROWEST = 98;
const WIDEST = 300; // of a box that stands alone
const LINE = 15;

// {items}: of a branch; an item is {segment} or {block, branches: [column, ...]}.
export function columnOf(segments, indices, depth = 0) {
  const items = [];
  for (const index of indices) {
    const step = segments[index].path[depth];
    const last = items.at(-1);
    if (!step) items.push({ segment: index });
    else if (last?.block === step[0]) last.members.push(index);
    else items.push({ block: step[0], members: [index] });
  }
  for (const item of items.filter((one) => one.members)) {
    const branches = Map.groupBy(item.members, (index) => segments[index].path[depth][1]);
    item.branches = [...branches.values()].map((own) => columnOf(segments, own, depth + 1));
    item.tokens = count(segments, item.members);
  }
  return { items, tokens: count(segments, indices) };
}

const count = (segments, indices) =>
  indices.reduce((sum, i) => sum + segments[i].end - segments[i].start, 0);

function narrowest(column, collapsed) {
  const widths = column.items.map((item) =>
    !item.branches || collapsed.has(item.block)
      ? NARROWEST
      : item.branches.reduce((sum, branch) => sum + narrowest(branch, collapsed), 0) +
        GAP.x * (item.branches.length - 1),
  );
  return Math.max(...widths);
}

// `total` cut in proportion to the tokens, but none below its least.
function shares(tokens, least, total) {
  const fixed = new Set();
  for (;;) {
    const free = tokens.map((_, i) => i).filter((i) => !fixed.has(i));
    const room = least.reduce((sum, width, i) => (fixed.has(i) ? sum - width : sum), total);
    const all = free.reduce((sum, i) => sum + tokens[i], 0);
    const short = free.filter((i) => (room * tokens[i]) / all < least[i]);
    if (!short.length) return tokens.map((n, i) => (fixed.has(i) ? least[i] : (room * n) / all));
    for (const i of short) fixed.add(i);
  }
}

// Boxes {segment | block, x, y, width, height} of a column whose room begins at (x, y).
export function place(tree, width, collapsed, linesOf) {
  const boxes = [];
  const room = Math.max(width, narrowest(tree, collapsed));

  function put(column, x, y, wide, alone) {
    for (const item of column.items) {
      if (item.branches && !collapsed.has(item.block)) y = fork(item, x, y, wide);
      else {
        const own = alone ? Math.min(wide, WIDEST) : wide;
        const lines = item.branches ? 0 : linesOf(item.segment, own);
        const box = { ...item, x: x + (wide - own) / 2, y, width: own, height: 36 + LINE * lines };
        boxes.push(box);
        y += box.height;
      }
      y += GAP.y;
    }
    return y - GAP.y;
  }

  function fork(item, x, y, wide) {
    const least = item.branches.map((branch) => narrowest(branch, collapsed));
    const widths = shares(
      item.branches.map((branch) => branch.tokens),
      least,
      wide - GAP.x * (least.length - 1),
    );
    let left = x;
    let bottom = y;
    item.branches.forEach((branch, i) => {
      bottom = Math.max(bottom, put(branch, left, y, widths[i], false));
      left += widths[i] + GAP.x;
    });
    return bottom;
  }

  const height = put(tree, 0, 0, room, true);
  return { boxes, width: room, height };
}

// The edges between boxes, where a collapsed block stands for all that is in it.
export function edgesBetween(record, boxes) {
  const holder = new Map();
  for (const box of boxes) for (const i of box.members ?? [box.segment]) holder.set(i, box);
  const found = new Map();
  for (const [upper, lower] of record.edges) {
    const pair = [holder.get(upper), holder.get(lower)];
    if (pair[0] !== pair[1]) found.set(`${boxes.indexOf(pair[0])}-${boxes.indexOf(pair[1])}`, pair);
  }
  return [...found.values()];
}

// Where an arrow key leads from a segment.
export function neighbour(record, index, key) {
  const down = (i) => record.edges.filter(([a]) => a === i).map(([, b]) => b);
  const up = (i) => record.edges.filter(([, b]) => b === i).map(([a]) => a);
  if (key === "ArrowDown") return down(index)[0] ?? index;
  if (key === "ArrowUp") return up(index)[0] ?? index;
  const rank = [...new Set([...up(index).flatMap(down), ...down(index).flatMap(up)])];
  const row = [...new Set([...rank, index])].sort((a, b) => a - b);
  return row[row.indexOf(index) + (key === "ArrowRight" ? 1 : -1)] ?? index;
}
