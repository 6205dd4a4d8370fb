// Every value of a graph as a row: what it is, how large, and from when to when it is in memory.

function tensorsView(graph, app) {
  const rows = [...graph.names.keys()].filter((node) => graph.nbytes[node] !== null && graph.kinds[node] !== "output");
  const span = (node) => lifetime(graph, node);
  const operator = (node) => (graph.kinds[node] === "placeholder" ? "input" : shortTarget(graph.targets[node]));
  const columns = [
    { title: "step", value: (node) => node, number: true },
    { title: "name", value: (node) => graph.names[node] },
    { title: "operator", value: operator },
    { title: "dtype", value: (node) => graph.dtypes[node] },
    { title: "shape", value: (node) => graph.shapes[node] },
    { title: "size", value: (node) => graph.nbytes[node], number: true },
    { title: "memory", value: (node) => ownBytes(graph, node), number: true },
    { title: "in memory", value: (node) => (span(node) ? span(node)[1] - span(node)[0] : -1), number: true },
    { title: "from", value: (node) => graph.lines[node] },
  ];
  let order = { column: columns[5], down: true };
  let filter = "";
  const holder = element("div", { class: "scroll" });
  const rowsByNode = new Map();
  const bar = (node) => {
    const found = span(node);
    if (!found) return null;
    const [first, last] = found;
    const left = Math.min(98, (100 * first) / graph.size);
    const width = (100 * (last - first + 1)) / graph.size;
    return element("span", { class: "life", title: `steps ${count(first)} – ${count(last)}` },
      element("i", { style: { left: `${left}%`, width: `${width}%` } }));
  };
  const row = (node) => {
    const own = ownBytes(graph, node);
    const line = userLine(graph.lines[node]);
    const made = element("tr", { "data-node": node, class: node === app.selected ? "selected" : null },
      element("td", { class: "number" }, count(node)),
      element("td", {}, nodeEntry(graph, node, app)),
      element("td", {}, named(operator(node), 50)),
      element("td", {}, named(graph.dtypes[node], 30)),
      element("td", {}, named(graph.shapes[node], 60)),
      element("td", { class: "number" }, bytes(graph.nbytes[node])),
      element("td", { class: "number" }, own === null ? "" : own === 0 ? "shared" : bytes(own)),
      element("td", {}, bar(node)),
      element("td", { class: "from" }, line ? userLineElement({ ...line, code: "" }, 34) : null));
    rowsByNode.set(node, made);
    return made;
  };
  const refresh = () => {
    const wanted = filter.trim() ? new Set(findNodes(graph, filter)) : null;
    const shown = rows.filter((node) => !wanted || wanted.has(node));
    const { value, number } = order.column;
    const compare = number ? (a, b) => value(a) - value(b) : (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    shown.sort((a, b) => (order.down ? -1 : 1) * compare(a, b) || a - b);
    rowsByNode.clear();
    const heads = columns.map((column) => element("th", {
      class: column.number ? "number" : null, scope: "col",
      "aria-sort": column === order.column ? (order.down ? "descending" : "ascending") : null,
    }, element("button", { onclick: () => {
      order = { column, down: column === order.column ? !order.down : Boolean(column.number && column.title !== "step") };
      refresh();
    } }, `${column.title}${column === order.column ? (order.down ? " ↓" : " ↑") : ""}`)));
    const total = shown.reduce((sum, node) => sum + graph.nbytes[node], 0);
    status.textContent = `${plural(shown.length, "value")}, ${bytes(total)} in all`;
    replaceChildren(holder, longTable(heads, shown, row));
  };
  const input = element("input", { type: "search", placeholder: "Filter: name, operator, module, line, dtype:, shape:", "aria-label": "Filter values", spellcheck: "false" });
  let waiting = 0;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      filter = input.value;
      refresh();
    }, 150);
  });
  const status = element("output", { class: "found" });
  refresh();
  return {
    element: element("div", { class: "tensors-view" }, element("div", { class: "toolbar" }, element("span", { class: "search" }, input, status)), holder),
    focusSearch: () => input.select(),
    select(node, options = {}) {
      for (const made of holder.querySelectorAll("tr.selected")) made.classList.remove("selected");
      const made = rowsByNode.get(node);
      made?.classList.add("selected");
      if (options.reveal) made?.scrollIntoView({ block: "center" });
    },
    close() {},
  };
}

// The steps during which the memory behind a value is there; null where it is the caller's.
function lifetime(graph, node) {
  const pieces = (graph.memory?.behind[node] ?? []).filter((piece) => graph.memory.counted[piece]);
  if (!pieces.length) return null;
  return [
    Math.min(...pieces.map((piece) => graph.memory.first[piece])),
    Math.max(...pieces.map((piece) => graph.memory.last[piece])),
  ];
}

// The memory that a node is the first to have; 0 if another had it before, null if not known.
function ownBytes(graph, node) {
  if (!graph.memory) return null;
  const makers = makersOf(graph);
  let sum = 0;
  for (const piece of graph.memory.behind[node]) {
    if (makers[piece] === node) sum += graph.memory.sizes[piece];
  }
  return sum;
}

// The first node that has each piece of memory.
function makersOf(graph) {
  if (!graph.makers) {
    graph.makers = new Array(graph.memory.sizes.length).fill(-1);
    graph.memory.behind.forEach((pieces, node) => {
      for (const piece of pieces) if (graph.makers[piece] < 0) graph.makers[piece] = node;
    });
  }
  return graph.makers;
}
