// Tables that sort when a heading is clicked, and figures to hover over and zoom into.
"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.rows[0].cells];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [parseFloat(a), parseFloat(b)];
        return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
      };
      const rows = [...table.rows].slice(1);
      rows.sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
      rows.forEach((row) => row.parentNode.append(row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

const number = (value) => String(+value.toPrecision(4));

function element(name, attributes, parent) {
  const made = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function ticks([low, high], most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const values = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++)
    values.push(+(k * step).toPrecision(10));
  return values;
}

// Conversions between values of a panel and places in the picture.
const along = (value, [a, b], [c, d]) => c + (value - a) / (b - a) * (d - c);
const across = ({ box }) => [box[0], box[2]];
const up = ({ box }) => [box[3], box[1]];
const toX = (panel, x) => along(x, panel.x, across(panel));
const toY = (panel, y) => along(y, panel.y, up(panel));
const fromX = (panel, x) => along(x, across(panel), panel.x);
const fromY = (panel, y) => along(y, up(panel), panel.y);

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.svg = figure.querySelector("svg");
    this.panels = JSON.parse(figure.querySelector("script").textContent);
    this.axes = [...this.svg.querySelectorAll('g[id*="-axes_"]')];
    this.over = element("g", {}, this.svg);
    this.drawn = element("g", {}, this.svg);
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.reset = document.createElement("button");
    this.reset.textContent = "whole figure";
    this.reset.hidden = true;
    figure.append(this.tip, this.reset);
    this.reset.addEventListener("click", () => this.zoom(null));
    this.svg.addEventListener("dblclick", () => this.zoom(null));
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("pointerdown", (event) => this.press(event));
    this.svg.addEventListener("pointerup", (event) => this.release(event));
  }

  at(event) {
    const point = new DOMPoint(event.clientX, event.clientY);
    return point.matrixTransform(this.svg.getScreenCTM().inverse());
  }

  panelAt({ x, y }) {
    return this.panels.find(({ box }) => x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3]);
  }

  move(event) {
    const point = this.at(event), panel = this.panelAt(point);
    if (this.start) return this.drawFrame(point);
    if (!panel) return this.leave();
    const pointed = fromX(panel, point.x);
    const nearest = (steps) => {
      const distances = steps.map((step) => Math.abs(step - pointed));
      return distances.indexOf(Math.min(...distances));
    };
    const candidates = panel.curves.map((curve) => curve.x[nearest(curve.x)]);
    if (!candidates.length) return this.leave();
    const step = candidates[nearest(candidates)];
    this.over.replaceChildren();
    const x = toX(panel, step), [left, top, right, bottom] = panel.box;
    const ink = { stroke: "var(--soft-ink)" };
    if (x >= left && x <= right) this.line(this.over, x, x, top, bottom, ink);
    this.tip.replaceChildren(`step ${number(step)}`);
    for (const curve of panel.curves) {
      const i = nearest(curve.x);
      const line = document.createElement("div"), dot = document.createElement("i");
      dot.style.background = curve.colour;
      const half = curve.half[i] == null ? "" : ` \u00b1 ${number(curve.half[i])}`;
      line.append(dot, `${curve.arm}: ${number(curve.mean[i])}${half}`);
      this.tip.append(line);
    }
    this.tip.hidden = false;
    const room = this.figure.getBoundingClientRect();
    const beside = event.clientX - room.left + 14, width = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(beside, room.width - width))}px`;
    this.tip.style.top = `${event.clientY - room.top + 18}px`;
  }

  leave() {
    this.over.replaceChildren();
    this.tip.hidden = true;
  }

  press(event) {
    const point = this.at(event);
    if (event.pointerType !== "mouse" || event.button !== 0 || !this.panelAt(point)) return;
    this.start = point;
    this.tip.hidden = true;
    this.svg.setPointerCapture(event.pointerId);
    event.preventDefault();
  }

  drawFrame(point) {
    this.over.replaceChildren();
    element("rect", {
      x: Math.min(this.start.x, point.x), y: Math.min(this.start.y, point.y),
      width: Math.abs(point.x - this.start.x), height: Math.abs(point.y - this.start.y),
      fill: "var(--soft-ink)", "fill-opacity": 0.15, stroke: "var(--soft-ink)",
    }, this.over);
  }

  release(event) {
    if (!this.start) return;
    const from = this.start, to = this.at(event), panel = this.panelAt(from);
    this.start = null;
    this.over.replaceChildren();
    if (Math.abs(to.x - from.x) < 6 || Math.abs(to.y - from.y) < 6) return;
    const [left, top, right, bottom] = panel.box;
    const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
    const x = [from.x, to.x].map((place) => fromX(panel, clamp(place, left, right)));
    const y = [from.y, to.y].map((place) => fromY(panel, clamp(place, top, bottom)));
    this.zoom(panel, x.sort((a, b) => a - b), y.sort((a, b) => a - b));
  }

  zoom(panel, x, y) {
    for (const one of this.panels) one.whole ??= { x: one.x, y: one.y };
    if (panel) {
      for (const one of this.panels) one.x = x;  // panels share their steps
      panel.y = y;
    } else for (const one of this.panels) Object.assign(one, one.whole);
    this.drawn.replaceChildren();
    this.panels.forEach((one, i) => {
      const zoomed = one.x !== one.whole.x;
      for (const part of this.axes[i].querySelectorAll('[id*="tick_"], [id*="-data-"]'))
        part.style.display = zoomed ? "none" : "";
      if (zoomed) this.draw(one, i);
    });
    this.reset.hidden = this.panels.every((one) => one.x === one.whole.x);
  }

  line(parent, x1, x2, y1, y2, attributes) {
    element("line", { x1, x2, y1, y2, ...attributes }, parent);
  }

  label(x, y, anchor, value) {
    const look = { "font-size": 9, "font-family": "system-ui, sans-serif", "text-anchor": anchor };
    element("text", { x, y, ...look }, this.drawn).textContent = number(value);
  }

  draw(panel, index) {
    const [left, top, right, bottom] = panel.box, id = `${this.axes[index].id}-zoomed`;
    const clip = element("clipPath", { id }, this.drawn);
    element("rect", { x: left, y: top, width: right - left, height: bottom - top }, clip);
    const grid = { stroke: "var(--grid)", "stroke-opacity": 0.3 };
    for (const value of ticks(panel.x, 6)) {
      const x = toX(panel, value);
      this.line(this.drawn, x, x, top, bottom, grid);
      if (index === this.panels.length - 1) this.label(x, bottom + 12, "middle", value);
    }
    for (const value of ticks(panel.y, 5)) {
      const y = toY(panel, value);
      this.line(this.drawn, left, right, y, y, grid);
      this.label(left - 4, y + 3, "end", value);
    }
    const inside = element("g", { "clip-path": `url(#${id})` }, this.drawn);
    const mark = { stroke: "var(--soft-ink)", "stroke-dasharray": "3 2" };
    for (const x of panel.cutoffs.map((value) => toX(panel, value)))
      this.line(inside, x, x, top, bottom, mark);
    for (const y of panel.levels.map((value) => toY(panel, value)))
      this.line(inside, left, right, y, y, mark);
    for (const curve of panel.curves) this.drawCurve(panel, curve, inside);
  }

  drawCurve(panel, { x, mean, half, colour }, parent) {
    const place = (i, y) => `${toX(panel, x[i]).toFixed(2)} ${toY(panel, y).toFixed(2)}`;
    const all = x.map((_, i) => i), banded = all.filter((i) => half[i] != null);
    if (banded.length) {
      const above = banded.map((i) => place(i, mean[i] + half[i]));
      const below = banded.reverse().map((i) => place(i, mean[i] - half[i]));
      const d = `M${[...above, ...below].join("L")}z`;
      element("path", { d, fill: colour, "fill-opacity": 0.15 }, parent);
    }
    const d = `M${all.map((i) => place(i, mean[i])).join("L")}`;
    element("path", { d, fill: "none", stroke: colour, "stroke-width": 1.4 }, parent);
  }
}

for (const figure of document.querySelectorAll("figure.chart")) new Chart(figure);
