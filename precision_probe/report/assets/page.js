"use strict";
// One precision at a time: without this script all are shown.
const chooser = document.querySelector(".chooser");
if (chooser) {
  const show = () => {
    const chosen = chooser.querySelector(":checked").value;
    for (const part of document.querySelectorAll("[data-precision]")) part.hidden = part.dataset.precision !== chosen;
  };
  chooser.hidden = false;
  chooser.addEventListener("change", show);
  show();
}

// The numbers of a block: where the pointer is, where it was clicked, or where arrow keys go.
for (const network of document.querySelectorAll(".network")) {
  const nodes = [...network.querySelectorAll(".node")];
  const detail = document.createElement("output");
  detail.className = "detail";
  network.after(detail);
  const tell = (node) => {
    for (const each of nodes) {
      each.classList.toggle("chosen", each === node);
      each.setAttribute("tabindex", each === node ? "0" : "-1");
    }
    detail.textContent = node.getAttribute("aria-label").replaceAll("; ", " · ");
  };
  for (const node of nodes) {
    for (const event of ["mouseenter", "click", "focus"]) node.addEventListener(event, () => tell(node));
    node.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault();
      const next = nearest(node, way);
      if (next) next.focus();
    });
  }
  const nearest = (from, [x, y]) => {
    let best = null, least = Infinity;
    for (const node of nodes) {
      const across = node.dataset.x - from.dataset.x, down = node.dataset.y - from.dataset.y;
      const along = across * x + down * y, aside = Math.abs(across * y) + Math.abs(down * x);
      if (along > 0 && along + 2 * aside < least) { best = node; least = along + 2 * aside; }
    }
    return best;
  };
  if (nodes.length) tell(nodes[0]);
}

// A structure is turned by dragging it, or by arrow keys.
for (const picture of document.querySelectorAll(".molecule")) {
  const group = picture.querySelector("[data-points]");
  const numbers = group.dataset.points.split(" ").map(Number);
  const box = picture.viewBox.baseVal, middle = [box.width / 2, box.height / 2];
  let points = [];
  for (let at = 0; at < numbers.length; at += 3) {
    points.push([numbers[at] - middle[0], numbers[at + 1] - middle[1], numbers[at + 2]]);
  }
  const farthest = Math.max(...points.map((point) => Math.hypot(...point))) + 26;
  const turn = (across, down) => {
    const [c, s, k, t] = [Math.cos(across), Math.sin(across), Math.cos(down), Math.sin(down)];
    points = points.map(([x, y, z]) => [c * x + s * z, y, c * z - s * x]);
    points = points.map(([x, y, z]) => [x, k * y + t * z, k * z - t * y]);
    // whatever side is seen has to fit
    picture.setAttribute("viewBox", `${middle[0] - farthest} ${middle[1] - farthest} ${2 * farthest} ${2 * farthest}`);
    const depth = new Map();
    for (const part of group.children) {
      if (part.dataset.at) {
        const [x, y, z] = points[part.dataset.at];
        part.setAttribute("transform", `translate(${x + middle[0]} ${y + middle[1]})`);
        depth.set(part, z);
      } else {
        const [[x, y, z], [u, v, w]] = part.dataset.ends.split(" ").map((end) => points[end]);
        part.setAttribute("d", `M${x + middle[0]} ${y + middle[1]}L${u + middle[0]} ${v + middle[1]}`);
        depth.set(part, Math.min(z, w));
      }
    }
    group.append(...[...group.children].sort((a, b) => depth.get(a) - depth.get(b)));
  };
  picture.setAttribute("tabindex", "0");
  picture.addEventListener("pointerdown", (event) => picture.setPointerCapture(event.pointerId));
  picture.addEventListener("pointermove", (event) => {
    if (event.buttons) turn(event.movementX / 100, event.movementY / 100);
  });
  picture.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    turn(way[0] / 6, way[1] / 6);
  });
}

// On paper nothing can be opened.
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
