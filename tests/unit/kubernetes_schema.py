"""Objects against the types of Kubernetes' API, as strictly as `kubectl apply --validate=strict` on a live server.

The models in the `kubernetes` package are generated from the OpenAPI of Kubernetes: they know types and required
fields, and refuse unknown ones. They also take Python's names (``host_network``), which a server would not; so names
are checked here.
"""

import importlib
import re
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

_MODELS = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("apps/v1", "DaemonSet"): "V1DaemonSet",
    ("batch/v1", "Job"): "V1Job",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
}


def problems(value: dict[str, Any]) -> list[str]:
    """What a server would refuse ``value`` for, each with its path; at best nothing."""
    kind = (value.get("apiVersion"), value.get("kind"))
    if kind not in _MODELS:
        return [f"no such kind: {kind}"]
    name = _MODELS[kind]
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    model: type[BaseModel] = getattr(importlib.import_module(f"kubernetes.client.models.{module}"), name)
    found = list(_unknown(value, model, ""))
    try:
        model.model_validate(value)
    except ValidationError as error:
        found += [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return found


def _unknown(value: Any, annotation: Any, path: str) -> Iterator[str]:
    """Names of fields that the API doesn't have."""
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from _unknown(element, _element(annotation, list), f"{path}[{index}]")
    elif isinstance(value, dict):
        model = _model(annotation)
        if model is None:  # a map, such as labels
            for key, element in value.items():
                yield from _unknown(element, _element(annotation, dict), f"{path}.{key}")
            return
        fields = {field.serialization_alias or name: field for name, field in model.model_fields.items()}
        for key, element in value.items():
            if key in fields:
                yield from _unknown(element, fields[key].annotation, f"{path}.{key}".lstrip("."))
            else:
                yield f"{path}.{key}: no such field".lstrip(".")


def _model(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _element(annotation: Any, container: type) -> Any:
    """What a list or a dict of that annotation holds; None if it is neither."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(candidate) is container:
            return typing.get_args(candidate)[-1]
    return None
