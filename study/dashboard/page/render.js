"use strict";
// Draws each part of the page from `page` (main.js), and handles its tooltips and clicks.

const ALWAYS_COUNTED = ["complete", "running", "diverged", "failed"];

// ---- header, verdicts, choosers

function renderTop(overview) {
  byId("study").textContent = overview.study;
  const counts = Object.entries(overview.counts);
  const shown = counts.filter(([state, count]) => count || ALWAYS_COUNTED.includes(state));
  const count = ([state, number]) => countOf(state, number, overview.states[state]);
  byId("counts").replaceChildren(...shown.map(count));
  byId("brackets").textContent = overview.brackets ? `brackets: ${overview.brackets}` : "";
  byId("verdict-table").replaceChildren(verdictTable(overview));
  if (!overview.live) {
    const left = overview.left_out
      ? `; ${overview.left_out} more quantities were left out to stay below 10 MB`
      : "";
    connection("still", `Exported to this file; values within 0.1 %${left}`);
  }
}

function countOf(state, count, { symbol, colour }) {
  const word = state === "complete" ? "done" : state;
  const number = element("b", {}, String(count));
  return element("span", { class: count ? colour : "faint" }, `${symbol} `, number, ` ${word}`);
}

function renderChoosers(view) {
  const { site, stat, batch } = view.quantity;
  const ofSite = view.overview.quantities.filter(quantity => quantity.site === site);
  const ofStat = ofSite.filter(quantity => quantity.stat === stat);
  const sites = distinct(view.overview.quantities.map(quantity => quantity.site));
  const stats = distinct(ofSite.map(quantity => quantity.stat));
  const batches = distinct(ofStat.map(quantity => quantity.batch));
  const kinds = [[ALL, "all kinds"], ...pairs(view.kinds)];
  const mean = view.seeds.length > 1 ? `mean of ${view.seeds.length}` : "only one";
  const seeds = [[ALL, mean], ...pairs(view.seeds)];
  const ranks = view.ranks.map(rank => [rankKey(rank), rankName(rank)]);
  fill(
    "site",
    pairs(sites, name => labelled("site", name)),
    site,
  );
  fill(
    "stat",
    pairs(stats, name => labelled("stat", name)),
    stat,
  );
  fill("batch", pairs(batches), batch, true);
  fill("kind", kinds, view.kind);
  fill("optimizer", Object.entries(view.overview.optimizers), view.optimizer);
  fill("setting", pairs(view.settings), view.setting, true);
  fill("seed", seeds, view.seed);
  fill("rank", ranks, rankKey(view.rank));
  fill(
    "order",
    pairs(ORDERS, order => `by ${order}`),
    view.order,
  );
  fill("curve", Object.entries(view.overview.labels.curve), view.curve);
  fill("layer", layerOptions(view), view.layer);
  for (const name of ["site", "stat"]) byId(name).title = byId(name).selectedOptions[0].text;
  renderStep(view);
  renderRules(view);
}

/** Options of a <select>: the value, and its text. */
const pairs = (values, text = value => value) => values.map(value => [value, text(value)]);

/** `rms: root mean square`; the name alone if its label says nothing more. */
function labelled(group, name) {
  const label = page.overview.labels[group][name];
  return label && label !== name ? `${name}: ${label}` : name;
}

function layerOptions(view) {
  return [
    [MEAN, `mean over ${view.layers.length} layers (of the log)`],
    ...(view.hasModel ? [[view.model.name, "whole model"]] : []),
    ...view.layers.map(layer => [layer.name, `${layer.block}: ${layer.name}`]),
  ];
}

function renderStep(view) {
  const slider = byId("step");
  slider.max = Math.max(0, view.steps.length - 1);
  slider.value = Math.max(0, view.steps.indexOf(view.step));
  slider.setAttribute("aria-valuetext", `step ${view.step}`);
  const text = view.step === undefined ? "" : `${view.step} of ${view.steps.at(-1)}`;
  byId("step-value").textContent = text;
}

function renderRules(view) {
  const box = byId("rules");
  const key = JSON.stringify([view.allRules.map(rule => rule.id), theme()]);
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    const labels = view.allRules.map(rule => {
      const input = { type: "checkbox", value: rule.id, onchange: chooseRules };
      return element("label", {}, element("input", input), swatch(rule), rule.name);
    });
    box.replaceChildren(element("legend", {}, "Rules"), ...labels);
  }
  for (const input of box.querySelectorAll("input")) {
    input.checked = view.rules.some(rule => rule.id === input.value);
  }
}

function chooseRules() {
  const checked = [...byId("rules").querySelectorAll("input:checked")].map(input => input.value);
  if (checked.length) choose({ rules: checked.join(",") });
  else renderChoosers(page.view); // The last rule stays checked.
}

// ---- heat map

function renderHeat(view) {
  const drawn = drawHeat(view);
  page.heat = drawn;
  const kind = view.kind === ALL ? "" : ` (${view.kind})`;
  const where = `${view.layers.length} layers${kind}, log colours`;
  byId("heat-title").replaceChildren(
    `${view.quantity.site} ${view.quantity.stat}`,
    element("small", {}, ` ${where}${seedText(view)}${batchText(view.quantity)}`),
  );
  const buttons = findings(view, drawn).map(found => {
    const { text, title, rule, broken } = found;
    const onclick = () => choose(found.choose);
    const attributes = { type: "button", title, class: broken ? "broken" : undefined, onclick };
    return element("button", attributes, rule ? swatch(rule) : null, text);
  });
  byId("where").replaceChildren("Look first at", ...buttons);
  byId("where").hidden = buttons.length === 0;
  renderKey(drawn.count);
  onPoints("heat", heatText, heatClick);
}

