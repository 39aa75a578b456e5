"""LangChain: chat, batches, streams, tools, both ways to answers in a form, too long a prompt, a cancelled task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Literal

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

BASE_URL, MODEL = sys.argv[1:]


class Mood(BaseModel):
    """How somebody is."""

    mood: Literal["good", "bad"]


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Tell the weather of a city."""
    return f"rain in {city}"


chat = ChatOpenAI(base_url=BASE_URL, model=MODEL, temperature=0, max_tokens=1200, max_retries=2)
short = chat.bind(max_tokens=16)
asked = HumanMessage("Who are you?")
whole = short.invoke([asked])
assert whole.usage_metadata["output_tokens"] == 16
pieces = list(short.stream([asked], stream_usage=True))
assert "".join(piece.text for piece in pieces) == whole.text
assert pieces[0].response_metadata is not None
assert [answer.text for answer in short.batch([[asked]] * 12)] == [whole.text] * 12

bound = chat.bind_tools([weather], tool_choice="weather")
called = bound.invoke([asked])
(call,) = called.tool_calls
assert call["args"]["city"] in {"Oslo", "Rome"}, called
told = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
assert isinstance(
    chat.bind_tools([weather], tool_choice="none").bind(max_tokens=8).invoke([asked, called, told]), AIMessage
)
gathered = None
for piece in bound.stream([asked]):
    gathered = piece if gathered is None else gathered + piece
assert gathered.tool_calls[0]["args"] == call["args"]

for method in ("json_schema", "function_calling"):
    assert chat.with_structured_output(Mood, method=method).invoke([asked]).mood in {"good", "bad"}, method

told = chat.bind(logprobs=True, top_logprobs=2, max_tokens=4).invoke([asked]).response_metadata["logprobs"]
assert len(told["content"]) == 4

try:
    chat.invoke([HumanMessage("x" * 5000)])
except ContextOverflowError:
    pass
else:
    raise AssertionError("a prompt over the context was taken")


async def cancelled() -> None:
    """Leave an answer that has begun."""
    task = asyncio.create_task(chat.bind(max_tokens=3000, extra_body={"ignore_eos": True}).ainvoke([asked]))
    await asyncio.sleep(0.2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


asyncio.run(cancelled())
assert OpenAI(base_url=BASE_URL, model=MODEL, temperature=0, max_tokens=8).invoke("hello")
print(json.dumps({"text": whole.text}))
