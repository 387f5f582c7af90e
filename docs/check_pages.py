"""Open every page of the built book in Chromium: `python docs/check_pages.py docs/_build/html`.

A page that asks the network for anything, or reports an error on its console, is named, and the exit code is 1. Without
Chromium nothing is checked, and that is said.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

TOGETHER = 16  # pages: each waits for half a second, and they can do that at the same time


def open_page(browser, path: Path):
    """The page, and a list to which is added what is wrong with it."""
    page, found = browser.new_page(), []
    page.on("console", lambda message: found.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("request", lambda request: None if is_local(request.url) else found.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    return page, found


def complaints(page, found: list[str]) -> list[str]:
    """What is wrong with it, when half a second has passed in which it asked for nothing."""
    page.wait_for_load_state("networkidle")
    if not page.title():
        found.append("it has no title")
    page.close()
    return found


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "about:"))


def main(folder: str) -> int:
    pages = sorted(Path(folder).resolve().rglob("*.html"))
    if not pages:
        print(f"There are no pages in {folder}.")
        return 1
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("NOT CHECKED: there is no chromium and no google-chrome here.")
        return 0
    from playwright.sync_api import sync_playwright

    num_bad = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for begin in range(0, len(pages), TOGETHER):
            paths = pages[begin : begin + TOGETHER]
            for path, opened in zip(paths, [open_page(browser, path) for path in paths]):
                for complaint in complaints(*opened):
                    print(f"{path.relative_to(Path(folder).resolve())}: {complaint}")
                    num_bad += 1
        browser.close()
    print(f"{len(pages)} pages opened, {num_bad} complaints")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
