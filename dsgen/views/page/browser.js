// Browse the rows of a store: the grid, what it shows, and one row large.

import { Dataset } from "./dataset.js";
import { Detail } from "./detail.js";
import { describePixel, drawScale } from "./draw.js";
import { count, make } from "./elements.js";
import { Grid } from "./grid.js";
import { choose, Order } from "./order.js";

const SHOWN = { image: "Image", mask: "Mask", depth: "Depth", background: "Background", instance: "People" };
const START = { split: "", background: "", foreground: "", shuffled: false, seed: 1 };

export class Browser {
  #ticket = 0;

  /** `changed(parameters)` is called after every change, with what the address is to remember. */
  constructor(element, dialog, store, { problem, changed }) {
    this.changed = changed;
    this.dataset = new Dataset(store);
    this.dataset.onProblem = problem;
    this.choice = { ...START };
    const fields = this.dataset.fields;
    this.usual = fields.includes("image") ? "image" : fields[0];
    this.settings = { show: this.usual, overlay: false, opacity: 0.5, far: store.far_m, tile: 168 };
    this.#build(element);
    this.detail = new Detail(dialog, this.dataset, this.settings, {
      changed: () => this.#apply(),
      opened: () => this.#remember(),
      closed: () => {
        this.#remember();
        this.grid.element.focus();
      },
      step: (row, by) => this.#step(row, by),
    });
  }

  close() {
    this.detail.dispose();
    this.grid.watcher.disconnect();
    this.dataset.close();
  }

