"""What some tests need of the system and pip cannot install. `make system-packages` installs it where apt-get is."""

import importlib
from types import ModuleType

import pytest

LIBRARY_OF_OPEN3D = "libusb-1.0"


def require_open3d() -> None:
    """Skips the test where the system lacks the library that open3d is linked with. Any other failure is one."""
    try:
        importlib.import_module("open3d")
    except ImportError as error:
        if LIBRARY_OF_OPEN3D not in str(error):
            raise
        pytest.skip(f"open3d needs {LIBRARY_OF_OPEN3D} of the system (make system-packages)")


def ns_export() -> ModuleType:
    """The module of nerfstudio's `ns-export`, which imports open3d whatever it exports."""
    require_open3d()
    return importlib.import_module("nerfstudio.scripts.exporter")
