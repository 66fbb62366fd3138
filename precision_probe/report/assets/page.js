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

// On paper nothing can be opened.
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
