// Shows the rows of the page, a page of cards at a time, and keeps what is decided of each.
// Everything that comes from data is set as text: no string is ever read as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const CARDS = 60;  // on a page
const AT_ONCE = 8;  // cards that are made before the page is painted; the others follow frame by frame
const KEY = "influence-review-" + data.fingerprint;
const rows = data.rows;
const at = (name) => document.getElementById(name);

let decided = new Map();  // place of a row -> {decision, to}
const history = [];  // [place, what was decided before]
let shown = rows.map((_, k) => k);
let now = 0;  // place among the rows that are shown
let first = -1;  // place of the first card on the page
let waiting = [];  // rows of the page whose cards are not made yet

// Control characters, and those that turn the direction of text, as signs.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const visible = (text) => String(text).replace(HIDDEN, (c) =>
  "⟨U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");

function make(tag, names, text) {
  const made = document.createElement(tag);
  if (names) made.className = names;
  if (text !== undefined) made.textContent = visible(text);
  return made;
}

function add(parent, ...children) {
  parent.append(...children.filter((child) => child));
  return parent;
}

const figure = (value) => Number(value).toPrecision(3).replace("-", "−");
const size = (k) => 1 + (rows[k].copies || []).length;
const total = rows.reduce((sum, _, k) => sum + size(k), 0);
const rowText = rows.map((row) => [row.id, row.label, row.proposed, row.reason, ...Object.values(row.slices || {}),
  ...Object.values(row.texts || {}), ...(row.values || []).map((v) => v[0] + " " + v[1])].join("\n").toLowerCase());

// ---- progress, kept in the browser ----------------------------------------------------------------------------------

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = false;
}

function remember() {
  try {
    localStorage.setItem(KEY, JSON.stringify([...decided].map(([k, d]) => [rows[k].id, rows[k].key, d.decision, d.to])));
  } catch {
    problem("This browser keeps nothing for this page: save the decisions before you close it.");
  }
}

function recall() {
  let kept = [];
  try {
    kept = JSON.parse(localStorage.getItem(KEY) || "[]");
  } catch {
    return;  // what is kept is not ours to read, or nothing may be kept
  }
  const place = new Map(rows.map((row, k) => [row.id, k]));
  for (const [id, key, decision, to] of Array.isArray(kept) ? kept : []) {
    const k = place.get(id);
    if (k !== undefined && rows[k].key === key && data.decisions.includes(decision)) decided.set(k, {decision, to});
  }
}

