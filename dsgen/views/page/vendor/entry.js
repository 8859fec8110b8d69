// What the page uses of zarrita; build.sh makes zarrita.js of it.
export { Array, registry } from "zarrita";
