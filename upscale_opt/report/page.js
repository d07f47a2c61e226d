"use strict";
// The page: the list of segments, search, the network at a glance, and the theme.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const field = (id) => document.getElementById(id);
const narrow = window.matchMedia("(max-width: 760px)");

const entries = data.segments.map((segment, number) => {
  const total = (plan) => segment.rows.reduce((sum, row) => sum + (row.plan === plan ? row.count : 0), 0);
  const sums = { view: total("view"), window: total("window"), gather: total("gather") };
  return { segment, number, sums, all: sums.view + sums.window + sums.gather, view: null, ...summaryOf(segment, sums) };
});

function title(segment) {
  const { tensors } = segment;
  return tensors.length > 1 ? `${tensors[0]} … ${tensors[tensors.length - 1]}` : tensors[0];
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function summaryOf(segment, sums) {
  const bar = svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  const all = Math.max(sums.view + sums.window + sums.gather, 1);
  let left = 0;
  for (const kind of ["view", "window", "gather"]) {
    const width = (100 * sums[kind]) / all;
    if (kind === "gather") {
      for (const y of [0, 4, 8]) bar.append(svg("rect", { class: kind, x: left, y, width, height: 2 }));
    } else bar.append(svg("rect", { class: kind, x: left, y: 0, width, height: 10 }));
    left += width;
  }
  const { channels } = segment;
  const facts = [many(segment.rows.length, "read")];
  if (channels) facts.unshift(many(segment.columns.length, "space"), many(channels, "channel"));
  const copies = sums.gather ? `${count(sums.gather)} copied` : "no copies";
  const heading = make("summary", {},
    make("h3", { class: "title" }, ...breakable(title(segment))), make("span", { class: "facts" }, facts.join(" · ")),
    bar, make("span", { class: sums.gather ? "copies some" : "copies" }, copies));
  const element = make("details", { class: "segment" }, heading, make("div", { class: "body" }));
  const spaces = segment.columns.map((column) => `space ${column.space}`);
  return { element, words: [...segment.tensors, ...spaces].join("\n").toLowerCase() };
}

function open(entry) {
  if (entry.view === null) {
    entry.view = new SegmentView(entry.segment, data, entry.element.querySelector(".body"));
    entry.view.filter(wanted(entry));
  }
  requestAnimationFrame(() => entry.view.redraw());
}

// Search, filter, sort.

const words = () => field("search").value.trim().toLowerCase();

/** Which reads of a segment are shown: all of them, if the search names the segment itself. */
function wanted(entry) {
  const plan = field("plan").value;
  const query = words();
  const whole = named(entry, query);
  return (row) => (!plan || row.plan === plan) && (whole || row.name.toLowerCase().includes(query));
}

/** Whether the search names the segment: a space by its whole number, a tensor by any part. */
function named(entry, query) {
  if (/^space \d+$/.test(query)) return entry.words.split("\n").includes(query);
  return entry.words.includes(query);
}

function update() {
  const asked = words() !== "" || field("plan").value !== "";
  let reads = 0;
  const found = entries.filter((entry) => {
    const test = wanted(entry);
    const rows = entry.segment.rows.filter(test).length;
    reads += rows;
    entry.element.hidden = rows === 0;
    if (entry.view) entry.view.filter(test);
    return rows > 0;
  });
  field("matches").textContent = found.length
    ? `${asked ? "Found: " : ""}${many(reads, "read")} in ${many(found.length, "segment")}`
    : "Nothing is called that; search for a part of a layer's name.";
  if (words() && found.length === 1) found[0].element.open = true;
}

function sort() {
  const copied = field("sort").value === "copied";
  const sorted = [...entries].sort((a, b) => (copied && b.sums.gather - a.sums.gather) || a.number - b.number);
  field("list").append(...sorted.map((entry) => entry.element));
}

// The network at a glance.

function skyline() {
  const width = 1000, height = 90;
  const most = Math.max(...entries.map((entry) => entry.all), 1);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": "Channels read per segment, in the order of execution; the same is in the list below" });
  const step = width / Math.max(entries.length, 1);
  for (const entry of entries) {
    const bar = svg("g", {});
    bar.append(svg("title", {}));
    bar.firstChild.textContent = `${title(entry.segment)}: ${count(entry.all)} channels read, ${count(entry.sums.gather)} copied`;
    const x = entry.number * step, w = Math.min(step * 0.8, 40);
    bar.append(svg("rect", { class: "hit", x, y: 0, width: step, height }));
    let y = height;
    for (const kind of ["view", "window", "gather"]) {
      const h = entry.sums[kind] ? Math.max((entry.sums[kind] / most) * (height - 2), 1.5) : 0;
      if (kind === "gather") {
        let d = "";
        for (let top = y - h; top < y - 0.5; top += 5) d += `M${x} ${top}h${w}v${Math.min(3, y - top)}h${-w}z`;
        bar.append(svg("path", { class: kind, d }));
      } else if (h) bar.append(svg("rect", { class: kind, x, y: y - h, width: w, height: h }));
      y -= h;
    }
    bar.addEventListener("click", () => {
      entry.element.hidden = false;
      entry.element.open = true;
      entry.element.scrollIntoView({ block: "start" });
      entry.element.querySelector("summary").focus({ preventScroll: true });
    });
    picture.append(bar);
  }
  field("skyline").append(picture);
}

// How it is shown.

function redraw() {
  for (const entry of entries) if (entry.view && entry.element.open) entry.view.redraw();
}

function show(order) {
  root.dataset.show = order;
  field("show").querySelector(`[value=${order}]`).checked = true;
  redraw();
}

function remembered(value) {
  try { // it may be forbidden, for a file say
    if (value !== undefined) localStorage.setItem("upscale-opt theme", value);
    return localStorage.getItem("upscale-opt theme");
  } catch { return null; }
}

function theme(name) {
  root.dataset.theme = name;
  inks = null;
  field("theme").textContent = name === "dark" ? "Light" : "Dark";
  field("theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
  redraw();
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
theme(remembered() || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => remembered() || theme(dark.matches ? "dark" : "light"));
field("theme").addEventListener("click", () => {
  const other = root.dataset.theme === "dark" ? "light" : "dark";
  remembered(other);
  theme(other);
});

field("controls").addEventListener("submit", (event) => event.preventDefault());
field("search").addEventListener("input", update);
field("plan").addEventListener("change", update);
field("sort").addEventListener("change", sort);
field("show").addEventListener("change", (event) => show(event.target.value));
narrow.addEventListener("change", () => show(narrow.matches ? "after" : "both"));
window.addEventListener("resize", redraw);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) {
    event.preventDefault();
    field("search").focus();
  }
});

root.classList.toggle("has-windows", entries.some((entry) => entry.segment.rows.some((row) => row.plan === "window")));
root.classList.toggle("has-arenas", data.arenas.length > 0);
for (const entry of entries) {
  entry.element.addEventListener("toggle", () => entry.element.open && open(entry));
}
skyline();
sort();
update();
show(narrow.matches ? "after" : "both");
const largest = [...entries].sort((a, b) => b.sums.gather - a.sums.gather || b.all - a.all)[0];
if (largest) setTimeout(() => { largest.element.open = true; }); // first the page, then its pictures
