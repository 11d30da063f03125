"""kustomize, as far as deploy/ uses it, and not a field further: what this does not know is an error.

Debian has no kustomize, so the tests render the overlays by themselves: resources, configMapGenerator with files,
patches by strategic merge. The results were compared with those of kustomize 5.5 when this was written.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_GENERATED = {"apiVersion": "v1", "kind": "ConfigMap"}
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists of a pod that are merged by a key of their elements: the API's patchMergeKey."""
_REPLACED = {
    "args",
    "command",
    "add",
    "drop",
    "tolerations",
    "subjects",
    "nodeSelectorTerms",
    "values",
    "matchExpressions",
}
"""Lists that a patch replaces as a whole."""
_DIGITS = str.maketrans("013ae", "ghkmt")


class KustomizeError(Exception):
    """Names the file and what is wrong there."""


def render(folder: Path) -> list[Object]:
    """All objects of a kustomization, references to generated names included. Raises KustomizeError."""
    objects = _accumulate(folder)
    generated = {name: one for one in objects if (name := one.pop("_generated", None))}
    for name, one in generated.items():
        one["metadata"]["name"] = f"{name}-{_hash(one)}"
    for one in objects:
        for reference in _config_map_references(one):
            if reference["name"] in generated:
                reference["name"] = generated[reference["name"]]["metadata"]["name"]
    return objects


def merge(old: Any, patch: Any, field: str = "") -> Any:
    """Kubernetes' strategic merge; new elements of merged lists go first, as in kustomize. Raises KustomizeError."""
    if isinstance(old, dict) and isinstance(patch, dict):
        merged = dict(old)
        for key, value in patch.items():
            if key.startswith("$"):
                raise KustomizeError(f"directive {key} in {field or 'an object'}")
            merged[key] = merge(old[key], value, key) if key in old else value
        return merged
    if isinstance(old, list) and isinstance(patch, list):
        return _merge_lists(old, patch, field)
    if isinstance(old, dict | list) or isinstance(patch, dict | list):
        raise KustomizeError(f"{field}: {type(patch).__name__} in the place of {type(old).__name__}")
    return patch


def _merge_lists(old: list[Any], patch: list[Any], field: str) -> list[Any]:
    if field in _REPLACED:
        return patch
    if field not in _MERGE_KEYS:
        raise KustomizeError(f"how a patch meets the list {field!r} is not known here")
    key = _MERGE_KEYS[field]
    known = {element[key]: element for element in old}
    first = [merge(known.pop(element[key], {}), element) for element in patch]
    return [*first, *known.values()]


def _accumulate(folder: Path) -> list[Object]:
    path = folder / "kustomization.yaml"
    (kustomization,) = load(path)
    if (kustomization.pop("apiVersion"), kustomization.pop("kind")) != (
        "kustomize.config.k8s.io/v1beta1",
        "Kustomization",
    ):
        raise KustomizeError(f"{path}: not a Kustomization")
    objects: list[Object] = []
    for resource in kustomization.pop("resources", []):
        target = folder / resource
        objects += _accumulate(target.resolve()) if target.is_dir() else load(target)
    objects += [_generate(folder, generator) for generator in kustomization.pop("configMapGenerator", [])]
    for patch in kustomization.pop("patches", []):
        match patch:
            case {"path": str(name), **rest} if not rest:
                patches = load(folder / name)
            case {"patch": str(text), **rest} if not rest:
                patches = list(yaml.safe_load_all(text))
            case _:
                raise KustomizeError(f"{path}: patch {patch}")
        for one in patches:
            objects = _apply(objects, one, path)
    if kustomization:
        raise KustomizeError(f"{path}: unknown fields {sorted(kustomization)}")
    names = [_identity(one) for one in objects]
    if twice := {name for name in names if names.count(name) > 1}:
        raise KustomizeError(f"{path}: twice: {twice}")
    return objects


def load(path: Path) -> list[Object]:
    """The documents of a file. A folder or a file that is not there raises KustomizeError."""
    try:
        return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except OSError as error:
        raise KustomizeError(str(error)) from error


def _generate(folder: Path, generator: Object) -> Object:
    match generator:
        case {"name": name, "namespace": namespace, "files": files, "options": {"labels": labels, **more}, **rest}:
            if more or rest:
                raise KustomizeError(f"{folder}: configMapGenerator: unknown fields {[*more, *rest]}")
        case _:
            raise KustomizeError(f"{folder}: configMapGenerator: {generator}")
    data = {file: (folder / file).read_text() for file in files}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {**_GENERATED, "metadata": metadata, "data": data, "_generated": name}


def _apply(objects: list[Object], patch: Object, path: Path) -> list[Object]:
    patch = copy.deepcopy(patch)
    directive = patch.pop("$patch", None)
    position = next((at for at, one in enumerate(objects) if _identity(one) == _identity(patch)), None)
    if position is None:
        raise KustomizeError(f"{path}: a patch for {_identity(patch)}, which is not there")
    rest = [*objects[:position], *objects[position + 1 :]]
    match directive:
        case "delete":
            return rest
        case None:
            return [*objects[:position], merge(objects[position], patch), *objects[position + 1 :]]
    raise KustomizeError(f"{path}: $patch: {directive}")


def _identity(one: Object) -> tuple[str, str, str, str]:
    metadata = one["metadata"]
    return one["apiVersion"], one["kind"], metadata.get("namespace", ""), metadata["name"]


def _config_map_references(one: Object) -> list[Object]:
    volumes = one.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", [])
    return [volume["configMap"] for volume in volumes if "configMap" in volume]


def _hash(config_map: Object) -> str:
    """kustomize's: of kind and data (not the name, which it looks for where it isn't) as Go writes JSON."""
    value = {"data": config_map["data"], "kind": "ConfigMap", "name": ""}
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(_DIGITS)
