"use strict";
// The probed values: where they come from, and how they are read (study/dashboard/values.py).

/** The probed values of one cell: a float per step and layer. */
class CellValues {
  constructor(steps, floats, width) {
    this.steps = steps;
    const row = s => floats.subarray(s * width, (s + 1) * width);
    this.rows = new Map(steps.map((step, s) => [step, row(s)]));
    const having = test => steps.filter(step => this.rows.get(step).some(test));
    this.measured = having(value => !Object.is(value, -0));
    this.positive = having(hasLog); // the steps with a value that a logarithmic chart can show
  }

  /** The value at a step and layer index: a number, NaN or infinity; undefined if not measured. */
  at(step, layer) {
    const value = this.rows.get(step)?.[layer];
    return Object.is(value, -0) ? undefined : value;
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

/** The values by cell, and the exponents, `lines`, by curve. */
function unpacked(message) {
  const length = new DataView(message.buffer, message.byteOffset).getUint32(0, true);
  const text = new TextDecoder().decode(message.subarray(4, 4 + length));
  const { width, blocks, lines } = JSON.parse(text);
  const floats = new Float32Array(message.buffer, message.byteOffset + 4 + length);
  const cells = new Map();
  let place = 0;
  for (const { cell, steps } of blocks) {
    const size = steps.length * width;
    cells.set(cell, new CellValues(steps, floats.subarray(place, place + size), width));
    place += size;
  }
  return Object.assign(cells, { lines });
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
