"""From a dropped picture to results on the page, in a real browser: ``first_result.py MODEL GALLERY PHOTOS``.

Starts `clf serve MODEL --gallery GALLERY`, opens the page in Chromium and drops photos from the folder PHOTOS on it,
one after the other, each a new search. The page notes each search as the performance measure `clf-result`, which ends
when the results are painted. Browser and server share the machine. Prints the median, the ninetieth percentile and the
least in milliseconds, and the same until the first eight thumbnails are there.
"""

from __future__ import annotations

import argparse
import base64
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from browsers import chromium
from selenium.webdriver.support.ui import WebDriverWait

_OPEN = "return Boolean(window.clf && clf.started && document.querySelector('.clf-samples img'))"
_DROP = """
const [text, done] = arguments;
const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([bytes], "photo.jpg", { type: "image/jpeg" }));
performance.clearMeasures();
new PerformanceObserver((list, observer) => {
  const [measure] = list.getEntriesByName("clf-result");
  if (!measure) return;
  observer.disconnect();
  const seen = (card) => card.querySelector("img").complete && card.querySelector("img").naturalWidth;
  const look = () => clf.visible().slice(0, 8).every(seen)
    ? done([measure.duration, performance.now() - measure.startTime]) : setTimeout(look, 2);
  look();
}).observe({ type: "measure" });
const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: given });
document.getElementById("clf-result").dispatchEvent(event);
"""


def measure(base: str, photos: list[Path]) -> list[tuple[float, float]]:
    """Milliseconds to the painted results, and to the first eight thumbnails, of each photo."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.set_script_timeout(60)
        browser.get(base)
        WebDriverWait(browser, 60).until(lambda opened: opened.execute_script(_OPEN))
        found: list[Any] = [
            browser.execute_async_script(_DROP, base64.b64encode(photo.read_bytes()).decode()) for photo in photos
        ]
    return [(results, thumbnails) for results, thumbnails in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=48)
    given = parser.parse_args()
    photos = sorted(given.photos.rglob("*.jpg"))
    photos = photos[:: max(1, len(photos) // given.rounds)][: given.rounds]
    words = [sys.executable, "-m", "clf", "serve", str(given.model), "--gallery", str(given.gallery), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        said = (re.search(r"on (http://[^\s\"]+)", line) for line in server.stdout)
        base = next(found[1] for found in said if found)
        times = np.array(measure(base, photos)[3:])  # the first ones warm browser and server up
    finally:
        server.terminate()
        server.wait(30)
    for name, column in (("results painted", times[:, 0]), ("eight thumbnails", times[:, 1])):
        print(
            f"{name}: median {np.median(column):.0f} ms, p90 {np.quantile(column, 0.9):.0f}, least {column.min():.0f}"
        )


if __name__ == "__main__":
    main()
