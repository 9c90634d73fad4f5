"""Laws of the registry: one name, one thing; a missing name is answered with the known ones."""

from __future__ import annotations

import pytest

from adasearch.objectives import DISTILLATION_LOSSES
from adasearch.operations import OPERATIONS
from adasearch.registry import Registry


def test_it_is_a_dictionary_that_explains_itself() -> None:
    registry: Registry[object] = Registry("gate")

    @registry.register("b")
    def first() -> int:
        return 1

    registry.register("a")(len)
    assert registry["b"] is first and first() == 1 and registry["a"] is len
    assert list(registry) == ["b", "a"] and len(registry) == 2 and "a" in registry and "c" not in registry
    with pytest.raises(KeyError, match="unknown gate 'c'; known: a, b"):
        registry["c"]


def test_a_name_is_given_once() -> None:
    registry: Registry[object] = Registry("gate")
    registry.register("a")(len)
    assert registry.register("a")(len) is len  # a module that is imported again does no harm
    with pytest.raises(ValueError, match="gate 'a' is registered twice"):
        registry.register("a")(max)
    assert registry["a"] is len


@pytest.mark.parametrize(
    ("registry", "kind", "names"),
    [
        (OPERATIONS, "operation", {"conv3", "dilated_conv7", "sep_conv5", "gated_conv3", "max_pool3", "avg_pool3", "self_attention",
                                   "soft_alignment", "skip", "none"}),
        (DISTILLATION_LOSSES, "distillation loss", {"kl", "mse"}),
    ],
)  # fmt: skip
def test_what_the_documentation_promises_is_registered(registry: Registry, kind: str, names: set[str]) -> None:
    assert names <= set(registry)
    with pytest.raises(KeyError, match=f"unknown {kind} 'conv9'; known: "):
        registry["conv9"]
