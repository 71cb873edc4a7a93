// The views. Each returns the elements to show and a function that redraws what is pointed at.

const FAINTEST = 0.02; // lines of less weight are not drawn

function overview(map) {
  const columns = map.heads.length;
  const thumbnail = (l, h) => {
    const weights = average(map, [l], [h]);
    const name = `Layer ${map.layers[l]}, head ${map.heads[h]}`;
    const speak = () => say(name, make("br"), habit(map, weights));
    return make("a", {
      href: address({ view: "heat", layers: [l], heads: [h] }),
      "aria-label": name,
      onpointerenter: speak,
      onfocus: speak,
    }, picture(weights, map.keys.length, { "aria-hidden": "true" }));
  };
  const rows = map.layers.map((_, l) => map.heads.map((_, h) => thumbnail(l, h)));
  rove(rows.flat(), columns);

  const heading = (what, number, index) => make("span", {}, `${index ? "" : what} ${number}`);
  const cells = rows.flatMap((row, l) => [heading("layer", map.layers[l], l), ...row]);
  const headings = map.heads.map((number, h) => heading("head", number, h));
  const grid = make("div", { class: "overview", "--columns": columns },
    make("span"), ...headings, ...cells);
  return [[grid], () => {}];
}

// What a head does most, in words: the mean weight of what heads are known to favour.
function habit(map, weights) {
  const favourites = map.kind === "cross"
    ? { "a single source token": (row) => Math.max(...row) }
    : {
        "the token itself": (row, query) => row[query],
        "the token before": (row, query) => row[query - 1] ?? 0,
        "the token after": (row, query) => row[query + 1] ?? 0,
        "the first token": (row) => row[0],
      };
  const means = Object.entries(favourites).map(([name, weigh]) => {
    const sum = map.queries.reduce((sum, _, q) => sum + weigh(rowOf(map, weights, q), q), 0);
    return [name, sum / map.queries.length];
  });
  const [[name, most]] = means.sort(([, a], [, b]) => b - a);
  return `spends ${Math.round(most * 100)} % on ${name}`;
}

// ---------------------------------------------------------------------------- the heat map

function heatMap(map) {
  const [width, height] = [map.keys.length, map.queries.length];
  const weights = shownWeights();
  const cell = within(Math.floor(660 / Math.max(width, height)), 4, 34);
  const cellAt = ({ offsetX, offsetY }) => ({
    query: within(Math.floor(offsetY / cell), 0, height - 1),
    key: within(Math.floor(offsetX / cell), 0, width - 1),
  });
  const canvas = picture(weights, width, {
    tabindex: 0,
    role: "application",
    "aria-label": "Heat map, queries downwards, keys to the right; arrow keys move the cell",
    style: `width: ${width * cell}px; height: ${height * cell}px`,
    onpointermove: (event) => pointAt(cellAt(event)),
    onpointerleave: () => pointAt(null),
    onclick: (event) => keep(cellAt(event)),
    onkeydown: moveCell,
  });
  const [queries, keys] = [tokenButtons("query"), tokenButtons("key")];
  const across = list("across", keys);
  const labels = cell > 8 ? [across, list("down", queries)] : [];
  const [row, column, frame] = ["frame band", "frame band", "frame"].map((name) =>
    make("div", { class: name }));
  const tip = make("div", { class: "tip" });
  const field = make("div", { class: "field" }, canvas, row, column, frame, tip);
  const grid = make("div", { class: "heat", "--cell": `${cell}px` }, ...labels, field);
  grid.classList.toggle("dense", cell < 20);

  const put = (element, x, y, columns, rows) => {
    element.hidden = x === null || y === null;
    const [left, top, right, down] = [x, y, columns, rows].map((cells) => `${cells * cell}px`);
    Object.assign(element.style, { left, top, width: right, height: down });
  };
  const draw = () => {
    const { query, key } = pointed();
    put(row, 0, query, width, 1);
    put(column, key, 0, 1, height);
    put(frame, key, query, 1, 1);
    mark(queries, query);
    mark(keys, key);
    tip.hidden = frame.hidden;
    if (!tip.hidden) {
      tip.replaceChildren(...sentence(query, key, weights[query * width + key]));
      // Beside the row and inside the field, wherever the cell is.
      const [left, up] = [key < width * 0.7, query > height / 2];
      Object.assign(tip.style, {
        left: left ? `${key * cell}px` : "",
        right: left ? "" : `${(width - 1 - key) * cell}px`,
        top: up ? "" : `${(query + 1) * cell + 6}px`,
        bottom: up ? `${(height - query) * cell + 6}px` : "",
      });
    }
    const tallest = () => Math.max(...keys.map((key) => key.getBoundingClientRect().height));
    across.style.height ||= `${tallest()}px`;
  };
  return [[grid], draw];
}

