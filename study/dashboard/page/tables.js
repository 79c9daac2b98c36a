"use strict";
// The two tables: exponents by rule and optimizer, and the cells.

/** The primary exponents: a row per quantity, a column per optimizer, setting and rule. */
function verdictTable(overview) {
  if (!overview.verdicts.length) return element("p", { class: "faint" }, overview.verdict_note);
  const rules = new Map(overview.rules.map(rule => [rule.id, rule]));
  const column = verdict => JSON.stringify([verdict.optimizer, verdict.curve, verdict.rule]);
  const row = verdict => JSON.stringify([verdict.quantity, verdict.quantity.endsWith("descent") ? verdict.step : "", verdict.over]);
  const columns = distinct(overview.verdicts.map(column)), rows = distinct(overview.verdicts.map(row));
  const several = distinct(overview.verdicts.map(verdict => verdict.optimizer)).length > 1;
  const head = columns.map(key => {
    const [optimizer, curve, id] = JSON.parse(key);
    const about = [several ? overview.optimizers[optimizer] : null, curve].filter(Boolean).join(", ");
    return element("th", { scope: "col" }, swatch(rules.get(id)), rules.get(id).name, about ? element("small", {}, ` ${about}`) : null);
  });
  const body = rows.map(key => {
    const these = overview.verdicts.filter(verdict => row(verdict) === key);
    const { quantity, step, over } = these[0];
    const cells = columns.map(name => {
      const verdict = these.find(one => column(one) === name);
      return element("td", {}, verdict ? verdictCell(verdict, rules.get(verdict.rule)) : "");
    });
    const where = over === "the model" ? "over the model" : over.replace(" of the log", "");
    return element("tr", {}, element("th", { scope: "row" }, quantity, element("small", {}, ` step ${step}, ${where}`)), ...cells);
  });
  const kinds = distinct(overview.verdicts.map(verdict => verdict.interval));
  const note = kinds.includes("ranks") ? "One seed: intervals are over ranks and say nothing about another seed."
    : kinds.includes("none") ? "Fewer than three ranks: no interval." : `Intervals are over ${Math.max(...overview.verdicts.map(v => v.seeds))} seeds.`;
  return element("div", {},
    element("table", {}, element("thead", {}, element("tr", {}, element("th", {}, element("span", { class: "hidden" }, "quantity")), ...head)), element("tbody", {}, ...body)),
    element("small", {}, `Bars run from −1 to 1; the open diamond is theory's exponent on the same ranks. ${note}`));
}

const ARROWS = { stable: "=", collapses: "↘", explodes: "↗", unclear: "?" };

function verdictCell(verdict, rule) {
  const { exponent, ci_low: low, ci_high: high, predicted } = verdict;
  const x = value => 46 + 42 * Math.max(-1, Math.min(1, value));
  const bar = element("svg", { width: 92, height: 16, "aria-hidden": "true" },
    element("line", { x1: 4, x2: 88, y1: 8, y2: 8, stroke: "var(--line)", "stroke-width": 1 }),
    element("line", { x1: 46, x2: 46, y1: 1, y2: 15, stroke: "var(--faint)", "stroke-width": 1 }),
    low === null ? null : element("line", { x1: x(low), x2: x(high), y1: 8, y2: 8, stroke: tint(rule), "stroke-width": 5, "stroke-linecap": "round", opacity: .45 }),
    element("circle", { cx: x(exponent), cy: 8, r: 3.6, fill: tint(rule) }),
    predicted === null ? null : element("path", { d: `M${x(predicted)} 1.5l6 6.5-6 6.5-6-6.5z`, fill: "none", stroke: "var(--ink)", "stroke-width": 1.3 }));
  return element("div", { class: "cell" }, bar,
    element("span", {}, element("b", {}, interval(exponent, low, high)), " ",
      element("small", {}, predicted === null ? "" : `theory ${twoPlaces(predicted)}`), " ",
      element("span", { class: verdict.verdict }, `${ARROWS[verdict.verdict]} ${verdict.verdict}`)));
}

/** What each column of the cells' table is, and how to sort by it. */
function cellColumns(overview) {
  const names = new Map(overview.rules.map(rule => [rule.id, rule.name]));
  const own = ["rank", "scaling", "seed", "data_seed", "optimizer", "exponent"];
  const last = cell => cell.curves.loss.value.at(-1) ?? null;
  return [
    ["status", cell => cell.status],
    ["rule", cell => names.get(cell.rule)],
    ["rank", rankOf],
    ["seed", cell => cell.seed],
    ...(Object.keys(overview.optimizers).length > 1 ? [["optimizer", cell => cell.optimizer]] : []),
    ...overview.configuration.differ.filter(name => !own.includes(name)).map(name => [name, cell => cell[name]]),
    ["step", cell => cell.steps_done],
    ["loss", last],
    ["seconds", cell => cell.seconds],
    ["cell", cell => cell.cell_id],
    ["note", cell => cell.error ?? (cell.status === "diverged" ? `not finite at step ${cell.diverged_step}` : "")],
  ];
}

/** The cells in the order that was asked for; `sort` is {name, down}. */
function cellRows(overview, sort) {
  const columns = cellColumns(overview), key = columns.find(([name]) => name === sort.name)?.[1];
  const cells = [...overview.cells];
  if (key) {
    const weight = value => (value === null || value === undefined || value === "" ? 1 : 0);
    cells.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return weight(x) - weight(y) || (sort.down ? -order : order);
    });
  }
  return { columns, cells };
}

function cellTable(overview, view, sort, resort, choose) {
  const { columns, cells } = cellRows(overview, sort);
  const head = columns.map(([name]) => {
    const here = sort.name === name;
    return element("th", { scope: "col", "aria-sort": here ? (sort.down ? "descending" : "ascending") : "none" },
      element("button", { type: "button", onclick: () => resort(name) }, name + (here ? (sort.down ? " ↓" : " ↑") : "")));
  });
  const body = cells.map(cell => {
    const shown = cell.optimizer === view.optimizer && cell.setting === view.setting && rankOf(cell) === view.rank;
    const texts = columns.map(([name, value]) => {
      if (name === "status") return element("td", { class: `state ${cell.status}` }, cell.status);
      if (name === "step") return element("td", {}, `${cell.steps_done}/${cell.steps}`);
      if (name === "note") return element("td", { class: "error" }, value(cell));
      const found = value(cell);
      const text = name === "rank" ? rankName(found) : name === "cell" || typeof found !== "number" ? String(found ?? "") : number(found);
      return element("td", {}, text);
    });
    const show = element("button", { type: "button", onclick: () => choose(cell), title: "Show this cell's rank, seed and setting in the charts" }, "show");
    return element("tr", { class: shown ? "chosen" : undefined, "data-cell": cell.cell_id }, ...texts, element("td", {}, show));
  });
  return element("table", {}, element("thead", {}, element("tr", {}, ...head, element("th", {}, element("span", { class: "hidden" }, "show")))), element("tbody", {}, ...body));
}
