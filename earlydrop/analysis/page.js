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
  for (let k = Math.ceil(low / step); k * step <= high; k++) values.push(+(k * step).toPrecision(10));
  return values;
}

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

  toX(panel, x) { return panel.box[0] + (x - panel.x[0]) / (panel.x[1] - panel.x[0]) * (panel.box[2] - panel.box[0]); }
  toY(panel, y) { return panel.box[3] - (y - panel.y[0]) / (panel.y[1] - panel.y[0]) * (panel.box[3] - panel.box[1]); }
  fromX(panel, x) { return panel.x[0] + (x - panel.box[0]) / (panel.box[2] - panel.box[0]) * (panel.x[1] - panel.x[0]); }
  fromY(panel, y) { return panel.y[0] + (panel.box[3] - y) / (panel.box[3] - panel.box[1]) * (panel.y[1] - panel.y[0]); }

  move(event) {
    const point = this.at(event), panel = this.panelAt(point);
    if (this.start) return this.drawFrame(point);
    if (!panel) return this.leave();
    const wanted = this.fromX(panel, point.x);
    const nearest = (xs) => xs.reduce((best, x, i) => Math.abs(x - wanted) < Math.abs(xs[best] - wanted) ? i : best, 0);
    const step = panel.curves.map((curve) => curve.x[nearest(curve.x)])
      .reduce((best, x) => Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best, Infinity);
    if (!isFinite(step)) return this.leave();
    this.over.replaceChildren();
    const x = this.toX(panel, step);
    if (x >= panel.box[0] && x <= panel.box[2])
      element("line", { x1: x, x2: x, y1: panel.box[1], y2: panel.box[3], stroke: "var(--soft-ink)" }, this.over);
    this.tip.replaceChildren(`step ${number(step)}`);
    for (const curve of panel.curves) {
      const i = nearest(curve.x), line = document.createElement("div"), dot = document.createElement("i");
      dot.style.background = curve.colour;
      const half = curve.half[i] == null ? "" : ` \u00b1 ${number(curve.half[i])}`;
      line.append(dot, `${curve.arm}: ${number(curve.mean[i])}${half}`);
      this.tip.append(line);
    }
    this.tip.hidden = false;
    const room = this.figure.getBoundingClientRect();
    const left = event.clientX - room.left + 14, width = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(left, room.width - width))}px`;
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
    const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
    const x = [from.x, to.x].map((value) => this.fromX(panel, clamp(value, panel.box[0], panel.box[2])));
    const y = [from.y, to.y].map((value) => this.fromY(panel, clamp(value, panel.box[1], panel.box[3])));
    this.zoom(panel, x.sort((a, b) => a - b), y.sort((a, b) => a - b));
  }

  zoom(panel, x, y) {
    for (const one of this.panels) one.whole ??= { x: one.x, y: one.y };
    if (panel) Object.assign(panel, { x, y });
    else for (const one of this.panels) Object.assign(one, one.whole);
    this.drawn.replaceChildren();
    this.panels.forEach((one, i) => {
      const zoomed = one.x !== one.whole.x;
      for (const part of this.axes[i].querySelectorAll('[id*="tick_"], [id*="-data-"]'))
        part.style.display = zoomed ? "none" : "";
      if (zoomed) this.draw(one, i);
    });
    this.reset.hidden = this.panels.every((one) => one.x === one.whole.x);
  }

  draw(panel, index) {
    const [left, top, right, bottom] = panel.box, id = `${this.axes[index].id}-zoomed`;
    const small = { "font-size": 9, "font-family": "system-ui, sans-serif" };
    const clip = element("clipPath", { id }, this.drawn);
    element("rect", { x: left, y: top, width: right - left, height: bottom - top }, clip);
    for (const value of ticks(panel.x, 6)) {
      const x = this.toX(panel, value);
      element("line", { x1: x, x2: x, y1: top, y2: bottom, stroke: "var(--grid)", "stroke-opacity": 0.3 }, this.drawn);
      element("text", { x, y: bottom + 12, "text-anchor": "middle", ...small }, this.drawn).textContent = number(value);
    }
    for (const value of ticks(panel.y, 5)) {
      const y = this.toY(panel, value);
      element("line", { x1: left, x2: right, y1: y, y2: y, stroke: "var(--grid)", "stroke-opacity": 0.3 }, this.drawn);
      element("text", { x: left - 4, y: y + 3, "text-anchor": "end", ...small }, this.drawn).textContent = number(value);
    }
    const inside = element("g", { "clip-path": `url(#${id})` }, this.drawn);
    const mark = { stroke: "var(--soft-ink)", "stroke-dasharray": "3 2" };
    for (const value of panel.cutoffs)
      element("line", { x1: this.toX(panel, value), x2: this.toX(panel, value), y1: top, y2: bottom, ...mark }, inside);
    for (const value of panel.levels)
      element("line", { x1: left, x2: right, y1: this.toY(panel, value), y2: this.toY(panel, value), ...mark }, inside);
    for (const { x, mean, half, colour } of panel.curves) {
      const path = (ys, order) => order.map((i) => `${this.toX(panel, x[i]).toFixed(2)} ${this.toY(panel, ys(i)).toFixed(2)}`).join("L");
      const known = x.map((_, i) => i).filter((i) => half[i] != null), back = [...known].reverse();
      if (known.length) {
        const band = `M${path((i) => mean[i] + half[i], known)}L${path((i) => mean[i] - half[i], back)}z`;
        element("path", { d: band, fill: colour, "fill-opacity": 0.15 }, inside);
      }
      const line = `M${path((i) => mean[i], x.map((_, i) => i))}`;
      element("path", { d: line, fill: "none", stroke: colour, "stroke-width": 1.4 }, inside);
    }
  }
}

for (const figure of document.querySelectorAll("figure.chart")) new Chart(figure);
