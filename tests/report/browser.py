"""A real browser driven through the W3C WebDriver protocol (https://www.w3.org/TR/webdriver2/): plain HTTP and JSON."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--force-device-scale-factor=1",
)
KEYS = {"left": "\ue012", "right": "\ue014", "end": "\ue010", "home": "\ue011"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for "this is an element"


class Browser:
    """One window. Methods are the protocol's commands; `execute` runs JavaScript in the page."""

    def __init__(self, port, profile):
        # The driver is on this machine: a proxy in the environment must not come between.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._root = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        logging = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logging}
        answer = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._root += "/" + answer["sessionId"]

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with self._opener.open(request, timeout=30) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"].splitlines()[0]) from error

    def open(self, url):
        self._call("POST", "/url", {"url": url})

    def execute(self, script, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def find(self, selector):
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self._call("POST", f"/element/{self.find(selector)}/click", {})

    def press(self, selector, key):
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": KEYS[key]})

    def drag(self, selector, dx):
        """Presses the middle of an element, moves dx pixels to the right and lets go."""
        origin = {ELEMENT: self.find(selector)}
        actions = [
            {"type": "pointerMove", "origin": origin, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "origin": origin, "x": dx, "y": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def screenshot(self, selector):
        """What the screen shows of an element: (H, W, 3) uint8."""
        png = self._call("GET", f"/element/{self.find(selector)}/screenshot")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))

    def log(self, kind):
        """What was logged since the last call: "browser" (the console) or "performance" (events of the network)."""
        return self._call("POST", "/se/log", {"type": kind})

    def wait(self, script, seconds=5.0):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.execute(f"return Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} was not true after {seconds} s")
            time.sleep(0.02)

    def quit(self):
        self._call("DELETE", "")


@contextlib.contextmanager
def browser():
    """A running Browser with a profile of its own; driver, browser and profile are gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            started = next(line for line in driver.stdout if "started successfully on port" in line)
            window = Browser(int(started.strip().rstrip(".").split()[-1]), profile)
            try:
                yield window
            finally:
                window.quit()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            driver.stdout.close()
