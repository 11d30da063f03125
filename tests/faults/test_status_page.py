"""The page at / of the metrics port, in a real browser, in front of a real proxy."""

import base64
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pyproxy import __version__
from tests.conformance.cluster import Candidate, Cluster, until
from tests.conformance.manifests import Object, addresses, endpoint_slice, node_port, service, slices
from tests.faults import example
from tests.faults.browser import Browser, browser
from tests.faults.failing_program import stand_before

PICTURE = os.environ.get("PYPROXY_PICTURE")  # where to keep the picture, for `make screenshot`
WIDTHS = (360, 768, 1280, 1920)
MANY = [f"10.244.1.{number}" for number in range(20, 80)]
SYNCED = "The kernel is up to date."
PAYLOAD = "<img src=x onerror=document.title='owned'>"
_PATIENCE_S = 20.0
_ADDRESS = "172.18.0.2:10249"
_HOME = f"http://{_ADDRESS}/"
_ROWS = "return [...document.querySelectorAll('#table tr')].map(row => [...row.cells].map(cell => cell.innerText))"
_NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Page:
    cluster: Cluster
    browser: Browser
    nft_fails: Path
    """While this file exists."""

    def text(self, name: str) -> str:
        """What one can read of the element with that id, on one line."""
        text = self.browser.execute_script("return document.getElementById(arguments[0]).innerText", name)
        return " ".join(text.split())

    def rows(self) -> list[str]:
        """Of the routes: all that one reads in a row, on one line."""
        return [" ".join(" ".join(row).split()) for row in self.browser.execute_script(_ROWS)]

    def reads(self, name: str, *parts: str) -> None:
        """Wait until the element says all ``parts``."""
        until(
            lambda: all(part in self.text(name) for part in parts),
            lambda: f"{name} says {self.text(name)!r}, not {parts}",
            _PATIENCE_S,
        )

    def search(self, words: str) -> None:
        box = self.browser.find_element(By.ID, "search")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(words)

    @property
    def is_stale(self) -> bool:
        return bool(self.browser.execute_script("return document.body.classList.contains('lost')"))


