// One row, large, beside its columns.

import { PEOPLE } from "./colours.js";
import { describePixel, draw } from "./draw.js";
import { count, make, makeSvg, short } from "./elements.js";

const TITLES = { image: "image", mask: "mask", depth: "depth", instance: "people", background: "background" };
const THUMB = 112;

export class Detail {
  #ticket = 0;

  /** `hooks`: changed() after other settings, closed(), opened(row), step(row, by) returns the next row. */
  constructor(dialog, dataset, settings, hooks) {
    Object.assign(this, { dialog, dataset, settings, hooks, row: null, fields: null });
    this.canvas = make("canvas", { class: "large" });
    this.boxes = makeSvg("svg", { class: "boxes", viewBox: `0 0 ${dataset.size} ${dataset.size}` });
    this.readout = make("p", { class: "readout", text: "\u00a0" });
    this.title = make("h2");
    this.thumbs = make(
      "div",
      { class: "thumbs", role: "group", "aria-label": "What is shown large" },
      ...dataset.fields.map((field) => this.#thumb(field)),
    );
    this.facts = make("div", { class: "facts" });
    const button = (text, label, action) =>
      make("button", { type: "button", title: label, "aria-label": label, onclick: action, text });
    dialog.replaceChildren(
      make(
        "header",
        {},
        button("‹", "Previous row (left arrow)", () => this.step(-1)),
        button("›", "Next row (right arrow)", () => this.step(1)),
        this.title,
        button("×", "Close (Esc)", () => dialog.close()),
      ),
      make(
        "div",
        { class: "halves" },
        make(
          "div",
          { class: "pictures" },
          make("div", { class: "stage" }, this.canvas, this.boxes),
          this.readout,
          this.thumbs,
        ),
        this.facts,
      ),
    );
    this.listeners = new AbortController();
    const { signal } = this.listeners;
    dialog.addEventListener(
      "close",
      () => {
        this.row = null;
        hooks.closed();
      },
      { signal },
    );
    dialog.addEventListener("keydown", (event) => this.#key(event), { signal });
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => {
      this.readout.textContent = "\u00a0";
    });
  }

  dispose() {
    this.listeners.abort();
  }

  /** Show a row. */
  async open(row) {
    this.#ticket += 1;
    const ticket = this.#ticket;
    this.row = row;
    this.title.textContent = `row ${row}`;
    if (!this.dialog.open) this.dialog.showModal();
    this.hooks.opened(row);
    const { dataset } = this;
    try {
      const fields = await dataset.row(row, dataset.fields);
      if (ticket !== this.#ticket) return;
      this.fields = fields;
      this.redraw();
      const [columns, names] = await Promise.all([dataset.columns(row), dataset.names()]);
      if (ticket === this.#ticket) this.#describe(columns, names);
    } catch (problem) {
      if (ticket === this.#ticket) this.facts.replaceChildren(make("p", { class: "problem", text: problem.message }));
    }
  }

  step(by) {
    const row = this.hooks.step(this.row, by);
    if (row !== undefined) this.open(row);
  }

  redraw() {
    if (!this.fields) return;
    const { size } = this.dataset;
    this.canvas.width = this.canvas.height = size;
    draw(this.canvas, this.fields, size, this.settings);
    this.canvas.dataset.row = this.row;
    this.canvas.dataset.show = this.settings.show;
    for (const button of this.thumbs.children) {
      const field = button.name;
      const thumb = button.firstChild;
      thumb.width = thumb.height = size <= 320 ? size : THUMB;
      draw(thumb, this.fields, size, { ...this.settings, show: field, overlay: false });
      button.setAttribute("aria-pressed", String(field === this.settings.show));
    }
  }

  #thumb(field) {
    const pick = () => {
      this.settings.show = field;
      this.redraw();
      this.hooks.changed();
    };
    return make(
      "button",
      { type: "button", name: field, onclick: pick },
      make("canvas"),
      make("span", { text: TITLES[field] }),
    );
  }

  #point(event) {
    if (!this.fields) return;
    const { size } = this.dataset;
    const box = this.canvas.getBoundingClientRect();
    const pixel = (offset, length) => Math.min(size - 1, Math.max(0, Math.floor((offset / length) * size)));
    const [x, y] = [pixel(event.clientX - box.left, box.width), pixel(event.clientY - box.top, box.height)];
    this.readout.textContent = describePixel(this.fields, size, x, y);
  }

  #key(event) {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (by) {
      event.preventDefault();
      this.step(by);
    }
  }

