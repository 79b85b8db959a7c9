"""The page in headless Chromium, at desktop and phone widths, light and dark: it fits, and the verdict comes first."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from example_documents import BENCH, FAULTS, OVERHEAD, blocks_of, presented
from example_reports import clean, dead_and_hung, drifting

from verify.report.html import page
from verify.report.sections.blocks import WORDS, Bars
from verify.report.sections.run import present_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

PAGES = {"pass": clean, "fail": drifting, "unknown": dead_and_hung}
WIDTHS = DESKTOP, PHONE = (1280, 390)
# The page at several widths, one frame each, since starting Chromium takes seconds. The script measures each frame.
FRAME = '<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>'
MEASURE = """<!doctype html><meta charset="utf-8">{frames}<script>
const measured = frame => {{
  const page = frame.contentDocument, root = page.documentElement;
  const box = element => {{ const r = element.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; }};
  const all = selector => [...page.querySelectorAll(selector)].map(box);
  const size = element => parseFloat(getComputedStyle(element).fontSize);
  return {{
    overflow: root.scrollWidth - root.clientWidth,
    heading: page.querySelector("h1").innerText,
    top: box(page.querySelector("h1")),
    strips: all(".strip"), charts: all(".chart"), maps: all(".map"),
    smallest: Math.min(...[...page.querySelectorAll("p, td, th, pre, span, figcaption")].map(size)),
    chart_text: page.querySelector(".plot .y") ? size(page.querySelector(".plot .y")) : null,
    paper: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
  }};
}};
onload = () => {{
  const said = [...document.querySelectorAll("iframe")].map(measured);
  document.body.innerHTML = "";
  document.body.append("MEASURED" + JSON.stringify(said) + "END");
}};
</script>"""


def chromium(folder: Path, *options: str) -> str:
    """What Chromium prints; it and all that it started have ended when this returns."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--disable-sync",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", *options]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=90)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def measured(folder: Path, page: str, *widths: int, dark: bool = False) -> list[dict[str, Any]]:
    """What is measured of the page at each width."""
    around = folder / "around.html"
    frames = "".join(FRAME.format(width=width, page=html.escape(page)) for width in widths)
    around.write_text(MEASURE.format(frames=frames), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    printed = chromium(folder, "--window-size=1400,1000", *scheme, "--dump-dom", around.as_uri())
    match = re.search("MEASURED(.*)END", printed, re.S)
    assert match is not None, printed[:2000]
    said: list[dict[str, Any]] = json.loads(html.unescape(match[1]))
    return said


@pytest.mark.parametrize("verdict", PAGES)
def test_it_fits_and_the_verdict_comes_first(verdict: str, tmp_path: Path) -> None:
    shown = page(present_run(PAGES[verdict]().document))
    for width, said in zip(WIDTHS, measured(tmp_path, shown, *WIDTHS), strict=True):
        fits_with_the_verdict_first(said, verdict, width)


def fits_with_the_verdict_first(said: dict[str, Any], verdict: str, width: int) -> None:
    assert said["overflow"] <= 0
    assert verdict in said["heading"].lower()
    left, top, _, height = said["top"]
    assert left >= 0
    assert top + height < 200
    assert said["smallest"] >= 12
    assert bool(said["strips"]) == (verdict != "unknown")
    for left, _, wide, high in said["strips"]:
        assert left >= 0
        assert wide > 200
        assert high >= 16
    if verdict == "fail":
        assert said["charts"]
        assert said["maps"]
        assert said["chart_text"] >= 12
        assert all(left + wide <= width for left, _, wide, _ in said["charts"] + said["maps"])


@pytest.mark.parametrize("document", [BENCH, OVERHEAD, FAULTS], ids=["bench", "overhead", "faults"])
def test_what_is_no_run_fits_too(document: dict[str, Any], tmp_path: Path) -> None:
    shown = presented(document)
    rows = sum(len(bars.rows) for bars in blocks_of(document, Bars))
    for width, said in zip(WIDTHS, measured(tmp_path, page(shown), *WIDTHS), strict=True):
        assert said["overflow"] <= 0
        assert said["heading"] == (shown.heading if shown.verdict is None else WORDS[shown.verdict])
        assert len(said["strips"]) == rows
        assert all(left + wide <= width for left, _, wide, _ in said["strips"])


def luminance(colour: str) -> float:
    """Of ``rgb(r, g, b)``, as WCAG 2.2 defines relative luminance."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(number) / 255 for number in re.findall(r"\d+", colour)[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_follows_the_readers_colours(dark: bool, tmp_path: Path) -> None:
    (said,) = measured(tmp_path, page(present_run(drifting().document)), PHONE, dark=dark)
    paper, ink = luminance(said["paper"]), luminance(said["ink"])
    assert (paper < ink) == dark
    # WCAG 2.2, success criterion 1.4.6.
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 7


def test_a_page_that_overflows_is_seen(tmp_path: Path) -> None:
    wide = page(present_run(clean().document)).replace("</main>", '<div style="width:600px">wide</div></main>')
    (said,) = measured(tmp_path, wide, PHONE)
    assert said["overflow"] > 0
