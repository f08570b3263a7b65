// The tab that adds images: sends files a few at a time, and says what became of each.
(() => {
  "use strict";
  const AT_ONCE = 6;
  const TRIES = 6; // of a file that the server has no room for, or that the network lost
  const LISTED = 200; // reasons shown
  const LATEST = 24; // pictures shown
  const SPAN = 4000; // milliseconds over which the rate is taken

  clf.ready("clf-ingest-drop", (zone) => {
    const $ = (name) => clf.$(`clf-ingest-${name}`);
    const { make } = clf;
    const section = clf.$("clf-ingest");
    let waiting = [];
    let refused = []; // [{entry, reason}]
    let tally = null;
    let working = 0;
    let stopped = null; // an AbortController while there is work
    let drawn = 0;

    const count = (n) => n.toLocaleString("en");
    const visible = () => section.offsetParent !== null;
    const pause = (ms, signal) =>
      new Promise((done) => {
        setTimeout(done, ms);
        signal.addEventListener("abort", done, { once: true });
      });

    // "name = value" a line; a value that is JSON is taken as such, so 2026 is a number and true is true.
    const metadata = () => {
      const found = {};
      for (const line of $("metadata").value.split("\n").filter((each) => each.trim())) {
        const split = line.indexOf("=");
        const name = line.slice(0, split).trim();
        if (split < 1 || !name) throw new Error(`“${line.trim()}” has no name; write it as name = value.`);
        const value = line.slice(split + 1).trim();
        try {
          found[name] = JSON.parse(value);
        } catch {
          found[name] = value;
        }
      }
      return found;
    };

    // -- sending
    const add = (entries) => {
      let about;
      try {
        about = metadata();
      } catch (error) {
        $("metadata-error").textContent = error.message;
        $("metadata").focus();
        return;
      }
      $("metadata-error").textContent = "";
      const under = $("under").value.trim().replace(/^\/+|\/+$/g, "");
      const gallery = $("gallery").value;
      if (!stopped) tally = { total: 0, done: 0, added: 0, known: 0, began: performance.now(), ends: [] };
      if (!stopped) refused = [];
      for (const { file, path } of entries) {
        const name = under ? `${under}/${path.split("/").pop()}` : path;
        waiting.push({ file, name, gallery, about });
      }
      tally.total += entries.length;
      begin();
    };
    const begin = () => {
      stopped ||= new AbortController();
      $("idle").hidden = true;
      $("work").hidden = false;
      $("stop").hidden = false;
      $("again").hidden = true;
      while (working < AT_ONCE && waiting.length) worker();
      draw();
    };
    const worker = async () => {
      working++;
      while (waiting.length && !stopped.signal.aborted) {
        const entry = waiting.shift();
        try {
          const written = await send(entry, stopped.signal);
          tally[written.created ? "added" : "known"]++;
          latest(entry, written.id);
        } catch (error) {
          if (stopped.signal.aborted) {
            waiting.unshift(entry);
            break;
          }
          refused.push({ entry, reason: error.message });
        }
        tally.done++;
        tally.ends.push(performance.now());
        draw();
      }
      if (!--working) finish();
    };
    const send = async ({ file, name, gallery, about }, signal) => {
      const query = new URLSearchParams({ uri: name.slice(-1024), metadata: JSON.stringify(about) });
      const path = `v1/galleries/${encodeURIComponent(gallery)}/images?${query}`;
      for (let tries = 1; ; tries++) {
        let wait = 1;
        let reason;
        try {
          const headers = { "Content-Type": "application/octet-stream" };
          const reply = await fetch(path, { method: "POST", headers, body: file, signal });
          if (reply.ok) return (await reply.json()).images[0];
          const told = await reply.json().catch(() => ({}));
          reason = told.error?.message || `The server answered ${reply.status}.`;
          if (![408, 409, 429, 503].includes(reply.status)) throw Object.assign(new Error(reason), { final: true });
          wait = Number(reply.headers.get("Retry-After")) || 1;
        } catch (error) {
          if (error.final || signal.aborted) throw error;
          reason ||= "The server does not answer, or the file cannot be read.";
        }
        if (tries === TRIES) throw new Error(reason);
        await pause(1000 * Math.min(wait, 10) * (0.7 + 0.6 * Math.random()), signal);
        if (signal.aborted) throw new Error("stopped");
      }
    };
    const finish = () => {
      const left = waiting.length;
      waiting = [];
      stopped = null;
      paint();
      const words = [`${count(tally.added + tally.known)} of ${count(tally.total)} are in the gallery`];
      if (left) words.push(`stopped; ${count(left)} were not sent`);
      if (refused.length) words.push(`${count(refused.length)} refused`);
      words.push(`${((performance.now() - tally.began) / 1000).toFixed(1)} s`);
      $("status").textContent = `${words.join(" · ")}.`;
      $("stop").hidden = true;
      $("again").hidden = !refused.length;
      document.dispatchEvent(new CustomEvent("clf-changed", { detail: { gallery: $("gallery").value } }));
    };

    // -- showing
    const draw = () => (drawn ||= requestAnimationFrame(paint));
    const paint = () => {
      cancelAnimationFrame(drawn);
      drawn = 0;
      const time = performance.now();
      tally.ends = tally.ends.filter((end) => time - end < SPAN);
      const passed = Math.max(time - tally.began, 1);
      const rate = stopped ? (1000 * tally.ends.length) / Math.min(SPAN, passed) : (1000 * tally.done) / passed;
      $("progress").value = tally.total ? tally.done / tally.total : 0;
      $("added").textContent = count(tally.added);
      $("known").textContent = count(tally.known);
      $("refused").textContent = count(refused.length);
      $("rate").textContent = rate >= 10 ? count(Math.round(rate)) : rate.toFixed(1);
      if (stopped) {
        const left = rate > 0 ? Math.ceil((tally.total - tally.done) / rate) : 0;
        $("status").textContent = `${count(tally.done)} of ${count(tally.total)}${left ? ` · ${count(left)} s left` : ""}`;
      }
      reasons();
    };
    const reasons = () => {
      $("reasons").hidden = !refused.length;
      const list = $("reasons").querySelector("ul");
      if (!refused.length) list.replaceChildren();
      while (list.children.length < Math.min(refused.length, LISTED)) {
        const { entry, reason } = refused[list.children.length];
        list.append(make("li", {}, make("b", { textContent: entry.name }), make("span", { textContent: reason })));
      }
      $("reasons").querySelector("summary").textContent = refused.length > LISTED ? `Refused; the first ${LISTED}` : "Refused";
    };
    const latest = ({ name, gallery }, id) => {
      const search = clf.write({ ...clf.blank(), gallery, queries: [{ id, weight: 1 }] }, $("gallery").options[0].value);
      const source = `v1/galleries/${encodeURIComponent(gallery)}/images/${id}/thumbnail`;
      const image = make("img", { src: source, alt: "", loading: "lazy" });
      $("latest").prepend(make("a", { href: search, title: name, data: { clfGo: "" }, aria: { label: `Search from ${name}` } }, image));
      while ($("latest").children.length > LATEST) $("latest").lastChild.remove();
    };

    // -- files and folders, however they come
    const wanted = ({ file, path }) => !/(^|\/)\./.test(path) && (!file.type || file.type.startsWith("image/"));
    const take = (entries) => {
      const pictures = entries.filter(wanted);
      if (pictures.length) add(pictures);
      else $("metadata-error").textContent = entries.length ? "There is no picture among these." : "";
    };
    const listed = (files) => [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
    const walk = async (item, found) => {
      if (item.isFile) {
        const file = await new Promise((done, failed) => item.file(done, failed));
        found.push({ file, path: item.fullPath.slice(1) });
        return;
      }
      const reader = item.createReader();
      for (;;) {
        const part = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (!part.length) return;
        for (const each of part) await walk(each, found);
      }
    };
    for (const name of ["files", "folder"]) {
      $(name).addEventListener("change", (event) => {
        const entries = listed(event.target.files);
        event.target.value = "";
        take(entries);
      });
    }
    $("stop").addEventListener("click", () => stopped?.abort());
    $("again").addEventListener("click", () => {
      const entries = refused.map(({ entry }) => entry);
      refused = [];
      tally = { ...tally, total: entries.length, done: 0, added: 0, known: 0, began: performance.now(), ends: [] };
      waiting = entries;
      reasons();
      begin();
    });
    // Before the search tab takes what was dropped anywhere.
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      document.addEventListener(
        kind,
        async (event) => {
          if (!visible() || ![...(event.dataTransfer?.types || [])].includes("Files")) return;
          event.preventDefault();
          event.stopImmediatePropagation();
          zone.classList.toggle("clf-over", kind === "dragover" || kind === "dragenter");
          if (kind !== "drop") return;
          const items = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
          const files = listed(event.dataTransfer.files);
          const found = [];
          try {
            for (const item of items) await walk(item, found);
          } catch (error) {
            $("metadata-error").textContent = `A folder cannot be read: ${error.message}`;
          }
          take(found.length ? found : files);
        },
        true,
      );
    }
    addEventListener("beforeunload", (event) => stopped && event.preventDefault());
  });
})();
