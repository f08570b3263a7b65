// What all tabs share: asking the server, the search as an address, light and dark.
(() => {
  "use strict";
  const clf = (window.clf = {});
  const COUNTS = [12, 24, 48, 96];

  clf.$ = (id) => document.getElementById(id);

  // Gradio draws the page some time after its scripts have run.
  clf.ready = (id, then) => {
    const there = () => clf.$(id) && (then(clf.$(id)), true);
    if (there()) return;
    const watch = new MutationObserver(() => there() && watch.disconnect());
    watch.observe(document.documentElement, { childList: true, subtree: true });
  };

  // Gradio's style for text written by hand is not for these.
  clf.plain = (element) => {
    for (let around = element; around && around !== document.body; around = around.parentElement) {
      around.classList.remove("prose", "gradio-style");
    }
  };

  // A reply that is well; else an Error with the server's own sentence, its status and its code.
  clf.ask = async (path, options = {}) => {
    let reply;
    try {
      reply = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    if (reply.ok) return reply;
    const told = await reply.json().catch(() => ({}));
    const error = new Error(told.error?.message || `The server answered ${reply.status}.`);
    throw Object.assign(error, { status: reply.status, code: told.error?.code });
  };

  clf.number = (n) => n.toLocaleString("en");
  clf.images = (n) => `${clf.number(n)} ${n === 1 ? "image" : "images"}`;

  clf.make = (tag, options = {}, ...children) => {
    const { data = {}, aria = {}, ...rest } = options;
    const made = Object.assign(document.createElement(tag), rest);
    Object.assign(made.dataset, data);
    for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
    made.append(...children);
    return made;
  };

  const number = (text, least, most, otherwise) => {
    const value = text === null || text.trim() === "" ? NaN : Number(text);
    return value >= least && value <= most ? value : otherwise;
  };

  const asked = (text, sign) => {
    const found = /^(\d{1,18})(?::(\d+(?:\.\d+)?))?$/.exec(text);
    const weight = found && (found[2] === undefined ? (sign < 0 ? 0.5 : 1) : Number(found[2]));
    return found && weight > 0 && weight <= 10 ? { id: Number(found[1]), weight: sign * weight } : null;
  };

  clf.blank = () => ({ gallery: null, queries: [], k: 24, page: 0, where: null, fold: true, min: null, lost: 0 });

  // ?gallery=NAME&like=5&like=9:2&unlike=3&k=48&page=2&min=0.8&fold=0&where={...}
  clf.read = (address) => {
    const given = new URLSearchParams(address);
    const all = (name, sign) => given.getAll(name).map((text) => asked(text, sign)).filter(Boolean);
    const search = clf.blank();
    search.gallery = given.get("gallery");
    search.queries = [...all("like", 1), ...all("unlike", -1)].slice(0, 32);
    search.lost = number(given.get("uploaded"), 0, 99, 0);
    search.k = COUNTS.includes(Number(given.get("k"))) ? Number(given.get("k")) : search.k;
    search.page = Math.floor(number(given.get("page"), 1, 10000, 1)) - 1;
    search.min = number(given.get("min"), -1, 1, null);
    search.fold = given.get("fold") !== "0";
    try {
      search.where = JSON.parse(given.get("where") || "null");
    } catch {
      search.where = given.get("where"); // the server says what is wrong with it
    }
    return search;
  };

  clf.write = (search, first) => {
    const parts = [];
    const add = (name, value) => parts.push(`${name}=${encodeURIComponent(value).replace(/%(3A|2C|24|40|2F)/g, decodeURIComponent)}`);
    if (search.gallery && search.gallery !== first) add("gallery", search.gallery);
    for (const { id, weight } of search.queries) {
      if (id === undefined) continue;
      if (weight > 0) add("like", weight === 1 ? id : `${id}:${weight}`);
      else add("unlike", weight === -0.5 ? id : `${id}:${-weight}`);
    }
    const uploads = search.queries.filter((query) => query.id === undefined).length;
    if (uploads) add("uploaded", uploads);
    if (search.k !== 24) add("k", search.k);
    if (search.page) add("page", search.page + 1);
    if (search.min !== null) add("min", search.min);
    if (!search.fold) add("fold", 0);
    if (search.where !== null) add("where", JSON.stringify(search.where));
    return parts.length ? `?${parts.join("&")}` : location.pathname;
  };

  clf.still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  clf.ready("clf-theme", (button) => {
    clf.plain(button);
    const kept = (() => {
      try {
        return localStorage.getItem("clf-theme");
      } catch {
        return null; // storage is off
      }
    })();
    const show = () => {
      const dark = document.body.classList.contains("dark");
      button.textContent = dark ? "Light" : "Dark";
      button.setAttribute("aria-label", dark ? "Change to light" : "Change to dark");
    };
    if (kept) document.body.classList.toggle("dark", kept === "dark");
    new MutationObserver(show).observe(document.body, { attributeFilter: ["class"] });
    button.addEventListener("click", () => {
      const dark = document.body.classList.toggle("dark");
      try {
        localStorage.setItem("clf-theme", dark ? "dark" : "light");
      } catch {
        // then it holds until the page is left
      }
    });
    show();
  });

  // Any tab may hold <a data-clf-go href="?like=5">: the search runs without loading the page again.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-clf-go]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    document.querySelector("#clf-tabs [role=tab]")?.click();
    clf.go?.(link.getAttribute("href"));
  });
})();
