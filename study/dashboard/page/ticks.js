"use strict";
// Ticks: round values, whole steps, and as many labels as fit.

/** A logarithmic axis from 10^low to 10^high. In a few decades it has 1, 2 and 5 of each. */
function logAxis([low, high]) {
  const few = high - low > 0.7 && high - low < 3 ? { dtick: "D2" } : {};
  return { ...AXIS(), type: "log", range: [low, high], nticks: 6, tickformat: "~g", ...few };
}

/** An axis of steps: only whole numbers have a tick. */
function stepAxis([low, high], pixels) {
  const most = Math.max(2, Math.floor(pixels / 34));
  return { nticks: most, dtick: high - low < most ? 1 : undefined, title: axisTitle("step") };
}

/** Positions of the labels, as many as fit: the first and the last column, or the chosen one. */
function columnTicks({ columns, chosen }, pixels) {
  const widest = Math.max(...columns.map(column => String(column).length));
  if (pixels < 24 + 14 * widest) return [Math.max(0, columns.indexOf(chosen))];
  const every = Math.ceil(columns.length / Math.max(2, Math.floor(pixels / (10 + 7 * widest))));
  const last = columns.length - 1;
  const inner = [...columns.keys()].filter(x => x % every === 0 && last - x >= every);
  return [...inner, last];
}

/** At most `most` of the numbers 0 ... n - 1, evenly spaced, including both ends. */
function evenlySpaced(n, most) {
  if (n <= most) return [...Array(n).keys()];
  return distinct([...Array(most).keys()].map(k => Math.round((k * (n - 1)) / (most - 1))));
}

/** Labels of the colour bar: five values, evenly spaced in the logarithm. */
function logTicks(low, high) {
  const values = [0, 1, 2, 3, 4].map(k => low + (k * (high - low)) / 4);
  return { tickvals: values, ticktext: values.map(k => brief(Number((10 ** k).toPrecision(2)))) };
}
