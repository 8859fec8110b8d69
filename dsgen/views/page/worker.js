// Reads and decodes rows away from the page, so that it stays smooth.
//
//   init   {base, shards, limit}            once
//   want   {rows, fields}                   the rows to read next, in place of those asked for before; a `row` each
//   ask    {id, method, values}             calls a method of Shards; answers with `id`

import { Problem } from "./problem.js";
import { Shards } from "./shards.js";

const AT_ONCE = 4;
let shards = null;
let queue = [];
let fields = [];
let busy = 0;
const reading = new Set();

function buffersOf(value) {
  if (ArrayBuffer.isView(value)) return [value.buffer];
  if (value && Object.getPrototypeOf(value) === Object.prototype) return Object.values(value).flatMap(buffersOf);
  return [];
}

function next() {
  while (busy < AT_ONCE && queue.length) {
    const row = queue.shift();
    const wanted = fields;
    const key = `${row} ${wanted}`;
    if (reading.has(key)) continue;
    reading.add(key);
    busy += 1;
    shards
      .row(row, wanted)
      .then((found) => postMessage({ row, fields: wanted, found }, buffersOf(found)))
      .catch((error) => postMessage({ row, fields: wanted, problem: Problem.of(error, `row ${row}`).plain() }))
      .finally(() => {
        reading.delete(key);
        busy -= 1;
        next();
      });
  }
}

onmessage = async ({ data }) => {
  if (data.type === "init") shards = new Shards(data.base, data.shards, data.limit);
  if (data.type === "want") {
    queue = data.rows;
    fields = data.fields;
    next();
  }
  if (data.type === "ask") {
    try {
      const answer = await shards[data.method](...data.values);
      postMessage({ id: data.id, answer }, buffersOf(answer));
    } catch (error) {
      postMessage({ id: data.id, problem: Problem.of(error, data.method).plain() });
    }
  }
};
