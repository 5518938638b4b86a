"""Training of a model on a data set; the output is a run folder with the trained model.

The entry point is :func:`fit`. The other modules contain the options, the LightningModule, the order of the batches,
the callbacks, the metrics file, and the layout of the run folder. Names are imported when they are first used: a run
folder is read without Lightning, and the options without PyTorch.
"""

from typing import TYPE_CHECKING

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.training.fitting import fit
    from ndm.training.module import NDMModule, NonFiniteLoss
    from ndm.training.options import TrainerOptions, TrainingOptions
    from ndm.training.run import Run

_HOMES = {
    "NDMModule": "module",
    "NonFiniteLoss": "module",
    "Run": "run",
    "TrainerOptions": "options",
    "TrainingOptions": "options",
    "fit": "fitting",
}

__all__ = ["NDMModule", "NonFiniteLoss", "Run", "TrainerOptions", "TrainingOptions", "fit"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
