// Says so where the page cannot work; everything else is in modules, which need a web server.
if (location.protocol === "file:") {
  const banner = document.querySelector("#problem");
  banner.textContent =
    "This page needs a web server: browsers do not let a page read other files of a disk. Run dsgen view on the store, " +
    "or put this folder on a web server or into a bucket.";
  banner.hidden = false;
}
