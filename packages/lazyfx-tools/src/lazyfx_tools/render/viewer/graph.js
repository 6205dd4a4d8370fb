// The graph as a picture that can be moved, zoomed, searched, opened and closed.

// What stays of a graph's picture while other views are open.
const pictureStates = new Map();

function pictureState(graph) {
  let state = pictureStates.get(graph);
  if (!state) {
    const nesting = nestingOf(graph);
    state = { nesting, open: openAtFirst(nesting), camera: null, color: "family", query: "", labels: [] };
    pictureStates.set(graph, state);
  }
  return state;
}

const nestings = new Map();

function nestingOf(graph) {
  if (!nestings.has(graph)) nestings.set(graph, buildNesting(graph));
  return nestings.get(graph);
}

function graphView(graph, app) {
  const state = pictureState(graph);
  const { nesting } = state;
  const canvas = element("canvas", {
    tabindex: 0, role: "application",
    "aria-label": `Graph ${visible(graph.name)}, ${plural(graph.size, "node")}. Arrow keys move, plus and minus zoom, N and P go from node to node, Enter opens and closes a module.`,
  });
  const context = canvas.getContext("2d", { alpha: false });
  let theme = readTheme();
  let ratio = 1;
  let asked = false;
  const marks = graph.inputs.some((_, node) => !drawsInputs(graph, node));
  let found = []; // nodes that the search found, in order
  const picture = {
    layout: null, selected: null, hovered: null, found: new Set(),
    dimmed: () => false, isMarked: (node) => marks && graph.returned.has(node), labelOf, groupText,
    pathsTo: (item) => pathsTo(graph, nesting, picture.layout, item),
    ...coloring(graph, nesting, "family"),
  };

  // --- layout and painting ---

  function layOut() {
    picture.layout = computeLayout(graph, nesting, state.open, itemWidth);
    markFound();
    repaint();
  }

  function repaint() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (state.camera) paintPicture(canvas, context, picture, state.camera, theme, ratio);
    });
  }

  function labelOf(node) {
    state.labels[node] ??= {
      name: short(graph.names[node], 30),
      what: short(nodeSummary(graph, node), 44),
    };
    return state.labels[node];
  }

  function groupText(group) {
    const parts = [plural(group.count, "node")];
    if (group.kind) parts.unshift(short(group.kind, 28));
    if (graph.seconds) parts.push(duration(group.seconds));
    else if (group.nbytes) parts.push(bytes(group.nbytes));
    return parts.join(" · ");
  }

  function itemWidth(item, group) {
    if (group) {
      context.font = `700 14px ${theme.font}`;
      const title = context.measureText(`▸ ${group.label}`).width;
      context.font = `11.5px ${theme.font}`;
      return Math.min(320, Math.max(150, title + 34, context.measureText(groupText(group)).width + 34));
    }
    const label = labelOf(item);
    context.font = `600 13px ${theme.font}`;
    const name = context.measureText(label.name).width;
    context.font = `11px ${theme.font}`;
    return Math.min(260, Math.max(90, name + 26, context.measureText(label.what).width + 26));
  }

  function setColor(mode) {
    state.color = mode;
    Object.assign(picture, coloring(graph, nesting, mode));
    const note = "The lines to the output are not drawn";
    replaceChildren(legend, legendOf(graph, mode, (query) => search.set(query)),
      marks ? element("span", { class: "key", title: note }, "▾ returned") : null);
    repaint();
  }

  // --- camera ---

  function resize() {
    const { clientWidth, clientHeight } = canvas;
    if (!clientWidth || !clientHeight) return;
    ratio = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.round(clientWidth * ratio);
    canvas.height = Math.round(clientHeight * ratio);
    if (!state.camera) {
      fit(0.6);
      if (picture.selected !== null) reveal(picture.selected);
    }
    if (state.camera) paintPicture(canvas, context, picture, state.camera, theme, ratio);
  }

  function fit(readable = 0) {
    look(cameraOn(picture.layout, canvas, readable));
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    look(zoomed(state.camera, factor, x, y));
  }

  function pan(x, y) {
    const { camera } = state;
    look({ ...camera, x: camera.x + x / camera.scale, y: camera.y + y / camera.scale });
  }

  function look(camera) {
    state.camera = camera;
    repaint();
  }

  // Brings an item into the middle, opening the groups around it.
  function reveal(item) {
    let at = item >= graph.size ? nesting.groups[item - graph.size].parent : nesting.home[item];
    let opened = false;
    for (; at; at = at.parent) {
      if (!state.open.has(at)) opened = true;
      state.open.add(at);
    }
    if (opened) layOut();
    const box = picture.layout.byItem.get(item);
    if (state.camera && box) look(cameraOnBox(state.camera, box, canvas));
  }

  // --- opening and closing ---

  function toggle(group) {
    if (!group.parent) return;
    const item = graph.size + group.index;
    const before = picture.layout.byItem.get(item);
    if (state.open.has(group)) state.open.delete(group);
    else state.open.add(group);
    layOut();
    const after = picture.layout.byItem.get(item);
    if (before && after) {
      // its upper left corner stays where it is
      state.camera.x += after.x - before.x;
      state.camera.y += after.y - before.y;
    }
  }

  function openAll(some) {
    state.open = new Set(nesting.groups.filter(some));
    state.open.add(nesting.root);
    layOut();
    fit();
  }

  function openOneLevel() {
    const shown = nesting.groups.filter((one) => allOpen(one.parent));
    const closed = shown.filter((one) => !state.open.has(one));
    const least = closed.reduce((depth, one) => Math.min(depth, one.depth), Infinity);
    openAll((one) => state.open.has(one) || one.depth <= least);
  }

  function allOpen(group) {
    for (let at = group; at; at = at.parent) if (!state.open.has(at)) return false;
    return true;
  }

  // --- search ---

  function markFound() {
    picture.found = new Set();
    const { layout } = picture;
    for (const node of found) {
      let item = node;
      if (!layout.byItem.has(node)) {
        let at = nesting.home[node];
        while (at && (!layout.byItem.has(graph.size + at.index) || state.open.has(at))) at = at.parent;
        item = at ? graph.size + at.index : node;
      }
      picture.found.add(item);
    }
  }

  const search = searchBox(graph, state.query, (query, nodes) => {
    state.query = query;
    found = nodes;
    const set = new Set(nodes);
    picture.dimmed = nodes.length ? (node) => !set.has(node) : () => false;
    if (picture.layout) markFound();
    repaint();
  }, (node) => app.select(node, { reveal: true }));

  // --- mouse and keyboard ---

  function itemAt(event) {
    const x = state.camera.x + event.offsetX / state.camera.scale;
    const y = state.camera.y + event.offsetY / state.camera.scale;
    const inside = (box) => x >= box.x && x <= box.x + box.w && y >= box.y && y <= box.y + box.h;
    const box = picture.layout.items.find(inside) ?? picture.layout.groups.findLast(inside);
    if (!box || (box.open && !box.group.parent)) return null;
    const arrow = box.group && x < box.x + 28 && y < box.y + 28;
    return { box, arrow, header: box.open && y < box.y + HEADER };
  }

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      const [x, y] = [drag.x - event.clientX, drag.y - event.clientY];
      if (drag.moved || Math.hypot(x, y) > 3) {
        Object.assign(drag, { x: event.clientX, y: event.clientY, moved: true });
        pan(x, y);
      }
      return;
    }
    const hit = itemAt(event);
    const item = hit && (!hit.box.open || hit.header) ? hit.box.item : null;
    canvas.style.cursor = item === null ? "grab" : "pointer";
    if (item !== picture.hovered) {
      picture.hovered = item;
      canvas.title = item === null ? "" : item < graph.size ? nodeTitle(graph, item) : groupText(hit.box.group);
      repaint();
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const { moved } = drag ?? { moved: true };
    drag = null;
    if (moved) return;
    const hit = itemAt(event);
    if (hit?.arrow) toggle(hit.box.group);
    else if (!hit || (hit.box.open && !hit.header)) app.select(null);
    else app.select(hit.box.item);
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => {
    picture.hovered = null;
    repaint();
  });
  canvas.addEventListener("dblclick", (event) => {
    const hit = itemAt(event);
    if (hit?.box.group && !hit.arrow && (!hit.box.open || hit.header)) toggle(hit.box.group);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey) pan(event.deltaY || event.deltaX, 0);
    else zoom(Math.exp(-Math.max(-240, Math.min(240, event.deltaY)) / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  const step = (by) => {
    const order = (picture.selected ?? (by > 0 ? -1 : graph.size)) + by;
    if (order >= 0 && order < graph.size) app.select(order, { reveal: true });
  };
  const keys = {
    ArrowLeft: () => pan(-80, 0), ArrowRight: () => pan(80, 0),
    ArrowUp: () => pan(0, -80), ArrowDown: () => pan(0, 80),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
    f: () => fit(), n: () => step(1), p: () => step(-1),
    Enter: () => {
      if (picture.selected >= graph.size) toggle(nesting.groups[picture.selected - graph.size]);
    },
    Escape: () => app.select(null),
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });

  // --- the whole view ---

  const modes = [["family", "operator"], ["bytes", "size"]];
  if (graph.seconds) modes.push(["time", "time"]);
  for (const one of graph.differences) modes.push([`difference${one.index}`, `difference ${one.index + 1}`]);
  const colors = element("select", { onchange: (event) => setColor(event.target.value) },
    modes.map(([value, label]) => element("option", { value, selected: value === state.color }, label)));
  const legend = element("div", { class: "legend" });
  const button = (label, title, onclick) => element("button", { title, onclick }, label);
  const toolbar = element("div", { class: "toolbar" },
    search.element,
    element("label", {}, "Color by ", colors),
    element("span", { class: "group" },
      button("Open a level", "Open the outermost closed modules", openOneLevel),
      button("Open all", "Open every module", () => openAll(() => true)),
      button("Close all", "Close every module", () => openAll(() => false)),
      button("Fit", "Show the whole graph (F)", () => fit()),
    ));
  const view = element("div", { class: "graph-view" }, toolbar, element("div", { class: "stage" }, canvas), legend);
  const observer = new ResizeObserver(resize);
  observer.observe(canvas);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const recolor = () => {
    theme = readTheme();
    repaint();
  };
  scheme.addEventListener("change", recolor);
  layOut();
  setColor(modes.some(([value]) => value === state.color) ? state.color : "family");
  search.run();

  return {
    element: view,
    select(item, options = {}) {
      picture.selected = item;
      if (item !== null && options.reveal) reveal(item);
      repaint();
    },
    toggle,
    isOpen: (group) => state.open.has(group),
    focusSearch: search.focus,
    close() {
      observer.disconnect();
      scheme.removeEventListener("change", recolor);
    },
  };
}

