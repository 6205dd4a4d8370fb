// Where the canvas looks: the upper left corner in the picture's coordinates, and pixels for each.

const LEAST_SCALE = 0.0005;
const MOST_SCALE = 3;
const MARGIN = 24;

// Shows all of a picture, or its upper part where that would be smaller than is readable.
function cameraOn(layout, canvas, readable = 0) {
  const { w, h } = layout;
  const wide = (canvas.clientWidth - MARGIN) / w;
  const whole = Math.min(wide, (canvas.clientHeight - MARGIN) / h, 1.2);
  const fits = whole >= readable;
  const scale = Math.max(LEAST_SCALE, fits ? whole : Math.min(1, Math.max(wide, readable)));
  return {
    scale,
    x: (w - canvas.clientWidth / scale) / 2,
    y: fits ? (h - canvas.clientHeight / scale) / 2 : -MARGIN / scale / 2,
  };
}

// Around a place on the canvas, which stays where it is.
function zoomed(camera, factor, x, y) {
  const scale = Math.max(LEAST_SCALE, Math.min(MOST_SCALE, camera.scale * factor));
  return {
    scale,
    x: camera.x + x / camera.scale - x / scale,
    y: camera.y + y / camera.scale - y / scale,
  };
}

// A box in the middle, at a scale at which it can be read.
function cameraOnBox(camera, box, canvas) {
  const scale = Math.max(0.7, Math.min(1.2, camera.scale));
  return {
    scale,
    x: box.x + box.w / 2 - canvas.clientWidth / scale / 2,
    y: box.y + Math.min(box.h, 400) / 2 - canvas.clientHeight / scale / 2,
  };
}
