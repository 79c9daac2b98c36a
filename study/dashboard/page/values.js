"use strict";
// What the page is given, and how it is read: the other half of study/dashboard/packing.py.

const NAN = 32766, INFINITE = 32767, MISSING = -32768;

/** The probed values of one cell, a row of codes per step; only ever added to. */
class CellValues {
  constructor(revision) {
    this.revision = revision;
    this.steps = [];
    this.rows = new Map();  // step -> {codes, base, resolution}
    this.pooled = new Map();  // what pool() has worked out
  }

  add(block, bytes, width) {
    const { start, steps, base, resolution } = block;
    for (const step of this.steps.splice(start)) this.rows.delete(step);
    this.pooled.clear();
    const size = steps.length * width;
    let before = new Int16Array(width);
    steps.forEach((step, s) => {
      const codes = new Int16Array(width);
      for (let l = 0, n = s * width; l < width; l++, n++) {
        const folded = bytes[n] | (bytes[size + n] << 8);
        codes[l] = before[l] + ((folded >>> 1) ^ -(folded & 1));
      }
      this.rows.set(step, { codes, base, resolution });
      this.steps.push(step);
      before = codes;
    });
  }

  /** Several layers as one, see together(); `name` stands for them, so that a choice made before costs nothing. */
  pool(step, places, name) {
    const key = `${name} ${step}`;
    if (!this.pooled.has(key)) this.pooled.set(key, together(places.map(place => this.at(step, place))));
    return this.pooled.get(key);
  }

  /** The value at a step and layer: a number, NaN or an infinity as measured, or undefined where it was not. */
  at(step, layer) {
    const row = this.rows.get(step);
    if (row === undefined || layer >= row.codes.length) return undefined;
    const code = row.codes[layer];
    if (code === 0) return 0;
    if (code === MISSING) return undefined;
    if (code === NAN) return NaN;
    if (code === INFINITE) return Infinity;
    if (code === -INFINITE) return -Infinity;
    return Math.sign(code) * Math.exp(row.base + (Math.abs(code) - 1) * row.resolution);
  }
}

/** Several values of one quantity as one: their geometric mean; what is not finite or has no logarithm shows through. */
function together(values) {
  let count = 0, logs = 0, without;
  for (const value of values) {
    if (value === undefined) continue;
    if (!Number.isFinite(value)) return value;
    if (value <= 0) without ??= value;
    else logs += Math.log(value);
    count++;
  }
  return count === 0 ? undefined : without ?? Math.exp(logs / count);
}

/** Values by quantity and cell, from wherever they come. `source` is a FileSource or a ServerSource. */
class Values {
  constructor(source) {
    this.source = source;
    this.known = new Map();  // quantity -> Map(cell -> CellValues)
    this.instance = null;
  }

  /** Bring a quantity up to date with the overview: nothing is fetched where nothing is new. */
  async load(quantity, overview) {
    if (overview.instance !== this.instance) {
      this.known.clear();
      this.instance = overview.instance;
    }
    const name = quantityName(quantity);
    const cells = this.known.get(name) ?? new Map();
    const current = cell => {
      const has = cells.get(cell.cell_id);
      return has ? has.revision === cell.revision && has.steps.length >= cell.probed : cell.probed === 0;
    };
    if (overview.cells.every(current)) return cells;
    const had = [...cells].map(([cell, values]) => [cell, values.revision, values.steps.length]);
    const message = await this.source.values(quantity, had, overview);
    const length = new DataView(message.buffer, message.byteOffset).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(message.subarray(4, 4 + length)));
    if (header.instance !== this.instance) return cells;  // the server was started anew in between: ask again later
    let place = 4 + length;
    for (const block of header.blocks) {
      const size = 2 * block.steps.length * header.width;
      let values = cells.get(block.cell);
      if (!values || values.revision !== block.revision) cells.set(block.cell, values = new CellValues(block.revision));
      values.add(block, message.subarray(place, place + size), header.width);
      place += size;
    }
    this.known.set(name, cells);
    return cells;
  }
}

const quantityName = quantity => `${quantity.site} ${quantity.stat} ${quantity.batch}`;

/** Everything is in this document. */
class FileSource {
  async plotly() { return new TextDecoder().decode(await embedded("plotly")); }
  async overview() { return JSON.parse(new TextDecoder().decode(await embedded("overview"))); }

  async values(quantity, had, overview) {
    const place = overview.quantities.findIndex(other => quantityName(other) === quantityName(quantity));
    return embedded(`values-${place}`);
  }
}

/** The server that this document came from. */
class ServerSource {
  async plotly() { return (await asked("plotly.js")).text(); }

  /** The overview, or null where it has not changed since the last call. */
  async overview() {
    const answer = await asked("overview", this.etag ? { headers: { "If-None-Match": this.etag }, cache: "no-store" } : {});
    if (answer.status === 304) return null;
    this.etag = answer.headers.get("ETag");
    return answer.json();
  }

  async values(quantity, had) {
    const query = new URLSearchParams({ ...quantity, had: JSON.stringify(had) });
    return new Uint8Array(await (await asked(`values?${query}`)).arrayBuffer());
  }
}

async function asked(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok && answer.status !== 304) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

/** The bytes of an element that study/dashboard/document.py embedded. */
async function embedded(id) {
  const text = atob(document.getElementById(id).textContent);
  const zipped = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) zipped[n] = text.charCodeAt(n);
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
