"""LlamaIndex: completion, chat, streams, tools, structured answers."""

import json
import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

BASE_URL, MODEL = sys.argv[1:]


class Mood(BaseModel):
    """How somebody is."""

    mood: Literal["good", "bad"]


def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Tell the weather of a city."""
    return f"rain in {city}"


options = {"model": MODEL, "api_base": BASE_URL, "api_key": "none", "temperature": 0, "context_window": 4096}
llm = OpenAILike(**options, is_chat_model=True, is_function_calling_model=True, max_tokens=1200, max_retries=0)
short = OpenAILike(**options, is_chat_model=True, max_tokens=16)
asked = [ChatMessage(role="user", content="Who are you?")]
whole = short.chat(asked)
assert [*short.stream_chat(asked)][-1].message.content == whole.message.content
assert OpenAILike(**options, is_chat_model=False, max_tokens=8).complete("hello").text
called = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="Where?", tool_required=True)
(call,) = llm.get_tool_calls_from_response(called)
assert call.tool_kwargs["city"] in {"Oslo", "Rome"}
assert llm.as_structured_llm(Mood).chat(asked).raw.mood in {"good", "bad"}
print(json.dumps({"text": whole.message.content}))
