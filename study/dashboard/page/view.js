"use strict";
// The choices of the reader, kept in the address, and the part of the study that they select.

const CHOICES = [
  ...["study", "tab", "site", "stat", "batch", "kind", "optimizer", "setting"],
  ...["rules", "rank", "seed", "step", "layer", "curve", "smooth"],
];
const MEAN = "mean over layers";
const ALL = "all";
const STEPS_BACK = ["study", "tab", "site", "stat", "layer"]; // the browser's Back undoes these
const GRADIENTS = "grad_norm";

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

  /** An undefined value takes a choice back. */
  make(changes) {
    Object.assign(this.made, changes);
    for (const name of CHOICES) if (this.made[name] === undefined) delete this.made[name];
    const made = CHOICES.filter(name => name in this.made);
    const address = new URLSearchParams(made.map(name => [name, this.made[name]]));
    const isStep = STEPS_BACK.some(name => name in changes);
    history[isStep ? "pushState" : "replaceState"](null, "", "#" + address);
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
    this.curveNames = Object.keys(overview.labels.curve);
    this.curve = oneOf(this.curveNames, made.curve);
    this.smooth = Math.max(0, Math.min(0.99, Number(made.smooth) || 0));
  }

  /** The cells of one optimizer and one setting; by default, the setting with most cells. */
  chooseSetting(made) {
    const { cells } = this.overview;
    this.optimizers = Object.keys(this.overview.optimizers);
    this.optimizer = oneOf(this.optimizers, made.optimizer, cells[0].optimizer);
    const own = cells.filter(cell => cell.optimizer === this.optimizer);
    this.settings = distinct(own.map(cell => cell.setting)).sort(compare);
    const size = setting => own.filter(cell => cell.setting === setting).length;
    const largest = this.settings.reduce((most, one) => (size(one) > size(most) ? one : most));
    this.setting = oneOf(this.settings, made.setting, largest);
    return own.filter(cell => cell.setting === this.setting);
  }

  /** The default is all of up to three rules; of more, those with an own exponent or two. */
  chooseRules(made, cells) {
    this.allRules = this.overview.rules.filter(rule => cells.some(cell => cell.rule === rule.id));
    const wanted = (made.rules ?? "").split(",");
    const chosen = this.allRules.filter(rule => wanted.includes(rule.id));
    const named = this.allRules.filter(rule => rule.has_own_p);
    const several = named.length ? named : this.allRules.slice(0, 2);
    const usual = this.allRules.length <= 3 ? this.allRules : several;
    this.rules = chosen.length ? chosen : usual;
  }

  /** The cells of the chosen rules and seed, and their ranks. The default is the highest rank that
   *  all of the rules have. */
  chooseSample(made, cells) {
    const ofRules = cells.filter(cell => this.rules.some(rule => rule.id === cell.rule));
    this.seeds = distinct(ofRules.map(cell => String(cell.seed)));
    this.seed = oneOf([ALL, ...this.seeds], made.seed);
    this.sample = ofRules.filter(cell => this.seed === ALL || String(cell.seed) === this.seed);
    this.ranks = distinct(this.sample.map(rankOf)).sort((a, b) => a - b);
    const finite = this.ranks.filter(Number.isFinite);
    const ofAll = finite.filter(rank => this.rules.every(rule => this.cellsOf(rule, rank).length));
    const highest = ofAll.at(-1) ?? finite.at(-1) ?? this.ranks.at(-1);
    this.rank = oneOf(this.ranks, made.rank === "inf" ? Infinity : Number(made.rank), highest);
  }

  /**
   * The default is the last step at which every cell has something to show, except cells that
   * stopped early. `notice` says what the reader misses at the chosen step.
   */
  chooseStep(made) {
    const read = this.sample.map(cell => this.values.get(cell.key)).filter(Boolean);
    const inOrder = lists => distinct(lists.flat()).sort((a, b) => a - b);
    this.steps = inOrder(read.map(cell => cell.steps));
    this.measured = inOrder(read.map(cell => cell.measured));
    const positive = inOrder(read.map(cell => cell.positive));
    const going = this.sample.filter(cell => !this.overview.states[cell.status].stopped_early);
    const last = cell => this.values.get(cell.key)?.positive.at(-1);
    const reached = going.map(last).filter(step => step !== undefined);
    const lastOne = positive.at(-1) ?? this.measured.at(-1) ?? this.steps.at(-1);
    const common = reached.length ? Math.min(...reached) : lastOne;
    const wanted = made.step === undefined ? NaN : Number(made.step);
    this.step = oneOf(this.steps, wanted, common);
    this.notice = this.missing(made.step, positive, common);
  }

  /** {text, step}: what is not measured, and a step with something to show; or null. */
  missing(asked, positive, step) {
    const name = `${this.quantity.site} ${this.quantity.stat}`;
    if (asked !== undefined && Number(asked) !== this.step) {
      return { text: `Not measured at step ${asked}. This is step ${this.step}.` };
    }
    if (!this.measured.includes(this.step)) {
      const at = this.measured.length ? ` It was at step ${someOf(this.measured)}.` : "";
      return { text: `${name}: not measured at step ${this.step}.${at}`, step };
    }
    if (positive.includes(this.step)) return null;
    const why = this.step === 0 ? " B is zero before the first update." : "";
    return { text: `${name}: zero or negative at step ${this.step}.${why}`, step };
  }

  chooseLayers(made) {
    this.model = this.overview.layers.find(layer => layer.kind === "model");
    const layers = this.overview.layers.filter(layer => layer !== this.model);
    this.kinds = distinct(layers.map(layer => layer.kind));
    this.kind = oneOf([ALL, ...this.kinds], made.kind);
    this.layers = layers
      .filter(layer => this.kind === ALL || layer.kind === this.kind)
      .sort((a, b) => a.block - b.block || a.index - b.index);
    this.hasModel = this.sample.some(cell =>
      this.steps.some(step => this.at(cell, step, this.model) !== undefined),
    );
    const names = this.layers.map(layer => layer.name);
    this.layer = oneOf([MEAN, ...(this.hasModel ? [this.model.name] : []), ...names], made.layer);
  }

  at(cell, step, layer) {
    return this.values.get(cell.key)?.at(step, layer.index);
  }

  cellsOf(rule, rank) {
    const ofRule = this.sample.filter(cell => cell.rule === rule.id);
    return rank === undefined ? ofRule : ofRule.filter(cell => rankOf(cell) === rank);
  }

  /** A function from step and layer index to a value: the geometric mean over seeds. */
  reader(rule, rank) {
    const cells = this.cellsOf(rule, rank).map(cell => this.values.get(cell.key));
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
    const values = this.values.get(cell.key);
    const step = values?.steps ?? [];
    const layers = this.chosenLayers;
    return { step, value: step.map(s => together(layers.map(one => values.at(s, one.index)))) };
  }

  /**
   * One curve per rule and rank, the mean over seeds: {rule, rank, cells, x, y}.
   * @param series gives {step, value} of a cell.
   * @param pool gives the mean of values.
   */
  curves(series, pool) {
    return this.rules.flatMap(rule =>
      this.ranks.flatMap(rank => {
        const cells = this.cellsOf(rule, rank);
        return cells.length ? [{ rule, rank, cells, ...average(cells.map(series), pool) }] : [];
      }),
    );
  }

  /** The points of the chosen row at finite ranks: {rank, seed, value}. As in the analysis, steps
   *  from a cell's end on are left out. */
  pointsOfChosen(rule) {
    const value = cell =>
      together(this.chosenLayers.map(layer => this.at(cell, this.step, layer)));
    return this.cellsOf(rule)
      .filter(cell => Number.isFinite(rankOf(cell)) && this.step < (cell.end_step ?? Infinity))
      .map(cell => ({ rank: rankOf(cell), seed: cell.seed, value: value(cell) }))
      .filter(point => hasLog(point.value));
  }

  /** The exponent of a layer, or of a mean over layers, at the chosen step, or null. It is that of
   *  the analysis, over all seeds: {slope, low, high, seeds, ranks}. */
  fitOf(rule, layer) {
    const curve = this.cellsOf(rule)[0]?.curve;
    const row = layer === MEAN ? this.kind : layer.index;
    const found = this.values.lines[curve]?.[this.step]?.[row];
    if (!found) return null;
    const [slope, low, high, seeds, ranks] = found;
    return { slope, low, high, seeds, ranks };
  }
}

