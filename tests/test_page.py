"""The report's page in a browser: what it shows, what its controls do, and that it needs no network."""

import json
import re
import shutil
from threading import Thread

import pytest
from playwright.sync_api import Error, expect, sync_playwright

from fedresearch.study.report.live import LiveServer
from fedresearch.study.report.load import load
from fedresearch.study.report.page import page
from tests import records

HOSTILE = "</script><b>x"
PICTURE = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='900' height='9'/%3E"
EMPTY = {
    **{"title": "Report", "metric": "Accuracy (%)", "command": "report", "generated": "today", "base": {}},
    **{name: [] for name in ("warnings", "notes", "axes", "metrics", "targets", "arms", "panels", "cells", "tables")},
    **{"axis": "rounds", "figures": [], "runs": [], "partitions": []},
}


def arm(number):
    look = {"colour": "#0072B2", "dark": "#3D94D9", "dash": "solid"}
    return {**look, "label": HOSTILE if number == 1 else f"lr={number}", "is_highlighted": number < 14, "n": "5"}


def cell(number):
    """Return a cell of four rounds, the second of them without an evaluation."""
    mean = [number / 20, None, number / 20 + 0.1, number / 20 + 0.2]
    half_width = [value and 0.125 for value in mean]
    return {
        "label": f"{'iid' if number < 13 else 'shards'}, lr={number}",
        **{"panel": int(number > 12), "arm": number - 1, "n": 5},
        "x": {"rounds": [1, 2, 3, 4], "bytes": [1e6, 2e6, 3e6, 4e6]},
        "y": {"eval/accuracy": {"mean": mean, "half_width": half_width}},
    }


def row(*sorts):
    return [{"text": f"is {sort}", "sort": sort, "style": "best" if sort == 0.5 else ""} for sort in sorts]


CELLS = [cell(number) for number in range(1, 15)]
CELLS[1]["y"]["eval/loss"] = {"mean": [4.0, 3.0, 2.0, 1.0], "half_width": [None] * 4}
del CELLS[2]["x"]["bytes"]
RUNS = [
    {
        **{"directory": f"run{number:02}", "cell": CELLS[number % 14]["label"], "seed": f"{number}", "rounds": 4},
        **{"state": "failed" if number == 7 else "finished", "value": "" if number == 7 else f"{number / 10}"},
        **{"error": "boom" if number == 7 else "", "failures": 2, "baseline": 0 if number == 7 else None},
        **{"x": [1, 2, 3, 4], "y": [0.1, None, 0.2, 0.3], "partition": 0 if number == 7 else None},
        "changed": {
            **{"strategy": f"s{number}", "seed": 0 if number == 7 else number, "lr": HOSTILE, "shared": [number]},
            **{"strategy.server._target_": f"S{number}", "run: commit": "abc"},
        },
    }
    for number in range(30)
]
DOCUMENT = EMPTY | {
    "command": "report --title '" + "long " * 40 + "'",
    "warnings": [f"unfair {HOSTILE}"],
    "notes": ["left out"],
    "axes": [{"id": "rounds", "label": "Rounds"}, {"id": "bytes", "label": "Bytes"}],
    "metrics": [
        {"id": "eval/accuracy", "label": "Accuracy (%)", "is_share": True},
        {"id": "eval/loss", "label": "Loss", "is_share": False},
    ],
    "targets": [{"metric": "eval/accuracy", "value": value} for value in (0.6, 0.9)]
    + [{"metric": "eval/loss", "value": -1}],
    "partitions": [[[5, 0, 1], [0, 3, 2]]],
    "arms": [arm(number) for number in range(1, 15)],
    "panels": ["IID", "Shards"],
    "cells": CELLS,
    "tables": [
        {
            **{"id": "final", "title": "Final", "caption": "What is best", "notes": ["† differs"]},
            "columns": [{"label": "name", "numeric": False}, {"label": "number", "numeric": True}]
            + [{"label": f"another column {number}", "numeric": True} for number in range(9)],
            "groups": [[["", 1], ["Digits", 10]]],
            "rows": [
                row(name, number, *range(9)) for name, number in zip("bdac", (0.5, None, -1.5, 0.45), strict=True)
            ],
        }
    ],
    "figures": [
        {"title": title, "caption": f"Who holds what {HOSTILE}", "src": PICTURE} for title in ("Partition", "Confusion")
    ],
    "base": {"model": "mlp", "shared": "overridden", "run: torch": "2"},
    "runs": RUNS,
}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        for path in (None, "chromium", "google-chrome"):
            try:
                found = playwright.chromium.launch(executable_path=path and shutil.which(path), args=["--no-sandbox"])
            except Error:
                continue
            yield found
            found.close()
            return
        pytest.skip("no browser: neither Playwright's own nor chromium nor google-chrome starts")


