// What goes wrong, in the words of dsgen: what, why, and what to do.

export class Problem extends Error {
  constructor(what, reason, remedy = "") {
    super(`${what}: ${reason}${remedy ? `; ${remedy}` : ""}`);
    Object.assign(this, { what, reason, remedy });
  }

  /** Return any error as a problem; `what` names what was read. */
  static of(error, what) {
    let cause = error;
    while (cause && !(cause instanceof Problem) && cause.cause) cause = cause.cause;
    if (cause instanceof Problem) return cause;
    const damaged = "dsgen verify says which files are damaged, dsgen repair mends them";
    return new Problem(what, `cannot be read (${cause?.message ?? cause})`, damaged);
  }

  /** Return what can be sent between workers. */
  plain() {
    return { what: this.what, reason: this.reason, remedy: this.remedy };
  }
}
