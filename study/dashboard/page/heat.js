"use strict";
// Every layer as a tile, by projection and block; a column of panels per rule. Above: the scaling
// exponent at the chosen step. Below: the value at the chosen rank and step.

const VALUE_COLOURS = "Viridis";
const EXPONENT_COLOURS = ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"]; // -: blue, +: red
const GAP = 0.03; // between panels, as a share of the width
const BETWEEN = 52; // pixels between the upper and the lower panels

// Marks of values without a colour: two alternating values make a chequered patch.
const ZERO_OR_NEGATIVE = 2;

/** What the tiles show, for drawing, clicks, downloads and the findings. */
function heatContent(view) {
  const rows = view.layers;
  const grid = tileGrid(rows);
  const fits = view.rules.map(rule => ({
    rule,
    lines: rows.map(layer => view.fitOf(rule, layer)),
  }));
  const slopes = fits.map(({ rule, lines }) => {
    const values = lines.map(line => line?.slope);
    return { rule, of: "exponent", lines, values, z: onGrid(grid, n => values[n] ?? null) };
  });
  const sizes = view.rules.map(rule => valuePanel(view, rule, grid));
  const hasFits = fits.some(fit => fit.lines.some(Boolean));
  const panels = [...(hasFits ? slopes : []), ...sizes];
  const marks = sizes.flatMap(panel => panel.marks.flat()).filter(mark => mark !== null);
  const noLog = marks.filter(mark => mark === ZERO_OR_NEGATIVE).length;
  const count = { broken: marks.length - noLog, noLog };
  return { panels, fits, rows, grid, count, first: firstBroken(view) };
}

/**
 * The kinds of layers from top to bottom, the blocks from left to right, and the index of the layer
 * `at` each place, -1 without one. Layers of one kind and block are rows of their own.
 */
function tileGrid(layers) {
  const alone = distinct(layers.map(rowName)).length === layers.length;
  const rowOf = layer => (alone ? layer.kind : layer.name.replace(/^.*?\.\d+\./, ""));
  const kinds = distinct(layers.map(rowOf));
  const blocks = distinct(layers.map(layer => layer.block)).sort((a, b) => a - b);
  const place = new Map(layers.map((layer, n) => [`${rowOf(layer)} ${layer.block}`, n]));
  const at = kinds.map(kind => blocks.map(block => place.get(`${kind} ${block}`) ?? -1));
  return { kinds, blocks, at };
}

const onGrid = (grid, value) => grid.at.map(row => row.map(n => (n < 0 ? null : value(n))));

/** The values at the chosen rank and step, their logarithms `z` on the grid, and `marks`. */
function valuePanel(view, rule, grid) {
  const read = view.reader(rule, view.rank);
  const values = view.layers.map(layer => read(view.step, layer.index));
  const z = onGrid(grid, n => (hasLog(values[n]) ? Math.log10(values[n]) : null));
  const marks = grid.at.map((row, y) =>
    row.map((n, x) => (n < 0 ? null : markOf(values[n], x, y))),
  );
  return { rule, of: "value", values, z, marks };
}

/** Not finite: 0 or 1, alternating. Zero or negative: grey. Otherwise none. */
function markOf(value, x, y) {
  if (value === undefined || hasLog(value)) return null;
  return Number.isFinite(value) ? ZERO_OR_NEGATIVE : (x + y) % 2;
}

const isBroken = value => value !== undefined && !Number.isFinite(value);

/** The rule, step and layer of the first value that is not finite at the chosen rank; or null. */
function firstBroken(view) {
  const readers = view.rules.map(rule => ({ rule, read: view.reader(rule, view.rank) }));
  for (const step of view.steps) {
    for (const { rule, read } of readers) {
      const layer = view.layers.find(({ index }) => isBroken(read(step, index)));
      if (layer) return { rule, step, layer };
    }
  }
  return null;
}

