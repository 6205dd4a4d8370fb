// The picture of a graph on a canvas. Only what is in sight is painted, and less of it from afar.

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const theme = {};
  for (const name of ["surface", "page", "text", "muted", "line", "edge", "accent", "found"]) {
    theme[name] = style.getPropertyValue(`--${name}`).trim();
  }
  theme.font = style.getPropertyValue("--sans").trim();
  return theme;
}

// Scales at which less is painted.
const WITH_TEXT = 0.42;
const WITH_SHAPES = 0.14;
const WITH_CURVES = 0.2;
const SPECK = 4; // pixels that are too few to show a line or a frame

// picture: { layout, colorOf, labelOf, found, selected, hovered, dimmed }; camera: { x, y, scale }
function paintPicture(canvas, context, picture, camera, theme, ratio) {
  const { layout } = picture;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = theme.page;
  context.fillRect(0, 0, canvas.width / ratio, canvas.height / ratio);
  context.setTransform(ratio * camera.scale, 0, 0, ratio * camera.scale, -camera.x * camera.scale * ratio, -camera.y * camera.scale * ratio);
  const sight = {
    left: camera.x, top: camera.y,
    right: camera.x + canvas.width / ratio / camera.scale,
    bottom: camera.y + canvas.height / ratio / camera.scale,
  };
  paintFrames(context, layout.groups.filter((one) => inSight(one, sight)), picture, camera.scale, theme);
  paintNets(context, layout.nets, sight, camera.scale, theme);
  paintTitles(context, layout.groups.filter((one) => inSight(one, sight)), camera.scale, theme);
  const items = layout.items.filter((one) => inSight(one, sight));
  if (camera.scale < WITH_SHAPES) paintFar(context, items, picture, camera.scale);
  else for (const box of items) paintItem(context, box, picture, camera.scale, theme);
  paintMarks(context, picture, sight, camera.scale, theme);
}

function inSight(box, sight) {
  return box.x < sight.right && box.x + box.w > sight.left && box.y < sight.bottom && box.y + box.h > sight.top;
}

function paintFrames(context, frames, picture, scale, theme) {
  for (const frame of frames) {
    if (!frame.group.parent || frame.w * scale < SPECK) continue;
    context.fillStyle = frame.group.depth % 2 ? theme.surface : theme.page;
    context.strokeStyle = theme.line;
    context.lineWidth = Math.max(1, 0.6 / scale);
    context.beginPath();
    context.roundRect(frame.x, frame.y, frame.w, frame.h, 10);
    context.fill();
    context.stroke();
  }
}

// Above the lines, so that they can be read.
function paintTitles(context, frames, scale, theme) {
  if (scale < WITH_SHAPES) return;
  for (const frame of frames) {
    if (!frame.group.parent) continue;
    const size = Math.min(22, Math.max(12, 10 / scale));
    context.font = `600 ${size}px ${theme.font}`;
    context.textAlign = "left";
    context.textBaseline = "middle";
    const label = frame.group.kind ? `${frame.group.label}  ${frame.group.kind}` : frame.group.label;
    const most = Math.floor((frame.w - 40) / (size * 0.58));
    if (most < 3) continue;
    const text = `▾ ${short(label, most)}`;
    const { width } = context.measureText(text);
    context.fillStyle = frame.group.depth % 2 ? theme.surface : theme.page;
    context.fillRect(frame.x + 6, frame.y + 3, width + 8, size + 8);
    context.fillStyle = theme.muted;
    context.fillText(text, frame.x + 10, frame.y + 15);
  }
}

// --- lines -------------------------------------------------------------------------------------

function paintNets(context, nets, sight, scale, theme) {
  context.strokeStyle = theme.edge;
  context.lineWidth = Math.max(1.2, 0.5 / scale);
  context.setLineDash([]);
  context.beginPath();
  // from far, what is a speck is left out, and lines that fall on the same few pixels are one
  const least = scale < WITH_SHAPES ? SPECK / scale : 0;
  const taken = new Set();
  for (const net of nets) {
    if (net.left > sight.right || net.right < sight.left || net.top > sight.bottom || net.bottom < sight.top) continue;
    if (least) {
      if (net.right - net.left < least && net.bottom - net.top < least) continue;
      const key = [net.left, net.top, net.right, net.bottom].map((one) => Math.round(one / least)).join();
      if (taken.has(key)) continue;
      taken.add(key);
    }
    traceNet(context, net, scale);
  }
  context.stroke();
  if (scale < WITH_TEXT) return;
  context.fillStyle = theme.edge;
  context.beginPath();
  for (const net of nets) {
    if (net.left > sight.right || net.right < sight.left || net.top > sight.bottom || net.bottom < sight.top) continue;
    for (const branch of net.branches) if (branch.ends && !branch.up) traceTip(context, branch.x, branch.y);
  }
  context.fill();
}

