// Two graphs side by side, in the order of the new one; what is gone stands where it was.

const AROUND = 3; // unchanged rows that are shown before and after others
const SIGNS = { added: "+", removed: "−", changed: "~", rewired: "⤳", inherited: "≈", moved: "↕", same: "" };

function differenceView(difference, app) {
  const rows = differenceRows(difference);
  const counts = new Map();
  for (const row of rows) counts.set(row.what, (counts.get(row.what) ?? 0) + 1);
  const shown = new Set(Object.keys(SIGNS).filter((one) => one !== "same"));
  const holder = element("div", { class: "scroll" });
  const cell = (graph, node) => node === undefined
    ? element("td", { class: "absent" })
    : element("td", {}, nodeEntry(graph, node, app), " ", element("small", {}, short(nodeSummary(graph, node), 70)));
  const row = (one) => {
    if (one.skipped) {
      const open = () => made.replaceWith(...one.skipped.map(row));
      const made = element("tr", { class: "skipped" }, element("td", { colspan: 5 },
        element("button", { class: "link", onclick: open }, `… ${plural(one.skipped.length, "unchanged node")}`)));
      return made;
    }
    const reasons = differenceTexts(difference, one.old);
    return element("tr", { class: one.what },
      element("td", { class: "sign", title: one.what }, SIGNS[one.what]),
      cell(difference.old, one.old), cell(difference.new, one.new),
      element("td", {}, reasons.map((text) => element("div", { class: "reason" }, short(text, 300))),
        reasons.length || one.what === "same" ? null : one.what));
  };
  const refresh = () => {
    const folded = foldSame(rows, (one) => shown.has(one.what));
    const head = ["", `old: ${short(difference.old.name, 50)}`, `new: ${short(difference.new.name, 50)}`, "what differs"];
    replaceChildren(holder, difference.notes.map((one) => element("p", {}, short(one, 400))),
      rows.every((one) => one.what === "same") && !difference.notes.length
      ? element("p", { class: "empty" }, "The two graphs are the same.")
      : null, longTable(head.map((one) => element("th", { scope: "col" }, one)), folded, row));
  };
  const switches = [...shown].map((what) => element("label", { class: `switch ${what}` },
    element("input", { type: "checkbox", checked: true, onchange: (event) => {
      if (event.target.checked) shown.add(what);
      else shown.delete(what);
      refresh();
    } }), ` ${what} ${count(counts.get(what) ?? 0)}`));
  refresh();
  return {
    element: element("div", { class: "difference-view" },
      element("header", { class: "tabs" }, element("h2", {}, `Difference ${difference.index + 1}: `,
        named(difference.old.name, 50), " → ", named(difference.new.name, 50))),
      element("div", { class: "toolbar" }, element("span", { class: "group" }, switches),
        element("span", { class: "found" }, `${plural(counts.get("same") ?? 0, "node")} unchanged`)), holder),
    select() {},
    close() {},
  };
}

// Pairs and added nodes in the new graph's order; removed ones after what they came after.
function differenceRows(difference) {
  const after = new Map(); // an old node that stayed, or -1 -> those removed after it
  let last = -1;
  for (let old = 0; old < difference.old.size; old += 1) {
    if (difference.removed.has(old)) {
      if (!after.has(last)) after.set(last, []);
      after.get(last).push(old);
    } else if (difference.toNew.has(old)) last = old;
  }
  const removed = (old) => (after.get(old) ?? []).map((one) => ({ what: "removed", old: one }));
  const rows = removed(-1);
  for (let node = 0; node < difference.new.size; node += 1) {
    const old = difference.toOld.get(node);
    if (old !== undefined || difference.added.has(node)) {
      rows.push({ what: standing(difference, difference.new, node), old, new: node });
    }
    if (old !== undefined) rows.push(...removed(old));
  }
  return rows;
}

// Long runs of rows that are not asked for become one.
function foldSame(rows, asked) {
  const folded = [];
  let run = [];
  const flush = (atStart, atEnd) => {
    const head = atStart ? 0 : AROUND;
    const tail = atEnd ? 0 : AROUND;
    if (run.length <= head + tail + 1) folded.push(...run);
    else {
      folded.push(...run.slice(0, head), { skipped: run.slice(head, run.length - tail) });
      if (tail) folded.push(...run.slice(-tail));
    }
    run = [];
  };
  for (const row of rows) {
    if (!asked(row)) run.push(row);
    else {
      flush(!folded.length, false);
      folded.push(row);
    }
  }
  flush(!folded.length, true);
  return folded;
}
