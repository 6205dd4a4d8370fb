// Modules as boxes in boxes. Every node lies in one group; the root is the graph.

const DEEPEST = 48; // levels of modules that are told apart
const FLAT = 600; // nodes beside each other in one group; more are cut into runs
const RUN = 200;

function buildNesting(graph) {
  const root = newGroup(null, visible(graph.name), "");
  const groups = [];
  const home = new Array(graph.size);
  const byKey = new Map();
  for (let node = 0; node < graph.size; node += 1) {
    home[node] = groupAt(graph, graph.paths[node].slice(0, DEEPEST), root, byKey);
  }
  const splitFlat = cutIntoRuns(graph, home);
  adoptStrays(graph, home, root);
  for (let node = 0; node < graph.size; node += 1) {
    home[node].nodes.push(node);
    for (let at = home[node]; at; at = at.parent) {
      at.count += 1;
      at.first = Math.min(at.first, isSource(graph, node) ? graph.size + node : node);
      at.nbytes += graph.nbytes[node] ?? 0;
      at.seconds += graph.seconds?.[node] ?? 0;
      at.families.set(graph.families[node], (at.families.get(graph.families[node]) ?? 0) + 1);
    }
  }
  mergeChains(root);
  const number = (group, depth) => {
    group.index = groups.length;
    group.depth = depth;
    groups.push(group);
    group.children = group.children.filter((child) => child.count).sort((a, b) => a.first - b.first);
    for (const node of group.nodes) home[node] = group;
    for (const child of group.children) {
      child.parent = group;
      number(child, depth + 1);
    }
  };
  number(root, 0);
  return { root, groups, home, splitFlat };
}

function newGroup(parent, label, kind) {
  const group = {
    parent, label, kind, children: [], nodes: [], count: 0, first: Infinity, nbytes: 0, seconds: 0,
    families: new Map(), index: -1, depth: 0,
  };
  parent?.children.push(group);
  return group;
}

function groupAt(graph, path, root, byKey) {
  let group = root;
  for (let length = 1; length <= path.length; length += 1) {
    const key = pathKey(path.slice(0, length));
    let next = byKey.get(key);
    if (!next) {
      next = newGroup(group, short(path[length - 1], 60), graph.classes.get(key) ?? "");
      byKey.set(key, next);
    }
    group = next;
  }
  return group;
}

// A graph that says nothing about modules is cut into runs of nodes, in the order in which they run.
function cutIntoRuns(graph, home) {
  const own = new Map();
  for (let node = 0; node < graph.size; node += 1) {
    const kind = graph.kinds[node];
    if (kind !== "call_function" && kind !== "call_method" && kind !== "call_module") continue;
    if (!own.has(home[node])) own.set(home[node], []);
    own.get(home[node]).push(node);
  }
  let cut = false;
  for (const [group, nodes] of own) {
    if (nodes.length <= FLAT) continue;
    cut = true;
    const runs = Math.ceil(nodes.length / RUN);
    for (let i = 0; i < runs; i += 1) {
      const part = nodes.slice(
        Math.floor((i * nodes.length) / runs),
        Math.floor(((i + 1) * nodes.length) / runs),
      );
      const label = `nodes ${count(part[0])} – ${count(part.at(-1))}`;
      const run = newGroup(group, label, "");
      for (const node of part) home[node] = run;
    }
  }
  return cut;
}

function isSource(graph, node) {
  return graph.kinds[node] === "placeholder" || graph.kinds[node] === "get_attr";
}

// What nobody knows the module of goes into the box around all that it is connected with: inputs,
// such as parameters, and sums of gradients, which autograd makes. What has a line of the user's
// and no module belongs to none.
function adoptStrays(graph, home, root) {
  const made = (node) => graph.meta[node].some(([key]) => key === "is_gradient_acc");
  const stray = (node) =>
    home[node] === root && graph.kinds[node] !== "output" &&
    (isSource(graph, node) || !graph.traces[node] || made(node));
  const known = (node) => !stray(node) && graph.kinds[node] !== "output";
  const adopt = (node) => {
    if (!stray(node)) return;
    let common = null;
    for (const other of [...graph.users[node], ...graph.inputs[node]]) {
      if (known(other)) common = common ? commonGroup(common, home[other]) : home[other];
    }
    if (common) home[node] = common;
  };
  for (let node = 0; node < graph.size; node += 1) if (!isSource(graph, node)) adopt(node);
  for (let node = graph.size - 1; node >= 0; node -= 1) adopt(node);
}

function commonGroup(a, b) {
  const above = new Set();
  for (let at = a; at; at = at.parent) above.add(at);
  let at = b;
  while (!above.has(at)) at = at.parent;
  return at;
}

// A box that holds nothing but one other box is no level of its own.
function mergeChains(group) {
  for (const child of group.children) mergeChains(child);
  for (const child of group.children) {
    while (!child.nodes.length && child.children.filter((one) => one.count).length === 1) {
      const only = child.children.find((one) => one.count);
      child.label = `${child.label}.${only.label}`;
      child.kind = only.kind || child.kind;
      child.nodes = only.nodes;
      child.children = only.children;
      for (const one of child.children) one.parent = child;
    }
  }
}

// Which groups are open at first: level by level, as long as what is seen stays clear. A level of
// many modules is shown all the same where there would be next to nothing to see without it.
const CLEAR = 60;
const NEXT_TO_NOTHING = 8;
const BEARABLE = 600;

function openAtFirst(nesting) {
  const open = new Set([nesting.root]);
  let seen = nesting.root.nodes.length + nesting.root.children.length;
  let level = nesting.root.children;
  while (level.length) {
    const more = level.reduce((sum, one) => sum + one.nodes.length + one.children.length - 1, 0);
    if (seen + more > (seen < NEXT_TO_NOTHING ? BEARABLE : CLEAR)) break;
    seen += more;
    for (const group of level) open.add(group);
    level = level.flatMap((group) => group.children);
  }
  return open;
}

// All nodes in a group and in the groups in it.
function nodesOf(group) {
  const nodes = [...group.nodes];
  const groups = [...group.children];
  while (groups.length) {
    const one = groups.pop();
    for (const node of one.nodes) nodes.push(node);
    groups.push(...one.children);
  }
  return nodes;
}
