"use strict";
// The page is a function of the overview, the choices and the values. A change renders it again.

const ASK_EVERY = 1500; // milliseconds between requests to the server

const page = {
  version: 0,
  all: null, // what the server sent
  overview: null, // of the chosen study
  view: null,
  heat: null,
  curves: [],
  fit: [],
  losses: [],
  ahead: { waiting: 0, seconds_left: null }, // what running sweeps have still to train
  sort: "", // a column of the cells
};
const choices = new Choices();
const source = byId("overview") ? new FileSource() : new ServerSource();
const values = new Values(source);

// ---- rendering

function choose(changes) {
  choices.make(changes);
  return render();
}

let rendering = Promise.resolve();

/** Renders the current choices. Calls during a rendering cause one more rendering after it. */
function render() {
  if (!render.waiting) {
    render.waiting = rendering = rendering.then(() => {
      render.waiting = null;
      return renderNow();
    });
  }
  return rendering;
}

async function renderNow() {
  if (!page.all) return;
  const { pages, studies, words, version } = page.all;
  const study = Math.max(0, studies.indexOf(choices.made.study));
  const overview = (page.overview = { ...words, ...pages[study], version });
  once("top", [page.version, study, theme()], () => renderTop(overview));
  const charts = overview.quantities.length > 0;
  const tab = chosenTab(charts, overview);
  renderTab(tab);
  for (const name of TABS) tabButton(name).hidden = !tabsOf(charts).includes(name);
  page.view = charts ? await viewOf(overview) : null;
  if (page.view) renderChoosers(page.view);
  DRAW[tab]?.(page.view);
  document.body.dataset.ready = "yes";
}

/** The chosen view; by default the findings, if two ranks have begun when the page is opened. */
function chosenTab(charts, overview) {
  page.firstTab ??= distinct(overview.cells.map(rankOf)).length > 1 ? "findings" : "losses";
  const tabs = tabsOf(charts);
  return oneOf(tabs, choices.made.tab, oneOf(tabs, page.firstTab, "cells"));
}

const TABS = ["findings", "layers", "losses", "cells", "compare"];
const tabsOf = charts =>
  TABS.filter(name =>
    name === "compare"
      ? page.all.studies.length > 1
      : charts || ["findings", "cells"].includes(name),
  );
const tabButton = name => document.querySelector(`#tabs [data-tab="${name}"]`);

async function viewOf(overview) {
  const quantity = chosenQuantity(overview, choices.made);
  return new View(overview, choices.made, quantity, await values.load(quantity, overview));
}

/** What every chart depends on. */
function inputs(view) {
  const rules = view.rules.map(rule => rule.id);
  const cells = [view.optimizer, view.setting, rules, view.seed, rankName(view.rank)];
  return [page.version, view.overview.study, cells, theme()];
}

function renderLayers(view) {
  const shown = [inputs(view), quantityName(view.quantity), view.kind];
  renderLayerTexts(view);
  const heat = [shown, view.layer, view.step, view.notice, sizeOf("heat")];
  once("heat", heat, () => renderHeat(view));
  once("curves", [shown, view.layer, sizeOf("layer-curves")], () => renderCurves(view));
  once("fit", [shown, view.layer, view.step, sizeOf("layer-fit")], () => renderFit(view));
}

function renderAllLosses(view) {
  const shown = [inputs(view), view.curve, view.smooth, sizeOf("loss")];
  once("losses", shown, () => renderLosses(view));
}

function renderTable(view) {
  const study = page.overview.study;
  once("cells", [page.version, study, view && inputs(view), page.sort], () => renderCells());
}

const DRAW = {
  layers: renderLayers,
  losses: renderAllLosses,
  cells: renderTable,
  compare: () => once("compare", page.version, renderComparison),
};

const drawnFor = {};

/** Draws a part of the page if its inputs changed. */
function once(part, inputs, draw) {
  const key = JSON.stringify(inputs);
  if (drawnFor[part] === key) return;
  drawnFor[part] = key;
  draw();
}

/** Shows a new overview. The version makes every part draw again. */
function receive(all) {
  page.all = all;
  page.version++;
  return render();
}

// ---- controls

