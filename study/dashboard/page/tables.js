"use strict";
// The two tables: exponents by rule and optimizer, and the cells.

/** The primary exponents: one row per quantity, one column per optimizer, setting and rule. */
function verdictTable(overview) {
  const { verdicts } = overview;
  if (!verdicts.length) return element("p", { class: "faint" }, ...overview.verdict_notes);
  const rules = new Map(overview.rules.map(rule => [rule.id, rule]));
  const columnOf = ({ optimizer, curve, rule }) => JSON.stringify([optimizer, curve, rule]);
  const rowOf = ({ quantity, at_last_step: last, step, over }) =>
    JSON.stringify([quantity, last ? "last" : step, over]);
  const columns = distinct(verdicts.map(columnOf));
  const body = distinct(verdicts.map(rowOf)).map(key => {
    const ofRow = verdicts.filter(verdict => rowOf(verdict) === key);
    const { label, quantity, step, over } = ofRow[0];
    const cells = columns.map(column => {
      const verdict = ofRow.find(one => columnOf(one) === column);
      const shown = verdict ? verdictCell(verdict, rules.get(verdict.rule), overview.words) : "";
      return element("td", {}, shown);
    });
    const title = `${quantity}, ${over}`;
    const small = element("small", {}, ` at step ${step}`);
    const head = element("th", { scope: "row", title }, label, element("br"), small);
    return element("tr", {}, head, ...cells);
  });
  const heads = [hiddenHead("quantity"), ...columns.map(key => verdictHead(key, overview))];
  return element("div", {}, tableOf(heads, body), verdictLegend(overview));
}

/** What the words, the bars and the numbers mean. */
function verdictLegend({ verdicts, verdict_notes: notes, words }) {
  const used = Object.entries(words).filter(([word]) => verdicts.some(v => v.verdict === word));
  const meanings = used.flatMap(([word, { colour, symbol, meaning }]) => [
    element("span", { class: colour }, `${symbol} ${word}`),
    `: ${meaning}. `,
  ]);
  const marks = "◇ is the exponent from theory for the same ranks. Bars run from −1 to 1.";
  return element("small", {}, ...meanings, `${notes.join(" ")} ${marks}`);
}

/** The head of a column: its rule, and its optimizer if there are several. */
function verdictHead(key, overview) {
  const [optimizer, curve, id] = JSON.parse(key);
  const rule = overview.rules.find(one => one.id === id);
  const several = distinct(overview.verdicts.map(verdict => verdict.optimizer)).length > 1;
  const about = [several ? overview.optimizers[optimizer] : null, curve].filter(Boolean);
  const small = about.length ? element("small", {}, ` ${about.join(", ")}`) : null;
  return element("th", { scope: "col" }, swatch(rule), rule.name, small);
}

/** An exponent: a bar and its interval; below them the factor, theory and the verdict. */
function verdictCell(verdict, rule, words) {
  const { estimate, factor, theory, bend } = verdict;
  const { symbol, colour, meaning } = words[verdict.verdict];
  const spoken = element("span", { class: "hidden" }, "theory ");
  const inTheory = theory ? [" ◇ ", spoken, minus(theory)] : [];
  return element(
    "div",
    { class: "cell" },
    exponentBar(verdict, rule),
    element(
      "span",
      {},
      element("b", {}, minus(estimate)),
      element("br"),
      element("span", { class: colour, title: meaning }, `${symbol} ${verdict.verdict}`),
      " ",
      element("small", {}, factor, ...inTheory),
      bend ? element("small", { class: "bend" }, minus(bend)) : null,
    ),
  );
}

/** The exponent, its interval and theory on a line from −1 to 1. */
function exponentBar({ exponent, ci_low: low, ci_high: high, predicted }, rule) {
  const x = value => 34 + 30 * Math.max(-1, Math.min(1, value));
  const line = (x1, x2, y1, y2, stroke, width, more = {}) =>
    element("line", { x1, x2, y1, y2, stroke, "stroke-width": width, ...more });
  const round = { "stroke-linecap": "round", opacity: 0.45 };
  const diamond = predicted === null ? "" : `M${x(predicted)} 1.5l6 6.5-6 6.5-6-6.5z`;
  const outline = { fill: "none", stroke: "var(--ink)", "stroke-width": 1.3 };
  return element(
    "svg",
    { width: 68, height: 16, "aria-hidden": "true" },
    line(4, 64, 8, 8, "var(--line)", 1),
    line(34, 34, 1, 15, "var(--faint)", 1),
    low === null ? null : line(x(low), x(high), 8, 8, tint(rule), 5, round),
    element("circle", { cx: x(exponent), cy: 8, r: 3.6, fill: tint(rule) }),
    predicted === null ? null : element("path", { d: diamond, ...outline }),
  );
}

