"""Whose backends a route has, and what a split makes of its rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.canary.errors import Refused
from model.canary.routes import (
    Presence,
    Split,
    canary_name,
    owner_of,
    split_rules,
    why_not_weighted,
    why_refused,
)
from model.canary.state import Header

HEADER = Header(name="x-canary", value="always")
PATH = {"path": {"type": "PathPrefix", "value": "/v2"}}


def service(name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "Service", "name": name, "port": 80, **fields}


def pool(name: str) -> dict[str, Any]:
    return {"kind": "InferencePool", "name": name}


def split(weight: int, presence: Presence = Presence.ADDED, header: Header | None = None) -> Split:
    return Split(
        stable="a",
        canary="a-canary",
        weight_percent=weight,
        header=header,
        presence=presence,
        make_ref=lambda ref: {**ref, "name": canary_name(ref["name"], "a", "a-canary")},
    )


def weights(rule: dict[str, Any]) -> dict[str, int]:
    return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}


@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [
        ("Service", "a-predictor", "a"),
        ("Service", "a-canary-predictor", "a-canary"),
        ("Service", "a-ui", None),
        ("Service", "b-predictor", None),
        ("InferencePool", "a-grpc", "a"),
        ("InferencePool", "a-canary-grpc", "a-canary"),
        ("Backend", "ab-picked", None),
    ],
)
def test_a_backend_belongs_to_the_longest_name_that_fits(
    kind: str, name: str, owner: str | None
) -> None:
    ref = {"kind": kind, "name": name}
    assert owner_of(ref, ("a", "a-canary")) == owner
    assert owner_of(ref, ("a-canary", "a")) == owner


def test_the_canary_stands_beside_the_stable_one_in_each_of_its_rules() -> None:
    page = {"matches": [PATH], "backendRefs": [service("page", weight=7)]}
    redirect = {"filters": [{"type": "RequestRedirect"}]}
    rules = [
        {"matches": [PATH], "timeouts": {"request": "0s"}, "backendRefs": [service("a-predictor")]},
        {"backendRefs": [service("a-pool-http", kind="InferencePool")]},
        page,
        redirect,
    ]
    first, second, *others = split_rules(rules, split(25))
    assert weights(first) == {"a-predictor": 75, "a-canary-predictor": 25}
    assert first["timeouts"] == {"request": "0s"}
    assert weights(second) == {"a-pool-http": 75, "a-canary-pool-http": 25}
    assert {ref["kind"] for ref in second["backendRefs"]} == {"InferencePool"}
    assert others == [page, redirect]


def test_a_header_leads_to_the_canary_whatever_the_weight() -> None:
    rules = [{"name": "v2", "matches": [PATH], "backendRefs": [service("a-predictor")]}]
    by_header, rest = split_rules(rules, split(0, header=HEADER))
    match = {"type": "Exact", "name": "x-canary", "value": "always"}
    assert by_header["matches"] == [{**PATH, "headers": [match]}]
    assert weights(by_header) == {"a-canary-predictor": 1}
    assert "name" not in by_header
    assert weights(rest) == {"a-predictor": 100, "a-canary-predictor": 0}


def test_at_the_end_the_route_is_as_it_was() -> None:
    rules = [
        {"matches": [PATH], "backendRefs": [service("a-predictor", weight=1)]},
        {"backendRefs": [service("page", weight=1)]},
    ]
    during = split_rules(rules, split(50, header=HEADER))
    assert len(during) == 3
    assert split_rules(during, split(0, Presence.DROPPED)) == rules


def test_a_canary_that_was_a_backend_before_stays_one_without_traffic() -> None:
    rules = [{"backendRefs": [service("a-predictor"), service("a-canary-predictor", weight=9)]}]
    [rule] = split_rules(rules, split(0, Presence.AS_IT_IS))
    assert weights(rule) == {"a-predictor": 100, "a-canary-predictor": 0}
    [alone] = split_rules([{"backendRefs": [service("a-predictor")]}], split(0, Presence.AS_IT_IS))
    assert weights(alone) == {"a-predictor": 1}


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([service("page")], r"no rule of the route has a backend of a; its backends are page"),
        ([pool("a-x"), pool("a-y")], r"has the backends a-x, a-y"),
        ([pool("a-x"), service("page")], r"has the backends a-x, page"),
    ],
)
def test_a_route_that_cannot_be_split_is_refused(refs: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(Refused, match=message):
        split_rules([{"backendRefs": refs}], split(5))


def route(*conditions: dict[str, Any], refs: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A route of generation 3, and what its gateway's controller says of it."""
    parent = {"controllerName": "example.com/gateway", "conditions": list(conditions)}
    return {
        "metadata": {"name": "a", "generation": 3},
        "spec": {"rules": [{"backendRefs": list(refs)}]},
        "status": {"parents": [parent]},
    }


def says(kind: str, status: str, generation: int = 3, **words: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "observedGeneration": generation, **words}


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        pytest.param([], None, id="no gateway has looked at it"),
        pytest.param([says("Accepted", "True"), says("ResolvedRefs", "True")], None, id="served"),
        pytest.param(
            [
                says("Accepted", "True"),
                says("ResolvedRefs", "False", reason="InvalidKind", message="InferencePool?"),
            ],
            "example.com/gateway does not serve route a as it is (InvalidKind: InferencePool?)",
            id="a backend that it does not know",
        ),
        pytest.param(
            [says("Accepted", "False", reason="UnsupportedValue", message="two pools")],
            "example.com/gateway does not serve route a as it is (UnsupportedValue: two pools)",
            id="not accepted",
        ),
        pytest.param(
            [says("Accepted", "True"), says("PartiallyInvalid", "True", reason="UnsupportedValue")],
            "example.com/gateway does not serve route a as it is (UnsupportedValue)",
            id="some rules dropped",
        ),
        pytest.param([says("ResolvedRefs", "False", 2)], None, id="said of what it was before"),
    ],
)
def test_a_gateway_s_refusal_is_read_from_the_route(
    conditions: list[dict[str, Any]], reason: str | None
) -> None:
    assert why_refused(route(*conditions)) == reason


def test_what_a_picker_has_chosen_takes_no_weights() -> None:
    picked = {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": "a-openai-picked"}
    weighted = (service("a-predictor"), pool("a-v2"), {**picked, "name": "b-openai-picked"})
    assert why_not_weighted(route(refs=weighted), ("a", "a-canary")) is None
    reason = why_not_weighted(route(refs=(service("a-predictor"), picked)), ("a", "a-canary"))
    assert reason is not None
    assert reason.startswith("route a leads to Backend a-openai-picked, where a picker has chosen")


@given(
    percents=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    headers=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_splitting_again_leaves_nothing_of_the_split_before(
    percents: list[int], headers: list[bool]
) -> None:
    rules: list[dict[str, Any]] = [
        {"matches": [PATH], "backendRefs": [service("a-predictor", weight=1)]}
    ]
    once = [split(w, header=HEADER if h else None) for w, h in zip(percents, headers, strict=False)]
    after = rules
    for one in once:
        after = split_rules(after, one)
    assert after == split_rules(rules, once[-1])
    assert sum(weights(after[-1]).values()) == 100
