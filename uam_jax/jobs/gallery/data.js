"use strict";
// The rows, column by column, and the page's queries on them. Knows nothing of the page.

const rows = { count: 0, columns: {}, figures: [] };

/** Takes a part of the rows; called by the data scripts, in their order. */
function addRows(part) {
  for (const [name, column] of Object.entries(part.columns)) {
    const values = column.words ? column.at.map((place) => column.words[place]) : column;
    rows.columns[name] = name in rows.columns ? rows.columns[name].concat(values) : values;
  }
  part.figures.forEach(([name, values], number) => {
    const known = rows.figures[number];
    rows.figures[number] = { name, values: known ? known.values.concat(values) : values };
  });
  rows.count += part.count;
}

/** One row as an object, for a card or the large view. */
function rowAt(number) {
  const row = { number };
  for (const name in rows.columns) row[name] = rows.columns[name][number];
  row.figures = rows.figures.map(({ name, values }) => [name, values[number]]);
  const size = /^(\d+)\s*[x×]\s*(\d+)$/.exec(row.size || "");
  row.width = size && Number(size[1]) ? Number(size[1]) : 1;
  row.height = size && Number(size[2]) ? Number(size[2]) : 1;
  return row;
}

/** The sort orders: for each a key for the address, a label, and the values. */
function sortKeys() {
  const keys = [
    { key: "order", label: "order of the job", values: null },
    { key: "confidence", label: "confidence", values: rows.columns.confidence },
    { key: "id", label: "id", values: rows.columns.id },
    { key: "mask", label: "mask share", values: rows.columns.mask_share },
    { key: "seconds", label: "seconds", values: rows.columns.seconds },
  ];
  for (const { name, values } of rows.figures) keys.push({ key: `figure ${name}`, label: name, values });
  return keys;
}

const normal = (text) => text.normalize("NFC").toLowerCase();

let texts = null;

/** Each row's texts joined, in lower case. Made once, when first needed or when the page is idle. */
function searchTexts() {
  if (texts) return texts;
  const searched = ["id", "image", "target", "source", "reason", "review"].map((name) => rows.columns[name] || []);
  texts = new Array(rows.count);
  for (let i = 0; i < rows.count; i++) {
    let text = "";
    for (const column of searched) if (column[i]) text += column[i] + "\n";
    texts[i] = normal(text);
  }
  return texts;
}

const orders = new Map();

/** The numbers of all rows, sorted; those without a value come last in both directions. */
function sorted(key, down) {
  const name = `${key} ${down}`;
  if (orders.has(name)) return orders.get(name);
  const { values } = sortKeys().find((entry) => entry.key === key);
  const numbers = Array.from({ length: rows.count }, (_, i) => i);
  const sign = down ? -1 : 1;
  let order;
  if (!values) {
    order = down ? numbers.reverse() : numbers;
  } else {
    // Ids as people count: scene 9 before scene 10.
    const collator = key === "id" ? new Intl.Collator("en", { numeric: true }) : null;
    const compare = collator ? collator.compare : (a, b) => a - b;
    const known = numbers.filter((i) => values[i] !== null && values[i] !== undefined);
    const unknown = numbers.filter((i) => values[i] === null || values[i] === undefined);
    order = known.sort((a, b) => sign * compare(values[a], values[b]) || a - b).concat(unknown);
  }
  orders.set(name, order);
  return order;
}

/** The numbers of the rows that hold every word, or phrase in quotes, of the search, and may be shown. */
function findRows({ q, show, sort, down, top }) {
  const words = (normal(q).match(/"[^"]+"|\S+/g) || []).map((word) => word.replace(/^"(.+)"$/, "$1"));
  const haystack = words.length ? searchTexts() : null;
  const { failed, review } = rows.columns;
  const first = [];
  const second = [];
  const rest = [];
  for (const i of sorted(sort, down)) {
    if (show === "review" ? failed[i] || !review[i] : show !== "all" && (show === "failed") !== (failed[i] === 1)) continue;
    if (haystack && !words.every((word) => haystack[i].includes(word))) continue;
    (top && failed[i] ? first : top && review[i] ? second : rest).push(i);
  }
  return first.concat(second, rest);
}
