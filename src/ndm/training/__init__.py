"""Training of a model on a data set; the output is a run folder with the trained model.

The entry point is :func:`fit`. The other modules contain the options, the LightningModule, the order of the batches,
the callbacks, the metrics file, and the layout of the run folder.
"""

from ndm.training.fit import fit
from ndm.training.module import NDMModule, NonFiniteLoss
from ndm.training.options import TrainerOptions, TrainingOptions
from ndm.training.run import Run

__all__ = ["NDMModule", "NonFiniteLoss", "Run", "TrainerOptions", "TrainingOptions", "fit"]
