// The filter: a form for most, JSON for the rest. The JSON is what counts; the form shows what of it it can.
(() => {
  "use strict";
  const { $, ready } = window.clf;

  const control = (element) => {
    const name = element.dataset.name;
    if (element.dataset.kind === "range") {
      const ends = {};
      for (const input of element.querySelectorAll("input")) {
        if (input.value !== "" && input.validity.valid) ends[input.dataset.end] = Number(input.value);
      }
      return Object.keys(ends).length ? { [name]: ends } : {};
    }
    if (element.value === "") return {};
    if (element.dataset.kind === "contains") return { [name]: { $contains: element.value } };
    const value = JSON.parse(element.value);
    return { [name]: element.dataset.kind === "member" ? { $contains: value } : value };
  };

  const put = (element, value) => {
    if (element.dataset.kind === "range") {
      for (const input of element.querySelectorAll("input")) input.value = value?.[input.dataset.end] ?? "";
    } else {
      const plain = ["contains", "member"].includes(element.dataset.kind) ? value?.$contains : value;
      const text = plain === undefined ? "" : element.tagName === "SELECT" ? JSON.stringify(plain) : plain;
      element.value = text;
      if (element.selectedIndex === -1) element.value = ""; // a value that the form does not offer
    }
  };

  ready("clf-filter", (panel) => {
    const [form, area, error] = ["clf-form", "clf-where", "clf-where-error"].map($);
    let drawn = "";
    const controls = () => [...form.querySelectorAll("[data-kind]")];

    const apply = (where) => {
      error.textContent = "";
      window.clf.change({ where });
    };
    const read = () => {
      const text = area.value.trim();
      if (!text) return apply(null);
      try {
        const where = JSON.parse(text);
        apply(Object.keys(where).length || typeof where !== "object" ? where : null);
      } catch (problem) {
        error.textContent = `This is no JSON: ${problem.message}`;
        area.setAttribute("aria-invalid", "true");
        area.focus();
      }
    };

    form.addEventListener("change", () => {
      const known = new Set(controls().map((each) => each.dataset.name));
      const now = window.clf.state.where;
      const rest = now && typeof now === "object" && !Array.isArray(now) ? now : {};
      const kept = Object.fromEntries(Object.entries(rest).filter(([name]) => !known.has(name)));
      const where = Object.assign(kept, ...controls().map(control));
      apply(Object.keys(where).length ? where : null);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    $("clf-where-go").addEventListener("click", read);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) read();
    });
    $("clf-where-clear").addEventListener("click", () => apply(null));

    window.clf.drawFilter = (html) => {
      if (html !== undefined && html !== drawn) form.innerHTML = drawn = html; // what is being typed stays
      const { where } = window.clf.state;
      const object = where && typeof where === "object" && !Array.isArray(where) ? where : {};
      for (const each of controls()) put(each, object[each.dataset.name]);
      area.value = where === null ? "" : typeof where === "string" ? where : JSON.stringify(where);
      area.removeAttribute("aria-invalid");
      const on = where === null ? 0 : Math.max(1, Object.keys(object).length);
      $("clf-filter-on").textContent = on ? `${on} on` : "";
      $("clf-where-clear").hidden = !on;
    };
    window.clf.filterError = (text) => {
      error.textContent = text;
      area.setAttribute("aria-invalid", "true");
      panel.open = true;
      panel.querySelector(".clf-expert").open = true;
    };
  });
})();