function traceNet(context, net, scale, only = null) {
  const { points } = net;
  const until = only ? only.reduce((most, branch) => Math.max(most, branch.from), 0) : points.length / 2 - 1;
  context.moveTo(points[0], points[1]);
  for (let i = 1; i <= until; i += 1) {
    // from the end of one lane to the beginning of the next; then down the lane
    if (i % 2) traceLink(context, points[2 * i - 2], points[2 * i - 1], points[2 * i], points[2 * i + 1], scale);
    else context.lineTo(points[2 * i], points[2 * i + 1]);
  }
  for (const branch of only ?? net.branches) {
    const x = points[2 * branch.from];
    const y = points[2 * branch.from + 1];
    context.moveTo(x, y);
    if (branch.up && scale >= WITH_CURVES) {
      const side = Math.max(60, Math.abs(branch.x - x) / 2);
      context.bezierCurveTo(x - side, y + 60, branch.x - side, branch.y - 60, branch.x, branch.y);
    } else traceLink(context, x, y, branch.x, branch.y, scale);
  }
}

function traceLink(context, x1, y1, x2, y2, scale) {
  if (scale < WITH_CURVES || Math.abs(x1 - x2) < 1) {
    context.lineTo(x2, y2);
    return;
  }
  const bend = Math.min(60, Math.abs(y2 - y1) / 2);
  context.bezierCurveTo(x1, y1 + bend, x2, y2 - bend, x2, y2);
}

function traceTip(context, x, y) {
  context.moveTo(x, y);
  context.lineTo(x - 4, y - 8);
  context.lineTo(x + 4, y - 8);
}

// --- items -------------------------------------------------------------------------------------

// Rectangles, all of one color at once, and none that would fall on a pixel that is taken.
function paintFar(context, items, picture, scale) {
  const byColor = new Map();
  const least = 1.5 / scale;
  const cell = 1 / scale;
  const taken = new Set();
  for (const box of items) {
    const key = Math.floor(box.x / cell) * 100003 + Math.floor(box.y / cell);
    if (taken.has(key)) continue;
    taken.add(key);
    const color = box.group ? groupColor(box.group, picture) : picture.colorOf(box.item);
    if (!byColor.has(color)) byColor.set(color, []);
    byColor.get(color).push(box);
  }
  for (const [color, boxes] of byColor) {
    context.fillStyle = color;
    context.beginPath();
    for (const box of boxes) context.rect(box.x, box.y, Math.max(box.w, least), Math.max(box.h, least));
    context.fill();
  }
}

function paintItem(context, box, picture, scale, theme) {
  if (box.group) paintClosedGroup(context, box, picture, scale, theme);
  else paintNode(context, box, picture, scale, theme);
}

function paintNode(context, box, picture, scale, theme) {
  const color = picture.colorOf(box.item);
  context.globalAlpha = picture.dimmed(box.item) ? 0.25 : 1;
  context.fillStyle = scale < WITH_TEXT ? color : theme.surface;
  context.strokeStyle = scale < WITH_TEXT ? theme.line : color;
  context.lineWidth = 1.4;
  context.beginPath();
  context.roundRect(box.x, box.y, box.w, box.h, 7);
  context.fill();
  context.stroke();
  if (scale >= WITH_TEXT) {
    context.fillStyle = color;
    context.beginPath();
    context.roundRect(box.x, box.y, 8, box.h, [7, 0, 0, 7]);
    context.fill();
    const label = picture.labelOf(box.item);
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    context.fillStyle = theme.text;
    context.font = `600 13px ${theme.font}`;
    context.fillText(label.name, box.x + 16, box.y + 18, box.w - 22);
    context.fillStyle = theme.muted;
    context.font = `11px ${theme.font}`;
    context.fillText(label.what, box.x + 16, box.y + 33, box.w - 22);
    if (picture.isMarked(box.item)) paintReturned(context, box, theme);
  }
  context.globalAlpha = 1;
}

