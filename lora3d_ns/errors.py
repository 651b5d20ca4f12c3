"""Named errors. Each says what is wrong, where, and what to do next, in one line.

Every error of this package derives from `Lora3dError`, so a caller can catch exactly what we raise on purpose;
anything else that escapes is a defect of ours.
"""

from collections.abc import Sequence
from pathlib import Path


class Lora3dError(Exception):
    """Base of every error raised on purpose.

    Args:
        problem: What is wrong, without a full stop.
        way_out: What the user can do next, as an instruction.
        path: The file or folder concerned, if there is one.
    """

    def __init__(self, problem: str, *, way_out: str, path: Path | str | None = None) -> None:
        self.problem = problem
        self.way_out = way_out
        self.path = None if path is None else Path(path)
        where = "" if path is None else f"{path}: "
        super().__init__(f"{where}{problem}. {way_out}")


class SettingsError(Lora3dError, ValueError):
    """A setting has a value outside its range."""


class InvalidDataError(Lora3dError, ValueError):
    """Arrays handed to one of our types contradict each other (lengths, shapes, ranges)."""


# --- photos -------------------------------------------------------------------------------------


class PhotoError(Lora3dError):
    """Base of everything that can be wrong with the photos themselves."""


class PhotoFolderError(PhotoError):
    """The folder of photos is missing, is not a folder, or cannot be read."""


class NoPhotosError(PhotoError):
    """The folder or list holds no file with a supported ending."""


class TooFewPhotosError(PhotoError):
    """One photo only: geometry needs at least two."""


class EmptyPhotoError(PhotoError):
    """A file of zero bytes."""


class NotAPhotoError(PhotoError):
    """The file's content is no image in a supported format."""


class TruncatedPhotoError(PhotoError):
    """The image starts well and ends too early, or its data are damaged."""


class PhotoTooLargeError(PhotoError):
    """The header announces more pixels than the limit (a decompression bomb, or a very large scan)."""


class PhotoShapeError(PhotoError):
    """A photo so elongated that its short side is less than one patch at network resolution."""


class DuplicatePhotoError(PhotoError):
    """Two files hold the same photo, or one file is named twice."""


class MaskError(PhotoError):
    """A mask does not fit its photo or leaves nothing of it."""


class KnownCameraError(PhotoError):
    """A file with known intrinsics or poses cannot be read or contradicts the photos."""


# --- pair graph ---------------------------------------------------------------------------------


class DisconnectedViewsError(Lora3dError):
    """The pairs do not connect all views into one scene.

    Attributes:
        groups: Names of the views of each connected group, largest group first.
    """

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        listed = " | ".join(", ".join(group) for group in self.groups)
        super().__init__(
            f"the pairs leave {len(self.groups)} groups of photos that do not connect: {listed}",
            way_out="Use the complete pair graph, raise the window or the number of neighbours, "
            "or take photos that bridge the groups",
        )


# --- network and checkpoints --------------------------------------------------------------------


class CheckpointError(Lora3dError):
    """Base of everything that can be wrong with network weights."""


class CheckpointNotFoundError(CheckpointError):
    """No such file, folder or known name."""


class CheckpointDownloadError(CheckpointError):
    """The weights have to be fetched and the network (the one with cables) does not answer."""


class DiskSpaceError(CheckpointError):
    """Not enough free space for the weights."""


class CorruptCheckpointError(CheckpointError):
    """Truncated or damaged file."""


class UnsafeCheckpointError(CheckpointError):
    """The pickle in the file asks for something other than tensors and plain values; it was not executed."""


class CheckpointArchitectureError(CheckpointError):
    """The configuration describes a network outside the DUSt3R family, or one we do not support."""


class CheckpointKeysError(CheckpointError):
    """Tensors are missing, superfluous or of the wrong shape for the configuration."""


class CheckpointWriteError(CheckpointError):
    """The weights cannot be written where they were meant to go."""


class MissingPackageError(Lora3dError, ImportError):
    """An optional package is needed for what was asked."""


# --- prediction ---------------------------------------------------------------------------------


class InsufficientMemoryError(Lora3dError):
    """Even the smallest batch does not fit, or the results would not fit into host memory."""


class NonFinitePredictionError(Lora3dError):
    """The network returned NaN or infinite values."""


# --- files of ours --------------------------------------------------------------------------------


class StorageError(Lora3dError):
    """A result of ours cannot be written to disk or read from it."""


class StorageFullError(StorageError):
    """The disk has no room for a result; nothing half-written is left behind."""


class DamagedFileError(StorageError):
    """A file of ours is truncated, altered or of another format version."""


# --- self-calibration -----------------------------------------------------------------------------


class AdapterError(Lora3dError):
    """Base of everything that can be wrong with a LoRA adapter."""


class AdapterNotFoundError(AdapterError):
    """There is no adapter in the folder."""


class CorruptAdapterError(AdapterError):
    """An adapter's files are damaged or contradict each other."""


class AdapterBaseError(AdapterError):
    """The adapter was made for another network."""


class AdapterRefusedError(AdapterError):
    """The gate found that the adapter makes pairs it never saw agree worse."""


class TooFewLabelsError(Lora3dError):
    """The alignment believes too little of the scene for the network to learn from it."""


class FineTuningError(Lora3dError):
    """Fine-tuning diverged, however small its steps."""


# --- splats -----------------------------------------------------------------------------------------


class SplatTrainingError(Lora3dError):
    """One of nerfstudio's commands, run by us, failed."""


class RasterizerError(Lora3dError, RuntimeError):
    """Gaussians cannot be rasterized on the device that was asked for."""
