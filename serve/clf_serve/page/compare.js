// The compare tab: one query for two galleries.
(() => {
  "use strict";
  clf.ready("clf-compare", (section) => {
    const $ = (name) => clf.$(`clf-compare-${name}`);
    const { make } = clf;
    const result = $("result");
    let query = null; // {id} of the first gallery, or {file}
    let turn = 0;
    let begun = false;
    let picture = "";

    const visible = () => section.offsetParent !== null;
    const count = () => section.querySelector("[name=clf-compare-k]:checked").value;
    const failed = (error) => ($("error").textContent = error ? error.message : "");
    const pair = () => ({ first: $("first").value, second: $("second").value });

    const start = async () => {
      const mine = ++turn;
      try {
        const asked = begun ? `?${new URLSearchParams(pair())}` : "";
        const reply = await (await clf.ask(`page/compare${asked}`)).json();
        if (mine !== turn) return;
        begun = true;
        failed(null);
        $("bar").hidden = reply.galleries.length < 2;
        $("note").textContent = reply.note || "";
        const fill = (menu, otherwise) => {
          const chosen = menu.value || reply.galleries[otherwise]?.name;
          menu.replaceChildren(...reply.galleries.map(({ name, model }) => make("option", { value: name, textContent: name === model ? name : `${name} (${model})`, selected: name === chosen })));
        };
        fill($("first"), 0);
        fill($("second"), 1);
        if (!query) result.innerHTML = reply.html;
      } catch (error) {
        if (mine === turn) failed(error);
      }
    };

    const run = async () => {
      if (!query) return;
      const mine = ++turn;
      result.setAttribute("aria-busy", "true");
      try {
        const asked = new URLSearchParams({ ...pair(), k: count(), ...(query.id && { id: query.id }) });
        const body = query.file || null;
        const headers = body ? { "Content-Type": "application/octet-stream" } : {};
        const reply = await (await clf.ask(`page/compare?${asked}`, { method: "POST", headers, body })).json();
        if (mine !== turn) return;
        failed(null);
        result.innerHTML = reply.html;
        show(reply.asked?.picture || picture, reply.asked?.uri || query.file?.name || "your picture");
      } catch (error) {
        if (mine === turn) failed(error);
      } finally {
        if (mine === turn) result.setAttribute("aria-busy", "false");
      }
    };
    const show = (source, name) => {
      Object.assign($("picture"), { src: source, alt: `Asked with ${name}`, title: name, hidden: !source });
    };
    const take = (file) => {
      if (picture) URL.revokeObjectURL(picture);
      picture = URL.createObjectURL(file);
      query = { file };
      run();
    };
    // Those two columns may name the same image; what is asked for is always an image of the first.
    const from = (id, side) => {
      if (side === "1") {
        const { first, second } = pair();
        [$("first").value, $("second").value] = [second, first];
        note();
      }
      query = { id };
      run();
      section.scrollIntoView({ block: "start", behavior: clf.still() ? "auto" : "smooth" });
    };
    const note = async () => {
      const asked = String(new URLSearchParams(pair()));
      const reply = await clf.ask(`page/compare?${asked}`).then((answer) => answer.json()).catch(() => ({}));
      if (asked === String(new URLSearchParams(pair()))) $("note").textContent = reply.note || "";
    };

    section.addEventListener("click", (event) => {
      const button = event.target.closest("[data-compare]");
      if (button) from(button.dataset.compare, button.dataset.side);
    });
    const light = (pairing, on) => {
      for (const each of section.querySelectorAll(`[data-pair="${pairing}"]`)) each.classList.toggle("clf-lit", on);
    };
    for (const [kind, on] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
      section.addEventListener(kind, (event) => {
        const each = event.target.closest("[data-pair]");
        if (each) light(each.dataset.pair, on);
      });
    }
    section.addEventListener("change", async (event) => {
      if (event.target.id === "clf-compare-file") {
        if (event.target.files.length) take(event.target.files[0]);
        event.target.value = "";
        return;
      }
      if (event.target.tagName === "SELECT") {
        const other = event.target === $("first") ? $("second") : $("first");
        if (other.value === event.target.value) {
          other.value = [...other.options].map((option) => option.value).find((value) => value !== other.value);
        }
        if (query?.id) query = null; // it is of another gallery now
        if (!query) $("picture").hidden = true;
        await start();
      }
      run();
    });

    // Before the search tab takes what was dropped or pasted anywhere.
    const files = (data) => [...(data?.files || [])].filter((file) => file.type.startsWith("image/") || !file.type);
    for (const kind of ["drop", "paste"]) {
      document.addEventListener(
        kind,
        (event) => {
          const given = files(event.dataTransfer || event.clipboardData);
          if (!visible() || $("bar").hidden || !given.length) return;
          event.preventDefault();
          event.stopImmediatePropagation();
          document.body.classList.remove("clf-dropping");
          take(given[0]);
        },
        true,
      );
    }
    new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && !query && start()).observe(section);
  });
})();
