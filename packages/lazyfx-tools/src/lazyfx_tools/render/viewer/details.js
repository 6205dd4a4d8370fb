// The panel beside a view: everything that is known about one node, or one module.

const LISTED = 40; // neighbors that are shown at once

function showDetails(panel, graph, item, app) {
  panel.hidden = item === null;
  if (item === null) {
    panel.replaceChildren();
    return;
  }
  const close = element("button", { class: "close", "aria-label": "Close details", onclick: () => app.select(null) }, "×");
  const content = item < graph.size ? nodeDetails(graph, item, app) : groupDetails(graph, item, app);
  replaceChildren(panel, close, content);
}

function nodeDetails(graph, node, app) {
  const line = userLine(graph.lines[node]);
  const frames = stackFrames(graph.traces[node]);
  const facts = [
    ["operator", element("code", {}, named(graph.targets[node], 300))],
    ["kind", graph.kinds[node]],
    ["shape", named(graph.shapes[node], 400)],
    ["stride", named(graph.strides[node], 400)],
    ["dtype", named(graph.dtypes[node], 300)],
    ["device", named(graph.devices[node], 200)],
    ["size", graph.nbytes[node] === null ? null : `${bytes(graph.nbytes[node])} (${count(graph.nbytes[node])} bytes)`],
    ["time", duration(graph.seconds?.[node])],
    ["memory", memoryText(graph, node)],
    ["module", moduleLinks(graph, node, app)],
    ...graph.meta[node].map(([key, value]) => [visible(key), named(value, 300)]),
  ].filter(([, value]) => value && (value.textContent ?? value) !== "");
  return [
    element("h2", {}, named(graph.names[node], 200)),
    element("p", {}, familyChip(graph.families[node]), ` node ${count(node)} of ${count(graph.size)}`),
    element("p", { class: "actions" },
      app.view === "graph" ? element("button", { onclick: () => app.select(node, { reveal: true }) }, "Center")
        : element("button", { onclick: () => app.go(graph, "graph", node) }, "Show in graph"),
      graph.codeLines[node] < 0 || app.view === "code" ? null
        : element("button", { onclick: () => app.go(graph, "code", node) }, "Show in code")),
    line ? element("section", {}, element("h3", {}, "From"), element("p", { class: "from" }, userLineElement(line, 36))) : null,
    frames.length > 1 ? stackElement(frames) : null,
    element("section", {}, element("h3", {}, "Call"), callElement(graph, node, app)),
    element("dl", {}, facts.map(([key, value]) => [element("dt", {}, key), element("dd", {}, value)])),
    neighborList("Reads", graph, graph.inputs[node], app),
    neighborList("Read by", graph, graph.users[node], app),
    graph.differences.map((one) => standingElement(one, graph, node, app)),
  ];
}

function familyChip(family) {
  return element("span", { class: "chip" }, element("i", { style: { background: familyColor(family) } }), family);
}

function nodeLink(graph, node, app, text = null) {
  return element("button", { class: "link", onclick: () => app.go(graph, null, node) }, text ?? named(graph.names[node], 60));
}

// A node in a table: its color and its name.
function nodeEntry(graph, node, app) {
  return element("span", { class: "entry" },
    element("i", { class: "dot", style: { background: familyColor(graph.families[node]) } }), nodeLink(graph, node, app));
}

// "add(x, 2)" with the nodes in it as links. The text was made by Python; names are found in it.
function callElement(graph, node, app) {
  const text = graph.arguments[node];
  const names = new Map(graph.inputs[node].map((input) => [graph.names[input], input]));
  const parts = text.split(/([A-Za-z_]\w*)/).map((part) =>
    names.has(part) ? nodeLink(graph, names.get(part), app) : visible(part));
  const head = graph.kinds[node] === "output" ? "return " : `${short(shortTarget(graph.targets[node]), 200)}`;
  return element("code", { class: "call" }, head, "(", parts, ")");
}

