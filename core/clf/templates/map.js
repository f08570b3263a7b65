for (const figure of document.querySelectorAll("figure.map")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg"), ring = svg.querySelector(".ring"), axes = svg.querySelector(".axes");
  const points = [...svg.querySelectorAll(".points use")];
  const stage = figure.querySelector(".map-stage"), tip = figure.querySelector(".map-tip");
  const crop = tip.querySelector(".map-crop"), picture = crop.querySelector("img");
  const spoken = figure.querySelector("[aria-live]");
  const classes = [...figure.querySelectorAll("[data-slot]")], every = figure.querySelector("[data-every]");
  const layouts = [...figure.querySelectorAll("[data-layout]")];
  const visible = Array(data.entries).fill(true);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const zoom = Math.max(1, Math.round(112 / data.sheet.side));
  let places = data.pca.map(([x, y]) => [x / 10, y / 10]), chosen = -1, frame = 0;

  const shown = i => visible[data.entry[i]];
  const draw = () => points.forEach((point, i) => point.setAttribute("transform", `translate(${places[i][0]} ${places[i][1]})`));

  function choose(i, say) {
    chosen = i;
    tip.hidden = i < 0;
    ring.setAttribute("visibility", i < 0 ? "hidden" : "visible");
    if (i < 0) return;
    const { columns, cell, side } = data.sheet;
    const words = data.words[i] || `${data.split} ${i + 1}`, file = data.files ? data.files[i] : "";
    crop.style.width = crop.style.height = `${side * zoom}px`;
    picture.style.width = `${columns * cell * zoom}px`;
    picture.style.left = `${-(i % columns) * cell * zoom}px`;
    picture.style.top = `${-Math.floor(i / columns) * cell * zoom}px`;
    picture.classList.toggle("pixels", zoom > 1);
    tip.querySelector("b").textContent = words;
    tip.querySelector("span").textContent = file;
    tip.dataset.point = i;
    ring.setAttribute("transform", `translate(${places[i][0]} ${places[i][1]})`);
    const scale = svg.clientWidth / svg.viewBox.baseVal.width;
    const x = places[i][0] * scale, y = places[i][1] * scale;
    const left = x + 16 + tip.offsetWidth > stage.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
    tip.style.left = `${Math.max(0, Math.min(left, stage.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, Math.min(y - tip.offsetHeight / 2, stage.clientHeight - tip.offsetHeight))}px`;
    if (say) spoken.textContent = [words, file].filter(Boolean).join(", ");
  }

  function at(event) {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, scale];
  }

  function nearest(x, y, reach = Infinity, allowed = () => true) {
    let best = -1, least = reach * reach;
    places.forEach(([a, b], i) => {
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least && shown(i) && allowed(a, b, i)) { best = i; least = distance; }
    });
    return best;
  }

  function hover(event, reach) {
    const [x, y, scale] = at(event);
    choose(nearest(x, y, reach * scale));
  }

  svg.addEventListener("pointermove", event => event.pointerType === "touch" || hover(event, 18));
  svg.addEventListener("pointerdown", event => hover(event, 32));
  stage.addEventListener("pointerleave", event => event.pointerType === "touch" || choose(-1));

  const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const middle = () => choose(nearest(svg.viewBox.baseVal.width / 2, svg.viewBox.baseVal.height / 2), true);
  svg.addEventListener("keydown", event => {
    if (event.key === "Escape") return choose(-1);
    const towards = arrows[event.key];
    if (!towards) return;
    event.preventDefault();
    if (chosen < 0) return middle();
    const [x, y] = places[chosen], [u, v] = towards;
    const next = nearest(x, y, Infinity, (a, b, i) => {
      const along = (a - x) * u + (b - y) * v, aside = Math.abs((a - x) * v) + Math.abs((b - y) * u);
      return i !== chosen && along > 0 && aside <= along;
    });
    if (next >= 0) choose(next, true);
  });
  svg.addEventListener("focus", () => {
    if (chosen < 0 && svg.matches(":focus-visible")) middle();
  });
  svg.addEventListener("blur", () => choose(-1));

  function arrange(name) {
    const goal = data[name].map(([x, y]) => [x / 10, y / 10]), start = places, began = performance.now();
    layouts.forEach(button => button.setAttribute("aria-pressed", button.dataset.layout === name));
    figure.querySelectorAll("[data-about]").forEach(note => { note.hidden = note.dataset.about !== name; });
    axes.setAttribute("visibility", name === "pca" ? "visible" : "hidden");
    svg.setAttribute("aria-label", label.replace("by the principal components of", name === "pca" ? "$&" : "by t-SNE of"));
    choose(-1);
    cancelAnimationFrame(frame);
    const step = now => {
      const t = calm ? 1 : Math.min(1, Math.max(0, (now - began) / 600)), share = t * t * (3 - 2 * t);
      places = goal.map(([x, y], i) => [start[i][0] + (x - start[i][0]) * share, start[i][1] + (y - start[i][1]) * share]);
      if (t === 1) places = goal;
      draw();
      figure.dataset.layout = t === 1 ? name : "";
      if (t < 1) frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  }

  function show(slots, on) {
    for (const slot of slots) {
      visible[slot] = on;
      classes[slot].setAttribute("aria-pressed", on);
    }
    points.forEach((point, i) => point.toggleAttribute("hidden", !shown(i)));
    if (every) every.setAttribute("aria-pressed", visible.every(Boolean));
    if (chosen >= 0 && !shown(chosen)) choose(-1);
  }

  const label = `${svg.getAttribute("aria-label")}; the arrow keys go from image to image`;
  svg.setAttribute("aria-label", label);
  svg.setAttribute("role", "application");
  svg.setAttribute("tabindex", "0");
  figure.dataset.layout = "pca";
  figure.querySelectorAll(".switch, [data-every]").forEach(part => { part.hidden = false; });
  layouts.forEach(button => button.addEventListener("click", () => arrange(button.dataset.layout)));
  classes.forEach((button, slot) => {
    button.disabled = false;
    button.addEventListener("click", () => show([slot], !visible[slot]));
  });
  if (every) every.addEventListener("click", () => show(classes.keys(), !visible.every(Boolean)));
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(fold => { fold.open = true; }));
