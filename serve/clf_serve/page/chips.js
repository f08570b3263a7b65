// The pictures that are asked with, above the results: more like this, less like that, and how much.
(() => {
  "use strict";
  const { $, ready, make } = window.clf;
  const WEIGHTS = [0.25, 0.5, 1, 2, 3];

  ready("clf-chips", (bar) => {
    // `shown(query)` gives {name, picture}
    window.clf.drawChips = (queries, shown) => {
      bar.hidden = !queries.length;
      bar.replaceChildren(...queries.map((query, i) => chip(query, i, shown(query))));
      const add = make("button", { type: "button", className: "clf-btn clf-add", textContent: "+ Add a picture" });
      add.addEventListener("click", () => $("clf-add").click());
      bar.append(make("div", { role: "listitem" }, add));
    };

    const chip = (query, i, { name, picture }) => {
      const like = query.weight > 0;
      const sign = make("button", {
        type: "button",
        className: "clf-sign",
        textContent: like ? "more like this" : "less like this",
        title: "Change between more and less",
        aria: { label: `${like ? "More" : "Less"} like ${name}; change` },
      });
      sign.addEventListener("click", () => window.clf.reweigh(i, -query.weight));
      const size = Math.abs(query.weight);
      const weights = WEIGHTS.includes(size) ? WEIGHTS : [...WEIGHTS, size].sort((a, b) => a - b);
      const options = weights.map((w) => make("option", { value: w, textContent: `× ${w}`, selected: w === size }));
      const weight = make("select", { className: "clf-weight", title: "Weight", aria: { label: `Weight of ${name}` } }, ...options);
      weight.addEventListener("change", () => window.clf.reweigh(i, Math.sign(query.weight) * Number(weight.value)));
      const remove = make("button", { type: "button", className: "clf-remove", textContent: "×", title: "Remove", aria: { label: `Remove ${name}` } });
      remove.addEventListener("click", () => window.clf.remove(i));
      const label = make("span", { className: "clf-chip-name", textContent: name.split("/").pop(), title: name });
      const image = make(picture ? "img" : "span", { className: "clf-chip-picture", ...(picture && { alt: "", src: picture }) });
      const crop = query.crop ? make("span", { className: "clf-chip-part", textContent: "a part of it" }) : "";
      const text = make("div", {}, label, make("span", { className: "clf-chip-row" }, sign, weight, crop));
      return make("div", { role: "listitem", className: "clf-chip", data: { sign: like ? "more" : "less" } }, image, text, remove);
    };
  });
})();
