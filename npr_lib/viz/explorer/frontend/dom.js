// Making elements. Text goes in as text nodes only: nothing that a model wrote is read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const MATH = "http://www.w3.org/1998/Math/MathML";

// element("div", {class: "x", onclick: f}, child, "text"): functions become listeners.
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

// A tree of MathML, [tag, attributes, text, children], as an element.
export function formula([tag, attributes, text, children]) {
  return filled(document.createElementNS(MATH, tag), attributes, [text, ...children.map(formula)]);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// Control characters (ANSI escapes among them) as the pictures Unicode has for them.
export function visible(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f]/g, "\u2421");
}

export function shortened(text, length) {
  const characters = [...text.slice(0, 2 * length)];
  return text.length <= length ? text : `${characters.slice(0, length - 1).join("")}…`;
}

export function plural(count, noun) {
  const several = /(s|ch)$/.test(noun) ? `${noun}es` : `${noun}s`;
  return `${count.toLocaleString("en")} ${count === 1 ? noun : several}`;
}

// One label that follows the pointer, for whatever is hovered.
export function makeTip(root) {
  const label = element("div", { class: "npr-tip", role: "tooltip", hidden: true });
  root.append(label);
  return {
    show(event, title, lines) {
      label.replaceChildren(
        element("b", {}, visible(title)),
        ...lines.filter(Boolean).map((line) => element("div", {}, visible(shortened(line, 400)))),
      );
      label.hidden = false;
      const box = root.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const left = x + label.offsetWidth + 24 > box.width ? x - label.offsetWidth - 12 : x + 14;
      const top = y + label.offsetHeight + 24 > box.height ? y - label.offsetHeight - 8 : y + 16;
      label.style.left = `${Math.max(4, left)}px`;
      label.style.top = `${Math.max(4, top)}px`;
    },
    hide() {
      label.hidden = true;
    },
  };
}
