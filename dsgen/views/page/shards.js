// Read the shards of a store with zarrita, and check what it does not: that no chunk is missing, where zarrita would
// read zeros, and every CRC-32C. The checksums inside zstd are checked by zstd itself.

import { readFile, readJson, readRange } from "./http.js";
import { Problem } from "./problem.js";
import { Array as ZarrArray, registry } from "./vendor/zarrita.js";
import { ZipFile } from "./zip.js";

export const PIXELS = ["image", "mask", "depth", "instance"];
const OTHERS = ["background", "room_depth", "room_floor", "foreground_cutout"];
const NO_CHUNK = 0xffffffffffffffffn;
const REPAIR = "run dsgen verify to see what else is damaged, and dsgen repair to mend it";

const CRC = Uint32Array.from({ length: 256 }, (_, k) => {
  let value = k;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value >>> 0;
});

export function crc32c(bytes) {
  let value = 0xffffffff;
  for (let k = 0; k < bytes.length; k += 1) value = CRC[(value ^ bytes[k]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

class CheckedCrc32c {
  kind = "bytes_to_bytes";

  static fromConfig() {
    return new CheckedCrc32c();
  }

  encode() {
    throw new Error("this page only reads");
  }

  decode(bytes) {
    const end = bytes.length - 4;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (end < 0 || crc32c(bytes.subarray(0, end)) !== view.getUint32(end, true)) throw new Error("checksum wrong");
    return bytes.subarray(0, end);
  }

  computeEncodedSize(size) {
    return size + 4;
  }
}

registry.set("crc32c", () => CheckedCrc32c);

// The depth of compact stores: see dsgen/store/differences.py. zarrita's own transpose and delta do not work together.
const DIFFERENCES = "dsgen.differences";
const CODECS_OF_DIFFERENCES = [
  { name: "numcodecs.delta", configuration: { dtype: "<u2" } },
  { name: "transpose", configuration: { order: [0, 2, 1] } },
  { name: "numcodecs.delta", configuration: { dtype: "<u2" } },
  { name: "transpose", configuration: { order: [0, 2, 1] } },
];

class Differences {
  kind = "array_to_array";

  static fromConfig() {
    return new Differences();
  }

  encode() {
    throw new Error("this page only reads");
  }

  /** Restore a chunk (samples, height, width) in its place. */
  decode({ data, shape, stride }) {
    const [samples, height, width] = shape;
    const size = height * width;
    let above = 0; // the last value of the column before
    for (let start = 0; start < samples * size; start += size) {
      for (let x = start; x < start + width; x += 1) {
        data[x] += above;
        for (let k = x + width; k < start + size; k += width) data[k] += data[k - width];
        above = data[x + size - width];
      }
    }
    for (let k = 1; k < data.length; k += 1) data[k] += data[k - 1];
    return { data, shape, stride };
  }
}

registry.set(DIFFERENCES, () => Differences);

/** Return the metadata of an array with one codec in place of those that take differences, if it has these. */
function withDifferences(described) {
  const copy = structuredClone(described);
  const sharding = copy.codecs.find((codec) => codec.name === "sharding_indexed");
  const codecs = sharding ? sharding.configuration.codecs : copy.codecs;
  const found = CODECS_OF_DIFFERENCES.every(({ name, configuration }, k) =>
    codecs[k]?.name === name &&
    Object.entries(configuration).every(
      ([key, value]) => JSON.stringify(codecs[k].configuration?.[key]) === JSON.stringify(value),
    ),
  );
  if (found) codecs.splice(0, CODECS_OF_DIFFERENCES.length, { name: DIFFERENCES, configuration: {} });
  return copy;
}

/** The least recently used values, up to a number of bytes. Each is a promise of something with `byteLength`. */
export class Cache {
  #entries = new Map();
  #bytes = 0;

  constructor(limit) {
    this.limit = limit;
  }

  get(key, make) {
    let entry = this.#entries.get(key);
    if (entry) {
      this.#entries.delete(key);
      this.#entries.set(key, entry);
      return entry.value;
    }
    entry = { value: make(), bytes: 0 };
    this.#entries.set(key, entry);
    entry.value.then(
      (made) => {
        if (this.#entries.get(key) !== entry) return;
        entry.bytes = made.byteLength;
        this.#bytes += entry.bytes;
        for (const [other, { bytes }] of this.#entries) {
          if (this.#bytes <= this.limit || other === key) break;
          if (!bytes) continue;
          this.#entries.delete(other);
          this.#bytes -= bytes;
        }
      },
      () => this.#entries.delete(key),
    );
    return entry.value;
  }
}

class Shard {
  #opened;
  #arrays = new Map();

  constructor(base, { name, first_row: firstRow, rows }, cache) {
    Object.assign(this, { url: `${base}${name}`, name, firstRow, rows, cache });
    this.zip = name.endsWith(".zip") ? new ZipFile(this.url) : null;
  }

  /** Return the shard's `zarr.json`. */
  open() {
    this.#opened ??= this.#open().catch((error) => {
      this.#opened = undefined;
      throw error;
    });
    return this.#opened;
  }

  async #open() {
    const content = this.zip
      ? JSON.parse(new TextDecoder().decode(await this.zip.read("zarr.json")))
      : await readJson(`${this.url}/zarr.json`);
    const arrays = content.consolidated_metadata?.metadata;
    if (!arrays?.row) throw new Problem(this.url, "no shard of a store, it has no array row", REPAIR);
    if (arrays.row.shape[0] !== this.rows) {
      throw new Problem(this.url, `${arrays.row.shape[0]} rows, expected ${this.rows}`, "load the page again");
    }
    return { arrays, attributes: content.attributes };
  }

  /** Return an array as zarrita reads it, or null. */
  async array(name) {
    const { arrays } = await this.open();
    if (arrays[name]?.node_type !== "array") return null;
    if (!this.#arrays.has(name)) {
      this.#arrays.set(name, new ZarrArray(this.#files(arrays[name]), `/${name}`, withDifferences(arrays[name])));
    }
    return this.#arrays.get(name);
  }

  /** Return the files of an array as zarrita asks for them; what is missing is an error, and not filled with zeros. */
  #files(described) {
    if (this.zip) return { get: (key) => this.zip.read(key.slice(1)) };
    const sharding = described.codecs.find((codec) => codec.name === "sharding_indexed");
    return {
      get: (key) => readFile(this.url + key),
      getRange: async (key, { offset, length, suffixLength }) => {
        if (suffixLength === undefined) return (await readRange(this.url + key, offset, length)).bytes;
        const { bytes } = await readRange(this.url + key, -1, suffixLength);
        this.#checkIndex(key, bytes, described, sharding.configuration.chunk_shape[0]);
        return bytes;
      },
    };
  }

  #checkIndex(key, bytes, described, chunk) {
    const each = described.chunk_grid.configuration.chunk_shape[0];
    const first = Number(key.split("/c/")[1].split("/")[0]) * each;
    const filled = Math.ceil(Math.min(each, described.shape[0] - first) / chunk);
    const table = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let k = 0; k < filled; k += 1) {
      if (table.getBigUint64(16 * k, true) === NO_CHUNK)
        throw new Problem(this.url + key, "a chunk is missing", REPAIR);
    }
  }

  /** Return a decoded chunk of an array, by its number along the first dimension. */
  chunk(name, number) {
    return this.cache.get(`${this.name}/${name}/${number}`, async () => {
      const array = await this.array(name);
      try {
        const { data } = await array.getChunk([number, ...array.shape.slice(1).fill(0)]);
        const expected = array.chunks.reduce((product, length) => product * length, 1);
        if (data.length !== expected) throw new Error(`${data.length} values, expected ${expected}`);
        return data;
      } catch (error) {
        throw Problem.of(error, `${this.url}/${name}, chunk ${number}`);
      }
    });
  }

  /** Return the values at an index along the first dimension of an array, or null if there is no such array. */
  async at(name, index) {
    const array = await this.array(name);
    if (!array) return null;
    const length = array.chunks[0];
    const data = await this.chunk(name, Math.floor(index / length));
    const each = data.length / length;
    return data.subarray((index % length) * each, ((index % length) + 1) * each);
  }
}

