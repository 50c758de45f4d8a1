"""A multilayer network for classification in NumPy: clear to read, and fast at the sizes that are tuned.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(200, 2)); y = (X[:, 0] * X[:, 1] > 0).astype(int)
>>> network = Network.random(Architecture((2, 16, 2), batch_norm=True), np.random.default_rng(1))
>>> trainer = Trainer(network, X, y, Settings(learning_rate=0.03), [np.random.default_rng(2)])
>>> reports = [trainer.epoch() for _ in range(30)]
>>> loss, error = network.loss_and_error(trainer.X, y)
>>> bool(error < 0.1)
True

`architecture` and `network` say what is computed, `step` and `arrays` how it is computed fast, `optimizers`,
`schedules` and `trainer` how it learns, `diagnosis` how that went, `checkpoint` how to go on later, `stack` how to
train many at once. `classifier` is the scikit-learn estimator; it is not imported here, since scikit-learn
takes a second.
"""

from objectives.network.architecture import Architecture
from objectives.network.network import Network
from objectives.network.schedules import Schedule
from objectives.network.stack import Stack
from objectives.network.trainer import EarlyStopping, NotFinite, Settings, Trainer

__all__ = [
    "Architecture",
    "EarlyStopping",
    "Network",
    "NotFinite",
    "Schedule",
    "Settings",
    "Stack",
    "Trainer",
]
