"""Open every page of the built book in Chromium: `python docs/check_pages.py docs/_build/html`.

A page that asks the network for anything, or reports an error on its console, is named, and the exit code is 1. Without
Chromium nothing is checked, and that is said.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def complaints(page, path: Path) -> list[str]:
    """What is wrong with one page."""
    found: list[str] = []
    page.on("console", lambda message: found.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("request", lambda request: None if is_local(request.url) else found.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    if not page.title():
        found.append("it has no title")
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
        for path in pages:
            page = browser.new_page()
            for complaint in complaints(page, path):
                print(f"{path.relative_to(Path(folder).resolve())}: {complaint}")
                num_bad += 1
            page.close()
        browser.close()
    print(f"{len(pages)} pages opened, {num_bad} complaints")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
