"use strict";
// The heat map: layers against steps and layers against ranks, every rule beside the other on one colour scale, and
// each layer's exponent at the end of its row.

const COLOURS = "Viridis";

/** Panels of the figure from left to right; column x of one is read by `readers[x]` at `steps[x]`. */
function heatPanels(view) {
  const steps = view.rules.map(rule => ({
    rule, of: "steps", columns: view.steps, chosen: view.step,
    head: `${rule.name}, rank ${rankName(view.rank)}`, readers: Array(view.steps.length).fill(view.reader(rule, view.rank)), steps: view.steps,
  }));
  const ranks = view.rules.map(rule => {
    const has = view.ranks.filter(rank => view.cellsOf(rule, rank).length);
    return {
      rule, of: "ranks", columns: has, chosen: view.rank,
      head: `${rule.name}, step ${view.step}`, readers: has.map(rank => view.reader(rule, rank)), steps: has.map(() => view.step),
    };
  });
  return [...steps, ...ranks].filter(panel => panel.columns.length);
}

/** Draw, and return what was drawn: the page's data, from which clicks, downloads and the sentence below are made. */
function drawHeat(view) {
  const rows = view.layers;
  const panels = heatPanels(view);
  const count = { broken: 0, noLog: 0 };
  let first = null, low = Infinity, high = -Infinity;
  for (const panel of panels) {
    panel.values = rows.map(layer => panel.readers.map((read, x) => read(panel.steps[x], layer.place)));
    panel.z = panel.values.map(row => row.map(value => {
      if (!hasLog(value)) return null;
      const log = Math.log10(value);
      if (log < low) low = log;
      if (log > high) high = log;
      return log;
    }));
    // Not finite is a chequered patch, so that it is told apart by its texture too; without a logarithm is flat grey.
    panel.marks = panel.values.map((row, y) => row.map((value, x) => {
      if (value === undefined || hasLog(value)) return null;
      if (Number.isFinite(value)) { count.noLog++; return 2; }
      count.broken++;
      if (panel.of === "steps" && (first === null || panel.columns[x] < first.step)) first = { layer: rows[y], step: panel.columns[x], rule: panel.rule };
      return (x + y) % 2;
    }));
  }
  if (low > high) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const fits = view.rules.map(rule => ({ rule, lines: rows.map(layer => view.fitOf(rule, layer)) }));

  const data = [], layout = { margin: { l: 68, r: 84, t: 26, b: 44 }, annotations: [], shapes: [] };
  const strip = fits.some(fit => fit.lines.some(Boolean));
  const widths = [...panels.map(panel => (panel.of === "steps" ? 3 : 1.25)), ...(strip ? [1.6] : [])];
  const gap = 0.012, more = strip ? 0.018 : 0, unit = (1 - more - gap * (widths.length - 1)) / sum(widths);
  let left = 0;
  const domains = widths.map(width => { const domain = [left, left + width * unit]; left = domain[1] + gap; return domain; });
  if (strip) domains.push(domains.pop().map(x => x + more));

  panels.forEach((panel, n) => {
    const axis = n === 0 ? "" : String(n + 1), xaxis = `x${axis}`;
    data.push({ type: "heatmap", z: panel.z, xaxis, yaxis: "y", coloraxis: "coloraxis", hoverinfo: "none", hoverongaps: true, meta: n });
    if (panel.marks.some(row => row.some(mark => mark !== null))) {
      const marks = [[0, colour("broken")], [1 / 3, colour("broken")], [1 / 3, "#ffffff"], [2 / 3, "#ffffff"], [2 / 3, colour("none")], [1, colour("none")]];
      data.push({ type: "heatmap", z: panel.marks, xaxis, yaxis: "y", zmin: 0, zmax: 2, colorscale: marks, showscale: false, hoverinfo: "none", hoverongaps: false, meta: n });
    }
    const many = panel.columns.length, shown = panel.of === "ranks" ? spread(many, 3) : many > 6 ? spread(many, 6).slice(0, 5) : spread(many, 6);
    layout[`xaxis${axis}`] = {
      ...AXIS(), domain: domains[n], showgrid: false, tickangle: 0, range: [-0.5, panel.columns.length - 0.5], tickvals: shown,
      ticktext: shown.map(x => (panel.of === "ranks" ? rankName(panel.columns[x]) : panel.columns[x])),
      title: { text: panel.of === "steps" ? "step" : "rank", standoff: 4, font: { size: 11.5 } },
    };
    layout.annotations.push(heading(panel.head, domains[n], panel.rule));
    const broken = panel.columns.findIndex((_, x) => panel.values.some(row => row[x] !== undefined && !Number.isFinite(row[x])));
    if (broken >= 0) layout.annotations.push(brokenFlag(xaxis, broken, panel));
    const x = panel.columns.indexOf(panel.chosen);
    if (x >= 0) layout.shapes.push(box(xaxis, x - 0.5, x + 0.5, -0.5, rows.length - 0.5, panel.columns.length > 60 ? 1 : 1.5));
  });

  if (strip) {
    const n = panels.length, xaxis = `x${n + 1}`;
    for (const { rule, lines } of fits) {
      const there = lines.flatMap((line, y) => (line ? [y] : []));
      data.push({
        type: "scatter", mode: "markers", x: there.map(y => lines[y].slope), y: there, xaxis, yaxis: "y", hoverinfo: "none",
        marker: { color: tint(rule), symbol: rule.marker, size: rows.length > 120 ? 4.5 : 6.5, opacity: 0.9 }, meta: { rule: rule.id },
      });
    }
    layout[`xaxis${n + 1}`] = { ...AXIS(), domain: domains[n], nticks: 5, zeroline: true, zerolinecolor: colour("faint"), title: { text: "exponent in the rank", standoff: 4, font: { size: 11.5 } } };
    layout.annotations.push(heading(`step ${view.step}`, domains[n]));
  }

  layout.yaxis = { ...AXIS(), ...layerTicks(view), range: [rows.length - 0.5, -0.5], showgrid: false, fixedrange: false };
  for (const edge of kindEdges(view)) layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: edge - 0.5, y1: edge - 0.5, line: { color: colour("panel"), width: 2 } });
  const shapes = layout.shapes;
  layout.shapes = [...shapes, ...rowMark(view)];
  layout.dragmode = "zoom";
  layout.coloraxis = {
    cmin: low, cmax: high, colorscale: COLOURS,
    colorbar: { thickness: 11, len: 1, x: 1.012, xpad: 0, outlinewidth: 0, tickfont: { size: 11 }, ...logTicks(low, high), title: { text: view.quantity.stat, side: "top", font: { size: 11.5 } } },
  };
  draw("heat", data, layout);
  return { panels, fits, rows, count, first, shapes };
}

