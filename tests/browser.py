"""A real browser for tests, and the walk that both homes of the explorer have to pass."""

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from npr_lib.workbench.stages import REPOSITORY

SHOTS = REPOSITORY / "reports" / "browser"  # ignored by git: to be looked at
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1500,1000", "--force-color-profile=srgb"),
)


def start(profile: Path) -> webdriver.Chrome:
    """Chromium with a fresh profile; a missing one fails the test, since skipping hides it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail("no chromium or no chromedriver: install them with .ci/browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Explorer:
    """The explorer in the page that the browser shows."""

    def __init__(self, driver: webdriver.Chrome, name: str) -> None:
        self.driver, self.name = driver, name
        self.root = driver  # or an element: only what is in it is looked at

    def all(self, selector: str) -> list:
        return self.root.find_elements(By.CSS_SELECTOR, selector)

    def enter(self, selector: str, number: int = 0) -> None:
        """Look only at the number-th element that fits from now on, and bring it into sight."""
        self.root = self.driver
        self.until(lambda: len(self.all(selector)) > number, f"{selector} no. {number}", 180)
        self.root = self.all(selector)[number]
        self.driver.execute_script("arguments[0].scrollIntoView()", self.root)

    def leave(self) -> None:
        self.root = self.driver

    def one(self, selector: str):
        return self.until(lambda: self.all(selector), selector)[0]

    def until(self, condition, what: str, seconds: float = 60):
        # What is drawn anew while it is looked at is looked at again.
        again = [StaleElementReferenceException]
        wait = WebDriverWait(self.driver, seconds, 0.02, ignored_exceptions=again)
        try:
            return wait.until(lambda _: condition(), f"waited {seconds} s for {what}")
        except TimeoutException:
            self.shoot("failed")
            raise

    def texts(self, selector: str) -> list[str]:
        return self._run("return [...all].map((node) => node.textContent)", selector)

    def click(self, selector: str) -> None:
        # Not where it is on the screen: a notebook's toolbars may lie over it.
        self.one(selector)
        self._run("all[0].click()", selector)

    def _run(self, script: str, selector: str):
        """A script with `all` that fits the selector: nothing is drawn anew in between."""
        root = None if self.root is self.driver else self.root
        find = "const all = (arguments[0] ?? document).querySelectorAll(arguments[1]); "
        return self.driver.execute_script(find + script, root, selector)

    def choose(self, selector: str, text: str) -> None:
        Select(self.one(selector)).select_by_visible_text(text)

    def open_row(self, row: str) -> None:
        self.click(f'.npr-rows [data-row="{row}"]')
        self.until(lambda: self.all(f'.npr-view[data-row="{row}"]'), f"row {row}")

    def rows(self) -> list[str]:
        return [row.get_attribute("data-row") for row in self.all(".npr-rows .npr-row")]

    def head(self) -> str:
        return self.one(".npr-detail h3").text.lower()

    def color(self, segment: int) -> str:
        box = self.one(f'[data-segment="{segment}"]')
        return box.value_of_css_property("background-color")

    def shoot(self, what: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        if self.root is not self.driver:
            self.driver.execute_script("arguments[0].scrollIntoView()", self.root)
        self.driver.save_screenshot(str(SHOTS / f"{self.name}-{what}.png"))

    def complaints(self) -> list[str]:
        """Errors in the browser's console, among them what a page's policy refused."""
        logged = self.driver.get_log("browser")
        return [entry["message"] for entry in logged if entry["level"] == "SEVERE"]

    def requested(self) -> list[str]:
        """Addresses asked for since the last call, each as the browser asked for it."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


def most_surprising(record: dict) -> tuple[int, int]:
    """The token that the policy was least sure of, outside of guidelines: (segment, token)."""
    chosen = [
        (logprob, i, record["prompt_len"] + t)
        for t, logprob in enumerate(record["logprobs"])
        for i, node in enumerate(record["segments"])
        if node["start"] <= record["prompt_len"] + t < node["end"]
        if logprob is not None and node["kind"] != "guideline"
    ]
    return min(chosen)[1:]


