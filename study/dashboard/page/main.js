"use strict";
// The page: what is shown is a function of the overview, the choices and the values; every change renders it again.

const ASK_EVERY = 1500;  // milliseconds between questions to the server

const page = { version: 0, overview: null, view: null, heat: null, curves: [], fit: [], losses: [], sort: { name: "", down: false } };
const choices = new Choices();
const source = byId("overview") ? new FileSource() : new ServerSource();
const values = new Values(source);

function choose(changes) {
  choices.make(changes);
  return render();
}

let rendering = Promise.resolve();
/** Render what is chosen now; calls that come while one is under way are one call after it. */
function render() {
  if (!render.waiting) render.waiting = rendering = rendering.then(() => { render.waiting = null; return renderNow(); });
  return rendering;
}

async function renderNow() {
  const { overview } = page;
  if (!overview) return;
  if (!overview.quantities.length) return;
  const quantity = chosenQuantity(overview, choices.made);
  const view = page.view = new View(overview, choices.made, quantity, await values.load(quantity, overview));
  renderChoosers(view);
  const shown = [page.version, quantityName(quantity), view.optimizer, view.setting, view.rules.map(rule => rule.id), view.seed, theme()];
  const heat = [shown, view.kind, view.order, rankName(view.rank), view.step];
  const layer = [shown, view.kind, view.layer];
  if (!once("heat", heat, () => renderHeat(view))) once("row", [heat, view.layer], () => renderRow(view));
  once("curves", [layer, rankName(view.rank)], () => renderCurves(view));
  once("fit", [layer, view.step], () => renderFit(view));
  once("losses", [shown, view.curve, rankName(view.rank)], () => renderLosses(view));
  once("cells", [shown, rankName(view.rank), page.sort], () => renderCells());
  document.body.dataset.ready = "yes";
}

const drawnFor = {};
/** Draw a part of the page unless it was drawn for the same already; whether it was drawn. */
function once(part, reasons, draw) {
  const key = JSON.stringify(reasons);
  if (drawnFor[part] === key) return false;
  drawnFor[part] = key;
  draw();
  return true;
}

/** New news: everything that shows the study's numbers is drawn again. */
function receive(overview) {
  page.overview = overview;
  page.version++;
  renderTop(overview);
  return render();
}

// -------------------------------------------------------------------------------------------------------- the parts

const STATE_MARKS = { complete: "●", running: "◐", interrupted: "■", diverged: "✕", failed: "▲" };

function renderTop(overview) {
  byId("study").textContent = overview.study;
  byId("counts").replaceChildren(...Object.entries(overview.counts)
    .filter(([state, count]) => count || ["complete", "running", "diverged", "failed"].includes(state))
    .map(([state, count]) => element("span", count ? { class: state === "complete" ? "stable" : state === "running" ? "" : "collapses" } : { class: "faint" },
      `${STATE_MARKS[state]} `, element("b", {}, String(count)), ` ${state === "complete" ? "done" : state}`)));
  byId("verdict-table").replaceChildren(verdictTable(overview));
  if (!overview.live) {
    const left = overview.left_out ? `; ${overview.left_out} more quantities were left out to keep it under 10 MB` : "";
    connection("still", `Exported: whole in this file, values within 0.1 %${left}`);
  }
}

const SITES = {
  adapter_in: "x", adapter_out: "γBAx", layer_out: "W₀x + γBAx", layer_out_grad: "dL/d layer_out", adapter_in_grad: "γAᵀBᵀ dL/d layer_out",
  A: "A", B: "B", delta_w: "γBA", A_grad: "gradient of A", B_grad: "gradient of B", A_update: "update of A", B_update: "update of B",
  adapter_grad: "gradient over A and B", adapter_update: "update of A and B",
};

