"""Opens pages in headless Chromium and looks at them as a reader would.

For each page, at 400 and 1600 pixels, light and dark: no message on the console, no request besides the page itself,
no scrolling sideways, a screenshot. Then the keyboard: choosing and searching a layer, sorting a table, the colours.
Then without a script and as a print. Speaks the DevTools protocol over a pipe, with the standard library only.

    python3 check.py OUT PAGE.html...
"""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

WIDTHS = (400, 1600)
THEMES = ("light", "dark")


class Browser:
    """Chromium with its protocol on file descriptors 3 and 4."""

    def __init__(self):
        program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
        if not program:
            sys.exit("chromium is not installed; name it with CHROMIUM=/path/to/chromium")
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.writer = os.pipe()
        self.reader, from_browser = os.pipe()

        def descriptors():
            # Above 4 first, so that neither takes the other's place.
            ours = [os.dup(to_browser), os.dup(from_browser)]
            ours = [os.dup2(fd, 20 + i) for i, fd in enumerate(ours)]
            os.dup2(ours[0], 3)
            os.dup2(ours[1], 4)

        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
             "--no-first-run", "--disable-background-networking", f"--user-data-dir={self.profile.name}"],
            pass_fds=(3, 4), preexec_fn=descriptors, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.number = 0
        self.session = None
        self.events = []
        self.buffer = b""

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.writer, data):]
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.reader, 1 << 20)
            if not part:
                raise RuntimeError("chromium ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, url, width, height, theme="light", script=True):
        """A new tab with the page, loaded; its console and its requests are in `events`."""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        until = time.time() + 30
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            if time.time() > until:
                raise RuntimeError(f"{url} does not load")
            self.events.append(self.receive())

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key, code=None, text=None):
        codes = {"ArrowDown": 40, "ArrowUp": 38, "End": 35, "Home": 36, "Enter": 13, "Tab": 9, " ": 32, "ArrowRight": 39}
        common = {"key": key, "code": code or key, "windowsVirtualKeyCode": codes.get(key, 0)}
        if key == "Enter":
            text = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def shot(self, path, whole=True):
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        self.session = None
        try:
            self.call("Browser.close")
        except (RuntimeError, OSError):
            pass
        self.process.wait(timeout=20)
        self.profile.cleanup()


class Checks:
    def __init__(self):
        self.done = 0
        self.failures = []

    def that(self, holds, sentence):
        self.done += 1
        if not holds:
            self.failures.append(sentence)
            print(f"FAILED: {sentence}")


def look(browser, checks, page, out):
    """Every width and theme: quiet, alone, no wider than the window."""
    url = page.resolve().as_uri()
    for width in WIDTHS:
        for theme in THEMES:
            name = f"{page.parent.name}-{page.stem}-{width}-{theme}"
            browser.open(url, width, 900, theme)
            wide = browser.evaluate("document.documentElement.scrollWidth")
            checks.that(wide <= width, f"{name}: the page is {wide} pixels wide")
            # Whatever sticks out is hidden or scrolls in its own box.
            browser.shot(out / f"{name}.png")
            dark = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            light = sum(int(part) for part in dark[4:-1].split(",")) > 3 * 128
            checks.that(light == (theme == "light"), f"{name}: the ground is {dark}")
            for event in browser.events:
                method, params = event.get("method"), event.get("params", {})
                if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                    checks.that(False, f"{name}: the console says {json.dumps(params)[:400]}")
                if method == "Network.requestWillBeSent":
                    asked = params["request"]["url"]
                    checks.that(asked == url, f"{name}: asks for {asked}")
    # A page that cannot load anything: asking for something fails by its own policy.
    browser.open(url, 1600, 900)
    refused = browser.evaluate(
        "fetch('data:,x').then(() => 'loaded', () => 'refused')")
    checks.that(refused == "refused", f"{page}: the policy lets the page load something")
    added = browser.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); return window.ran === 1; })()")
    checks.that(not added, f"{page}: the policy lets a foreign script run")


