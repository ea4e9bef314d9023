"""The report and the page of samples in Chromium, narrow and wide, light and dark.

Skips where there is no Chromium (Debian: apt install chromium).
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import PIL.Image
import pytest
import report_rows

from mogao_jax.evals.proportion import Proportion
from mogao_jax.gallery.folder import Conversation, Folder, render_page
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.tools.report import command
from mogao_jax.tools.report.run_folder import load_run
from mogao_jax.worlds.shapes.evals import scores
from mogao_jax.worlds.shapes.evals.scores import Row, Scores

TOLD = Document(
    (
        Text("word" * 40, role="user", loss=False),
        Image(pixels=np.full((48, 64, 3), 90, np.uint8)),
        Text("then"),
        Image(pixels=np.full((16, 400, 3), 9, np.uint8)),
    )
)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs Chromium, which is not installed")

# Shows the page in a frame of the width asked for, and writes down what was measured.
_FRAME = """<!doctype html><body style="margin:0"><iframe src="%(page)s"
  style="width:%(width)dpx;height:800px;border:0"></iframe><pre id="found"></pre><script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(d => d.open = %(opened)s);
  const image = page.querySelector("img");
  document.querySelector("#found").textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    top: image ? Math.round(image.getBoundingClientRect().top) : null,
    loaded: [...page.images].every(i => i.complete && i.naturalWidth > 0),
    deadLinks: [...page.querySelectorAll("nav a")].filter(
      a => !page.querySelector(a.getAttribute("href"))).length,
    background: page.defaultView.getComputedStyle(page.body).backgroundColor});
};</script>"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def measured(site, html: str, width: int, opened: bool = False, dark: bool = False) -> dict:
    folder, address = site
    (folder / "page.html").write_text(html)
    values = {"page": "page.html", "width": width, "opened": json.dumps(opened)}
    (folder / "frame.html").write_text(_FRAME % values)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-quic",
             f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom",
             "--window-size=1300,900", "--virtual-time-budget=10000"]  # fmt: skip
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [BROWSER, *flags, f"{address}/frame.html"], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="found">(\{.*?\})</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not [line for line in console if "favicon" not in line]
    return json.loads(found[1])


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """Of a run with scores of three models, a grid and samples."""
    folder = report_rows.write_run(tmp_path_factory.mktemp("run"))
    categories = ("single object", "color attribution", scores.OVERALL)
    rows = [Row("t2i", group, "right", Proportion(3, 4), 0.25) for group in categories]
    rows += [Row("edit", scores.OVERALL, metric, Proportion(1, 2)) for metric in ("done", "kept")]
    PIL.Image.new("RGB", (1400, 2000), "white").save(folder / "grid.png")
    for role in ("own", "untrained", "demo"):
        found = Scores("a name that is long enough to need two lines", role, tuple(rows),
                       {"world": "3 shapes", "steps": 50}, grid="grid.png")  # fmt: skip
        (folder / f"scores_{role}.json").write_text(json.dumps(scores.to_json(found)))
    samples = Folder(folder / "samples", overwrite=False)
    entry = {"file": samples.write_document(1, TOLD).name, "id": "x", "given": 1, "stop": "end"}
    facts = {"checkpoint": "runs/mine", "step": 7, "weights": "ema", "num_steps": 50}
    samples.write_run({**facts, "documents": [entry]})
    return command.render(load_run(folder))


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "opened"])
@pytest.mark.parametrize("width", [1280, 390])
def test_report(site, report, width, opened):
    found = measured(site, report, width, opened)
    assert found["overflow"] == 0 and found["loaded"] and found["deadLinks"] == 0
    assert found["top"] < 500  # the first image is seen without scrolling


def test_report_in_the_dark(site, report):
    light, dark = (measured(site, report, 390, dark=dark)["background"] for dark in (False, True))
    assert light == "rgb(245, 246, 248)" and dark == "rgb(18, 23, 28)"


@pytest.mark.parametrize("width", [1280, 390])
def test_page_of_samples(site, width):
    conversation = Conversation(TOLD, 1, "a" * 90, "caption")
    found = measured(site, render_page("Samples", [conversation], {"seed": 3}), width)
    assert found["overflow"] == 0 and found["loaded"] and found["top"] < 800