@pytest.fixture(scope="module")
def show(browser, tmp_path_factory):
    """Return a function that opens a document's page, and collects errors and requests in ``page.faults``."""

    def show_(document):
        file = tmp_path_factory.mktemp("page") / "report.html"
        file.write_text(page(document), "utf-8")
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        tab.faults = []
        tab.on("console", lambda message: message.type == "error" and tab.faults.append(message.text))
        tab.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                request.url == file.as_uri()
                or request.url.startswith(("data:", "blob:"))
                or tab.faults.append(request.url)
            ),
        )
        tab.goto(file.as_uri())
        tab.evaluate("ready")
        return tab

    return show_


@pytest.fixture(scope="module")
def opened(show):
    return show(DOCUMENT)  # Plotly takes seconds to start, so all tests share it; each sets what it looks at


@pytest.fixture
def report(opened):
    yield opened
    assert opened.faults == []


def reload(report):
    report.reload()
    report.evaluate("ready")


def curves(report):
    """Return a mapping of the visible lines' names to their points."""
    lines = report.evaluate("""() => {
        const isSeen = ({ uid }) => getComputedStyle(document.querySelector(`#plot .trace${uid}`)).display !== "none";
        return document.getElementById("plot").data.filter((trace) => !trace.fill && isSeen(trace));
    }""")
    return {line["name"]: list(zip(line["x"], line["y"], strict=True)) for line in lines}


def rows(report, selector):
    """Return the texts in the first column of a table's visible rows."""
    return report.locator(f"{selector} tbody tr:visible > :first-child").all_inner_texts()


def test_a_page_of_empty_lists_is_valid(show):
    report = show(EMPTY)
    assert report.locator("h1").text_content() == "Report"
    assert report.locator("section, dialog, table, ul").count() == 0
    assert report.faults == []


def test_a_number_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        page(EMPTY | {"base": {"lr": float("nan")}})


def test_warnings_come_first(report):
    texts = report.locator("main").inner_text()
    order = [texts.index(text) for text in ("Report", "unfair", "left out", "Curves", "What is best", "† differs")]
    assert order == sorted(order)
    report.get_by_role("button", name="Copy").click()
    assert report.evaluate("getSelection().toString()") == DOCUMENT["command"]


def test_only_checked_arms_are_drawn(report):
    labels = [cell["label"] for cell in CELLS]
    reload(report)
    assert list(curves(report)) == labels
    assert curves(report)["iid, lr=2"] == [(1, 10), (3, 20), (4, pytest.approx(30))]
    report.get_by_label("lr=14").uncheck()
    report.get_by_label("lr=2 n").uncheck()
    assert list(curves(report)) == [labels[0], *labels[2:13]]
    report.get_by_role("button", name="None").click()
    assert curves(report) == {}
    report.get_by_label("Search arms").fill("LR=1")
    report.get_by_role("button", name="All").click()
    assert list(curves(report)) == labels[9:]
    report.get_by_label("Search arms").fill("")
    report.get_by_role("button", name="All").click()
    assert len(curves(report)) == len(labels)


