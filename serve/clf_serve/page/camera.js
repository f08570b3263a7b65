// A picture from the camera, where the browser has one and the page is trusted with it (https, or this machine).
(() => {
  "use strict";
  const { $, ready } = window.clf;

  ready("clf-camera", (button) => {
    const [dialog, video, shoot] = ["clf-camera-dialog", "clf-video", "clf-shoot"].map($);
    let stream = null;
    if (!navigator.mediaDevices?.getUserMedia) {
      button.hidden = true;
      return;
    }
    button.addEventListener("click", async () => {
      $("clf-camera-error").textContent = "";
      shoot.disabled = true;
      dialog.showModal();
      try {
        stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
        if (!dialog.open) return stop();
        video.srcObject = stream;
        await video.play();
        shoot.disabled = false;
        shoot.focus();
      } catch (error) {
        const refused = error.name === "NotAllowedError";
        $("clf-camera-error").textContent = refused
          ? "The camera may not be used: allow it in the browser's settings for this page."
          : "No camera can be used here. Choose a file instead.";
      }
    });
    shoot.addEventListener("click", (event) => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => {
        dialog.close();
        window.clf.take(new File([blob], "from the camera.png", { type: "image/png" }), { start: event.timeStamp });
      }, "image/png");
    });
    const stop = () => {
      stream?.getTracks().forEach((track) => track.stop());
      stream = video.srcObject = null;
    };
    dialog.addEventListener("close", stop);
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  });
})();
