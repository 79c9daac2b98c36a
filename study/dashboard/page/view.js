"use strict";
// What the reader chose, kept in the address; and what follows from it: which cells, layers, ranks and steps are shown.

const CHOICES = ["site", "stat", "batch", "kind", "order", "optimizer", "setting", "rules", "rank", "seed", "step", "layer", "curve"];
const MEAN = "mean over layers", ALL = "all";

/** The choices that were made; what was not chosen is left to the study, and follows it while it runs. */
class Choices {
  constructor() { this.read(); }

  read() {
    const given = new URLSearchParams(location.hash.slice(1));
    this.made = Object.fromEntries(CHOICES.filter(name => given.has(name)).map(name => [name, given.get(name)]));
  }

  make(changes) {
    Object.assign(this.made, changes);
    const address = new URLSearchParams(CHOICES.filter(name => name in this.made).map(name => [name, this.made[name]]));
    history.replaceState(null, "", "#" + address);
  }
}

/** The quantity that is chosen, or the one to open with. */
function chosenQuantity(overview, made) {
  const all = overview.quantities;
  const ofSite = all.filter(quantity => quantity.site === made.site);
  const near = ofSite.length ? ofSite : all.filter(quantity => quantity.site === all[0].site);
  const score = quantity => 2 * (quantity.stat === made.stat) + (quantity.batch === made.batch);
  return near.reduce((best, quantity) => (score(quantity) > score(best) ? quantity : best));
}

/** Everything that the charts need to know of the study, the choices and the values of the chosen quantity. */
class View {
  constructor(overview, made, quantity, values) {
    Object.assign(this, { overview, quantity, values });
    const one = (options, wanted, otherwise = options[0]) => (options.includes(wanted) ? wanted : otherwise);

    this.optimizers = Object.keys(overview.optimizers);
    this.optimizer = one(this.optimizers, made.optimizer);
    const ofOptimizer = overview.cells.filter(cell => cell.optimizer === this.optimizer);
    this.settings = distinct(ofOptimizer.map(cell => cell.setting));
    const size = setting => ofOptimizer.filter(cell => cell.setting === setting).length;
    this.setting = one(this.settings, made.setting, this.settings.reduce((most, other) => (size(other) > size(most) ? other : most)));
    const cells = ofOptimizer.filter(cell => cell.setting === this.setting);

    const there = overview.rules.filter(rule => cells.some(cell => cell.rule === rule.id));
    const wanted = (made.rules ?? "").split(",");
    const usual = there.filter(rule => !rule.id.startsWith("power"));
    const chosen = there.filter(rule => wanted.includes(rule.id));
    this.allRules = there;
    this.rules = chosen.length ? chosen : (usual.length ? usual : there.slice(0, 2));

    this.cells = cells.filter(cell => this.rules.some(rule => rule.id === cell.rule));
    this.seeds = distinct(this.cells.map(cell => String(cell.seed)));
    this.seed = one([ALL, ...this.seeds], made.seed);
    this.sample = this.cells.filter(cell => this.seed === ALL || String(cell.seed) === this.seed);
    this.ranks = distinct(this.sample.map(rankOf)).sort((a, b) => a - b);
    const finite = this.ranks.filter(Number.isFinite);
    this.rank = one(this.ranks, made.rank === undefined ? undefined : Number(made.rank === "inf" ? Infinity : made.rank),
      finite.at(-1) ?? this.ranks.at(-1));

    const measured = this.sample.map(cell => values.get(cell.cell_id)?.steps ?? []).filter(steps => steps.length);
    this.steps = distinct(measured.flat()).sort((a, b) => a - b);
    const going = this.sample.filter(cell => !["diverged", "failed"].includes(cell.status));
    const reached = going.map(cell => values.get(cell.cell_id)?.steps.at(-1)).filter(step => step !== undefined);
    this.step = one(this.steps, made.step === undefined ? undefined : Number(made.step),
      reached.length ? Math.min(...reached) : this.steps.at(-1));

    const layers = overview.layers.map((layer, place) => ({ ...layer, place }));
    this.model = layers.find(layer => layer.kind === "model");
    const projections = layers.filter(layer => layer !== this.model);
    this.kinds = distinct(projections.map(layer => layer.kind));
    this.kind = one([ALL, ...this.kinds], made.kind);
    this.order = one(["depth", "kind"], made.order);
    const kindPlace = layer => this.kinds.indexOf(layer.kind);
    this.layers = projections
      .filter(layer => this.kind === ALL || layer.kind === this.kind)
      .sort((a, b) => (this.order === "kind" ? kindPlace(a) - kindPlace(b) : 0) || a.block - b.block || a.place - b.place);
    this.hasModel = this.sample.some(cell => this.steps.some(step => this.at(cell, step, this.model) !== undefined));
    this.layer = one([MEAN, ...(this.hasModel ? [this.model.name] : []), ...this.layers.map(layer => layer.name)], made.layer);
    this.curves = Object.keys(overview.curves);
    this.curve = one(this.curves, made.curve);
  }

