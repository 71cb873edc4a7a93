// The parts that views are made of.

// Attributes that start with "on" listen to events, those with "--" are variables for the style.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function list(className, items) {
  return make("ol", { class: className }, ...items.map((item) => make("li", {}, item)));
}

// A token with the signs that stand for white space made fainter than its letters.
function written(token) {
  const parts = token.split(/([␣↵⇥␍⍽∅]+)/);
  return make("bdi", {}, ...parts.map((part, index) =>
    index % 2 ? make("span", { class: "mark" }, part) : part));
}

// A button for each token of one side of the map, "query" or "key".
function tokenButtons(side) {
  const tokens = side === "query" ? state.map.queries : state.map.keys;
  const buttons = tokens.map((token, index) => {
    const here = { ...NOWHERE, [side]: index };
    const events = {
      onpointerenter: () => pointAt(here),
      onpointerleave: () => pointAt(null),
      onfocus: () => pointAt(here),
      onblur: () => pointAt(null),
      onclick: () => keep(here),
    };
    const attributes = { class: "token", type: "button", title: token, ...events };
    return make("button", attributes, written(token));
  });
  rove(buttons, 1);
  return buttons;
}

const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

// One stop for the Tab key; arrow keys move among the elements, which stand in so many columns.
function rove(elements, columns) {
  elements.forEach((element, index) => {
    element.tabIndex = index ? -1 : 0;
    element.addEventListener("keydown", (event) => {
      const [down, right] = STEPS[event.key] ?? [0, 0];
      const next = elements[index + down * columns + right];
      if (!next || next === element) return;
      event.preventDefault();
      element.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
}

// Radio buttons, or check boxes where several may be chosen. An option is a text and its colour.
function choices(name, title, options, chosen, choose, many = false) {
  const labels = options.map(([text, colour = "var(--blue)"], index) => {
    const type = many ? "checkbox" : "radio";
    const events = { onchange: () => choose(index) };
    const input = make("input", { type, name, id: `${name}-${index}`, ...events });
    input.checked = chosen.includes(index);
    return make("label", {}, input, make("span", { "--tint": colour }, text));
  });
  return make("fieldset", {}, make("legend", {}, title), ...labels);
}

// ---------------------------------------------------------------------------- colours

const dark = matchMedia("(prefers-color-scheme: dark)");

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// One colour for each head, as far from its neighbours' as can be.
const tint = (head) => `hsl(${212 + 137.5 * head} 55% ${dark.matches ? 66 : 46}%)`;

// The colours of 0, 1/255, …, 1. Square roots spread out the small weights, which are many.
function ramp() {
  const stops = ["--back", "--blue", "--deep"].map((name) =>
    variable(name).match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16)));
  return Array.from({ length: 256 }, (_, index) => {
    const place = 2 * Math.sqrt(index / 255);
    const first = place < 1 ? 0 : 1;
    const [from, to] = stops.slice(first);
    return from.map((value, i) => value + (to[i] - value) * (place - first));
  });
}

// A picture with one pixel for each weight.
function picture(weights, width, attributes) {
  const height = weights.length / width;
  const canvas = make("canvas", { width, height, ...attributes });
  const colours = ramp();
  const pixels = new ImageData(width, height);
  weights.forEach((weight, i) => {
    pixels.data.set([...colours[Math.round(weight * 255)], 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
