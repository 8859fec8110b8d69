// Draw a row of a store: pixels of one field, and the mask over it.

import { depthTable, MASK, PEOPLE, pixel } from "./colours.js";

const PEOPLE_PIXELS = PEOPLE.map(pixel);
const MASK_PIXEL = pixel(MASK);
const [HATCH, HATCH_LINE, BLACK, WHITE] = ["#8a8a8a", "#6b6b6b", "#000000", "#ffffff"].map(pixel);
const scratch = { canvas: null, image: null, pixels: null, size: 0 };
let table = { far: 0, colours: null };

/** Return the fields that are read to draw these settings. */
export function fieldsOf(settings, available) {
  const wanted = [settings.show];
  if (settings.overlay && settings.show !== "mask") wanted.push(available.includes("instance") ? "instance" : "mask");
  return wanted.filter((field, k) => available.includes(field) && wanted.indexOf(field) === k);
}

function colour(field, values, target, size, far) {
  if (field === "image" || field === "background") {
    for (let k = 0, at = 0; k < target.length; k += 1, at += 3) {
      target[k] = (0xff000000 | (values[at + 2] << 16) | (values[at + 1] << 8) | values[at]) >>> 0;
    }
  } else if (field === "depth") {
    if (table.far !== far) table = { far, colours: depthTable(far) };
    for (let k = 0; k < target.length; k += 1) {
      const unknown = ((k % size) + Math.floor(k / size)) % 8 < 2 ? HATCH_LINE : HATCH;
      target[k] = values[k] ? table.colours[values[k]] : unknown;
    }
  } else if (field === "instance") {
    for (let k = 0; k < target.length; k += 1) {
      target[k] = values[k] ? PEOPLE_PIXELS[(values[k] - 1) % PEOPLE_PIXELS.length] : BLACK;
    }
  } else {
    for (let k = 0; k < target.length; k += 1) target[k] = values[k] ? WHITE : BLACK;
  }
}

function mix(below, above, share) {
  const blend = (shift) => Math.round(((below >>> shift) & 255) * (1 - share) + ((above >>> shift) & 255) * share);
  return (0xff000000 | (blend(16) << 16) | (blend(8) << 8) | blend(0)) >>> 0;
}

/** Lay the mask over the pixels, and draw its outline, white where it lies on the colours of depth. */
function cover(values, people, target, size, opacity, onDepth) {
  for (let k = 0; k < target.length; k += 1) {
    const value = values[k];
    if (!value) continue;
    const above = people ? PEOPLE_PIXELS[(value - 1) % PEOPLE_PIXELS.length] : MASK_PIXEL;
    const x = k % size;
    const edge =
      (x > 0 && values[k - 1] !== value) ||
      (x < size - 1 && values[k + 1] !== value) ||
      (k >= size && values[k - size] !== value) ||
      (k < target.length - size && values[k + size] !== value);
    target[k] = edge ? mix(target[k], onDepth ? WHITE : above, 0.9) : mix(target[k], above, opacity);
  }
}

/**
 * Draw fields of a row on a canvas of `size` pixels, or one smaller. `settings` are `show`, a field; `overlay`, whether
 * to show the mask; its `opacity`; and `far`, up to how many metres depth is coloured.
 */
export function draw(canvas, fields, size, settings) {
  if (scratch.size !== size) {
    scratch.canvas = new OffscreenCanvas(size, size);
    scratch.context = scratch.canvas.getContext("2d");
    scratch.image = new ImageData(size, size);
    scratch.pixels = new Uint32Array(scratch.image.data.buffer);
    scratch.size = size;
  }
  const { pixels } = scratch;
  const values = fields[settings.show];
  if (values) colour(settings.show, values, pixels, size, settings.far);
  else pixels.fill(BLACK);
  if (settings.overlay && settings.show !== "mask" && settings.opacity > 0) {
    const people = fields.instance && settings.show !== "instance";
    const mask = people ? fields.instance : fields.mask;
    if (mask) cover(mask, Boolean(people), pixels, size, settings.opacity, settings.show === "depth");
  }
  const context = canvas.getContext("2d");
  if (canvas.width === size) {
    context.putImageData(scratch.image, 0, 0);
  } else {
    scratch.context.putImageData(scratch.image, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(scratch.canvas, 0, 0, canvas.width, canvas.height);
  }
}

/** Draw the scale of depth on a canvas. */
export function drawScale(canvas) {
  const context = canvas.getContext("2d");
  const colours = depthTable(1);
  const image = new ImageData(canvas.width, 1);
  const pixels = new Uint32Array(image.data.buffer);
  for (let x = 0; x < canvas.width; x += 1)
    pixels[x] = colours[Math.max(1, Math.round((x / (canvas.width - 1)) * 1000))];
  for (let y = 0; y < canvas.height; y += 1) context.putImageData(image, 0, y);
}

/** Say in words what is at a pixel of a row. */
export function describePixel(fields, size, x, y) {
  const k = y * size + x;
  const parts = [`x ${x}, y ${y}`];
  if (fields.depth) parts.push(fields.depth[k] ? `${(fields.depth[k] / 1000).toFixed(3)} m` : "no depth");
  if (fields.instance) parts.push(fields.instance[k] ? `person ${fields.instance[k]}` : "nobody");
  else if (fields.mask) parts.push(fields.mask[k] ? "foreground" : "background");
  const rgb = fields.image ?? fields.background;
  if (rgb) parts.push(`RGB ${rgb[3 * k]} ${rgb[3 * k + 1]} ${rgb[3 * k + 2]}`);
  return parts.join(" · ");
}
