"use strict";
// The tables: exponents by rule and optimizer, p* by optimizer, and the cells.

/** The primary exponents: one row per quantity, one column per optimizer, setting and rule. */
function verdictTable(overview) {
  const { verdicts } = overview;
  if (!verdicts.length) return element("p", { class: "faint" }, ...overview.verdict_notes);
  const rules = new Map(overview.rules.map(rule => [rule.id, rule]));
  const columnOf = ({ optimizer, curve, rule }) => JSON.stringify([optimizer, curve, rule]);
  const rowOf = ({ quantity, batch, at_last_step: last, step, over }) =>
    JSON.stringify([quantity, batch, last ? "last" : step, over]);
  const columns = distinct(verdicts.map(columnOf));
  const body = distinct(verdicts.map(rowOf)).map(key => {
    const ofRow = verdicts.filter(verdict => rowOf(verdict) === key);
    const { label, quantity, step, over } = ofRow[0];
    const when = `at step ${step}${onBatch(overview, ofRow[0])}`;
    const cells = columns.map(column => {
      const verdict = ofRow.find(one => columnOf(one) === column);
      const shown = verdict ? verdictCell(verdict, rules.get(verdict.rule), overview.words) : "";
      return element("td", {}, shown);
    });
    const title = `${quantity}, ${over}`;
    return element("tr", {}, rowHead(label, when, title), ...cells);
  });
  const heads = [hiddenHead("quantity"), ...columns.map(key => verdictHead(key, overview))];
  return tableOf(heads, body);
}

/** `, held-out batch`; empty if the page has the training batch only. */
function onBatch({ batches }, { batch }) {
  return batches[batch] ? `, ${batches[batch]}` : "";
}

/** The head of a row: a quantity, and when it is read. It stays in view while columns scroll. */
function rowHead(label, when, title) {
  const small = element("small", {}, ` ${when}`);
  return element("th", { scope: "row", title }, label, element("br"), small);
}

/** What the words, the bars and the numbers mean. */
function verdictLegend({ verdicts, verdict_notes: notes, words }) {
  if (!verdicts.length) return [];
  const used = Object.entries(words).filter(([word]) => verdicts.some(v => v.verdict === word));
  const meanings = used.flatMap(([word, { colour, symbol, meaning }]) => [
    element("span", { class: colour }, `${symbol} ${word}`),
    `: ${meaning}. `,
  ]);
  const marks = "◇ is the exponent from theory for the same ranks. Bars run from −1 to 1. ";
  return [...meanings, `${notes.join(" ")} ${marks}`, "Click a number to see its layers."];
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
  const { symbol, colour } = words[verdict.verdict];
  const onclick = () => chooseVerdict(verdict);
  return element(
    "button",
    { class: "cell", type: "button", onclick },
    rangeBar({ ...verdict, fill: tint(rule) }),
    element(
      "span",
      {},
      element("b", {}, minus(estimate)),
      element("br"),
      element(
        "span",
        { class: colour, "data-term": verdict.verdict },
        `${symbol} ${verdict.verdict}`,
      ),
      " ",
      element("small", { "data-term": "factor" }, factor),
      ...inTheory(theory),
      bend ? element("small", { class: "bend", "data-term": "bent" }, minus(bend)) : null,
    ),
  );
}

/** `◇ 0.50`, if theory has a number. */
function inTheory(text) {
  if (!text) return [];
  const spoken = element("span", { class: "hidden" }, "theory ");
  return [element("small", { "data-term": "theory" }, " ◇ ", spoken, minus(text))];
}

/**
 * A value, its interval and theory on a line from -1 to 1. `fill`: the colour of the value.
 */
function rangeBar({ exponent, ci_low: low, ci_high: high, predicted, fill }) {
  const x = number => 34 + 30 * Math.max(-1, Math.min(1, number));
  const line = (x1, x2, y1, y2, stroke, width, more = {}) =>
    element("line", { x1, x2, y1, y2, stroke, "stroke-width": width, ...more });
  const round = { "stroke-linecap": "round", opacity: 0.45 };
  const diamond = predicted === null ? "" : `M${x(predicted)} 1.5l6 6.5-6 6.5-6-6.5z`;
  const outline = { fill: "none", stroke: "var(--ink)", "stroke-width": 1.3 };
  return element(
    "svg",
    { width: 68, height: 16, "aria-hidden": "true" },
    line(4, 64, 8, 8, "var(--line)", 1),
    line(x(0), x(0), 1, 15, "var(--faint)", 1),
    low === null ? null : line(x(low), x(high), 8, 8, fill, 5, round),
    element("circle", { cx: x(exponent), cy: 8, r: 3.6, fill }),
    predicted === null ? null : element("path", { d: diamond, ...outline }),
  );
}

/** p*: the rows of the report. */
function pStarTable({ p_star: { rows } }) {
  const heads = Object.keys(rows[0] ?? {});
  const cellsOf = row => heads.map(head => element("td", {}, minus(row[head])));
  return tableOf(
    heads.map(head => element("th", { scope: "col" }, head)),
    rows.map(row => element("tr", {}, ...cellsOf(row))),
  );
}

/** The settings that differ: a column per study. */
const settingsTable = (studies, settings) =>
  tableOf(
    ["setting", ...studies].map(name => element("th", { scope: "col" }, name)),
    settings.map(row => element("tr", {}, ...row.map(text => element("td", {}, text)))),
  );

/** The numbers of the first study and of each other one, with their difference; by curve. */
function comparisonTable([first], rows) {
  const headOf = ({ study, curve }) => `${study}: ${curve}`;
  const names = ["quantity", "step", "A", "B", "B - A"];
  const body = distinct(rows.map(headOf)).flatMap(head => [
    element("tr", { class: "head" }, element("th", { colspan: names.length }, head)),
    ...rows
      .filter(row => headOf(row) === head)
      .map(row => {
        const texts = names.map(name => minus(row[name]));
        const last = row.differs ? element("b", {}, texts.pop()) : texts.pop();
        return element("tr", {}, ...[...texts, last].map(text => element("td", {}, text)));
      }),
  ]);
  const heads = ["quantity", "step", first, "the other study", "difference"];
  return tableOf(heads.map(name => element("th", { scope: "col" }, name)), body);
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
