"use strict";
// Draws each part of the page from `page` (main.js), and handles its tooltips and clicks.

// ---- header, verdicts, choosers

function renderTop(overview) {
  byId("study").textContent = overview.study;
  byId("about").textContent = overview.configuration.main;
  renderProgress(overview);
  fill("study-choice", pairs(page.all.studies), overview.study, true);
  byId("study").classList.toggle("hidden", page.all.studies.length > 1); // the list has the name
  byId("findings").innerHTML = overview.report; // inert HTML of study.report
  if (!page.all.live) {
    const left = page.all.left_out
      ? `; ${page.all.left_out} more quantities were left out`
      : "";
    connection("still", `Exported to this file; values within 0.1 %${left}`);
  }
}

/** Cells by state, how many of all are done, and the time left of the sweeps that train them. */
function renderProgress(overview) {
  const { waiting, seconds_left: left } = page.ahead;
  const counts = Object.entries({ ...overview.counts, waiting });
  const states = { ...overview.states, waiting: { symbol: "○", colour: "grey" } };
  const shown = counts.filter(([state, count]) => count && state !== "complete");
  byId("counts").replaceChildren(
    ...shown.map(([state, number]) => countOf(state, number, states[state])),
  );
  const all = sum(counts.map(([, count]) => count));
  const done = sum(counts.filter(([state]) => states[state].done).map(([, count]) => count));
  const time = left === null ? "" : ` · ${duration(left)} left`;
  byId("progress-text").textContent = `${done} of ${all} cells done${time}`;
  Object.assign(byId("bar"), { max: Math.max(1, all), value: done });
}