def structure(browser, checks, page):
    """What assistive software builds on."""
    browser.open(page.resolve().as_uri(), 1600, 900)
    for count, selector, sentence in [
        (1, "main", "one main landmark"),
        (1, "h1", "one heading of the first level"),
        (1, "html[lang]", "a language"),
        (0, "img, link, iframe, object, [src]", "nothing from elsewhere"),
        (0, "[style], [onclick], [onload], [onerror]", "no style or script in attributes"),
    ]:
        found = browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")
        checks.that(found == count, f"{page}: {sentence}, found {found}")
    for expression, sentence in [
        ("[...document.querySelectorAll('svg')].every(s => s.closest('[aria-hidden],[aria-label]'))", "every drawing has a name or is hidden"),
        ("[...document.querySelectorAll('th')].every(h => h.scope)", "every table head says its direction"),
        ("[...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.ariaLabel)", "what scrolls can be reached"),
        ("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size === document.querySelectorAll('[id]').length", "no name is given twice"),
        ("[...document.querySelectorAll('input')].every(i => i.labels.length === 1)", "every field has a label"),
    ]:
        checks.that(browser.evaluate(expression), f"{page}: {sentence}")
    low = browser.evaluate(CONTRAST)
    for theme, pairs in low.items():
        checks.that(not pairs, f"{page}: contrast below 4.5 in {theme}: {pairs}")


# WCAG 2: the contrast of every text with the first ground behind it.
CONTRAST = """(() => {
  const parts = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parts(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (parts(c)[3] !== 0) return c;
    }
    return 'rgb(255,255,255)';
  };
  const found = {};
  for (const theme of ['light', 'dark']) {
    document.documentElement.dataset.theme = theme;
    const low = new Set();
    for (const e of document.querySelectorAll('body *')) {
      if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
      if (!e.checkVisibility() || e.closest('.hidden, .skip, script, style')) continue;
      const style = getComputedStyle(e);
      const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(ground(e))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) low.add(`${e.tagName}.${e.getAttribute('class') || ''} ${ratio.toFixed(2)}`);
    }
    found[theme] = [...low];
  }
  delete document.documentElement.dataset.theme;
  return found;
})()"""


