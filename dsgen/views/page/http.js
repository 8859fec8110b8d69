// Read files and parts of files over HTTP, and believe no answer that is not what was asked for.

import { Problem } from "./problem.js";

const RANGES =
  "use dsgen view, or a web server that honours Range requests: nginx, Caddy, a bucket. python -m http.server does not";

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    const remedy = "see whether dsgen view is still running; a server of another name must allow this page (CORS)";
    throw new Problem(url, `no answer (${error.message})`, remedy);
  }
  if (response.status === 404 || response.status === 403) {
    const remedy = "dsgen verify says which files are missing; copy them, or run dsgen repair";
    throw new Problem(url, `missing (status ${response.status})`, remedy);
  }
  if (response.status >= 500) {
    const text = (await response.text()).slice(0, 500);
    throw new Problem(url, text || `the server failed (status ${response.status})`);
  }
  return response;
}

async function bodyOf(url, response) {
  try {
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new Problem(url, `the connection broke off (${error.message})`, "load the page again");
  }
}

/** Read a whole file. */
export async function readFile(url) {
  const response = await ask(url, {});
  if (response.status !== 200) throw new Problem(url, `got status ${response.status}, expected 200`);
  return bodyOf(url, response);
}

/** Read a JSON file. */
export async function readJson(url) {
  const text = new TextDecoder().decode(await readFile(url));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Problem(url, `no JSON (${error.message})`, "see whether this web server answers with another page");
  }
}

/**
 * Read `length` bytes from `start` on, of which all must be there. A negative `start` counts from the end; then a
 * shorter file may answer with all it has if `whole` allows it. Returns the bytes, and the offset of the first.
 */
export async function readRange(url, start, length, whole = false) {
  const range = start < 0 ? `bytes=-${length}` : `bytes=${start}-${start + length - 1}`;
  // the browser's cache would let requests for parts of the same file wait for each other
  const response = await ask(url, { headers: { Range: range }, cache: "no-store" });
  if (response.status === 200) {
    await response.body?.cancel();
    throw new Problem(url, "this web server ignores Range requests (status 200 to one, expected 206)", RANGES);
  }
  const repair = "run dsgen verify, and copy the file again or run dsgen repair";
  if (response.status === 416) throw new Problem(url, "cut short: it ends before what its table says", repair);
  if (response.status !== 206) throw new Problem(url, `got status ${response.status}, expected 206`, RANGES);
  const bytes = await bodyOf(url, response);
  const told = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(response.headers.get("Content-Range") ?? "");
  const first = told ? Number(told[1]) : start;
  const size = told && told[3] !== "*" ? Number(told[3]) : null;
  const misplaced = told && (start < 0 ? size !== null && Number(told[2]) !== size - 1 : first !== start);
  const complete = bytes.length === length || (whole && bytes.length === size);
  if (misplaced || !complete) {
    const got = `${bytes.length} bytes${told ? ` from ${first}` : ""}`;
    throw new Problem(url, `got ${got}, expected ${length}${start < 0 ? " at the end" : ` from ${start}`}`, RANGES);
  }
  return { bytes, first, size };
}
