"""Names of what the study can be asked for; known without PyTorch."""

from __future__ import annotations

from typing import Literal

EFFICIENTNET = "efficientnet-lite0"
"""The one network that is not trained here: it comes with its ImageNet weights."""

DATA = ("mnist5k", "digits", "glyphs")

PHOTOGRAPHS = "photographs"
"""The images that EfficientNet-Lite0 looks at, whatever data the others have."""

TRAINED = ("resnet", "densenet", "mobilenet")
NETS = (*TRAINED, EFFICIENTNET)

METHODS: tuple[Literal["unconstrained"], Literal["constrained"]] = ("unconstrained", "constrained")

CRITERIA = ("l1", "l2", "lamp", "fpgm", "hrank", "random", "batch-norm", "taylor")

AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
GENTLE_AMOUNTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""For EfficientNet-Lite0, which has a thousand classes to tell apart, and little to spare."""

EPOCHS = {"mnist5k": 8, "digits": 15, "glyphs": 8}
WEIGHT_DECAY = 1.0
"""As much as costs the small networks no accuracy. With less, they survive less pruning."""
