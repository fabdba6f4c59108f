// What if: the edits that the kernel offers for the selected segment.

import { element, shortened, visible } from "./dom.js";

const RESAMPLE = "resample from here"; // what the kernel calls it

// edited(segment, label, text, token): promise of what went wrong, null if nothing did.
export function makeEdits(edited) {
  const pane = element("section", { class: "npr-edits", "aria-label": "what if", hidden: true });
  let shown = null;
  let from = null; // the token to resample from, null: the segment's first
  return { pane, show, start };

  // Another token to resample from.
  function start(token, written) {
    from = token;
    const button = pane.querySelector(`[data-edit="${RESAMPLE}"]`);
    const word = token === null ? "here" : `“${visible(shortened(written, 40))}”`;
    if (button) button.textContent = `resample from ${word}`;
  }

  function show(segment, index) {
    const key = JSON.stringify([index, segment.start, segment.edits]);
    if (key === shown) return; // the other view chose the same: what is being written stays
    [shown, from] = [key, null];
    const offered = segment.edits ?? [];
    pane.hidden = !offered.length;
    pane.replaceChildren(
      ...offered.map(([label, text]) => {
        const begin = () => (text === null ? run(index, label, "") : write(index, label, text));
        return element("button", { class: "npr-edit", "data-edit": label, onclick: begin }, label);
      }),
    );
  }

  function write(index, label, text) {
    rest().forEach((node) => node.remove());
    const field = element("textarea", { rows: 3, "aria-label": label });
    field.value = text;
    const go = () => run(index, label, field.value);
    pane.append(field, element("button", { class: "npr-go", onclick: go }, "go on from this"));
    field.focus();
  }

  async function run(index, label, text) {
    const buttons = pane.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    pane.querySelector(".npr-note")?.remove();
    const busy = element("small", { role: "status" }, "decoding …");
    pane.append(busy);
    const wrong = await edited(index, label, text, label === RESAMPLE ? from : null);
    busy.remove();
    for (const button of buttons) button.disabled = false;
    if (wrong) pane.append(element("p", { class: "npr-note", role: "alert" }, visible(wrong)));
  }

  function rest() {
    return pane.querySelectorAll(":not(.npr-edit)");
  }
}
