// How a row is shown, as a card: put before review.js in the one script of the page, which uses it.

function pictureOf(row, id) {
  const image = make("img", Math.max(...row.size) <= 48 ? "tiny" : "");
  image.src = row.picture;
  image.alt = visible("picture of " + id);
  image.loading = "lazy";
  return image;
}

function listed(title, entries, say) {
  const box = make("details");
  box.open = true;
  const seen = entries.every(([id]) => (data.others[id] || {}).picture), list = make("ul", seen ? "rows pictures" : "rows");
  for (const entry of entries) {
    const [id, label, value] = say(entry), other = data.others[id] || {}, about = make("div");
    add(about, make("span", "", label), seen ? null : make("span", "", ", " + id), make("span", "faint", " " + value));
    for (const words of Object.values(other.texts || {})) add(about, make("p", "faint quote", words));
    add(list, add(make("li"), other.picture ? pictureOf(other, id) : null, about));
  }
  return add(box, make("summary", "", title), list);
}

// A text, its tokens in colours where numbers of them are known; the strongest are named below it, for those who see
// or print no colours.
function textOf(name, text, shades) {
  const box = shades ? make("div", "text") : make("div", "text", text), said = [];
  box.dir = "auto";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", shades ? name + ", tokens in colours" : name);
  if (!shades) return [box];
  for (const [words, names, title] of shades.pieces) {
    const piece = names || title ? make(names.includes("added") ? "bdi" : "span", names, words) : visible(words);
    if (title) piece.title = title;
    box.append(piece);
  }
  for (const [what, tokens] of shades.named) {
    const line = make("p", "named", what + ": ");
    tokens.forEach(([words, value], k) => add(line, k ? ", " : null, make("code", "", words), " " + value));
    said.push(line);
  }
  return [box, ...said];
}

function valuesOf(row) {
  const table = make("table");
  const head = make("tr");
  for (const [k, name] of ["value", "here", "usual"].entries()) {
    const cell = make("th", k ? "" : "name", name);
    cell.scope = "col";
    add(head, cell);
  }
  add(table, add(make("thead"), head));
  const body = make("tbody");
  for (const [name, value, usual, odd] of row.values) {
    add(body, add(make("tr", odd ? "odd" : ""), make("td", "name", name), make("td", "", value), make("td", "", usual)));
  }
  return add(table, body);
}

function choicesOf(k) {
  const row = rows[k], d = decided.get(k) || {}, box = make("div", "choices");
  for (const name of data.decisions) {
    if (name === "relabel" && row.to === undefined) continue;
    const button = make("button", name, name === "relabel" ? "relabel: " + row.proposed : name);
    button.type = "button";
    const on = d.decision === name && (name !== "relabel" || d.to === row.to);
    button.setAttribute("aria-pressed", String(on));
    button.addEventListener("click", () => decide(k, name, row.to));
    add(box, button);
  }
  if (data.decisions.includes("relabel")) add(box, otherLabel(k, d));
  return box;
}

function otherLabel(k, d) {
  const row = rows[k], select = make("select");
  const other = d.decision === "relabel" && d.to !== row.to;
  select.setAttribute("aria-label", "another label");
  select.className = "other";
  add(select, new Option(other ? visible(data.classes[d.to]) : "another label", other ? d.to : ""));
  const fill = () => {
    if (select.options.length > 1) return;
    data.classes.forEach((name, c) => { if (c !== row.number && !(other && c === d.to)) select.add(new Option(visible(name), c)); });
  };
  for (const event of ["focus", "pointerdown"]) select.addEventListener(event, fill);
  select.addEventListener("change", () => { if (select.value !== "") decide(k, "relabel", Number(select.value)); });
  return select;
}

function cardOf(k) {
  const row = rows[k], card = make("li", "card"), d = decided.get(k);
  card.id = "row-" + k;
  card.tabIndex = -1;
  if (d) card.classList.add("is-" + d.decision);
  if (shown[now] === k) card.classList.add("now");
  const head = make("header"), about = make("div");
  if (row.picture) add(head, pictureOf(row, row.id));
  const title = make("h3");
  add(title, add(make("bdi"), visible(row.label)));
  if (row.proposed !== undefined) add(title, " → ", make("bdi", "to", row.proposed));
  add(about, title, make("p", "id", row.id));
  const facts = [`score ${figure(row.score)}, rank ${row.rank.toLocaleString("en")}`];
  if (row.gain) facts.push(row.gain);
  if (row.agreement !== undefined) facts.push(`${(100 * row.agreement).toFixed(0)}% of members agree on the sign`);
  for (const [name, value] of Object.entries(row.slices || {})) facts.push(`${name} ${value}`);
  add(about, make("p", "faint", facts.join(" · ")));
  add(card, add(head, about));
  for (const [name, text] of Object.entries(row.texts || {})) add(card, ...textOf(name, text, (row.shades || {})[name]));
  if (row.values) add(card, valuesOf(row));
  if (row.reason) add(card, make("p", "", row.reason));
  const why = row.why || {};
  const said = ([id, label, v]) => [id, label, figure(v)];
  if (why.hurts) add(card, listed("Target rows it hurts most", why.hurts, said));
  const same = why.other && JSON.stringify(why.other) === JSON.stringify(why.helped);
  if (why.other) add(card, listed(same ? "Nearest rows of another label, which help" : "Nearest rows of another label", why.other, said));
  if (why.helped && !same) add(card, listed("Nearest rows that help", why.helped, said));
  if (why.alike) add(card, listed("Its duplicates", why.alike, ([id, split, label]) => [id, label, split]));
  if (row.copies) {
    const names = row.copies.slice(0, 5).map(([id]) => id).join(", ");
    const more = row.copies.length > 5 ? ` and ${row.copies.length - 5} more` : "";
    add(card, make("p", "faint", `with ${row.copies.length} near-duplicate${row.copies.length > 1 ? "s" : ""}, decided alike: ${names}${more}`));
  }
  add(card, choicesOf(k));
  card.addEventListener("pointerdown", () => mark(shown.indexOf(k)));
  card.addEventListener("focusin", () => mark(shown.indexOf(k)));
  return card;
}
