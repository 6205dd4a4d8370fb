// Where everything goes. A layered layout, in boxes in boxes, in time linear in what is seen.
//
// Seen are nodes in open groups, and closed groups. Each open group is laid out by itself, the
// innermost first: its items in layers, inputs above what they are used by. A value that is used
// in several places is one *net*: a chain of places from layer to layer, with a branch to each use,
// so that lines go around boxes and not behind them. Where a net enters or leaves a group there is
// a port on its border.

const GAP_X = 22;
const GAP_Y = 40;
const PADDING = 16;
const HEADER = 28;
const NODE_HEIGHT = 42;
const GROUP_HEIGHT = 64;
const LANE = 12; // room for a line that passes a layer
const WIDEST_LAYER = 18; // items beside each other
const IN = -1; // in a net: the border of the group, above
const OUT = -2; // and below

function computeLayout(graph, nesting, open, width) {
  const scene = visibleItems(graph, nesting, open);
  const nets = findNets(graph, nesting, scene);
  const boxes = new Map(); // group -> its finished inside
  for (const group of [...scene.open].reverse()) {
    boxes.set(group, layOutGroup(graph, group, scene, nets.get(group) ?? new Map(), boxes, width));
  }
  return absolute(nesting.root, scene, boxes);
}

// --- what is seen ------------------------------------------------------------------------------

// An item is a node (its place) or a group (the size of the graph plus its number).
function visibleItems(graph, nesting, open) {
  const shown = []; // open groups, outer ones first
  const visit = (group) => {
    shown.push(group);
    for (const child of group.children) if (open.has(child)) visit(child);
  };
  visit(nesting.root);
  const set = new Set(shown);
  const stands = nesting.groups.map((group) => {
    let closed = null; // the outermost closed group around
    for (let at = group; at; at = at.parent) if (!set.has(at)) closed = at;
    return closed;
  });
  const itemOf = (node) => {
    const closed = stands[nesting.home[node].index];
    return closed ? graph.size + closed.index : node;
  };
  const groupOf = (item) => (item >= graph.size ? nesting.groups[item - graph.size] : null);
  const parentOf = (item) => (item >= graph.size ? groupOf(item).parent : nesting.home[item]);
  return { open: shown, isOpen: (group) => set.has(group), itemOf, groupOf, parentOf, size: graph.size };
}

// A training forward returns hundreds of values. Lines to all of them would hide the rest, so then
// nodes have a mark instead.
const MOST_RETURNED = 8;

function drawsInputs(graph, node) {
  return graph.kinds[node] !== "output" || graph.inputs[node].length <= MOST_RETURNED;
}

// For each open group: nets by the item that they start from, wherever that is.
function findNets(graph, nesting, scene) {
  const nets = new Map(scene.open.map((group) => [group, new Map()]));
  const add = (group, source, from, to) => {
    const known = nets.get(group);
    let net = known.get(source);
    if (!net) known.set(source, (net = { source, from, to: new Set() }));
    net.to.add(to);
  };
  const seen = new Set();
  for (let node = 0; node < graph.size; node += 1) {
    if (!drawsInputs(graph, node)) continue;
    const b = scene.itemOf(node);
    for (const input of graph.inputs[node]) {
      const a = scene.itemOf(input);
      const key = a * (graph.size + nesting.groups.length) + b;
      if (a === b || seen.has(key)) continue;
      seen.add(key);
      let [up, down] = [scene.parentOf(a), scene.parentOf(b)];
      let [from, to] = [a, b];
      while (up !== down) {
        if (up.depth >= down.depth) {
          add(up, a, from, OUT);
          from = graph.size + up.index;
          up = up.parent;
        } else {
          add(down, a, IN, to);
          to = graph.size + down.index;
          down = down.parent;
        }
      }
      add(up, a, from, to);
    }
  }
  return nets;
}

// --- one group ---------------------------------------------------------------------------------