function renderKey({ broken, noLog }) {
  const entry = (style, text) => element("span", { class: style }, element("i"), text);
  byId("key").replaceChildren(
    entry(broken ? "not-finite any" : "not-finite", `not finite: ${broken}`),
    ...(noLog ? [entry("no-log", `zero or negative: ${noLog}`)] : []),
    entry("", "not measured"),
    element(
      "span",
      {},
      "Click a value or use the arrow keys to choose it. ",
      "Drag up or down to zoom, double-click to reset.",
    ),
  );
}

const batchText = ({ batch }) => (batch === "train" ? "" : `, ${batch} batch`);

function seedText(view) {
  if (view.seeds.length < 2) return "";
  return view.seed === ALL ? `, mean of ${view.seeds.length} seeds` : `, seed ${view.seed}`;
}

function heatPoint({ data, x, y }) {
  const panel = page.heat.panels[data.meta];
  if (!panel) return null;
  const column = panel.columns[x];
  return { panel, layer: page.heat.rows[y], column, value: panel.values[y][x] };
}

function heatText(point) {
  const at = heatPoint(point);
  const { rank, step, quantity } = page.view;
  if (!at) {
    const { rule, lines } = page.heat.fits.find(fit => fit.rule.id === point.data.meta.rule);
    const { slope, low, high, ranks, seeds } = lines[point.y];
    const brackets = low === null ? "" : `, brackets: ${bracketText(seeds)}`;
    const text = `exponent ${interval(slope, low, high)}, ${ranks} ranks${brackets}`;
    return `${page.heat.rows[point.y].name}\n${rule.name}, ${text}`;
  }
  const where =
    at.panel.of === "steps"
      ? `rank ${rankName(rank)}, step ${at.column}`
      : `rank ${rankName(at.column)}, step ${step}`;
  return `${at.layer.name}\n${at.panel.rule.name}, ${where}\n${quantity.stat} ${number(at.value)}`;
}

function heatClick(point) {
  const at = heatPoint(point);
  if (!at) return choose({ layer: page.heat.rows[point.y].name });
  const column = at.panel.of === "steps" ? { step: at.column } : { rank: rankKey(at.column) };
  return choose({ layer: at.layer.name, ...column });
}

/** Moves the frame around the chosen row. Cheaper than drawing the heat map again. */
function renderRow(view) {
  Plotly.relayout(byId("heat"), { shapes: [...page.heat.shapes, ...rowMark(view)] });
}

// ---- curves and cells

function renderCurves(view) {
  page.curves = drawCurves("layer-curves", view, view.sample, cell => view.curveOf(cell));
  onPoints(
    "layer-curves",
    point => curveText(point, page.curves, page.view.quantity.stat),
    point => chooseCurve(point, page.curves),
  );
}

function renderFit(view) {
  page.fit = drawFit(view);
  const where = point => `rank ${point.x}, seed ${point.data.meta.seeds[point.pointIndex]}`;
  onPoints(
    "layer-fit",
    point => `${where(point)}\n${page.view.quantity.stat} ${number(point.y)}`,
    point => choose({ rank: point.x }),
  );
}

function renderLosses(view) {
  const infinities = { inf: Infinity, "-inf": -Infinity };
  const series = cell => {
    const { step, value } = cell.curves[view.curve];
    return { step, value: value.map(v => infinities[v] ?? v) };
  };
  const log = view.curve === "grad_norm";
  page.losses = drawCurves("loss", view, view.sample, series, { log });
  onPoints(
    "loss",
    point => curveText(point, page.losses, page.overview.labels.curve[page.view.curve]),
    point => chooseCurve(point, page.losses),
  );
}

function curveText(point, drawn, name) {
  const { cell } = drawn[point.data.meta];
  const where = `rank ${rankName(rankOf(cell))}, seed ${cell.seed}, step ${point.x}`;
  return `${where}\n${name} ${number(point.y)}`;
}

const chooseCurve = (point, drawn) => choose({ rank: drawn[point.data.meta].cell.rank });

function renderCells() {
  const { main, rest } = page.overview.configuration;
  byId("main-settings").textContent = main.join(" · ");
  const others = Object.entries(rest).map(([name, value]) => `${name} ${value}`);
  byId("other-settings").textContent = others.join(" · ");
  const focused = document.activeElement?.closest("#cells th")?.textContent;
  const table = cellTable(page.overview, page.view, page.sort, sortCells, chooseCell);
  byId("cells").replaceChildren(table);
  if (!focused) return;
  const name = focused.replace(/ [↑↓]$/, "");
  const heads = [...byId("cells").querySelectorAll("th button")];
  heads.find(button => button.textContent.startsWith(name))?.focus();
}

function sortCells(name) {
  page.sort = { name, down: page.sort.name === name && !page.sort.down };
  renderCells();
}

function chooseCell(cell) {
  const { rank, seed, optimizer, setting } = cell;
  const rules = distinct([...(page.view?.rules ?? []).map(rule => rule.id), cell.rule]).join(",");
  choose({ rank, seed: String(seed), optimizer, setting, rules });
}