// A result of the graph: an arrow out of the lower right corner.
function paintReturned(context, box, theme) {
  const [x, y] = [box.x + box.w - 12, box.y + box.h];
  context.fillStyle = theme.text;
  context.beginPath();
  context.moveTo(x - 6, y - 4);
  context.lineTo(x + 6, y - 4);
  context.lineTo(x, y + 5);
  context.fill();
}

function paintClosedGroup(context, box, picture, scale, theme) {
  const { group } = box;
  context.fillStyle = theme.surface;
  context.strokeStyle = theme.muted;
  context.lineWidth = 1.6;
  for (const shift of [4, 0]) { // two sheets: there is more below
    context.beginPath();
    context.roundRect(box.x + shift, box.y + shift, box.w - 4, box.h - 4, 9);
    context.fill();
    context.stroke();
  }
  paintComposition(context, box, picture);
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillStyle = theme.text;
  if (scale < WITH_TEXT * 0.8) {
    const size = Math.min(28, 10 / scale); // from afar a name is all there is room for
    context.font = `700 ${size}px ${theme.font}`;
    context.fillText(group.label, box.x + 12, box.y + 22 + size / 3, box.w - 28);
    return;
  }
  context.font = `700 14px ${theme.font}`;
  context.fillText(`▸ ${group.label}`, box.x + 12, box.y + 20, box.w - 28);
  context.fillStyle = theme.muted;
  context.font = `11.5px ${theme.font}`;
  context.fillText(picture.groupText(group), box.x + 12, box.y + 37, box.w - 28);
}

// How the nodes inside are colored, as a bar.
function paintComposition(context, box, picture) {
  const left = box.x + 12;
  const width = box.w - 28;
  const y = box.y + box.h - 17;
  if (picture.heat) {
    context.fillStyle = groupColor(box.group, picture);
    context.fillRect(left, y, width, 7);
    return;
  }
  let x = left;
  for (const [color, share] of picture.sharesOf(box.group)) {
    context.fillStyle = color;
    context.fillRect(x, y, share * width + 0.3, 7);
    x += share * width;
  }
}

// One color for a group: that of its heat, or of what it has most of.
function groupColor(group, picture) {
  if (picture.heat) return picture.heat(group);
  let best = [UNKNOWN, 0];
  for (const one of picture.sharesOf(group)) if (one[1] > best[1]) best = one;
  return best[0];
}

// --- what is selected and found ----------------------------------------------------------------

function paintMarks(context, picture, sight, scale, theme) {
  const thick = Math.max(2.5, 2 / scale);
  for (const item of picture.found) {
    const box = picture.layout.byItem.get(item);
    if (box && inSight(box, sight)) outline(context, box, theme.found, thick, Math.max(3, 2 / scale));
  }
  const chosen = picture.selected ?? null;
  for (const item of new Set([picture.hovered, chosen])) {
    if (item === null || item === undefined) continue;
    paintNeighborhood(context, picture, item, scale, theme, item === chosen);
    const box = picture.layout.byItem.get(item);
    if (box) outline(context, box, theme.accent, item === chosen ? thick * 1.3 : thick, 2);
  }
}

function outline(context, box, color, thick, around) {
  context.strokeStyle = color;
  context.lineWidth = thick;
  context.beginPath();
  context.roundRect(box.x - around, box.y - around, box.w + 2 * around, box.h + 2 * around, 9);
  context.stroke();
}

// The lines to and from an item: what it reads dashed, what reads it solid.
function paintNeighborhood(context, picture, item, scale, theme, strong) {
  context.strokeStyle = theme.accent;
  context.globalAlpha = strong ? 1 : 0.55;
  context.lineWidth = Math.max(2, 1.4 / scale);
  context.beginPath();
  for (const net of picture.layout.nets) if (net.source === item) traceNet(context, net, scale);
  context.stroke();
  context.setLineDash([8, 5]);
  context.beginPath();
  for (const { net, branches } of picture.pathsTo(item)) traceNet(context, net, scale, branches);
  context.stroke();
  context.setLineDash([]);
  context.globalAlpha = 1;
}
