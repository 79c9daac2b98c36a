"use strict";
// Small things that every part of the page is made of.

const byId = id => document.getElementById(id);

/** An element; strings among the children become text, whatever they hold. */
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "line", "circle", "rect", "path"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== undefined && child !== null));
  return made;
}

/** Fill a <select> with [value, text] pairs; hidden where there is nothing to choose, if `optional`. */
function fill(select, options, chosen, optional = false) {
  const key = JSON.stringify(options);
  if (select.dataset.options !== key) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    select.dataset.options = key;
  }
  select.value = chosen;
  if (optional) select.closest("label").hidden = options.length < 2;
}

/** Plotly reads a little HTML in its texts: names are to be read as they are. */
const plain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Four digits at most, and no more zeros than one can count. */
function number(value) {
  if (value === undefined || value === null) return "not measured";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "+∞" : "−∞";
  const size = Math.abs(value);
  const text = value === 0 ? "0" : size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
  return text.replaceAll("-", "−");
}

const twoPlaces = value => (Math.round(value * 100) === 0 ? "0.00" : value.toFixed(2)).replace("-", "−");
const interval = (value, low, high) => twoPlaces(value) + (low === null ? "" : ` [${twoPlaces(low)}, ${twoPlaces(high)}]`);

// ------------------------------------------------------------------------------------------------------------ colour

const theme = () => document.documentElement.dataset.theme;
const tint = rule => rule.tint[theme()];
const shade = (rule, rank) => rule.shades[theme()][rank === Infinity ? "inf" : String(rank)] ?? tint(rule);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function swatch(rule) {
  return element("span", { class: rule.marker === "circle" ? "swatch" : "swatch square", style: `background:${tint(rule)}` });
}

// ------------------------------------------------------------------------------------------------------------ charts

const AXIS = () => ({
  gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, ticks: "outside", ticklen: 3,
  tickcolor: colour("line"), tickfont: { size: 11 }, fixedrange: true, automargin: false,
});

/** A logarithmic axis that labels decades, and steps within them where it spans few. */
function logAxis(values, extra = {}) {
  const logs = values.filter(hasLog).map(Math.log10);
  const span = logs.length ? Math.max(...logs) - Math.min(...logs) : 0;
  return { ...AXIS(), type: "log", exponentformat: "power", dtick: span > 1.2 ? Math.max(1, Math.ceil(span / 6)) : undefined, nticks: 6, ...extra };
}

const LAYOUT = () => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 12, color: colour("ink") },
  showlegend: false, hovermode: "closest", dragmode: false,
});

function draw(id, data, layout) {
  return Plotly.react(byId(id), data, { ...LAYOUT(), ...layout }, { displayModeBar: false, responsive: true, doubleClick: "reset" });
}

/** A small text that follows the pointer. */
function tip(event, text) {
  const box = byId("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { clientX: x, clientY: y } = event, { offsetWidth: w, offsetHeight: h } = box;
  box.style.left = `${x + 16 + w > innerWidth ? x - w - 12 : x + 16}px`;
  box.style.top = `${y + 18 + h > innerHeight ? y - h - 10 : y + 18}px`;
}

/** What to say of a point of a chart, and what to do when it is clicked; said again, it changes nothing. */
function answer(id, text, click = () => {}) {
  const chart = byId(id);
  if (chart.dataset.answers) return;
  chart.dataset.answers = "yes";
  chart.on("plotly_hover", ({ event, points: [point] }) => tip(event, text(point)));
  chart.on("plotly_unhover", () => tip(null, ""));
  chart.on("plotly_click", ({ points: [point] }) => click(point));
}

// --------------------------------------------------------------------------------------------------------- downloads

function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function downloadCsv(name, heads, rows) {
  const word = value => {
    const text = value === undefined || value === null ? "" : String(value);
    const safe = /^[=+\-@]/.test(text) && typeof value === "string" ? `'${text}` : text;  // not a spreadsheet's formula
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  download(`${name}.csv`, [heads, ...rows].map(row => row.map(word).join(",")).join("\n") + "\n", "text/csv");
}

function downloadPng(id, name, title) {
  const chart = byId(id);
  const layout = {
    ...chart.layout, paper_bgcolor: colour("panel"), title: { text: plain(title), font: { size: 13 }, x: 0.01, xanchor: "left", y: 0.99, yanchor: "top" },
    margin: { ...chart.layout.margin, t: chart.layout.margin.t + 24 },
  };
  Plotly.downloadImage({ data: chart.data, layout }, { format: "png", scale: 2, width: chart.clientWidth, height: chart.clientHeight + 24, filename: name });
}