/** Draws the tiles, with frames around the chosen layer. */
function drawHeat(view, { panels, grid }) {
  const margin = heatMargin(grid);
  const { width, height } = innerSize("heat", margin);
  const half = (1 - BETWEEN / height) / 2;
  const columns = view.rules.length;
  const both = panels.length > columns;
  const unit = (1 - GAP * (columns - 1)) / columns;
  const layout = { margin, annotations: [], ...colourAxes(view, panels, both) };
  panels.forEach((panel, n) => {
    const upper = both && panel.of === "exponent";
    const left = (n % columns) * (unit + GAP);
    const domain = [left, left + unit];
    const range = { exponent: [1 - half, 1], value: [0, both ? half : 1] }[panel.of];
    const axis = n === 0 ? "" : n + 1;
    layout[`xaxis${axis}`] = { ...blockAxis(grid, width * unit), domain, anchor: `y${axis}` };
    if (upper) layout[`xaxis${axis}`].title = undefined;
    layout[`yaxis${axis}`] = {
      ...kindAxis(grid, n % columns === 0),
      domain: range,
      anchor: axisName(n),
    };
    const rank = rankName(view.rank);
    const what = upper ? "exponent" : `${columnName(view.quantity.stat)} at rank ${rank}`;
    const head = `${panel.rule.name}: ${what}, step ${view.step}`;
    layout.annotations.push({ ...heading(head, domain, panel.rule, width), y: range[1] });
  });
  const x = grid.blocks.map(block => (block < 0 ? "none" : String(block)));
  const data = panels.flatMap((panel, n) => panelTraces(panel, n, x));
  draw("heat", data, { ...layout, shapes: tileMark(view, panels, grid) });
}

const heatMargin = grid => ({
  l: 14 + 6.6 * Math.max(4, ...grid.kinds.map(kind => kindName(kind).length)),
  r: 74,
  t: 26,
  b: 40,
});

const kindName = kind => (kind.length > 22 ? `…${kind.slice(-21)}` : kind);

function blockAxis({ blocks }, pixels) {
  return {
    ...AXIS(),
    type: "category",
    showgrid: false,
    tickangle: 0,
    range: [-0.5, blocks.length - 0.5],
    nticks: Math.max(1, Math.floor(pixels / 28)),
    title: axisTitle("block"),
  };
}

function kindAxis({ kinds }, isFirst) {
  return {
    ...AXIS(),
    showgrid: false,
    range: [kinds.length - 0.5, -0.5],
    tickvals: [...kinds.keys()],
    ticktext: isFirst ? kinds.map(kind => plain(kindName(kind))) : kinds.map(() => ""),
    ticks: "",
  };
}

/** The colours of the exponents, around 0, and those of the values. */
function colourAxes(view, panels, both) {
  const bar = { thickness: 11, x: 1.012, xpad: 0, outlinewidth: 0, tickfont: { size: 11 } };
  const titled = text => ({ text: plain(text), side: "top", font: { size: 11.5 } });
  const halves = both ? { len: 0.46, yanchor: "middle" } : { len: 1 };
  const slopes = panels.filter(panel => panel.of === "exponent").flatMap(panel => panel.values);
  const reach = Math.max(0.01, ...slopes.filter(Number.isFinite).map(Math.abs));
  const logs = panels.filter(panel => panel.of === "value").flatMap(panel => panel.z.flat());
  const [low, high] = withRoom(logs.filter(log => log !== null), 0.001, 0.5);
  const ticks = [0, 1, 2, 3, 4].map(k => low + (k * (high - low)) / 4);
  return {
    coloraxis: {
      ...{ cmin: -reach, cmax: reach },
      colorscale: EXPONENT_COLOURS.map((fill, k) => [k / 4, fill]),
      colorbar: { ...bar, ...halves, y: 0.78, nticks: 6, title: titled("exponent") },
    },
    coloraxis2: {
      ...{ cmin: low, cmax: high, colorscale: VALUE_COLOURS },
      colorbar: {
        ...{ ...bar, ...halves, y: both ? 0.22 : 0.5 },
        tickvals: ticks,
        ticktext: ticks.map(log => number(Number((10 ** log).toPrecision(2)))),
        title: titled(columnName(view.quantity.stat)),
      },
    },
  };
}

