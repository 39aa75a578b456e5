"""Asks a pool all the time and prints a line of JSON for each request: runs in a pod, needs Python alone.

Usage: asker.py HOST:PORT MODEL,MODEL…  Half of the clients keep their connection, half open one for each request.
"""

from __future__ import annotations

import http.client
import itertools
import json
import select
import sys
import threading
import time

CLIENTS = 20  # of each kind
PERIOD_SECONDS = 1.6
"""From one request of a client to its next: 25 a second in all, as long as answers take no longer."""
TIMEOUT_SECONDS = 30.0


def main() -> None:
    address, models = sys.argv[1], sys.argv[2].split(",")
    for number in range(2 * CLIENTS):
        turn = models[number % len(models) :] + models[: number % len(models)]
        threading.Thread(target=ask_for_ever, args=(address, turn, number % 2 == 0)).start()
        time.sleep(PERIOD_SECONDS / (2 * CLIENTS))  # one after another, and so for ever


def ask_for_ever(address: str, models: list[str], keeps: bool) -> None:
    connection: http.client.HTTPConnection | None = None
    due = time.monotonic()
    for model in itertools.cycle(models):
        if connection is None or (connection.sock is not None and select.select([connection.sock], [], [], 0)[0]):
            connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
        began = time.time()
        told = ask(connection, model)
        line = {"model": model, "kept": keeps, "began": began, "seconds": round(time.time() - began, 3), **told}
        print(json.dumps(line) + "\n", end="", flush=True)  # in one piece: others print as well
        if not keeps or told["text"] is None:
            connection.close()
            connection = None
        due = max(due + PERIOD_SECONDS, now := time.monotonic())
        time.sleep(due - now)


def ask(connection: http.client.HTTPConnection, model: str) -> dict[str, str | None]:
    body = json.dumps({"model": model, "prompt": "1, 2, 3,", "max_tokens": 4, "temperature": 0})
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        return {"text": None, "fault": repr(error)}
    if response.status != 200:
        return {"text": None, "fault": f"{response.status} {content[:200].decode(errors='replace')}"}
    return {"text": json.loads(content)["choices"][0]["text"], "fault": None}


if __name__ == "__main__":
    main()
