"""The prompts of ``domainnet-sd21``: one per class and domain, and neutral ones.

The paper's are unknown; these are our own.
"""

from __future__ import annotations

DOMAINS = {
    "clipart": "clip art of a {}",
    "infograph": "an infographic about a {}",
    "painting": "a painting of a {}",
    "quickdraw": "a quick line doodle of a {}",
    "real": "a photo of a {}",
    "sketch": "a pencil sketch of a {}",
}
# What no expert is trained on: no domain of the grid by name, and scenes, not classes.
NEUTRAL = (
    "a crowded street market at dusk",
    "two old friends laughing over breakfast",
    "an empty classroom with morning light",
    "a close view of woven fabric",
    "an astronaut walking through a wheat field",
    "a marble statue wrapped in ribbon",
    "a village seen from high above",
    "a shelf full of glass jars",
    "smoke drifting over a quiet harbour",
    "a dancer in the middle of a jump",
)


def of_domain(domain: str) -> str:
    """The prompt of a domain, with a place for the class.

    >>> of_domain("real").format("hot dog")
    'a photo of a hot dog'
    >>> of_domain("lino print")
    'a lino print of a {}'
    """
    return DOMAINS.get(domain, f"a {domain} of a {{}}")
