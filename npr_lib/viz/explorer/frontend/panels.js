// The drawings linked to the selected segment.

import { element } from "./dom.js";
import { mask } from "./mask.js";
import { positions } from "./positions.js";
import { QUANTITIES } from "./scale.js";
import { surprises } from "./surprises.js";
import { timeline } from "./timeline.js";

const PANELS = { timeline, mask, positions, surprises };

// They share the record, the chosen segment, the quantity of the
// colours, the token that is pointed at. views: names of those that are shown.
export function makePanels(tip, selected, views) {
  const state = { record: null, chosen: 0, quantity: QUANTITIES.kind, token: null };
  const names = Object.keys(PANELS).filter((name) => views.includes(name));
  const panels = names.map((name) => PANELS[name](state, tip, selected));
  const pane = element("section", { class: "npr-panels" }, ...panels.map((panel) => panel.pane));
  return { pane, set };

  function set(changes) {
    Object.assign(state, changes);
    if (state.record) for (const panel of panels) panel.update();
  }
}
