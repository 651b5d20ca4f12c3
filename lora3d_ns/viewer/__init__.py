"""A scene in the browser: photos, cloud, pairs, before and after, and a scale measured between two points.

All that is shown is made by pure functions from `Scene` and `SceneDetails`; viser is imported where it is started.
"""