/** `0:03:10`, as study status writes it. */
function duration(seconds) {
  const whole = Math.round(seconds);
  const two = number => String(number).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

function countOf(state, count, { symbol, colour }) {
  const number = element("b", {}, String(count));
  const look = { style: `color: var(--${colour})`, "data-term": state };
  return element("span", look, `${symbol} `, number, ` ${state}`);
}

// ---- views

/** Shows the chosen view. A chart that was drawn in another window size is drawn again. */
function renderTab(tab) {
  document.body.dataset.tab = tab;
  for (const button of document.querySelectorAll("#tabs button")) {
    const chosen = button.dataset.tab === tab;
    button.setAttribute("aria-selected", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
}

function renderChoosers(view) {
  const { site, stat, batch } = view.quantity;
  const ofSite = view.overview.quantities.filter(quantity => quantity.site === site);
  const ofStat = ofSite.filter(quantity => quantity.stat === stat);
  const sites = distinct(view.overview.quantities.map(quantity => quantity.site));
  const stats = distinct(ofSite.map(quantity => quantity.stat));
  const batches = distinct(ofStat.map(quantity => quantity.batch));
  const kinds = [[ALL, "all kinds"], ...pairs(view.kinds)];
  const seeds = [[ALL, view.seeds.length > 1 ? "mean" : "only one"], ...pairs(view.seeds)];
  const ranks = view.ranks.map(rank => [rankKey(rank), rankName(rank)]);
  const { labels } = view.overview;
  fill(
    "site",
    pairs(sites, name => labels.site[name] ?? name),
    site,
  );
  fill("stat", pairs(stats, columnName), stat);
  fill("batch", pairs(batches), batch, true);
  fill("kind", kinds, view.kind);
  fill("optimizer", Object.entries(view.overview.optimizers), view.optimizer);
  fill("setting", pairs(view.settings), view.setting, true);
  fill("seed", seeds, view.seed);
  fill("rank", ranks, rankKey(view.rank));
  fill("layer", layerOptions(view), view.layer);
  renderLossChoosers(view);
  renderStep(view);
  renderRules(view);
}

/** Options of a <select>: the value, and its text. */
const pairs = (values, text = value => value) => values.map(value => [value, text(value)]);

/** The words of a column of the probes. */
const columnName = stat => page.overview.labels.stat[stat] ?? stat;

/** `, held-out batch`; empty if the page has the training batch only. */
const onBatch = ({ batches }, { batch }) => (batches[batch] ? `, ${batches[batch]}` : "");

/** `gradient of A and B, Frobenius norm`. */
function quantityText({ site, stat }) {
  const { labels } = page.overview;
  return `${labels.site[site] ?? site}, ${labels.stat[stat] ?? stat}`;
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
    const explained = { "data-term": "rule", tabindex: 0 };
    const legend = element("legend", {}, element("span", explained, "Rules"));
    box.replaceChildren(legend, ...labels);
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

/** The texts around the charts. They come first, because they take room from the charts. */
function renderLayerTexts(view) {
  const kind = view.kind === ALL ? "" : ` (${view.kind})`;
  const where = `${view.layers.length} layers${kind}`;
  const about = `${quantityText(view.quantity)}; ${where}${seedText(view)}`;
  byId("heat-title").replaceChildren(
    `${view.quantity.site} ${view.quantity.stat}`,
    element("small", {}, ` ${about}${onBatch(view.overview, view.quantity)}`),
  );
  byId("curves-title").textContent = `Over training${seedText(view)}`;
  renderNotice(view);
}

function renderHeat(view) {
  const drawn = heatContent(view);
  const buttons = findings(view, drawn).map(found => {
    const { text, title, rule, broken } = found;
    const onclick = () => choose(found.choose);
    const attributes = { type: "button", title, class: broken ? "broken" : undefined, onclick };
    return element("button", attributes, rule ? swatch(rule) : null, text);
  });
  byId("where").replaceChildren("Look at", ...buttons);
  byId("where").hidden = buttons.length === 0;
  renderKey(drawn.count);
  page.heat = drawn;
  drawHeat(view, drawn);
  onPoints("heat", heatText, heatClick);
}

/** What is not measured at the chosen step, with a button to a step that has something to show. */
function renderNotice({ notice, step: chosen }) {
  const box = byId("notice");
  box.hidden = notice === null;
  if (notice === null) return;
  const { text, step } = notice;
  const onclick = () => choose({ step });
  const other = step !== undefined && step !== chosen;
  box.replaceChildren(
    text,
    other ? element("button", { type: "button", onclick }, `Show step ${step}`) : "",
  );
}

function renderKey({ broken, noLog }) {
  const entry = (style, text) => element("span", { class: style }, element("i"), text);
  byId("key").replaceChildren(
    entry(broken ? "not-finite any" : "not-finite", `not finite: ${broken} values`),
    ...(noLog ? [entry("no-log", `zero or negative: ${noLog} values`)] : []),
    entry("", "not measured"),
    element("span", {}, "Exponents: red grows with rank, blue shrinks."),
    element("span", {}, "Click or arrow keys: choose a layer."),
  );
}

function seedText(view) {
  if (view.seeds.length < 2) return "";
  if (view.seed !== ALL) return `, seed ${view.seed}`;
  const counts = view.rules.map(rule => view.cellsOf(rule, view.rank).length);
  return `, ${seedsText(Math.min(...counts), view)}`;
}

/** `mean of 3 seeds`; `1 of 3 seeds` while others are missing. */
function seedsText(count, view) {
  const all = view.seeds.length;
  return count < all ? `${count} of ${all} seeds` : `mean of ${all} seeds`;
}

/** The panel of a point of the tiles, and its layer; null where there is none. */
function heatPoint({ data, pointNumber: [y, x] }) {
  const { panels, grid, rows } = page.heat;
  const n = grid.at[y][x];
  return n < 0 ? null : { panel: panels[data.meta], layer: rows[n], n };
}

function heatText(point) {
  const at = heatPoint(point);
  if (!at) return "";
  const { rank, step, quantity } = page.view;
  const { rule, of, values, lines } = at.panel;
  const where = `${at.layer.name}\n${rule.name}, `;
  if (of === "value") {
    return `${where}rank ${rankName(rank)}, step ${step}\n${quantity.stat} ${number(values[at.n])}`;
  }
  if (!lines[at.n]) return `${where}no exponent at step ${step}`;
  const { slope, low, high, ranks, seeds } = lines[at.n];
  const brackets = low === null ? "" : `, brackets: ${bracketText(seeds)}`;
  return `${where}exponent ${interval(slope, low, high)}, ${ranks} ranks${brackets}`;
}

function heatClick(point) {
  const at = heatPoint(point);
  return at && choose({ layer: at.layer.name });
}

// ---- curves and cells

function renderCurves(view) {
  const curves = view.curves(cell => view.curveOf(cell), together);
  const yTitle = `${view.quantity.site} ${view.quantity.stat}`;
  const band = page.overview.best[view.quantity.stat];
  page.curves = drawCurves("layer-curves", view, curves, { yTitle, band });
  onPoints(
    "layer-curves",
    point => curveText(point, page.curves, page.view.quantity.stat),
    point => chooseCurve(point, page.curves),
  );
}

function renderFit(view) {
  page.fit = drawFit(view);
  if (!page.fit.length) return;
  const where = point => `rank ${point.x}, seed ${point.data.meta.seeds[point.pointIndex]}`;
  onPoints(
    "layer-fit",
    point => `${where(point)}\n${page.view.quantity.stat} ${number(point.y)}`,
    point => choose({ rank: point.x }),
  );
}

function curveText(point, drawn, name) {
  const { rule, rank, cells } = drawn[point.data.meta];
  const one = page.view.seeds.length < 2 || page.view.seed !== ALL;
  const seeds = one ? `seed ${cells[0].seed}` : seedsText(cells.length, page.view);
  const where = `${rule.name}, rank ${rankName(rank)}, step ${point.x}, ${seeds}`;
  return `${where}\n${name} ${number(point.y)}`;
}

const chooseCurve = (point, drawn) => choose({ rank: rankKey(drawn[point.data.meta].rank) });

/** The studies side by side, as `study compare` prints them. */
function renderComparison() {
  const { sentences, pictures, tables } = page.all.comparison;
  const alt = "Differences of exponents and losses, B minus A";
  byId("compare-sentences").replaceChildren(
    ...sentences.map((text, n) =>
      element("li", {}, text, pictures[n] && element("img", { src: pictures[n], alt, width: 810 })),
    ),
  );
  byId("compare-tables").replaceChildren(...tables.map(textTable));
}

function renderCells() {
  const { rest } = page.overview.configuration;
  const others = Object.entries(rest).map(([name, value]) => `${name} ${value}`);
  byId("other-settings").textContent = others.join(" · ");
  const resort = sort => {
    page.sort = sort;
    renderCells();
  };
  byId("cells").replaceChildren(cellTable(page.overview, page.view, page.sort, resort, chooseCell));
}

function chooseCell(cell) {
  const { rank, seed, optimizer, setting } = cell;
  const rules = distinct([...(page.view?.rules ?? []).map(rule => rule.id), cell.rule]).join(",");
  choose({ rank, seed: String(seed), optimizer, setting, rules, tab: "layers" });
}