function stackElement(frames) {
  const rows = frames.map((frame) => element("li", {}, userLineElement(frame, 36)));
  return element("details", {}, element("summary", {}, `Stack, ${plural(frames.length, "frame")}`), element("ol", { class: "stack" }, rows));
}

function moduleLinks(graph, node, app) {
  const chain = [];
  for (let at = nestingOf(graph).home[node]; at?.parent; at = at.parent) chain.unshift(at);
  if (!chain.length) return null;
  return element("span", {}, chain.map((group, i) => [
    i ? " › " : null,
    element("button", { class: "link", title: group.kind || null, onclick: () => app.go(graph, "graph", graph.size + group.index) }, group.label),
  ]));
}

function memoryText(graph, node) {
  const pieces = graph.memory?.behind[node] ?? [];
  if (!pieces.length) return null;
  const { sizes, first, last, counted } = graph.memory;
  return pieces.map((piece) => {
    const whose = first[piece] < node ? "shared, " : "";
    const when = counted[piece] ? `steps ${count(first[piece])} – ${count(last[piece])}` : "the caller's";
    return `${bytes(sizes[piece])}, ${whose}${when}`;
  }).join("; ");
}

function neighborList(title, graph, nodes, app) {
  if (!nodes.length) return null;
  const list = element("ul", { class: "neighbors" });
  const item = (node) => element("li", {},
    element("i", { style: { background: familyColor(graph.families[node]) } }),
    nodeLink(graph, node, app), " ", element("small", {}, short(nodeSummary(graph, node), 60)));
  list.append(...nodes.slice(0, LISTED).map(item));
  const rest = nodes.slice(LISTED);
  if (rest.length) {
    const more = element("button", { onclick: () => more.parentNode.replaceWith(...rest.map(item)) }, `and ${count(rest.length)} more`);
    list.append(element("li", {}, more));
  }
  return element("section", {}, element("h3", {}, `${title} ${count(nodes.length)}`), list);
}

function standingElement(difference, graph, node, app) {
  const what = standing(difference, graph, node);
  const isNew = graph === difference.new;
  const other = isNew ? difference.toOld.get(node) : difference.toNew.get(node);
  const old = isNew ? other : node;
  const reasons = differenceTexts(difference, old);
  return element("section", {},
    element("h3", {}, `Difference ${difference.index + 1}: ${what}`),
    reasons.length ? element("ul", {}, reasons.map((one) => element("li", {}, short(one, 400)))) : null,
    other === undefined ? null : element("p", {}, `${isNew ? "was" : "is now"} `, nodeLink(isNew ? difference.old : difference.new, other, app)));
}

function groupDetails(graph, item, app) {
  const group = nestingOf(graph).groups[item - graph.size];
  const chain = [];
  for (let at = group; at?.parent; at = at.parent) chain.unshift(at.label);
  const nodes = nodesOf(group);
  const facts = [
    ["class", group.kind], ["nodes", count(group.count)],
    ["size of results", bytes(group.nbytes)],
    ["time", graph.seconds ? duration(group.seconds) : null],
  ].filter(([, value]) => value);
  return [
    element("h2", {}, element("bdi", { class: "name" }, chain.join("."))),
    element("p", { class: "actions" },
      element("button", { onclick: () => app.toggle(group) }, app.isOpen(group) ? "Close" : "Open"),
      element("button", { onclick: () => app.select(item, { reveal: true }) }, "Center")),
    element("p", {}, compositionBar(group.families, "families of operators")),
    element("dl", {}, facts.map(([key, value]) => [element("dt", {}, key), element("dd", {}, value)])),
    element("section", {}, element("h3", {}, "Operators"),
      element("table", { class: "small" }, element("tbody", {}, operatorCounts(graph, nodes).slice(0, 20).map(([target, times]) =>
        element("tr", {}, element("td", {}, named(target, 60)), element("td", { class: "number" }, count(times))))))),
  ];
}
