"use strict";
// The tables: the cells, and the comparison of studies.

/** A table of rows of texts, by column. */
function textTable(rows) {
  const heads = Object.keys(rows[0] ?? {});
  return tableOf(
    heads.map(name => element("th", { scope: "col" }, name)),
    rows.map(row => element("tr", {}, ...heads.map(name => element("td", {}, minus(row[name]))))),
  );
}

/** The columns of the cells' table: [name, value of a cell]. */
function cellColumns(overview) {
  const names = new Map(overview.rules.map(rule => [rule.id, rule.name]));
  const own = ["rank", "scaling", "seed", "data_seed", "optimizer", "exponent"];
  const differing = overview.configuration.differ.filter(name => !own.includes(name));
  const several = Object.keys(overview.optimizers).length > 1;
  const isEvaluated = overview.cells.some(cell => cell.curves.eval_loss.value.length);
  const loss = isEvaluated ? "eval_loss" : "loss";
  return [
    ["status", cell => cell.status],
    ["rule", cell => names.get(cell.rule)],
    ["rank", rankOf],
    ["seed", cell => cell.seed],
    ...(several ? [["optimizer", cell => cell.optimizer]] : []),
    ...differing.map(name => [name, cell => cell[name]]),
    ["step", cell => cell.steps_done],
    [`last ${overview.labels.curve[loss]}`, cell => cell.curves[loss].value.at(-1) ?? null],
    ["seconds", cell => cell.seconds],
    ["cell", cell => cell.cell_id],
    ["note", cell => cell.note],
  ];
}

/** The cells, in the order of the column `sort`. */
function cellTable(overview, view, sort, resort, choose) {
  const columns = cellColumns(overview);
  const key = columns.find(([name]) => name === sort)?.[1];
  const cells = key ? overview.cells.toSorted((a, b) => compare(key(a), key(b))) : overview.cells;
  const head = columns.map(([name]) =>
    element(
      "th",
      { scope: "col", "aria-sort": name === sort ? "ascending" : "none" },
      element("button", { type: "button", onclick: () => resort(name) }, name),
    ),
  );
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
  const hidden = element("th", {}, element("span", { class: "hidden" }, "show"));
  return tableOf([...head, hidden], [...body, ...damaged]);
}

function compare(x, y) {
  if (typeof x === "number" && typeof y === "number") return x - y;
  return String(x).localeCompare(String(y), undefined, { numeric: true });
}

/** A cell without numbers: its files are damaged. */
function unreadableRow({ cell_id: id, note }, columns, { unreadable: { symbol, colour } }) {
  const entries = {
    status: element("td", { style: `color: var(--${colour})` }, `${symbol} unreadable`),
    cell: element("td", {}, id),
    note: element("td", { class: "error" }, note),
  };
  const shown = columns.map(([name]) => entries[name] ?? element("td", {}));
  return element("tr", {}, ...shown, element("td", {}));
}

function cellEntry(name, value, cell, states) {
  const found = value(cell);
  if (name === "status") {
    const { symbol, colour } = states[found];
    return element("td", { style: `color: var(--${colour})` }, `${symbol} ${found}`);
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
