// Runs first, before the modules: says so where they cannot work, and lets the workers load while they do.

if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    const banner = document.querySelector("#problem");
    banner.textContent =
      "This page needs a web server: browsers do not let a page read other files of a disk. Run dsgen view on the " +
      "store, or put this folder on a web server or into a bucket.";
    banner.hidden = false;
  });
} else {
  const count = Math.max(1, Math.min(4, (navigator.hardwareConcurrency || 2) - 1));
  window.startedWorkers = Array.from({ length: count }, () => new Worker("page/worker.js", { type: "module" }));
}