  at(cell, step, layer) { return this.values.get(cell.cell_id)?.at(step, layer.place); }

  cellsOf(rule, rank) { return this.sample.filter(cell => cell.rule === rule.id && (rank === undefined || rankOf(cell) === rank)); }

  /** A function from (step, place of a layer) to one number: the cell's own, or the geometric mean over seeds. */
  reader(rule, rank) {
    const cells = this.cellsOf(rule, rank).map(cell => this.values.get(cell.cell_id)).filter(Boolean);
    if (cells.length === 1) return (step, place) => cells[0].at(step, place);
    return (step, place) => together(cells.map(cell => cell.at(step, place)));
  }

  /** The layers that a chosen row stands for: one, or all that are shown. */
  get chosenLayers() {
    if (this.layer === MEAN) return this.layers;
    return [this.layer === this.model.name ? this.model : this.layers.find(layer => layer.name === this.layer)];
  }

  /** The chosen row over training in one cell: {step, value}. */
  curveOf(cell) {
    const values = this.values.get(cell.cell_id), step = values?.steps ?? [];
    const places = this.chosenLayers.map(layer => layer.place), name = `${this.layer} ${this.kind}`;
    return { step, value: step.map(s => values.pool(s, places, name)) };
  }

  /** What a fit of the chosen row at the chosen step goes through: as in the analysis, nothing from divergence on. */
  pointsOfChosen(rule) {
    const cells = this.fitted(rule), step = this.step;
    const kept = new Map();  // per seed the layers that every rank has: company must not change with the rank
    for (const seed of distinct(cells.map(cell => cell.seed))) {
      const ofSeed = cells.filter(cell => cell.seed === seed && this.chosenLayers.some(l => hasLog(this.at(cell, step, l))));
      kept.set(seed, this.chosenLayers.filter(layer => ofSeed.every(cell => hasLog(this.at(cell, step, layer)))));
    }
    return points(cells, cell => together(kept.get(cell.seed).map(layer => this.at(cell, step, layer))));
  }

  /** The line of one layer at the chosen step, or null. */
  fitOf(rule, layer) {
    return fitLine(points(this.fitted(rule), cell => this.at(cell, this.step, layer)), this.overview.t_critical);
  }

  fitted(rule) {
    const until = cell => (cell.status === "diverged" ? cell.diverged_step ?? 0 : Infinity);
    return this.cellsOf(rule).filter(cell => Number.isFinite(rankOf(cell)) && this.step < until(cell));
  }
}

const points = (cells, value) =>
  cells.map(cell => ({ rank: rankOf(cell), seed: cell.seed, value: value(cell) })).filter(point => hasLog(point.value));
const rankOf = cell => (cell.rank === "inf" ? Infinity : cell.rank);
const hasLog = value => value > 0 && value < Infinity;
const distinct = values => [...new Set(values)];
const rankName = rank => (rank === Infinity ? "∞" : String(rank));

/** A layer as there is room for it: `block 3 q_proj`. */
const shortName = layer => (layer.block < 0 ? layer.name : `block ${layer.block} ${layer.kind}`);
