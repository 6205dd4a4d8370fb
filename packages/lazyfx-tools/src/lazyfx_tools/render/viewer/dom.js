// Elements. Texts become text nodes: data never get onto the page as markup.

// element("button", { class: "quiet", onclick: run }, "Run", otherElement)
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined));
  return made;
}

function replaceChildren(parent, ...children) {
  parent.replaceChildren(...children.flat(Infinity).filter((one) => one !== null && one !== undefined));
}

// Text of the graph's: shown in a direction of its own, unseen characters by number.
function named(text, most) {
  const shown = short(text, most);
  const title = shown === text ? null : short(text, 2000);
  return element("bdi", { class: "name", title }, shown);
}

// A bar of colored parts: how much of it belongs to each family.
function compositionBar(counts, label) {
  const total = [...counts.values()].reduce((sum, one) => sum + one, 0);
  const parts = page.families
    .filter((family) => counts.get(family))
    .map((family) =>
      element("span", {
        style: { width: `${(100 * counts.get(family)) / total}%`, background: familyColor(family) },
        title: `${family}: ${count(counts.get(family))}`,
      }),
    );
  return element("span", { class: "composition", role: "img", "aria-label": label }, parts);
}

// A line of the user's: a link that opens the editor, where there is one, and the code.
function userLineElement(line, most = 60) {
  if (!line) return null;
  const where = `${shortPath(line.file, most)}:${line.line}`;
  const address = editorAddress(page.editor, line.file, line.line);
  const title = `${short(line.file, 2000)}:${line.line} in ${short(line.where)}`;
  return [
    address
      ? element("a", { class: "line", href: address, title }, where)
      : element("span", { class: "line", title }, where),
    line.code ? element("code", { class: "source" }, short(line.code, 300)) : null,
  ];
}

// Rows of a long table, a page at a time: the browser stays quick, and the rest is one click away.
const ROWS = 500;

function longTable(columns, rows, makeRow) {
  const body = element("tbody");
  const more = element("p", { class: "more" });
  const table = element("table", {}, element("thead", {}, element("tr", {}, columns)), body);
  let shown = 0;
  const show = (upTo) => {
    const fresh = [];
    for (; shown < Math.min(upTo, rows.length); shown += 1) fresh.push(makeRow(rows[shown]));
    body.append(...fresh);
    const rest = rows.length - shown;
    replaceChildren(
      more,
      rest ? `${count(shown)} of ${count(rows.length)} rows. ` : null,
      rest > ROWS ? element("button", { onclick: () => show(shown + ROWS) }, `Show ${ROWS} more`) : null,
      rest ? " " : null,
      rest ? element("button", { onclick: () => show(rows.length) }, "Show all") : null,
    );
  };
  show(ROWS);
  return element("div", { class: "table" }, table, more);
}