function renderChoosers(view) {
  const all = view.overview.quantities, { site, stat, batch } = view.quantity;
  const same = values => distinct(values).map(value => [value, value]);
  fill(byId("site"), distinct(all.map(q => q.site)).map(name => [name, SITES[name] && SITES[name] !== name ? `${name}: ${SITES[name]}` : name]), site);
  fill(byId("stat"), same(all.filter(q => q.site === site).map(q => q.stat)), stat);
  fill(byId("batch"), same(all.filter(q => q.site === site && q.stat === stat).map(q => q.batch)), batch, true);
  fill(byId("kind"), [[ALL, "all kinds"], ...same(view.kinds)], view.kind);
  fill(byId("optimizer"), view.optimizers.map(name => [name, view.overview.optimizers[name]]), view.optimizer);
  fill(byId("setting"), same(view.settings), view.setting, true);
  fill(byId("seed"), [[ALL, view.seeds.length > 1 ? `mean of ${view.seeds.length}` : "the only one"], ...same(view.seeds)], view.seed);
  fill(byId("rank"), view.ranks.map(rank => [rank === Infinity ? "inf" : String(rank), rankName(rank)]), view.rank === Infinity ? "inf" : String(view.rank));
  fill(byId("order"), [["depth", "by depth"], ["kind", "by kind"]], view.order);
  fill(byId("curve"), Object.entries(view.overview.curves), view.curve);
  fill(byId("layer"), [[MEAN, `mean over ${view.layers.length} layers (of the log)`], ...(view.hasModel ? [[view.model.name, "the whole model"]] : []),
    ...view.layers.map(layer => [layer.name, `${layer.block}: ${layer.name}`])], view.layer);
  const slider = byId("step");
  slider.max = Math.max(0, view.steps.length - 1);
  slider.value = Math.max(0, view.steps.indexOf(view.step));
  slider.setAttribute("aria-valuetext", `step ${view.step}`);
  byId("step-value").textContent = view.step === undefined ? "" : `${view.step} of ${view.steps.at(-1)}`;
  const key = JSON.stringify([view.allRules.map(rule => rule.id), theme()]);
  const box = byId("rules");
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren(element("legend", {}, "Rules"), ...view.allRules.map(rule =>
      element("label", {}, element("input", { type: "checkbox", value: rule.id, onchange: chooseRules }), swatch(rule), rule.name)));
  }
  for (const input of box.querySelectorAll("input")) input.checked = view.rules.some(rule => rule.id === input.value);
}

function chooseRules() {
  const wanted = [...byId("rules").querySelectorAll("input:checked")].map(input => input.value);
  if (wanted.length) choose({ rules: wanted.join(",") });
  else renderChoosers(page.view);  // one must stay
}

const batchWord = quantity => (quantity.batch === "train" ? "" : `, ${quantity.batch} batch`);
const seedWord = view => (view.seeds.length < 2 ? "" : view.seed === ALL ? `, mean of ${view.seeds.length} seeds` : `, seed ${view.seed}`);

function renderHeat(view) {
  const drawn = page.heat = drawHeat(view);
  byId("heat-title").replaceChildren(`${view.quantity.site} ${view.quantity.stat}`,
    element("small", {}, ` ${view.layers.length} layers${view.kind === ALL ? "" : ` (${view.kind})`}, log colours${seedWord(view)}${batchWord(view.quantity)}`));
  byId("where").replaceChildren("Look first at", ...findings(view, drawn).map(found =>
    element("button", { type: "button", class: found.broken ? "broken" : undefined, onclick: () => choose(found.choose) }, found.rule ? swatch(found.rule) : null, found.text)));
  byId("where").hidden = byId("where").children.length === 0;
  const { broken, noLog } = drawn.count;
  byId("key").replaceChildren(
    element("span", { class: broken ? "not-finite any" : "not-finite" }, element("i"), `not finite: ${broken}`),
    ...(noLog ? [element("span", { class: "no-log" }, element("i"), `zero or negative: ${noLog}`)] : []),
    element("span", {}, element("i"), "not measured"),
    element("span", {}, "Click a cell, or use the arrow keys. Drag up or down to zoom, double-click to go back."));
  answer("heat", heatText, heatClick);
}

function heatPoint(point) {
  const panel = page.heat.panels[point.data.meta];
  return panel ? { panel, layer: page.heat.rows[point.y], column: panel.columns[point.x], value: panel.values[point.y][point.x] } : null;
}

