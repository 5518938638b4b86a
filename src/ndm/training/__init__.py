"""Training: a model and a data set in, a folder with the trained model out.

:func:`fit` is the door. Behind it, one file each: the options, what happens in a step (the LightningModule), the order
of the batches, the callbacks, the metrics file, and the layout of the folder.
"""

from ndm.training.fit import fit
from ndm.training.module import NDMModule, NonFiniteLoss
from ndm.training.options import TrainerOptions, TrainingOptions
from ndm.training.run import Run

__all__ = ["NDMModule", "NonFiniteLoss", "Run", "TrainerOptions", "TrainingOptions", "fit"]