/** The frame around the chosen layer's row. */
function rowMark(view) {
  const y = view.layers.findIndex(layer => layer.name === view.layer);
  return y < 0 ? [] : [{ type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: y - 0.5, y1: y + 0.5, line: { color: colour("ink"), width: 1.5 } }];
}

function heading(text, domain, rule) {
  return { text: plain(text), xref: "paper", yref: "paper", x: domain[0], y: 1, yshift: 17, xanchor: "left", yanchor: "middle", showarrow: false, font: { size: 12, color: rule ? tint(rule) : colour("ink") } };
}

/** A flag over the first column that holds what is not finite: one column of hundreds is a hair's breadth. */
function brokenFlag(xref, x, panel) {
  const left = x > panel.columns.length / 2;
  return { text: `✕ ${panel.of === "steps" ? "step" : "rank"} ${panel.of === "steps" ? panel.columns[x] : rankName(panel.columns[x])}`, xref, x, xanchor: panel.of === "ranks" ? "center" : left ? "right" : "left", yref: "paper", y: 1, yanchor: "top", showarrow: false, font: { size: 11, color: "#ffffff" }, bgcolor: colour("flag"), borderpad: 2 };
}

const box = (xref, x0, x1, y0, y1, width) => ({ type: "rect", xref, yref: "y", x0, x1, y0, y1, line: { color: colour("ink"), width } });

/** At most `most` of 0 ... n - 1, evenly, both ends among them. */
function spread(n, most) {
  if (n <= most) return [...Array(n).keys()];
  return distinct([...Array(most).keys()].map(k => Math.round((k * (n - 1)) / (most - 1))));
}

function layerTicks(view) {
  const rows = view.layers;
  if (view.order === "kind" || rows.length <= 24) {
    if (rows.length <= 24) return { tickvals: [...rows.keys()], ticktext: rows.map(layer => plain(`${layer.block} ${layer.kind}`)) };
    const groups = view.kinds.map(kind => [kind, rows.flatMap((layer, y) => (layer.kind === kind ? [y] : []))]).filter(([, ys]) => ys.length);
    return { tickvals: groups.map(([, ys]) => mean(ys)), ticktext: groups.map(([kind]) => plain(kind)), ticks: "" };
  }
  const starts = rows.flatMap((layer, y) => (y === 0 || rows[y - 1].block !== layer.block ? [y] : []));
  const every = Math.ceil(starts.length / 32);
  const shown = starts.filter((_, n) => n % every === 0);
  return { tickvals: shown, ticktext: shown.map(y => rows[y].block), title: { text: "block", standoff: 8, font: { size: 11.5 } } };
}

const kindEdges = view => (view.order !== "kind" ? [] : view.layers.flatMap((layer, y) => (y > 0 && view.layers[y - 1].kind !== layer.kind ? [y] : [])));

function logTicks(low, high) {
  const every = Math.max(1, Math.ceil((high - low) / 8));
  const decades = [];
  for (let k = Math.ceil(low); k <= high; k += every) decades.push(k);
  const values = decades.length >= 3 ? decades : [0, 1, 2, 3, 4].map(k => low + (k * (high - low)) / 4);
  return { tickvals: values, ticktext: values.map(k => number(Number((10 ** k).toPrecision(2)))) };
}

/** Where to look first: what is not finite, and in every rule the layers whose exponents stand out. */
function findings(view, drawn) {
  const found = [];
  if (drawn.first) {
    const { rule, step, layer } = drawn.first;
    found.push({ text: `not finite from step ${step}: ${rule.name}, ${shortName(layer)}`, broken: true, choose: { layer: layer.name, step } });
  }
  for (const { rule, lines } of drawn.fits) {
    const there = lines.flatMap((line, y) => (line ? [y] : [])).sort((a, b) => lines[a].slope - lines[b].slope);
    if (there.length < 2) continue;
    for (const [word, y] of [["lowest", there[0]], ["highest", there.at(-1)]]) {
      found.push({ text: `${rule.name} ${word} ${twoPlaces(lines[y].slope)}: ${shortName(drawn.rows[y])}`, rule, choose: { layer: drawn.rows[y].name } });
    }
  }
  return found;
}
