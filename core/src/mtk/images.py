"""What the metrics of generated images take: images that a judge has looked at.

A track makes both, so that no metric needs a model. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """What the judge says about a generated image: an item of ``predictions``.

    Attributes:
        category, domain: what it takes the image for.
        features: what it sees, ``(d,)``, scaled to a length of about ``sqrt(d)``.
    """

    category: str
    domain: str
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What a prompt asks for: an item of ``references``.

    Attributes:
        category, domain: what the judge should see. For a prompt that names neither, what
            it sees in the base's own image from the same noise.
        prompt: the words; images of equal prompts are compared for diversity.
        features: of an image to compare with: a real one of the same cell; for a prompt
            that names neither, one of the base's own from other noise.
        twin: features of the base's own image from the same noise, if known.
    """

    category: str
    domain: str
    prompt: str
    features: NDArray[np.float32]
    twin: NDArray[np.float32] | None = None