function tell() {
  const counts = {};
  let done = 0;
  for (const [k, d] of decided) {
    counts[d.decision] = (counts[d.decision] || 0) + size(k);
    done += size(k);
  }
  at("progress").max = Math.max(1, total);
  at("progress").value = done;
  const parts = data.decisions.filter((name) => counts[name]).map((name) => `${name} ${counts[name].toLocaleString("en")}`);
  at("said").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} rows decided` +
    (parts.length ? ": " + parts.join(", ") : "");
  at("undo").disabled = history.length === 0;
  at("save").disabled = done === 0;
}

// ---- decisions ------------------------------------------------------------------------------------------------------

function put(k, decision) {
  if (decision === undefined) decided.delete(k);
  else decided.set(k, decision);
  remember();
  tell();
  const card = at("row-" + k);
  if (card) card.replaceWith(cardOf(k));
}

function decide(k, decision, to) {
  if (!data.decisions.includes(decision)) return;
  if (decision === "relabel" && (to === undefined || to === rows[k].number)) return;
  history.push([k, decided.get(k)]);
  put(k, decision === "relabel" ? {decision, to} : {decision});
}

function undo() {
  const last = history.pop();
  if (last === undefined) return;
  put(last[0], last[1]);
  const place = shown.indexOf(last[0]);
  if (place >= 0) go(place);
}

// CRC-32 of what was decided, so that a line that is lost from the file is noticed
function checksum(made) {
  const parts = made.map((d) => [d.id, d.row_key, d.decision, d.label ?? ""].join("\u0000"));
  let crc = -1;
  for (const byte of new TextEncoder().encode(parts.join("\n"))) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ((crc ^ -1) >>> 0).toString(16).padStart(8, "0");
}

function save() {
  const made = [];
  for (const k of rows.keys()) {
    const d = decided.get(k);
    if (d === undefined) continue;
    for (const [id, key] of [[rows[k].id, rows[k].key], ...(rows[k].copies || [])]) {
      const entry = {id, row_key: key, decision: d.decision};
      if (d.decision === "relabel") Object.assign(entry, {label: d.to, label_name: data.classes[d.to]});
      made.push(entry);
    }
  }
  const about = {schema_version: 1, made_by: "influence", table: data.fingerprint, column: data.column, manifest: data.manifest,
    rows: total, undecided: total - made.length, decisions: made,
    checksum: checksum(made)};
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(about, null, 1) + "\n"], {type: "application/json"}));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- what is shown --------------------------------------------------------------------------------------------------

function mark(place) {
  if (place < 0) return;
  const before = at("row-" + shown[now]);
  if (before) before.classList.remove("now");
  now = place;
  const card = at("row-" + shown[now]);
  if (card) card.classList.add("now");
}

function more(count) {
  at("cards").append(...waiting.splice(0, count).map(cardOf));
  if (waiting.length) requestAnimationFrame(() => setTimeout(more, 0, AT_ONCE));
}

function draw() {
  const start = Math.floor(now / CARDS) * CARDS;
  if (start === first) return;
  first = start;
  waiting = shown.slice(first, first + CARDS);
  at("cards").replaceChildren();
  more(AT_ONCE);
  const pages = Math.max(1, Math.ceil(shown.length / CARDS));
  for (const nav of document.querySelectorAll(".pager")) {
    nav.querySelector(".at").textContent = `page ${first / CARDS + 1} of ${pages}`;
    nav.querySelector(".previous").disabled = first === 0;
    nav.querySelector(".next").disabled = first + CARDS >= shown.length;
    nav.hidden = pages === 1;
  }
}

function go(place) {
  if (place < 0 || place >= shown.length) return;
  mark(place);
  draw();
  if (!at("row-" + shown[now])) more(CARDS);
  const card = at("row-" + shown[now]);
  card.focus({preventScroll: true});
  card.scrollIntoView({block: "nearest"});
}

const ORDERS = {
  low: (a, b) => rows[a].score - rows[b].score,
  high: (a, b) => rows[b].score - rows[a].score,
  agreement: (a, b) => (rows[a].agreement ?? 2) - (rows[b].agreement ?? 2),
  label: (a, b) => rows[a].label.localeCompare(rows[b].label),
  id: (a, b) => rows[a].id.localeCompare(rows[b].id),
};

const sorted = new Map();  // all rows in an order, once it is asked for

function inOrder(name) {
  if (!sorted.has(name)) sorted.set(name, [...rows.keys()].sort((a, b) => ORDERS[name](a, b) || a - b));
  return sorted.get(name);
}

function filter() {
  // the value of a choice is the text with = before it, so that an empty text is not the choice of all
  const chosen = (select) => (select.value ? select.value.slice(1) : undefined);
  const label = chosen(at("by-label")), proposed = chosen(at("by-proposed")), open = at("undecided").checked;
  const search = at("search").value.toLowerCase();
  const slices = [...document.querySelectorAll("select[data-slice]")].filter((s) => s.value);
  shown = inOrder(at("sort").value).filter((k) => (label === undefined || rows[k].label === label) &&
    (proposed === undefined || rows[k].proposed === proposed) && (!search || rowText[k].includes(search)) &&
    (!open || !decided.has(k)) && slices.every((s) => (rows[k].slices || {})[s.dataset.slice] === chosen(s)));
  at("count").textContent = shown.length === rows.length ? `${rows.length.toLocaleString("en")} rows shown` :
    `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows shown`;
  now = 0;
  first = -1;
  draw();
}

function options(select, values) {
  const counts = new Map();
  for (const value of values) if (value !== undefined) counts.set(value, (counts.get(value) || 0) + 1);
  for (const [value, count] of [...counts].sort((a, b) => a[0].localeCompare(b[0], "en", {numeric: true}))) {
    select.add(new Option(visible(`${value} (${count})`), "=" + value));
  }
  return counts.size;
}

function offer() {
  options(at("by-label"), rows.map((row) => row.label));
  at("by-proposed-of").hidden = options(at("by-proposed"), rows.map((row) => row.proposed)) === 0;
  for (const name of new Set(rows.flatMap((row) => Object.keys(row.slices || {})))) {
    const label = make("label", "", name + " "), select = make("select");
    select.dataset.slice = name;
    select.add(new Option("all", ""));
    options(select, rows.map((row) => (row.slices || {})[name]));
    add(at("by-slices"), add(label, select));
  }
  if (rows.every((row) => row.agreement === undefined)) at("sort").querySelector("[value=agreement]").remove();
}

// ---- keys -----------------------------------------------------------------------------------------------------------

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const k = shown[now], steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1};
  const names = {k: "keep", d: "drop", r: "relabel"};
  if (event.key in steps) {
    go(now + steps[event.key]);
  } else if (event.key === "u") {
    undo();
  } else if (event.key in names && k !== undefined) {
    if (event.key === "r" && rows[k].to === undefined) {
      const other = at("row-" + k) && at("row-" + k).querySelector("select.other");
      if (other) other.focus();
    } else if (data.decisions.includes(names[event.key])) {
      decide(k, names[event.key], rows[k].to);
      go(Math.min(now + 1, shown.length - 1));
    }
  } else {
    return;
  }
  event.preventDefault();
}

recall();
offer();
filter();
tell();
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("input", filter);
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
document.addEventListener("keydown", onKey);
for (const nav of document.querySelectorAll(".pager")) {
  nav.querySelector(".previous").addEventListener("click", () => { go(first - CARDS); });
  nav.querySelector(".next").addEventListener("click", () => { go(first + CARDS); });
}