/** The columns of the cells' table: [name, value of a cell]. */
function cellColumns(overview) {
  const names = new Map(overview.rules.map(rule => [rule.id, rule.name]));
  const own = ["rank", "scaling", "seed", "data_seed", "optimizer", "exponent"];
  const differing = overview.configuration.differ.filter(name => !own.includes(name));
  const several = Object.keys(overview.optimizers).length > 1;
  return [
    ["status", cell => cell.status],
    ["rule", cell => names.get(cell.rule)],
    ["rank", rankOf],
    ["seed", cell => cell.seed],
    ...(several ? [["optimizer", cell => cell.optimizer]] : []),
    ...differing.map(name => [name, cell => cell[name]]),
    ["step", cell => cell.steps_done],
    ["loss", cell => cell.curves.loss.value.at(-1) ?? null],
    ["seconds", cell => cell.seconds],
    ["cell", cell => cell.cell_id],
    ["note", cell => cell.note],
  ];
}

/** The columns, and the cells in the chosen order. `sort` is {name, down}. */
function cellRows(overview, sort) {
  const columns = cellColumns(overview);
  const cells = [...overview.cells];
  const key = columns.find(([name]) => name === sort.name)?.[1];
  if (key) {
    // Missing values come last in both directions.
    const missing = value => Number(value === null || value === undefined || value === "");
    cells.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const order = compare(x, y);
      return missing(x) - missing(y) || (sort.down ? -order : order);
    });
  }
  return { columns, cells };
}

function compare(x, y) {
  if (typeof x === "number" && typeof y === "number") return x - y;
  return String(x).localeCompare(String(y), undefined, { numeric: true });
}

function cellTable(overview, view, sort, resort, choose) {
  const { columns, cells } = cellRows(overview, sort);
  const head = columns.map(([name]) => sortHead(name, sort, resort));
  const { states } = overview;
  const body = cells.map(cell => {
    const ofView = cell.optimizer === view?.optimizer && cell.setting === view.setting;
    const chosen = ofView && rankOf(cell) === view.rank;
    const title = "Show this cell's rank, seed and setting in the charts";
    const show = element("button", { type: "button", onclick: () => choose(cell), title }, "show");
    return element(
      "tr",
      { class: chosen ? "chosen" : undefined, "data-cell": cell.cell_id },
      ...columns.map(([name, value]) => cellEntry(name, value, cell, states)),
      element("td", {}, show),
    );
  });
  const damaged = overview.unreadable.map(cell => unreadableRow(cell, columns, states));
  return tableOf([...head, hiddenHead("show")], [...body, ...damaged]);
}

/** A cell without numbers: its files are damaged. */
function unreadableRow({ cell_id: id, note }, columns, { unreadable: { symbol, colour } }) {
  const entries = {
    status: element("td", { class: colour }, `${symbol} unreadable`),
    cell: element("td", {}, id),
    note: element("td", { class: "error" }, note),
  };
  const shown = columns.map(([name]) => entries[name] ?? element("td", {}));
  return element("tr", {}, ...shown, element("td", {}));
}

function sortHead(name, sort, resort) {
  const arrow = sort.down ? " ↓" : " ↑";
  const order = sort.down ? "descending" : "ascending";
  const sorted = sort.name === name;
  const text = sorted ? name + arrow : name;
  const button = element("button", { type: "button", onclick: () => resort(name) }, text);
  return element("th", { scope: "col", "aria-sort": sorted ? order : "none" }, button);
}

function cellEntry(name, value, cell, states) {
  const found = value(cell);
  if (name === "status") {
    const { symbol, colour } = states[found];
    return element("td", { class: colour }, `${symbol} ${found}`);
  }
  if (name === "step") return element("td", {}, `${found}/${cell.steps}`);
  if (name === "note") return element("td", { class: "error" }, found);
  if (name === "rank") return element("td", {}, rankName(found));
  return element("td", {}, typeof found === "number" ? number(found) : String(found ?? ""));
}

function tableOf(heads, rows) {
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows),
  );
}

/** A head that only screen readers read. */
const hiddenHead = text => element("th", {}, element("span", { class: "hidden" }, text));