def test_panels_share_their_axes(report):
    layout = report.evaluate("document.getElementById('plot')._fullLayout")
    assert layout["xaxis2"]["range"] == layout["xaxis"]["range"]
    assert layout["yaxis2"]["range"] == layout["yaxis"]["range"]
    assert layout["xaxis"]["domain"][1] < layout["xaxis2"]["domain"][0]
    assert report.locator("#plot .annotation-text").all_text_contents() == ["IID", "Shards"]


def test_axis_and_metric_are_chosen(report):
    report.get_by_role("button", name="All").click()
    report.get_by_label("over").select_option("Bytes")
    assert "iid, lr=3" not in curves(report)
    assert curves(report)["iid, lr=4"] == [(1e6, 20), (3e6, pytest.approx(30)), (4e6, 40)]
    report.get_by_label("Metric").select_option("Loss")
    assert curves(report) == {"iid, lr=2": [(1e6, 4), (2e6, 3), (3e6, 2), (4e6, 1)]}
    assert report.locator("#plot .xtitle, #plot .ytitle").all_text_contents() == ["Bytes", "Loss"]
    report.get_by_label("over").select_option("Rounds")
    report.get_by_label("Metric").select_option("Accuracy (%)")
    assert len(curves(report)) == 14


def test_the_address_has_the_view(report):
    report.get_by_label("over").select_option("Bytes")
    report.get_by_label("lr=4 n").uncheck()
    report.get_by_role("button", name="run07").click()
    reload(report)
    assert report.get_by_label("over").input_value() == "bytes"
    assert not {"iid, lr=4", "iid, lr=3"} & curves(report).keys()
    expect(report.get_by_role("dialog")).to_contain_text("run07")
    report.keyboard.press("Escape")
    report.get_by_role("button", name="All").click()
    report.get_by_label("over").select_option("Rounds")
    assert report.url.endswith("#")


def test_targets_are_lines_while_their_metric_is_shown(report):
    def target_lines():
        shapes = report.evaluate("document.getElementById('plot').layout.shapes")
        assert all(shape["y0"] == shape["y1"] and shape["line"]["dash"] == "dash" for shape in shapes)
        return [(shape["y0"], shape["label"]["text"]) for shape in shapes]

    assert target_lines() == 2 * [(60, "target 60 %"), (90, "target 90 %")]
    assert report.locator("#plot .shapelayer path").count() == 4
    report.get_by_label("Metric").select_option("Loss")
    assert target_lines() == 2 * [(-1, "target −1")]
    report.get_by_label("Metric").select_option("Accuracy (%)")
    assert len(target_lines()) == 4


def test_a_band_is_the_interval(report):
    bands = "document.getElementById('plot').data.filter((trace) => trace.fill)"
    assert report.evaluate(f"{bands}.map((band) => band.meta)") == [*range(13)]  # the last is not highlighted
    report.get_by_role("button", name="None").click()
    report.get_by_label("lr=14").check()
    grey = report.locator("#plot .trace13-1-band")
    expect(report.get_by_text("Grey arms have theirs while five arms or fewer are on.")).to_be_visible()
    expect(grey).to_be_attached()  # among few, a grey arm has its band too
    report.get_by_role("button", name="All").click()
    expect(grey).not_to_be_attached()
    band = report.evaluate(bands)[3]
    assert band["x"] == [1, 3, 4, 4, 3, 1]
    assert band["y"] == pytest.approx([32.5, 42.5, 52.5, 27.5, 17.5, 7.5])


