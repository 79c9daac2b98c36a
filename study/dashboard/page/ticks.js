"use strict";
// Ticks: round values, whole steps, and as many labels as fit.

/** A logarithmic axis from 10^low to 10^high. In a few decades it has 1, 2 and 5 of each. */
function logAxis([low, high]) {
  const few = high - low > 0.7 && high - low < 3 ? { dtick: "D2" } : {};
  return { ...AXIS(), type: "log", range: [low, high], nticks: 6, tickformat: "~g", ...few };
}

/** An axis of steps: only whole numbers have a tick. */
function stepAxis([low, high], pixels) {
  const ticks = wholeTicks(low, high, Math.max(2, Math.floor(pixels / 34)));
  return { tickvals: ticks, ticktext: ticks.map(String), title: axisTitle("step") };
}

/** Whole numbers from `low` to `high`, evenly spaced, about `most` of them. */
function wholeTicks(low, high, most) {
  let every = 1;
  for (let k = 0; (high - low) / every > most; k++)
    every = [1, 2, 5][k % 3] * 10 ** Math.floor(k / 3);
  const ticks = [];
  // + 0 makes 0 of -0.
  for (let at = Math.ceil(low / every) * every; at <= high; at += every) ticks.push(at + 0);
  return ticks;
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

/** Labels of the colour bar: powers of ten, or five values if it spans few of them. */
function logTicks(low, high) {
  const every = Math.max(1, Math.ceil((high - low) / 8));
  const powers = [];
  for (let k = Math.ceil(low); k <= high; k += every) powers.push(k);
  const evenly = [0, 1, 2, 3, 4].map(k => low + (k * (high - low)) / 4);
  const values = powers.length >= 3 ? powers : evenly;
  const text = k => brief(Number((10 ** k).toPrecision(2)));
  return { tickvals: values, ticktext: values.map(text) };
}