function layOutGroup(graph, group, scene, nets, boxes, width) {
  const items = [
    // inputs come first: they are there before anything runs
    ...group.nodes.map((node) => ({ item: node, first: isSource(graph, node) ? node - graph.size : node })),
    ...group.children.map((child) => ({ item: graph.size + child.index, first: child.first })),
  ].sort((a, b) => a.first - b.first);
  const slots = items.map(({ item }) => {
    const inside = boxes.get(scene.groupOf(item));
    const last = item < graph.size && graph.kinds[item] === "output";
    return { item, last, inside, ...sizeOf(item, inside, scene, width), layer: 0, x: 0, y: 0 };
  });
  const slotOf = new Map(slots.map((slot, order) => [slot.item, Object.assign(slot, { order })]));
  const depth = chooseLayers(slots, slotOf, nets);
  const layers = Array.from({ length: depth + 2 }, () => []); // the first and last are ports
  for (const slot of slots) layers[(slot.layer += 1)].push(slot);
  const chains = routeNets(nets, slotOf, layers);
  orderLayers(layers, chains.links);
  placeLayers(layers, chains.links);
  return finish(slots, layers, chains.routes);
}

function sizeOf(item, inside, scene, width) {
  if (inside) return { w: inside.w, h: inside.h };
  const group = scene.groupOf(item);
  return { w: width(item, group), h: group ? GROUP_HEIGHT : NODE_HEIGHT };
}

// The longest path decides; what has no inputs stands just above its first use. Returns how many
// layers there are. Lines that would go upwards (between groups that use each other) do not count.
function chooseLayers(slots, slotOf, nets) {
  const forward = slots.map(() => []);
  const fed = slots.map(() => false);
  for (const net of nets.values()) {
    const from = slotOf.get(net.from);
    for (const item of net.to) {
      const to = slotOf.get(item);
      if (from && to && from.order < to.order) forward[from.order].push(to);
      if (to && (!from || from.order < to.order)) fed[to.order] = true;
    }
  }
  for (const slot of slots) {
    for (const user of forward[slot.order]) user.layer = Math.max(user.layer, slot.layer + 1);
  }
  for (const slot of [...slots].reverse()) {
    const users = forward[slot.order];
    if (fed[slot.order] || !users.length) continue;
    slot.layer = users.reduce((least, user) => Math.min(least, user.layer), Infinity) - 1;
  }
  const deepest = slots.reduce((most, slot) => Math.max(most, slot.layer), 0);
  for (const slot of slots) if (slot.last) slot.layer = Math.max(slot.layer, deepest + 1);
  return renumberLayers(slots);
}

// Layers that are too wide become several.
function renumberLayers(slots) {
  const byLayer = new Map();
  for (const slot of slots) {
    if (!byLayer.has(slot.layer)) byLayer.set(slot.layer, []);
    byLayer.get(slot.layer).push(slot);
  }
  let next = 0;
  for (const layer of [...byLayer.keys()].sort((a, b) => a - b)) {
    const members = byLayer.get(layer);
    const rows = Math.ceil(members.length / WIDEST_LAYER);
    const perRow = Math.ceil(members.length / rows);
    members.forEach((slot, i) => (slot.layer = next + Math.floor(i / perRow)));
    next += rows;
  }
  return next;
}

// Ports and lanes join the layers; links say what is above what. Lanes are bounded: beyond that
// many, the longest lines are drawn straight.
function routeNets(nets, slotOf, layers) {
  const links = []; // [upper slot, lower slot, offset in the upper, offset in the lower]
  const routes = [];
  let lanes = 3000 + 6 * slotOf.size;
  const reach = (net) => {
    const from = slotOf.get(net.from)?.layer ?? 0;
    let last = from;
    for (const item of net.to) {
      const layer = item === OUT ? layers.length - 1 : slotOf.get(item).layer;
      if (layer > last) last = layer;
    }
    return last - from;
  };
  const byReach = [...nets.values()].map((net) => [net, reach(net)]).sort((a, b) => a[1] - b[1]);
  for (const [net, length] of byReach) {
    const origin = slotOf.get(net.from) ?? newLane(layers[0], net.source, IN);
    const sinks = [...net.to].map((item) =>
      item === OUT ? newLane(layers.at(-1), net.source, OUT) : slotOf.get(item),
    );
    const down = sinks.filter((sink) => sink.layer > origin.layer || sink.port === OUT);
    const direct = length > 2 && length - 1 > lanes;
    if (!direct) lanes -= Math.max(0, length - 1);
    const chain = [origin];
    const top = net.from === IN ? 0 : origin.layer;
    const layerOf = (sink) => (sink.port === OUT ? layers.length - 1 : sink.layer);
    const last = down.reduce((most, sink) => Math.max(most, layerOf(sink)), top);
    if (!direct) {
      for (let layer = top + 1; layer < last; layer += 1) chain.push(newLane(layers[layer], net.source));
      for (let i = 1; i < chain.length; i += 1) {
        links.push([chain[i - 1], chain[i], offsetIn(chain[i - 1], net.source, "out"), 0]);
      }
    }
    const branches = sinks.map((sink) => {
      const at = direct ? 0 : Math.max(0, layerOf(sink) - 1 - top);
      const above = chain[Math.min(at, chain.length - 1)];
      const up = sink.port !== OUT && sink.layer <= origin.layer;
      if (!up && !direct) {
        const upper = offsetIn(above, net.source, "out");
        links.push([above, sink, upper, offsetIn(sink, net.source, "in")]);
      }
      return { sink, at: up ? 0 : Math.min(at, chain.length - 1), up };
    });
    routes.push({ source: net.source, chain, branches });
  }
  return { links, routes };
}

