"""Pair predictions become one scene."""
