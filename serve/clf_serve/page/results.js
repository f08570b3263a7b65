// The results under the fingers: clicks, keys, and what is folded.
(() => {
  "use strict";
  const clf = window.clf;

  clf.visible = () => [...document.querySelectorAll("#clf-result li:not([hidden]) > .clf-card")];

  // One card at a time can be reached by Tab; arrows go to the others.
  const rove = (clf.rove = (card) => {
    for (const each of document.querySelectorAll("#clf-result .clf-card")) {
      const here = each === card;
      each.tabIndex = here ? 0 : -1;
      for (const part of each.querySelectorAll("a, button")) part.tabIndex = here ? 0 : -1;
    }
  });
  clf.focusCard = (card) => {
    rove(card);
    card.focus({ preventScroll: false });
  };
  const columns = (cards) => {
    const top = (card) => card.parentElement.offsetTop;
    const next = cards.findIndex((card) => top(card) > top(cards[0]));
    return next === -1 ? cards.length : next;
  };
  const keys = (event) => {
    const card = event.target.closest(".clf-card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = clf.visible();
    const i = cards.indexOf(card);
    const ways = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(cards), ArrowDown: columns(cards), Home: -i, End: cards.length - 1 - i };
    if (event.key in ways) {
      const next = cards[i + ways[event.key]];
      if (next) clf.focusCard(next);
    } else if (event.key === "Enter" && event.target === card) clf.details(card);
    else if (event.key === "+") clf.weigh(Number(card.dataset.id), 1);
    else if (event.key === "-") clf.weigh(Number(card.dataset.id), -0.5);
    else return;
    event.preventDefault();
  };
  const clicks = (event) => {
    const target = event.target.closest("[data-search], [data-more], [data-less], [data-open], [data-alike]");
    if (!target || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const { search, more, less, open, alike } = target.dataset;
    if (search) clf.from(Number(search)).then(up);
    else if (more) clf.weigh(Number(more), 1);
    else if (less) clf.weigh(Number(less), -0.5);
    else if (open) clf.details(target.closest(".clf-card"));
    else unfold(target, alike);
  };
  const unfold = (button, id) => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    for (const item of document.querySelectorAll(`#clf-result li[data-under="${id}"]`)) item.hidden = !open;
  };
  const up = () => document.querySelector(".clf-main").scrollIntoView({ block: "nearest", behavior: clf.still() ? "auto" : "smooth" });
  clf.ready("clf-result", (result) => {
    result.addEventListener("click", clicks);
    result.addEventListener("keydown", keys);
    result.addEventListener("focusin", (event) => {
      const card = event.target.closest(".clf-card");
      if (card && card.tabIndex !== 0) rove(card);
    });
  });
})();
