"""How an answer is to be read, and the form that it must have: by what is asked, and by the family of the model."""

from __future__ import annotations

from collections.abc import Sequence

from graft_runtime.answering.asked import TextRequest
from graft_runtime.answering.calls import Reader
from graft_runtime.answering.composition import Target
from graft_runtime.answering.harmony import Harmony
from graft_runtime.answering.thinking import Thinking, marks_of
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.grammars import AnswerForm

LAST_TOKENS = 16
"""Of a prompt, which tell whether the answer begins with thoughts."""
_HARMONY = "<|channel|>"
"""What the chat templates of GPT-OSS hold."""


def form_of(request: TextRequest, target: Target) -> AnswerForm | None:
    """Return the form of the answers, that of calls where these are forced."""
    if request.tools is None or not request.tools.forced:
        return request.form
    return request.tools.form(target.text_format.defaults.chat_template or "")


def reader_of(request: TextRequest, prompt: Sequence[int], target: Target, model: str) -> Reader | None:
    """Return what reads an answer; None: it is text alone.

    Args:
        request: what is asked.
        prompt: its token ids.
        target: what answers.
        model: its name, for errors.

    Raises:
        GraftError: UnsupportedParameter.
    """
    tools = request.tools
    if not request.prompts.converses or request.form is not None:
        return None
    template = target.text_format.defaults.chat_template or ""
    if tools is not None and tools.forced:
        return tools.reader(template)  # a grammar leaves no place for thoughts
    if _HARMONY in template:
        return Harmony(most=tools.most if tools is not None else None)
    calls = tools.reader(template) if tools is not None else None
    if tools is not None and calls is None:
        raise GraftError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"the chat template of `{model}` is of no family whose calls of `tools` can be read",
            hint='send `tool_choice: "required"`, or name a tool there',
            field="tools",
        )
    if (marks := marks_of(template)) is None:
        return calls
    end = target.text_format.tokenizer.decode(prompt[-LAST_TOKENS:], show_special=True)
    return Thinking(marks, calls, begun=end.rstrip().endswith(marks.begin))