def known() -> list[Object]:
    """Five services: of two pods, affine, empty, without a local pod, and large."""
    v4 = addresses(5)["ClusterIP"]["IPv4"]
    large = [{"addresses": [ip], "nodeName": "node-2"} for ip in MANY]
    return [
        *(service(1), *slices(1, ["pod-2", "pod-4"])),
        *(service(2, exposed=False, sessionAffinity="ClientIP"), *slices(2, ["pod-1"])),
        service(3, exposed=False),
        *(service(4, externalTrafficPolicy="Local"), *slices(4, ["pod-4"])),
        service(5, exposed=False, clusterIP=v4, clusterIPs=[v4], ports=[{"name": "tcp", "port": 80}]),
        endpoint_slice(5, "IPv4", large),
    ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    scratch = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        flag = stand_before("nft", scratch, patch)
        with (
            Cluster(Candidate("nftables"), metricsBindAddress=_ADDRESS, minSyncPeriod="5ms") as cluster,
            browser(cluster.lab.client.namespace, scratch) as driver,
        ):
            cluster.remove_objects("sentinel")
            cluster.write_objects("known", *known())
            yield Page(cluster, driver, flag)


@pytest.fixture
def page(stage: Page) -> Iterator[Page]:
    """Freshly loaded. Afterwards nothing may have gone wrong in the browser but that a server did not answer."""
    stage.browser.look(1280, 900)
    stage.browser.get(_HOME)
    stage.reads("routes", "17")
    yield stage
    assert [line for line in stage.browser.log() if "net::ERR_" not in line] == []


def test_its_figures_are_those_of_the_cluster(page: Page) -> None:
    for figure, count in (("services", "5"), ("endpoints", "66"), ("routes", "17")):
        page.reads(figure, count)
    assert (page.text("node"), page.text("mode"), page.text("version")) == ("node-1", "nftables", __version__)
    assert page.text("count") == "17 of 17 routes"
    page.reads("verdict", SYNCED)
    page.reads("pending", "0", "all are in the kernel")
    page.cluster.write_objects("more", service(6, exposed=False), *slices(6, ["pod-3"]))
    page.reads("routes", "21")
    page.reads("endpoints", "68")
    page.cluster.remove_objects("more")
    page.reads("routes", "17")
    page.reads("last-sync", " ago ", "4 routes in ", "ms")
    assert "full" not in page.text("last-sync")
    for kind in ("Service", "EndpointSlice", "Node"):
        page.reads("api", f"{kind} watching for ")


def test_a_row_tells_where_traffic_goes(page: Page) -> None:
    ports = {number: str(node_port(number, "TCP")) for number in (1, 4)}
    rows = {" ".join(row.split()[:5]): row for row in page.rows()}
    assert rows["svc-1 conformance tcp TCP, IPv4"].split()[5:] == [
        *("10.96.1.1:80", "ClusterIP", "203.0.113.1:80", "ExternalIP", "198.51.100.1:80", "LoadBalancer"),
        *(ports[1], _NONE, "10.244.0.12:8080", "local", "10.244.1.14:8080"),
    ]
    assert rows["svc-2 conformance udp UDP, IPv6"].endswith(
        f"[fd00:10:96:1::2]:53 ClusterIP {_NONE} 3 h [fd00:10:244::11]:8080 local"
    )
    assert rows["svc-3 conformance tcp TCP, IPv4"].endswith("none, clients are refused")
    assert rows["svc-4 conformance tcp TCP, IPv4"].endswith(
        f"{ports[4]} {_NONE} of the ClusterIP 10.244.1.14:8080 for traffic from outside none, packets are dropped"
    )
    large = rows["svc-5 conformance tcp TCP, IPv4"]
    assert large.endswith("10.244.1.20:8080 10.244.1.21:8080 10.244.1.22:8080 10.244.1.23:8080 56 more")
    page.browser.find_element(By.CSS_SELECTOR, "#table summary").click()
    (large,) = [row for row in page.rows() if row.startswith("svc-5")]
    assert large.endswith("10.244.1.69:8080 and 10 that are not listed")


@pytest.mark.parametrize(
    ("words", "matching", "name"),
    [
        ("svc-3", 4, "svc-3"),
        ("10.244.0.11", 2, "svc-2"),
        ("[fd00:10:244::12]:8080", 2, "svc-1"),
        ("SVC-4 udp ipv6", 1, "svc-4"),
        (str(node_port(1, "UDP")), 2, "svc-1"),
        ("10.244.1.79", 1, "svc-5"),
        ("svc-1 10.244.0.11", 0, ""),
    ],
)
def test_a_search_narrows(page: Page, words: str, matching: int, name: str) -> None:
    page.search(words)
    page.reads("count", f"{matching} of 17 routes")
    rows = page.rows()
    assert (len(rows), {row.split()[0] for row in rows}) == (matching, {name} - {""})
    assert page.browser.find_element(By.ID, "nothing").is_displayed() == (not rows)
    page.browser.refresh()
    page.reads("count", f"{matching} of 17 routes")
    page.search(Keys.DELETE)
    page.reads("count", "17 of 17 routes")


def test_a_refresh_leaves_its_reader_alone(page: Page) -> None:
    page.browser.look(800, 500)
    page.search("conformance")
    page.reads("count", "17 of 17 routes")
    page.browser.execute_script("scrollTo(0, 700); document.getElementById('search').setSelectionRange(2, 5)")
    state = "const box = document.activeElement; return [box.id, box.value, box.selectionStart, scrollY]"
    before = page.browser.execute_script(state)
    page.cluster.write_objects("more", service(9, exposed=False), *slices(9, ["pod-3"]))
    page.reads("count", "21 of 21 routes")
    assert page.browser.execute_script(state) == before == ["search", "conformance", 2, 700]
    page.browser.find_element(By.CSS_SELECTOR, "#table summary").send_keys(Keys.ENTER)
    scrolled = page.browser.execute_script("return scrollY")
    page.cluster.write_objects("large", endpoint_slice(5, "IPv4", [{"addresses": ["10.244.1.99"]}], name="svc-5") | {
        "metadata": {
            "name": "svc-5-more",
            "namespace": "conformance",
            "labels": {"kubernetes.io/service-name": "svc-5"},
        }
    })  # fmt: skip
    page.reads("table", "57 more", "and 11 that are not listed")  # what is folded can't be read
    focus = "return [document.activeElement.innerText, document.activeElement.parentElement.open, scrollY]"
    assert page.browser.execute_script(focus) == ["57 more", True, scrolled]
    page.cluster.remove_objects("large")
    page.cluster.remove_objects("more")
    page.reads("count", "17 of 17 routes")


def test_what_objects_say_is_text(page: Page) -> None:
    """The name is not a DNS label, so the service is refused, and the error quotes it."""
    ports = [{"name": PAYLOAD, "port": 80, "protocol": "TCP"}]
    page.cluster.write_objects("hostile", service(7, exposed=False, ports=ports))
    page.reads("errors", "svc-7", "<img src=x onerror=document.title=")
    assert page.browser.find_elements(By.CSS_SELECTOR, "img, main script, main style, iframe") == []
    assert page.browser.title == "node-1 · pyproxy"
    page.search(PAYLOAD)
    page.reads("count", "0 of 17 routes")
    page.browser.refresh()
    page.reads("count", "0 of 17 routes")
    assert page.browser.find_elements(By.CSS_SELECTOR, "img") == []
    page.cluster.remove_objects("hostile")


def test_it_tells_that_the_api_server_is_gone_and_back(page: Page) -> None:
    page.reads("verdict", SYNCED)
    page.cluster.api.stop()
    try:
        page.reads("verdict", "The API server does not answer as hoped.")
        page.reads("api", "Service waiting to try again for ", "refused")
        assert page.browser.title == "! node-1 · pyproxy"
        assert page.text("routes") == "17"
        assert not page.is_stale
    finally:
        page.cluster.api.start()
        page.reads("verdict", SYNCED)


def test_it_tells_that_syncs_fail_and_why(page: Page) -> None:
    page.nft_fails.touch()
    try:
        page.cluster.write_objects("failing", service(8, exposed=False))
        page.reads("verdict", "Syncs are failing", "Cannot allocate memory")
        page.reads("errors", "sync failed: ", "Cannot allocate memory")
        page.reads("pending", "1", "for ")
        assert page.text("routes") == "17"
    finally:
        page.nft_fails.unlink()
        page.reads("verdict", SYNCED)
    page.reads("routes", "21")
    page.cluster.remove_objects("failing")
    page.reads("routes", "17")


def test_it_tells_that_the_proxy_is_gone_and_back(page: Page) -> None:
    page.cluster.proxy.stop()
    try:
        page.reads("verdict", "The proxy does not answer. What is below is from ")
        assert page.is_stale
        colours = "return ['#services', '#verdict'].map(id => getComputedStyle(document.querySelector(id)).color)"
        figure, verdict = page.browser.execute_script(colours)
        assert figure == "rgb(89, 99, 110)" != verdict
        assert page.text("routes") == "17"
        assert page.browser.title == "! no answer · pyproxy"
    finally:
        page.cluster.start()
        page.reads("verdict", SYNCED)
    page.reads("last-sync", "full, 17 routes in ")
    assert not page.is_stale


def test_a_long_table_is_cut(page: Page) -> None:
    crowd = [service(0, exposed=False, name=f"crowd-{number}", clusterIP="None") for number in range(3)]
    for number in range(200):
        ip = f"10.96.200.{number + 1}"
        ports = [{"name": f"port-{index}", "port": 80 + index} for index in range(3)]
        crowd.append(service(0, exposed=False, name=f"crowd-{number}", clusterIP=ip, clusterIPs=[ip], ports=ports))
    page.cluster.write_objects("crowd", *crowd)
    page.reads("count", "617 of 617 routes; the first 500 are shown")
    assert len(page.rows()) == 500
    page.search("crowd-19")
    page.reads("count", "33 of 617 routes")
    page.cluster.remove_objects("crowd")
    page.reads("count", "0 of 17 routes")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out(page: Page, width: int) -> None:
    page.browser.look(width, 800)
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_it_can_be_heard(page: Page) -> None:
    """By those who don't see it: names, roles, and what is announced."""
    box = page.browser.find_element(By.ID, "search")
    assert (box.aria_role, box.accessible_name) == ("searchbox", "Search")
    for table in page.browser.find_elements(By.TAG_NAME, "table"):
        assert table.aria_role == "table"
        assert table.accessible_name in ("API server", "Routes")
        assert {one.aria_role for one in table.find_elements(By.CSS_SELECTOR, "thead th")} == {"columnheader"}
        assert {one.aria_role for one in table.find_elements(By.CSS_SELECTOR, "tbody th")} == {"rowheader"}
    for name in ("verdict", "count"):
        assert page.browser.find_element(By.ID, name).get_attribute("aria-live") == "polite"


def test_its_picture(tmp_path: Path) -> None:
    """For the documentation; what it shows was served by a proxy."""
    with (
        Cluster(Candidate("nftables"), metricsBindAddress=_ADDRESS) as cluster,
        browser(cluster.lab.client.namespace, tmp_path) as driver,
    ):
        cluster.proxy.stop()
        cluster.remove_objects("sentinel")
        cluster.write_objects("node", *example.shop())
        cluster.start()
        shown = Page(cluster, driver, tmp_path)
        driver.look(1280, 900)
        until(lambda: _opens(driver), lambda: "the page never came", _PATIENCE_S)
        if PICTURE:
            time.sleep(15)  # a proxy that has just started looks unlived in
        shown.search("shop")
        shown.reads("count", "7 of 19 routes")
        driver.execute_script("document.activeElement.blur()")
        picture = base64.b64decode(driver.get_screenshot_as_base64())
    assert struct.unpack(">II", picture[16:24]) == (1280, 900)  # of a PNG
    Path(PICTURE or tmp_path / "picture.png").write_bytes(picture)


def _opens(driver: Browser) -> bool:
    try:
        driver.get(_HOME)
    except Exception:
        return False
    return True
