"use strict";
// Curves in one panel per rule, with common axes and a label at the end of each curve.

const MARGIN = { l: 74, r: 52, t: 26, b: 40 };
const PANEL_GAP = 52; // pixels between panels: labels stand there
const MOST_MARKED_POINTS = 40; // longer curves are drawn without markers
const MOST_LABELS = 6;
const LABEL_HEIGHT = 13; // pixels

/**
 * @param curves [{rule, rank, cells, x, y}], one per rule and rank.
 * @param look {log, yTitle, smooth, zooms, band}: whether y is logarithmic; its title; the weight
 *   of the moving average; whether the reader can zoom; and the range of y where studies have
 *   their lowest loss.
 */
function drawCurves(id, view, curves, look) {
  const { log = true, yTitle, smooth = 0, band } = look;
  const rules = view.rules.filter(rule => curves.some(curve => curve.rule === rule));
  const visible = log ? hasLog : Number.isFinite;
  const drawn = curves.map(curve => ({ ...curve, smoothed: movingAverage(curve.y, smooth) }));
  const ranges = [xRange(drawn), yRange(drawn, visible, log)];
  const margin = MARGIN;
  const size = innerSize(id, margin);
  const panels = panelDomains(rules.length, size.width);
  const [first, last] = ranges[0];
  const most = Math.max(2, Math.floor((size.width * (panels[0]?.[1] ?? 1)) / 34));
  const whole = last - first < most ? { dtick: 1 } : { nticks: most }; // ticks at whole steps
  const layout = { margin, annotations: [], dragmode: look.zooms ? "zoom" : false };
  layout.uirevision = yTitle; // the reader's zoom stays until the curve changes
  const data = [];
  rules.forEach((rule, n) => {
    layout[`xaxis${n === 0 ? "" : n + 1}`] = {
      ...AXIS(),
      ...whole,
      title: axisTitle("step"),
      domain: panels[n],
      range: ranges[0],
      matches: n === 0 ? undefined : "x",
      fixedrange: !look.zooms,
    };
    layout.annotations.push(heading(rule.name, panels[n], rule, size.width));
    const own = drawn.filter(curve => curve.rule === rule);
    for (const curve of own) {
      const place = { xaxis: axisName(n), yaxis: "y", hoverinfo: "none" };
      const trace = { ...place, type: "scatter", meta: drawn.indexOf(curve) };
      data.push(...curveTraces(view, curve, { trace, visible, smooth }));
    }
    layout.annotations.push(
      ...endLabels(view, own, { axis: axisName(n), visible, log, ranges, size }),
    );
  });
  layout.yaxis = {
    ...(log ? logAxis(ranges[1]) : { ...AXIS(), nticks: 6, range: ranges[1] }),
    title: axisTitle(yTitle, 10),
    fixedrange: !look.zooms,
  };
  if (band) markBand(layout, band);
  draw(id, data, layout);
  return drawn;
}

/** A grey range of y, with its meaning. */
function markBand(layout, [low, high]) {
  const wide = { xref: "paper", x0: 0, x1: 1, layer: "below", line: { width: 0 } };
  const look = { type: "rect", yref: "y", fillcolor: colour("ink"), opacity: 0.1 };
  layout.shapes = [{ ...wide, ...look, y0: low, y1: high }];
  layout.annotations.push({
    ...{ xref: "paper", x: 0, xanchor: "left", yref: "y", y: Math.log10(high), yanchor: "top" },
    ...{ text: "lowest losses of the studies of alpha, at the end", showarrow: false },
    font: { size: 11, color: colour("ink") },
  });
}

/** The pixels inside the margins of a chart. */
function innerSize(id, margin) {
  const [width, height] = sizeOf(id);
  return {
    width: Math.max(50, width - margin.l - margin.r),
    height: Math.max(50, height - margin.t - margin.b),
  };
}

/** The horizontal range of each of `n` panels, from 0 to 1. */
function panelDomains(n, pixels) {
  const gap = n > 1 ? Math.min(PANEL_GAP / pixels, 0.5 / (n - 1)) : 0;
  const width = (1 - gap * (n - 1)) / n;
  return [...Array(n).keys()].map(k => [k * (width + gap), k * (width + gap) + width]);
}

/** From the lowest to the highest x, with some room. */
function xRange(curves) {
  return withRoom(
    curves.flatMap(curve => curve.x),
    0.03,
    0.5,
  );
}

function yRange(curves, visible, log) {
  const shown = curves.flatMap(curve => curve.y).filter(visible);
  return withRoom(log ? shown.map(Math.log10) : shown, 0.06, 0.05);
}

/** The range of numbers, wider by a share on each side; `least` if they are all the same. */
function withRoom(numbers, share, least) {
  if (!numbers.length) return [0, 1];
  const low = numbers.reduce((a, b) => Math.min(a, b));
  const high = numbers.reduce((a, b) => Math.max(a, b));
  const room = share * (high - low) || least;
  return [low - room, high + room];
}

