// What the page knows and what it shows. Everything drawn follows from the data written into the
// page, from `state`, which the address keeps, and from `hover`, the token or cell pointed at.

const data = JSON.parse(document.getElementById("data").textContent);

const KINDS = {
  encoder: { name: "Encoder", says: "Each source token looks at the source tokens" },
  decoder: { name: "Decoder", says: "Each token looks at those it may see, itself among them" },
  cross: { name: "Cross", says: "Each target token looks at the source tokens" },
};

const VIEWS = {
  overview: { name: "All heads", draw: overview },
  heat: { name: "Heat map", draw: heatMap },
  links: { name: "Links", draw: links, many: ["heads"] },
  alignment: { name: "Alignment", draw: alignment, many: ["layers", "heads"], only: "cross" },
};

const NOWHERE = { query: null, key: null };

// layers and heads are indices into those of the map; null is what the view begins with.
const state = { map: data.maps[0], view: "overview", layers: null, heads: null, ...NOWHERE };
let hover = null;

const pointed = () => hover ?? state;

function viewsOf(map) {
  return Object.keys(VIEWS).filter((view) => [undefined, map.kind].includes(VIEWS[view].only));
}

const isMany = (name) => VIEWS[state.view].many?.includes(name) ?? false;

// The layers or heads shown: several where the view can, otherwise the first one chosen.
function shown(name) {
  const everything = [...state.map[name].keys()];
  const chosen = state[name] ?? (state.view === "alignment" ? everything : [0]);
  return isMany(name) ? chosen : chosen.slice(0, 1);
}

// ---------------------------------------------------------------------------- the address

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const numbers = (name) => (wanted.get(name) ?? "").split(",").filter(Boolean).map(Number);
  const indices = (name, known) => {
    const found = numbers(name).map((number) => known.indexOf(number));
    const valid = found.filter((index) => index >= 0);
    return valid.length ? valid : null;
  };
  const position = (name, tokens) => numbers(name).find((index) => index in tokens) ?? null;

  const map = data.maps.find(({ kind }) => kind === wanted.get("map")) ?? data.maps[0];
  Object.assign(state, {
    map,
    view: viewsOf(map).find((view) => view === wanted.get("view")) ?? "overview",
    layers: indices("layer", map.layers),
    heads: indices("head", map.heads),
    query: position("query", map.queries),
    key: position("key", map.keys),
  });
}

function address(changes = {}) {
  const { map, view, layers, heads, query, key } = { ...state, ...changes };
  const parts = {
    map: map.kind,
    view,
    layer: layers?.map((index) => map.layers[index]),
    head: heads?.map((index) => map.heads[index]),
    query,
    key,
  };
  const told = Object.entries(parts).filter(([, value]) => (value ?? null) !== null);
  return "#" + told.map(([name, value]) => `${name}=${value}`).join("&");
}

// Without an entry in the history: the way back leads past what was merely tried.
function change(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", address());
}

// ---------------------------------------------------------------------------- the weights

// A word for each query, a letter for each weight in 255ths; zeros at a word's end are left out.
const level = new Map([...data.alphabet].map((letter, index) => [letter, index]));

function decode(text, width) {
  const rows = text.split(" ");
  const weights = new Float32Array(rows.length * width);
  rows.forEach((row, query) => {
    [...row].forEach((letter, key) => {
      weights[query * width + key] = level.get(letter) / 255;
    });
  });
  return weights;
}

// The weights of some layers and heads, averaged: number `query * keys + key` of the result.
function average(map, layers, heads) {
  const width = map.keys.length;
  map.decoded ??= map.weights.map((layer) => layer.map((head) => decode(head, width)));
  const chosen = layers.flatMap((layer) => heads.map((head) => map.decoded[layer][head]));
  const mean = (i) => chosen.reduce((sum, weights) => sum + weights[i], 0) / chosen.length;
  return chosen[0].map((_, i) => mean(i));
}

const shownWeights = () => average(state.map, shown("layers"), shown("heads"));

// What one query spends on each key.
function rowOf(map, weights, query) {
  return weights.subarray(query * map.keys.length, (query + 1) * map.keys.length);
}

// Pairs of index and weight, the largest weight first.
const strongest = (weights) => [...weights.entries()].sort(([, a], [, b]) => b - a);

function digits(weight) {
  if (weight < 0.0005) return "0";
  return weight.toFixed(weight < 0.1 ? 3 : 2);
}
