"""Laws of the registry: one name, one thing; a missing name is answered with the known ones."""

from __future__ import annotations

import pytest

from adasearch.objectives import DISTILLATION_LOSSES
from adasearch.operations import OPERATIONS
from adasearch.registry import Registry
from adasearch.runtime_base import RUNTIMES


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


CONVOLUTIONS = {
    f"{kind}conv{size}" for kind in ("", "dilated_", "sep_", "dilated_sep_", "gated_") for size in (3, 5, 7)
}
POOLS = {f"{kind}_pool{size}" for kind in ("max", "avg") for size in (3, 5, 7)}


@pytest.mark.parametrize(
    ("registry", "kind", "names"),
    [
        (OPERATIONS, "operation", CONVOLUTIONS | POOLS | {"self_attention", "soft_alignment", "skip", "none"}),
        (DISTILLATION_LOSSES, "distillation loss", {"kl", "mse"}),
    ],
)
def test_what_the_documentation_promises_is_registered(registry: Registry, kind: str, names: set[str]) -> None:
    assert names <= set(registry)
    with pytest.raises(KeyError, match=f"unknown {kind} 'conv9'; known: "):
        registry["conv9"]


def test_a_registry_of_one_class_takes_no_other() -> None:
    with pytest.raises(TypeError, match=r"runtime 'mine': <built-in function len> is no RuntimeKind; choices: register_runtime\('mine', ...\)"):
        RUNTIMES.register("mine")(len)
    assert "mine" not in RUNTIMES
