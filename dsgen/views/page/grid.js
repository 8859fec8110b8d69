// A grid of rows. Only those on screen exist as elements; the others are room to scroll through.

import { draw, fieldsOf } from "./draw.js";
import { Order } from "./order.js";

const CAPTION = 22; // pixels below a picture
const GAP = 8;
const TALLEST = 8e6; // browsers do not draw what is much taller than this
const SHARP = 320; // larger pictures are drawn smaller on tiles
const SETTLED_MS = 150;

export class Grid {
  #tiles = new Map(); // by place
  #spare = [];
  #top = 0; // of what is shown, in pixels of the whole grid
  #scrolled = 0; // what the scroll bar said last
  #frame = 0;
  #timer = 0;
  #focus = 0;

  /** `hooks`: open(row), over(row, x, y) or over(null), moved(). */
  constructor(element, dataset, settings, hooks) {
    Object.assign(this, { element, dataset, settings, hooks, order: new Order(dataset.rows), caption: () => "" });
    element.classList.add("grid");
    element.tabIndex = 0;
    this.spacer = element.appendChild(document.createElement("div"));
    this.layer = this.spacer.appendChild(document.createElement("div"));
    this.spacer.className = "spacer";
    this.layer.className = "layer";
    element.addEventListener("scroll", () => this.#scroll());
    element.addEventListener("keydown", (event) => this.#key(event));
    this.layer.addEventListener("click", (event) => this.#click(event));
    this.layer.addEventListener("pointermove", (event) => this.#point(event));
    this.layer.addEventListener("pointerleave", () => hooks.over(null));
    this.watcher = new ResizeObserver(() => this.layout());
    this.watcher.observe(element);
  }

  get place() {
    return Math.min(this.order.count - 1, Math.max(0, Math.round(this.#top / this.line) * this.across));
  }

  /** Show other rows, from the first, or from `row` if it is among them. */
  show(order, row = null) {
    this.order = order;
    for (const tile of this.#tiles.values()) this.#release(tile);
    this.#tiles.clear();
    this.#focus = 0;
    this.layout();
    const place = row === null ? 0 : Math.max(0, order.placeOf(row));
    this.#moveTo(Math.floor(place / this.across) * this.line);
    this.#focus = place;
  }

  /** Scroll to a row; returns false if it is not shown. */
  goTo(row) {
    const place = this.order.placeOf(row);
    if (place < 0) return false;
    this.#focusOn(place, true);
    return true;
  }

  /** Take new settings or a new size of the window. */
  layout() {
    const width = this.element.clientWidth - GAP;
    if (width <= 0) return;
    const first = this.across ? this.place : 0;
    this.across = Math.max(1, Math.floor(width / (this.settings.tile + GAP)));
    this.side = Math.floor(width / this.across) - GAP;
    this.line = this.side + CAPTION + GAP;
    this.total = Math.ceil(this.order.count / this.across) * this.line + GAP;
    this.height = Math.min(this.total, TALLEST);
    this.spacer.style.height = `${this.height}px`;
    this.#moveTo(Math.floor(first / this.across) * this.line);
    this.redraw();
  }

  /** Draw all tiles again, with other settings. */
  redraw() {
    for (const tile of this.#tiles.values()) {
      tile.drawn = false;
      tile.problem = null;
      tile.element.classList.remove("failed");
    }
    this.#schedule();
  }

  get #most() {
    return Math.max(0, this.total - this.element.clientHeight);
  }

  /** Where the scroll bar is for a place in the whole grid: exact near both ends, coarse between. */
  #toBar(top) {
    const [most, bar, exact] = [this.#most, this.height - this.element.clientHeight, TALLEST / 4];
    if (this.total <= TALLEST || top < exact) return top;
    if (top > most - exact) return bar - (most - top);
    return exact + ((top - exact) / (most - 2 * exact)) * (bar - 2 * exact);
  }

  #fromBar(scrolled) {
    const [most, bar, exact] = [this.#most, this.height - this.element.clientHeight, TALLEST / 4];
    if (this.total <= TALLEST || scrolled < exact) return scrolled;
    if (scrolled > bar - exact) return most - (bar - scrolled);
    return exact + ((scrolled - exact) / (bar - 2 * exact)) * (most - 2 * exact);
  }

  #moveTo(top) {
    this.#top = Math.min(this.#most, Math.max(0, top));
    this.element.scrollTop = this.#toBar(this.#top);
    this.#scrolled = this.element.scrollTop;
    this.#schedule();
  }

  #scroll() {
    const scrolled = this.element.scrollTop;
    const moved = scrolled - this.#scrolled;
    if (moved === 0) return;
    this.#scrolled = scrolled;
    const far = Math.abs(moved) > 2 * this.element.clientHeight;
    this.#top = Math.min(this.#most, Math.max(0, far ? this.#fromBar(scrolled) : this.#top + moved));
    this.#schedule();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (Math.abs(this.element.scrollTop - this.#toBar(this.#top)) > 1) this.#moveTo(this.#top);
      this.hooks.moved();
    }, SETTLED_MS);
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #paint() {
    if (!this.across) return;
    const from = Math.floor(this.#top / this.line) * this.across;
    const lines = Math.ceil(this.element.clientHeight / this.line) + 1;
    const until = Math.min(this.order.count, from + lines * this.across);
    for (const [place, tile] of this.#tiles) {
      if (place >= from && place < until) continue;
      this.#release(tile);
      this.#tiles.delete(place);
    }
    const fields = fieldsOf(this.settings, this.dataset.fields);
    const wanted = [];
    for (let place = from; place < until; place += 1) {
      const tile = this.#tiles.get(place) ?? this.#make(place);
      const [x, y] = [place % this.across, Math.floor(place / this.across)];
      tile.element.style.transform = `translate(${GAP + x * (this.side + GAP)}px, ${GAP + y * this.line - this.#top}px)`;
      tile.element.style.width = `${this.side}px`;
      if (tile.drawn) continue;
      const kept = this.dataset.kept(tile.row, fields);
      if (kept) this.#draw(tile, kept);
      else if (!tile.problem) wanted.push(tile.row);
    }
    this.dataset.want(wanted, fields, (row, found, problem, of) => {
      // what was asked for before other fields were chosen says nothing of these
      if (!problem || String(of) === String(fields)) this.#receive(row, found, problem, fields);
    });
  }

  #receive(row, found, problem, fields) {
    for (const tile of this.#tiles.values()) {
      if (tile.row !== row) continue;
      if (problem) {
        tile.problem = problem;
        tile.element.classList.add("failed");
        tile.element.title = problem.message;
      } else if (fields.every((field) => field in found)) {
        this.#draw(tile, found);
      }
    }
  }

  #draw(tile, fields) {
    const { size } = this.dataset;
    const side = size <= SHARP ? size : Math.min(size, Math.ceil(this.side * devicePixelRatio));
    if (tile.canvas.width !== side) tile.canvas.width = tile.canvas.height = side;
    draw(tile.canvas, fields, size, this.settings);
    tile.drawn = true;
    tile.element.classList.add("drawn");
    if (!this.timed) performance.mark("dsgen-row-drawn"); // once: marks are kept for ever
    this.timed = true;
  }

  #make(place) {
    const tile = this.#spare.pop() ?? this.#build();
    const row = this.order.at(place);
    Object.assign(tile, { place, row, drawn: false, problem: null });
    tile.element.dataset.row = row;
    tile.element.dataset.place = place;
    tile.element.title = "";
    tile.element.classList.toggle("focused", place === this.#focus && this.focused === true);
    this.#name(tile);
    this.#tiles.set(place, tile);
    this.layer.append(tile.element);
    return tile;
  }

  #build() {
    const element = document.createElement("figure");
    element.className = "tile";
    const canvas = element.appendChild(document.createElement("canvas"));
    const caption = element.appendChild(document.createElement("figcaption"));
    return { element, canvas, caption };
  }

  #release(tile) {
    tile.element.remove();
    tile.element.classList.remove("drawn", "failed", "focused");
    this.#spare.push(tile);
  }

