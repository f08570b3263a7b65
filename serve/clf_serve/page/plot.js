// Thousands of points on a canvas: drawn, moved, zoomed, pointed at. Knows nothing of galleries.
(() => {
  "use strict";
  const CELLS = 96; // of the grid that finds the point under a pointer, along each side
  const REACH = 14; // pixels from a pointer at which a point is still meant
  const APART = 96; // pixels between pictures, roughly
  const SIDE = 44; // of a picture
  const MOST = 400; // pictures kept in memory

  // `told.point(i, how)`: i is pointed at by "mouse", "touch" or "keys"; -1 none. `told.open(i)`. `told.source(i)`: URL.
  window.clf.plot = (canvas, told) => {
    const pen = canvas.getContext("2d");
    let x = new Float32Array(0);
    let y = new Float32Array(0);
    let layers = []; // [{colour, points, faint}] from the lowest to the highest
    let tone = []; // the colour of each point's picture frame
    let heads = new Int32Array(0);
    let nexts = new Int32Array(0);
    let view = { scale: 1, left: 0, top: 0 };
    let width = 0;
    let height = 0;
    let fit = 1;
    let at = -1;
    let pictures = true;
    let frames = []; // [{i, left, top}] pictures as they were last drawn
    let awaited = 0;
    let moved = false; // by the user: then a resize does not fit everything again
    const kept = new Map();

    const sx = (i) => x[i] * view.scale + view.left;
    const sy = (i) => y[i] * view.scale + view.top;

    const later = () => {
      if (!awaited) awaited = requestAnimationFrame(draw);
    };

    const all = () => {
      let [most, tall] = [0.05, 0.05];
      for (let i = 0; i < x.length; i++) {
        most = Math.max(most, Math.abs(x[i]));
        tall = Math.max(tall, Math.abs(y[i]));
      }
      const room = SIDE / 2 + 10;
      fit = Math.max(1, Math.min((width / 2 - room) / most, (height / 2 - room) / tall));
      view = { scale: fit, left: width / 2, top: height / 2 };
      moved = false;
      later();
    };

    const resize = () => {
      const box = canvas.getBoundingClientRect();
      if (!box.width || (box.width === width && box.height === height)) return;
      view.left += (box.width - width) / 2;
      view.top += (box.height - height) / 2;
      [width, height] = [box.width, box.height];
      const dense = Math.min(devicePixelRatio || 1, 2);
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
      pen.setTransform(dense, 0, 0, dense, 0, 0);
      if (!moved) all();
      later();
    };

    const cell = (value) => Math.min(CELLS - 1, Math.max(0, Math.floor(((value + 1) / 2) * CELLS)));

    const index = () => {
      heads = new Int32Array(CELLS * CELLS).fill(-1);
      nexts = new Int32Array(x.length);
      for (let i = 0; i < x.length; i++) {
        const place = cell(y[i]) * CELLS + cell(x[i]);
        nexts[i] = heads[place];
        heads[place] = i;
      }
    };

    const nearest = (px, py) => {
      for (const { i, left, top } of frames) {
        if (px >= left && px <= left + SIDE && py >= top && py <= top + SIDE) return i;
      }
      const far = REACH / view.scale;
      const [cx, cy] = [(px - view.left) / view.scale, (py - view.top) / view.scale];
      let [found, best] = [-1, far * far];
      for (let row = cell(cy - far); row <= cell(cy + far); row++) {
        for (let column = cell(cx - far); column <= cell(cx + far); column++) {
          for (let i = heads[row * CELLS + column]; i >= 0; i = nexts[i]) {
            const distance = (x[i] - cx) ** 2 + (y[i] - cy) ** 2;
            if (distance < best && tone[i]) [found, best] = [i, distance];
          }
        }
      }
      return found;
    };

    const radius = () => {
      const base = x.length > 8000 ? 1.5 : x.length > 1500 ? 2.2 : x.length > 300 ? 3.2 : 4.5;
      return Math.min(7, base * (view.scale / fit) ** 0.35);
    };

    const dots = (points, r) => {
      pen.beginPath();
      for (const i of points) {
        const [px, py] = [sx(i), sy(i)];
        if (px < -r || py < -r || px > width + r || py > height + r) continue;
        if (r < 2) pen.rect(px - r, py - r, 2 * r, 2 * r); // as good as round at that size, and much faster
        else {
          pen.moveTo(px + r, py);
          pen.arc(px, py, r, 0, 6.2832);
        }
      }
      pen.fill();
    };

    const picture = (i) => {
      let image = kept.get(i);
      if (!image) {
        image = new Image();
        image.onload = later;
        image.src = told.source(i);
        kept.set(i, image);
        if (kept.size > MOST) kept.delete(kept.keys().next().value);
      }
      return image.complete && image.naturalWidth ? image : null;
    };

    // One picture in each cell of a grid that moves with the points, the one nearest to the middle of its cell.
    const chosen = () => {
      const step = APART / 2 ** Math.floor(Math.log2(view.scale / fit)) / fit;
      const best = new Map();
      for (let i = 0; i < x.length; i++) {
        const [px, py] = [sx(i), sy(i)];
        if (px < 0 || py < 0 || px > width || py > height || !tone[i]) continue;
        const [column, row] = [Math.floor(x[i] / step), Math.floor(y[i] / step)];
        const off = Math.hypot(x[i] / step - column - 0.5, y[i] / step - row - 0.5);
        const place = column * 65536 + row;
        if (!(best.get(place)?.off <= off)) best.set(place, { i, off });
      }
      const taken = [];
      for (const { i } of best.values()) {
        const near = (other) => Math.abs(sx(i) - sx(other)) < SIDE + 4 && Math.abs(sy(i) - sy(other)) < SIDE + 4;
        if (!taken.some(near)) taken.push(i);
      }
      return taken;
    };

    const frame = (i, side, border) => {
      const image = picture(i);
      if (!image) return null;
      const [left, top] = [Math.round(sx(i) - side / 2), Math.round(sy(i) - side / 2)];
      const cut = Math.min(image.naturalWidth, image.naturalHeight);
      pen.save();
      pen.beginPath();
      pen.roundRect(left - border, top - border, side + 2 * border, side + 2 * border, 8);
      pen.fillStyle = tone[i] || "gray";
      pen.fill();
      pen.beginPath();
      pen.roundRect(left, top, side, side, 6);
      pen.clip();
      pen.drawImage(image, (image.naturalWidth - cut) / 2, (image.naturalHeight - cut) / 2, cut, cut, left, top, side, side);
      pen.restore();
      return { i, left, top };
    };

    function draw() {
      awaited = 0;
      pen.clearRect(0, 0, width, height);
      const r = radius();
      for (const { colour, points, faint } of layers) {
        pen.globalAlpha = faint ? 0.35 : 0.9;
        pen.fillStyle = colour;
        dots(points, r);
      }
      pen.globalAlpha = 1;
      frames = pictures ? chosen().map((i) => frame(i, SIDE, 2)).filter(Boolean) : [];
      if (at < 0 || at >= x.length) return;
      if (pictures && frame(at, SIDE + 12, 3)) return;
      pen.beginPath();
      pen.arc(sx(at), sy(at), r + 5, 0, 6.2832);
      pen.lineWidth = 2.5;
      pen.strokeStyle = getComputedStyle(canvas).color;
      pen.stroke();
    }

    const zoom = (factor, px = width / 2, py = height / 2) => {
      const scale = Math.min(fit * 400, Math.max(fit * 0.5, view.scale * factor));
      const by = scale / view.scale;
      view = { scale, left: px - (px - view.left) * by, top: py - (py - view.top) * by };
      moved = true;
      later();
    };
    const pan = (dx, dy) => {
      view.left += dx;
      view.top += dy;
      moved = true;
      later();
    };
    const point = (i, how) => {
      if (i === at && how === "mouse") return;
      at = i;
      told.point(i, how);
      later();
    };

    // -- by pointer
    const down = new Map();
    let start = null; // of a press that may still become a click
    const here = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      try {
        canvas.setPointerCapture(event.pointerId);
      } catch {
        // the finger is gone already
      }
      down.set(event.pointerId, here(event));
      start = down.size === 1 ? here(event) : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = here(event);
      const before = down.get(event.pointerId);
      if (!before) {
        point(nearest(now.x, now.y), "mouse");
        canvas.style.cursor = at >= 0 ? "pointer" : "grab";
        return;
      }
      if (start && Math.hypot(now.x - start.x, now.y - start.y) < 5) return;
      if (start) {
        start = null;
        canvas.style.cursor = "grabbing";
        point(-1, "mouse");
      }
      if (down.size === 2) {
        const [a, b] = [...down.entries()].map(([id, place]) => (id === event.pointerId ? now : place));
        const [c, d] = [...down.values()];
        zoom(Math.hypot(a.x - b.x, a.y - b.y) / (Math.hypot(c.x - d.x, c.y - d.y) || 1), (a.x + b.x) / 2, (a.y + b.y) / 2);
        pan((a.x + b.x - c.x - d.x) / 2, (a.y + b.y - c.y - d.y) / 2);
      } else pan(now.x - before.x, now.y - before.y);
      down.set(event.pointerId, now);
    });
    const up = (event) => {
      if (down.delete(event.pointerId) && start && event.type === "pointerup") {
        const found = nearest(start.x, start.y);
        if (event.pointerType !== "mouse") point(found, "touch");
        else if (found >= 0) told.open(found);
      }
      start = null;
      canvas.style.cursor = "grab";
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !down.size) point(-1, "mouse");
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const { x: px, y: py } = here(event);
        const lines = event.deltaMode === 1 ? 30 : 1;
        zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), px, py);
      },
      { passive: false },
    );

    // -- by keys
    const stepped = (dx, dy) => {
      if (at < 0) return nearestTo(width / 2, height / 2);
      let [found, best] = [-1, Infinity];
      for (let i = 0; i < x.length; i++) {
        if (!tone[i]) continue;
        const [ax, ay] = [x[i] - x[at], y[i] - y[at]];
        const along = ax * dx + ay * dy;
        const aside = Math.abs(ax * dy - ay * dx);
        if (along <= 0 || aside > along) continue;
        const cost = along + 2 * aside;
        if (cost < best) [found, best] = [i, cost];
      }
      return found < 0 ? at : found;
    };
    const nearestTo = (px, py) => {
      let [found, best] = [-1, Infinity];
      for (let i = 0; i < x.length; i++) {
        const distance = (sx(i) - px) ** 2 + (sy(i) - py) ** 2;
        if (tone[i] && distance < best) [found, best] = [i, distance];
      }
      return found;
    };
    const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const way = WAYS[event.key];
      if (way && event.shiftKey) pan(-60 * way[0], -60 * way[1]);
      else if (way) {
        point(stepped(...way), "keys");
        if (at >= 0) pan(Math.min(0, width - 60 - sx(at)) + Math.max(0, 60 - sx(at)), Math.min(0, height - 60 - sy(at)) + Math.max(0, 60 - sy(at)));
      } else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key === "0") all();
      else if (event.key === "Enter" && at >= 0) told.open(at);
      else if (event.key === "Escape" && at >= 0) point(-1, "keys");
      else return;
      event.preventDefault();
    });
    new ResizeObserver(resize).observe(canvas);

    return {
      zoom,
      all,
      // Points as two Float32Array of coordinates in [-1, 1], y upwards.
      set(xs, ys) {
        [x, y, at] = [xs, ys.map((value) => -value), -1];
        kept.clear();
        frames = [];
        index();
        resize();
        all();
      },
      // `tones`: of each point, "" where it cannot be pointed at.
      paint(painted, tones) {
        [layers, tone] = [painted, tones];
        later();
      },
      showPictures(on) {
        pictures = on;
        later();
      },
      at: (i) => ({ x: sx(i), y: sy(i), width, height }),
    };
  };
})();
