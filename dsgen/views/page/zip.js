// Read the entries of a zip file in place, over HTTP. They must be stored uncompressed, as dsgen packs them.

import { readRange } from "./http.js";
import { Problem } from "./problem.js";

const TAIL = 65557; // the longest comment, and the record before it
const HEADER = 30;
const EXTRA = 64; // more than the extra field of a local header takes in practice

export class ZipFile {
  #entries;

  constructor(url) {
    this.url = url;
  }

  /** Return offset and size of every entry by name. */
  entries() {
    this.#entries ??= this.#read().catch((error) => {
      this.#entries = undefined;
      throw error;
    });
    return this.#entries;
  }

  async #read() {
    const tail = await readRange(this.url, -1, TAIL, true);
    const view = new DataView(tail.bytes.buffer, tail.bytes.byteOffset, tail.bytes.length);
    let end = tail.bytes.length - 22;
    while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
    if (end < 0) throw this.#damaged("no table of contents at its end");
    let [size, offset] = [view.getUint32(end + 12, true), view.getUint32(end + 16, true)];
    if (end >= 20 && view.getUint32(end - 20, true) === 0x07064b50) {
      const at = Number(view.getBigUint64(end - 12, true));
      const record = await this.#part(tail, at, 56);
      [size, offset] = [Number(record.getBigUint64(40, true)), Number(record.getBigUint64(48, true))];
    }
    return this.#parse(await this.#part(tail, offset, size));
  }

  async #part(tail, offset, length) {
    const known = offset - tail.first;
    const bytes =
      known >= 0 && known + length <= tail.bytes.length
        ? tail.bytes.subarray(known, known + length)
        : (await readRange(this.url, offset, length)).bytes;
    return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  #parse(table) {
    const found = new Map();
    for (let at = 0; at + 46 <= table.byteLength;) {
      if (table.getUint32(at, true) !== 0x02014b50) throw this.#damaged("a bad table of contents");
      const [method, lengths] = [
        table.getUint16(at + 10, true),
        [28, 30, 32].map((k) => table.getUint16(at + k, true)),
      ];
      const name = new TextDecoder().decode(new Uint8Array(table.buffer, table.byteOffset + at + 46, lengths[0]));
      let [size, offset] = [table.getUint32(at + 24, true), table.getUint32(at + 42, true)];
      if (method !== 0) throw this.#damaged(`${name} is compressed`, "zip it again without compression (zip -0)");
      const stop = at + 46 + lengths[0] + lengths[1];
      for (let extra = at + 46 + lengths[0]; extra + 4 <= stop; extra += 4 + table.getUint16(extra + 2, true)) {
        if (table.getUint16(extra, true) !== 1) continue; // zip64: those of size, packed size and offset that are full
        let field = extra + 4;
        if (size === 0xffffffff) [size, field] = [Number(table.getBigUint64(field, true)), field + 8];
        if (table.getUint32(at + 20, true) === 0xffffffff) field += 8;
        if (offset === 0xffffffff) offset = Number(table.getBigUint64(field, true));
      }
      found.set(name, { offset, size });
      at = stop + lengths[2];
    }
    return found;
  }

  #damaged(reason, remedy = "copy it again, or run dsgen repair") {
    return new Problem(this.url, `no zip file that can be read (${reason})`, remedy);
  }

  /** Read a whole entry. */
  async read(name) {
    const entry = (await this.entries()).get(name);
    if (!entry) throw new Problem(`${this.url}/${name}`, "missing", "copy the file again, or run dsgen repair");
    // one request for header and content: the exact length of the header is only known once it is read
    const likely = HEADER + new TextEncoder().encode(name).length + EXTRA;
    const { bytes } = await readRange(this.url, entry.offset, likely + entry.size);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (view.getUint32(0, true) !== 0x04034b50) throw this.#damaged(`no entry ${name} where its table says`);
    const start = HEADER + view.getUint16(26, true) + view.getUint16(28, true);
    if (start <= likely) return bytes.subarray(start, start + entry.size);
    return (await readRange(this.url, entry.offset + start, entry.size)).bytes;
  }
}
