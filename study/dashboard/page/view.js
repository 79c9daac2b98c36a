"use strict";
// The choices of the reader, kept in the address, and the part of the study that they select.

const CHOICES = [
  ...["site", "stat", "batch", "kind", "order", "optimizer", "setting"],
  ...["rules", "rank", "seed", "step", "layer", "curve"],
];
const MEAN = "mean over layers";
const ALL = "all";
const ORDERS = ["depth", "kind"];

/** The choices made so far. Everything else keeps its default, which follows a running study. */
class Choices {
  constructor() {
    this.read();
  }

  read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const made = CHOICES.filter(name => given.has(name));
    this.made = Object.fromEntries(made.map(name => [name, given.get(name)]));
  }

  make(changes) {
    Object.assign(this.made, changes);
    const made = CHOICES.filter(name => name in this.made);
    const address = new URLSearchParams(made.map(name => [name, this.made[name]]));
    history.replaceState(null, "", "#" + address);
  }
}

/** The chosen quantity. If it was not measured, the one that matches most of the choice. */
function chosenQuantity(overview, made) {
  const all = overview.quantities;
  const ofSite = all.filter(quantity => quantity.site === made.site);
  const near = ofSite.length ? ofSite : all.filter(quantity => quantity.site === all[0].site);
  const score = quantity => 2 * (quantity.stat === made.stat) + (quantity.batch === made.batch);
  return near.reduce((best, quantity) => (score(quantity) > score(best) ? quantity : best));
}

/** `wanted` if it is one of the options, otherwise the default. */
function oneOf(options, wanted, otherwise = options[0]) {
  return options.includes(wanted) ? wanted : otherwise;
}

/** The part of the study that the choices select. */
class View {
  constructor(overview, made, quantity, values) {
    Object.assign(this, { overview, quantity, values });
    const cells = this.chooseSetting(made);
    this.chooseRules(made, cells);
    this.chooseSample(made, cells);
    this.chooseStep(made);
    this.chooseLayers(made);
    this.curves = Object.keys(overview.labels.curve);
    this.curve = oneOf(this.curves, made.curve);
  }

  /** The cells of one optimizer and one setting. The default is the setting with most cells. */
  chooseSetting(made) {
    this.optimizers = Object.keys(this.overview.optimizers);
    this.optimizer = oneOf(this.optimizers, made.optimizer);
    const cells = this.overview.cells.filter(cell => cell.optimizer === this.optimizer);
    this.settings = distinct(cells.map(cell => cell.setting));
    const size = setting => cells.filter(cell => cell.setting === setting).length;
    const largest = this.settings.reduce((most, one) => (size(one) > size(most) ? one : most));
    this.setting = oneOf(this.settings, made.setting, largest);
    return cells.filter(cell => cell.setting === this.setting);
  }

  /** The default is every rule with its own exponent; if there is none, the first two. */
  chooseRules(made, cells) {
    this.allRules = this.overview.rules.filter(rule => cells.some(cell => cell.rule === rule.id));
    const wanted = (made.rules ?? "").split(",");
    const chosen = this.allRules.filter(rule => wanted.includes(rule.id));
    const named = this.allRules.filter(rule => rule.has_own_p);
    const usual = named.length ? named : this.allRules.slice(0, 2);
    this.rules = chosen.length ? chosen : usual;
  }

  /** The cells of the chosen rules and seed, and their ranks. The default is the highest rank. */
  chooseSample(made, cells) {
    const ofRules = cells.filter(cell => this.rules.some(rule => rule.id === cell.rule));
    this.seeds = distinct(ofRules.map(cell => String(cell.seed)));
    this.seed = oneOf([ALL, ...this.seeds], made.seed);
    this.sample = ofRules.filter(cell => this.seed === ALL || String(cell.seed) === this.seed);
    this.ranks = distinct(this.sample.map(rankOf)).sort((a, b) => a - b);
    const highest = this.ranks.filter(Number.isFinite).at(-1) ?? this.ranks.at(-1);
    this.rank = oneOf(this.ranks, made.rank === "inf" ? Infinity : Number(made.rank), highest);
  }

  /** The default is the last step that every cell has reached, except those that stopped early. */
  chooseStep(made) {
    const stepsOf = cell => this.values.get(cell.cell_id)?.steps ?? [];
    this.steps = distinct(this.sample.flatMap(stepsOf)).sort((a, b) => a - b);
    const going = this.sample.filter(cell => !this.overview.states[cell.status].stopped_early);
    const reached = going.map(cell => stepsOf(cell).at(-1)).filter(step => step !== undefined);
    const common = reached.length ? Math.min(...reached) : this.steps.at(-1);
    this.step = oneOf(this.steps, Number(made.step), common);
  }