def test_hovering_shows_the_cell_the_point_and_the_interval(report):
    report.get_by_role("button", name="None").click()
    report.get_by_label(HOSTILE).check()
    shown = report.locator("#plot .hovertext")
    for _ in range(20):  # Plotly draws the axes anew a little later
        x, y = report.evaluate("""() => {
            const plot = document.getElementById("plot");
            plot.scrollIntoView();
            const { left, top } = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            return [left + xaxis._offset + xaxis.d2p(3), top + yaxis._offset + yaxis.d2p(15)];
        }""")
        report.mouse.move(x - 5, y)
        report.mouse.move(x, y)
        report.wait_for_timeout(200)
        if shown.count():
            break
    expect(shown).to_have_text(f"{HOSTILE}IIDRounds: 3Accuracy (%): 15 (2.5 to 27.5)n = 5")
    report.get_by_role("button", name="All").click()


def test_no_button_uploads_the_plot(report):
    titles = report.locator("#plot .modebar-btn").evaluate_all("all => all.map((it) => it.dataset.title)")
    assert titles == ["Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes", "Download plot as a PNG"]
    with report.expect_download() as download:
        report.locator("[data-title^=Download]").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_labels_are_text(report):
    assert report.locator("b").count() == 0
    assert report.locator(".warnings li").text_content() == f"unfair {HOSTILE}"


def test_figures_have_captions(report):
    assert report.get_by_alt_text("Partition").evaluate("(image) => image.complete && image.naturalWidth") == 900
    assert report.locator("figcaption").all_text_contents() == 2 * [f"Who holds what {HOSTILE}"]


@pytest.mark.parametrize("width", [1280, 360])
def test_a_picture_opens_in_its_full_size(report, width):
    report.set_viewport_size({"width": width, "height": 900})
    picture, button = report.get_by_alt_text("Confusion"), report.get_by_role("button", name="Confusion")
    small = picture.bounding_box()["width"]
    assert small < 900
    button.press("Enter")
    assert picture.bounding_box()["width"] == 900
    assert button.get_attribute("aria-expanded") == "true"
    assert report.evaluate("document.documentElement.scrollWidth") == width
    button.click()
    assert picture.bounding_box()["width"] == small
    report.set_viewport_size({"width": 1280, "height": 900})


def test_a_table_is_sorted_with_unknown_values_last(report):
    assert report.locator("#table-final .best").all_text_contents() == ["is 0.5"]
    assert report.locator("#table-final .group").all_text_contents() == ["", "Digits"]
    number = report.locator("#table-final tr:last-child th").nth(1)
    number.get_by_role("button").click()
    assert rows(report, "#table-final") == ["is a", "is c", "is b", "is d"]
    assert number.get_attribute("aria-sort") == "ascending"
    number.get_by_role("button").press("Enter")
    assert rows(report, "#table-final") == ["is b", "is c", "is a", "is d"]
    assert number.get_attribute("aria-sort") == "descending"
    name = report.locator("#table-final tr:last-child th").first
    name.get_by_role("button").press("Space")
    name.get_by_role("button").press("Space")
    assert rows(report, "#table-final") == ["is d", "is c", "is b", "is a"]
    assert number.get_attribute("aria-sort") is None


def test_runs_are_filtered_and_sorted(report):
    report.get_by_label("Filter runs").fill("finished lr=1")
    assert rows(report, "#runs") == [f"run{n:02}" for n in range(30) if n % 14 in (0, *range(9, 14))]
    report.get_by_label("Filter runs").fill("")
    report.get_by_role("button", name="Accuracy (%)").click()
    assert rows(report, "#runs") == [f"run{n:02}" for n in [*range(7), *range(8, 30), 7]]
    report.get_by_role("button", name="Seed").dblclick()
    assert rows(report, "#runs") == [f"run{n:02}" for n in reversed(range(30))]
    report.get_by_label("Filter runs").fill("BOOM")
    assert rows(report, "#runs") == ["run07"]
    assert report.locator("#runs-count").text_content() == "1 of 30"