def keyboard(browser, checks, page):
    """The theme, the table and the choice of a layer, with keys alone."""
    browser.open(page.resolve().as_uri(), 1600, 900)
    browser.evaluate("document.querySelector('#theme input:checked').focus()")
    browser.press("ArrowRight")
    checks.that(browser.evaluate("document.documentElement.dataset.theme") == "light", f"{page}: a key chooses light")
    browser.press("ArrowRight")
    checks.that(browser.evaluate("document.documentElement.dataset.theme") == "dark", f"{page}: a key chooses dark")
    browser.press("ArrowRight")
    checks.that(not browser.evaluate("document.documentElement.dataset.theme"), f"{page}: a key goes back to the system's")

    first = "document.querySelector('table[data-sortable] tbody tr th').textContent"
    before = browser.evaluate(first)
    browser.evaluate("document.querySelector('table[data-sortable] thead th[aria-sort] button').focus()")
    browser.press("Enter")
    after = browser.evaluate(first)
    rows = browser.evaluate("document.querySelectorAll('table[data-sortable] tbody tr').length")
    checks.that(rows < 2 or before != after, f"{page}: a key sorts the table the other way")
    checks.that(
        browser.evaluate("document.querySelectorAll('table[data-sortable] th[aria-sort=descending]').length") == 1,
        f"{page}: the head says how the table is sorted")
    if not browser.evaluate("!!document.getElementById('choice')"):
        return

    chosen = "document.querySelector('#panels > .chosen .path').textContent"
    shown = "[...document.querySelectorAll('#panels > details')].filter(d => d.checkVisibility()).length"
    option = "document.querySelector('#choices [aria-selected=true] span').textContent"
    active = "document.getElementById(document.getElementById('search').getAttribute('aria-activedescendant')).firstChild.textContent"
    start = browser.evaluate(chosen)
    browser.evaluate("document.getElementById('search').focus()")
    browser.press("ArrowDown")
    second = browser.evaluate(chosen)
    checks.that(second != start, f"{page}: the arrow key chooses the next layer")
    checks.that(browser.evaluate(shown) == 1, f"{page}: one layer is shown at a time")
    checks.that(second == browser.evaluate(option) == browser.evaluate(active), f"{page}: list and panel name the same layer")
    browser.press("ArrowUp")
    checks.that(browser.evaluate(chosen) == start, f"{page}: the arrow key goes back")
    last = browser.evaluate("[...document.querySelectorAll('#choices li span:first-child')].pop().textContent")
    word = last[-12:]
    browser.type(word)
    left = browser.evaluate("[...document.querySelectorAll('#choices li')].filter(o => o.checkVisibility()).map(o => o.firstChild.textContent)")
    checks.that(left and all(word.lower() in name.lower() for name in left), f"{page}: searching {word} leaves {left}")
    checks.that(browser.evaluate(chosen) in left, f"{page}: the chosen layer is among those found")
    said = browser.evaluate("document.getElementById('found').textContent")
    checks.that(said.startswith(f"{len(left)} of "), f"{page}: it is said how many are found: {said}")
    browser.evaluate("(() => { const s = document.getElementById('search'); s.value = ''; s.dispatchEvent(new Event('input')); })()")
    browser.evaluate("document.getElementById('choices').focus()")
    browser.press("End")
    checks.that(browser.evaluate(chosen) == last, f"{page}: End chooses the last layer")
    link = "document.querySelector('table.layers tbody a')"
    browser.evaluate(f"{link}.focus()")
    browser.press("Enter")
    checks.that(browser.evaluate(chosen) == browser.evaluate(f"{link}.textContent"), f"{page}: a link in the table chooses its layer")
    checks.that(browser.evaluate("document.activeElement.id") == "choices", f"{page}: and the focus goes along")
    counts = "['log', 'linear'].map(c => document.querySelector(`.chosen .counts.${c}`).checkVisibility()).join()"
    checks.that(browser.evaluate(counts) == "true,false", f"{page}: counts are logarithmic at first")
    browser.evaluate("document.getElementById('log').focus()")
    browser.press(" ", "Space", " ")
    checks.that(browser.evaluate(counts) == "false,true", f"{page}: a key makes counts linear")


def plain(browser, checks, page, out):
    """Without a script everything can be read; a print has the worst layers and all tables."""
    browser.open(page.resolve().as_uri(), 1600, 900, script=False)
    browser.shot(out / f"{page.parent.name}-{page.stem}-no-script.png")
    browser.open(page.resolve().as_uri(), 1600, 900)
    data = browser.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)["data"]
    pdf = out / f"{page.parent.name}-{page.stem}.pdf"
    pdf.write_bytes(base64.b64decode(data))
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.call("Emulation.setDeviceMetricsOverride", width=700, height=1000, deviceScaleFactor=1, mobile=False)
    wide = browser.evaluate("document.documentElement.scrollWidth")
    checks.that(wide <= 700, f"{page}: the print is {wide} pixels wide, a page has 700")
    checks.that(not browser.evaluate("document.querySelector('.theme').checkVisibility()"), f"{page}: no buttons on paper")
    if browser.evaluate("!!document.getElementById('panels')"):
        worst = browser.evaluate("[...document.querySelectorAll('#panels > .worst')].every(d => d.checkVisibility() && d.querySelector('svg').checkVisibility())")
        checks.that(worst, f"{page}: the worst layers are printed with their histograms")
    browser.shot(out / f"{page.parent.name}-{page.stem}-print.png")


def main():
    out, pages = pathlib.Path(sys.argv[1]), [pathlib.Path(page) for page in sys.argv[2:]]
    out.mkdir(parents=True, exist_ok=True)
    browser, checks = Browser(), Checks()
    try:
        for page in pages:
            look(browser, checks, page, out)
            structure(browser, checks, page)
            keyboard(browser, checks, page)
            plain(browser, checks, page, out)
    finally:
        browser.close()
    print(f"{checks.done - len(checks.failures)} of {checks.done} checks hold; screenshots in {out}")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
