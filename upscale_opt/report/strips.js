"use strict";
// The data of a segment, decoded when it is first opened, and how its reads are drawn.

/** "0-3,7" as [0, 1, 2, 3, 7]. */
function numbers(text) {
  const found = [];
  for (const part of text ? text.split(",") : []) {
    const [first, last = first] = part.split("-").map(Number);
    for (let n = first; n <= last; n++) found.push(n);
  }
  return found;
}

/** Ascending numbers as runs [first, behind the last]. */
function runs(sorted) {
  const found = [];
  for (const n of sorted) {
    const last = found[found.length - 1];
    if (last && last[1] === n) last[1]++;
    else found.push([n, n + 1]);
  }
  return found;
}

/** A segment with its columns and rows laid out in both orders. */
class Plan {
  constructor(data) {
    this.columns = [];
    this.after = []; // channel by place
    this.before = [];
    this.turned = []; // place before, by place after
    for (const column of data.columns) {
      const after = numbers(column.after);
      const before = column.before ? numbers(column.before) : [...after].sort((a, b) => a - b);
      const start = this.after.length;
      const place = new Map(before.map((channel, i) => [channel, start + i]));
      for (const channel of after) this.turned.push(place.get(channel));
      this.after.push(...after);
      this.before.push(...before);
      this.columns.push({ space: column.space, start, end: this.after.length });
    }
    this.rows = data.rows.map((row) => this.row(row));
  }

  row(row) {
    const at = numbers(row.at);
    const vain = numbers(row.vain);
    const turn = (places) => places.map((p) => this.turned[p]).sort((a, b) => a - b);
    const without = (all, some) => {
      const gone = new Set(some);
      return some.length ? all.filter((p) => !gone.has(p)) : all;
    };
    const wanted = without(at, vain);
    const before = turn(wanted);
    return {
      known: at.length > 0,
      has: { after: new Set(wanted), before: new Set(before) },
      after: { wanted: runs(wanted), vain: runs(vain), plan: row.plan },
      before: { wanted: runs(before), vain: [], plan: row.before ? "view" : "gather" },
    };
  }

  columnAt(place) {
    return this.columns.find((column) => place < column.end);
  }
}

/** Which places are shown, and where each of them lies on a strip. */
class Scale {
  constructor(plan, only, width) {
    this.columns = only === null ? plan.columns : plan.columns.filter((c) => c.space === only);
    const count = this.columns.reduce((sum, c) => sum + c.end - c.start, 0);
    const gaps = this.columns.length - 1;
    this.gap = gaps * 2 < width * 0.15 ? 2 : 0;
    this.unit = (width - gaps * this.gap) / Math.max(count, 1);
    let left = 0;
    this.left = this.columns.map((column) => {
      const here = left;
      left += (column.end - column.start) * this.unit + this.gap;
      return here;
    });
  }

  /** The stretches [x, width] of the places from `first` to before `end`. */
  stretches(first, end) {
    const found = [];
    this.columns.forEach((column, i) => {
      const low = Math.max(first, column.start);
      const high = Math.min(end, column.end);
      if (low < high) {
        found.push([this.left[i] + (low - column.start) * this.unit, (high - low) * this.unit]);
      }
    });
    return found;
  }

  place(x) {
    let i = this.columns.length - 1;
    while (i > 0 && x < this.left[i]) i--;
    const column = this.columns[i];
    const last = column.end - 1;
    return Math.min(Math.max(column.start + Math.floor((x - this.left[i]) / this.unit), column.start), last);
  }
}

let inks = null; // until the theme changes

function colours() {
  if (inks) return inks;
  const style = getComputedStyle(document.documentElement);
  const found = {};
  for (const name of ["view", "gather", "window", "track", "band", "muted", "ink"]) {
    found[name] = style.getPropertyValue(`--${name}`).trim();
  }
  inks = found;
  return found;
}

/** A canvas as sharp as the screen; null while it is hidden. */
function pen(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  if (!width) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

function drawStrip(canvas, plan, row, order, only) {
  const tool = pen(canvas);
  if (!tool) return;
  const { context, width, height } = tool;
  const scale = new Scale(plan, only, width);
  const colour = colours();
  context.fillStyle = colour.track;
  for (const column of scale.columns) {
    for (const [x, w] of scale.stretches(column.start, column.end)) context.fillRect(x, 0, w, height);
  }
  const { wanted, vain, plan: kind } = row[order];
  context.fillStyle = colour[kind];
  for (const [first, end] of wanted) {
    for (const [x, w] of scale.stretches(first, end)) {
      if (kind === "gather") {
        for (const y of [1, 0.4 * height, 0.8 * height - 1]) context.fillRect(x, y, w, 0.2 * height);
      } else {
        context.fillRect(x, 1, w, height - 2);
      }
    }
  }
  for (const [first, end] of vain) {
    for (const [x, w] of scale.stretches(first, end)) {
      context.fillRect(x, 1, w, 2);
      context.fillRect(x, height - 3, w, 2);
    }
  }
}

/** The names of spaces over the strips. */
function drawHead(canvas, plan, only, facts) {
  const tool = pen(canvas);
  if (!tool) return;
  const { context, width, height } = tool;
  const scale = new Scale(plan, only, width);
  const colour = colours();
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  scale.columns.forEach((column, i) => {
    const arena = facts.arenas.includes(column.space);
    for (const [x, w] of scale.stretches(column.start, column.end)) {
      context.fillStyle = i % 2 ? colour.track : colour.band;
      context.fillRect(x, 0, w, height);
      context.fillStyle = colour.muted;
      if (arena) for (const y of [0, 3]) context.fillRect(x, y, w, 1);
      const long = `${arena ? "arena" : "space"} ${column.space}${column.space in facts.fixed ? ", fixed" : ""}`;
      const text = [long, String(column.space)].find((t) => context.measureText(t).width + 6 < w);
      context.fillStyle = colour.ink;
      if (text) context.fillText(text, x + 3, height / 2 + 1);
    }
  });
}
