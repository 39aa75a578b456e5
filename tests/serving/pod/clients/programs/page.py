"""A person at the page in a headless browser: looks at the adapters, asks two models, looks at their next tokens.

Usage: page.py URL ADAPTER CHROMIUM PICTURE
"""

from __future__ import annotations

import json
import sys

from playwright.sync_api import Page, expect, sync_playwright

URL, ADAPTER, CHROMIUM, PICTURE = sys.argv[1:]
PROMPT = "Question: What is the sea?\nAnswer:"


def look(page: Page) -> dict[str, object]:
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(URL)
    adapter = page.locator("#adapters tbody tr", has_text=ADAPTER)
    expect(adapter).to_be_visible()
    cells = adapter.first.locator("td").all_inner_texts()
    adapter.first.locator("a").click()
    expect(page.locator("#model-1")).to_have_value(ADAPTER)
    page.fill("#prompt", PROMPT)
    page.fill("#tokens", "24")
    page.click("button[type=submit]")
    for side in (0, 1):
        expect(page.locator(f"#told-{side}")).to_contain_text(" tokens in ", timeout=60_000)
    answers = [page.locator(f"#answer-{side}").text_content() for side in (0, 1)]
    page.click("#next")
    table = page.locator("#tokens-table")
    expect(table).to_be_visible(timeout=60_000)
    tokens = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.screenshot(path=PICTURE, full_page=True)

    page.fill("#tokens", "2000")
    page.click("button[type=submit]")
    expect(page.locator("#stop")).to_be_enabled()
    page.click("#stop")
    for side in (0, 1):
        expect(page.locator(f"#told-{side}")).to_have_text("stopped")
    elsewhere = [url for url in asked if not url.startswith(URL)]
    return {
        "prompt": PROMPT,
        "cells": cells,
        "answers": answers,
        "tokens": tokens,
        "faults": faults,
        "elsewhere": elsewhere,
    }


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    print(json.dumps(look(browser.new_page(viewport={"width": 1100, "height": 800}))))
    browser.close()
