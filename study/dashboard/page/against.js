"use strict";
// The chart against rank: the log-log fit of one layer.

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
  const traces = found.map(({ rule, dots, line }) => line && fittedLine(rule, dots, line));
  const heights = [...all.map(dot => dot.value), ...traces.flatMap(trace => trace?.y ?? [])];
  const range = withRoom(heights.map(Math.log10), 0.06, 0.1);
  const data = [];
  const ends = [];
  for (const [n, { rule, dots }] of found.entries()) {
    if (traces[n]) {
      data.push(traces[n]);
      ends.push({ rule, y: Math.log10(traces[n].y[1]) });
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
