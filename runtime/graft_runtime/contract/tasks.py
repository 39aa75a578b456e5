"""What a base model is loaded for."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """What a base model is loaded for, by PEFT's names (`task_type` of an adapter)."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"  # noqa: S105 - no password
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"

    @property
    def generates(self) -> bool:
        """Tell whether such a model answers with text."""
        return self in (Task.CAUSAL_LM, Task.SEQ_2_SEQ_LM)
