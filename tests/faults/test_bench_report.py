"""The report of a benchmark: its page in a real browser that has no network, and the files beside it."""

import base64
import gzip
import itertools
import json
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from bench.document import Document, Figure, Outcome
from bench.estimate import Estimate
from bench.namespace import Namespace
from bench.report import folder
from bench.report.folder import write_report
from bench.run import NoPlace
from tests.conformance.cluster import until
from tests.faults.browser import Browser, browser
from tests.full_run import document

HOSTILE = "<script>document.title='owned'</script>"
PROXIES = ("ebpf", "nftables", HOSTILE, "kube-proxy")
SCENARIOS = ["Latency", "Sync", "Memory", "Throughput", "Failover"]
_PATIENCE_S = 60.0
_HEIGHT = 1000
_SHOWN = "return [...document.querySelectorAll('.plot')].filter(one => one.clientWidth)"
_DRAWN = _SHOWN + ".map(one => [one.dataset.plot, one.querySelectorAll('path, line').length])"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new"
    write_report([document(proxies=PROXIES, sizes=(1, 1000))], path)
    return path


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two nodes, the second with one scenario at one size."""
    path = tmp_path_factory.mktemp("merged") / "new"
    small = document("node-2", proxies=("ebpf", "nftables"), sizes=(100,))
    small.outcomes = [one for one in small.outcomes if one.scenario == "failover"]
    small.environment["node"] = HOSTILE
    first = document(proxies=("nftables",), sizes=(1,))
    first.outcomes = first.outcomes[:1]
    write_report([first, small], path)
    return path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    namespace = Namespace(f"report-{os.getpid()}")
    try:
        namespace.create()
        with browser(namespace, tmp_path_factory.mktemp("browser")) as driver:
            yield driver
    finally:
        namespace.remove()


@pytest.fixture
def page(stage: Browser, report: Path) -> Iterator[Browser]:
    """Freshly opened, and without complaint in the end."""
    stage.look(1440, _HEIGHT)
    stage.get((report / "index.html").as_uri())
    yield stage
    assert stage.log() == []


def is_drawn(page: Browser) -> dict[str, int]:
    """Wait until each plot that is shown is drawn; how many lines and shapes each has."""

    def marks() -> dict[str, int]:
        return dict(page.execute_script(_DRAWN))

    until(lambda: bool(marks()) and all(marks().values()), lambda: f"not drawn: {marks()}", _PATIENCE_S)
    return marks()


def sticks_out(page: Browser) -> list[str]:
    """What is wider than the window; what can be scrolled by itself may be."""
    script = """
        const { clientWidth, scrollWidth } = document.documentElement;
        const out = [...document.querySelectorAll("body *")].filter(
            (one) => one.getBoundingClientRect().right > clientWidth && !one.closest(".scroll"));
        return [...(scrollWidth > clientWidth ? ["the page"] : []), ...out.map((one) => one.outerHTML.slice(0, 80))];"""
    return list(page.execute_script(script))


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1440, "dark")])
def test_each_plot_is_drawn_and_nothing_sticks_out(page: Browser, width: int, scheme: str) -> None:
    page.look(width, _HEIGHT, scheme)
    cards = len(page.find_elements(By.TAG_NAME, "figure"))
    for view in ("ratio", "absolute", "distribution"):
        for radio in page.find_elements(By.CSS_SELECTOR, f"input[value={view}]"):
            page.execute_script("arguments[0].click()", radio)
        shown = is_drawn(page)
        assert len(shown) == cards > 5
        assert any(name.endswith(view) for name in shown)
        assert min(shown.values()) > 8, shown
        assert sticks_out(page) == []


def test_a_plot_is_drawn_anew_for_another_width(page: Browser) -> None:
    is_drawn(page)
    panels = (
        "return new Set([...document.querySelectorAll('.plot svg')[0].querySelectorAll('.role-scope.cell > g')]"
        ".map(one => Math.round(one.getBoundingClientRect().top))).size"
    )
    assert page.execute_script(panels) == 1
    page.look(360, _HEIGHT)
    until(lambda: page.execute_script(panels) == 3, lambda: f"{page.execute_script(panels)} rows", _PATIENCE_S)


def test_it_asks_for_nothing_and_may_not(page: Browser, report: Path) -> None:
    is_drawn(page)
    assert page.execute_script("return performance.getEntriesByType('resource').map(one => one.name)") == []
    policy = page.find_element(By.CSS_SELECTOR, "meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy and "default-src 'none'" in policy and "unsafe" not in policy
    asked = page.execute_async_script(
        "const done = arguments[0]; fetch('data:,x').then(() => done('answered'), (error) => done(error.name))"
    )
    assert asked == "TypeError"
    assert all("Content Security Policy" in line for line in page.log())
    text = (report / "index.html").read_text()
    assert not re.search(r"<[^>]+ (src|href)=\"?(https?:)?//", text)


def test_what_a_document_says_is_text(page: Browser) -> None:
    is_drawn(page)
    assert page.title == "pyproxy bench: node-1"
    assert HOSTILE in page.find_element(By.CSS_SELECTOR, ".finding").text
    labels = page.execute_script("return [...document.querySelectorAll('.plot svg text')].map(one => one.textContent)")
    assert any(one.startswith("<script>document.") for one in labels)  # a legend cuts what is long
    assert len(page.find_elements(By.TAG_NAME, "script")) == 4  # two of data, Vega, and its own


def test_themes_follow_the_system_and_the_keyboard(page: Browser) -> None:
    is_drawn(page)
    button = page.find_element(By.ID, "theme")
    colours = """return [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector('.plot svg text')).fill]"""
    light = page.execute_script(colours)
    assert button.get_attribute("aria-pressed") == "false"
    page.look(1440, _HEIGHT, "dark")
    dark = page.execute_script(colours)
    assert [one != other for one, other in zip(light, dark, strict=True)] == [True, True]
    until(lambda: button.get_attribute("aria-pressed") == "true", lambda: "the button does not know", _PATIENCE_S)
    page.execute_script("document.activeElement.blur()")
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the findings"
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element == button
    assert page.execute_script("return getComputedStyle(arguments[0]).outlineStyle", button) == "solid"
    button.send_keys(Keys.SPACE)
    assert page.execute_script(colours) == light
    assert button.get_attribute("aria-pressed") == "false"


def test_it_can_be_heard(page: Browser) -> None:
    """By those who don't see it: landmarks, headings in order, names of all that is a control or a picture."""
    for landmark in ("header", "main", "footer"):
        assert len(page.find_elements(By.CSS_SELECTOR, f"body > {landmark}")) == 1
    levels = [int(one.tag_name[1]) for one in page.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    titles = [one.text for one in page.find_elements(By.CSS_SELECTOR, ".scenario > h2")]
    assert titles == SCENARIOS
    for one in page.find_elements(By.CSS_SELECTOR, "button, input, summary, [role=region], figure, section, article"):
        if one.is_displayed():
            assert one.accessible_name, one.get_attribute("outerHTML")
    plots = [one for one in page.find_elements(By.CSS_SELECTOR, ".plot") if one.is_displayed()]
    assert {one.aria_role for one in plots} == {"image"}
    assert plots[0].accessible_name.startswith("TCP connect: p50, ratio to the floor against the number of services")


def test_each_plot_has_a_table(page: Browser) -> None:
    figure = page.find_element(By.CSS_SELECTOR, ".scenario figure")
    figure.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    rows = [row.text for row in figure.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert len(rows) == 3 * 2 * 6  # ways, sizes, contestants
    assert re.match(r"ebpf 1 pod to ClusterIP [\d.]+ µs [\d.]+ µs to [\d.]+ µs .* 1\.04 1\.03 to 1\.05$", rows[2])


def test_results_can_be_taken_along(page: Browser, report: Path, tmp_path: Path) -> None:
    is_drawn(page)
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for selector in (
        "#download",
        "[aria-label='Data of TCP connect as CSV']",
        "[aria-label='Plot of TCP connect as SVG']",
    ):
        page.execute_script("arguments[0].click()", page.find_element(By.CSS_SELECTOR, selector))
        time.sleep(0.2)  # several at once would be asked about
    names = ["latency-connect-ratio.csv", "latency-connect-ratio.svg", "results.json.gz"]
    until(
        lambda: sorted(one.name for one in tmp_path.iterdir()) == names,
        lambda: str(list(tmp_path.iterdir())),
        _PATIENCE_S,
    )
    assert gzip.decompress((tmp_path / names[2]).read_bytes()) == (report / "results.json").read_bytes()
    assert '"pod to ClusterIP","1000","ebpf"' in (tmp_path / names[0]).read_text()
    drawn = (tmp_path / names[1]).read_text()
    assert "var(" not in drawn and "rgb(" in drawn


def test_what_failed_is_told(page: Browser) -> None:
    text = page.execute_script("return document.querySelector('main').innerText")
    assert "other is left out: it can't run here: this kernel has no module for it" in text
    page.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    text = page.execute_script("return document.querySelector('main').innerText")
    assert "kube-proxy, pod to ClusterIP: TCP connect: ECONNREFUSED 3 times." in text
    assert "61% busy, 1.3% stolen by the hypervisor" in text


def test_nodes_are_chosen_among(stage: Browser, merged: Path) -> None:
    stage.look(360, _HEIGHT)
    stage.get((merged / "index.html").as_uri())
    assert is_drawn(stage).keys() == {"node-1-latency-connect-ratio", "node-1-latency-kept-ratio"}
    choice = stage.find_element(By.ID, "node")
    assert choice.accessible_name == "Show"
    assert [one.text for one in Select(choice).options] == [
        "node-1, kernel 6.1.0-28-amd64",
        f"{HOSTILE}, kernel 5.10.0-33-amd64",
    ]
    choice.send_keys(Keys.ARROW_DOWN)
    until(
        lambda: len(is_drawn(stage)) == 2 and "failover" in min(is_drawn(stage)), lambda: "the other node", _PATIENCE_S
    )
    assert sticks_out(stage) == []
    assert stage.log() == []
    kept = json.loads((merged / "results.json").read_bytes())
    assert (kept["format"], kept["version"]) == ("pyproxy bench merged", 2)
    assert [one["environment"]["node"] for one in kept["documents"]] == ["node-1", HOSTILE]


def test_each_plot_is_a_file(report: Path) -> None:
    names = {path.stem for path in report.glob("*.svg")}
    assert names == {path.stem for path in report.glob("*.png")}
    assert {"latency-connect-ratio", "latency-connect-absolute", "latency-connect-distribution"} <= names
    assert {"sync-first-sync-absolute", "throughput-stream-ratio", "failover-failed-absolute"} <= names
    for name in names:
        drawn = (report / f"{name}.svg").read_text()
        assert "var(" not in drawn and "nftables" in drawn and "<script" not in drawn
        picture = (report / f"{name}.png").read_bytes()
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", picture[16:20])[0] > 600
    assert Document.read(report / "results.json") == document(proxies=PROXIES, sizes=(1, 1000))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["/usr/bin/umount", tmp_path], check=True)


@pytest.mark.parametrize(("proxies", "left"), [(("ebpf",), ["results.json"]), (PROXIES, [])])
def test_a_full_disk_leaves_nothing_half_written(proxies: tuple[str, ...], left: list[str], small_disk: Path) -> None:
    one = document(proxies=proxies, sizes=(1,))
    with pytest.raises(NoPlace, match=f"no report can be written to {small_disk}: No space left on device"):
        write_report([one], small_disk)
    assert [path.name for path in small_disk.iterdir()] == left
    assert all(Document.read(path) == one for path in small_disk.iterdir())


def test_too_many_samples_are_only_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_MOST_BYTES", 0)
    value = Estimate(1.0, 1.0, 1.0)
    figure = Figure(contestant="a", measure="m", title="t", unit="s", quantiles={"p50": value}, samples=[[1.0, 2.0]])
    outcome = Outcome(key="k", scenario="sync", services=1, endpoints=1, complete=True, figures=[figure])
    write_report([Document(environment={}, method={}, outcomes=[outcome])], tmp_path / "new")
    text = (tmp_path / "new" / "index.html").read_text()
    assert "results.json beside it has them" in text
    packed = re.search(r'id="results">([^<]+)<', text)
    assert packed
    attached = msgspec.json.decode(gzip.decompress(base64.b64decode(packed[1])), type=Document)
    assert attached.outcomes[0].figures[0].samples == []
    assert Document.read(tmp_path / "new" / "results.json").outcomes[0].figures[0].samples == [[1.0, 2.0]]
