"use strict";
// The heat map. Left: layers against steps. Right: layers against ranks. One panel per rule, all on
// one colour scale. The last panel holds the scaling exponent of each layer.

const COLOURS = "Viridis";
const GAP = 0.028; // between panels, as a share of the width
const STRIP_GAP = 0.018; // more space before the exponents
const MOST_NAMED_ROWS = 24; // with more layers, the axis shows blocks or kinds
const TICK_HEIGHT = 14; // pixels

// Marks of values without a colour: two alternating values make a chequered patch.
const ZERO_OR_NEGATIVE = 2;

/** What the heat map shows, for drawing, clicks, downloads and the findings. */
function heatContent(view) {
  const rows = view.layers;
  const panels = heatPanels(view).map(panel => withValues(panel, rows));
  const fits = view.rules.map(rule => ({
    rule,
    lines: rows.map(layer => view.fitOf(rule, layer)),
  }));
  return { panels, fits, rows, ...brokenIn(panels, rows) };
}

/** Draws the heat map. Returns the shapes on it, except the frame around the chosen row. */
function drawHeat(view, { panels, fits, rows }) {
  const strip = fits.some(fit => fit.lines.some(Boolean));
  const domains = heatDomains(panels, strip);
  const data = panels.flatMap((panel, n) => panelTraces(panel, n));
  const layout = heatLayout(view, panels);
  panels.forEach((panel, n) => addPanel(layout, panel, n, domains[n], rows.length));
  if (strip) addStrip(data, layout, view, fits, panels.length, domains.at(-1));
  const { shapes } = layout;
  layout.shapes = [...shapes, ...rowMark(view)];
  draw("heat", data, layout);
  return shapes;
}

/** The panels from left to right. Column x shows `readers[x]` at step `steps[x]`. */
function heatPanels(view) {
  const bySteps = view.rules.map(rule => ({
    rule,
    of: "steps",
    columns: view.steps,
    chosen: view.step,
    head: [...rule.lines, `rank ${rankName(view.rank)}`],
    readers: Array(view.steps.length).fill(view.reader(rule, view.rank)),
    steps: view.steps,
  }));
  const byRanks = view.rules.map(rule => {
    return {
      rule,
      of: "ranks",
      columns: view.ranks,
      chosen: view.rank,
      head: [...rule.lines, `step ${view.step}`],
      readers: view.ranks.map(rank => view.reader(rule, rank)),
      steps: view.ranks.map(() => view.step),
    };
  });
  return [...bySteps, ...byRanks].filter(panel => panel.columns.length);
}

/** The panel with its `values` by layer and column, their logarithms `z`, and `marks`. */
function withValues(panel, rows) {
  const values = rows.map(layer =>
    panel.readers.map((read, x) => read(panel.steps[x], layer.index)),
  );
  const z = values.map(row => row.map(value => (hasLog(value) ? Math.log10(value) : null)));
  const marks = values.map((row, y) => row.map((value, x) => markOf(value, x, y)));
  return { ...panel, values, z, marks };
}

/** Not finite: 0 or 1, alternating. Zero or negative: grey. Otherwise none. */
function markOf(value, x, y) {
  if (value === undefined || hasLog(value)) return null;
  return Number.isFinite(value) ? ZERO_OR_NEGATIVE : (x + y) % 2;
}

/** How many values are `broken` (not finite) or have `noLog`; and the `first` broken one. */
function brokenIn(panels, rows) {
  const marks = panels.flatMap(panel => panel.marks.flat()).filter(mark => mark !== null);
  const noLog = marks.filter(mark => mark === ZERO_OR_NEGATIVE).length;
  let first = null;
  for (const { of, rule, columns, values } of panels) {
    if (of !== "steps") continue;
    values.forEach((row, y) => {
      const x = row.findIndex(isBroken);
      if (x >= 0 && (first === null || columns[x] < first.step)) {
        first = { layer: rows[y], step: columns[x], rule };
      }
    });
  }
  return { count: { broken: marks.length - noLog, noLog }, first };
}

const isBroken = value => value !== undefined && !Number.isFinite(value);

/** The horizontal range of each panel, from 0 to 1. Panels over steps are wider. */
function heatDomains(panels, strip) {
  const widths = panels.map(panel => (panel.of === "steps" ? 3 : 1.25));
  if (strip) widths.push(1.9);
  const extra = strip ? STRIP_GAP : 0;
  const unit = (1 - extra - GAP * (widths.length - 1)) / sum(widths);
  let left = 0;
  const domains = widths.map(width => {
    const domain = [left, left + width * unit];
    left = domain[1] + GAP;
    return domain;
  });
  if (strip) domains.push(domains.pop().map(x => x + extra));
  return domains;
}

