"use strict";
// The page is a function of the overview, the choices and the values. A change renders it again.

const ASK_EVERY = 1500; // milliseconds between requests to the server

const page = {
  version: 0,
  overview: null,
  view: null,
  heat: null,
  curves: [],
  fit: [],
  losses: [],
  sort: { name: "", down: false },
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
  const { overview } = page;
  if (!overview) return;
  for (const id of ["choices", "charts"]) byId(id).hidden = overview.quantities.length === 0;
  if (!overview.quantities.length) return renderWithoutCharts();
  const quantity = chosenQuantity(overview, choices.made);
  const view = new View(overview, choices.made, quantity, await values.load(quantity, overview));
  page.view = view;
  renderChoosers(view);
  const rules = view.rules.map(rule => rule.id);
  const cells = [view.optimizer, view.setting, rules, view.seed];
  const shown = [page.version, quantityName(quantity), cells, theme()];
  const rank = rankName(view.rank);
  const heat = [shown, view.kind, view.order, rank, view.step];
  const layer = [shown, view.kind, view.layer];
  if (!once("heat", heat, () => renderHeat(view))) {
    once("row", [heat, view.layer], () => renderRow(view));
  }
  once("curves", [layer, rank], () => renderCurves(view));
  once("fit", [layer, view.step], () => renderFit(view));
  once("losses", [shown, view.curve, rank], () => renderLosses(view));
  once("cells", [shown, rank, page.sort], () => renderCells());
  document.body.dataset.ready = "yes";
}

/** Nothing was measured yet, or no cell can be read. */
function renderWithoutCharts() {
  page.view = null;
  once("cells", [page.version, page.sort], () => renderCells());
  document.body.dataset.ready = "yes";
}

const drawnFor = {};

/** Draws a part of the page if its inputs changed. Returns whether it did. */
function once(part, inputs, draw) {
  const key = JSON.stringify(inputs);
  if (drawnFor[part] === key) return false;
  drawnFor[part] = key;
  draw();
  return true;
}

/** Shows a new overview. The version makes every part draw again. */
function receive(overview) {
  page.overview = overview;
  page.version++;
  renderTop(overview);
  return render();
}

// ---- controls

for (const name of CHOICES.filter(name => !["rules", "step"].includes(name))) {
  byId(name).addEventListener("change", event => choose({ [name]: event.target.value }));
}
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
  const layers = view.layers.map(layer => layer.name);
  const layer = by => ({ layer: neighbour(layers, view.layer, by) });
  const step = by => ({ step: neighbour(view.steps, view.step, by) });
  const rank = by => ({ rank: rankKey(neighbour(view.ranks, view.rank, by)) });
  const change = {
    ArrowUp: () => layer(-by),
    ArrowDown: () => layer(by),
    ArrowLeft: () => step(-by),
    ArrowRight: () => step(by),
    PageUp: () => rank(1),
    PageDown: () => rank(-1),
  }[event.key];
  if (!change) return;
  event.preventDefault();
  choose(change());
});

function neighbour(list, current, by) {
  return list[Math.max(0, Math.min(list.length - 1, list.indexOf(current) + by))];
}

// ---- theme

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}

function changeTheme(name) {
  setTheme(name);
  renderTop(page.overview);
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
    const overview = await source.overview();
    if (overview) await receive(overview);
    const { running } = page.overview.counts;
    const cells = running === 1 ? "cell" : "cells";
    if (running) connection("live", `Live: ${running} ${cells} running`);
    else connection("still", "Up to date: no cell is running");
  } catch (error) {
    if (!(error instanceof TypeError) && !/^overview|^values/.test(error.message)) throw error;
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
