"""A release's routes, and which rule of them takes a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.chart.combinations import routing
from tests.chart.helm import FULLNAME, of_kind, render

if TYPE_CHECKING:
    from tests.chart.helm import Object


PICKED: Final = "x-gateway-destination-endpoint"
PREDICTOR: Final = f"{FULLNAME}-predictor"


def routed(controller: str = "istio", backend: str = "pool", **more: Any) -> list[Object]:
    """A release's objects, routed by a controller."""
    return render({"routing": routing(controller, backend, **more)})


def rule_for(objects: list[Object], path: str, **headers: str) -> Object:
    """The rule that takes a path, by the Gateway API's order.

    An exact match before a prefix, a longer prefix before a shorter, more headers before fewer.
    """
    found = []
    for route in of_kind(objects, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for match in rule.get("matches", ()):
                kind, value = match["path"]["type"], match["path"]["value"]
                wanted = [header["name"] for header in match.get("headers", ())]
                exact = kind == "Exact" and path == value
                below = kind == "PathPrefix" and f"{path}/".startswith(f"{value}/")
                if (exact or below) and set(wanted) <= headers.keys():
                    found.append(((exact, len(value), len(wanted)), rule))
    assert found, f"no rule takes {path}"
    return max(found, key=lambda one: one[0])[1]


def backends(rule: Object) -> list[tuple[str, str]]:
    """(kind, name) of each of a rule's backends."""
    return [(ref["kind"], ref["name"]) for ref in rule["backendRefs"]]
