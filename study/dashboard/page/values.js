"use strict";
// The probed values: where they come from, and how they are unpacked (study/dashboard/values.py).

const NAN = 32766,
  INFINITE = 32767,
  MISSING = -32768;

/** The probed values of one cell: a row of codes per step. */
class CellValues {
  constructor({ steps, base, resolution }, bytes, width) {
    this.steps = steps;
    this.rows = new Map(); // step -> {codes, base, resolution}
    this.pooled = new Map(); // results of pool()
    this.measured = []; // the steps with any value
    this.positive = []; // the steps with a value that a logarithmic chart can show
    const size = steps.length * width;
    let before = new Int16Array(width);
    steps.forEach((step, s) => {
      const codes = new Int16Array(width);
      for (let l = 0, n = s * width; l < width; l++, n++) {
        const folded = bytes[n] | (bytes[size + n] << 8);
        codes[l] = before[l] + ((folded >>> 1) ^ -(folded & 1));
      }
      this.rows.set(step, { codes, base, resolution });
      if (codes.some(code => code !== MISSING)) this.measured.push(step);
      if (codes.some(code => code > 0 && code < NAN)) this.positive.push(step);
      before = codes;
    });
  }

  /** Several layers pooled by together(). The result is kept under `name`. */
  pool(step, layers, name) {
    const key = `${name} ${step}`;
    if (!this.pooled.has(key)) {
      this.pooled.set(key, together(layers.map(layer => this.at(step, layer))));
    }
    return this.pooled.get(key);
  }

  /** The value at a step and layer index: a number, NaN or infinity; undefined if not measured. */
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

/**
 * The geometric mean of the measured values. A value that is not finite is returned as it is; so is
 * one that is zero or negative, if all are finite.
 */
function together(values) {
  let count = 0,
    logs = 0,
    without;
  for (const value of values) {
    if (value === undefined) continue;
    if (!Number.isFinite(value)) return value;
    if (value <= 0) without ??= value;
    else logs += Math.log(value);
    count++;
  }
  return count === 0 ? undefined : (without ?? Math.exp(logs / count));
}

/** The values of every quantity and cell. `source` is a FileSource or a ServerSource. */
class Values {
  constructor(source) {
    this.source = source;
    this.known = new Map(); // quantity -> Map(cell -> CellValues), of one version of the overview
    this.version = null;
  }

  /** The values of a quantity by cell. */
  async load(quantity, overview) {
    if (overview.version !== this.version) this.known.clear();
    this.version = overview.version;
    const name = quantityName(quantity);
    if (!this.known.has(name)) {
      this.known.set(name, unpacked(await this.source.values(quantity, overview)));
    }
    return this.known.get(name);
  }
}

function unpacked(message) {
  const length = new DataView(message.buffer, message.byteOffset).getUint32(0, true);
  const { width, blocks } = JSON.parse(new TextDecoder().decode(message.subarray(4, 4 + length)));
  const cells = new Map();
  let place = 4 + length;
  for (const block of blocks) {
    const size = 2 * block.steps.length * width;
    cells.set(block.cell, new CellValues(block, message.subarray(place, place + size), width));
    place += size;
  }
  return cells;
}

const quantityName = quantity => `${quantity.site} ${quantity.stat} ${quantity.batch}`;

/** Everything is embedded in this document. */
class FileSource {
  async plotly() {
    return new TextDecoder().decode(await embedded("plotly"));
  }
  async overview() {
    return JSON.parse(new TextDecoder().decode(await embedded("overview")));
  }

  async values(quantity) {
    const name = quantityName(quantity);
    const place = page.all.quantities.findIndex(one => quantityName(one) === name);
    return embedded(`values-${place}`);
  }
}

/** The server of this document. */
class ServerSource {
  async plotly() {
    return (await request("plotly.js")).text();
  }

  /** What running sweeps have still to train: {waiting, seconds_left}. */
  async progress() {
    return (await request("progress")).json();
  }

  /** The overview, or null if it has not changed since the last call. */
  async overview() {
    const unlessKnown = { headers: { "If-None-Match": this.etag }, cache: "no-store" };
    const response = await request("overview", this.etag ? unlessKnown : {});
    if (response.status === 304) return null;
    this.etag = response.headers.get("ETag");
    return response.json();
  }

  async values(quantity) {
    const response = await request(`values?${new URLSearchParams(quantity)}`);
    return new Uint8Array(await response.arrayBuffer());
  }
}

async function request(path, options) {
  const response = await fetch(path, options);
  if (!response.ok && response.status !== 304) throw new Error(`${path}: ${response.status}`);
  return response;
}

/** The bytes of an element that study/dashboard/document.py embedded. */
async function embedded(id) {
  const text = atob(document.getElementById(id).textContent);
  const zipped = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) zipped[n] = text.charCodeAt(n);
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