function heatText(point) {
  const at = heatPoint(point);
  if (!at) {
    const fit = page.heat.fits.find(fit => fit.rule.id === point.data.meta.rule), line = fit.lines[point.y];
    return `${page.heat.rows[point.y].name}\n${fit.rule.name}, exponent ${interval(line.slope, line.low, line.high)} over ${line.ranks} ranks`;
  }
  const [rank, step] = at.panel.of === "steps" ? [page.view.rank, at.column] : [at.column, page.view.step];
  return `${at.layer.name}\n${at.panel.rule.name}, rank ${rankName(rank)}, step ${step}\n${page.view.quantity.stat} ${number(at.value)}`;
}

function heatClick(point) {
  const at = heatPoint(point);
  if (!at) return choose({ layer: page.heat.rows[point.y].name });
  const column = at.panel.of === "steps" ? { step: at.column } : { rank: at.column === Infinity ? "inf" : at.column };
  return choose({ layer: at.layer.name, ...column });
}

function renderRow(view) {
  Plotly.relayout(byId("heat"), { shapes: [...page.heat.shapes, ...rowMark(view)] });
}

function renderCurves(view) {
  page.curves = drawCurves("layer-curves", view, view.sample, cell => view.curveOf(cell));
  answer("layer-curves", point => curveText(point, page.curves, page.view.quantity.stat), point => chooseCurve(point, page.curves));
}

function renderFit(view) {
  page.fit = drawFit(view);
  answer("layer-fit", point => `rank ${point.x}, seed ${point.data.meta.seeds[point.pointIndex]}\n${page.view.quantity.stat} ${number(point.y)}`,
    point => choose({ rank: point.x }));
}

function renderLosses(view) {
  page.losses = drawCurves("loss", view, view.sample, cell => {
    const { step, value } = cell.curves[view.curve];
    return { step, value: value.map(v => (v === "inf" ? Infinity : v === "-inf" ? -Infinity : v)) };
  }, { log: view.curve === "grad_norm" });
  answer("loss", point => curveText(point, page.losses, page.overview.curves[page.view.curve]), point => chooseCurve(point, page.losses));
}

function curveText(point, drawn, what) {
  const { cell } = drawn[point.data.meta];
  return `rank ${rankName(rankOf(cell))}, seed ${cell.seed}, step ${point.x}\n${what} ${number(point.y)}`;
}

const chooseCurve = (point, drawn) => choose({ rank: drawn[point.data.meta].cell.rank });

function renderCells() {
  const same = Object.entries(page.overview.configuration.same).filter(([, value]) => value !== "none");
  byId("same").textContent = `all: ${same.map(([name, value]) => `${name} ${value}`).join(" · ")}`;
  const focus = document.activeElement?.closest("#cells th")?.textContent.replace(/ [↑↓]$/, "");
  const resort = name => { page.sort = { name, down: page.sort.name === name && !page.sort.down }; renderCells(); };
  byId("cells").replaceChildren(cellTable(page.overview, page.view, page.sort, resort,
    cell => choose({ rank: cell.rank, seed: String(cell.seed), optimizer: cell.optimizer, setting: cell.setting,
      rules: distinct([...page.view.rules.map(rule => rule.id), cell.rule]).join(",") })));
  if (focus) [...byId("cells").querySelectorAll("th button")].find(button => button.textContent.startsWith(focus))?.focus();
}

// -------------------------------------------------------------------------------------------------- what can be done

for (const name of ["site", "stat", "batch", "kind", "optimizer", "setting", "seed", "rank", "order", "curve", "layer"]) {
  byId(name).addEventListener("change", event => choose({ [name]: event.target.value }));
}
byId("step").addEventListener("input", event => choose({ step: page.view.steps[event.target.value] }));
byId("choices").addEventListener("submit", event => event.preventDefault());
addEventListener("hashchange", () => { choices.read(); render(); });

