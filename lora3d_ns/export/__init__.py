"""A finished scene in the formats of other programs."""