const SELECTS = CHOICES.filter(name => byId(name)?.tagName === "SELECT");
for (const name of SELECTS) {
  byId(name).addEventListener("change", event => choose({ [name]: event.target.value }));
}
byId("study-choice").addEventListener("change", event => choose({ study: event.target.value }));
byId("smooth").addEventListener("input", event => {
  const smooth = Number(event.target.value);
  choose({ smooth: smooth || undefined });
});
byId("tabs").addEventListener("click", event => {
  const { tab } = event.target.closest("[data-tab]")?.dataset ?? {};
  if (tab) choose({ tab });
});
byId("tabs").addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  const tabs = TABS.filter(tab => !tabButton(tab).hidden);
  const tab = neighbour(tabs, document.body.dataset.tab, by);
  choose({ tab });
  tabButton(tab).focus();
});
byId("step").addEventListener("input", event =>
  choose({ step: page.view.steps[event.target.value] }),
);
byId("choices").addEventListener("submit", event => event.preventDefault());
addEventListener("hashchange", () => {
  choices.read();
  render();
});

byId("heat").addEventListener("keydown", event => {
  const { view } = page;
  const by = event.shiftKey ? 10 : 1;
  const layer = (down, right) => ({ layer: neighbourTile(view, down, right) });
  const rank = by => ({ rank: rankKey(neighbour(view.ranks, view.rank, by)) });
  const change = {
    ArrowUp: () => layer(-by, 0),
    ArrowDown: () => layer(by, 0),
    ArrowLeft: () => layer(0, -by),
    ArrowRight: () => layer(0, by),
    PageUp: () => rank(1),
    PageDown: () => rank(-1),
  }[event.key];
  if (!change) return;
  event.preventDefault();
  choose(change());
});

// A chart is drawn for its size in pixels, which the window and the texts around it change.
const sizes = new ResizeObserver(() => render());
for (const chart of document.querySelectorAll(".chart")) sizes.observe(chart);

// Words of the glossary are explained on hover and on focus.
function explain(event) {
  const word = event.target.closest?.("[data-term]");
  const text = word && page.overview?.glossary[word.dataset.term];
  if (!text) return;
  const { left, bottom } = word.getBoundingClientRect();
  tip({ clientX: left, clientY: bottom - 10 }, text);
  word.addEventListener(event.type === "focusin" ? "focusout" : "mouseout", () => tip(null, ""), {
    once: true,
  });
}
document.addEventListener("mouseover", explain);
document.addEventListener("focusin", explain);

function neighbour(list, current, by) {
  return list[Math.max(0, Math.min(list.length - 1, list.indexOf(current) + by))];
}

/** The name of the layer next to the chosen one on the tiles, where there is one. */
function neighbourTile(view, down, right) {
  const { at } = page.heat.grid;
  const n = view.layers.findIndex(layer => layer.name === view.layer);
  const row = at.findIndex(places => places.includes(n));
  if (n < 0 || row < 0) return view.layers[0]?.name;
  const y = at.indexOf(neighbour(at, at[row], down));
  const x = at[row].indexOf(n);
  const found = at[y][Math.max(0, Math.min(at[y].length - 1, x + right))];
  return view.layers[found < 0 ? n : found].name;
}

byId("controls").open = innerWidth > 700; // on a phone they are folded

// ---- theme

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}

function changeTheme(name) {
  setTheme(name);
  render();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => changeTheme(dark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => changeTheme(theme() === "dark" ? "light" : "dark"));

// ---- live updates

function connection(state, text) {
  byId("live").dataset.state = state;
  byId("live").textContent = text;
}

/** Asks the server for news, again and again. Server and sweep may stop and come back. */
async function follow() {
  try {
    page.ahead = await source.progress();
    const all = await source.overview();
    if (all) await receive(all);
    else renderProgress(page.overview);
    const running = sum(page.all.pages.map(one => one.counts.running));
    const cells = running === 1 ? "cell" : "cells";
    if (running) connection("live", `Live: ${running} ${cells} running`);
    else if (page.ahead.waiting) connection("live", "Live: cells are waiting");
    else connection("still", "Up to date: no cell is running");
  } catch (error) {
    if (!(error instanceof TypeError) && !/^overview|^values|^progress/.test(error.message))
      throw error;
    connection("gone", "No server: start study dashboard again on the same --port");
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
