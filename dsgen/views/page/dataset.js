// The rows of a store for the page: read by workers, the latest kept up to a number of bytes.

import { Problem } from "./problem.js";

const KEPT_BYTES = 48e6;
const CHUNK_BYTES = 64e6; // of decoded chunks, of all workers together

const idle = window.startedWorkers; // by start.js, while the modules load
const workers = idle.length;

export class Dataset {
  #kept = new Map(); // rows, the latest used last: fields by name
  #keptBytes = 0;
  #asked = new Map();
  #asks = 0;
  #wanted = () => {};

  constructor(store) {
    Object.assign(this, store);
    this.splitNames = Object.keys(store.splits);
    const base = new URL(store.data, document.baseURI).href;
    this.workers = Array.from({ length: workers }, () => {
      const worker = idle.pop() ?? new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
      worker.onmessage = ({ data }) => this.#receive(data);
      worker.onerror = (event) => this.onProblem?.(new Problem("worker.js", event.message || "cannot be loaded"));
      worker.postMessage({ type: "init", base, shards: store.shards, limit: CHUNK_BYTES / workers });
      return worker;
    });
  }

  close() {
    for (const worker of this.workers) worker.terminate();
  }

  /** Return fields of a row if they are at hand, else undefined. */
  kept(row, fields) {
    const found = this.#kept.get(row);
    if (!found || !fields.every((field) => field in found)) return undefined;
    this.#kept.delete(row);
    this.#kept.set(row, found);
    return found;
  }

  /** Read these rows next, in place of those wanted before; `onRow(row, found, problem)` is called for each. */
  want(rows, fields, onRow) {
    this.#wanted = onRow;
    const shares = this.workers.map(() => []);
    for (const row of rows) shares[this.#workerOf(row)].push(row);
    shares.forEach((share, k) => this.workers[k].postMessage({ type: "want", rows: share, fields }));
  }

  /** Read fields of one row. */
  async row(row, fields) {
    const present = fields.filter((field) => this.fields.includes(field));
    const kept = this.kept(row, present);
    if (kept) return kept;
    const found = await this.#ask(this.#workerOf(row), "row", row, present);
    return this.#keep(row, found);
  }

  columns(row) {
    return this.#ask(this.#workerOf(row), "columns", row);
  }

  names() {
    this.namesRead ??= this.#ask(this.workers.length - 1, "names");
    return this.namesRead;
  }

  /** Return what rows are filtered by: `split`, `background` and `foreground`, `slots` of the latter for each row. */
  filters() {
    this.filtersRead ??= this.#readFilters();
    return this.filtersRead;
  }

  async #readFilters() {
    const column = (name) => this.#ask(this.workers.length - 1, "column", name);
    const [split, background, first, people, height] = await Promise.all(
      ["split", "background_number", "foreground", "person_foreground", "person_height"].map(column),
    );
    if (!people) return { split, background, foreground: first, slots: 1 };
    const nobody = 0xffffffff;
    const foreground = people.map((number, k) => (height[k] ? number : nobody));
    return { split, background, foreground, slots: people.length / this.rows };
  }

  #workerOf(row) {
    const { first_row: first } = this.shards.findLast((shard) => shard.first_row <= row);
    return Math.floor((row - first) / this.chunk) % this.workers.length;
  }

  #ask(worker, method, ...values) {
    const id = (this.#asks += 1);
    this.workers[worker].postMessage({ type: "ask", id, method, values });
    return new Promise((resolve, reject) => this.#asked.set(id, { resolve, reject }));
  }

  #receive(message) {
    const problem =
      message.problem && new Problem(message.problem.what, message.problem.reason, message.problem.remedy);
    if (problem) this.onProblem?.(problem);
    if ("row" in message) {
      const found = problem ? undefined : this.#keep(message.row, message.found);
      this.#wanted(message.row, found, problem, message.fields);
      return;
    }
    const { resolve, reject } = this.#asked.get(message.id);
    this.#asked.delete(message.id);
    if (problem) reject(problem);
    else resolve(message.answer);
  }

  #keep(row, found) {
    const before = this.#kept.get(row) ?? {};
    const size = (fields) => Object.values(fields).reduce((sum, values) => sum + values.byteLength, 0);
    const joined = { ...before, ...found };
    this.#kept.delete(row);
    this.#kept.set(row, joined);
    this.#keptBytes += size(joined) - size(before);
    for (const [other, fields] of this.#kept) {
      if (this.#keptBytes <= KEPT_BYTES || other === row) break;
      this.#kept.delete(other);
      this.#keptBytes -= size(fields);
    }
    return joined;
  }
}