def walk(page: Explorer, records: list[dict], columns: dict, hostile: str) -> None:
    """From the table to "why is this answer wrong", by what a person would click on.

    Args:
        records: of every row, what `explorer.record` makes. columns: of `explorer.table`.
        hostile: what the step 1 of one response says.
    """
    page.one(".npr-box")
    total = len(page.rows())
    page.choose("[data-filter=verdict]", "wrong")
    page.until(lambda: all("✗" in t for t in page.texts(".npr-rows .npr-row")), "wrong rows only")
    wrong = columns["verdict"].count("wrong")
    assert page.one(".npr-count").text.startswith(f"{wrong} rollouts of") and total
    page.click("[data-sort=branches]")
    row = page.rows()[0]
    page.open_row(row)
    record = records[int(row)]
    widest = max(
        b for b, v in zip(columns["branches"], columns["verdict"], strict=True) if v == "wrong"
    )
    assert columns["branches"][int(row)] == widest == 3

    boxes = [int(box.get_attribute("data-segment")) for box in page.all("[data-segment]")]
    assert sorted(boxes) == list(range(len(record["segments"])))
    edges = {path.get_attribute("data-edge") for path in page.all("[data-edge]")}
    assert edges == {f"{a}-{b}" for a, b in record["edges"]}
    page.shoot("1-wrong")

    names = [node["name"] for node in record["segments"]]
    second = names.index("step 2")
    page.click(f'[data-segment="{second}"]')
    assert page.head() == "step 2"
    assert page.texts(".npr-text")[0] == "".join(record["segments"][second]["tokens"])
    assert page.texts(".npr-lane.selected") == ["branch 2"]
    assert "own" in page.one(".npr-facts").text and "shared" in page.one(".npr-facts").text
    assert "does not hold: 4-3=2" in page.one(".npr-facts").text

    answer = len(names) - 1
    page.click(f'[data-segment="{answer}"]')
    page.click(".npr-set input")
    assert page.texts(".npr-text math") == ["20"]
    page.click(".npr-set input")
    page.click(f'[data-segment="{second}"]')

    before = page.color(second)
    page.choose(".npr-color", "arithmetic that does not hold")
    right = names.index("step 1")
    assert page.color(second) not in (before, page.color(right))
    page.shoot("2-arithmetic")

    graph = page.one(".npr-graph")
    for key, name in ((Keys.ARROW_RIGHT, "step 3"), (Keys.ARROW_UP, "guideline")):
        graph.send_keys(key)
        assert page.head() == name
    graph.send_keys(Keys.ENTER)
    assert len(page.all(".npr-box")) == len(names) - 3 + 1
    graph.send_keys(Keys.ENTER)
    assert len(page.all(".npr-box")) == len(names)

    page.choose(".npr-color", "entropy: how open the choice was")
    prompt, node = record["prompt_len"], record["segments"][second]
    known = record["entropies"][node["start"] - prompt : node["end"] - prompt]
    known = [nats / 1000 for nats in known if nats is not None]
    assert page.texts(f'[data-segment="{second}"] .npr-value') == [f"{fmean(known):.2f}"]
    page.shoot("3-entropy")
    page.choose(".npr-color", "surprise: mean −log p")
    other = Select(page.one(".npr-compare")).options[1].text
    page.choose(".npr-compare", other)
    page.until(lambda: len(page.all(".npr-view .npr-detail h3")) == 2, "two responses")
    assert page.all(".npr-view")[1].find_element(By.CSS_SELECTOR, ".npr-badge").text == "✓ right"
    page.shoot("4-compared")
    page.click(".npr-theme")
    page.shoot("5-other-theme")
    page.click(".npr-theme")
    page.click(".npr-close")

    page.choose("[data-filter=verdict]", "right or wrong")
    search = page.one(".npr-search")
    search.send_keys("widest>=3 work/span>1.1 onerror")
    page.until(lambda: page.one(".npr-count").text.startswith("1 rollout "), "one row found")
    row = page.rows()[0]
    page.open_row(row)
    record = records[int(row)]
    segment, token = most_surprising(record)
    assert page.head() == record["segments"][segment]["name"]
    assert "least sure here" in page.one(".npr-facts").text
    assert page.one(".npr-doubt").get_attribute("data-token") == str(token)
    page.click('[data-segment="2"]')
    shown = page.texts(".npr-text")[0]
    assert shown == f"<step>1:{hostile}</step>".replace("\x1b", "␛")
    assert page.driver.execute_script("return window.hacked") is None
    assert not page.all(".npr script, .npr img, .npr a, .npr iframe")
    page.shoot("6-hostile")
    search.clear()
