// All graphs of the page, what differs, and where it was made.

function overviewView(app) {
  const head = ["graph", "phase", "nodes", "calls", "results", "peak", "operators", "most frequent"];
  const numbers = new Set(["nodes", "calls", "results", "peak"]);
  const graphs = element("table", {},
    element("thead", {}, element("tr", {}, head.map((one) => element("th", { scope: "col", class: numbers.has(one) ? "number" : null }, one)))),
    element("tbody", {}, page.graphs.map((graph) => {
      const counts = operatorCounts(graph);
      const results = graph.nbytes.reduce((sum, one, node) => sum + (graph.kinds[node].startsWith("call_") ? one ?? 0 : 0), 0);
      return element("tr", {},
        element("td", {}, element("button", { class: "link strong", onclick: () => app.go(graph, "graph", null) }, named(graph.name, 80))),
        element("td", {}, graph.phase ? phaseChip(graph.phase) : null),
        element("td", { class: "number" }, count(graph.size)),
        element("td", { class: "number" }, count(counts.reduce((sum, one) => sum + one[1], 0))),
        element("td", { class: "number" }, bytes(results)),
        element("td", { class: "number" }, graph.memory ? element("button", { class: "link", onclick: () => app.go(graph, "memory", null) }, bytes(graph.memory.live[graph.peak])) : ""),
        element("td", {}, compositionBar(familyCounts(graph), "families of operators")),
        element("td", { class: "ops" }, counts.slice(0, 3).map(([target, times]) =>
          element("span", {}, named(target, 30), element("small", {}, ` ${count(times)}`), " "))));
    })));
  const used = new Set(page.graphs.flatMap((graph) => [...new Set(graph.families)]));
  return {
    element: element("div", { class: "overview scroll" },
      element("h1", {}, named(page.title, 200)),
      element("section", {}, element("h2", {}, plural(page.graphs.length, "graph")),
        page.graphs.length ? element("div", { class: "table" }, graphs) : element("p", { class: "empty" }, "No graph was given."),
        element("p", { class: "legend-line" }, page.families.filter((one) => used.has(one)).map(familyChip))),
      page.differences.length ? element("section", {}, element("h2", {}, plural(page.differences.length, "difference")), differencesTable(app)) : null,
      page.environment.length ? element("section", {}, element("h2", {}, "Environment"),
        element("dl", {}, page.environment.map(([key, value]) => [element("dt", {}, short(key)), element("dd", {}, named(value, 400))]))) : null,
      element("section", {}, element("h2", {}, "Keys"), element("dl", {}, [
        ["/", "search"], ["Enter, Shift+Enter", "next and previous of what was found"],
        ["drag, arrow keys", "move the graph"], ["wheel, + −", "zoom"], ["F", "show the whole graph"],
        ["double click, ▸ ▾", "open or close a module"], ["N, P", "next and previous node"], ["Esc", "select nothing"],
      ].map(([key, what]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, what)])))),
    select() {},
    close() {},
  };
}

function phaseChip(phase) {
  const known = ["forward", "backward", "joint", "inference"].includes(phase);
  return element("span", { class: `phase ${known ? phase : ""}` }, short(phase, 30));
}

function differencesTable(app) {
  const head = ["", "old", "new", "added", "removed", "changed", "rewired", "inherited", "moved"];
  return element("table", {},
    element("thead", {}, element("tr", {}, head.map((one, i) => element("th", { scope: "col", class: i > 2 ? "number" : null }, one)))),
    element("tbody", {}, page.differences.map((one) => element("tr", {},
      element("td", {}, element("button", { class: "link strong", onclick: () => app.goDifference(one) }, `difference ${one.index + 1}`)),
      element("td", {}, named(one.old.name, 60)), element("td", {}, named(one.new.name, 60)),
      [one.added, one.removed, one.changed, one.rewired, one.inherited, one.moved].map(({ size: number }) => element("td", { class: "number" }, count(number)))))));
}