  chooseLayers(made) {
    const all = this.overview.layers.map((layer, index) => ({ ...layer, index }));
    this.model = all.find(layer => layer.kind === "model");
    const layers = all.filter(layer => layer !== this.model);
    this.kinds = distinct(layers.map(layer => layer.kind));
    this.kind = oneOf([ALL, ...this.kinds], made.kind);
    this.order = oneOf(ORDERS, made.order);
    const byKind = (a, b) => this.kinds.indexOf(a.kind) - this.kinds.indexOf(b.kind);
    const byDepth = (a, b) => a.block - b.block || a.index - b.index;
    this.layers = layers
      .filter(layer => this.kind === ALL || layer.kind === this.kind)
      .sort((a, b) => (this.order === "kind" && byKind(a, b)) || byDepth(a, b));
    this.hasModel = this.sample.some(cell =>
      this.steps.some(step => this.at(cell, step, this.model) !== undefined),
    );
    const names = this.layers.map(layer => layer.name);
    this.layer = oneOf([MEAN, ...(this.hasModel ? [this.model.name] : []), ...names], made.layer);
  }

  at(cell, step, layer) {
    return this.values.get(cell.cell_id)?.at(step, layer.index);
  }

  cellsOf(rule, rank) {
    const ofRule = this.sample.filter(cell => cell.rule === rule.id);
    return rank === undefined ? ofRule : ofRule.filter(cell => rankOf(cell) === rank);
  }

  /** A function from step and layer index to a value: the geometric mean over seeds. */
  reader(rule, rank) {
    const cells = this.cellsOf(rule, rank).map(cell => this.values.get(cell.cell_id));
    const read = cells.filter(Boolean);
    if (read.length === 1) return (step, index) => read[0].at(step, index);
    return (step, index) => together(read.map(cell => cell.at(step, index)));
  }

  /** The layers of the chosen row: one, or all that are shown. */
  get chosenLayers() {
    if (this.layer === MEAN) return this.layers;
    if (this.layer === this.model.name) return [this.model];
    return [this.layers.find(layer => layer.name === this.layer)];
  }

  /** The chosen row over training in one cell: {step, value}. */
  curveOf(cell) {
    const values = this.values.get(cell.cell_id);
    const step = values?.steps ?? [];
    const indices = this.chosenLayers.map(layer => layer.index);
    const name = `${this.layer} ${this.kind}`;
    return { step, value: step.map(s => values.pool(s, indices, name)) };
  }

  /** The points of the fit of the chosen row. As in the analysis, steps from a cell's end on are
   *  left out. */
  pointsOfChosen(rule) {
    const cells = this.fitted(rule);
    const measured = (cell, layer) => hasLog(this.at(cell, this.step, layer));
    // The same layers at every rank of a seed. Otherwise the mean would change with the layers.
    const kept = new Map();
    for (const seed of distinct(cells.map(cell => cell.seed))) {
      const ofSeed = cells.filter(cell => cell.seed === seed);
      const some = ofSeed.filter(cell => this.chosenLayers.some(layer => measured(cell, layer)));
      const inAll = layer => some.every(cell => measured(cell, layer));
      kept.set(seed, this.chosenLayers.filter(inAll));
    }
    const pooled = cell =>
      together(kept.get(cell.seed).map(layer => this.at(cell, this.step, layer)));
    return points(cells, pooled);
  }

  /** The line of one layer at the chosen step, or null. */
  fitOf(rule, layer) {
    const value = cell => this.at(cell, this.step, layer);
    return fitLine(points(this.fitted(rule), value), this.overview.t_critical);
  }

  fitted(rule) {
    const until = cell => cell.end_step ?? Infinity;
    const ofRule = this.cellsOf(rule).filter(cell => Number.isFinite(rankOf(cell)));
    return ofRule.filter(cell => this.step < until(cell));
  }
}

function points(cells, value) {
  const all = cells.map(cell => ({ rank: rankOf(cell), seed: cell.seed, value: value(cell) }));
  return all.filter(point => hasLog(point.value));
}

const rankOf = cell => (cell.rank === "inf" ? Infinity : cell.rank);
const rankKey = rank => (rank === Infinity ? "inf" : String(rank));
const rankName = rank => (rank === Infinity ? "∞" : String(rank));
const hasLog = value => value > 0 && value < Infinity;
const distinct = values => [...new Set(values)];

/** `block 3 q_proj`; the full name outside of the blocks. */
const shortName = layer => (layer.block < 0 ? layer.name : `block ${layer.block} ${layer.kind}`);