  /** Write the captions again, once the names are known. */
  captions() {
    for (const tile of this.#tiles.values()) this.#name(tile);
  }

  #name(tile) {
    tile.caption.textContent = this.caption(tile.row) || `row ${tile.row}`;
    tile.caption.title = tile.caption.textContent;
  }

  #click(event) {
    const element = event.target.closest(".tile");
    if (!element) return;
    this.#focus = Number(element.dataset.place);
    this.hooks.open(Number(element.dataset.row));
  }

  #point(event) {
    if (event.target.tagName !== "CANVAS") {
      this.hooks.over(null);
      return;
    }
    const box = event.target.getBoundingClientRect();
    const pixel = (offset, length) =>
      Math.min(this.dataset.size - 1, Math.floor((offset / length) * this.dataset.size));
    const row = Number(event.target.parentElement.dataset.row);
    this.hooks.over(row, pixel(event.clientX - box.left, box.width), pixel(event.clientY - box.top, box.height));
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.line)) * this.across;
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.across,
      ArrowUp: -this.across,
      PageDown: page,
      PageUp: -page,
      Home: -this.order.count,
      End: this.order.count,
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && this.order.count) {
      event.preventDefault();
      this.hooks.open(this.order.at(this.#focus));
    }
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.#focusOn(Math.min(this.order.count - 1, Math.max(0, this.#focus + steps[event.key])), true);
  }

  #focusOn(place, mark) {
    this.#focus = place;
    this.focused = mark;
    const y = Math.floor(place / this.across) * this.line;
    const height = this.element.clientHeight;
    if (y < this.#top) this.#moveTo(y);
    else if (y + this.line > this.#top + height) this.#moveTo(Math.min(y, y + this.line + GAP - height));
    for (const tile of this.#tiles.values()) tile.element.classList.toggle("focused", tile.place === place);
    this.#schedule();
    this.hooks.moved();
  }
}
