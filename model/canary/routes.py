"""The backends of a route's rules: which are the stable one's, which the canary's, and their
weights. Pure, over Gateway API rules as JSON; HTTPRoute and GRPCRoute are alike here.

A backend is an InferenceService's when it is the Service that KServe makes for it, or an object of
another kind, as an InferencePool, that is named after it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from model.canary.errors import Refused
from model.canary.services import service_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from model.canary.state import Header

Ref: TypeAlias = dict[str, Any]
Rule: TypeAlias = dict[str, Any]

POOL_KIND: Final = "InferencePool"
# Conditions of a route, and the status of each that says that some of it is not served.
REFUSALS: Final = {"Accepted": "False", "ResolvedRefs": "False", "PartiallyInvalid": "True"}


class Presence(Enum):
    """Whether the canary is a backend: made one, left as it is, or no longer one."""

    ADDED = "added"
    AS_IT_IS = "as it is"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Split:
    """Where the traffic goes.

    weight_percent: the canary's; header: requests with it go to the canary, whatever its weight
    make_ref: the canary's backend beside a stable one
    """

    stable: str
    canary: str
    weight_percent: int
    header: Header | None
    presence: Presence
    make_ref: Callable[[Ref], Ref]


def owner_of(ref: Ref, services: Iterable[str]) -> str | None:
    """The InferenceService that a backend is of; None for none."""
    name = ref["name"]
    if ref.get("kind", "Service") == "Service":
        return next((one for one in services if name == service_name(one)), None)
    owners = [one for one in services if name == one or name.startswith(f"{one}-")]
    return max(owners, key=len, default=None)


def backends(rules: Iterable[Rule]) -> list[Ref]:
    """All backends."""
    return [ref for rule in rules for ref in rule.get("backendRefs", ())]


def canary_name(name: str, stable: str, canary: str) -> str:
    """The canary's counterpart of a stable backend."""
    return canary + name.removeprefix(stable)


def split_rules(rules: Iterable[Rule], split: Split) -> list[Rule]:
    """The rules with the canary's share in each that has the stable one; raises Refused.

    The same for rules that are split already: what an earlier split added goes first.
    """
    rules = list(rules)
    weighted = [rule for rule in rules if not _only_canary(rule, split)]
    changed = [part for rule in weighted for part in _split_rule(rule, split)]
    if not any(_owner(ref, split) == split.stable for ref in backends(changed)):
        names = sorted({ref["name"] for ref in backends(rules)})
        raise Refused(
            f"no rule of the route has a backend of {split.stable}; its backends are "
            f"{', '.join(names) or 'none'}"
        )
    return changed


def why_refused(route: Ref) -> str | None:
    """Why a gateway does not serve a route as it is; None where none has said so.

    Not every gateway takes every backend, or two of a kind with weights, and only its controller
    knows: the API server stores them all.
    """
    generation = route["metadata"].get("generation", 0)
    for parent in route.get("status", {}).get("parents", ()):
        for one in parent.get("conditions", ()):
            refused = REFUSALS.get(one["type"]) == one["status"]
            if refused and one.get("observedGeneration", generation) >= generation:
                words = ": ".join(filter(None, (one.get("reason"), one.get("message"))))
                return (
                    f"{parent['controllerName']} does not serve route {route['metadata']['name']} "
                    f"as it is ({words})"
                )
    return None


def why_not_weighted(route: Ref, services: Iterable[str]) -> str | None:
    """Why a route cannot share requests out by weight; None where it can.

    Behind Envoy Gateway the chart's pools are Backends: what goes there has been given to one of
    the stable one's pods by a picker.
    """
    for ref in backends(route["spec"].get("rules", ())):
        kind = ref.get("kind", "Service")
        if kind not in ("Service", POOL_KIND) and owner_of(ref, services) is not None:
            return (
                f"route {route['metadata']['name']} leads to {kind} {ref['name']}, where a picker "
                "has chosen the pod before any weight counts; use routing.backend: service, or a "
                "gateway that takes InferencePools as backends"
            )
    return None


def _owner(ref: Ref, split: Split) -> str | None:
    return owner_of(ref, (split.stable, split.canary))


def _only_canary(rule: Rule, split: Split) -> bool:
    """Whether the rule was added for a header."""
    refs = rule.get("backendRefs", ())
    return bool(refs) and all(_owner(ref, split) == split.canary for ref in refs)


def _split_rule(rule: Rule, split: Split) -> Iterator[Rule]:
    refs = rule.get("backendRefs", ())
    stable = [ref for ref in refs if _owner(ref, split) == split.stable]
    canary = [ref for ref in refs if _owner(ref, split) == split.canary]
    if not stable:
        yield rule
        return
    if len(stable) + len(canary) < len(refs) or len(stable) > 1 or len(canary) > 1:
        raise Refused(
            f"a rule of the route has the backends {', '.join(ref['name'] for ref in refs)}; a "
            f"canary needs one of {split.stable} and at most one of {split.canary} beside it"
        )
    if split.presence is Presence.DROPPED or (split.presence is Presence.AS_IT_IS and not canary):
        # The API's default weight, which the route most likely had.
        yield {**rule, "backendRefs": [{**stable[0], "weight": 1}]}
        return
    beside = canary[0] if canary else split.make_ref(stable[0])
    if split.header is not None:
        yield _header_rule(rule, {**beside, "weight": 1}, split.header)
    weights = (100 - split.weight_percent, split.weight_percent)
    both = zip((stable[0], beside), weights, strict=True)
    yield {**rule, "backendRefs": [{**ref, "weight": weight} for ref, weight in both]}


def _header_rule(rule: Rule, ref: Ref, header: Header) -> Rule:
    """The rule once more for requests with the header: more headers win where paths are equal."""
    match = {"type": "Exact", "name": header.name, "value": header.value}
    matches = [
        {**one, "headers": [*one.get("headers", ()), match]} for one in rule.get("matches") or [{}]
    ]
    added = {**copy.deepcopy(rule), "matches": matches, "backendRefs": [ref]}
    # Names of rules are unique in a route.
    added.pop("name", None)
    return added
