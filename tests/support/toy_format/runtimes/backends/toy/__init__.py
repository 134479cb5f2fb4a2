"""The toy format on numpy."""

SHARES = ("own_cache",)
