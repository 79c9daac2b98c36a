"use strict";
// The view of the losses: during training, against the rank, and against the learning rate.

function renderLosses(view) {
  const infinities = { inf: Infinity, "-inf": -Infinity };
  const series = cell => {
    const { step, value } = cell.curves[view.curve];
    return { step, value: value.map(v => infinities[v] ?? v) };
  };
  const log = view.curve === GRADIENTS;
  const unit = page.overview.labels.unit[view.curve];
  const label = page.overview.labels.curve[view.curve];
  const yTitle = unit ? `${label} (${unit})` : label;
  const { smooth } = view;
  const curves = view.curves(series, log ? together : mean);
  if (!curves.some(curve => curve.x.length)) {
    page.losses = [];
    say("loss", `No ${label} yet.`);
    return;
  }
  page.losses = drawCurves("loss", view, curves, { log, yTitle, smooth, zooms: true });
  onPoints(
    "loss",
    point => curveText(point, page.losses, label),
    point => chooseCurve(point, page.losses),
  );
}

function renderLossChoosers(view) {
  const { labels } = view.overview;
  const names = view.curveNames.map(name => [name, labels.curve[name]]);
  fill("curve", names, oneOf(view.curveNames, view.curve));
  const hows = view.hows.length ? view.hows : Object.keys(labels.how).slice(0, 1);
  fill(
    "how",
    pairs(hows, how => howText(view, how)),
    view.how ?? hows[0],
  );
  byId("smooth").value = view.smooth;
  byId("smooth-value").textContent = view.smooth ? view.smooth.toFixed(2) : "none";
}

/** `at one learning rate, 0.0001`. */
function howText(view, how) {
  const rates = distinct(
    view.overview.losses.compared.filter(row => row.how === how).map(row => row.lr),
  );
  const one = how === "fixed" && rates.length === 1 ? `, ${brief(rates[0])}` : "";
  return view.overview.labels.how[how] + one;
}

function renderFinalLosses(view) {
  page.rankLosses = drawRankLosses(view);
  if (page.rankLosses.length) {
    onPoints(
      "rank-loss",
      point => finalText(point.data.meta.rows[point.pointIndex]),
      point => choose({ rank: point.x }),
    );
  }
  page.rateLosses = drawRateLosses(view);
  if (page.rateLosses.length) {
    onPoints(
      "rate-loss",
      point => rateText(page.rateLosses[point.data.meta], point),
      point => choose({ rank: rankKey(page.rateLosses[point.data.meta].rank) }),
    );
  }
}

function finalText({ rank, seed, lr, loss, edge }) {
  const note = edge ? "\nthe best rate is the lowest or the highest that was tried" : "";
  return `rank ${rank}, seed ${seed}, learning rate ${brief(lr)}\nloss ${number(loss)}${note}`;
}

function rateText({ rule, rank }, { x, y, data }) {
  const where = `${rule.name}, rank ${rank}, learning rate ${brief(x)}`;
  if (data.name !== "lost") return `${where}\nmean loss ${number(y)}`;
  const runs = page.view.runs.filter(
    row => row.rule === rule.id && row.rank === rank && row.lr === x && row.loss === null,
  );
  return [where, ...runs.map(row => `seed ${row.seed}: ${row.note}`)].join("\n");
}
