// The page around the view: what is chosen above it, and what is said beside it.

const SINGULAR = { layers: "layer", heads: "head", queries: "query", keys: "key" };

const HINTS = {
  overview: "Queries run downwards, keys to the right. Click a head to enlarge it.",
  token: "Point at a token to see where its attention goes. A click keeps it, Esc lets it go.",
};

let redraw = () => {}; // what is pointed at in the view on the page

function render() {
  const { map, view } = state;
  const focused = document.activeElement?.id;
  const [layers, heads, queries, keys] = ["layers", "heads", "queries", "keys"].map((name) =>
    `${map[name].length} ${map[name].length > 1 ? name : SINGULAR[name]}`);
  fill("summary", `${KINDS[map.kind].says}. ${layers} × ${heads}, ${queries} × ${keys}.`);
  fill("tabs", mapChoices(), viewChoices());
  fill("choices", ...(view === "overview" ? [] : [choicesOf("layers"), choicesOf("heads")]));
  fill("legend", ...legend());

  hover = null;
  const [elements, draw] = VIEWS[view].draw(map);
  redraw = draw;
  fill("view", ...elements);
  point();
  if (focused) document.getElementById(focused)?.focus();
}

const fill = (id, ...children) => document.getElementById(id).replaceChildren(...children);
const say = (...words) => fill("said", ...words);

// ---------------------------------------------------------------------------- choices

function mapChoices() {
  const names = data.maps.map(({ kind }) => [KINDS[kind].name]);
  return choices("map", "Attention", names, [data.maps.indexOf(state.map)], (index) => {
    const map = data.maps[index];
    const view = viewsOf(map).includes(state.view) ? state.view : "links";
    change({ map, view, layers: null, heads: null, ...NOWHERE });
    render();
  });
}

function viewChoices() {
  const views = viewsOf(state.map);
  const names = views.map((view) => [VIEWS[view].name]);
  return choices("view", "View", names, [views.indexOf(state.view)], (index) => {
    change({ view: views[index] });
    render();
  });
}

// The layers or heads, with one more choice for all of them where the view shows several.
function choicesOf(name) {
  const [chosen, many, everything] = [shown(name), isMany(name), [...state.map[name].keys()]];
  const coloured = name === "heads" && state.view === "links";
  const options = state.map[name].map((number, index) =>
    coloured ? [`${number}`, tint(index)] : [`${number}`]);
  const isAll = chosen.length === everything.length;
  const all = many && everything.length > 1 ? everything.length : -1;
  if (all > 0) options.push(["all"]);

  const choose = (index) => {
    let next = chosen.includes(index) ? chosen.filter((i) => i !== index) : [...chosen, index];
    if (!many) next = [index];
    if (index === all) next = isAll ? [0] : everything;
    change({ [name]: next.length ? next.sort((a, b) => a - b) : chosen });
    render();
  };
  const title = name === "layers" ? "Layer" : "Head";
  return choices(name, title, options, isAll ? [...chosen, all] : chosen, choose, many);
}

// ---------------------------------------------------------------------------- pointing

function pointAt(place) {
  hover = place;
  point();
}

// Keep what was clicked until it is clicked again.
function keep({ query, key }) {
  const again = state.query === query && state.key === key;
  change(again ? NOWHERE : { query, key });
  point();
}

function point() {
  redraw();
  details();
}

function sentence(query, key, weight) {
  const { queries, keys } = state.map;
  return [written(queries[query]), " looks at ", written(keys[key]), `: ${digits(weight)}`];
}

// Where the attention of a query goes or that on a key comes from, and which token may come next.
function details() {
  const { map, view } = state;
  const { query, key } = view === "overview" ? NOWHERE : pointed();
  const weights = shownWeights();
  const told = [];
  const tell = (title, className, rows, here = null) => {
    const items = rows.map(([token, weight, index]) => {
      const gauge = make("span", { class: "gauge", "--share": `${100 * Math.min(weight, 1)}%` });
      const name = index === here ? "here" : "";
      return make("li", { class: name }, written(token), gauge, amount(weight));
    });
    told.push(make("h2", {}, ...title), make("ol", { class: className }, ...items));
  };
  const bars = (column, tokens) => {
    const most = strongest(column).slice(0, 6).filter(([, weight]) => weight > 0);
    return most.map(([index, weight]) => [tokens[index], weight, index]);
  };

  if (query !== null) {
    const token = map.queries[query];
    const row = rowOf(map, weights, query);
    tell([written(token), " looks at"], "", bars(row, map.keys), key);
    const next = nextTokens(map)?.[query];
    const means = map.kind === "encoder" ? "What may stand at " : "Next token after ";
    if (next) tell([means, written(token)], "next", next);
  } else if (key !== null) {
    const column = map.queries.map((_, q) => rowOf(map, weights, q)[key]);
    tell([written(map.keys[key]), " is looked at by"], "", bars(column, map.queries));
  }
  const heads = shown("layers").length * shown("heads").length;
  // Right below the first title and its bars: it is the attention that is averaged.
  if (told.length && heads > 1) told.splice(2, 0, make("p", {}, `Averaged over ${heads} heads.`));
  fill("details", ...told);

  // A cell is read out; who sees the page reads the same beside the cell.
  const isCell = view === "heat" && query !== null && key !== null;
  document.getElementById("said").classList.toggle("unseen", isCell);
  if (isCell) say(...sentence(query, key, rowOf(map, weights, query)[key]));
  else say(told.length ? "" : HINTS[view === "overview" ? "overview" : "token"]);
}

// Positions are the decoder's where there is one.
function nextTokens(map) {
  const isDecoder = ({ kind }) => kind !== "encoder";
  return isDecoder(map) || !data.maps.some(isDecoder) ? data.next : null;
}

function legend() {
  const note = (text) => make("p", {}, text);
  const rounded = "Weights are rounded to 1/255.";
  if (state.view === "links" || state.view === "alignment") {
    return [note(`A stronger line is more weight; below ${FAINTEST} there is none. ${rounded}`)];
  }
  const colours = Float32Array.from({ length: 200 }, (_, i) => (i / 199) ** 2);
  const ticks = [0, 0.1, 0.3, 0.6, 1].map((weight) =>
    make("span", { "--at": `${Math.sqrt(weight) * 100}%` }, `${weight}`));
  return [
    make("h2", {}, "Weight"),
    picture(colours, colours.length, { "aria-hidden": "true" }),
    make("div", { class: "scale" }, ...ticks),
    note(rounded),
  ];
}

// ---------------------------------------------------------------------------- begin

addEventListener("hashchange", () => {
  readAddress();
  render();
});
addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  change(NOWHERE);
  pointAt(null);
});
dark.addEventListener("change", render);
readAddress();
render();
