"""Headless Chromium in a namespace of the lab, for what people see.

The browser and its driver live in a process namespace of their own, so that nothing of them outlives the driver,
however it ends. Selenium opens its sockets in the calling thread: that has to be in the network namespace, too.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.remote_connection import ChromeRemoteConnection
from selenium.webdriver.remote.client_config import ClientConfig

from bench.namespace import Namespace

_CHROMIUM = "/usr/bin/chromium"
_DRIVER = "/usr/bin/chromedriver"
_PORT = 9515
_PATIENCE_S = 30
_ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
_PREFERENCES = {"session": {"restore_on_startup": 4, "startup_urls": ["about:blank"]}}
"""Debian's start page is elsewhere, and would be waited for."""
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium's sandbox refuses root
    "--no-proxy-server",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


class Browser(webdriver.Remote):
    """Where it can be used: in the namespace it runs in."""

    def log(self) -> list[str]:
        """What the console got since the last call: errors of scripts, violations of the policy, failed requests."""
        return [entry["message"] for entry in self.execute("getLog", {"type": "browser"})["value"]]

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Have a window of that size, in CSS pixels, and prefer ``scheme``."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def browser(namespace: Namespace, scratch: Path) -> Iterator[Browser]:
    """While it lasts, the calling thread lives in ``namespace``. ``scratch`` takes what Chromium writes."""
    environment = {**os.environ, "HOME": str(scratch), "TMPDIR": str(scratch)}
    command = [*_ALONE, _DRIVER, f"--port={_PORT}", "--log-level=OFF"]
    driver = namespace.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        options = webdriver.ChromeOptions()
        options.binary_location = _CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.add_experimental_option("prefs", _PREFERENCES)
        for flag in (*_FLAGS, f"--user-data-dir={scratch / 'profile'}"):
            options.add_argument(flag)
        address = f"http://127.0.0.1:{_PORT}"
        settings = ClientConfig(address, timeout=_PATIENCE_S)
        with namespace.entered():
            _wait_for(driver)
            connection = ChromeRemoteConnection(address, ignore_proxy=True, client_config=settings)
            yield Browser(connection, options=options)
    finally:
        driver.kill()
        driver.wait()


def _wait_for(driver: "subprocess.Popen[bytes]") -> None:
    """Until it listens: what it says on a pipe comes too late."""
    end = time.monotonic() + _PATIENCE_S
    while driver.poll() is None and time.monotonic() < end:
        try:
            return socket.create_connection(("127.0.0.1", _PORT), timeout=1).close()
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{_DRIVER} did not start")
