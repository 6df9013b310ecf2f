"""A headless Chromium, driven over the W3C WebDriver protocol: chromedriver on the loopback, JSON over HTTP."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE = 60.0
"""Seconds that a page gets to show what is waited for."""


def missing() -> str | None:
    """Why there is no browser to test with; None if there is one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None or shutil.which("chromedriver") is None:
        return "no Chromium or no chromedriver on this machine: apt-get install chromium chromium-driver"
    return None


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until ``url`` answers, or ``process``, which is to serve it, ends."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        assert process.poll() is None, f"the server of {url} ended with status {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer in {DEADLINE:.0f} s")


class Browser:
    """One window of a browser."""

    def __init__(self, driver: str, *, dark: bool) -> None:
        self.driver = driver
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        arguments += ["--window-size=1400,1000", "--lang=en", *(["--blink-settings=preferredColorScheme=0"] * dark)]
        options = {"args": arguments, "binary": shutil.which("chromium") or shutil.which("google-chrome")}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self.session = ""
        self.session = f"/session/{self._call('POST', '/session', {'capabilities': wanted})['sessionId']}"

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns, run in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        """What is to be read on the page now."""
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def read_until(self, *wanted: str) -> str:
        """The page's text as soon as it holds every one of ``wanted``."""
        end = time.monotonic() + DEADLINE
        text = ""
        while time.monotonic() < end:
            text = self.text()
            if all(each in text for each in wanted):
                return text
            time.sleep(0.3)
        raise TimeoutError(f"{[each for each in wanted if each not in text]} did not appear; the page says:\n{text}")

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def errors(self) -> list[str]:
        """What the page complained of, and what it failed to load."""
        log = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def close(self) -> None:
        """End the browser."""
        self._call("DELETE", "")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.driver + self.session + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode()[:500]}") from None


@contextmanager
def browser(*, dark: bool = False) -> Iterator[Browser]:
    """A browser of its own, ended afterwards."""
    port = free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/status", driver)
        opened = Browser(f"http://127.0.0.1:{port}", dark=dark)
        try:
            yield opened
        finally:
            opened.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)
