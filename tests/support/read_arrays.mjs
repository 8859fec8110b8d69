// Read arrays with zarrita: `node read_arrays.mjs ZARRITA WANTED OUT`, as read_arrays.py does it.
// ZARRITA is the module, or a bundle of it that has Array. An array is written as its bytes, strings as JSON;
// results.json has shapes and types too. Zip files need ZipFileStore, which such a bundle may lack.
import { openAsBlob, openSync, fstatSync, readSync, closeSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, wantedFile, out] = process.argv.slice(2);
const zarr = await import(pathToFileURL(module).href);

// What zarrita asks of a store: whole files and ranges of files of a folder.
const files = (folder) => ({
  get: (key) => read(folder + key, () => [0, Infinity]),
  getRange: (key, range) =>
    read(folder + key, (size) =>
      "suffixLength" in range ? [size - range.suffixLength, size] : [range.offset, range.offset + range.length],
    ),
});

function read(path, range) {
  let file;
  try {
    file = openSync(path);
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
  const size = fstatSync(file).size;
  const [start, end] = range(size);
  const bytes = new Uint8Array(Math.min(end, size) - start);
  readSync(file, bytes, 0, bytes.length, start);
  closeSync(file);
  return bytes;
}

async function readArray(group, name) {
  const zipped = group.endsWith(".zip");
  const store = zipped ? zarr.ZipFileStore.fromBlob(await openAsBlob(group)) : files(group);
  const metadata = JSON.parse(new TextDecoder().decode(await store.get(`/${name}/zarr.json`)));
  const array = new zarr.Array(store, `/${name}`, metadata);
  const { shape } = array;
  const chunk = array.chunks;
  const grid = shape.map((length, k) => Math.ceil(length / chunk[k]));
  let values;
  // row by row of the grid of chunks, and of the values of each
  for (const at of counts(grid)) {
    const got = await array.getChunk(at);
    values ??= new got.data.constructor(shape.reduce((a, b) => a * b, 1));
    for (const inside of counts(got.shape)) {
      const place = inside.map((i, k) => at[k] * chunk[k] + i);
      if (place.some((i, k) => i >= shape[k])) continue;
      const from = inside.reduce((sum, i, k) => sum + i * got.stride[k], 0);
      values[place.reduce((sum, i, k) => sum * shape[k] + i, 0)] = got.data[from];
    }
  }
  return { values, shape };
}

function* counts(lengths) {
  const at = lengths.map(() => 0);
  while (true) {
    yield at.slice();
    let k = at.length - 1;
    while (k >= 0 && ++at[k] === lengths[k]) at[k--] = 0;
    if (k < 0) return;
  }
}

mkdirSync(out, { recursive: true });
const results = {};
for (const [key, [group, name]] of Object.entries(JSON.parse(readFileSync(wantedFile, "utf8")))) {
  try {
    const { values, shape } = await readArray(group, name);
    const text = Array.isArray(values);
    writeFileSync(`${out}/${key}`, text ? JSON.stringify(values) : values);
    results[key] = { type: text ? "string" : values.constructor.name, shape };
  } catch (error) {
    results[key] = { refuses: `${error.name}: ${error.message}` };
  }
}
writeFileSync(`${out}/results.json`, JSON.stringify(results));
