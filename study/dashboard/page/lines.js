"use strict";
// Curves over training, one per cell; and the log-log fit of one layer against rank.

const PANEL_GAP = 0.07;
const MOST_MARKED_POINTS = 40; // longer curves are drawn without markers

/**
 * Curves over training: one panel per rule, with a common y axis.
 * @param series gives {step, value} of a cell.
 * @returns the curves as [{cell, step, value}].
 */
function drawCurves(id, view, cells, series, { log = true } = {}) {
  const rules = view.rules.filter(rule => cells.some(cell => cell.rule === rule.id));
  const width = (1 - PANEL_GAP * (rules.length - 1)) / Math.max(1, rules.length);
  const visible = log ? hasLog : Number.isFinite;
  const data = [];
  const drawn = [];
  const layout = { margin: { l: 62, r: 34, t: 24, b: 38 }, annotations: [] };
  const ends = []; // per rule, the last value by rank
  rules.forEach((rule, n) => {
    const left = n * (width + PANEL_GAP);
    const domain = [left, left + width];
    const last = new Map();
    for (const cell of cells.filter(cell => cell.rule === rule.id)) {
      const curve = { cell, ...series(cell) };
      data.push(...curveTraces(view, rule, curve, { axis: n, index: drawn.length, visible }));
      drawn.push(curve);
      const end = curve.value.findLast(visible);
      if (end !== undefined) last.set(rankOf(cell), end);
    }
    const x = { ...AXIS(), domain, nticks: 6, title: axisTitle("step") };
    layout[`xaxis${n === 0 ? "" : n + 1}`] = x;
    layout.annotations.push(heading(rule.name, domain, rule));
    ends.push([rule, last, axisName(n)]);
  });
  const all = drawn.flatMap(curve => curve.value).filter(visible);
  const scale = log ? Math.log10 : value => value;
  const room = all.length ? (scale(Math.max(...all)) - scale(Math.min(...all))) / 13 : 0;
  for (const [rule, last, axis] of ends) {
    layout.annotations.push(...rankLabels(rule, last, axis, scale, room));
  }
  layout.yaxis = log ? logAxis(all) : { ...AXIS(), nticks: 6 };
  draw(id, data, layout);
  return drawn;
}

/** The line of one cell, and a cross at its end if it diverged or is stuck. */
function curveTraces(view, rule, { cell, step, value }, { axis, index, visible }) {
  const shown = step.flatMap((_, k) => (visible(value[k]) ? [k] : []));
  const line = {
    type: "scatter",
    x: shown.map(k => step[k]),
    y: shown.map(k => value[k]),
    xaxis: axisName(axis),
    yaxis: "y",
    hoverinfo: "none",
    meta: index,
  };
  const chosen = rankOf(cell) === view.rank;
  const traces = [
    {
      ...line,
      mode: shown.length > MOST_MARKED_POINTS ? "lines" : "lines+markers",
      line: { color: shade(rule, rankOf(cell)), width: chosen ? 2.4 : 1.4 },
      marker: { size: 4 },
      opacity: chosen ? 1 : 0.75,
    },
  ];
  const broken = value.some(v => v !== null && isBroken(v));
  if (broken || cell.end_step !== null) {
    traces.push({
      ...line,
      x: [line.x.at(-1) ?? step[0]],
      y: [line.y.at(-1) ?? 1],
      mode: "markers",
      marker: { symbol: "x-thin", size: 9, line: { width: 2.4, color: colour("broken") } },
    });
  }
  return traces;
}

/** Ranks at the ends of their curves, from the highest value down, where there is room. */
function rankLabels(rule, ends, axis, scale, room) {
  let last = Infinity;
  const fromTop = [...ends].sort((a, b) => b[1] - a[1]);
  return fromTop.flatMap(([rank, value]) => {
    const y = scale(value);
    if (last - y < room) return [];
    last = y;
    return [
      {
        text: rankName(rank),
        xref: `${axis} domain`,
        x: 1,
        xanchor: "left",
        xshift: 3,
        yref: "y",
        y,
        showarrow: false,
        font: { size: 10, color: shade(rule, rank) },
      },
    ];
  });
}

/** The chosen layer and step against rank: a marker per cell, a line and a band per rule. */
function drawFit(view) {
  const data = [];
  const all = [];
  const slopes = [];
  const seeds = [];
  for (const rule of view.rules) {
    const dots = view.pointsOfChosen(rule);
    const line = fitLine(dots, view.overview.t_critical);
    all.push(...dots.map(dot => ({ ...dot, rule })));
    if (line) {
      data.push(...fitTraces(rule, dots, line));
      slopes.push(`${rule.name} ${interval(line.slope, line.low, line.high)}`);
      if (line.low !== null) seeds.push(line.seeds);
    }
    data.push({
      type: "scatter",
      mode: "markers",
      x: dots.map(dot => dot.rank),
      y: dots.map(dot => dot.value),
      marker: {
        color: tint(rule),
        symbol: rule.marker,
        size: 7,
        line: { color: colour("panel"), width: 1 },
      },
      hoverinfo: "none",
      meta: { rule: rule.id, seeds: dots.map(dot => dot.seed) },
    });
  }
  const ranks = distinct(all.map(dot => dot.rank)).sort((a, b) => a - b);
  draw("layer-fit", data, {
    margin: { l: 62, r: 34, t: 10, b: 38 },
    xaxis: {
      ...AXIS(),
      type: "log",
      tickvals: ranks,
      ticktext: ranks.map(rankName),
      title: axisTitle("rank"),
    },
    yaxis: logAxis(all.map(dot => dot.value)),
  });
  const brackets = distinct(seeds.map(bracketText)).join(" or ");
  byId("fit-title").textContent = slopes.length
    ? `Exponent with rank at step ${view.step}: ${slopes.join(" · ")}` +
      (brackets ? ` (brackets: ${brackets})` : "")
    : `No exponent at step ${view.step}: two ranks are needed`;
  return all;
}

/** What the brackets beside a slope show. */
const bracketText = seeds =>
  seeds === 1 ? page.overview.straightness : `${page.overview.interval} over ${seeds} seeds`;

/** The fitted line and its band, if it has an interval. */
function fitTraces(rule, dots, line) {
  const ranks = dots.map(dot => dot.rank);
  const low = Math.min(...ranks);
  const high = Math.max(...ranks);
  const x = [...Array(25).keys()].map(k => low * (high / low) ** (k / 24));
  const at = x.map(line.at);
  const common = { type: "scatter", mode: "lines", hoverinfo: "skip" };
  const traces = [];
  if (line.low !== null) {
    traces.push({
      ...common,
      x: [...x, ...x.toReversed()],
      y: [...at.map(a => a[1]), ...at.map(a => a[2]).toReversed()],
      fill: "toself",
      fillcolor: tint(rule) + "2e",
      line: { width: 0 },
    });
  }
  traces.push({ ...common, x, y: at.map(a => a[0]), line: { color: tint(rule), width: 1.8 } });
  return traces;
}
