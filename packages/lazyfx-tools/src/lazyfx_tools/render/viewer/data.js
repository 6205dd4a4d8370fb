// The data of the page, as objects that the views read. Nodes are numbers: their places.

function readPage() {
  const page = JSON.parse(document.getElementById("data").textContent);
  const graphs = page.graphs.map((columns, index) => readGraph(columns, index, page.strings));
  const differences = page.differences.map((one, index) => readDifference(one, index, graphs));
  return { ...page, graphs, differences };
}

function readGraph(columns, index, strings) {
  const text = (numbers) => numbers.map((number) => strings[number]);
  const graph = {
    index,
    name: columns.name,
    phase: columns.phase,
    compilation: columns.compilation,
    code: columns.code,
    codeLines: columns.code_lines,
    size: columns.names.length,
    names: text(columns.names),
    kinds: text(columns.kinds),
    targets: text(columns.targets),
    families: text(columns.families),
    inputs: columns.inputs,
    arguments: text(columns.arguments),
    shapes: text(columns.shapes),
    strides: text(columns.strides),
    dtypes: text(columns.dtypes),
    devices: text(columns.devices),
    nbytes: columns.nbytes,
    paths: columns.modules.map((number) => columns.paths[number]),
    classes: new Map(columns.classes.map(([path, name]) => [pathKey(path), name])),
    lines: text(columns.lines),
    traces: text(columns.traces),
    meta: columns.meta.map((pairs) => pairs.map(text)),
    seconds: columns.seconds,
    memory: columns.memory,
    differences: [],
  };
  graph.users = Array.from({ length: graph.size }, () => []);
  graph.inputs.forEach((sources, node) => {
    for (const source of sources) graph.users[source].push(node);
  });
  graph.returned = new Set(graph.inputs.filter((_, node) => graph.kinds[node] === "output").flat());
  graph.places = new Map(graph.names.map((name, place) => [name, place]));
  graph.peak = graph.memory ? indexOfLargest(graph.memory.live) : -1;
  return graph;
}

// A key that no two paths share, whatever the names in them are.
function pathKey(path) {
  return JSON.stringify(path);
}

function indexOfLargest(numbers) {
  let found = 0;
  for (let i = 1; i < numbers.length; i += 1) if (numbers[i] > numbers[found]) found = i;
  return found;
}

function readDifference(one, index, graphs) {
  const difference = {
    index,
    old: graphs[one.old],
    new: graphs[one.new],
    toNew: new Map(one.pairs),
    toOld: new Map(one.pairs.map(([old, later]) => [later, old])),
    added: new Set(one.added),
    removed: new Set(one.removed),
    changed: new Map(one.changed),
    rewired: new Map(one.rewired),
    inherited: new Map(one.inherited),
    moved: new Set(one.moved),
    notes: one.notes,
  };
  difference.old.differences.push(difference);
  if (difference.new !== difference.old) difference.new.differences.push(difference);
  return difference;
}

// What became of a node of one of the graphs of a difference; of several things the weightiest.
function standing(difference, graph, node) {
  if (graph === difference.new && difference.added.has(node)) return "added";
  if (graph === difference.old && difference.removed.has(node)) return "removed";
  const old = graph === difference.new ? difference.toOld.get(node) : node;
  const kinds = ["changed", "rewired", "inherited", "moved"];
  return kinds.find((kind) => difference[kind].has(old)) ?? "same";
}

// All that is said about a pair, by its node in the old graph.
function differenceTexts(difference, old) {
  const { changed, rewired, inherited } = difference;
  return [changed, rewired, inherited].flatMap((one) => one.get(old) ?? []);
}

// How often each operator is called, the most frequent first.
function operatorCounts(graph, nodes = graph.names.keys()) {
  const counts = new Map();
  for (const node of nodes) {
    if (!graph.kinds[node].startsWith("call_")) continue;
    const target = shortTarget(graph.targets[node]);
    counts.set(target, (counts.get(target) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function familyCounts(graph, nodes = graph.names.keys()) {
  const counts = new Map();
  for (const node of nodes) {
    counts.set(graph.families[node], (counts.get(graph.families[node]) ?? 0) + 1);
  }
  return counts;
}

// "addmm · f32[4, 12, 384]"
function nodeSummary(graph, node) {
  const kind = graph.kinds[node];
  const what = kind === "placeholder" ? "input" : kind === "output" ? "" : shortTarget(graph.targets[node]);
  const dtype = graph.dtypes[node].split("; ").map(shortDtype).join(", ");
  const value = graph.shapes[node] ? `${dtype}${graph.shapes[node]}` : dtype === "NoneType" ? "" : dtype;
  return [what, value].filter(Boolean).join(" · ");
}

function nodeTitle(graph, node) {
  const line = userLine(graph.lines[node]);
  return [
    short(graph.names[node]), short(nodeSummary(graph, node)),
    line ? `${shortPath(line.file)}:${line.line}  ${short(line.code)}` : "",
  ].filter(Boolean).join("\n");
}
