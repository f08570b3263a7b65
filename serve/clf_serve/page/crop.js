// The rectangle over the picture that is asked with: drawn, moved and resized by pointer or by keys.
(() => {
  "use strict";
  const LEAST = 0.04; // of a side
  const clamp = (x, least, most) => Math.min(Math.max(x, least), most);

  // `changed(rectangle or null)` is called when a gesture is over; fractions [left, top, width, height].
  window.clf.cropper = (layer, box, changed) => {
    let rectangle = null;
    let gesture = null;
    let touch = false; // whether a finger draws, or scrolls the page
    let later = 0;

    const draw = () => {
      box.hidden = !rectangle;
      layer.classList.toggle("clf-cropping", Boolean(rectangle));
      if (!rectangle) return;
      const names = ["left", "top", "width", "height"];
      rectangle.forEach((part, i) => (box.style[names[i]] = `${100 * part}%`));
      const percent = rectangle.map((part) => Math.round(100 * part));
      box.setAttribute("aria-description", `from ${percent[0]} %, ${percent[1]} %; ${percent[2]} % wide, ${percent[3]} % high`);
    };
    const set = (value) => {
      rectangle = value;
      draw();
    };
    const at = (event) => {
      const { left, top, width, height } = layer.getBoundingClientRect();
      return [clamp((event.clientX - left) / width, 0, 1), clamp((event.clientY - top) / height, 0, 1)];
    };
    const between = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
    const resized = ([x, y, w, h], edge, [px, py]) => {
      let [left, top, right, bottom] = [x, y, x + w, y + h];
      if (edge.includes("w")) left = clamp(px, 0, right - LEAST);
      if (edge.includes("e")) right = clamp(px, left + LEAST, 1);
      if (edge.includes("n")) top = clamp(py, 0, bottom - LEAST);
      if (edge.includes("s")) bottom = clamp(py, top + LEAST, 1);
      return [left, top, right - left, bottom - top];
    };
    const moved = ([x, y, w, h], dx, dy) => [clamp(x + dx, 0, 1 - w), clamp(y + dy, 0, 1 - h), w, h];

    layer.addEventListener("pointerdown", (event) => {
      if (event.button || (event.pointerType === "touch" && !touch && !rectangle)) return;
      const start = at(event);
      const edge = event.target.dataset.edge;
      gesture = { start, from: rectangle, kind: edge ? "resize" : event.target === box ? "move" : "draw", edge };
      layer.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    layer.addEventListener("pointermove", (event) => {
      if (!gesture) return;
      const here = at(event);
      if (gesture.kind === "resize") rectangle = resized(gesture.from, gesture.edge, here);
      else if (gesture.kind === "move") rectangle = moved(gesture.from, here[0] - gesture.start[0], here[1] - gesture.start[1]);
      else {
        const drawn = between(gesture.start, here);
        if (drawn[2] >= LEAST && drawn[3] >= LEAST) rectangle = drawn;
      }
      draw();
    });
    const end = () => {
      if (!gesture) return;
      const before = gesture.from;
      gesture = null;
      if (String(before) !== String(rectangle)) changed(rectangle);
    };
    layer.addEventListener("pointerup", end);
    layer.addEventListener("pointercancel", end);

    box.addEventListener("keydown", (event) => {
      const step = event.altKey ? 0.01 : 0.04;
      const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (event.key === "Escape" || event.key === "Delete") set(null);
      else if (way && event.shiftKey) {
        const [x, y, w, h] = rectangle;
        rectangle = resized(rectangle, "se", [x + w + way[0], y + h + way[1]]);
        draw();
      } else if (way) {
        rectangle = moved(rectangle, ...way);
        draw();
      } else return;
      event.preventDefault();
      clearTimeout(later);
      later = setTimeout(() => changed(rectangle), 250);
    });

    return {
      set,
      begin() {
        touch = true;
        layer.classList.add("clf-touch");
        if (!rectangle) set([0.15, 0.15, 0.7, 0.7]);
        box.focus({ preventScroll: true });
        return rectangle;
      },
      end() {
        touch = false;
        layer.classList.remove("clf-touch");
        set(null);
      },
    };
  };
})();
