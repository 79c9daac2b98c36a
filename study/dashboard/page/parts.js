"use strict";
// Helpers for every part of the page: elements, numbers, colours and charts.

const byId = id => document.getElementById(id);

/** An element. Children that are strings become text, never markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== undefined && child !== null));
  return made;
}

/** Fills a <select> with [value, text] pairs. If `optional`, it is hidden with fewer than two. */
function fill(id, options, chosen, optional = false) {
  const select = byId(id);
  const key = JSON.stringify(options);
  if (select.dataset.options !== key) {
    const option = ([value, text]) =>
      element("option", { value, title: page.overview.glossary[value] }, text);
    select.replaceChildren(...options.map(option));
    select.dataset.options = key;
  }
  select.value = chosen;
  select.dataset.term = chosen;
  if (optional) select.closest("label").hidden = options.length < 2;
}

/** Escapes a name for Plotly, which interprets some HTML. */
const plain = text =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** At most four digits; of very small and large numbers three: `1.2e−4`, `2.5e7`. */
function number(value) {
  if (value === undefined || value === null) return "not measured";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "+∞" : "−∞";
  const size = Math.abs(value);
  const plainly = value === 0 || (size >= 1e-3 && size < 1e5);
  if (plainly) return minus(String(Number(value.toPrecision(4))));
  return minus(Number(value.toPrecision(3)).toExponential().replace("e+", "e"));
}

const twoPlaces = value =>
  (Math.round(value * 100) === 0 ? "0.00" : value.toFixed(2)).replace("-", "−");

/** A text with hyphens as minus signs. */
const minus = text => text.replaceAll("-", "−");

/** `−0.50 [−0.52, −0.48]`; without the interval if `low` is null. */
function interval(value, low, high) {
  return twoPlaces(value) + (low === null ? "" : ` [${twoPlaces(low)}, ${twoPlaces(high)}]`);
}

const sum = numbers => numbers.reduce((total, one) => total + one, 0);
const mean = numbers => sum(numbers) / numbers.length;

// ---- colour

const theme = () => document.documentElement.dataset.theme;
const tint = rule => rule.tint[theme()];
const shade = (rule, rank) => rule.shades[theme()][rankKey(rank)] ?? tint(rule);
const colour = name =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function swatch(rule) {
  return element("span", {
    class: "swatch",
    style: `background:${tint(rule)}`,
  });
}

// ---- charts

const AXIS = () => ({
  gridcolor: colour("line"),
  linecolor: colour("line"),
  zeroline: false,
  ticks: "outside",
  ticklen: 3,
  tickcolor: colour("line"),
  tickfont: { size: 11 },
  fixedrange: true,
  automargin: false,
});

/** A logarithmic axis from 10^low to 10^high. In a few decades it has 1, 2 and 5 of each. */
function logAxis([low, high]) {
  const few = high - low < 3 ? { dtick: high - low < 0.8 ? "D1" : "D2" } : {};
  return { ...AXIS(), type: "log", range: [low, high], nticks: 6, tickformat: "~g", ...few };
}

const axisTitle = (text, standoff = 4) => ({ text, standoff, font: { size: 11.5 } });

const LAYOUT = () => ({
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line") },
  font: { family: "system-ui, sans-serif", size: 12, color: colour("ink") },
  showlegend: false,
  hovermode: "closest",
  dragmode: false,
});

/** The pixels of a chart. */
const sizeOf = id => [Math.max(120, byId(id).clientWidth), Math.max(100, byId(id).clientHeight)];

function draw(id, data, layout) {
  if (byId(id).querySelector(":scope > .empty")) byId(id).replaceChildren();
  const [width, height] = sizeOf(id);
  const options = { displaylogo: false, modeBarButtons: [["toImage"]], doubleClick: "reset" };
  options.toImageButtonOptions = { filename: `${page.overview.study}-${id}`, scale: 2 };
  const whole = { ...LAYOUT(), ...layout, width, height };
  return Plotly.react(byId(id), data, whole, options);
}

/** Shows a sentence in place of a chart. */
function say(id, text) {
  Plotly.purge(byId(id));
  delete byId(id).dataset.listens;
  byId(id).replaceChildren(element("p", { class: "empty" }, text));
}

/** Shows a tooltip at the pointer; hides it if there is no text. */
function tip(event, text) {
  const box = byId("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { clientX: x, clientY: y } = event;
  const { offsetWidth: w, offsetHeight: h } = box;
  box.style.left = `${x + 16 + w > innerWidth ? x - w - 12 : x + 16}px`;
  box.style.top = `${y + 18 + h > innerHeight ? y - h - 10 : y + 18}px`;
}

/** Sets the tooltip text and the click action of a chart's points. Later calls have no effect. */
function onPoints(id, text, click) {
  const chart = byId(id);
  if (chart.dataset.listens) return;
  chart.dataset.listens = "yes";
  chart.on("plotly_hover", ({ event, points: [point] }) => tip(event, text(point)));
  chart.on("plotly_unhover", () => tip(null, ""));
  chart.on("plotly_click", ({ points: [point] }) => click(point));
}
