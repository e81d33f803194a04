"""What a setting may be, said beside its default: the types and bounds that `checker` reads and the docs show.

    temperature: Positive = 0.5
    crop_size: PerAxis | None = None
    loss: Literal["l1", "l2"] = "l2"

Bounds may also stand in a field's metadata, field(default=0.5, metadata={"gt": 0}), or be any annotation with the attributes
`ge`, `gt`, `le`, `lt` or `min_length`, as those of the package annotated-types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Bounds:
    """Limits of every number within what it annotates; `min_length` and `per_axis` concern the text or list itself.

    ge, gt, le, lt: at least, above, at most, below. min_length: characters that are not blank, or entries.
    per_axis: a list with one entry per axis of the patch, or one entry for all of them. what: for messages and docs, in place of
    "a number" or "a text".
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    per_axis: bool = False
    what: str | None = None

    def __bool__(self) -> bool:
        return self != Bounds()

    def hold(self, number: float) -> bool:
        """Whether a number lies within."""
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def text(self) -> str:
        """In words, to stand behind "a number"."""
        low, high = self.gt if self.ge is None else self.ge, self.lt if self.le is None else self.le
        if low is None and high is None:
            return ""
        if high is None:
            return f" {'>' if self.ge is None else '>='} {low:g}"
        if low is None:
            return f" {'<' if self.le is None else '<='} {high:g}"
        start, end = ("from", "to") if self.ge is not None else ("above", "and")
        below = "below " if self.le is None else "at most " if end == "and" else ""
        return f" {start} {low:g} {end} {below}{high:g}"


def bounds_in(annotation: Any) -> dict[str, Any]:
    """The limits that an annotation or a field's metadata names."""
    names = Bounds.__dataclass_fields__
    found = {
        name: annotation.get(name) if isinstance(annotation, dict) else getattr(annotation, name, None)
        for name in names
    }
    return {name: value for name, value in found.items() if value is not None and value is not False}


Whole = Annotated[int, Bounds(ge=0)]
Count = Annotated[int, Bounds(ge=1)]
Width = Annotated[int, Bounds(ge=2)]  # of a layer: normalising a single feature leaves nothing
Positive = Annotated[float, Bounds(gt=0)]
NotNegative = Annotated[float, Bounds(ge=0)]  # weights, and factors on probabilities
Probability = Annotated[float, Bounds(ge=0, le=1)]
Rate = Annotated[float, Bounds(ge=0, lt=1)]  # of what is left out, of which something must remain
Share = Annotated[float, Bounds(gt=0, le=1)]
InnerShare = Annotated[float, Bounds(gt=0, lt=1)]  # neither nothing nor all
PerAxis = Annotated[tuple[Count, ...], Bounds(per_axis=True)]  # voxels or the like
Name = Annotated[str, Bounds(min_length=1)]
Expression = Annotated[str, Bounds(min_length=1, what="an expression on the corpus table")]
