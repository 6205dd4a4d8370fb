"""What a captured graph does, for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a :class:`~lazyfx_ltc.CompiledGraph` does; ``str()`` of it is a short report.

    Of a :class:`~lazyfx_ltc.PartitionedGraph`, ``inputs`` and ``state`` are names only, and each
    line of ``mutated``, ``outputs`` and ``guards`` begins with the piece it is about; of a piece
    that is not captured it says no more than that.

    Attributes:
        inputs: Each argument, described.
        state: Each model tensor read at a call, described.
        mutated: Names of arguments and model tensors that a call writes.
        outputs: Each output leaf, described.
        guards: What is checked at a call.
        operators: How often the program calls each operator.
        fallbacks: What runs outside the program, and why.
        segments: What runs one after the other: one program, or more and eager nodes in between.
    """

    inputs: tuple[str, ...]
    state: tuple[str, ...]
    mutated: tuple[str, ...]
    outputs: tuple[str, ...]
    guards: tuple[str, ...]
    operators: dict[str, int]
    fallbacks: tuple[str, ...]
    segments: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for title in ("inputs", "state", "mutated", "outputs", "guards", "segments"):
            entries = getattr(self, title)
            lines.append(f"{title}: {len(entries)}")
            lines.extend(f"  {entry}" for entry in entries)
        lines.append(f"operators: {sum(self.operators.values())}")
        lines.extend(f"  {name} x {count}" for name, count in sorted(self.operators.items()))
        return "\n".join(lines)