/** An exponential moving average without the bias of its start, as TensorBoard and W&B show it. */
function movingAverage(values, weight) {
  if (!weight) return values;
  let [average, total] = [0, 0];
  return values.map(value => {
    if (!Number.isFinite(value)) return value;
    average = weight * average + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return average / total;
  });
}

/** The line of a rule and rank, and a cross at its end if a cell diverged or is stuck. */
function curveTraces(view, { rule, rank, cells, x, y, smoothed }, { trace, visible, smooth }) {
  const shown = x.flatMap((_, k) => (visible(y[k]) ? [k] : []));
  const line = { ...trace, x: shown.map(k => x[k]), y: shown.map(k => smoothed[k]) };
  const chosen = rank === view.rank;
  const look = { color: shade(rule, rank), width: chosen ? 2.8 : 1.6 };
  const points = shown.length > MOST_MARKED_POINTS || smooth ? "lines" : "lines+markers";
  const traces = [];
  if (smooth) {
    const raw = { ...line, y: shown.map(k => y[k]), mode: "lines", opacity: 0.25 };
    traces.push({ ...raw, line: { ...look, width: 1 } });
  }
  traces.push({ ...line, mode: points, line: look, marker: { size: chosen ? 5.5 : 4 } });
  if (y.some(v => v !== null && isBroken(v)) || cells.some(cell => cell.end_step !== null)) {
    traces.push({
      ...line,
      x: [line.x.at(-1) ?? x[0]],
      y: [line.y.at(-1) ?? 1],
      mode: "markers",
      marker: { symbol: "x-thin", size: 9, line: { width: 2.4, color: colour("broken") } },
    });
  }
  return traces;
}

/**
 * The rank of each curve beside its end, at most MOST_LABELS of them, moved apart where they would
 * overlap. The lowest, the highest and the chosen rank always have one.
 */
function endLabels(view, curves, { axis, visible, log, ranges, size }) {
  const [[, right], [low, high]] = ranges;
  const scale = log ? Math.log10 : value => value;
  const ends = curves.flatMap(curve => {
    const last = curve.y.findLastIndex((y, k) => visible(y) && curve.x[k] <= right);
    if (last < 0) return [];
    const share = (high - scale(curve.smoothed[last])) / (high - low);
    return share < 0 || share > 1 ? [] : [{ curve, at: share * size.height }];
  });
  const labelled = fewOf(ends, view.rank).sort((a, b) => a.at - b.at);
  const isFirst = labelled.length && axis === "x";
  const heads = isFirst ? [endLabel("rank", axis, 0, -LABEL_HEIGHT - 2)] : [];
  const places = movedApart(
    labelled.map(end => end.at),
    size.height,
  );
  return [
    ...heads,
    ...labelled.map(({ curve: { rule, rank } }, k) => {
      const text = `<span style="color:${shade(rule, rank)}">━</span> ${rankName(rank)}`;
      return endLabel(rank === view.rank ? `<b>${text}</b>` : text, axis, 0, places[k]);
    }),
  ];
}

/** A text to the right of a panel, `y` pixels below its top. */
function endLabel(text, axis, x, y) {
  return {
    text,
    xref: `${axis} domain`,
    x: 1,
    xanchor: "left",
    xshift: 3 + x,
    yref: "paper",
    y: 1,
    yanchor: "middle",
    yshift: -y,
    showarrow: false,
    font: { size: 11, color: colour("ink") },
  };
}

/** At most MOST_LABELS of the ends, evenly spread over the ranks. */
function fewOf(ends, chosenRank) {
  if (ends.length <= MOST_LABELS) return [...ends];
  const byRank = [...ends].sort((a, b) => a.curve.rank - b.curve.rank);
  const every = (byRank.length - 1) / (MOST_LABELS - 1);
  const kept = new Set([...Array(MOST_LABELS).keys()].map(k => byRank[Math.round(k * every)]));
  const chosen = byRank.find(end => end.curve.rank === chosenRank);
  if (chosen && !kept.has(chosen)) {
    const inner = [...kept].slice(1, -1);
    const near = end => Math.abs(byRank.indexOf(end) - byRank.indexOf(chosen));
    kept.delete(inner.reduce((best, end) => (near(end) < near(best) ? end : best)));
    kept.add(chosen);
  }
  return [...kept];
}

/** Ascending places, at least LABEL_HEIGHT apart and not below `bottom`. */
function movedApart(places, bottom) {
  const moved = [];
  for (const place of places)
    moved.push(Math.max(place, (moved.at(-1) ?? -Infinity) + LABEL_HEIGHT));
  let below = bottom + LABEL_HEIGHT;
  for (let k = moved.length - 1; k >= 0; k--) {
    moved[k] = Math.min(moved[k], below - LABEL_HEIGHT);
    below = moved[k];
  }
  return moved;
}
