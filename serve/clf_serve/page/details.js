// One result with all that is known of it. Enter opens, Escape closes, arrows go to the one before or after.
(() => {
  "use strict";
  const { $, ready, ask } = window.clf;

  ready("clf-details", (dialog) => {
    const body = $("clf-details-body");
    let card = null;
    let turn = 0;

    const show = async (wanted) => {
      card = wanted;
      const mine = ++turn;
      const cards = window.clf.visible();
      $("clf-details-rank").textContent = `${cards.indexOf(card) + 1} of ${cards.length}`;
      if (!dialog.open) dialog.showModal();
      body.setAttribute("aria-busy", "true");
      const gallery = window.clf.state.gallery;
      try {
        const query = gallery ? `?gallery=${encodeURIComponent(gallery)}` : "";
        const html = await (await ask(`page/item/${card.dataset.id}${query}`)).text();
        if (mine !== turn) return;
        body.innerHTML = html;
        body.querySelector(".clf-all h2")?.after(card.querySelector(".clf-score").cloneNode(true));
        const closer = body.querySelector(".clf-score .clf-closer");
        closer?.append(" of random pairs");
      } catch (error) {
        if (mine === turn) body.replaceChildren(window.clf.message("It cannot be shown", error.message));
      }
      body.removeAttribute("aria-busy");
    };
    const step = (by) => {
      const cards = window.clf.visible();
      const next = cards[cards.indexOf(card) + by];
      if (next) show(next);
    };

    window.clf.details = show;
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        step(event.key === "ArrowLeft" ? -1 : 1);
        event.preventDefault();
      }
    });
    dialog.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (event.target === dialog || button?.hasAttribute("data-close")) dialog.close();
      else if (button?.dataset.step) step(Number(button.dataset.step));
      else if (button?.dataset.do) {
        const [id, what] = [Number(card.dataset.id), button.dataset.do];
        dialog.close();
        if (what === "search") window.clf.from(id);
        else window.clf.weigh(id, what === "more" ? 1 : -0.5);
      }
    });
    dialog.addEventListener("close", () => card?.isConnected && window.clf.focusCard(card));
  });
})();
