// A training run: its curves, its predictions by epoch, and its evaluations with their worst rows.

import { Browser } from "./browser.js";
import { count, make, makeSvg, short } from "./elements.js";
import { readFile, readJson } from "./http.js";

const PANELS = {
  loss: ["train_loss", "validation_loss"],
  mask: ["iou", "dice", "zero_iou"],
  "cross-entropy": ["bce", "blind_bce"],
  "depth error": ["abs_rel", "mean_depth_abs_rel", "rmse_m"],
  "depth agreement": ["delta1", "mean_depth_delta1", "ssim"],
  "learning rate": ["learning_rate"],
};
const TRIVIAL = /^(zero|blind|mean)_/;
const LISTED = 100;
const GOOD_IS_LOW = /abs_rel|rmse|loss|bce/;
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [320, 190, 44, 8, 10, 24];

/** Parse a CSV file of names and numbers, in quotes where they have commas: a list of objects. */
export function parseCsv(text) {
  const split = (line) =>
    [...line.matchAll(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)]
      .slice(0, -1)
      .map((found) => found[1].replace(/^"|"$/g, "").replaceAll('""', '"'));
  const [head, ...lines] = text.split(/\r?\n/).filter((line) => line !== "");
  const names = split(`${head}`);
  return lines.map((line) => {
    const cells = split(line);
    return Object.fromEntries(
      names.map((name, k) => [
        name,
        cells[k] === "" || cells[k] === undefined ? null : Number.isNaN(Number(cells[k])) ? cells[k] : Number(cells[k]),
      ]),
    );
  });
}

async function readText(url) {
  return new TextDecoder().decode(await readFile(url));
}

/** Return round numbers that divide a range into about four. */
function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((each) => each >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => (first + k) * step);
}

