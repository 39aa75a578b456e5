"""instructor: its default mode, tools, and JSON schemas."""

from __future__ import annotations

import json
import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel

BASE_URL, MODEL = sys.argv[1:]
MODES = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)  # the first is its default


class Person(BaseModel):
    name: Literal["Ada", "Grace"]
    sure: bool


found = {}
for mode in MODES:
    client = instructor.from_openai(openai.OpenAI(base_url=BASE_URL, max_retries=0), mode=mode)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}], "temperature": 0, "max_tokens": 1200}
    person = client.chat.completions.create(response_model=Person, max_retries=0, **asked)
    assert person.name in {"Ada", "Grace"}
    found[str(mode)] = person.name
print(json.dumps(found))
