// Pictures coming in: chosen, dropped, pasted, or by address.
(() => {
  "use strict";
  const clf = window.clf;
  const { $, ready, ask } = clf;

  const here = () => $("clf-search")?.offsetParent !== null; // another tab may be in front
  const image = (list) => [...(list || [])].find((file) => file.type.startsWith("image/") || /\.(heic|heif|tiff?|jp2|avif)$/i.test(file.name));
  const incoming = (list, options) => {
    const file = image(list);
    if (file) clf.take(file, options);
    else if (list?.length) clf.note("That is not a picture.");
  };
  const dropping = () => {
    let depth = 0;
    const files = (event) => here() && event.dataTransfer?.types.includes("Files");
    const mark = (on) => document.body.classList.toggle("clf-dropping", on);
    document.addEventListener("dragenter", (event) => files(event) && mark(++depth > 0));
    document.addEventListener("dragleave", (event) => files(event) && mark(--depth > 0));
    document.addEventListener("dragover", (event) => files(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      mark((depth = 0) > 0);
      incoming(event.dataTransfer.files, { start: event.timeStamp });
    });
    document.addEventListener("paste", (event) => {
      if (here() && event.clipboardData?.files.length) incoming(event.clipboardData.files, { start: event.timeStamp });
    });
  };
  const choosing = () => {
    for (const [id, add] of [["clf-file", false], ["clf-add", true]]) {
      $(id).addEventListener("change", (event) => {
        incoming(event.target.files, { add, start: event.timeStamp });
        event.target.value = ""; // the same file may be chosen again
      });
    }
    $("clf-url").addEventListener("submit", async (event) => {
      event.preventDefault();
      const start = event.timeStamp;
      const url = event.target.querySelector("input").value;
      clf.busy(true);
      try {
        const headers = { "Content-Type": "application/json" };
        const blob = await (await ask("page/fetch", { method: "POST", headers, body: JSON.stringify({ url }) })).blob();
        clf.take(new File([blob], url.split("/").pop() || url), { start });
      } catch (error) {
        clf.failed(error);
        clf.busy(false);
      }
    });
  };
  // What the browser cannot show (TIFF, HEIC), the server turns into a JPEG to look at; the file itself is asked with.
  const previewing = () => {
    $("clf-preview").addEventListener("error", async () => {
      const upload = clf.picture();
      if (!upload || upload.helped) return;
      upload.helped = true;
      try {
        const headers = { "Content-Type": "application/octet-stream" };
        const small = await (await ask("page/preview", { method: "POST", headers, body: upload.blob })).blob();
        URL.revokeObjectURL(upload.picture);
        upload.picture = URL.createObjectURL(small);
        clf.redraw();
      } catch {
        $("clf-preview").alt = "This picture cannot be shown";
      }
    });
  };

  ready("clf-add", () => {
    choosing();
    dropping();
    previewing();
  });
})();
