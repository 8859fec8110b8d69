// Which rows are shown, and in which order.

/** The rows 0 to `count` - 1, or those of a list. */
export class Order {
  constructor(count, rows = null) {
    this.count = rows ? rows.length : count;
    this.rows = rows;
  }

  at(place) {
    return this.rows ? this.rows[place] : place;
  }

  /** Return the place of a row, -1 if it is not shown. */
  placeOf(row) {
    if (this.rows) return this.rows.indexOf(row);
    return row < this.count ? row : -1;
  }
}

/** Return random numbers from 0 to 1 that follow from a seed (mulberry32). */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

/** Return the numbers of the names that are `text`, or else contain it, whatever their case. */
export function matching(names, text) {
  const wanted = text.trim().toLowerCase();
  const numbers = names.map((_, k) => k);
  const same = numbers.filter((k) => names[k].toLowerCase() === wanted);
  return same.length ? same : numbers.filter((k) => names[k].toLowerCase().includes(wanted));
}

/** Return the rows of a choice: `split`, `background` and `foreground` as text, "" for all; shuffled by a seed or not. */
export function choose(count, filters, names, splitNames, choice) {
  let rows = null;
  if (choice.split || choice.background || choice.foreground) {
    const split = choice.split ? splitNames.indexOf(choice.split) : -1;
    const backgrounds = choice.background ? new Set(matching(names.background, choice.background)) : null;
    const foregrounds = choice.foreground ? new Set(matching(names.foreground, choice.foreground)) : null;
    const found = new Uint32Array(count);
    let n = 0;
    for (let row = 0; row < count; row += 1) {
      if (split >= 0 && filters.split[row] !== split) continue;
      if (backgrounds && !backgrounds.has(filters.background[row])) continue;
      if (foregrounds) {
        const people = filters.foreground.subarray(row * filters.slots, (row + 1) * filters.slots);
        if (!people.some((number) => foregrounds.has(number))) continue;
      }
      found[n] = row;
      n += 1;
    }
    rows = found.slice(0, n);
  }
  if (choice.shuffled) {
    rows ??= Uint32Array.from({ length: count }, (_, k) => k);
    const random = randomNumbers(choice.seed);
    for (let k = rows.length - 1; k > 0; k -= 1) {
      const other = Math.floor(random() * (k + 1));
      [rows[k], rows[other]] = [rows[other], rows[k]];
    }
  }
  return new Order(count, rows);
}
