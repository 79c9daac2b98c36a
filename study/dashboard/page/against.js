"use strict";
// Charts against rank and learning rate: the log-log fit of one layer, and the final losses.

const MOST_NAME = 16; // letters of a rule's name beside its line

/** A logarithmic axis with a tick at each of `values`, in order, whose label has room. */
function tickedAxis(values, pixels, name, title) {
  const range = withRoom(values.map(Math.log10), 0.04, 0.3);
  const scale = pixels / (range[1] - range[0]);
  const kept = [];
  for (const value of values) {
    const room = 4 + 3.5 * (name(value).length + (kept.length ? name(kept.at(-1)).length : 0));
    const isFirst = !kept.length;
    if (isFirst || Math.log10(value / kept.at(-1)) * scale >= room) kept.push(value);
  }
  const ticks = { tickvals: kept, ticktext: kept.map(name), tickangle: 0 };
  return { ...AXIS(), type: "log", range, ...ticks, title: axisTitle(title) };
}

/** The names of rules at the right ends of their lines. `ends`: [{rule, y}], y in units of axis. */
function ruleLabels(ends, [low, high], height) {
  const placed = ends
    .map(({ rule, y }) => ({ rule, at: ((high - y) / (high - low)) * height }))
    .sort((a, b) => a.at - b.at);
  const places = movedApart(
    placed.map(end => end.at),
    height,
  );
  return placed.map(({ rule }, k) => {
    const label = endLabel(plain(shortened(rule.name)), "x", 2, places[k]);
    return { ...label, font: { size: 11.5, color: tint(rule) } };
  });
}

const shortened = name => (name.length > MOST_NAME ? `${name.slice(0, MOST_NAME - 1)}…` : name);

/** The margins of a chart with the names of `rules` to the right. */
function marginFor(rules) {
  const letters = Math.max(4, ...rules.map(rule => Math.min(MOST_NAME, rule.name.length)));
  return { ...MARGIN, t: 10, r: 14 + 6.8 * letters };
}

/** The chosen layer and step against rank: a marker per cell, a line and a band per rule. */
function drawFit(view) {
  const found = view.rules.map(rule => {
    const dots = view.pointsOfChosen(rule);
    const line = view.fitOf(rule, view.layer === MEAN ? MEAN : view.chosenLayers[0]);
    return { rule, dots, line: dots.length ? line : null };
  });
  const all = found.flatMap(({ rule, dots }) => dots.map(dot => ({ ...dot, rule })));
  renderFitTitle(view, found);
  if (!all.length) {
    say("layer-fit", view.notice?.text ?? "No positive value to show.");
    return all;
  }
  const margin = marginFor(view.rules);
  const size = innerSize("layer-fit", margin);
  const ranks = distinct(all.map(dot => dot.rank)).sort((a, b) => a - b);
  const range = withRoom(
    all.map(dot => Math.log10(dot.value)),
    0.06,
    0.1,
  );
  const data = [];
  const ends = [];
  for (const { rule, dots, line } of found) {
    if (line) {
      const trace = fittedLine(rule, dots, line);
      data.push(trace);
      ends.push({ rule, y: Math.log10(trace.y[1]) });
    }
    data.push({
      type: "scatter",
      mode: "markers",
      x: dots.map(dot => dot.rank),
      y: dots.map(dot => dot.value),
      marker: markerOf(rule, 7),
      hoverinfo: "none",
      meta: { rule: rule.id, seeds: dots.map(dot => dot.seed) },
    });
  }
  draw("layer-fit", data, {
    margin,
    annotations: ruleLabels(ends, range, size.height),
    xaxis: tickedAxis(ranks, size.width, rankName, "rank"),
    yaxis: {
      ...logAxis(range),
      title: axisTitle(`${view.quantity.stat}, step ${view.step}`, 10),
    },
  });
  return all;
}

const markerOf = (rule, size) => ({
  color: tint(rule),
  symbol: rule.marker,
  size,
  line: { color: colour("panel"), width: 1 },
});

function renderFitTitle(view, found) {
  const fitted = found.filter(({ line }) => line);
  const brackets = distinct(
    fitted.filter(({ line }) => line.low !== null).map(({ line }) => bracketText(line.seeds)),
  ).join(" or ");
  const slopes = fitted.map(({ rule, line }) =>
    element("span", {}, swatch(rule), `${rule.name} ${interval(line.slope, line.low, line.high)} `),
  );
  const none = view.measured.includes(view.step)
    ? `No exponent at step ${view.step}: two ranks are needed`
    : `Not measured at step ${view.step}`;
  byId("fit-title").replaceChildren(
    ...(slopes.length
      ? [`Exponent at step ${view.step}: `, ...slopes, brackets ? `(brackets: ${brackets})` : ""]
      : [none]),
  );
}

/** What the brackets beside a slope show. */
const bracketText = seeds =>
  seeds === 1 ? page.overview.straightness : `${page.overview.interval} over ${seeds} seeds`;

/** The line of the exponent through the centre of the points. */
function fittedLine(rule, dots, { slope }) {
  const ranks = dots.map(dot => dot.rank);
  const x = [Math.min(...ranks), Math.max(...ranks)];
  const centre = mean(ranks.map(Math.log));
  const level = mean(dots.map(dot => Math.log(dot.value)));
  const y = x.map(rank => Math.exp(level + slope * (Math.log(rank) - centre)));
  const look = { color: tint(rule), width: 1.8 };
  return { type: "scatter", mode: "lines", hoverinfo: "skip", x, y, line: look };
}

