"""A headless Chromium, driven over a pipe by its own DevTools protocol: no further package."""

import base64
import json
import os
import shutil
import subprocess
import time

NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"
LIMIT = 60  # seconds that anything may take


def chromium():
    """Return the path of Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a headless Chromium.

    Args:
        profile: an empty folder for what Chromium writes.
    """

    def __init__(self, profile):
        to_chromium, self.commands = os.pipe()
        self.answers, from_chromium = os.pipe()

        def connect():  # Chromium reads descriptor 3 and writes 4
            high = os.dup(to_chromium), os.dup(from_chromium)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [chromium(), "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
             "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
             "--disable-background-networking", f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=connect, close_fds=False)
        os.close(to_chromium)
        os.close(from_chromium)
        self.received, self.number, self.session, self.events = b"", 0, None, []
        [target] = [target for target in self.call("Target.getTargets")["targetInfos"]
                    if target["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"],
                                 flatten=True)["sessionId"]
        for domain in "Page", "Runtime", "Network", "Log":
            self.call(f"{domain}.enable")

    def call(self, method, **settings):
        """Call a method of the protocol, and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": settings}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        while b"\0" not in self.received:
            block = os.read(self.answers, 2**16)
            assert block, "Chromium has ended"
            self.received += block
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def run(self, script):
        """Run JavaScript in the page, and return its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script):
        """Wait until JavaScript has a true value, and return it."""
        deadline = time.monotonic() + LIMIT
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"))
            time.sleep(0.05)
        return value

    def open(self, address):
        """Open a page, and wait until all of it is there."""
        self.call("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({address!r}) && document.readyState === 'complete'")

    def choose_file(self, selector, path):
        """Choose a file in a field, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        field = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])

    def look(self, width=1200, height=900, dark=False, path=None):
        """Show the page at a size, light or dark, and write a picture to `path`."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        if path is not None:
            time.sleep(0.5)
            picture = self.call("Page.captureScreenshot", format="png")["data"]
            path.write_bytes(base64.b64decode(picture))

    def complaints(self):
        """Return the errors that the page has logged, and its exceptions."""
        self.run("0")  # takes in what is still on its way
        return [event["params"] for event in self.events
                if event["method"] == "Runtime.exceptionThrown"
                or event["params"].get("entry", {}).get("level") == "error"]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
