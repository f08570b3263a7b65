// The map tab: asks for the points, colours them, and says what one is.
(() => {
  "use strict";
  const RAMP = ["#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b"]; // viridis without its ends
  const [OTHER, NONE] = [254, 255];
  const GRADES = 253;
  const LISTED = 30; // lines of the legend until one asks for more

  clf.ready("clf-map", (section) => {
    const $ = (name) => clf.$(`clf-map-${name}`);
    const { make } = clf;
    const [canvas, tip, wait] = [$("canvas"), $("tip"), $("wait")];
    const probe = section.appendChild(make("i", { hidden: true }));
    const named = new Map(); // what is known of an image, by id
    const only = new Set(); // codes of the legend that are picked out
    let map = null; // the reply, its arrays decoded
    let turn = 0; // of the latest question; answers to earlier ones are dropped
    let loaded = { asked: "", when: 0 };
    let tipped = -1;
    let chosen = null; // to colour by; the server proposes something for a gallery

    const css = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
    const base = (uri) => uri.split(/[\\/]/).pop();
    const link = (id) => clf.write({ ...clf.blank(), gallery: $("gallery").value || null, queries: [{ id, weight: 1 }] }, map.first);

    const plot = clf.plot(canvas, {
      point: (i, how) => show(i, how),
      open: (i) => go(map.ids[i]),
      source: (i) => map.picture.replace("ID", map.ids[i]),
    });

    const go = (id) => {
      const there = section.appendChild(make("a", { href: link(id), data: { clfGo: "" }, hidden: true }));
      there.click();
      there.remove();
    };

    // -- one image
    const fetched = async (id) => {
      if (!named.has(id)) {
        const query = new URLSearchParams({ id, gallery: $("gallery").value });
        named.set(id, clf.ask(`page/map/image?${query}`).then((reply) => reply.json()));
        named.get(id).catch(() => named.delete(id));
      }
      return named.get(id);
    };
    const show = async (i, how) => {
      tipped = i;
      tip.hidden = i < 0;
      if (i < 0) return;
      tip.classList.toggle("clf-touched", how !== "mouse");
      tip.replaceChildren(make("img", { src: map.picture.replace("ID", map.ids[i]), alt: "" }), make("p", {}, make("b", { textContent: "…" })));
      place(i);
      let facts;
      try {
        facts = await fetched(map.ids[i]);
      } catch (error) {
        facts = { uri: error.message, folder: "", metadata: {} };
      }
      if (tipped !== i) return;
      const words = tip.querySelector("p");
      const value = map.field && map.field !== "@folder" ? facts.metadata[map.field] : undefined;
      words.replaceChildren(make("b", { textContent: base(facts.uri) }));
      if (facts.folder) words.append(make("span", { textContent: facts.folder }));
      if (value !== undefined) words.append(make("span", { textContent: `${map.field}: ${value}` }));
      if (how === "touch" && facts.id) words.append(make("a", { href: link(facts.id), textContent: "Search from this", data: { clfGo: "" } }));
      if (how === "keys") $("spoken").textContent = words.innerText.replace(/\s+/g, " ");
      place(i);
    };
    const place = (i) => {
      const { x, y, width, height } = plot.at(i);
      const [w, h] = [tip.offsetWidth, tip.offsetHeight];
      const left = x + 36 + w < width ? x + 36 : x - 36 - w;
      tip.style.left = `${Math.max(6, Math.min(width - w - 6, left))}px`;
      tip.style.top = `${Math.max(6, Math.min(height - h - 6, y - h / 2))}px`;
    };

    // -- colours
    const tones = () => {
      const list = [...section.style].filter((name) => /^--map-\d+$/.test(name)).map(css);
      return { list, other: css("--map-other"), none: css("--map-none"), accent: css("--accent"), faint: css("--map-faint") };
    };
    const grade = (code) => RAMP[Math.min(RAMP.length - 1, Math.floor((code / (GRADES + 1)) * RAMP.length))];
    const colour = (code, known) => {
      if (!map.codes) return known.accent;
      if (code === NONE) return known.none;
      if (map.low !== null) return grade(code);
      return known.list[code] ?? (only.has(code) ? known.accent : known.other);
    };
    const paint = () => {
      if (!map) return;
      const known = tones();
      const layers = new Map();
      const tone = new Array(map.n);
      for (let i = 0; i < map.n; i++) {
        const code = map.codes ? map.codes[i] : 0;
        const faint = (map.shown && !map.shown[i]) || (only.size > 0 && !only.has(code));
        const fill = faint ? known.faint : colour(code, known);
        const rank = faint ? 0 : fill === known.none ? 1 : fill === known.other ? 2 : 3;
        const name = `${rank}${fill}`;
        if (!layers.has(name)) layers.set(name, { colour: fill, points: [], faint, rank });
        layers.get(name).points.push(i);
        tone[i] = faint ? "" : fill;
      }
      const order = [...layers.values()].sort((a, b) => a.rank - b.rank || b.points.length - a.points.length);
      plot.paint(order, tone);
    };

    const line = (code, label, n, known) => {
      const button = make("button", { type: "button", title: "Pick out", aria: { pressed: String(only.has(code)) } });
      button.append(make("i", {}), make("span", { textContent: label }), make("b", { textContent: clf.number(n) }));
      button.firstChild.style.background = colour(code, known);
      button.addEventListener("click", () => {
        if (!only.delete(code)) only.add(code);
        button.setAttribute("aria-pressed", String(only.has(code)));
        paint();
        button.firstChild.style.background = colour(code, tones());
      });
      return make("li", {}, button);
    };
    const legend = () => {
      const box = $("legend");
      const ramp = $("ramp");
      box.hidden = !map.codes;
      if (!map.codes) return;
      const known = tones();
      box.querySelector("h2").textContent = map.field === "@folder" ? "Folder" : map.field;
      ramp.hidden = map.low === null;
      if (map.low !== null) {
        const nice = (value) => Number(value.toPrecision(6)).toLocaleString("en", { useGrouping: false, maximumFractionDigits: 6 });
        ramp.firstChild.style.background = `linear-gradient(90deg, ${RAMP.join()})`;
        [ramp.children[1].textContent, ramp.children[2].textContent] = [nice(map.low), nice(map.high)];
      }
      const lines = map.values.slice(0, LISTED).map(({ label, count: n }, code) => line(code, label, n, known));
      const rest = map.values.slice(LISTED).map(({ label, count: n }, i) => line(LISTED + i, label, n, known));
      if (rest.length) {
        const more = make("button", { type: "button", className: "clf-map-more", textContent: `${clf.number(rest.length)} more` });
        more.addEventListener("click", () => more.parentNode.replaceWith(...rest));
        lines.push(make("li", {}, more));
      }
      if (map.other) lines.push(line(OTHER, "other values", map.other, known));
      if (map.missing) lines.push(line(NONE, "no value", map.missing, known));
      box.querySelector("ul").replaceChildren(...lines);
    };

    // The same in a form that can be read out: each group, how many, and a way to go on from it.
    const list = () => {
      const head = section.querySelector("thead th");
      const rows = (map.values || []).map(({ label, count: n, example }) => {
        const way = make("a", { href: link(example), textContent: "Search from it", data: { clfGo: "" }, aria: { label: `Search from the image in the middle of ${label}` } });
        const image = make("img", { src: map.picture.replace("ID", example), alt: "", loading: "lazy" });
        return make("tr", {}, make("th", { scope: "row", textContent: label }), make("td", { textContent: clf.number(n) }), make("td", {}, image, way));
      });
      head.textContent = map.field === "@folder" ? "Folder" : map.field || "";
      $("list").hidden = !rows.length;
      section.querySelector("tbody").replaceChildren(...rows);
    };

    const note = () => {
      const parts = [map.n < map.images ? `An even sample of ${clf.number(map.n)} of ${clf.images(map.images)}` : clf.images(map.n)];
      const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
      if (map.explained && map.n < 3) parts.push("too few for the axes to mean anything");
      else if (map.explained) parts.push(`the axes hold ${percent(map.explained[0])} and ${percent(map.explained[1])} of the variance`);
      else parts.push("UMAP keeps neighbours together; distances between far groups mean little");
      if (map.shown) parts.push(`the search's filter lets ${clf.number(map.shown.reduce((sum, on) => sum + on, 0))} through`);
      if (map.stale) parts.push("the gallery has changed since this was drawn");
      $("note").textContent = `${parts.join(" · ")}.`;
      $("again").hidden = !map.stale;
    };

    // -- from the server
    const waiting = (text, share) => {
      wait.hidden = !text;
      wait.querySelector("p").textContent = text || "";
      const bar = wait.querySelector("progress");
      bar.hidden = share === undefined;
      if (share !== undefined) bar.value = share;
    };
    const question = () => {
      const kind = section.querySelector("[name=clf-map-kind]:checked").value;
      const { where } = clf.read(location.search);
      const query = new URLSearchParams({ kind, gallery: $("gallery").value });
      if (chosen !== null) query.set("colour", chosen);
      if (where !== null) query.set("where", typeof where === "string" ? where : JSON.stringify(where));
      return query;
    };
    const load = async (again = false) => {
      const mine = ++turn;
      const query = question();
      loaded = { asked: String(query), when: Date.now() };
      if (again) query.set("again", "1");
      if (!map) waiting("Reading the gallery…");
      try {
        for (;;) {
          const reply = await (await clf.ask(`page/map?${query}`)).json();
          if (mine !== turn) return;
          if (!reply.drawing) {
            take(reply);
            break;
          }
          const { stage, share, seconds } = reply.drawing;
          waiting(`UMAP: ${stage}, ${Math.round(seconds)} s`, share);
          query.delete("again");
          await new Promise((done) => setTimeout(done, 600));
          if (mine !== turn) return;
        }
        waiting("");
      } catch (error) {
        if (mine === turn) waiting(error.message);
      }
    };
    const take = (reply) => {
      const before = map && [map.kind, map.n, map.gallery, map.stamp].join();
      const old = map;
      const flat = new Uint16Array(bytes(reply.xy));
      map = { ...reply, ids: new Float64Array(bytes(reply.ids)) };
      map.codes = reply.codes === undefined ? null : new Uint8Array(bytes(reply.codes));
      map.shown = reply.shown === undefined ? null : new Uint8Array(bytes(reply.shown));
      if (old?.field !== map.field || old?.gallery !== map.gallery) only.clear();
      if (before !== [map.kind, map.n, map.gallery, map.stamp].join()) {
        named.clear();
        tip.hidden = true;
        plot.set(Float32Array.from({ length: map.n }, (_, i) => flat[2 * i] / 32767.5 - 1), Float32Array.from({ length: map.n }, (_, i) => flat[2 * i + 1] / 32767.5 - 1));
      }
      choices();
      paint();
      legend();
      list();
      note();
      canvas.dataset.points = map.n;
      canvas.dataset.kind = map.kind;
    };
    const choices = () => {
      const menu = $("colour");
      const options = ["", ...map.fields].map((name) => make("option", { value: name, textContent: name === "@folder" ? "folder" : name || "nothing", selected: name === (map.field || "") }));
      menu.replaceChildren(...options);
      const galleries = $("gallery");
      $("gallery-field").hidden = map.galleries.length < 2;
      galleries.replaceChildren(...map.galleries.map((name) => make("option", { value: name, textContent: name, selected: name === map.gallery })));
      map.first = map.galleries[0];
    };

    section.addEventListener("change", (event) => {
      if (event.target.id === "clf-map-colour") chosen = event.target.value;
      if (event.target.id === "clf-map-gallery") chosen = null;
      if (event.target.id === "clf-map-pictures") plot.showPictures(event.target.checked);
      else load();
    });
    section.querySelector(".clf-map-zoom").addEventListener("click", (event) => {
      const way = event.target.closest("button")?.dataset.zoom;
      if (way === "all") plot.all();
      else if (way) plot.zoom(way === "in" ? 1.6 : 1 / 1.6);
    });
    document.addEventListener("clf-changed", () => (loaded.when = 0));
    $("again").addEventListener("click", () => load(true));
    new MutationObserver(() => (paint(), map && legend())).observe(document.body, { attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    new IntersectionObserver((seen) => {
      if (!seen.some((each) => each.isIntersecting)) return;
      if (String(question()) !== loaded.asked || Date.now() - loaded.when > 20000) load();
    }).observe($("stage"));
  });
})();
