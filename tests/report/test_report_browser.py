"""The report in a real browser: it opens by itself, and every read can be reached and read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, chromium
from sample_networks import Documents

import upscale_opt as uo
from upscale_opt.report import page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def file(resnet18_documents: Documents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    documents = resnet18_documents
    path.write_text(page(documents.solution, documents.graph, documents.masks, title="resnet18"))
    return path


def test_it_opens_by_itself_and_shows_the_totals(
    browser: Any, file: Path, resnet18_documents: Documents
) -> None:
    visit = Visit(browser, file)
    solution = resnet18_documents.solution
    for name, value in (("value", solution.objective_value), ("bound", solution.lower_bound)):
        assert visit.page.inner_text(f"#{name} .figure") == f"{value:,}"
    assert "Proven optimal" in visit.page.inner_text("#status")
    assert visit.page.inner_text("#gap .figure") == "0.0 %"
    reads = solution.views + solution.windows + solution.gathers
    assert visit.page.inner_text("#matches").startswith(f"{reads} reads in ")
    row = visit.page.locator(".tables tr", has_text="gathers").locator("td").all_inner_texts()
    assert row[1] == f"{solution.gathers:,}"
    visit.page.wait_for_timeout(200)
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []


@pytest.mark.parametrize("width", [360, 1280])
def test_layers_fit_the_screen(browser: Any, file: Path, width: int) -> None:
    """Nothing is cut off, or has to be scrolled to, and every figure has its title at hand."""
    visit = Visit(browser, file, viewport={"width": width, "height": 720})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    box = visit.page.locator(".layers .wide")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth")
    row = box.locator("tbody tr", has_text="layer2.0.conv1").first
    before = row.locator("td").nth(1).evaluate("e => getComputedStyle(e, '::before').content")
    head = box.locator("thead").evaluate("e => e.getBoundingClientRect().right")
    assert ("reads" in before) == (width == 360)
    assert (head > 0) == (width == 1280)


def test_every_gather_shows_its_explanation(
    browser: Any, file: Path, resnet18_documents: Documents
) -> None:
    """By keyboard alone: open the segments, then walk through the reads."""
    visit = Visit(browser, file)
    for segment in visit.page.locator("details.segment:not([open]) > summary").all()[::-1]:
        segment.focus()
        visit.page.keyboard.press("Enter")
    unopened = visit.page.locator("details.segment:not(:has(.panel))")
    unopened.first.wait_for(state="detached")
    explained = uo.explain(resnet18_documents.solution)
    assert explained
    for found in explained:
        button = visit.page.locator(".reads button", has_text=found.read).first
        button.focus()
        panel = button.locator("xpath=ancestor::details").locator(".panel")
        text = panel.inner_text()
        assert text.startswith(found.read)
        assert f"copies {found.copied:,} channels of {found.tensor}" in text
        if found.reason == "conflict":
            assert all(" = ".join(m.reads) in text for m in found.members[1:])
            shown = panel.locator(".witnesses thead th").all_inner_texts()[1:]
            assert shown == [str(witness) for witness in found.witnesses]
        else:
            assert found.hindrance in text
    assert visit.complaints == []


def test_keys_go_from_read_to_read_and_from_channel_to_channel(browser: Any, file: Path) -> None:
    visit = Visit(browser, file)
    body = visit.page.locator("details.segment[open]").first
    buttons = body.locator(".reads button")
    assert buttons.count() > 1
    buttons.first.focus()
    visit.page.keyboard.press("ArrowDown")
    assert body.locator(".panel h3").inner_text() == buttons.nth(1).inner_text()
    visit.page.keyboard.press("ArrowRight")
    assert "at place 1," in body.locator(".panel .channel").inner_text()
    visit.page.keyboard.press("ArrowRight")
    assert "at place 2," in body.locator(".panel .channel").inner_text()
    body.locator("tbody canvas[data-order=after]").first.hover()
    assert "channel" in visit.page.inner_text("#tip")
    assert visit.page.is_visible("#tip")


def test_search_filters(browser: Any, file: Path, resnet18_documents: Documents) -> None:
    visit = Visit(browser, file)
    wanted = [r for r in resnet18_documents.solution.reads if r.op == "layer3_0_conv1"]
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("LAYER3_0_conv1[0]")
    assert visit.page.inner_text("#matches") == f"Found: {len(wanted)} read in 1 segment"
    assert visit.page.locator("details.segment:visible").count() == 1
    shown = visit.page.locator(".reads button:visible")
    shown.first.wait_for()
    assert shown.all_inner_texts() == ["layer3_0_conv1[0]"]
    visit.page.fill("#search", "no such layer")
    assert "Nothing is called that" in visit.page.inner_text("#matches")
    visit.page.fill("#search", "")
    visit.page.select_option("#plan", "gather")
    gathers = resnet18_documents.solution.gathers
    assert f"Found: {gathers} read" in visit.page.inner_text("#matches")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(browser: Any, file: Path, scheme: str) -> None:
    """A phone's page does not scroll sideways; the colours are those asked for, and can be had."""
    view = {"width": 375, "height": 700}
    visit = Visit(browser, file, viewport=view, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
    lightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g))"
    was_dark = visit.page.evaluate(lightness) < 100
    assert was_dark == (scheme == "dark")
    visit.page.click("#theme")
    assert (visit.page.evaluate(lightness) < 100) != was_dark
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
    visit.page.locator("details[open] tbody canvas:visible").first.scroll_into_view_if_needed()
    visit.page.wait_for_timeout(200)
    assert visit.page.locator("details[open] tbody canvas:visible").first.evaluate(drawn)
    assert visit.complaints == []


def test_densenet201_is_small(large_json_folder: Path) -> None:
    graph = uo.ChannelGraph.load(large_json_folder / "densenet201.graph.json")
    solution = uo.solve(graph, uo.Masks.load(large_json_folder / "densenet201.masks.json"))
    assert len(page(solution, graph).encode()) < 5_000_000


def test_a_hostile_name_runs_nothing(
    browser: Any, resnet18_documents: Documents, tmp_path: Path
) -> None:
    bad = "</script><img src=x onerror=console.log(1)>"
    tensor = resnet18_documents.solution.reads[1].tensor
    text = resnet18_documents.solution.to_json().replace(f'"{tensor}"', f'"{bad}"')
    path = tmp_path / "report.html"
    path.write_text(page(uo.Solution.from_json(text), title=bad))
    visit = Visit(browser, path)
    assert visit.page.locator("h1").inner_text() == bad
    assert visit.page.locator("img").count() == 0
    assert visit.requests == [path.as_uri()]
    assert visit.complaints == []
