// The page of `dsgen view`: reads view.json and shows what it names. The address remembers what is shown.

import { Browser } from "./browser.js";
import { count, make } from "./elements.js";
import { readJson } from "./http.js";
import { Problem } from "./problem.js";
import { RunView } from "./run.js";

const FORMAT = 1;
const main = document.querySelector("main");
const dialog = document.querySelector("dialog");
const banner = document.querySelector("#problem");
const problems = new Set();
let written = "";

/** Show the first thing that goes wrong, and how many more there are. */
function showProblem(error) {
  const problem = Problem.of(error, "this page");
  if (problems.has(problem.message)) return;
  problems.add(problem.message);
  if (problems.size === 1) {
    const [what, reason, remedy] = [problem.what, problem.reason, problem.remedy].map(String);
    banner.replaceChildren(
      make("strong", { text: "Something cannot be shown. " }),
      make("span", { text: `${what}: ${reason}.` }),
      remedy ? make("span", { class: "remedy", text: ` What to do: ${remedy}.` }) : "",
      make("span", { class: "more" }),
      make("button", {
        type: "button",
        "aria-label": "Close",
        onclick: () => {
          banner.hidden = true;
          problems.clear();
        },
        text: "×",
      }),
    );
    banner.hidden = false;
  }
  if (problems.size > 1) banner.querySelector(".more").textContent = ` And ${count(problems.size - 1)} more like it.`;
}

function remember(parameters) {
  const kept = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  written = `#${new URLSearchParams(kept)}`;
  history.replaceState(null, "", written);
}

function describe(view) {
  const store = view.stores[0];
  document.title = `${view.title} – dsgen view`;
  document.querySelector("h1").textContent = view.title;
  if (view.kind === "run") {
    document.querySelector("#about").textContent = "training run";
    return;
  }
  const kinds = { store: "store", recipe: "recipe store, drawn as you look", corpus: "corpus, drawn as you look" };
  const depth = store.fields.includes("depth") ? `, depth by ${store.depth_by ?? "an unknown source"}` : ", no depth";
  document.querySelector("#about").textContent =
    `${kinds[store.kind]} · ${count(store.rows)} rows · ${store.size} × ${store.size} px${depth}`;
}

async function begin() {
  const view = await readJson("view.json");
  if (view.format !== FORMAT) {
    throw new Problem(
      "view.json",
      `format ${view.format}, expected ${FORMAT}`,
      "export it again with this version of dsgen",
    );
  }
  describe(view);
  const hooks = { problem: showProblem, changed: remember };
  const parameters = () => new URLSearchParams(location.hash.slice(1));
  const shown = view.run ? new RunView(main, dialog, view, hooks) : new Browser(main, dialog, view.stores[0], hooks);
  window.addEventListener("hashchange", () => {
    if (location.hash !== written) location.reload();
  });
  await shown.start(parameters());
}

begin().catch(showProblem);
