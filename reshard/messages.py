"""What messages have in common. Pure."""

from collections.abc import Iterable


def shown(names: Iterable[str], limit: int = 4) -> str:
    """The first `limit` of `names`, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
