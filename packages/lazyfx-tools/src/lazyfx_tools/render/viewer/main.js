// Which view is on the page, what is selected in it, and the address that leads back to it.

const VIEWS = {
  graph: { title: "Graph", make: graphView },
  code: { title: "Code", make: codeView },
  tensors: { title: "Tensors", make: tensorsView },
  memory: { title: "Memory", make: memoryView },
};

const page = readPage();
const holder = document.getElementById("view");
const contents = document.getElementById("contents");
const panel = document.getElementById("details");

// What views are given to act on the page. Items are nodes, or modules (see layout.js).
const app = {
  graph: null, view: null, difference: null, selected: null, current: null,

  // Show a view of a graph; null stands for the view that is open.
  go(graph, view, item) {
    view ??= this.view in VIEWS ? this.view : "graph";
    if (graph !== this.graph || view !== this.view) {
      Object.assign(this, { graph, view, difference: null, selected: null });
      this.show(VIEWS[view].make(graph, this));
    }
    this.select(item, { reveal: true });
    holder.scrollTop = 0;
  },
  goDifference(difference) {
    Object.assign(this, { graph: null, view: null, difference, selected: null });
    this.show(differenceView(difference, this));
    this.select(null);
  },
  goOverview() {
    Object.assign(this, { graph: null, view: null, difference: null, selected: null });
    this.show(overviewView(this));
    this.select(null);
  },
  show(current) {
    this.current?.close();
    this.current = current;
    const tabs = this.graph ? tabList(this.graph, this.view) : null;
    replaceChildren(holder, tabs, current.element);
    listContents();
  },
  select(item, options = {}) {
    this.selected = item;
    showDetails(panel, this.graph, item, this);
    document.body.classList.toggle("with-details", item !== null);
    if (this.current) this.current.select(item, options);
    writeAddress();
  },
  toggle(group) {
    if (this.current.toggle) this.current.toggle(group);
    this.select(this.selected);
  },
  isOpen(group) {
    return this.current.isOpen ? this.current.isOpen(group) : false;
  },
};

function tabList(graph, view) {
  const tabs = Object.entries(VIEWS).map(([name, { title }]) =>
    element("button", {
      "aria-current": name === view ? "page" : null,
      onclick: () => app.go(graph, name, app.selected !== null && app.selected < graph.size ? app.selected : null),
    }, title));
  return element("header", { class: "tabs" }, element("h2", {}, named(graph.name, 60)), graph.phase ? phaseChip(graph.phase) : null, tabs);
}

function listContents() {
  const compilations = new Map();
  for (const graph of page.graphs) {
    const key = graph.compilation;
    if (!compilations.has(key)) compilations.set(key, []);
    compilations.get(key).push(graph);
  }
  const entry = (graph) => element("li", {}, element("button", {
    "aria-current": graph === app.graph ? "true" : null,
    onclick: () => app.go(graph, null, null),
  }, named(graph.name, 34), element("small", {}, count(graph.size))));
  const alone = !app.graph && !app.difference;
  replaceChildren(contents,
    element("button", { class: "home", "aria-current": alone ? "page" : null, onclick: () => app.goOverview() }, named(page.title, 60)),
    [...compilations].map(([number, graphs]) => [
      compilations.size > 1 || number !== null ? element("h3", {}, number === null ? "Graphs" : `Compilation ${number}`) : null,
      element("ul", {}, graphs.map(entry)),
    ]),
    page.differences.length ? [
      element("h3", {}, "Differences"),
      element("ul", {}, page.differences.map((one) => element("li", {}, element("button", {
        "aria-current": one === app.difference ? "true" : null, onclick: () => app.goDifference(one),
      }, named(`${short(one.old.name, 14)} → ${short(one.new.name, 14)}`, 40))))),
    ] : null);
}

// --- addresses: #graph/view/node, #~difference/0 ---------------------------------------------------

// A name, or its number where the name cannot stand in an address.
function reference(name, number) {
  try {
    const encoded = encodeURIComponent(name);
    return encoded && encoded.length < 300 && !encoded.startsWith("~") ? encoded : `~${number}`;
  } catch {
    return `~${number}`; // half of a surrogate pair
  }
}

function resolve(text, size, byName) {
  const number = /^~(\d+)$/.exec(text)?.[1];
  const found = number === undefined ? byName(text) : Number(number);
  return found !== undefined && found >= 0 && found < size ? found : null;
}

function writeAddress() {
  let address = "#";
  if (app.difference) address = `#~difference/${app.difference.index}`;
  else if (app.graph) {
    address = `#${reference(app.graph.name, app.graph.index)}/${app.view}`;
    if (app.selected !== null && app.selected < app.graph.size) {
      address += `/${reference(app.graph.names[app.selected], app.selected)}`;
    }
  }
  if (address === (location.hash || "#")) return;
  // a step back leads to the view before, not to the node before
  const [before, after] = [location.hash, address].map((one) => one.split("/").slice(0, 2).join("/"));
  try {
    history[before === after ? "replaceState" : "pushState"](null, "", address);
  } catch {
    // browsers refuse when it changes very often, as when a key is held; the next change is written
  }
}

function readAddress() {
  let parts;
  try {
    parts = location.hash.slice(1).split("/").map((part) => (part.startsWith("~") ? part : decodeURIComponent(part)));
  } catch {
    parts = [""];
  }
  const difference = parts[0] === "~difference" ? page.differences[Number(parts[1])] : undefined;
  if (difference) {
    app.goDifference(difference);
    return;
  }
  const index = resolve(parts[0], page.graphs.length, (name) => page.graphs.findIndex((one) => one.name === name));
  if (index === null) {
    app.goOverview();
    return;
  }
  const graph = page.graphs[index];
  // "#graph/view/node", and "#graph/node" for short
  const view = Object.hasOwn(VIEWS, parts[1] ?? "") ? parts[1] : "graph";
  const node = parts.length === 2 && view !== parts[1] ? parts[1] : parts[2];
  app.go(graph, view, node ? resolve(node, graph.size, (name) => graph.places.get(name)) : null);
}

window.addEventListener("hashchange", readAddress);
window.addEventListener("popstate", readAddress);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(?:INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && app.current?.focusSearch) {
    event.preventDefault();
    app.current.focusSearch();
  } else if (event.key === "Escape" && event.target === document.body) app.select(null);
});
readAddress();