byId("heat").addEventListener("keydown", event => {
  const { view } = page, by = event.shiftKey ? 10 : 1;
  const move = (list, current, by) => list[Math.max(0, Math.min(list.length - 1, list.indexOf(current) + by))];
  const names = view.layers.map(layer => layer.name);
  const change = {
    ArrowUp: () => ({ layer: move(names, view.layer, -by) }), ArrowDown: () => ({ layer: move(names, view.layer, by) }),
    ArrowLeft: () => ({ step: move(view.steps, view.step, -by) }), ArrowRight: () => ({ step: move(view.steps, view.step, by) }),
    PageUp: () => ({ rank: move(view.ranks, view.rank, 1) }), PageDown: () => ({ rank: move(view.ranks, view.rank, -1) }),
  }[event.key];
  if (!change) return;
  event.preventDefault();
  const changes = change();
  if (changes.rank === Infinity) changes.rank = "inf";
  choose(changes);
});

const DOWNLOADS = {
  heat: () => [["layer", "block", "kind", "rule", "rank", "step", page.view.quantity.stat], page.heat.panels.flatMap(panel =>
    page.heat.rows.flatMap((layer, y) => panel.columns.map((column, x) => [layer.name, layer.block, layer.kind, panel.rule.name,
      panel.of === "steps" ? page.view.rank : column, panel.of === "steps" ? column : page.view.step, panel.values[y][x]])))],
  "layer-curves": () => curveRows(page.curves, page.view.quantity.stat),
  "layer-fit": () => [["rule", "rank", "seed", page.view.quantity.stat], page.fit.map(dot => [dot.rule.name, dot.rank, dot.seed, dot.value])],
  loss: () => curveRows(page.losses, page.view.curve),
  cells: () => {
    const { columns, cells } = cellRows(page.overview, page.sort);
    return [columns.map(([name]) => name), cells.map(cell => columns.map(([, value]) => value(cell)))];
  },
};

function curveRows(drawn, what) {
  return [["cell", "rule", "rank", "seed", "step", what], drawn.flatMap(({ cell, step, value }) => step.map((s, k) => [cell.cell_id, cell.rule, cell.rank, cell.seed, s, value[k]]))];
}

for (const tools of document.querySelectorAll(".tools")) {
  const { chart } = tools.dataset;
  const name = () => [page.overview.study, chart, page.view.quantity.site, page.view.quantity.stat].join("-").replace(/[^\w.-]+/g, "_");
  tools.append(element("button", { type: "button", title: "What is shown, as a table", onclick: () => downloadCsv(name(), ...DOWNLOADS[chart]()) }, "CSV"));
  if (chart === "cells") continue;
  const title = () => {
    const { quantity, layer, overview, step } = page.view;
    return chart === "loss" ? `${overview.study}: ${overview.curves[page.view.curve]}` : `${overview.study}: ${quantity.site} ${quantity.stat}${chart === "heat" ? "" : `, ${layer}, step ${step}`}${seedWord(page.view)}`;
  };
  tools.append(element("button", { type: "button", title: "What is shown, as a picture", onclick: () => downloadPng(chart, name(), title()) }, "PNG"));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}
const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); renderTop(page.overview); render(); });
byId("theme").addEventListener("click", () => { setTheme(theme() === "dark" ? "light" : "dark"); renderTop(page.overview); render(); });

// -------------------------------------------------------------------------------------------------------- following

function connection(state, text) {
  byId("live").dataset.state = state;
  byId("live").textContent = text;
}

/** Ask the server what is new, again and again: it may end and come back, as the sweep may. */
async function follow() {
  try {
    const news = await source.overview();
    if (news) {
      await receive(news);
    }
    const { running } = page.overview.counts;
    connection(running ? "live" : "still", running ? `Following: ${running} ${running === 1 ? "cell" : "cells"} running` : "Up to date: nothing is running");
  } catch (error) {
    if (!(error instanceof TypeError) && !/^overview|^values/.test(error.message)) throw error;
    connection("gone", "The server is gone: start study dashboard again on the same --port");
  } finally {
    setTimeout(follow, ASK_EVERY);
  }
}

async function start() {
  document.body.append(element("script", {}, await source.plotly()));
  if (source instanceof ServerSource) return follow();
  return receive(await source.overview());
}

start();