function drawPanel(title, names, history) {
  const present = names.filter((name) => history.some((entry) => Number.isFinite(entry[name])));
  if (!present.length) return null;
  const values = present.flatMap((name) => history.map((entry) => entry[name])).filter(Number.isFinite);
  let [low, high] = [Math.min(0, ...values), Math.max(...values)];
  if (low === high) high = low + 1;
  const epochs = history.map((entry) => entry.epoch);
  const [firstEpoch, lastEpoch] = [epochs[0], epochs.at(-1)];
  const x = (epoch) => LEFT + ((epoch - firstEpoch) / Math.max(1, lastEpoch - firstEpoch)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} by epoch` });
  for (const tick of ticks(low, high)) {
    svg.append(makeSvg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(
      makeSvg("text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end", text: String(Number(tick.toPrecision(3))) }),
    );
  }
  const labelled = new Set([
    firstEpoch,
    lastEpoch,
    ...ticks(firstEpoch, Math.max(firstEpoch + 1, lastEpoch)).filter(
      (epoch) => Number.isInteger(epoch) && x(epoch) - LEFT > 24 && WIDTH - RIGHT - x(epoch) > 24,
    ),
  ]);
  for (const epoch of labelled)
    svg.append(makeSvg("text", { x: x(epoch), y: HEIGHT - 8, "text-anchor": "middle", text: epoch }));
  history.slice(1).forEach((entry, k) => {
    if (entry.size === history[k].size) return;
    const at = x(entry.epoch - 0.5);
    svg.append(
      makeSvg(
        "line",
        { class: "grows", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM },
        makeSvg("title", { text: `pictures of ${entry.size} px from here` }),
      ),
    );
  });
  present.forEach((name, k) => {
    const points = history
      .filter((entry) => Number.isFinite(entry[name]))
      .map((entry) => [x(entry.epoch), y(entry[name])]);
    const curve = makeSvg("polyline", {
      class: TRIVIAL.test(name) ? "curve trivial" : "curve",
      points: points.map((point) => point.join(",")).join(" "),
    });
    curve.style.stroke = `var(--series-${k + 1})`;
    svg.append(curve);
    if (history.length <= 40) {
      for (const [cx, cy] of points) {
        const dot = makeSvg("circle", { cx, cy, r: 2.5 });
        dot.style.fill = `var(--series-${k + 1})`;
        svg.append(dot);
      }
    }
  });
  const legend = make("div", { class: "legend" });
  const cursor = svg.appendChild(
    makeSvg("line", { class: "axis", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }),
  );
  const show = (entry) => {
    legend.replaceChildren(
      make("span", { text: `epoch ${entry.epoch}` }),
      ...present.map((name, k) => {
        const line = makeSvg("line", {
          x1: 0,
          x2: 18,
          y1: 4,
          y2: 4,
          "stroke-width": 2,
          class: TRIVIAL.test(name) ? "trivial" : "",
        });
        line.style.stroke = `var(--series-${k + 1})`;
        return make("span", {}, makeSvg("svg", { viewBox: "0 0 18 8" }, line), `${name} ${short(entry[name])}`);
      }),
    );
  };
  show(history.at(-1));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const nearest = history.reduce((best, entry) =>
      Math.abs(x(entry.epoch) - at) < Math.abs(x(best.epoch) - at) ? entry : best,
    );
    cursor.setAttribute("x1", x(nearest.epoch));
    cursor.setAttribute("x2", x(nearest.epoch));
    cursor.setAttribute("visibility", "visible");
    show(nearest);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    show(history.at(-1));
  });
  return make("figure", { class: "panel" }, make("figcaption", { text: title }), svg, legend);
}

function scoresTable(head, lines, first) {
  return make(
    "div",
    { class: "scores" },
    make(
      "table",
      {},
      make(
        "thead",
        {},
        make("tr", {}, make("th", { text: first }), ...head.map((name) => make("th", { scope: "col", text: name }))),
      ),
      make(
        "tbody",
        {},
        ...lines.map(([title, values, kind]) =>
          make(
            "tr",
            { class: kind },
            make("th", { scope: "row", text: title }),
            ...head.map((name) => make("td", { text: short(values[name]) })),
          ),
        ),
      ),
    ),
  );
}

export class RunView {
  constructor(element, dialog, view, hooks) {
    Object.assign(this, { dialog, view, hooks, run: view.run, state: {} });
    this.base = new URL(view.run.data, document.baseURI).href;
    this.page = make("div", { class: "run" });
    element.replaceChildren(this.page);
  }

  async start(parameters) {
    this.state = {
      epoch: parameters.get("epoch"),
      evaluation: parameters.get("evaluation"),
      sort: parameters.get("sort"),
      open: parameters.get("open"),
    };
    const has = (name) => this.run.files.includes(name);
    const config = has("config.json") ? await readJson(`${this.base}config.json`) : {};
    if (config.settings) this.page.append(this.#settings(config));
    if (has("metrics.csv")) this.#curves(parseCsv(await readText(`${this.base}metrics.csv`)));
    else
      this.page.append(
        make("p", { class: "note", text: "There are no scores yet: metrics.csv is written after the first epoch." }),
      );
    if (this.run.predictions.length) this.#predictions();
    if (this.run.evaluations.length) await this.#evaluations();
    else
      this.page.append(
        make("h2", { text: "Evaluations" }),
        make("p", { class: "note", text: "None yet; dsgen evaluate RUN STORE makes one." }),
      );
  }

  #remember(change) {
    Object.assign(this.state, change);
    this.hooks.changed(this.state);
  }

  #settings({ settings, device, parameters }) {
    const told = [
      `sizes ${settings.sizes}`,
      `width ${settings.width}`,
      settings.encoder && `encoder ${settings.encoder}`,
      `${settings.optimizer}, ${settings.schedule}`,
      `learning rate ${settings.learning_rate}`,
      parameters && `${count(parameters)} parameters`,
      device && `on ${device}`,
    ];
    return make("p", { class: "note", text: told.filter(Boolean).join(" · ") });
  }

  #curves(history) {
    if (!history.length) return;
    const panels = Object.entries(PANELS).map(([title, names]) => drawPanel(title, names, history));
    this.page.append(make("h2", { text: "Curves" }), make("div", { class: "panels" }, ...panels));
  }

  #predictions() {
    const names = this.run.predictions;
    const epochOf = (name) => /(\d+)\.png$/.exec(name)?.[1]?.replace(/^0+(?=\d)/, "") ?? name;
    const asked = names.findIndex((name) => epochOf(name) === this.state.epoch);
    const picture = make("img", { class: "sheet", alt: "" });
    const label = make("output");
    const slider = make("input", {
      type: "range",
      name: "epoch",
      min: 0,
      max: names.length - 1,
      value: asked < 0 ? names.length - 1 : asked,
      "aria-label": "Epoch",
    });
    const show = (remembered) => {
      const name = names[Number(slider.value)];
      picture.src = `${this.base}${name}`;
      picture.alt = label.textContent = `after epoch ${epochOf(name)}`;
      if (remembered) this.#remember({ epoch: epochOf(name) });
    };
    slider.addEventListener("input", () => show(true));
    show(false);
    this.page.append(
      make("h2", { text: "Predictions by epoch" }),
      make("p", { class: "field" }, slider, label),
      make("div", {}, picture),
    );
  }

  async #evaluations() {
    const { evaluations } = this.run;
    const names = evaluations.map(({ name }) => name);
    const select = make(
      "select",
      { name: "evaluation" },
      ...names.map((name) => make("option", { value: name, text: name })),
    );
    if (names.includes(this.state.evaluation)) select.value = this.state.evaluation;
    const place = make("div");
    this.page.append(make("h2", { text: "Evaluations" }), names.length > 1 ? select : "", place);
    select.addEventListener("change", () => {
      this.#remember({ evaluation: select.value });
      this.#evaluation(evaluations[names.indexOf(select.value)], place).catch(this.hooks.problem);
    });
    await this.#evaluation(evaluations[names.indexOf(select.value)], place);
  }

  async #evaluation(evaluation, place) {
    this.browser?.close();
    this.browser = null;
    const url = (file) => `${this.base}${encodeURIComponent(evaluation.name)}/${file}`;
    const has = (file) => evaluation.files.includes(`${evaluation.name}/${file}`);
    const scores = await readJson(url("scores.json"));
    const rows = has("rows.csv") ? parseCsv(await readText(url("rows.csv"))) : scores.worst;
    const head = Object.keys(scores.scores.network);
    const shares = (scores.by_mask_share ?? [])
      .filter((entry) => entry.rows)
      .map((entry) => [
        `${entry.up_to === 0 ? "empty" : `${short(entry.above * 100)} to ${short(entry.up_to * 100)} %`}, ${count(entry.rows)} rows`,
        entry,
      ]);
    place.replaceChildren(
      make("p", { class: "note", text: `${evaluation.name}: ${scores.protocol.summary}` }),
      scoresTable(
        head,
        Object.entries(scores.scores).map(([answer, values]) => [
          answer,
          values,
          answer === "network" ? "network" : "",
        ]),
        "answer",
      ),
      scores.blank
        ? make("p", { class: "problem", text: "The masks are blank: no better than all-zero ones. Train longer." })
        : "",
      ...(shares.length ? [make("h2", { text: "By share of the mask" }), scoresTable(head, shares, "mask")] : []),
    );
    if (evaluation.store !== null) this.#openStore(evaluation);
    this.#rows(place, rows, head, evaluation);
    if (has("worst.png"))
      place.append(
        make("h2", { text: "The worst rows, as the network answers" }),
        make("img", {
          class: "sheet",
          src: url("worst.png"),
          alt: "The worst rows: pictures, masks, depths, true and predicted",
          loading: "lazy",
        }),
      );
    if (this.browser && this.state.open) this.browser.detail.open(Number(this.state.open));
  }

  #openStore(evaluation) {
    this.worst = make("div", { class: "worst" });
    this.browser = new Browser(this.worst, this.dialog, this.view.stores[evaluation.store], {
      problem: this.hooks.problem,
      changed: ({ open }) => this.#remember({ open }),
    });
    this.worst.querySelector(".bar").hidden = true; // rows are chosen by the table
    this.browser.begin();
  }

  #rows(place, rows, head, evaluation) {
    const columns = ["row", ...(rows.length && "mask_share" in rows[0] ? ["mask_share"] : []), ...head];
    const body = make("tbody");
    const heads = columns.map((name) =>
      make("th", { scope: "col" }, make("button", { type: "button", onclick: () => sort(name), text: name })),
    );
    let by = { name: "", ascending: true };
    const sort = (name, ascending = by.name === name ? !by.ascending : !GOOD_IS_LOW.test(name)) => {
      by = { name, ascending };
      const known = rows.filter((row) => row[name] !== null && row[name] !== undefined);
      known.sort((a, b) => (ascending ? a[name] - b[name] : b[name] - a[name]));
      heads.forEach((cell, k) =>
        cell.setAttribute("aria-sort", columns[k] !== name ? "none" : ascending ? "ascending" : "descending"),
      );
      heads.forEach((cell, k) => {
        cell.firstChild.textContent = columns[k] + (columns[k] !== name ? "" : ascending ? " ▲" : " ▼");
      });
      body.replaceChildren(
        ...known
          .slice(0, LISTED)
          .map((row) => make("tr", {}, ...columns.map((column) => make("td", {}, this.#cell(column, row))))),
      );
      this.browser?.list(known.map(({ row }) => row));
    };
    place.append(
      make("h2", { text: "Rows, the worst first" }),
      make("p", {
        class: "note",
        text: `${rows.length > LISTED ? `The first ${LISTED} of ${count(rows.length)} rows. ` : ""}A click on a heading sorts. ${evaluation.store === null ? `The rows cannot be opened: ${evaluation.problem}.` : ""}`,
      }),
      ...(this.browser ? [this.worst] : []),
      make("div", { class: "scores" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)),
    );
    const first = head.includes("iou") ? "iou" : head[0];
    if (first) sort(columns.includes(this.state.sort) ? this.state.sort : first);
  }

  #cell(column, row) {
    if (column !== "row" || !this.browser) return short(row[column]);
    return make("button", { type: "button", onclick: () => this.browser.detail.open(row.row), text: count(row.row) });
  }
}
