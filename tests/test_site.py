"""The documentation builds as a site that needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    assert pages | {"index", "404"} == {path.stem for path in tmp_path.glob("*.html")}
    for page in tmp_path.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)", text)
        assert loaded, page.name
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page.name
    start = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in pages:  # they are found from the first page
        assert f'href="{name}.html"' in start, name
