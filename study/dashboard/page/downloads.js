"use strict";
// The CSV and PNG buttons of the charts.

const layerColumns = ["layer", "block", "kind", "rule", "rank", "step"];

/** The heads and the rows of each chart's table. */
const DOWNLOADS = {
  heat: () => [
    [...layerColumns, page.view.quantity.stat, "exponent", "ci_low", "ci_high"],
    page.heat.fits.flatMap(heatRows),
  ],
  "layer-curves": () => curveRows(page.curves, page.view.quantity.stat),
  "layer-fit": () => [
    ["rule", "rank", "seed", page.view.quantity.stat],
    page.fit.map(dot => [dot.rule.name, dot.rank, dot.seed, dot.value]),
  ],
  loss: () => curveRows(page.losses, page.view.curve),
  "rank-loss": () => [
    ["how", "rule", "rank", "seed", "lr", "loss", "best rate at the edge"],
    page.rankLosses.map(row => [
      ...[row.how, row.rule, row.rank, row.seed, row.lr, row.loss, row.edge],
    ]),
  ],
  "rate-loss": () => [
    ["rule", "rank", "seed", "lr", "loss"],
    page.view.runs.map(row => [row.rule, row.rank, row.seed, row.lr, row.loss]),
  ],
  cells: () => {
    const { columns, cells } = cellRows(page.overview, page.sort);
    const heads = columns.map(([name]) => name);
    return [heads, cells.map(cell => columns.map(([, value]) => value(cell)))];
  },
};

/** A row per layer of a rule. */
function heatRows({ rule, lines }) {
  const { rank, step } = page.view;
  const { values } = page.heat.panels.find(one => one.rule === rule && one.of === "value");
  return page.heat.rows.map(({ name, block, kind }, n) => {
    const { slope, low, high } = lines[n] ?? {};
    return [name, block, kind, rule.name, rank, step, values[n], slope, low, high];
  });
}

/** The means over seeds that a chart shows. */
function curveRows(drawn, name) {
  const rows = drawn.flatMap(({ rule, rank, cells, x, y }) =>
    x.map((step, k) => [rule.id, rank, cells.length, step, y[k]]),
  );
  return [["rule", "rank", "seeds", "step", name], rows];
}

function fileName(chart) {
  const { site, stat } = page.view?.quantity ?? {};
  const words = [page.overview.study, chart, site, stat].filter(Boolean);
  return words.join("-").replace(/[^\w.-]+/g, "_");
}

function pictureTitle(chart) {
  const { quantity, layer, overview, step, curve } = page.view;
  if (chart === "loss") return `${overview.study}: ${overview.labels.curve[curve]}`;
  if (chart.endsWith("-loss")) return `${overview.study}: ${overview.labels.final_loss}`;
  const where = chart === "heat" ? "" : `, ${layer}, step ${step}`;
  return `${overview.study}: ${quantity.site} ${quantity.stat}${where}${seedText(page.view)}`;
}

function toolButton(text, title, onclick) {
  return element("button", { type: "button", title, onclick }, text);
}

for (const tools of document.querySelectorAll(".tools")) {
  const { chart } = tools.dataset;
  const csv = () => downloadCsv(fileName(chart), ...DOWNLOADS[chart]());
  tools.append(toolButton("CSV", "Download the values shown as a table", csv));
  if (chart === "cells") continue;
  const png = () => downloadPng(chart, fileName(chart), pictureTitle(chart));
  tools.append(toolButton("PNG", "Download the chart as a picture", png));
}
