// The search tab: what is looked for, asking for it, and showing what came.
(() => {
  "use strict";
  const clf = window.clf;
  const { $, ready, ask, make } = clf;
  const MOST_QUERIES = 32;
  const MOST_UPLOADS = 16; // pictures kept in this window; the oldest that is not asked with goes first
  const SLOW = 150; // milliseconds until grey shapes stand where results will be
  const WARMING = 1500; // milliseconds between questions to a server that is not ready yet

  const uploads = new Map(); // by key: {blob, name, picture, vectors}
  let known = null; // what page/gallery said
  let first = null; // the gallery that an address without one means
  let asked = {}; // by id: {name, picture} of the gallery's pictures that were asked with
  let cropper = null;
  let turns = 0;
  let meetings = 0;
  let stop = null;
  let made = 0;

  clf.state = clf.blank();
  clf.message = (title, text) =>
    make("div", { className: "clf-message" }, make("h2", { textContent: title }), make("p", { textContent: text }));

  const active = () => clf.state.queries.findLast((query) => query.upload);
  const shown = (query) => {
    if (query.upload) return uploads.get(query.upload);
    return asked[query.id] || { name: `image ${query.id}`, picture: "" };
  };
  const inGallery = (path) => {
    const name = clf.state.gallery;
    return name ? `${path}${path.includes("?") ? "&" : "?"}gallery=${encodeURIComponent(name)}` : path;
  };

  // ---- what is looked for -------------------------------------------------------------------------------------

  // Every change of the search goes through here: a new entry of the browser's history, then the results.
  clf.change = (changes, { how = "push", start = performance.now() } = {}) => {
    clf.state = { ...clf.state, page: 0, lost: 0, ...changes };
    return run(how, start);
  };
  clf.from = (id) => clf.change({ queries: [{ id, weight: 1 }] });
  clf.weigh = (id, weight) => {
    const others = clf.state.queries.filter((query) => query.id !== id);
    if (others.length >= MOST_QUERIES) return note(`A search takes ${MOST_QUERIES} pictures at most.`);
    return clf.change({ queries: [...others, { id, weight }] });
  };
  clf.reweigh = (i, weight) => clf.change({ queries: clf.state.queries.map((query, j) => (i === j ? { ...query, weight } : query)) });
  clf.remove = (i) => clf.change({ queries: clf.state.queries.filter((_, j) => i !== j) });

  clf.take = (file, { add = false, start = performance.now() } = {}) => {
    const key = `u${++made}`;
    document.querySelector(".clf-side").scrollTop = 0;
    uploads.set(key, { blob: file, name: file.name || "your picture", picture: URL.createObjectURL(file), vectors: new Map() });
    const others = add ? clf.state.queries.slice(0, MOST_QUERIES - 1) : [];
    const using = new Set([key, ...others.map((query) => query.upload)]);
    for (const [old, { picture }] of uploads) {
      if (uploads.size <= MOST_UPLOADS) break;
      if (!using.has(old)) {
        URL.revokeObjectURL(picture);
        uploads.delete(old);
      }
    }
    return clf.change({ queries: [...others, { upload: key, weight: 1, crop: null }] }, { start });
  };

  const crop = (rectangle) => {
    const query = active();
    if (!query) return;
    const queries = clf.state.queries.map((each) => (each === query ? { ...each, crop: rectangle } : each));
    clf.change({ queries }, { how: "replace" });
  };

  // ---- asking -------------------------------------------------------------------------------------------------

  const run = async (how, start) => {
    const turn = ++turns;
    stop?.abort();
    stop = new AbortController();
    keep(how);
    drawQuery();
    note(lostText());
    if (!clf.state.queries.length) return welcome();
    busy(true);
    const grey = setTimeout(skeleton, SLOW);
    try {
      const times = {};
      const found = await look(times, stop.signal).catch((error) => {
        if (error.code !== "other_model") throw error;
        for (const upload of uploads.values()) upload.vectors.clear(); // the model was replaced since they were embedded
        return look(times, stop.signal);
      });
      if (turn !== turns) return;
      clearTimeout(grey);
      if (found.html === undefined) vector(found.vector, times, start);
      else draw(found, times, start);
    } catch (error) {
      if (turn !== turns || error.name === "AbortError") return;
      failed(error);
      if (error.code === "warming_up") setTimeout(() => turn === turns && clf.again(), WARMING);
    } finally {
      clearTimeout(grey);
      if (turn === turns) busy(false);
    }
  };

  // The results of the search; without a gallery, a picture's vector.
  const look = async (times, signal) => {
    const { gallery, k, page, where, fold, min, queries } = clf.state;
    const ready = await Promise.all(queries.map((query) => prepared(query, times, signal)));
    if (known && !known.name) return ready[0];
    const body = { queries: ready, k, page, fold, where, ...(gallery && { gallery }), ...(min !== null && { min }) };
    const headers = { "Content-Type": "application/json" };
    return (await ask("page/search", { method: "POST", headers, body: JSON.stringify(body), signal })).json();
  };

  // A query as the server takes it. A picture is sent once for each model and crop; after that its vector is.
  const prepared = async (query, times, signal) => {
    if (!query.upload) return { id: query.id, weight: query.weight };
    const upload = uploads.get(query.upload);
    const key = `${clf.state.gallery || ""}|${query.crop || ""}`;
    if (!upload.vectors.has(key)) {
      const part = query.crop ? `?crop=${query.crop.map((x) => x.toFixed(4)).join(",")}` : "";
      const headers = { "Content-Type": "application/octet-stream" };
      const reply = await ask(inGallery(`page/embed${part}`), { method: "POST", headers, body: upload.blob, signal });
      const told = await reply.json();
      upload.vectors.set(key, { vector: told.vector, model: told.model });
      for (const [stage, ms] of Object.entries(told.times)) times[stage] = (times[stage] || 0) + ms;
    }
    return { ...upload.vectors.get(key), weight: query.weight };
  };

  // ---- the address --------------------------------------------------------------------------------------------

  const keep = (how) => {
    if (how === "none") return;
    const address = clf.write(clf.state, first);
    const entry = { clf: clf.state.queries };
    if (how === "push") history.pushState(entry, "", address);
    else history.replaceState(entry, "", address);
  };
  const recall = (entry) => {
    const search = clf.read(location.search);
    const before = entry?.clf;
    if (before?.every((query) => query.id !== undefined || uploads.has(query.upload))) {
      return { ...search, queries: before, lost: 0 };
    }
    return search;
  };
  clf.go = (address) => {
    history.pushState(null, "", address);
    return restore(null);
  };
  const restore = async (entry) => {
    const gallery = clf.state.gallery;
    clf.state = recall(entry);
    const turn = ++turns; // whatever comes meanwhile is wanted more
    if (!known || (clf.state.gallery || first) !== (gallery || first)) await meet();
    return turn === turns && run("none", performance.now());
  };
  clf.again = () => (known ? run("none", performance.now()) : restore(history.state));
  const lostText = () => {
    const { lost, queries } = clf.state;
    if (lost) {
      return queries.length
        ? "This address leaves out an uploaded picture: what is uploaded stays with whoever uploaded it."
        : "This is the address of a search with an uploaded picture, which stays with whoever uploaded it. Drop it here again.";
    }
    if (!queries.some((query) => query.upload)) return "";
    return "An uploaded picture is not part of the address. Click a result to get a search that can be shared.";
  };

  // ---- showing ------------------------------------------------------------------------------------------------

  const note = (text) => {
    $("clf-note").textContent = text;
    $("clf-note").hidden = !text;
  };
  // Read out; not shown where the results say the same.
  const tell = (text, unseen = false) => {
    $("clf-status").textContent = text;
    $("clf-status").classList.toggle("clf-unseen", unseen);
  };
  const busy = (on) => $("clf-result").setAttribute("aria-busy", String(on));
  const skeleton = () => {
    if (clf.visible().length) return;
    const cards = Array.from({ length: 12 }, () => make("li", { className: "clf-grey" }, make("i"), make("i"), make("i")));
    $("clf-result").replaceChildren(make("ol", { className: "clf-grid", aria: { hidden: "true" } }, ...cards));
  };
  const welcome = () => {
    turns++;
    tell("");
    $("clf-times").replaceChildren();
    $("clf-pager").hidden = true;
    document.title = "clf search";
    if (known) $("clf-result").innerHTML = known.welcome;
    busy(false);
  };
  const failed = (error) => {
    const text = `${error.message[0]?.toUpperCase()}${error.message.slice(1)}`.replace(/[^.?!]$/, "$&.");
    if (error.code === "invalid_filter") clf.filterError(error.message);
    $("clf-result").replaceChildren(trouble("That did not work", text, error));
    tell("That did not work.", true);
    $("clf-times").replaceChildren();
    $("clf-pager").hidden = true;
  };

  // With a way on: to ask again where that may help, or to the gallery that there is.
  const trouble = (title, text, { status = 0, code }) => {
    const shown = clf.message(title, text);
    if (code === "gallery_not_found") shown.append(make("a", { className: "clf-btn", href: location.pathname, textContent: "Open the first gallery" }));
    else if (!status || status === 429 || status >= 500) {
      const again = make("button", { type: "button", className: "clf-btn", textContent: "Try again" });
      again.addEventListener("click", () => clf.again());
      shown.append(again);
    }
    return shown;
  };
  const draw = (found, times, start) => {
    const { queries, page, k, where, min } = clf.state;
    const result = $("clf-result");
    const focused = result.contains(document.activeElement);
    asked = { ...asked, ...found.asked };
    if (found.shown) result.innerHTML = found.html;
    else result.replaceChildren(nothing(found, page, where, min));
    clf.rove(clf.visible()[0]);
    if (focused) (clf.visible()[0] || result).focus({ preventScroll: true });
    drawChips();
    document.title = `${shown(queries[0]).name.split("/").pop()} · clf search`;
    $("clf-pager").hidden = !(found.more || page);
    $("clf-previous").disabled = !page;
    $("clf-next").disabled = !found.more;
    $("clf-page").textContent = `Page ${page + 1}`;
    for (const [stage, ms] of Object.entries(found.times)) times[stage] = (times[stage] || 0) + ms;
    requestAnimationFrame(() => setTimeout(() => painted(found, times, start, page * k), 0));
    if (found.generation !== known?.generation) meet();
  };
  const painted = (found, times, start, before) => {
    const end = performance.now();
    performance.measure("clf-result", { start, end });
    const total = end - start;
    const among = found.among < found.images ? `${clf.number(found.among)} that pass the filter` : clf.number(found.among);
    const range = before ? `${before + 1} to ${before + found.shown}` : `${found.shown} nearest`;
    const folded = found.folded ? `, ${found.folded} more folded` : "";
    const text = found.shown ? `${range} of ${among}${folded}, in ${Math.round(total)} ms` : "No results";
    tell(text);
    drawTimes(times, total);
  };
  const nothing = (found, page, where, min) => {
    if (page) return clf.message("No more results", "Go back to the page before.");
    if (!found.among && where !== null) return clf.message("Nothing passes the filter", "Loosen it, or clear it.");
    if (min !== null) return clf.message(`Nothing scores ${min} or more`, "Lower the least score.");
    return clf.message("Nothing else is here", "The gallery holds no other picture.");
  };

  const STAGES = { read: "reading", decode: "decoding", queue: "waiting", inference: "model", search: "search" };
  const drawTimes = (times, total) => {
    const parts = Object.entries(STAGES).map(([stage, word]) => [stage, word, times[stage] || 0]);
    const rest = Math.max(0, total - parts.reduce((sum, [, , ms]) => sum + ms, 0));
    const all = [...parts.filter(([, , ms]) => ms >= 0.05), ["rest", "network and drawing", rest]];
    const bar = make("span", { className: "clf-times-bar", aria: { hidden: "true" } });
    bar.append(...all.map(([stage, , ms]) => {
      const part = make("i", { data: { stage } });
      part.style.flexGrow = ms;
      return part;
    }));
    const words = all.map(([stage, word, ms]) => make("span", { data: { stage }, textContent: `${word} ${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)}` }));
    $("clf-times").replaceChildren(bar, make("span", { className: "clf-times-words", title: "Milliseconds of each stage" }, ...words));
  };

  const vector = (text, times, start) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const numbers = [...new Float32Array(bytes.buffer)];
    const top = Math.max(...numbers.map(Math.abs));
    const bars = make("div", { className: "clf-vector", role: "img", aria: { label: `${numbers.length} numbers of the embedding` } });
    bars.append(...numbers.map((x) => {
      const bar = make("i", { className: x < 0 ? "clf-below" : "" });
      bar.style.setProperty("--share", Math.abs(x) / top);
      return bar;
    }));
    $("clf-result").replaceChildren(bars);
    tell(`${numbers.length} numbers`);
    drawTimes(times, performance.now() - start);
  };

  // The picture that was uploaded last, at the left.
  const drawQuery = () => {
    const query = active();
    const upload = query && uploads.get(query.upload);
    $("clf-search").classList.toggle("clf-asking", clf.state.queries.length > 0);
    if (!query?.crop) $("clf-search").classList.remove("clf-staged"); // a phone shows the picture only while it is cropped
    $("clf-empty").hidden = Boolean(upload);
    $("clf-stage").hidden = !upload;
    $("clf-crop-start").hidden = !upload || Boolean(query.crop);
    $("clf-crop-end").hidden = !upload || !query.crop;
    $("clf-crop-hint").hidden = !upload || Boolean(query.crop);
    $("clf-file-label").textContent = upload ? "Replace" : "Choose a file";
    const preview = $("clf-preview");
    if (upload && preview.getAttribute("src") !== upload.picture) preview.src = upload.picture;
    if (upload) preview.alt = `Your picture, ${upload.name}`;
    if (query?.crop) cropper?.set(query.crop);
    else cropper?.end();
    drawChips();
    drawControls();
  };
  const drawChips = () => clf.drawChips(clf.state.queries, shown);
  const drawControls = () => {
    const { k, min, fold, gallery } = clf.state;
    for (const radio of document.querySelectorAll("[name=clf-k]")) radio.checked = Number(radio.value) === k;
    $("clf-min").value = min === null ? $("clf-min").min : min;
    $("clf-min-out").textContent = min === null ? "any" : min.toFixed(2);
    $("clf-fold").checked = fold;
    if (known) $("clf-gallery").value = gallery || first;
    clf.drawFilter();
  };

  // ---- the gallery --------------------------------------------------------------------------------------------

  // Asks what there is to know of the gallery.
  const meet = async () => {
    const meeting = ++meetings;
    try {
      const told = await (await ask(inGallery("page/gallery"))).json();
      if (meeting !== meetings) return;
      known = told;
    } catch (error) {
      if (meeting !== meetings) return;
      known = null;
      if (!clf.visible().length) $("clf-result").replaceChildren(trouble("The page cannot be filled", error.message, error));
      return;
    }
    first = known.galleries[0]?.name ?? null;
    const more = make("span", { textContent: known.name ? ` · ${known.about}` : known.about });
    $("clf-about").replaceChildren(known.name ? `${known.name} · ${clf.images(known.images)}` : "", more);
    $("clf-index").textContent = known.index;
    $("clf-near").textContent = known.near === null ? "" : `a cosine of ${known.near.toFixed(3)} or more`;
    const options = known.galleries.map(({ name, images, model }) =>
      make("option", { value: name, textContent: `${name}: ${clf.images(images)}, ${model}` }));
    $("clf-gallery").replaceChildren(...options);
    $("clf-gallery-field").hidden = options.length < 2;
    $("clf-filter").hidden = $("clf-index").hidden = !known.name;
    document.querySelector(".clf-controls").hidden = !known.name;
    clf.drawFilter(known.form);
    drawControls();
  };
  const changeGallery = async (name) => {
    const queries = clf.state.queries.filter((query) => query.upload);
    const dropped = queries.length < clf.state.queries.length;
    clf.state = { ...clf.state, gallery: name, queries, where: null, page: 0 };
    asked = {};
    await meet();
    if (clf.state.gallery !== name) return; // another was chosen meanwhile
    await clf.change({});
    if (dropped && !queries.length) note("Pictures of one gallery cannot be looked for in another; upload one to do so.");
  };

  const turn = (by) => clf.change({ page: clf.state.page + by }).then(() => {
    document.querySelector(".clf-main").scrollIntoView({ block: "start" });
    clf.visible()[0]?.focus({ preventScroll: true });
  });

  const controls = () => {
    let later = 0;
    for (const radio of document.querySelectorAll("[name=clf-k]")) {
      radio.addEventListener("change", () => clf.change({ k: Number(radio.value) }));
    }
    $("clf-fold").addEventListener("change", (event) => clf.change({ fold: event.target.checked }));
    $("clf-gallery").addEventListener("change", (event) => changeGallery(event.target.value));
    $("clf-min").addEventListener("input", ({ target }) => {
      const min = Number(target.value) < 0 ? null : Number(target.value);
      $("clf-min-out").textContent = min === null ? "any" : min.toFixed(2);
      clearTimeout(later);
      later = setTimeout(() => clf.change({ min }, { how: "replace" }), 150);
    });
    $("clf-previous").addEventListener("click", () => turn(-1));
    $("clf-next").addEventListener("click", () => turn(1));
    $("clf-crop-start").addEventListener("click", () => {
      $("clf-search").classList.add("clf-staged");
      crop(cropper.begin());
    });
    $("clf-crop-end").addEventListener("click", () => crop(null));
  };

  clf.uploads = () => uploads.size;
  Object.assign(clf, { note, busy, failed, redraw: drawQuery, picture: () => active() && uploads.get(active().upload) });
  ready("clf-add", (last) => {
    clf.plain(last);
    $("clf-options").open = !matchMedia("(max-width: 760px)").matches;
    cropper = clf.cropper($("clf-crop"), $("clf-box"), crop);
    controls();
    addEventListener("popstate", (event) => restore(event.state));
    document.addEventListener("clf-changed", async () => {
      await meet();
      if (!clf.state.queries.length) welcome(); // its pictures to start from
    });
    clf.started = restore(history.state);
  });
})();
