// What nodes and modules are colored by.

// Okabe and Ito's colors, which people with any color vision can tell apart, and greys.
const FAMILY_COLORS = {
  input: "#7d8ca3", constant: "#a58b5f", "matrix product": "#d55e00", attention: "#cc79a7",
  normalization: "#009e73", reduction: "#0072b2", pointwise: "#56b4e9", view: "#b4bcc8",
  "copy or index": "#e69f00", random: "#e3d32c", communication: "#7b4ea8", "control flow": "#5b3a29",
  module: "#6d8b3c", other: "#8a8f98", output: "#56657c",
};
const STANDING_COLORS = {
  added: "#0072b2", removed: "#d55e00", changed: "#e69f00", rewired: "#009e73",
  inherited: "#a58b5f", moved: "#cc79a7", same: "#b4bcc8",
};
// From little to much, light to dark: the colors of "cividis" turned around.
const HEAT = ["#fde737", "#d2bf55", "#a69d75", "#7d7c78", "#575d6d", "#2d426e", "#00224e"];
const UNKNOWN = "#d7dbe0";

function familyColor(family) {
  return FAMILY_COLORS[family] ?? FAMILY_COLORS.other;
}

function heatColor(share) {
  return HEAT[Math.max(0, Math.min(HEAT.length - 1, Math.round(share * (HEAT.length - 1))))];
}

// A way to color: colorOf a node; heat of a group, or null; the shares of colors in a group.
function coloring(graph, nesting, mode) {
  const colorOf = nodeColors(graph, mode);
  const heat = mode === "bytes" || mode === "time" ? groupHeat(nesting, mode) : null;
  const known = new Map();
  const order = page.families.map(familyColor);
  const sharesOf = (group) => {
    if (!known.has(group)) {
      const counts = new Map();
      for (const node of nodesOf(group)) {
        const color = colorOf(node);
        counts.set(color, (counts.get(color) ?? 0) + 1 / group.count);
      }
      known.set(group, [...counts].sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0])));
    }
    return known.get(group);
  };
  return { colorOf, heat, sharesOf };
}

function nodeColors(graph, mode) {
  if (mode === "family") return (node) => familyColor(graph.families[node]);
  if (mode.startsWith("difference")) {
    const difference = page.differences[Number(mode.slice("difference".length))];
    return (node) => STANDING_COLORS[standing(difference, graph, node)];
  }
  const values = mode === "time" ? graph.seconds : graph.nbytes;
  const most = maximum(values, (one) => one);
  return (node) => warmth(values[node], most, mode);
}

function groupHeat(nesting, mode) {
  const total = mode === "time" ? (group) => group.seconds : (group) => group.nbytes;
  const most = maximum(nesting.groups.filter((one) => one.parent), total);
  return (group) => warmth(total(group), most, mode);
}

// Sizes span many magnitudes, so they are colored by their logarithm; times add up, so they are not.
function warmth(value, most, mode) {
  if (value === null || value === undefined) return UNKNOWN;
  if (most <= 0) return heatColor(0);
  return heatColor(mode === "time" ? value / most : Math.log1p(value) / Math.log1p(most));
}

function maximum(all, value) {
  let most = 0;
  for (const one of all) most = Math.max(most, value(one) ?? 0);
  return most;
}

function legendOf(graph, mode, onSearch) {
  if (mode === "family") {
    const counts = familyCounts(graph);
    return page.families.filter((one) => counts.has(one)).map((family) =>
      element("button", { class: "key", title: "Show only these", onclick: () => onSearch(`family:${family}`) },
        element("i", { style: { background: familyColor(family) } }),
        `${family} `, element("small", {}, count(counts.get(family)))));
  }
  if (mode.startsWith("difference")) {
    return Object.entries(STANDING_COLORS).map(([label, color]) =>
      element("span", { class: "key" }, element("i", { style: { background: color } }), label));
  }
  const values = mode === "time" ? graph.seconds : graph.nbytes;
  const most = maximum(values, (one) => one);
  const show = mode === "time" ? duration : bytes;
  return [
    element("span", { class: "key" }, show(0)),
    element("span", { class: "heat", style: { background: `linear-gradient(to right, ${HEAT.join(", ")})` } }),
    element("span", { class: "key" }, show(most)),
    element("span", { class: "key" }, element("i", { style: { background: UNKNOWN } }), "not known"),
  ];
}