/** Everything in the layout that the panels share. */
function heatLayout(view, panels) {
  const [low, high] = colourRange(panels);
  const rows = view.layers.length;
  const y = { ...AXIS(), ...layerTicks(view), range: [rows - 0.5, -0.5], showgrid: false };
  return {
    margin: heatMargin(view),
    annotations: [],
    shapes: kindEdges(view),
    dragmode: "zoom",
    yaxis: { ...y, fixedrange: false },
    coloraxis: {
      cmin: low,
      cmax: high,
      colorscale: COLOURS,
      colorbar: {
        thickness: 11,
        len: 1,
        x: 1.012,
        xpad: 0,
        outlinewidth: 0,
        tickfont: { size: 11 },
        ...logTicks(low, high),
        title: { text: plain(view.quantity.stat), side: "top", font: { size: 11.5 } },
      },
    },
  };
}

/** The lowest and highest logarithm of all panels, at least some distance apart. */
function colourRange(panels) {
  let low = Infinity;
  let high = -Infinity;
  for (const log of panels.flatMap(panel => panel.z.flat())) {
    if (log === null) continue;
    low = Math.min(low, log);
    high = Math.max(high, log);
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** The margins: above the panels, there is a line for each line of their heads. */
const heatMargin = view => ({
  l: Math.max(62, 12 + 6.4 * Math.max(0, ...namedRows(view).map(name => name.length))),
  r: 66,
  t: 24 + 16 * view.rules[0].lines.length,
  b: 44,
});
const heatWidth = () => innerSize("heat", heatMargin(page.view)).width;

const axisName = n => `x${n === 0 ? "" : n + 1}`;

/** The heat map of a panel and, if any value has no colour, a second one with its marks. */
function panelTraces(panel, n) {
  const common = { type: "heatmap", xaxis: axisName(n), yaxis: "y", hoverinfo: "none", meta: n };
  const traces = [{ ...common, z: panel.z, coloraxis: "coloraxis", hoverongaps: true }];
  if (panel.marks.some(row => row.some(mark => mark !== null))) {
    const scale = ["broken", "white", "none"].flatMap((name, k) => {
      const fill = name === "white" ? "#ffffff" : colour(name);
      return [
        [k / 3, fill],
        [(k + 1) / 3, fill],
      ];
    });
    traces.push({
      ...common,
      z: panel.marks,
      zmin: 0,
      zmax: 2,
      colorscale: scale,
      showscale: false,
      hoverongaps: false,
    });
  }
  return traces;
}

/** Adds the axis of a panel, its heading, the flag of broken values and the chosen column. */
function addPanel(layout, panel, n, domain, rows) {
  const { columns, of } = panel;
  const name = column => (of === "ranks" ? rankName(column) : column);
  const ticks = columnTicks(panel, (domain[1] - domain[0]) * heatWidth());
  layout[`xaxis${n === 0 ? "" : n + 1}`] = {
    ...AXIS(),
    domain,
    showgrid: false,
    tickangle: 0,
    range: [-0.5, columns.length - 0.5],
    tickvals: ticks,
    ticktext: ticks.map(x => name(columns[x])),
    title: axisTitle(of === "steps" ? "step" : "rank"),
  };
  layout.annotations.push(heading(panel.head, domain, panel.rule));
  const broken = columns.findIndex((_, x) => panel.values.some(row => isBroken(row[x])));
  if (broken >= 0) layout.annotations.push(brokenFlag(axisName(n), broken, panel));
  const x = columns.indexOf(panel.chosen);
  if (x >= 0) layout.shapes.push(columnBox(axisName(n), x, rows, columns.length > 60 ? 1 : 1.5));
}

/** Adds the panel with the scaling exponent of each layer. */
function addStrip(data, layout, view, fits, n, domain) {
  for (const { rule, lines } of fits) {
    const fitted = lines.flatMap((line, y) => (line ? [y] : []));
    data.push({
      type: "scatter",
      mode: "markers",
      x: fitted.map(y => lines[y].slope),
      y: fitted,
      xaxis: axisName(n),
      yaxis: "y",
      hoverinfo: "none",
      marker: {
        color: tint(rule),
        symbol: rule.marker,
        size: view.layers.length > 120 ? 4.5 : 6.5,
        opacity: 0.9,
      },
      meta: { rule: rule.id },
    });
  }
  const slopes = fits.flatMap(({ lines }) => lines.flatMap(line => (line ? [line.slope] : [])));
  const range = withRoom([0, ...slopes], 0.06, 0.1);
  layout[`xaxis${n + 1}`] = {
    ...AXIS(),
    domain,
    range,
    ...plainTicks(range, ((domain[1] - domain[0]) * heatWidth()) / 42),
    tickangle: 0,
    zeroline: true,
    zerolinecolor: colour("faint"),
    title: axisTitle("exponent"),
  };
  layout.annotations.push(heading(["exponent", `step ${view.step}`], domain));
}

/** The frame around the row of the chosen layer. */
function rowMark(view) {
  const y = view.layers.findIndex(layer => layer.name === view.layer);
  if (y < 0) return [];
  const line = { color: colour("ink"), width: 1.5 };
  return [{ type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: y - 0.5, y1: y + 0.5, line }];
}

/** The frame around the chosen column. */
function columnBox(xref, x, rows, width) {
  const line = { color: colour("ink"), width };
  const [y0, y1] = [-0.5, rows - 0.5];
  return { type: "rect", xref, yref: "y", x0: x - 0.5, x1: x + 0.5, y0, y1, line };
}

/** The head of a panel, a line or two. A line that is wider than the panel is cut. */
function heading(lines, domain, rule, pixels = heatWidth()) {
  const most = Math.max(6, Math.floor(((domain[1] - domain[0]) * pixels) / 6.6));
  const short = line => (line.length > most ? `${line.slice(0, most - 1)}…` : line);
  const text = [lines].flat().map(line => plain(short(line)));
  return {
    text: text.join("<br>"),
    align: "left",
    xref: "paper",
    yref: "paper",
    x: domain[0],
    y: 1,
    yshift: 5,
    xanchor: "left",
    yanchor: "bottom",
    showarrow: false,
    font: { size: 12, color: rule ? tint(rule) : colour("ink") },
  };
}

/** A flag at the first column with a broken value. One column of hundreds is hard to see. */
function brokenFlag(xref, x, { of, columns }) {
  const [name, column] = of === "steps" ? ["step", columns[x]] : ["rank", rankName(columns[x])];
  const side = x > columns.length / 2 ? "right" : "left";
  return {
    text: `✕ ${name} ${column}`,
    xref,
    x,
    xanchor: of === "ranks" ? "center" : side,
    yref: "paper",
    y: 1,
    yanchor: "top",
    showarrow: false,
    font: { size: 11, color: "#ffffff" },
    bgcolor: colour("flag"),
    borderpad: 2,
  };
}

/** `0 q_proj`: block and kind. */
const rowName = layer => `${layer.block} ${layer.kind}`;

/** The labels of the rows if they are names of single layers or of kinds; otherwise none. */
function namedRows(view) {
  if (view.layers.length <= MOST_NAMED_ROWS) return view.layers.map(rowName);
  return view.order === "kind" ? view.kinds : [];
}

/** Labels of the rows: every layer if they are few, otherwise one per kind or per block. */
function layerTicks(view) {
  const rows = view.layers;
  if (rows.length <= MOST_NAMED_ROWS) {
    const names = rows.map(layer => plain(rowName(layer)));
    return { tickvals: [...rows.keys()], ticktext: names };
  }
  if (view.order === "kind") {
    const rowsOf = kind => rows.flatMap((layer, y) => (layer.kind === kind ? [y] : []));
    const kinds = view.kinds.filter(kind => rowsOf(kind).length);
    const middles = kinds.map(kind => mean(rowsOf(kind)));
    return { tickvals: middles, ticktext: kinds.map(plain), ticks: "" };
  }
  const starts = rows.flatMap((layer, y) => (rows[y - 1]?.block !== layer.block ? [y] : []));
  const { height } = innerSize("heat", heatMargin(view));
  const every = Math.ceil((starts.length * TICK_HEIGHT) / height);
  const shown = starts.filter((_, n) => n % every === 0);
  const title = { text: "block", standoff: 8, font: { size: 11.5 } };
  return { tickvals: shown, ticktext: shown.map(y => rows[y].block), title };
}

/** Lines between the kinds, if the layers are ordered by kind. */
function kindEdges(view) {
  if (view.order !== "kind") return [];
  const rows = view.layers;
  const starts = rows.flatMap((layer, y) => (y > 0 && rows[y - 1].kind !== layer.kind ? [y] : []));
  const line = { color: colour("panel"), width: 2 };
  return starts.map(y => ({
    type: "line",
    xref: "paper",
    x0: 0,
    x1: 1,
    yref: "y",
    y0: y - 0.5,
    y1: y - 0.5,
    line,
  }));
}

/** Places to look at first: the first broken value, and each rule's extreme exponents. */
function findings(view, drawn) {
  const found = [];
  if (drawn.first) {
    const { rule, step, layer } = drawn.first;
    const text = `not finite from step ${step}: ${rule.name}, ${shortName(layer)}`;
    const title = "The first value that is not finite";
    found.push({ text, title, broken: true, choose: { layer: layer.name, step } });
  }
  for (const { rule, lines } of drawn.fits) {
    const fitted = lines.flatMap((line, y) => (line ? [y] : []));
    if (fitted.length < 2) continue;
    fitted.sort((a, b) => lines[a].slope - lines[b].slope);
    for (const [which, y] of [
      ["lowest", fitted[0]],
      ["highest", fitted.at(-1)],
    ]) {
      const layer = drawn.rows[y];
      const text = `${rule.name} ${twoPlaces(lines[y].slope)}: ${rowName(layer)}`;
      const title = `The layer with the ${which} exponent of ${rule.name}`;
      found.push({ text, title, rule, choose: { layer: layer.name } });
    }
  }
  return found;
}