const axisName = n => `x${n === 0 ? "" : n + 1}`;

/** The tiles of a panel and, if any value has no colour, its marks. */
function panelTraces(panel, n, x) {
  const common = { type: "heatmap", x, xaxis: axisName(n), yaxis: axisName(n).replace("x", "y") };
  const gap = innerWidth > 700 ? 1 : 0;
  Object.assign(common, { xgap: gap, ygap: gap, hoverinfo: "none", meta: n });
  const coloraxis = panel.of === "exponent" ? "coloraxis" : "coloraxis2";
  const traces = [{ ...common, z: panel.z, coloraxis, hoverongaps: true }];
  if (panel.marks?.some(row => row.some(mark => mark !== null))) {
    const colorscale = ["broken", "white", "none"].flatMap((name, k) => {
      const fill = name === "white" ? "#ffffff" : colour(name);
      return [
        [k / 3, fill],
        [(k + 1) / 3, fill],
      ];
    });
    const marks = { z: panel.marks, zmin: 0, zmax: 2, colorscale };
    traces.push({ ...common, ...marks, showscale: false, hoverongaps: false });
  }
  return traces;
}

/** The frame around the tile of the chosen layer, in every panel. */
function tileMark(view, panels, grid) {
  const n = view.layers.findIndex(layer => layer.name === view.layer);
  const y = grid.at.findIndex(row => row.includes(n));
  if (n < 0 || y < 0) return [];
  const x = grid.at[y].indexOf(n);
  const line = { color: colour("ink"), width: 2 };
  const box = { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line };
  return panels.map((_, k) => {
    return { ...box, xref: axisName(k), yref: axisName(k).replace("x", "y") };
  });
}

/** The head of a panel in its rule's colour; only the rule if the panel is narrow. */
function heading(text, domain, rule, pixels) {
  const most = Math.max(6, Math.floor(((domain[1] - domain[0]) * pixels) / 6.6));
  return {
    text: plain(text.length > most ? text.split(": ")[0] : text),
    align: "left",
    xref: "paper",
    yref: "paper",
    x: domain[0],
    y: 1,
    yshift: 5,
    xanchor: "left",
    yanchor: "bottom",
    showarrow: false,
    font: { size: 12, color: tint(rule) },
  };
}

/** `0 q_proj`: block and kind. */
const rowName = layer => `${layer.block} ${layer.kind}`;

/**
 * The odd layers of a panel, {n, value, middle}: those farthest from the median of all layers. Of
 * exponents one, of values one above it and one below it.
 */
function oddOnes({ of, values }) {
  const isValue = of === "value";
  const known = [...values.keys()].filter(n =>
    isValue ? hasLog(values[n]) : values[n] !== undefined,
  );
  if (known.length < 3) return [];
  known.sort((a, b) => values[a] - values[b]);
  const middle = values[known[Math.floor(known.length / 2)]];
  const ends = [known[0], known.at(-1)];
  const away = n => Math.abs(values[n] - middle);
  const odd = isValue ? ends : [away(ends[0]) > away(ends[1]) ? ends[0] : ends[1]];
  return odd.map(n => ({ n, value: values[n], middle }));
}

/** Places to look at first: the first broken value, and each rule's odd layers, by exponent and by
 *  value. */
function findings(view, drawn) {
  const found = [];
  if (drawn.first) {
    const { rule, step, layer } = drawn.first;
    const text = `not finite from step ${step}: ${rule.name}, ${shortName(layer)}`;
    const title = "The first value that is not finite";
    found.push({ text, title, broken: true, choose: { layer: layer.name, step } });
  }
  for (const panel of drawn.panels) {
    const { rule, of } = panel;
    for (const { n, value, middle } of oddOnes(panel)) {
      const layer = drawn.rows[n];
      const text = `${rule.name}: ${of} ${number(value)}, ${rowName(layer)}`;
      const title = `Farthest from the median of all layers, ${number(middle)}`;
      found.push({ text, title, rule, choose: { layer: layer.name } });
    }
  }
  return found;
}
