"use strict";
// Curves over training by rank, the log-log fit of one layer, and what a whole cell did over training.

/** A panel per rule beside each other, sharing their logarithmic y axis; `series(cell)` is {step, value}. */
function drawCurves(id, view, cells, series, { log = true } = {}) {
  const rules = view.rules.filter(rule => cells.some(cell => cell.rule === rule.id));
  const data = [], layout = { margin: { l: 62, r: 34, t: 24, b: 38 }, annotations: [] };
  const gap = 0.07, width = (1 - gap * (rules.length - 1)) / Math.max(1, rules.length);
  const drawn = [], labelled = [];
  rules.forEach((rule, n) => {
    const axis = n === 0 ? "" : String(n + 1), domain = [n * (width + gap), n * (width + gap) + width];
    const ends = new Map();
    for (const cell of cells.filter(cell => cell.rule === rule.id)) {
      const { step, value } = series(cell);
      const shown = step.flatMap((s, k) => (log ? hasLog(value[k]) : Number.isFinite(value[k])) ? [k] : []);
      drawn.push({ cell, step, value });
      const line = { x: shown.map(k => step[k]), y: shown.map(k => value[k]), xaxis: `x${axis}`, yaxis: "y", hoverinfo: "none", type: "scatter" };
      const chosen = rankOf(cell) === view.rank;
      data.push({ ...line, mode: shown.length > 40 ? "lines" : "lines+markers", line: { color: shade(rule, rankOf(cell)), width: chosen ? 2.4 : 1.4 }, marker: { size: 4 }, opacity: chosen ? 1 : 0.75, meta: drawn.length - 1 });
      if (shown.length) ends.set(rankOf(cell), line.y.at(-1));
      const broken = step.findIndex((_, k) => value[k] !== null && value[k] !== undefined && !Number.isFinite(value[k]));
      if (broken >= 0 || cell.status === "diverged") {
        const at = shown.at(-1) ?? 0;
        data.push({ ...line, x: [line.x.at(-1) ?? step[at]], y: [line.y.at(-1) ?? 1], mode: "markers", marker: { symbol: "x-thin", size: 9, line: { width: 2.4, color: colour("broken") } }, meta: drawn.length - 1 });
      }
    }
    layout[`xaxis${axis}`] = { ...AXIS(), domain, nticks: 6, title: { text: "step", standoff: 4, font: { size: 11.5 } } };
    layout.annotations.push(heading(rule.name, domain, rule));
    labelled.push([rule, ends, axis]);
  });
  const scale = log ? Math.log10 : value => value;
  const all = drawn.flatMap(one => one.value).filter(log ? hasLog : Number.isFinite);
  const room = all.length ? (scale(Math.max(...all)) - scale(Math.min(...all))) / 13 : 0;
  for (const [rule, ends, axis] of labelled) layout.annotations.push(...rankLabels(rule, ends, axis, scale, room));
  layout.yaxis = log ? logAxis(all) : { ...AXIS(), nticks: 6 };
  draw(id, data, layout);
  return drawn;
}

/** Ranks written at the ends of their curves, from the highest down, as far as there is room. */
function rankLabels(rule, ends, axis, scale, room) {
  let last = Infinity;
  return [...ends].sort((a, b) => b[1] - a[1]).flatMap(([rank, y]) => {
    const place = scale(y);
    if (last - place < room) return [];
    last = place;
    return [{ text: rankName(rank), xref: `x${axis} domain`, x: 1, xanchor: "left", xshift: 3, yref: "y", y: place, showarrow: false, font: { size: 10, color: shade(rule, rank) } }];
  });
}

/** The chosen row at the chosen step against rank: a marker per cell, the line and its band per rule. */
function drawFit(view) {
  const data = [], said = [], all = [];
  for (const rule of view.rules) {
    const dots = view.pointsOfChosen(rule);
    const line = fitLine(dots, view.overview.t_critical);
    all.push(...dots.map(dot => ({ ...dot, rule })));
    const ranks = dots.map(dot => dot.rank);
    if (line) {
      const low = Math.min(...ranks), high = Math.max(...ranks);
      const xs = [...Array(25).keys()].map(k => low * (high / low) ** (k / 24)), at = xs.map(line.at);
      if (line.low !== null) {
        data.push({ type: "scatter", mode: "lines", x: [...xs, ...xs.toReversed()], y: [...at.map(a => a[1]), ...at.map(a => a[2]).toReversed()], fill: "toself", fillcolor: tint(rule) + "2e", line: { width: 0 }, hoverinfo: "skip" });
      }
      data.push({ type: "scatter", mode: "lines", x: xs, y: at.map(a => a[0]), line: { color: tint(rule), width: 1.8 }, hoverinfo: "skip" });
      said.push(`${rule.name} ${interval(line.slope, line.low, line.high)}`);
    }
    data.push({ type: "scatter", mode: "markers", x: ranks, y: dots.map(dot => dot.value), marker: { color: tint(rule), symbol: rule.marker, size: 7, line: { color: colour("panel"), width: 1 } }, hoverinfo: "none", meta: { rule: rule.id, seeds: dots.map(dot => dot.seed) } });
  }
  const ranks = distinct(all.map(dot => dot.rank)).sort((a, b) => a - b);
  draw("layer-fit", data, {
    margin: { l: 62, r: 34, t: 10, b: 38 },
    xaxis: { ...AXIS(), type: "log", tickvals: ranks, ticktext: ranks.map(rankName), title: { text: "rank", standoff: 4, font: { size: 11.5 } } },
    yaxis: logAxis(all.map(dot => dot.value)),
  });
  byId("fit-title").textContent = said.length ? `Slope at step ${view.step}: ${said.join(" · ")}` : `No slope at step ${view.step}: it needs two ranks`;
  return all;
}
