"use strict";
// One segment: a table of its reads, and what is said of the one that is looked at.

/** An element with attributes and children; text is never parsed. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A name that may be broken behind an underscore. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

const count = (n) => n.toLocaleString("en");
const many = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;

class SegmentView {
  constructor(data, facts, body) {
    this.data = data;
    this.facts = facts;
    this.plan = new Plan(data);
    this.only = null;
    this.chosen = null;
    this.place = null; // of a channel, in the chosen order
    this.buttons = [];
    this.lines = [];
    this.table = this.makeTable();
    this.panel = make("section", { class: "panel", "aria-label": "The read", "aria-live": "polite", tabindex: "0" });
    this.marks = make("div", { class: "marks", "aria-hidden": "true" });
    const scroll = make("div", { class: "reads" }, this.table, this.marks);
    body.append(...this.makeSpaces(), make("div", { class: "split" }, scroll, this.panel));
    this.watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        entry.target.shown = entry.isIntersecting;
        if (entry.isIntersecting) this.draw(entry.target);
      }
    }, { rootMargin: "200px" });
    for (const canvas of this.table.querySelectorAll("canvas")) this.watcher.observe(canvas);
    const first = data.rows.findIndex((row) => row.plan === "gather");
    this.choose(Math.max(first, 0));
  }

  makeSpaces() {
    if (this.plan.columns.length < 2) return [];
    const select = make("select", {}, make("option", { value: "" }, `all ${this.plan.columns.length}, side by side`));
    for (const { space, start, end } of this.plan.columns) {
      const name = this.facts.arenas.includes(space) ? "arena" : "space";
      select.append(make("option", { value: space }, `${name} ${space} (${many(end - start, "channel")})`));
    }
    select.addEventListener("change", () => {
      this.only = select.value === "" ? null : Number(select.value);
      this.redraw();
    });
    return [make("p", { class: "spaces" }, make("label", {}, "Spaces ", select))];
  }

  makeTable() {
    const strip = (order, title) => make("th", { scope: "col", class: order }, title, make("canvas", { "data-order": order, class: "head" }));
    const head = make("tr", {}, make("th", { scope: "col", class: "name" }, "Read"), strip("before", "Original order"), strip("after", "Chosen order"));
    const table = make("table", {}, make("caption", {}, "Channels from left to right, one read per row"), make("thead", {}, head));
    const body = table.appendChild(make("tbody"));
    this.data.rows.forEach((row, i) => {
      const button = make("button", { type: "button", "data-row": i }, make("span", { class: "op" }, ...breakable(row.name)));
      const label = row.place ? `${row.plan}, placed into a sum` : row.plan;
      const kind = make("span", { class: `kind ${row.plan}` }, label, ` ${count(row.count)}`);
      const line = make("tr", {}, make("th", { scope: "row", class: "name" }, button, kind));
      for (const order of ["before", "after"]) {
        const cell = line.appendChild(make("td", { class: order }));
        if (this.plan.rows[i].known) {
          const words = order === "after" ? row.plan : row.before ? "side by side" : "scattered";
          cell.append(make("canvas", { "data-order": order, "data-row": i, role: "img", "aria-label": words }));
        } else cell.append(make("span", { class: "hint" }, "not drawn without the graph"));
      }
      body.append(line);
      this.buttons.push(button);
      this.lines.push(line);
    });
    body.addEventListener("focusin", (event) => this.choose(this.rowOf(event.target)));
    body.addEventListener("click", (event) => this.choose(this.rowOf(event.target)));
    body.addEventListener("pointermove", (event) => this.hover(event));
    body.addEventListener("pointerleave", () => this.leave());
    body.addEventListener("keydown", (event) => this.key(event));
    return table;
  }

  rowOf(target) {
    return this.lines.indexOf(target.closest("tr"));
  }

  // Looking at a read, and at a channel.

  choose(i) {
    if (i < 0 || i === this.chosen) return;
    this.chosen = i;
    const why = this.data.rows[i].why || {};
    const rivals = new Set((why.members || []).flatMap((member) => member.reads));
    this.lines.forEach((line, other) => {
      line.classList.toggle("chosen", other === i);
      line.classList.toggle("rival", other !== i && rivals.has(this.data.rows[other].name));
    });
    this.tell();
    this.mark();
  }

  hover(event) {
    const i = this.rowOf(event.target);
    this.choose(i);
    const canvas = event.target.closest("canvas");
    if (!canvas) return this.leave();
    const box = canvas.getBoundingClientRect();
    const place = new Scale(this.plan, this.only, box.width).place(event.clientX - box.left);
    this.place = canvas.dataset.order === "after" ? place : this.plan.turned.indexOf(place);
    this.mark();
    const tip = document.getElementById("tip");
    tip.replaceChildren(make("b", {}, this.data.rows[i].name), make("br"), this.channelText());
    tip.classList.add("shown");
    const wide = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, wide - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY + 16}px`;
  }

  leave() {
    document.getElementById("tip").classList.remove("shown");
    if (this.place === null) return;
    this.place = null;
    this.mark();
  }

  key(event) {
    const shown = this.buttons.filter((b) => !b.closest("tr").hidden);
    const at = shown.indexOf(event.target.closest("button"));
    const scale = new Scale(this.plan, this.only, 1000);
    const places = scale.columns.flatMap((c) => [c.start, c.end - 1]);
    const [low, high] = [Math.min(...places), Math.max(...places)];
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const next = shown[at + (event.key === "ArrowDown" ? 1 : -1)];
      if (next) next.focus();
    } else if (event.key === "Home" || event.key === "End") {
      shown[event.key === "Home" ? 0 : shown.length - 1].focus();
    } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && places.length) {
      const step = event.key === "ArrowRight" ? 1 : -1;
      const next = this.place === null ? low : this.place + step;
      this.place = Math.min(Math.max(next, low), high);
      this.mark();
      this.panel.querySelector(".channel").textContent = this.channelText();
    } else return;
    event.preventDefault();
  }

  channelText() {
    const row = this.plan.rows[this.chosen];
    const taken = row.has.after.has(this.place);
    const column = this.plan.columnAt(this.place);
    const before = this.plan.turned[this.place] - column.start + 1;
    return `channel ${this.plan.after[this.place]} of space ${column.space}: ${taken ? "taken" : "not taken"}; ` +
      `at place ${count(this.place - column.start + 1)}, originally ${count(before)}`;
  }

  // What is said.

  tell() {
    const row = this.data.rows[this.chosen];
    const known = this.plan.rows[this.chosen].known;
    const verb = row.place ? "places" : row.plan === "gather" ? "copies" : "takes";
    const where = row.place ? "into a sum" : "";
    this.panel.replaceChildren(
      make("h3", {}, ...breakable(row.name)),
      make("p", {}, make("span", { class: `kind ${row.plan}` }, row.plan), ` ${verb} ${many(row.count, "channel")} of ${row.tensor} ${where}`.trimEnd(), "."),
      ...(known ? [make("p", { class: "hint" }, `In the original order they lie ${row.before ? "side by side, too" : "scattered"}.`)] : []),
      make("div", { class: "why" }, ...this.why(row)),
      make("p", { class: "channel hint" }),
    );
  }

  why(row) {
    if (row.plan === "view") return ["Its channels lie side by side: nothing is copied."];
    const { reason, text, members, witnesses, space } = row.why;
    if (reason === "window") {
      const vain = numbers(row.vain).length;
      return [`Nothing is copied: it reads ${vain ? many(vain, "channel") : "channels"} in vain, for which its weight keeps zeros.`];
    }
    if (reason === "hindrance") return [`No order makes it a view: ${text}.`];
    if (reason === "choice") return ["Nothing forbids a view: it could be one together with all reads that are, but in this order it is not."];
    const others = members.filter((m) => !m.reads.includes(row.name)).map((m) => m.reads.join(" = "));
    const head = make("tr", {}, make("th", { scope: "col" }, "wanted side by side"), ...witnesses.map((w) => make("th", { scope: "col" }, String(w))));
    const body = members.map((m) => {
      const place = { prefix: ", first", suffix: ", last", interval: "" }[m.kind];
      const cells = witnesses.map((w) => make("td", { "aria-label": m.has.includes(w) ? "yes" : "no" }, m.has.includes(w) ? "●" : "·"));
      return make("tr", {}, make("th", { scope: "row" }, ...breakable(m.reads[0]), ` (${count(m.size)}${place})`), ...cells);
    });
    return [
      make("p", {}, `It cannot be a view together with ${others.join("; ")}, which ${others.length === 1 ? "is one" : "are"}.`),
      make("p", {}, `These channels of space ${space} show it: no order has every row's dots side by side.`),
      make("div", { class: "witnesses", tabindex: "0", role: "group", "aria-label": "The conflict" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))),
    ];
  }

  // Drawing.

  draw(canvas) {
    const { order, row } = canvas.dataset;
    if (row === undefined) drawHead(canvas, this.plan, this.only, this.facts);
    else drawStrip(canvas, this.plan, this.plan.rows[row], order, this.only);
  }

  redraw() {
    for (const canvas of this.table.querySelectorAll("canvas")) if (canvas.shown) this.draw(canvas);
    this.mark();
  }

  /** Lines through the channel that is looked at, and through those that show a conflict. */
  mark() {
    const lines = [];
    const why = this.chosen === null ? {} : this.data.rows[this.chosen].why || {};
    const marked = (why.witnesses || []).map((w) => [this.plan.after.indexOf(w), "witness"]);
    if (this.place !== null) marked.push([this.place, "here"]);
    const base = this.table.getBoundingClientRect();
    for (const canvas of this.table.querySelectorAll("canvas.head")) {
      const box = canvas.getBoundingClientRect();
      if (!box.width) continue;
      const scale = new Scale(this.plan, this.only, box.width);
      for (const [place, kind] of marked) {
        const at = canvas.dataset.order === "after" ? place : this.plan.turned[place];
        const found = place < 0 ? [] : scale.stretches(at, at + 1);
        for (const [x, w] of found) {
          const line = make("div", { class: kind });
          line.style.left = `${box.left - base.left + x + w / 2}px`;
          line.style.top = `${box.bottom - base.top}px`;
          lines.push(line);
        }
      }
    }
    this.marks.replaceChildren(...lines);
  }

  /** Show the reads of which `wanted` is true. */
  filter(wanted) {
    this.lines.forEach((line, i) => { line.hidden = !wanted(this.data.rows[i]); });
    this.mark();
  }
}
