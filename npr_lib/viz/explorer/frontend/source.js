// Where trajectories come from: a page that holds one or all of them, or the kernel behind a widget.
//
//   table            columns of all rollouts, at once
//   record(row)      promise of one trajectory
//   find(words)      promise of the set of rows whose text holds the words
//   edit(wish)       promise of {row} of a further response, or of {error}; see edits.js
//   watch(heard)     heard.record(row, record) and heard.table() when the kernel sends a trajectory
//                    or another table unasked; returns a stop

// One trajectory, and a table of one row.
export function responseSource({ table, record }) {
  return { table, record: async () => record, watch: () => () => {} };
}

export function pageSource(data) {
  const unpacked = new Map();
  const once = (packed) => {
    if (!unpacked.has(packed)) unpacked.set(packed, unpack(packed));
    return unpacked.get(packed);
  };
  return {
    table: data.table,
    async record(row) {
      const [chunk, place] = data.places[row];
      return (await once(data.chunks[chunk]))[place];
    },
    async find(words) {
      const texts = await once(data.texts);
      const wanted = words.toLowerCase();
      return new Set(texts.flatMap((text, i) => (text.toLowerCase().includes(wanted) ? [i] : [])));
    },
    watch: () => () => {},
  };
}

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

export function widgetSource(model) {
  const asked = new Map();
  const watchers = new Set();
  model.on("msg:custom", ({ reply, value, content }) => {
    const key = keyOf(reply, value);
    if (reply === "table") source.table = content;
    if (asked.has(key)) asked.get(key).resolve(content);
    else for (const heard of watchers) heard[reply]?.(value, content);
    asked.delete(key);
  });
  const keyOf = (kind, value) => `${kind} ${JSON.stringify(value)}`;
  const ask = (kind, value) => {
    const key = keyOf(kind, value);
    if (!asked.has(key)) {
      asked.set(key, Promise.withResolvers());
      model.send({ ask: kind, value });
    }
    return asked.get(key).promise;
  };
  const source = {
    table: model.get("table"),
    record: (row) => ask("record", row),
    find: async (words) => new Set(await ask("find", words)),
    edit: (wish) => ask("edit", wish),
    watch(heard) {
      watchers.add(heard);
      return () => watchers.delete(heard);
    },
  };
  return source;
}
