// The explorer in a notebook, as anywidget wants it.

import { mount } from "./main.js";
import { widgetSource } from "./source.js";

export default {
  render({ model, el }) {
    return mount(el, widgetSource(model));
  },
};
