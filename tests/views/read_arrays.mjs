// Read every array of the shards at an address as the page does, and print their SHA-256: node read_arrays.mjs PAGE
// ADDRESS SHARD... Pixels and columns are read as the page reads them, others by the bundled zarrita chunk by chunk.
import { createHash } from "node:crypto";
import { pathToFileURL } from "node:url";

const [page, address, ...names] = process.argv.slice(2);
const { Shards } = await import(pathToFileURL(`${page}/shards.js`));
const found = {};
for (const name of names) {
  const content = name.endsWith(".zip") ? null : await (await fetch(`${address}${name}/zarr.json`)).json();
  const rows = content ? content.consolidated_metadata.metadata.row.shape[0] : Number(process.env.ROWS);
  const shards = new Shards(address, [{ name, first_row: 0, rows }], 1e9);
  const [shard] = shards.shards;
  const { arrays } = await shard.open();
  for (const array of Object.keys(arrays)) {
    const hash = createHash("sha256");
    const { shape, chunks } = await shard.array(array);
    for (let start = 0; start < shape[0]; start += chunks[0]) {
      const data = await shard.chunk(array, start / chunks[0]);
      const kept = (data.length / chunks[0]) * Math.min(chunks[0], shape[0] - start);
      hash.update(new Uint8Array(data.buffer, data.byteOffset, kept * data.BYTES_PER_ELEMENT));
    }
    found[`${name}/${array}`] = hash.digest("hex");
  }
}
console.log(JSON.stringify(found));
