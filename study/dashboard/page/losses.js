"use strict";
// The view of the losses during training.

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
  byId("smooth").value = view.smooth;
  byId("smooth-value").textContent = view.smooth ? view.smooth.toFixed(2) : "none";
}
