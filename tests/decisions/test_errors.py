"""Every error code has one class, and both programs do by it what it says."""

from __future__ import annotations

import pytest
from graft_operator.decisions.adapter_status import counts, is_failed
from graft_operator.resource import AdapterStatus
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError, Recovery
from graft_runtime.http.faults import error_response, fault_response
from graft_runtime.store.fetches import retry_seconds

TRIED_AGAIN_BY_CLIENTS = {409, 429, 500, 503}


@pytest.mark.parametrize("code", ErrorCode)
def test_what_pods_retry_and_what_the_status_says_are_one(code: ErrorCode) -> None:
    adapter = AdapterStatus(name="a", reason=code.value, desired_replicas=1, ready_replicas=0)
    waits = retry_seconds(code, 0)
    match code.recovery:
        case Recovery.BY_ITSELF:
            assert not is_failed(adapter)
            assert waits == 1
        case Recovery.OUTSIDE:
            assert is_failed(adapter)
            assert waits == 4
        case Recovery.BY_A_PERSON:
            assert is_failed(adapter) == counts(adapter)
            assert waits is None


@pytest.mark.parametrize("code", ErrorCode)
def test_clients_are_told_to_try_again_where_that_is_of_use(code: ErrorCode) -> None:
    answer, control = error_response(GraftError(code, "why")), fault_response(GraftError(code, "why"))
    assert answer.status_code == control.status_code == code.http_status
    assert (code.http_status in TRIED_AGAIN_BY_CLIENTS) == (code.passes or code is ErrorCode.INTERNAL)
    assert ("Retry-After" in answer.headers) == (code.http_status in {429, 503})


def test_a_code_is_its_text_and_nothing_else_crosses_the_wire() -> None:
    assert ErrorCode("NoCapacity") is ErrorCode.NO_CAPACITY
    fault = Fault(code=ErrorCode.NO_CAPACITY, message="full")
    assert fault.canonical_json() == b'{"code":"NoCapacity","message":"full"}'
    assert Fault.model_validate_json(fault.canonical_json()).code.passes


def test_a_reason_of_another_version_of_graft_needs_a_person() -> None:
    assert is_failed(AdapterStatus(name="a", reason="FromTheFuture", desired_replicas=1, ready_replicas=0))


def test_an_error_quotes_no_more_of_a_stranger_s_text_than_can_be_shown() -> None:
    name = "n" * (4 << 20)
    error = GraftError(ErrorCode.CORRUPT, name, details=[name] * 1000, hint=name, field=name)
    assert len(error.message) < 20_000
    assert len(error_response(error).body) < 21_000
    assert error.what.endswith("n…")
    assert error.field is not None
    assert len(error.field) == 500


def test_an_error_can_be_told_whatever_it_quotes() -> None:
    error = GraftError(ErrorCode.CORRUPT, "file \udcff", details=["\ud800"], hint="\udcff", field="\udcff")
    assert Fault.of(error).model_dump_json()
    assert error_response(error).status_code == 400


def test_a_fault_is_told_again_in_the_same_words() -> None:
    fault = GraftError(
        ErrorCode.CORRUPT, "what", details=("one", "two"), hint="do this", field="model", retry_after=3.0
    )
    with pytest.raises(GraftError) as caught:
        raise fault
    again = caught.value.again()
    assert again.__traceback__ is None
    assert vars(again) == vars(fault)