function newLane(layer, source, port = 0) {
  const lane = { item: null, lane: source, port, w: LANE, h: 0, x: 0, y: 0, layer: -1 };
  layer.push(lane);
  return lane;
}

// How far from the middle of a slot a net enters or leaves it: open groups have ports.
function offsetIn(slot, source, side) {
  if (!slot.inside) return 0;
  const port = slot.inside.ports[side].get(source);
  return port === undefined ? 0 : port - slot.w / 2;
}

// --- order and places in the layers ------------------------------------------------------------

function neighbors(layers, links) {
  for (const layer of layers) for (const slot of layer) (slot.above = []), (slot.below = []);
  // Nodes and lanes go where the port is; open groups go below each other's middle, or a long chain
  // of them would lean.
  for (const [upper, lower, out, into] of links) {
    upper.below.push([lower, upper.inside ? 0 : into]);
    lower.above.push([upper, lower.inside ? 0 : out]);
  }
}

// Slots go where their neighbors are in the layer before, a few times down and up.
function orderLayers(layers, links) {
  neighbors(layers, links);
  for (const layer of layers) {
    let x = 0;
    for (const slot of layer) {
      slot.x = x + slot.w / 2;
      x += slot.w + GAP_X;
    }
  }
  for (let sweep = 0; sweep < 6; sweep += 1) {
    const side = sweep % 2 ? "below" : "above";
    for (const layer of sweep % 2 ? [...layers].reverse() : layers) {
      for (const slot of layer) slot.wanted = middle(slot[side], slot.x);
      layer.sort((a, b) => a.wanted - b.wanted || (a.order ?? 0) - (b.order ?? 0));
      let x = 0;
      const total = layer.reduce((sum, slot) => sum + slot.w + GAP_X, -GAP_X);
      for (const slot of layer) {
        slot.x = x + slot.w / 2 - total / 2;
        x += slot.w + GAP_X;
      }
    }
  }
}

function middle(around, otherwise) {
  if (!around.length) return otherwise;
  let sum = 0;
  for (const [slot, offset] of around) sum += slot.x + offset;
  return sum / around.length;
}

// Keeps the order and moves each slot as near as possible to the middle of its neighbors.
function placeLayers(layers) {
  for (const sides of [["above"], ["below"], ["above", "below"], ["above", "below"], ["above"]]) {
    for (const layer of sides[0] === "below" ? [...layers].reverse() : layers) {
      const wanted = layer.map((slot) => {
        const around = sides.flatMap((side) => slot[side]);
        return middle(around.length ? around : [...slot.above, ...slot.below], slot.x);
      });
      const weights = layer.map((slot) => (slot.item === null ? 3 : 1)); // straight lines
      spread(layer, wanted, weights);
    }
  }
}

// The places nearest to the wanted ones (weighted least squares) that keep order and distance:
// pool adjacent violators, in linear time.
function spread(layer, wanted, weights) {
  const blocks = [];
  let before = 0; // room that the slots to the left need
  const lefts = [];
  layer.forEach((slot, i) => {
    if (i) before += (layer[i - 1].w + slot.w) / 2 + gapBetween(layer[i - 1], slot);
    lefts.push(before);
    let block = { x: wanted[i] - before, weight: weights[i], size: 1 };
    while (blocks.length && blocks.at(-1).x > block.x) {
      const other = blocks.pop();
      const weight = block.weight + other.weight;
      block = {
        x: (block.x * block.weight + other.x * other.weight) / weight,
        weight,
        size: block.size + other.size,
      };
    }
    blocks.push(block);
  });
  let i = 0;
  for (const block of blocks) {
    for (let k = 0; k < block.size; k += 1, i += 1) layer[i].x = block.x + lefts[i];
  }
}