/** The rows of a store. Decoded chunks take `limit` bytes at most, beside those in use. */
export class Shards {
  constructor(base, shards, limit) {
    const cache = new Cache(limit);
    this.shards = shards.map((shard) => new Shard(base, shard, cache));
  }

  #of(row) {
    const shard = this.shards.findLast(({ firstRow }) => firstRow <= row);
    return [shard, row - shard.firstRow];
  }

  /** Return fields of a row, copied: Uint8Array or Uint16Array by name; those the store lacks are left out. */
  async row(row, fields) {
    const [shard, index] = this.#of(row);
    const found = {};
    await Promise.all(
      fields.map(async (field) => {
        let values;
        if (field === "background") {
          const number = await shard.at("background_index", index);
          values = number && (await shard.at(field, number[0]));
        } else {
          values = await shard.at(field, index);
        }
        if (values) found[field] = values.slice();
      }),
    );
    return found;
  }

  /** Return all columns of a row: name, values, and what the column says about itself. */
  async columns(row) {
    const [shard, index] = this.#of(row);
    const { arrays } = await shard.open();
    const names = Object.keys(arrays).filter(
      (name) => arrays[name].shape?.[0] === shard.rows && !PIXELS.includes(name) && !OTHERS.includes(name),
    );
    const whole = names.filter((name) => (arrays[name].dimension_names ?? [])[0] === "sample");
    return Promise.all(
      whole.map(async (name) => ({
        name,
        values: Array.from(await shard.at(name, index), Number),
        about: arrays[name].attributes ?? {},
      })),
    );
  }

  /** Return a column of all rows, with all its values in one array of numbers; null if the store has none. */
  async column(name) {
    const pieces = [];
    for (const shard of this.shards) {
      const array = await shard.array(name);
      if (!array) return null;
      const each = array.shape.slice(1).reduce((product, length) => product * length, 1);
      for (let start = 0; start < shard.rows; start += array.chunks[0]) {
        const data = await shard.chunk(name, start / array.chunks[0]);
        const kept = data.subarray(0, Math.min(array.chunks[0], shard.rows - start) * each);
        pieces.push(kept instanceof BigInt64Array ? Float64Array.from(kept, Number) : kept);
      }
    }
    const joined = new pieces[0].constructor(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
      joined.set(piece, at);
      at += piece.length;
    }
    return joined;
  }

  /** Return the names of the pictures, as the shards have them. */
  async names() {
    const { attributes } = await this.shards[0].open();
    const names = (list) => (list ?? []).map((each) => (typeof each === "string" ? each : each.name));
    return {
      background: names(attributes.backgrounds),
      foreground: names(attributes.foregrounds),
      picture: names(attributes.pictures),
    };
  }
}