/**
 * The mean of curves {step, value}: {x, y}. As in the heat map, it is over the seeds that have a
 * step. Steps that a longer curve lacks, because it is thinned out, are left out.
 */
function average(curves, pool) {
  const long = curves.filter(curve => curve.step.length);
  const maps = long.map(({ step, value }) => new Map(step.map((s, k) => [s, value[k]])));
  const all = distinct(long.flatMap(curve => curve.step)).sort((a, b) => a - b);
  const x = all.filter(s => maps.every((map, k) => map.has(s) || long[k].step.at(-1) < s));
  const y = x.map(s => pool(maps.filter(map => map.has(s)).map(map => map.get(s))));
  return { x, y };
}

/** `0, 1, 10`; `0, 1, ... 100` if they are many. */
const someOf = steps =>
  steps.length > 6 ? `${steps.slice(0, 3).join(", ")}, ... ${steps.at(-1)}` : steps.join(", ");

const rankOf = cell => (cell.rank === "inf" ? Infinity : cell.rank);
const rankKey = rank => (rank === Infinity ? "inf" : String(rank));
const rankName = rank => (rank === Infinity ? "∞" : String(rank));
const hasLog = value => value > 0 && value < Infinity;
const distinct = values => [...new Set(values)];

/** `block 3 q_proj`; the full name outside of the blocks. */
const shortName = layer => (layer.block < 0 ? layer.name : `block ${layer.block} ${layer.kind}`);
