"""Which handlers an event goes to, and which functions may be one."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from realtime.errors import ConfigurationError
from realtime.routing import Router


def one(message: Any, context: Any, toolkit: Any) -> None:
    """A handler."""


def two(message: Any, context: Any, toolkit: Any) -> None:
    """Another."""


def three(message: Any, context: Any, toolkit: Any) -> None:
    """A third."""


@pytest.fixture
def router() -> Router:
    return Router()


def add(router: Router, event: str, function: Any = one, **options: bool) -> None:
    router.on(event, function, **{"concurrent": False, "threadpool": False, **options})


def functions(router: Router, name: str) -> tuple[list[Any], list[Any]]:
    route = router.resolve(name)
    assert route is not None
    return [handler.function for handler, _ in route.own], [handler.function for handler, _ in route.any]


def test_an_event_goes_to_the_handlers_of_its_name_in_the_order_of_registration(router: Router) -> None:
    add(router, "chat", two)
    add(router, "chat", one)
    add(router, "other", three)
    assert functions(router, "chat") == ([two, one], [])


def test_exact_handlers_come_before_templates_and_the_star_after_both(router: Router) -> None:
    add(router, "*", three)
    add(router, "chat:[id]", two)
    add(router, "chat:7", one)
    assert functions(router, "chat:7") == ([one, two], [three])
    assert functions(router, "chat:8") == ([two], [three])
    assert functions(router, "else") == ([], [three])


def test_each_template_brings_its_own_params(router: Router) -> None:
    add(router, "chat:[id]", one)
    add(router, "[kind]:7", two)
    route = router.resolve("chat:7")
    assert route is not None
    assert [params for _, params in route.own] == [{"id": "7"}, {"kind": "chat"}]


def test_what_nobody_takes_goes_nowhere(router: Router) -> None:
    add(router, "chat")
    assert router.resolve("chats") is None
    assert not router.has("chats")


def test_the_star_alone_takes_a_message_but_does_not_count_as_a_handler_of_the_name(router: Router) -> None:
    add(router, "*")
    assert router.resolve("anything") is not None
    assert not router.has("anything")


def test_a_handler_registered_later_is_found_though_the_name_was_resolved_before(router: Router) -> None:
    add(router, "chat", one)
    assert functions(router, "chat") == ([one], [])
    add(router, "chat", two)
    add(router, "[any]", three)
    assert functions(router, "chat") == ([one, two, three], [])


def test_names_of_clients_do_not_fill_the_cache(router: Router) -> None:
    add(router, "chat:[id]")
    add(router, "chat")
    for number in range(1000):
        router.resolve(f"chat:{number}")
        router.resolve(f"unknown {number}")
        router.resolve("chat")
    assert len(router._routes) == 1


def test_off_removes_one_function_or_all_of_an_event(router: Router) -> None:
    for function in (one, two, one):
        add(router, "chat", function)
    assert router.off("chat", one) == 2
    assert functions(router, "chat") == ([two], [])
    assert router.off("chat") == 1
    assert router.resolve("chat") is None
    assert router.off("chat") == 0


def test_off_removes_templates_and_stars_by_the_text_they_were_registered_with(router: Router) -> None:
    add(router, "chat:[id]", one)
    add(router, "*", two)
    assert router.off("chat:7") == 0
    assert router.off("chat:[id]") == 1
    assert router.off("*", one) == 0
    assert router.off("*") == 1
    assert router.resolve("chat:7") is None


def test_a_route_is_concurrent_if_all_of_its_handlers_are_and_else_runs_those_that_are_beside(router: Router) -> None:
    add(router, "in line", one)
    add(router, "mixed", one)
    add(router, "mixed", two, concurrent=True)
    add(router, "beside", two, concurrent=True)
    routes = [router.resolve(name) for name in ("in line", "mixed", "beside")]
    assert [route is not None and route.concurrent for route in routes] == [False, False, True]
    assert [[handler.function for handler, _ in route.beside] for route in routes if route] == [[], [two], []]
    assert [[handler.function for handler, _ in route.all] for route in routes if route] == [[one], [one], [two]]


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        ("", "non-empty string"),
        (None, "non-empty string"),
        (one, "non-empty string"),
        ("system:ack", "the protocol's own"),
        ("system:anything", "the protocol's own"),
        ("client:gone", "there are client:connected and client:disconnected"),
        ("chat:[", "brackets must pair up"),
    ],
)
def test_a_name_that_cannot_have_handlers_is_refused(router: Router, event: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        add(router, event)


@pytest.mark.parametrize("event", ["client:connected", "client:disconnected", "mesh:joined", "systematic", "a b/ü"])
def test_other_names_are_fine(router: Router, event: str) -> None:
    add(router, event)
    assert router.has(event)


async def coroutine(message: Any, context: Any, toolkit: Any) -> None:
    """Not a handler."""


def only_two(message: Any, context: Any) -> None:
    """Not a handler."""


def four(message: Any, context: Any, toolkit: Any, more: Any) -> None:
    """Not a handler."""


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("text", "not callable"),
        (coroutine, "is async; handlers are plain functions"),
        (only_two, r"must take \(message, context, toolkit\)"),
        (four, r"must take \(message, context, toolkit\)"),
        (lambda: None, r"must take \(message, context, toolkit\)"),
    ],
)
def test_what_cannot_handle_is_refused_at_registration(router: Router, function: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        add(router, "chat", function)


class Room:
    def method(self, message: Any, context: Any, toolkit: Any) -> None:
        """A handler."""

    def __call__(self, message: Any, context: Any, toolkit: Any) -> None:
        """A handler too."""


@pytest.mark.parametrize(
    "function",
    [Room().method, Room(), functools.partial(four, more=1), lambda *args: None, lambda m, c, t=None: None, print],
)
def test_anything_that_takes_three_arguments_can_handle(router: Router, function: Any) -> None:
    add(router, "chat", function)
    assert router.has("chat")