  #describe(columns, names) {
    const values = Object.fromEntries(columns.map(({ name, values: [value] }) => [name, value]));
    const rows = [
      ["split", this.dataset.splitNames[values.split] ?? values.split],
      names.picture.length
        ? ["picture", names.picture[values.row]]
        : ["background", named(names.background, values.background_number)],
    ];
    const people = this.#people(columns, names);
    if (!people.length && !names.picture.length) {
      rows.push(["foreground", named(names.foreground, values.foreground)]);
      rows.push(["mirrored", values.flip ? "yes" : "no"], ["position", values.position]);
      rows.push(["left, top", `${values.left}, ${values.top} px`]);
    }
    this.title.textContent = `row ${count(this.row)} of ${count(this.dataset.rows)}`;
    this.facts.replaceChildren(table(rows), ...this.#tables(people), this.#all(columns));
    this.boxes.replaceChildren(
      ...people
        .filter(({ box }) => box && box[2])
        .map(({ box: [left, top, width, height], slot }) =>
          makeSvg("rect", { x: left, y: top, width, height, stroke: PEOPLE[slot % PEOPLE.length] }),
        ),
    );
  }

  /** Return the people of the row from its columns, each with what is known of them. */
  #people(columns, names) {
    const by = Object.fromEntries(columns.map(({ name, values }) => [name, values]));
    const slots = (by.person_height ?? []).map((_, slot) => slot).filter((slot) => by.person_height[slot] > 0);
    return slots.map((slot) => ({
      slot,
      name: named(names.foreground, by.person_foreground[slot]),
      mirrored: by.person_flip[slot] > 0,
      distance: by.person_distance[slot] || null,
      height: by.person_height[slot] / 64,
      tilt: by.person_tilt[slot] / 100,
      box: by.person_box?.slice(4 * slot, 4 * slot + 4),
    }));
  }

  #tables(people) {
    return people.map(({ slot, name, mirrored, distance, height, tilt, box }) =>
      make(
        "section",
        {},
        make("h3", {}, swatch(PEOPLE[slot % PEOPLE.length]), `person ${slot + 1}`),
        table([
          ["foreground", name + (mirrored ? ", mirrored" : "")],
          ["distance", distance ? `${(distance / 1000).toFixed(3)} m` : "not known"],
          ["height drawn", `${short(height)} px`],
          ...(tilt ? [["turned", `${short(tilt)}°`]] : []),
          ...(box ? [["in view", box[2] ? `left ${box[0]}, top ${box[1]}, ${box[2]} × ${box[3]} px` : "hidden"]] : []),
        ]),
      ),
    );
  }

  #all(columns) {
    const rows = columns.map(({ name, values, about }) => {
      const unit = about.units ? ` ${about.units}` : "";
      return [name, values.map(short).join(", ") + unit, about.long_name ?? ""];
    });
    return make("details", {}, make("summary", { text: "all columns" }), table(rows));
  }
}

function named(names, number) {
  return names[number] ?? `number ${number}`;
}

function swatch(colour) {
  return makeSvg(
    "svg",
    { class: "swatch", viewBox: "0 0 10 10" },
    makeSvg("rect", { width: 10, height: 10, rx: 2, fill: colour }),
  );
}

function table(rows) {
  return make(
    "table",
    {},
    make(
      "tbody",
      {},
      ...rows.map(([name, value, title]) =>
        make("tr", { title }, make("th", { scope: "row", text: name }), make("td", { text: value })),
      ),
    ),
  );
}
