// Texts and numbers for people. Nothing here knows the page.

// Characters that would hide, reorder or break what is shown: controls, directional overrides,
// invisible characters, halves of surrogate pairs. They are shown by number instead.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function visible(text) {
  return text.replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// What is shown of a text that may be long; the whole of it may be a megabyte.
function short(text, most = 120) {
  if (text.length <= most) return visible(text);
  return `${visible(text.slice(0, most - 1))}…`;
}

// The end of a path says more than its beginning: the last parts of it that fit.
function shortPath(path, most = 40) {
  if (path.length <= most) return visible(path);
  const end = path.slice(path.length - most + 1);
  const cut = end.search(/[\\/]/);
  return visible(cut < 0 ? `…${end}` : end.slice(cut + 1));
}

function count(number) {
  return number.toLocaleString("en-US");
}

function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

function withUnit(number, units, base) {
  let unit = 0;
  while (unit < units.length - 1 && Math.abs(number) >= base) {
    number /= base;
    unit += 1;
  }
  const digits = unit === 0 && Number.isInteger(number) ? 0 : number >= 100 ? 0 : number >= 10 ? 1 : 2;
  return `${number.toFixed(digits)} ${units[unit]}`;
}

function bytes(number) {
  if (number === null || number === undefined) return "";
  return withUnit(number, ["B", "kB", "MB", "GB", "TB", "PB", "EB"], 1000);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds === 0) return "0 s";
  if (seconds >= 1) return withUnit(seconds, ["s"], Infinity);
  return withUnit(seconds * 1e9, ["ns", "µs", "ms"], 1000);
}

const SHORT_DTYPES = new Map(Object.entries({
  float64: "f64", float32: "f32", float16: "f16", bfloat16: "bf16", int64: "i64", int32: "i32",
  int16: "i16", int8: "i8", uint8: "u8", complex64: "c64", complex128: "c128",
}));

function shortDtype(dtype) {
  return SHORT_DTYPES.get(dtype) ?? dtype;
}

function shortTarget(target) {
  return target.replace(/^torch\.ops\./, "").replace(/\.default$/, "");
}

// "/a/b.py:12 in forward: return x" in its parts; null if it is another text.
function userLine(text) {
  const match = /^(.*?):(\d+) in (\S+?)(?:: ([^]*))?$/.exec(text);
  if (!match) return null;
  return { file: match[1], line: Number(match[2]), where: match[3], code: match[4] ?? "" };
}

// The frames of a Python stack trace, outermost first.
function stackFrames(trace) {
  const frames = [];
  for (const line of trace.split("\n")) {
    const match = /^\s*File "(.+)", line (\d+), in (.+)$/.exec(line);
    if (match) {
      frames.push({ file: match[1], line: Number(match[2]), where: match[3], code: "" });
    } else if (frames.length && !frames.at(-1).code && line.trim() && !/^[\s^~]+$/.test(line)) {
      frames.at(-1).code = line.trim();
    }
  }
  return frames;
}

// Where a line can be opened; null if there is no editor, or if the file is no absolute path.
function editorAddress(editor, file, line) {
  if (!editor || !/^(?:\/|[A-Za-z]:[\\/])[^\u0000-\u001f]*$/.test(file)) return null;
  try {
    const path = encodeURI(file.replaceAll("\\", "/")).replace(/[?#]/g, encodeURIComponent);
    const rooted = path.startsWith("/") ? path : `/${path}`; // one slash, not two
    return editor
      .replace("/{file}", () => rooted)
      .replace("{file}", () => path)
      .replace("{line}", () => String(line));
  } catch {
    return null; // half of a surrogate pair
  }
}