const within = (value, low, high) => Math.min(Math.max(value, low), high);

function moveCell(event) {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  hover = null;
  const { map, query, key } = state;
  keep({
    query: within((query ?? 0) + step[0], 0, map.queries.length - 1),
    key: within((key ?? 0) + step[1], 0, map.keys.length - 1),
  });
}

function mark(buttons, here) {
  buttons.forEach((button, index) => button.classList.toggle("here", index === here));
}

// ---------------------------------------------------------------------------- links

function links(map) {
  const sheets = shown("heads").map((head) =>
    ({ weights: average(map, shown("layers"), [head]), colour: tint(head) }));
  const { wires, queries, keys, draw } = linked(sheets, true);
  const columns = make("div", { class: "links columns" },
    make("h2", {}, "looks"), make("h2", {}, "at"),
    list("queries", queries), wires, list("keys", keys));
  return [[columns], draw];
}

function alignment(map) {
  const weights = shownWeights();
  const { wires, queries, keys, draw } = linked([{ weights, colour: variable("--blue") }], false);
  const line = (buttons, tokens) => {
    const ol = list("", buttons);
    ol.dir = /[\u0590-\u08ff]/.test(tokens.join("")) ? "rtl" : "ltr"; // Hebrew, Arabic, their like
    return ol;
  };
  const lines = make("div", { class: "links lines" },
    make("h2", {}, "source"), line(keys, map.keys), wires,
    line(queries, map.queries), make("h2", {}, "target"));

  const sources = map.queries.map((token, query) => {
    const [[key, weight]] = strongest(rowOf(map, weights, query));
    return make("li", {}, written(token), "←", written(map.keys[key]), amount(weight));
  });
  const title = make("h2", {}, "The source token each target token looks at most");
  return [[lines, title, make("ol", { class: "sources" }, ...sources)], draw];
}

const amount = (weight) => make("span", { class: "amount" }, digits(weight));

// Buttons for the tokens of both sides, and a canvas of lines between them: across, or downwards.
// A sheet is the weights and the colour of its lines.
function linked(sheets, across) {
  const width = state.map.keys.length;
  const [queries, keys] = [tokenButtons("query"), tokenButtons("key")];
  const label = "Lines between the tokens, stronger for more weight";
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const wires = make("div", { class: "wires" }, canvas);
  const mean = (query, key) =>
    sheets.reduce((sum, { weights }) => sum + weights[query * width + key], 0) / sheets.length;

  const draw = () => {
    const { query } = pointed();
    const key = query === null ? pointed().key : null; // a cell kept in the heat map: its query
    mark(queries, query);
    mark(keys, key);
    const shade = (button, weight) => button.style.setProperty("--share", Math.sqrt(weight));
    keys.forEach((button, k) => shade(button, query === null ? 0 : mean(query, k)));
    queries.forEach((button, q) => shade(button, key === null ? 0 : mean(q, key)));

    const box = wires.getBoundingClientRect();
    canvas.width = box.width * devicePixelRatio;
    canvas.height = box.height * devicePixelRatio;
    const pen = canvas.getContext("2d");
    pen.scale(devicePixelRatio, devicePixelRatio);
    const middles = (buttons) => buttons.map((button) => {
      const { left, top, width, height } = button.getBoundingClientRect();
      return across ? top + height / 2 - box.top : left + width / 2 - box.left;
    });
    const [starts, ends] = [middles(queries), middles(keys)];
    for (const { weights, colour } of sheets) {
      pen.strokeStyle = colour;
      weights.forEach((weight, i) => {
        const [q, k] = [Math.floor(i / width), i % width];
        const isolated = (query ?? q) === q && (key ?? k) === k;
        if (!isolated || weight < FAINTEST) return;
        pen.globalAlpha = 0.08 + 0.92 * weight;
        pen.lineWidth = 1 + 2.5 * weight;
        pen.beginPath();
        if (across) curve(pen, 0, starts[q], box.width, ends[k], box.width / 2, 0);
        else curve(pen, ends[k], 0, starts[q], box.height, 0, box.height / 2);
        pen.stroke();
      });
    }
  };
  new ResizeObserver(draw).observe(wires);
  return { wires, queries, keys, draw };
}

// A line from (x, y) to (u, v) that leaves and arrives along (right, down).
function curve(pen, x, y, u, v, right, down) {
  pen.moveTo(x, y);
  pen.bezierCurveTo(x + right, y + down, u - right, v - down, u, v);
}
