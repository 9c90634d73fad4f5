"""How many bits the parts of a language model have, told as W-E-A: "2-2-8"."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from adasearch.errors import ConfigError

FULL = 32  # bits of what is not quantised
WEIGHT_BITS = (1, 2, 4, 8, FULL)  # those that fill a byte, hence can be packed
ACTIVATION_BITS = (4, 8, FULL)


@dataclass(frozen=True)
class BitWidths:
    """How many bits weights of linear layers, the token embedding and activations have; 32 is not quantised.

    Raises ConfigError where a number is none of the choices.
    """

    weights: int
    embeddings: int
    activations: int

    def __post_init__(self) -> None:
        for part, known in (("weights", WEIGHT_BITS), ("embeddings", WEIGHT_BITS), ("activations", ACTIVATION_BITS)):
            if getattr(self, part) not in known:
                choices = ", ".join(map(str, known))
                raise ConfigError(f"bits {str(self)!r}: {part} of {getattr(self, part)} bits; known: {choices}")

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))

    @classmethod
    def parse(cls, text: str) -> BitWidths:
        """From "2-2-8": weights, embeddings, activations. Raises ConfigError."""
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ConfigError(f"bits {text!r}: expected weights-embeddings-activations, such as 2-2-8, 4-4-8, 8-8-8, 32-32-32")
        return cls(*map(int, parts))
