// The graph as code: a number at each line, a mark at each node, the user's lines as links.

const CHUNK = 200; // lines whose layout the browser skips while they are out of sight

function codeView(graph, app) {
  if (!graph.code) {
    return { element: element("p", { class: "empty" }, "The code of this graph was not given."), select() {}, close() {} };
  }
  const lines = graph.code.replace(/\n+$/, "").split("\n");
  const nodeAt = new Map();
  graph.codeLines.forEach((line, node) => {
    if (line >= 0 && graph.kinds[node] !== "placeholder") nodeAt.set(line, node);
  });
  const made = [];
  const chunks = [];
  for (let start = 0; start < lines.length; start += CHUNK) {
    const part = lines.slice(start, start + CHUNK).map((text, i) => {
      const row = codeLine(text, start + i, nodeAt.get(start + i), graph);
      made.push(row);
      return row;
    });
    chunks.push(element("div", { class: "chunk", style: { containIntrinsicSize: `auto ${part.length * 20}px` } }, part));
  }
  const wrap = element("input", { type: "checkbox", onchange: () => listing.classList.toggle("wrap", wrap.checked) });
  const listing = element("div", { class: "listing", tabindex: 0, role: "region", "aria-label": "Code" }, chunks);
  listing.addEventListener("click", (event) => {
    const row = event.target.closest("[data-node]");
    if (row && !event.target.closest("a") && getSelection().isCollapsed) app.select(Number(row.dataset.node));
  });
  const search = searchBox(graph, "", () => {}, (node) => app.select(node, { reveal: true }));
  let marked = null;
  return {
    element: element("div", { class: "code-view" },
      element("div", { class: "toolbar" }, search.element, element("label", {}, wrap, " Wrap long lines")), listing),
    focusSearch: search.focus,
    select(node, options = {}) {
      marked?.classList.remove("selected");
      marked = node === null ? null : made[graph.codeLines[node]] ?? null;
      marked?.classList.add("selected");
      if (options.reveal) marked?.scrollIntoView({ block: "center" });
    },
    close() {},
  };
}

function codeLine(text, number, node, graph) {
  const row = element("div", { class: node === undefined ? "row" : "row node", "data-node": node });
  const mark = element("span", { class: "mark" });
  if (node !== undefined) mark.style.background = familyColor(graph.families[node]);
  row.append(element("span", { class: "gutter" }, String(number + 1)), mark, element("span", { class: "text" }, codeParts(text)));
  return row;
}

// "name: "f32[2]" = call(...);  x = None": what tells least is painted faintest.
function codeParts(text) {
  const comment = /^(\s*# File: )(.*?):(\d+)( in [^]*)$/.exec(text);
  if (comment) {
    const address = editorAddress(page.editor, comment[2], Number(comment[3]));
    const where = visible(`${comment[2]}:${comment[3]}`);
    const link = address ? element("a", { href: address }, where) : where;
    const [place, code] = splitOnce(comment[4], ", code: ");
    return element("span", { class: "comment" }, comment[1], link, visible(place), code && ", code: ",
      code && element("b", {}, visible(code)));
  }
  if (/^\s*#/.test(text)) return element("span", { class: "comment" }, visible(text));
  const assignment = /^(\s+)(\w+)(: "[^"]*")?( = [^]*?)(;  [^]*)?$/.exec(text);
  if (!assignment || /^\s*(?:return|def|class)\b/.test(text)) return visible(text);
  const [, space, name, annotation, call, freed] = assignment;
  return [
    space, element("b", {}, visible(name)),
    annotation && element("span", { class: "annotation" }, visible(annotation)),
    visible(call),
    freed && element("span", { class: "comment" }, visible(freed)),
  ].filter(Boolean);
}

function splitOnce(text, separator) {
  const at = text.indexOf(separator);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + separator.length)];
}