def test_a_runs_differences_come_first(report):
    report.get_by_label("Filter runs").fill("run07")
    report.get_by_role("button", name="run07").press("Enter")
    dialog = report.get_by_role("dialog")
    expect(dialog).to_contain_text("seed 7 · failed · 4 rounds · 2 failures of clients")
    expect(dialog.locator("#run-error")).to_have_text("boom")
    pairs = dialog.locator("tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((it) => it.textContent))"
    )
    changed = [["seed", "0"], ["lr", HOSTILE]]
    differs = [["strategy", "s7", "s0"], ["shared", "[7]", "[0]"]]  # the strategy's class says no more than its name
    assert pairs == [*differs, *changed, ["commit", "abc"], ["torch", "2"], ["model", "mlp"]]
    (own,) = report.evaluate("document.getElementById('run-plot').data.filter((line) => line.name === 'this run')")
    assert (own["x"], own["y"]) == ([1, 3, 4], [10, 20, 30])
    assert report.evaluate("document.getElementById('run-partition').data[0].z") == [[5, 0], [0, 3], [1, 2]]
    for _ in range(3):  # the body stands for the browser's own controls
        report.keyboard.press("Tab")
        assert report.evaluate("document.activeElement.matches('dialog, dialog *, body')")
    report.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(report.get_by_role("button", name="run07")).to_be_focused()
    report.get_by_text("boom").first.click()
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_run_has_its_curve_where_no_cell_has_one(show):
    metrics, axes = (DOCUMENT[name] for name in ("metrics", "axes"))
    run = RUNS[7] | {"baseline": None}
    report = show(EMPTY | {"metrics": metrics, "axes": axes, "base": {}, "runs": [run]})
    report.get_by_role("button", name="run07").click()
    expect(report.locator("#run-plot .scatterlayer .trace")).to_have_count(1)
    expect(report.locator("#run-partition")).to_be_hidden()
    assert report.faults == []
    report.close()


def test_a_phone_scrolls_tables_but_not_the_page(report):
    report.set_viewport_size({"width": 360, "height": 740})
    width = report.locator("#plot").evaluate("(plot) => plot.clientWidth")
    expect(report.locator("#plot .main-svg").first).to_have_attribute("width", f"{width}")
    assert report.evaluate("document.documentElement.scrollWidth") == 360
    table = report.locator("#table-final")
    assert table.evaluate("(table) => table.parentElement.scrollWidth") > 360
    # The first column stays in place, above the columns that scroll below it.
    for first in (table.locator("thead .name"), table.locator("tbody .name").first):
        before = first.bounding_box()
        table.evaluate("(table) => { table.parentElement.scrollLeft = 200; }")
        assert first.bounding_box() == before
        assert first.evaluate("""(it) => {
            it.scrollIntoView({ block: "center" });
            const now = it.getBoundingClientRect();
            return it.contains(document.elementFromPoint(now.left + 3, now.top + now.height / 2));
        }""")
        assert first.evaluate("(it) => getComputedStyle(it).backgroundColor") != "rgba(0, 0, 0, 0)"
        table.evaluate("(table) => { table.parentElement.scrollLeft = 0; }")
    report.set_viewport_size({"width": 1280, "height": 900})


def test_a_print_has_no_controls_and_whole_tables(report):
    report.emulate_media(media="print")
    report.set_viewport_size({"width": 703, "height": 1000})
    assert report.locator("input, select, #copy, #all, .modebar-btn").filter(visible=True).count() == 0
    for table in report.locator(".scroll").all():
        assert table.evaluate("(it) => it.scrollWidth <= it.clientWidth && it.scrollHeight <= it.clientHeight")
    chart = report.locator("#plot .main-svg").first
    expect(chart).to_have_attribute("width", "680")
    chart, arms = chart.bounding_box(), report.locator("fieldset").bounding_box()
    assert chart["y"] + chart["height"] <= arms["y"]
    report.emulate_media(media="screen")
    report.set_viewport_size({"width": 1280, "height": 900})


