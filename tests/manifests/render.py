"""`python -m tests.manifests.render`: write the plain manifests anew from the chart.

`base` is the chart with its defaults. An overlay is a values file: what it changes in the base
becomes JSON patches, what it adds becomes files, what it drops becomes a deletion. What is
written by hand (serving-runtime, ingress-nginx) is left alone. A test fails when they are stale.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.cluster.tools.cache import program
from tests.serving import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MANIFESTS: Final = ROOT / "manifests"
CHART: Final = ROOT / "charts" / "qwen3-vl"
NAME: Final = "qwen3-vl"
NAMESPACE: Final = "qwen3-vl"
# The folder → its values, in the chart where the chart has them.
OVERLAYS: Final = {
    "cpu-demo": CHART / "values-cpu-demo.yaml",
    "gateway": MANIFESTS / "values" / "gateway.yaml",
    "keda": MANIFESTS / "values" / "keda.yaml",
    "l4": CHART / "values-l4.yaml",
}
MARK: Final = "# Rendered from charts/qwen3-vl by `make manifests`: change it there."
# `helm test` runs these, and nothing else would.
HOOK: Final = "helm.sh/hook"
# Lines that speak of a release of Helm's.
EDITS: Final = (
    (re.compile(r"(?m)^# Source: .*\n"), ""),
    (re.compile(r"(?m)^ *helm\.sh/chart: .*\n"), ""),
    (re.compile(r"(managed-by: )Helm\b"), r"\1kustomize"),
)

Key = tuple[str, str, str]
Operation = dict[str, Any]


@dataclass(frozen=True)
class Object:
    """One object of the rendering: its text with the chart's comments, and what it says."""

    text: str
    content: dict[str, Any]

    @property
    def key(self) -> Key:
        """What kustomize knows it by."""
        return self.content["apiVersion"], self.content["kind"], self.content["metadata"]["name"]

    @property
    def file(self) -> str:
        """Kind, and the name where it says more than the release's."""
        _, kind, name = self.key
        rest = name.removeprefix(NAME).strip("-.")
        return f"{kind.lower()}{'-' if rest else ''}{rest}.yaml"


def helm_template(helm: Path, values: Path | None = None) -> dict[Key, Object]:
    """The chart's objects with these values, as kustomize is to have them."""
    command = [str(helm), "template", NAME, str(CHART), "--namespace", NAMESPACE]
    if values is not None:
        command += ["--values", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"helm template failed: {done.stderr.strip()}")
    objects = {}
    for document in re.split(r"(?m)^---\n", done.stdout):
        for pattern, replacement in EDITS:
            document = pattern.sub(replacement, document)
        content = yaml.safe_load(document)
        if content and HOOK not in content["metadata"].get("annotations", {}):
            one = Object(document.strip("\n") + "\n", content)
            objects[one.key] = one
    return objects


def difference(old: Any, new: Any, path: str = "") -> list[Operation]:
    """The JSON patch that makes `new` of `old`: as deep as both agree in shape."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        operations: list[Operation] = []
        for name in [*old, *(name for name in new if name not in old)]:
            place = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            if name not in new:
                operations.append({"op": "remove", "path": place})
            elif name not in old:
                operations.append({"op": "add", "path": place, "value": new[name]})
            else:
                operations += difference(old[name], new[name], place)
        return operations
    if isinstance(old, list) and isinstance(new, list):
        if new[: len(old)] == old:
            added = new[len(old) :]
            return [{"op": "add", "path": f"{path}/-", "value": value} for value in added]
        if len(old) == len(new):
            pairs = enumerate(zip(old, new, strict=True))
            return [one for i, (a, b) in pairs for one in difference(a, b, f"{path}/{i}")]
    return [{"op": "replace", "path": path, "value": new}]


def kustomization(**fields: Any) -> str:
    """A kustomization.yaml."""
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return f"{MARK}\n{dump({**head, **fields})}"


def dump(content: Any) -> str:
    """YAML as people write it: no sorting, no anchors, long lines left whole."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def base_files(base: dict[Key, Object]) -> dict[str, str]:
    """File name → text of the base."""
    files = {one.file: f"{MARK}\n{one.text}" for one in base.values()}
    assert len(files) == len(base), "two objects would be one file"
    return {**files, "kustomization.yaml": kustomization(resources=sorted(files))}


def overlay_files(base: dict[Key, Object], changed: dict[Key, Object]) -> dict[str, str]:
    """File name → text of the overlay that makes of `base` what `changed` is."""
    files = {one.file: f"{MARK}\n{one.text}" for key, one in changed.items() if key not in base}
    patches = []
    for key, one in base.items():
        api_version, kind, name = key
        group, _, version = api_version.rpartition("/")
        if key not in changed:
            gone = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}}
            patches.append({"patch": dump({"$patch": "delete", **gone})})
        elif operations := difference(one.content, changed[key].content):
            target = {"group": group} if group else {}
            target |= {"version": version, "kind": kind, "name": name}
            patches.append({"target": target, "patch": dump(operations)})
    fields: dict[str, Any] = {"resources": ["../../base", *sorted(files)]}
    if patches:
        fields["patches"] = patches
    return {**files, "kustomization.yaml": kustomization(**fields)}


def render(helm: Path) -> dict[str, dict[str, str]]:
    """Folder below this one → its files."""
    base = helm_template(helm)
    folders = {"base": base_files(base)}
    for name, values in OVERLAYS.items():
        folders[f"overlays/{name}"] = overlay_files(base, helm_template(helm, values))
    return folders


def main() -> None:
    """Write the folders anew; files that are rendered no more go."""
    for folder, files in render(program("helm")).items():
        path = MANIFESTS / folder
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        for name, text in files.items():
            (path / name).write_text(text)


if __name__ == "__main__":
    main()
