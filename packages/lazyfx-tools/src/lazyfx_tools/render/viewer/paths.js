// The lines that lead to an item, out of the groups around what it reads and into those around it.

// Parts of nets: [{ net, branches }].
function pathsTo(graph, nesting, layout, item) {
  const chain = groupsAround(graph, nesting, item);
  const around = new Set(chain.map(([group]) => group));
  const paths = [];
  for (const source of sourcesOf(layout, chain[0][0], item)) {
    for (const [group, inside] of chain) {
      const net = layout.byOrigin.get(`${group.index} ${source}`);
      const branches = net?.branches.filter((one) => one.item === inside) ?? [];
      if (branches.length) paths.push({ net, branches });
    }
    for (const [group] of groupsAround(graph, nesting, source)) {
      if (around.has(group)) break;
      const net = layout.byOrigin.get(`${group.index} ${source}`);
      if (net) paths.push({ net, branches: net.branches.filter((one) => one.item === null) });
    }
  }
  return paths;
}

// The groups around an item, the innermost first, and which of their items it is in.
function groupsAround(graph, nesting, item) {
  const chain = [];
  let at = item >= graph.size ? nesting.groups[item - graph.size].parent : nesting.home[item];
  let inside = item;
  for (; at; at = at.parent) {
    chain.push([at, inside]);
    inside = graph.size + at.index;
  }
  return chain.length ? chain : [[nesting.root, item]];
}

function sourcesOf(layout, group, item) {
  const sources = [];
  for (const net of layout.nets) {
    if (net.group === group && net.branches.some((one) => one.item === item)) sources.push(net.source);
  }
  return sources;
}