  #step(row, by) {
    const place = this.grid.order.placeOf(row) + by;
    if (place < 0 || place >= this.grid.order.count) return undefined;
    const next = this.grid.order.at(place);
    this.grid.goTo(next);
    return next;
  }

  #build(element) {
    const { dataset } = this;
    const field = (label, input, kind = "") =>
      make("label", { class: `field ${kind}` }, make("span", { text: label }), input);
    const splits = dataset.splitNames.filter((name) => dataset.splits[name]);
    this.split = make(
      "select",
      { name: "split", onchange: () => this.#choose({ split: this.split.value }) },
      make("option", { value: "", text: `all (${count(dataset.rows)})` }),
      ...splits.map((name) => make("option", { value: name, text: `${name} (${count(dataset.splits[name])})` })),
    );
    this.names = Object.fromEntries(["background", "foreground"].map((kind) => [kind, this.#nameInput(kind)]));
    this.order = make(
      "select",
      { name: "order", onchange: () => this.#choose({ shuffled: this.order.value === "shuffled" }) },
      make("option", { value: "rows", text: "by row" }),
      make("option", { value: "shuffled", text: "shuffled" }),
    );
    this.seed = make("input", {
      name: "seed",
      type: "number",
      min: 0,
      max: 4294967295,
      step: 1,
      onchange: () => this.#choose({ seed: Number(this.seed.value) || 0, shuffled: true }),
    });
    this.jump = make("input", {
      name: "row",
      type: "number",
      min: 0,
      max: dataset.rows - 1,
      step: 1,
      placeholder: "row",
    });
    const jumpTo = make(
      "form",
      { class: "jump", onsubmit: (event) => this.#jump(event) },
      field("Go to row", this.jump),
    );
    this.found = make("output", { class: "found" });

    const available = Object.keys(SHOWN).filter((name) => dataset.fields.includes(name));
    this.shows = available.map((name, k) =>
      make("button", {
        type: "button",
        name,
        title: `${SHOWN[name]} (key ${k + 1})`,
        onclick: () => this.#set({ show: name }),
        text: SHOWN[name],
      }),
    );
    const hasMask = dataset.fields.includes("mask") || dataset.fields.includes("instance");
    this.overlay = make("input", {
      name: "overlay",
      type: "checkbox",
      onchange: () => this.#set({ overlay: this.overlay.checked }),
    });
    this.opacity = make("input", {
      name: "opacity",
      type: "range",
      min: 0,
      max: 1,
      step: 0.05,
      title: "Opacity of the mask",
      "aria-label": "Opacity of the mask",
      oninput: () => this.#set({ opacity: Number(this.opacity.value), overlay: true }),
    });
    this.far = make("input", {
      name: "far",
      type: "number",
      min: 0.5,
      max: 65.5,
      step: 0.5,
      onchange: () => this.#set({ far: Math.min(65.5, Math.max(0.1, Number(this.far.value) || dataset.far_m)) }),
    });
    this.tile = make("input", {
      name: "tile",
      type: "range",
      min: 80,
      max: 400,
      step: 8,
      "aria-label": "Size of the pictures",
      oninput: () => this.#set({ tile: Number(this.tile.value) }, true),
    });
    this.scale = make("canvas", { class: "scale", width: 200, height: 8 });
    this.ticks = make("span", { class: "ticks" });
    drawScale(this.scale);
    this.colours = make(
      "div",
      { class: "colours", title: "Depth in metres; hatched where there is none" },
      make("span", { text: "0" }),
      this.scale,
      this.ticks,
      make("span", { text: "m" }),
    );
    this.readout = make("output", { class: "readout", name: "readout", text: "\u00a0" });
    const grid = make("div", { "aria-label": "Rows", role: "region" });
    element.replaceChildren(
      make(
        "div",
        { class: "bar" },
        field("Split", this.split),
        this.names.background?.label,
        this.names.foreground?.label,
        field("Order", this.order),
        field("Seed", this.seed, "seed"),
        jumpTo,
        this.found,
      ),
      make(
        "div",
        { class: "bar" },
        make("div", { class: "choice", role: "group", "aria-label": "What is shown" }, ...this.shows),
        hasMask ? make("label", { class: "field check" }, this.overlay, make("span", { text: "Mask over it" })) : null,
        hasMask ? this.opacity : null,
        dataset.fields.includes("depth") ? field("Depth to, m", this.far) : null,
        field("Size", this.tile),
      ),
      grid,
      make("footer", {}, this.readout, dataset.fields.includes("depth") ? this.colours : null),
    );
    element.addEventListener("keydown", (event) => this.#key(event));
    this.grid = new Grid(grid, dataset, this.settings, {
      open: (row) => this.detail.open(row),
      over: (row, x, y) => this.#over(row, x, y),
      moved: () => this.#remember(),
    });
    this.grid.caption = (row) => this.#caption(row);
  }

  #nameInput(kind) {
    const list = make("datalist", { id: `names-${kind}` });
    const label = kind === "background" ? "Background" : "Foreground";
    const input = make("input", {
      name: kind,
      list: list.id,
      placeholder: "any name",
      autocomplete: "off",
      onchange: () => this.#choose({ [kind]: input.value.trim() }),
    });
    return { input, list, label: make("label", { class: "field" }, make("span", { text: label }), input, list) };
  }

  /** Start from what an address remembers. */
  async start(parameters) {
    const number = (name, fallback) =>
      parameters.has(name) && Number.isFinite(Number(parameters.get(name))) ? Number(parameters.get(name)) : fallback;
    Object.assign(this.settings, {
      show: this.dataset.fields.includes(parameters.get("show")) ? parameters.get("show") : this.settings.show,
      overlay: parameters.get("overlay") === "1",
      opacity: Math.min(1, Math.max(0, number("opacity", 0.5))),
      far: Math.min(65.5, Math.max(0.1, number("far", this.dataset.far_m))),
      tile: Math.min(400, Math.max(80, number("tile", 168))),
    });
    this.choice = {
      split: this.dataset.splitNames.includes(parameters.get("split")) ? parameters.get("split") : "",
      background: parameters.get("background") ?? "",
      foreground: parameters.get("foreground") ?? "",
      shuffled: parameters.get("order") === "shuffled",
      seed: number("seed", START.seed),
    };
    this.begin();
    const row = parameters.has("row") ? number("row", 0) : null;
    await this.#select(row);
    this.grid.element.focus({ preventScroll: true }); // so that keys work at once
    if (parameters.has("open")) this.detail.open(Math.min(this.dataset.rows - 1, Math.max(0, number("open", 0))));
  }

  /** Show the settings, without an address to start from. */
  begin() {
    this.#apply(true);
    // names and filters are read once there is something to see
    setTimeout(() => this.#readNames(), 300);
  }

  async #readNames() {
    try {
      const [names, filters] = await Promise.all([this.dataset.names(), this.dataset.filters()]);
      this.known = { names, filters };
      for (const kind of ["background", "foreground"]) {
        const { label, list } = this.names[kind];
        label.hidden = !names[kind].length;
        list.replaceChildren(...names[kind].slice(0, 5000).map((value) => make("option", { value })));
      }
      this.grid.captions();
    } catch {
      // the problem is shown already
    }
  }

  #caption(row) {
    if (!this.known) return "";
    const { names, filters } = this.known;
    const split = this.dataset.splitNames[filters.split[row]];
    if (names.picture.length) return `${row} · ${names.picture[row]} · ${split}`;
    const people = [...filters.foreground.subarray(row * filters.slots, (row + 1) * filters.slots)]
      .map((k) => names.foreground[k])
      .filter(Boolean);
    return `${row} · ${names.background[filters.background[row]]} · ${people.join(", ") || "nobody"} · ${split}`;
  }

  #choose(change) {
    Object.assign(this.choice, change);
    this.#apply();
    this.#select(null);
  }

  async #select(row) {
    this.#ticket += 1;
    const ticket = this.#ticket;
    const { choice, dataset } = this;
    let order = new Order(dataset.rows);
    if (choice.split || choice.background || choice.foreground) {
      this.found.textContent = "reading the columns …";
      try {
        const [filters, names] = await Promise.all([dataset.filters(), dataset.names()]);
        if (ticket !== this.#ticket) return;
        order = choose(dataset.rows, filters, names, dataset.splitNames, choice);
      } catch {
        this.found.textContent = "the columns cannot be read";
        return;
      }
    } else if (choice.shuffled) {
      order = choose(dataset.rows, null, null, null, choice);
    }
    const all = order.count === dataset.rows;
    this.found.textContent = order.count
      ? `${count(order.count)} ${order.count === 1 ? "row" : "rows"}${all ? "" : ` of ${count(dataset.rows)}`}`
      : "no row is like that; change the filters";
    this.grid.show(order, row);
    this.#remember();
  }

  /** Show other rows, such as the worst of an evaluation. */
  list(rows) {
    this.grid.show(new Order(this.dataset.rows, Uint32Array.from(rows)));
  }

  #set(change, layout = false) {
    Object.assign(this.settings, change);
    this.#apply(layout);
    this.#remember();
  }

  #apply(layout = false) {
    const { settings, choice } = this;
    for (const button of this.shows) button.setAttribute("aria-pressed", String(button.name === settings.show));
    this.overlay.checked = settings.overlay;
    this.opacity.value = settings.opacity;
    this.far.value = settings.far;
    this.tile.value = settings.tile;
    this.split.value = choice.split;
    this.order.value = choice.shuffled ? "shuffled" : "rows";
    this.seed.value = choice.seed;
    this.seed.closest("label").hidden = !choice.shuffled;
    for (const kind of ["background", "foreground"]) this.names[kind].input.value = choice[kind];
    this.ticks.textContent = String(settings.far);
    if (layout) this.grid.layout();
    else this.grid.redraw();
    if (this.detail?.row !== null) this.detail?.redraw();
  }

  #jump(event) {
    event.preventDefault();
    if (this.jump.value === "") return;
    const row = Number(this.jump.value);
    const known = Number.isInteger(row) && row >= 0 && row < this.dataset.rows;
    const shown = known && this.grid.goTo(row);
    const reason = known
      ? `row ${row} is not among those shown; change the filters`
      : `rows are 0 to ${this.dataset.rows - 1}`;
    this.jump.setCustomValidity(shown ? "" : reason);
    this.jump.reportValidity();
    this.jump.oninput = () => this.jump.setCustomValidity("");
    if (shown) this.grid.element.focus();
  }

  #over(row, x, y) {
    this.pointed = row === null ? null : `${row} ${x} ${y}`;
    if (row === null) {
      this.readout.textContent = "\u00a0";
      return;
    }
    const { dataset } = this;
    const say = (fields) => {
      this.readout.textContent = `row ${row} · ${describePixel(fields, dataset.size, x, y)}`;
    };
    const wanted = dataset.fields.filter((name) => name !== "background");
    const kept = dataset.kept(row, wanted);
    if (kept) say(kept);
    else {
      dataset.row(row, wanted).then(
        (fields) => {
          if (this.pointed?.startsWith(`${row} `)) this.#over(row, ...this.pointed.split(" ").slice(1).map(Number));
          return fields;
        },
        () => {},
      );
    }
  }

  #key(event) {
    if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = this.shows[Number(event.key) - 1];
    if (button) button.click();
    if (event.key === "m" && this.overlay.isConnected) this.#set({ overlay: !this.settings.overlay });
  }

  #remember() {
    const { settings, choice, grid } = this;
    if (!grid?.across || !this.detail) return;
    const row = grid.order.count ? grid.order.at(grid.place) : 0;
    this.changed({
      show: settings.show === this.usual ? "" : settings.show,
      overlay: settings.overlay ? 1 : "",
      opacity: settings.overlay ? settings.opacity : "",
      far: settings.far === this.dataset.far_m ? "" : settings.far,
      tile: settings.tile === 168 ? "" : settings.tile,
      split: choice.split,
      background: choice.background,
      foreground: choice.foreground,
      order: choice.shuffled ? "shuffled" : "",
      seed: choice.shuffled ? choice.seed : "",
      row: grid.place ? row : "",
      open: this.detail.row ?? "",
    });
  }
}
