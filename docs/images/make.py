"""README's pictures from the demo's results: `make figures`. Needs Chromium for those of the page.

python docs/images/make.py [folder]
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

RESULTS = Path("experiments/demo/results")
WIDTH = 1152


def main() -> None:
    """Write demo.png, report.png and viewer.png into a folder, or beside this file."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
    page = RESULTS / "report.html"
    if not page.exists():
        sys.exit(f"error: {page}: is not there -> make demo")
    contours = sorted((RESULTS / "figures").glob("contours-lesion-*.png"), key=_colours)
    shutil.copyfile(contours[-1], folder / "demo.png")
    text = page.read_text(encoding="utf-8")
    _picture(re.sub(r"<nav .*</section>", "", text, flags=re.DOTALL), folder / "report.png", 700)
    viewer = re.search(r'<section class="viewer".*?</section>', text, re.DOTALL)
    if viewer is None:
        sys.exit(f"error: {page}: has no viewer -> its scans are not in data/prepared; make demo")
    scripts = "".join(re.findall(r"<script>.*?</script>", text, re.DOTALL))
    body = f'<body><main><h1 style="margin:0"></h1>{viewer[0]}</main>{scripts}</body></html>'
    alone = re.sub(r"<body>.*", lambda _: body, text, flags=re.DOTALL)
    for _ in range(20):  # Chromium's own clock may take the picture before the scans are unpacked
        if _picture(alone, folder / "viewer.png", 1300) > 900:
            return
    sys.exit("error: viewer.png: no scan was drawn in twenty pictures -> look at the page in a browser")


def _picture(html: str, path: Path, height: int) -> int:
    """What Chromium shows of a page, without the empty margin at its end; how high that is."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(html, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000"]
        command += [f"--window-size={WIDTH},{height}", f"--screenshot={path}", f"file://{folder}/page.html"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    box = ImageChops.difference(shown, Image.new("RGB", shown.size, shown.getpixel((0, 0)))).getbbox()
    shown.crop((0, 0, WIDTH, box[3] + 16)).quantize(128).save(path, optimize=True)
    return int(box[3])


def _colours(path: Path) -> int:
    """How much of a contour figure is coloured: the case with most to see."""
    with Image.open(path) as picture:
        red, _, blue = picture.convert("RGB").split()
    return sum(ImageChops.difference(red, blue).point(lambda value: value > 60).histogram()[1:])


if __name__ == "__main__":
    main()
