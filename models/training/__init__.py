"""What the trainings of all methods share: the loop that can be stopped and resumed, its folder, progress, rates, options.

Knows no network. A method's ``train.py`` names its ``RECIPES``, its ``Options`` and ``OWN_DATA``, and its ``train`` reads
as: check what was asked for, open a :class:`Training`, run stages, write weights, finish.
"""

from models.training.averages import WeightAverage
from models.training.checksums import data_checksum, weights_checksum
from models.training.folder import TrainResult
from models.training.loop import After, Stage, Training, TrainingStopped
from models.training.options import OwnDataOptions, check_choice, check_options, one_thread
from models.training.previews import Picture, PreviewOptions, at_rest
from models.training.progress import Progress, ProgressCallback
from models.training.rates import cosine, warm_up

__all__ = [
    "After",
    "OwnDataOptions",
    "Picture",
    "PreviewOptions",
    "Progress",
    "ProgressCallback",
    "Stage",
    "TrainResult",
    "Training",
    "TrainingStopped",
    "WeightAverage",
    "at_rest",
    "check_choice",
    "check_options",
    "cosine",
    "data_checksum",
    "one_thread",
    "warm_up",
    "weights_checksum",
]
