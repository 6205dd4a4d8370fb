// Finding nodes by what is written on them.

// Nodes whose name, operator, module, user's line or family has the text in it, in order.
// "family:view" and "op:mm" look at one of them.
function findNodes(graph, query) {
  const match = /^(name|op|module|line|family|dtype|shape):([^]*)$/.exec(query.trim().toLowerCase());
  const wanted = (match ? match[2] : query).trim().toLowerCase();
  if (!wanted) return [];
  const columns = {
    name: (i) => graph.names[i],
    op: (i) => graph.targets[i],
    module: (i) => graph.paths[i].join("."),
    line: (i) => graph.lines[i],
    family: (i) => graph.families[i],
    dtype: (i) => graph.dtypes[i],
    shape: (i) => graph.shapes[i],
  };
  const read = match ? [columns[match[1]]] : Object.values(columns).slice(0, 5);
  const found = [];
  for (let i = 0; i < graph.size; i += 1) {
    if (read.some((column) => column(i).toLowerCase().includes(wanted))) found.push(i);
  }
  return found;
}

// A box to search in, with the number of what was found and ways to go through it.
function searchBox(graph, query, onFound, onGo) {
  let found = [];
  let at = -1;
  const input = element("input", {
    type: "search", placeholder: "Search: name, operator, module, line", value: query,
    "aria-label": "Search nodes by name, operator, module, line, family:, op:, dtype: or shape:", spellcheck: "false",
  });
  const status = element("output", { class: "found" });
  const run = () => {
    found = findNodes(graph, input.value);
    at = -1;
    tell();
    onFound(input.value, found);
  };
  const tell = () => {
    status.textContent = !input.value.trim() ? "" : at < 0 ? `${count(found.length)} found` : `${count(at + 1)} of ${count(found.length)}`;
  };
  const go = (by) => {
    if (!found.length) return;
    at = at < 0 ? (by > 0 ? 0 : found.length - 1) : (at + by + found.length) % found.length;
    tell();
    onGo(found[at]);
  };
  let waiting = 0;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(run, 120);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      clearTimeout(waiting);
      if (findNodes(graph, input.value).length !== found.length) run();
      go(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      input.value = "";
      run();
    }
  });
  return {
    element: element("span", { class: "search" }, input, status,
      element("button", { title: "Previous (Shift+Enter)", "aria-label": "Previous", onclick: () => go(-1) }, "↑"),
      element("button", { title: "Next (Enter)", "aria-label": "Next", onclick: () => go(1) }, "↓")),
    run,
    focus: () => input.select(),
    set(text) {
      input.value = input.value === text ? "" : text;
      run();
    },
  };
}