// ---- final losses

const noLoss = "No final held-out loss yet. It needs train.eval_every and a cell that has ended.";

/** The final held-out loss against the rank: a marker per run, a line through the means. */
function drawRankLosses(view) {
  const rows = view.compared.filter(row => row.loss !== null);
  if (!rows.length) {
    say("rank-loss", noLoss);
    return rows;
  }
  const margin = marginFor(view.rules);
  const size = innerSize("rank-loss", margin);
  const ranks = distinct(rows.map(row => row.rank)).sort((a, b) => a - b);
  const range = withRoom(
    rows.map(row => row.loss),
    0.08,
    0.05,
  );
  const data = [];
  const ends = [];
  for (const rule of view.rules) {
    const own = rows.filter(row => row.rule === rule.id);
    if (!own.length) continue;
    const means = meanBy(own, row => row.rank);
    const line = { color: tint(rule), width: 2 };
    const common = { type: "scatter", hoverinfo: "none" };
    data.push({ ...common, hoverinfo: "skip", mode: "lines", ...means, line });
    const marker = markerOf(rule, 7);
    marker.symbol = own.map(row => (row.edge ? `${rule.marker}-open` : rule.marker));
    const [x, y] = [own.map(row => row.rank), own.map(row => row.loss)];
    data.push({ ...common, mode: "markers", x, y, marker, meta: { rows: own } });
    ends.push({ rule, y: means.y.at(-1) });
  }
  draw("rank-loss", data, {
    margin,
    annotations: ruleLabels(ends, range, size.height),
    xaxis: tickedAxis(ranks, size.width, rankName, "rank"),
    yaxis: { ...AXIS(), nticks: 6, range, title: axisTitle(lossTitle(size), 10) },
  });
  return rows;
}

/** On two lines if the chart is low. */
function lossTitle({ height }) {
  const { final_loss: text } = page.overview.labels;
  return height < 230 ? text.replace(" (", "<br>(") : text;
}

/** The means of the losses: {x, y}, ascending in x. */
function meanBy(rows, key) {
  const x = distinct(rows.map(key)).sort((a, b) => a - b);
  return { x, y: x.map(at => mean(rows.filter(row => key(row) === at).map(row => row.loss))) };
}

/** The final held-out loss against the learning rate: a panel per rule, a line per rank. */
function drawRateLosses(view) {
  const rates = distinct(view.runs.map(row => row.lr)).sort((a, b) => a - b);
  if (rates.length < 2) {
    const one = "Trained at one learning rate. A sweep over optimizer.lr compares several.";
    say("rate-loss", view.runs.length ? one : noLoss);
    return [];
  }
  const curves = view.rules.flatMap(rule => {
    const own = view.runs.filter(row => row.rule === rule.id);
    return distinct(own.map(row => row.rank)).map(rank => {
      const rows = own.filter(row => row.rank === rank);
      // A rate at which a seed diverged has no mean.
      const lost = new Set(rows.filter(row => row.loss === null).map(row => row.lr));
      const means = meanBy(
        rows.filter(row => !lost.has(row.lr)),
        row => row.lr,
      );
      return { rule, rank, cells: [], lost: [...lost], ...means };
    });
  });
  const { width } = innerSize("rate-loss", MARGIN);
  const pixels = (width - PANEL_GAP) / view.rules.length;
  const xAxis = tickedAxis(rates, pixels, brief, "learning rate");
  const top = Math.max(0, ...curves.flatMap(curve => curve.y));
  const extra = (curve, trace) => [
    ...bestRate(view, curve, trace),
    ...lostRates(curve, trace, top),
  ];
  const yTitle = lossTitle(innerSize("rate-loss", MARGIN));
  return drawCurves("rate-loss", view, curves, { log: false, yTitle, xAxis, extra });
}

/** A cross, as high as the largest loss, at each rate at which a seed diverged or got stuck. */
function lostRates({ lost }, trace, top) {
  const line = { width: 2.4, color: colour("broken") };
  const marker = { symbol: "x-thin", size: 9, line };
  const y = lost.map(() => top);
  return lost.length ? [{ ...trace, mode: "markers", x: lost, y, marker, name: "lost" }] : [];
}

/** A large marker on the line at the best rate of a rank; open if it is at an edge of the rates. */
function bestRate(view, { rule, rank, x, y }, trace) {
  const best = view.best.find(row => row.rule === rule.id && row.rank === rank);
  if (!best || x.length < 2) return [];
  const above = x.findIndex(rate => rate >= best.lr);
  const k = above < 0 ? x.length - 1 : Math.max(1, above);
  const share = Math.log(best.lr / x[k - 1]) / Math.log(x[k] / x[k - 1]);
  const loss = y[k - 1] + share * (y[k] - y[k - 1]);
  const symbol = best.edge ? `${rule.marker}-open` : rule.marker;
  const marker = { size: 11, symbol, color: shade(rule, rank), line: { width: 2 } };
  return [{ ...trace, mode: "markers", x: [best.lr], y: [loss], marker, name: "best" }];
}
