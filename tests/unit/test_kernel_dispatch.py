"""From a client's message through middleware and handlers to the answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from realtime import CallFailed, ConfigurationError, RealtimeKernel, Reject, event_name
from realtime.testing import KernelTest

Noted = list[Any]


def outcome(client: Any, type: str, payload: Any = None) -> Any:
    """What a call returns, or the code it fails with."""
    try:
        return client.call(type, payload)
    except CallFailed as error:
        return error.code


# Handlers -------------------------------------------------------------------------------------


def test_on_works_as_a_call_and_as_a_decorator_and_returns_the_function(kernel_test: KernelTest) -> None:
    def called(message: Any, context: Any, toolkit: Any) -> str:
        return "called"

    assert kernel_test.kernel.on("called", called) is called

    @kernel_test.kernel.on("decorated")
    def decorated(message: Any, context: Any, toolkit: Any) -> str:
        return "decorated"

    assert decorated.__name__ == "decorated"
    client = kernel_test.connect()
    assert [client.call("called"), client.call("decorated")] == ["called", "decorated"]


def test_a_handler_sees_every_field_of_the_message(kernel_test: KernelTest) -> None:
    seen: Noted = []
    kernel_test.kernel.on("chat", lambda message, context, toolkit: seen.append(message))
    client = kernel_test.connect()
    client.send({"type": "chat", "payload": [1], "room": "lobby", "target": "ann", "ack": "a"})
    client.receive()
    (message,) = seen
    assert (message.type, message.payload, message.room) == ("chat", [1], "lobby")
    assert (message.target, message.ack, message.params) == ("ann", "a", {})


def test_a_template_fills_params_and_event_name_builds_what_it_takes(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("chat:[room]:[id]", lambda message, context, toolkit: message.params)
    client = kernel_test.connect()
    assert client.call(event_name("chat:[room]:[id]", "lobby", 7)) == {"room": "lobby", "id": "7"}
    assert outcome(client, "chat:lobby") == "unknown_type"


def test_each_of_several_handlers_gets_its_own_params(kernel_test: KernelTest) -> None:
    seen: Noted = []
    for event in ("[a]:7", "chat:[b]", "chat:7", "*"):
        kernel_test.kernel.on(event, lambda message, context, toolkit: seen.append(dict(message.params)))
    kernel_test.connect().call("chat:7")
    assert seen == [{}, {"a": "chat"}, {"b": "7"}, {}]


def test_the_context_tells_who_it_is(kernel_test: KernelTest) -> None:
    contexts: Noted = []
    kernel_test.kernel.on("hi", lambda message, context, toolkit: contexts.append(context))
    client = kernel_test.connect(identity={"user": 7}, metadata={"name": "Ann"}, remote_address="10.0.0.1")
    client.call("hi")
    kernel_test.kernel.rooms.join("lobby", client.id)
    (context,) = contexts
    assert (context.id, context.transport, context.identity) == (client.id, "memory", {"user": 7})
    assert (context.metadata, context.rooms, context.remote_address) == ({"name": "Ann"}, ["lobby"], "10.0.0.1")
    assert isinstance(context.connected_at, float)
    assert client.id in repr(context)


def test_the_last_result_that_is_not_none_is_the_answer(kernel_test: KernelTest) -> None:
    for result in (1, 2, None):
        kernel_test.kernel.on("ask", lambda message, context, toolkit, result=result: result)
    assert kernel_test.connect().call("ask") == 2


@pytest.mark.parametrize("value", [0, False, "", [], {}])
def test_an_empty_result_is_a_result(kernel_test: KernelTest, value: Any) -> None:
    kernel_test.kernel.on("ask", lambda message, context, toolkit: value)
    client = kernel_test.connect()
    client.send({"type": "ask", "ack": 1})
    assert client.receive()["payload"] == {"ack": 1, "result": value}


def test_star_handlers_see_every_client_message_after_its_own_handlers(kernel_test: KernelTest) -> None:
    seen: Noted = []
    kernel_test.kernel.on("*", lambda message, context, toolkit: seen.append(("*", message.type)))
    kernel_test.kernel.on("chat", lambda message, context, toolkit: seen.append(("own", message.type)))
    client = kernel_test.connect()
    for name in ("chat", "unheard of"):
        client.call(name)
    assert seen == [("own", "chat"), ("*", "chat"), ("*", "unheard of")]


def test_star_handlers_do_not_see_the_servers_own_events(kernel_test: KernelTest) -> None:
    seen: Noted = []
    kernel_test.kernel.on("client:connected", lambda message, context, toolkit: seen.append(message.type))
    kernel_test.kernel.on("*", lambda message, context, toolkit: seen.append("*"))
    kernel_test.connect().close()
    kernel_test.settle()
    assert seen == ["client:connected"]


def test_off_removes_a_handler_while_running(kernel_test: KernelTest) -> None:
    def handler(message: Any, context: Any, toolkit: Any) -> None:
        """Takes it."""

    kernel_test.kernel.on("chat", handler)
    client = kernel_test.connect()
    client.call("chat")
    assert kernel_test.kernel.off("chat", handler) == 1
    assert outcome(client, "chat") == "unknown_type"
    assert kernel_test.kernel.off("chat") == 0


def test_an_unknown_type_is_named_in_the_answer_and_needs_no_ack_to_be_answered(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    client.send({"type": "nobody"})
    payload = client.receive()["payload"]
    assert payload["code"] == "unknown_type"
    assert "nobody" in payload["message"]
    assert "ack" not in payload


# Failures -------------------------------------------------------------------------------------


def test_the_other_handlers_run_though_one_failed(kernel_test: KernelTest, caplog: pytest.LogCaptureFixture) -> None:
    seen: Noted = []

    @kernel_test.kernel.on("chat")
    def failing(message: Any, context: Any, toolkit: Any) -> None:
        raise RuntimeError("first")

    @kernel_test.kernel.on("chat")
    def failing_too(message: Any, context: Any, toolkit: Any) -> None:
        raise RuntimeError("second")

    kernel_test.kernel.on("chat", lambda message, context, toolkit: seen.append("ran"))
    client = kernel_test.connect()
    assert outcome(client, "chat") == "internal_error"
    assert seen == ["ran"]
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert sorted(logged) == ["first", "second"]
    assert kernel_test.kernel.stats()["counters"]["handler_errors"] >= 1


def test_a_traceback_is_logged_and_no_details_are_sent(
    kernel_test: KernelTest, caplog: pytest.LogCaptureFixture
) -> None:
    @kernel_test.kernel.on("chat")
    def failing(message: Any, context: Any, toolkit: Any) -> None:
        raise RuntimeError("the password is 1234")

    client = kernel_test.connect()
    client.send({"type": "chat", "ack": 1})
    assert client.receive()["payload"] == {"ack": 1, "code": "internal_error", "message": "internal error"}
    assert "the password is 1234" in caplog.text
    assert "in failing" in caplog.text


def test_debug_sends_the_details() -> None:
    kernel = RealtimeKernel(debug=True, log_level="critical")

    @kernel.on("chat")
    def failing(message: Any, context: Any, toolkit: Any) -> None:
        raise RuntimeError("why")

    with KernelTest(kernel) as kernel_test, pytest.raises(CallFailed, match="RuntimeError: why"):
        kernel_test.connect().call("chat")


def test_reject_is_an_answer_and_no_error_of_ours(kernel_test: KernelTest, caplog: pytest.LogCaptureFixture) -> None:
    @kernel_test.kernel.on("chat")
    def no(message: Any, context: Any, toolkit: Any) -> None:
        raise Reject("not now", code="rate_limited")

    client = kernel_test.connect()
    client.send({"type": "chat", "ack": 1})
    assert client.receive()["payload"] == {"ack": 1, "code": "rate_limited", "message": "not now"}
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and "chat" in record.getMessage()]


@pytest.mark.parametrize("result", [object(), {1, 2}.__iter__(), "\ud800"])
def test_a_result_that_cannot_be_sent_is_an_internal_error(kernel_test: KernelTest, result: Any) -> None:
    kernel_test.kernel.on("ask", lambda message, context, toolkit: result)
    kernel_test.kernel.on("fine", lambda message, context, toolkit: 1)
    client = kernel_test.connect()
    assert outcome(client, "ask") == "internal_error"
    assert client.call("fine") == 1


# Middleware -----------------------------------------------------------------------------------


def test_middleware_wraps_the_first_registered_outermost(kernel_test: KernelTest) -> None:
    seen: Noted = []

    @kernel_test.kernel.middleware
    def outer(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        seen.append("outer before")
        result = call_next()
        seen.append("outer after")
        return result

    @kernel_test.kernel.middleware
    def inner(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        seen.append("inner before")
        result = call_next()
        seen.append("inner after")
        return result

    kernel_test.kernel.on("ask", lambda message, context, toolkit: seen.append("handler") or "result")
    kernel_test.kernel.on("*", lambda message, context, toolkit: seen.append("star"))
    assert kernel_test.connect().call("ask") == "result"
    assert seen == ["outer before", "inner before", "handler", "star", "inner after", "outer after"]


def test_middleware_can_answer_itself_change_the_result_or_refuse(kernel_test: KernelTest) -> None:
    seen: Noted = []

    @kernel_test.kernel.middleware
    def gate(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        if message.payload == "no":
            raise Reject("no entry", code="forbidden")
        if message.payload == "cached":
            return "from the cache"
        return [call_next()]

    kernel_test.kernel.on("ask", lambda message, context, toolkit: seen.append(message.payload) or "result")
    client = kernel_test.connect()
    assert [outcome(client, "ask", payload) for payload in ("no", "cached", "yes")] == [
        "forbidden",
        "from the cache",
        ["result"],
    ]
    assert seen == ["yes"]


def test_middleware_may_change_what_handlers_see_and_call_them_twice(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.middleware
    def doubling(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        message.payload *= 2
        return [call_next(), call_next()]

    kernel_test.kernel.on("ask", lambda message, context, toolkit: message.payload)
    assert kernel_test.connect().call("ask", 21) == [42, 42]


def test_middleware_sees_what_nobody_handles_and_can_catch_what_fails(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.middleware
    def helpful(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        try:
            return call_next()
        except Reject as reject:
            return f"caught {reject.code}"

    assert kernel_test.connect().call("nobody") == "caught unknown_type"


def test_middleware_does_not_wrap_the_servers_own_events(kernel_test: KernelTest) -> None:
    seen: Noted = []

    @kernel_test.kernel.middleware
    def noting(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        seen.append(message.type)
        return call_next()

    kernel_test.kernel.on("client:connected", lambda message, context, toolkit: None)
    kernel_test.kernel.on("chat", lambda message, context, toolkit: None)
    kernel_test.connect().call("chat")
    assert seen == ["chat"]


@pytest.mark.parametrize("function", [None, "text", lambda message, context, toolkit: None])
def test_what_cannot_be_middleware_is_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="middleware"):
        RealtimeKernel().middleware(function)


# The toolkit's log ------------------------------------------------------------------------------


def test_toolkit_log_names_the_client(kernel_test: KernelTest, caplog: pytest.LogCaptureFixture) -> None:
    @kernel_test.kernel.on("chat")
    def chat(message: Any, context: Any, toolkit: Any) -> None:
        toolkit.log("said %s of %d", "hello", 2)
        toolkit.log("careful: 100%", level="warning")

    client = kernel_test.connect()
    client.call("chat")
    logged = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "realtime.handlers"]
    assert logged == [("INFO", f"{client.id} said hello of 2"), ("WARNING", f"{client.id} careful: 100%")]


def test_toolkit_log_refuses_an_unknown_level(kernel_test: KernelTest) -> None:
    errors: Noted = []

    @kernel_test.kernel.on("chat")
    def chat(message: Any, context: Any, toolkit: Any) -> None:
        with pytest.raises(ValueError, match="debug, info, warning") as caught:
            toolkit.log("x", level="loud")
        errors.append(caught)

    kernel_test.connect().call("chat")
    assert len(errors) == 1