function gapBetween(a, b) {
  return a.item === null && b.item === null ? 2 : a.item === null || b.item === null ? 8 : GAP_X;
}

// --- results -----------------------------------------------------------------------------------

// Turns middles into left edges, layers into heights, and finds the ports.
function finish(slots, layers, routes) {
  let left = Infinity;
  let right = -Infinity;
  for (const slot of layers.flat()) {
    left = Math.min(left, slot.x - slot.w / 2);
    right = Math.max(right, slot.x + slot.w / 2);
  }
  if (left > right) [left, right] = [0, 40];
  let y = HEADER;
  layers.forEach((layer, number) => {
    const height = layer.reduce((most, slot) => Math.max(most, slot.h), 0);
    if (number && number < layers.length - 1) y += number === 1 ? PADDING : GAP_Y;
    for (const slot of layer) {
      slot.x += PADDING - left;
      slot.y = slot.item === null ? y : y + (height - slot.h) / 2;
      slot.rowHeight = height;
    }
    y += height;
  });
  const h = y + PADDING;
  const ports = { in: new Map(), out: new Map() };
  for (const slot of layers[0]) {
    Object.assign(slot, { y: 0, rowHeight: 0 });
    ports.in.set(slot.lane, slot.x);
  }
  for (const slot of layers.at(-1)) {
    Object.assign(slot, { y: h, rowHeight: 0 });
    ports.out.set(slot.lane, slot.x);
  }
  return { slots, routes, ports, w: right - left + 2 * PADDING, h };
}

// Everything in the coordinates of the whole picture, in the order in which it is painted.
function absolute(root, scene, boxes) {
  const layout = { items: [], groups: [], nets: [], byItem: new Map(), byOrigin: new Map(), w: 0, h: 0 };
  const visit = (group, x, y) => {
    const inside = boxes.get(group);
    const frame = { item: scene.size + group.index, group, x, y, w: inside.w, h: inside.h, open: true };
    layout.groups.push(frame);
    layout.byItem.set(frame.item, frame);
    for (const route of inside.routes) {
      const net = { group, ...netAt(route, x, y) };
      layout.nets.push(net);
      layout.byOrigin.set(`${group.index} ${net.source}`, net);
    }
    for (const slot of inside.slots) {
      const left = x + slot.x - slot.w / 2;
      if (slot.inside) {
        visit(scene.groupOf(slot.item), left, y + slot.y);
        continue;
      }
      const box = { item: slot.item, group: scene.groupOf(slot.item), x: left, y: y + slot.y, w: slot.w, h: slot.h, open: false };
      layout.items.push(box);
      layout.byItem.set(slot.item, box);
    }
  };
  visit(root, 0, 0);
  const frame = layout.groups[0];
  return Object.assign(layout, { w: frame.w, h: frame.h });
}

// A net as points: down its chain, two for each lane, and a branch from one of them to each use.
function netAt(route, x, y) {
  const { source, chain } = route;
  const origin = chain[0];
  const points = [x + origin.x + offsetIn(origin, source, "out"), y + origin.y + origin.h];
  const leaves = [0]; // the point from which the link below each place of the chain starts
  for (const lane of chain.slice(1)) {
    points.push(x + lane.x, y + lane.y, x + lane.x, y + lane.y + lane.rowHeight);
    leaves.push(points.length / 2 - 1);
  }
  const branches = route.branches.map(({ sink, at, up }) => ({
    item: sink.item,
    x: x + sink.x + offsetIn(sink, source, "in"),
    y: y + sink.y,
    from: leaves[at],
    up,
    ends: sink.item !== null && !sink.inside,
  }));
  const net = { source, points, branches, left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
  for (let i = 0; i < points.length; i += 2) include(net, points[i], points[i + 1]);
  for (const branch of branches) include(net, branch.x, branch.y);
  return net;
}

function include(frame, x, y) {
  frame.left = Math.min(frame.left, x);
  frame.right = Math.max(frame.right, x);
  frame.top = Math.min(frame.top, y);
  frame.bottom = Math.max(frame.bottom, y);
}
