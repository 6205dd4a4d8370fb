// Memory over the nodes of a graph, and what is in it at a step.

const LARGEST = 30;

function memoryView(graph, app) {
  if (!graph.memory) {
    const text = "No node of this graph says what tensors there are, so its memory is not known.";
    return { element: element("p", { class: "empty" }, text), select() {}, close() {} };
  }
  const { live } = graph.memory;
  const peak = graph.peak;
  let step = peak;
  let pinned = false;
  const canvas = element("canvas", { tabindex: 0, role: "img", "aria-label": `Bytes in use at each of ${count(graph.size)} steps; the peak is ${bytes(live[peak])} at step ${count(peak)}, node ${visible(graph.names[peak])}` });
  const context = canvas.getContext("2d");
  const table = element("div", {});
  const caption = element("h3", { "aria-live": "polite" });
  const area = { left: 64, right: 28, top: 26, bottom: 30 };
  let shownStep = -1;

  const x = (at) => area.left + ((canvas.clientWidth - area.left - area.right) * (at + 0.5)) / graph.size;
  const top = Math.max(1, live[peak]) * 1.06;
  const y = (value) => canvas.clientHeight - area.bottom - ((canvas.clientHeight - area.top - area.bottom) * value) / top;

  function paint() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const theme = readTheme();
    context.scale(ratio, ratio);
    context.font = `12px ${theme.font}`;
    context.textBaseline = "middle";
    paintAxes(context, theme, width, height);
    // a step a node, or the most of all steps that share a pixel
    const perPixel = Math.max(1, Math.floor(graph.size / (width - area.left - area.right)));
    context.beginPath();
    context.moveTo(x(-0.5), y(0));
    for (let at = 0; at < graph.size; at += perPixel) {
      const until = Math.min(graph.size, at + perPixel);
      let value = 0;
      for (let i = at; i < until; i += 1) value = Math.max(value, live[i]);
      context.lineTo(x(at - 0.5), y(value));
      context.lineTo(x(until - 0.5), y(value));
    }
    context.lineTo(x(graph.size - 0.5), y(0));
    context.fillStyle = theme.accent;
    context.globalAlpha = 0.22;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = theme.accent;
    context.lineWidth = 1.5;
    context.stroke();
    paintStep(context, peak, theme.found, `peak ${bytes(live[peak])}`, width, theme);
    if (step !== peak) paintStep(context, step, theme.text, bytes(live[step]), width, theme);
  }

  function paintAxes(context, theme, width, height) {
    context.strokeStyle = theme.line;
    context.fillStyle = theme.muted;
    context.lineWidth = 1;
    context.textAlign = "right";
    for (const value of ticks(top)) {
      context.beginPath();
      context.moveTo(area.left, y(value));
      context.lineTo(width - area.right, y(value));
      context.stroke();
      context.fillText(bytes(value), area.left - 8, y(value));
    }
    context.textAlign = "center";
    for (const at of ticks(graph.size)) {
      if (at < graph.size) context.fillText(count(at), x(at), height - area.bottom + 14);
    }
    context.textAlign = "left";
    context.fillText("bytes in use while each node runs", area.left, 10);
  }

  function paintStep(context, at, color, label, width, theme) {
    context.strokeStyle = color;
    context.lineWidth = 1.5;
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(x(at), y(0));
    context.lineTo(x(at), area.top - 6);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = color;
    context.beginPath();
    context.arc(x(at), y(live[at]), 4, 0, 7);
    context.fill();
    const right = x(at) > width - 130;
    context.textAlign = right ? "right" : "left";
    context.fillStyle = theme.text;
    context.fillText(label, x(at) + (right ? -8 : 8), at === peak ? area.top - 4 : area.top + 12);
  }

  function show(at) {
    step = Math.max(0, Math.min(graph.size - 1, at));
    paint();
    if (step === shownStep) return;
    shownStep = step;
    const node = nodeLink(graph, step, app);
    replaceChildren(caption, `${bytes(live[step])} in use at step ${count(step)}, `, node,
      step === peak ? " (the peak)" : "", pinned ? " · pinned" : "");
    const pieces = largestPieces(graph, step);
    const makers = makersOf(graph);
    const head = ["memory", "share", "made by", "dtype", "shape", "steps", "from"].map((one) => element("th", { scope: "col" }, one));
    replaceChildren(table, longTable(head, pieces.slice(0, LARGEST), (piece) => {
      const maker = makers[piece];
      const line = userLine(graph.lines[maker]);
      const share = live[step] ? graph.memory.sizes[piece] / live[step] : 0;
      return element("tr", {},
        element("td", { class: "number" }, bytes(graph.memory.sizes[piece])),
        element("td", {}, element("span", { class: "share", title: `${(100 * share).toFixed(1)} %` }, element("i", { style: { width: `${100 * share}%` } }))),
        element("td", {}, nodeEntry(graph, maker, app)),
        element("td", {}, named(graph.dtypes[maker], 30)),
        element("td", {}, named(graph.shapes[maker], 60)),
        element("td", { class: "steps" }, `${count(graph.memory.first[piece])} – ${count(graph.memory.last[piece])}`),
        element("td", { class: "from" }, line ? userLineElement(line, 34) : null));
    }), pieces.length > LARGEST ? element("p", { class: "more" }, `and ${count(pieces.length - LARGEST)} smaller`) : null);
  }

  const stepAt = (event) => Math.floor(((event.offsetX - area.left) / (canvas.clientWidth - area.left - area.right)) * graph.size);
  canvas.addEventListener("pointermove", (event) => {
    if (!pinned) show(stepAt(event));
  });
  canvas.addEventListener("click", (event) => {
    pinned = !pinned;
    shownStep = -1;
    show(stepAt(event));
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(step + by);
  });
  const observer = new ResizeObserver(paint);
  observer.observe(canvas);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", paint);
  show(peak);
  const note = graph.phase === "backward"
    ? "Counted is what the forward saved, from the start and until its last use, and what the graph makes; not the parameters."
    : "Counted is what the graph makes; its inputs are the caller's.";
  return {
    element: element("div", { class: "memory-view scroll" },
      element("div", { class: "chart" }, canvas),
      element("p", { class: "note" }, `${note} A simulation: each node runs by itself, kernels take no memory of their own. Click pins a step; arrow keys move.`),
      element("p", {}, element("button", { onclick: () => { pinned = true; shownStep = -1; show(peak); } }, "Go to the peak")),
      caption, table),
    select(node, options = {}) {
      if (node === null || node >= graph.size || !options.reveal) return;
      pinned = true;
      shownStep = -1;
      show(node);
    },
    close() {
      observer.disconnect();
      scheme.removeEventListener("change", paint);
    },
  };
}

// What is in memory while a node runs, the largest first.
function largestPieces(graph, step) {
  const { sizes, first, last, counted } = graph.memory;
  const found = [];
  for (let piece = 0; piece < sizes.length; piece += 1) {
    if (counted[piece] && first[piece] <= step && step <= last[piece] && sizes[piece] > 0) found.push(piece);
  }
  return found.sort((a, b) => sizes[b] - sizes[a] || a - b);
}

// Round numbers from 0 to below the top, five or so.
function ticks(most) {
  const rough = most / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let value = 0; value < most && found.length < 12; value += Math.max(1, step)) found.push(value);
  return found;
}