def test_plots_are_as_wide_as_the_window_again_after_printing(report):
    report.get_by_role("button", name="run07").click()
    for name in ("plot", "run-plot", "run-partition"):
        plot, chart = report.locator(f"#{name}"), report.locator(f"#{name} .main-svg").first
        width = f"{plot.evaluate('(plot) => plot.clientWidth')}"
        expect(chart).to_have_attribute("width", width)
        report.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert chart.get_attribute("width") != width
        report.evaluate("dispatchEvent(new Event('afterprint'))")
        assert chart.get_attribute("width") == width
    report.keyboard.press("Escape")


def test_axe_finds_nothing(report):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    report.add_style_tag(content=".scroll { background: none }")  # axe does not judge a text over a gradient
    report.get_by_label("Metric").select_option("Loss")  # which most arms do not have
    report.get_by_role("button", name="Confusion").click()
    passing = [".plotly-notifier"]  # is in no region, and is gone after some seconds, as after a download
    repeated = ["#runs tr:nth-child(n+3)", ".arm:nth-child(n+3)"]  # seconds, for no other result

    def violations(**options):
        found = axe.run(report, {"exclude": ["svg", *passing, *repeated]}, {"resultTypes": ["violations"], **options})
        return [(it["id"], it["nodes"][0]["html"]) for it in found.response["violations"]]

    assert violations() == []
    report.emulate_media(color_scheme="dark")
    assert violations(runOnly=["color-contrast"]) == []
    report.get_by_role("button", name="run07").click()
    assert violations() == []  # of the dialog: what is below it cannot be reached
    report.keyboard.press("Escape")
    report.get_by_role("button", name="Confusion").click()
    report.get_by_label("Metric").select_option("Accuracy (%)")
    report.emulate_media(color_scheme="light")


def test_the_dark_scheme_has_its_own_colours(report):
    def colours(scheme):
        report.emulate_media(color_scheme=scheme)
        body = report.locator("body")
        back, text = (body.evaluate(f"(it) => getComputedStyle(it).{name}") for name in ("backgroundColor", "color"))
        expect(report.locator("#plot .ytitle")).to_have_css("fill", text)
        return [sum(map(int, re.findall(r"\d+", colour))) for colour in (back, text)]

    for _ in range(2):
        dark_back, dark_text = colours("dark")
        back, text = colours("light")
        assert max(dark_back, text) < min(back, dark_text)


def test_a_page_that_follows_its_runs_gets_new_arms_in_the_same_view(browser, tmp_path):
    jobs = [{"overrides": [], "directory": name} for name in "abc"]
    (tmp_path / "sweep.json").write_text(json.dumps(jobs))
    rows = [{"eval/accuracy": 0.25}, {"eval/accuracy": 0.5}]
    with LiveServer([tmp_path], lambda: records.report(load([tmp_path]))) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        tab = browser.new_page()
        faults = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(server.address)
        expect(tab.locator(".notes li")).to_have_text(["no run has a round yet", "Runs: 3 missing"])

        records.make(tmp_path / "a", rows=rows)
        expect(tab.locator("#plot .ytitle")).to_have_text("Test accuracy (%)", timeout=30_000)
        tab.evaluate("Plotly.relayout('plot', { 'xaxis.range': [1, 1.5] })")
        tab.get_by_role("button", name="Seed").dblclick()
        tab.get_by_label("Filter runs").fill("finished")

        records.make(tmp_path / "b", choices={"strategy": "fedprox"}, rows=rows)
        expect(tab.locator(".arm")).to_have_text(["fedavg n = 1", "fedprox n = 1"])
        expect(tab.locator("#runs-count")).to_have_text("2 of 3")
        expect(tab.get_by_label("Filter runs")).to_be_focused()
        expect(tab.get_by_role("columnheader", name="Seed")).to_have_attribute("aria-sort", "descending")
        assert tab.evaluate("document.getElementById('plot')._fullLayout.xaxis.range") == [1, 1.5]
        assert faults == []
        tab.close()
        server.shutdown()
