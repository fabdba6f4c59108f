"""What a problem set wants of a comparison, where it isn't the usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Policy:
    r"""How a problem set's answers are compared.

    tolerance: relative difference up to which two numbers are equal (0: exactly).
    units: whether a unit that one side lacks is forgiven, must stand there, or is not looked at.
    percent: whether `12.5\%` says `12.5` (the sign is a unit) or only `0.125`. `28` answers `28\%`
        in either case.
    ordered: whether the order of a list counts.
    """

    tolerance: float = 0.0
    units: Literal["optional", "required", "ignored"] = "optional"
    percent: Literal["value", "unit"] = "value"
    ordered: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("units", ("optional", "required", "ignored")),
            ("percent", ("value", "unit")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}"
                )
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and less than 1, not {self.tolerance}")
