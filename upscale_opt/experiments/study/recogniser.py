"""EasyOCR's recogniser of English text, ``english_g2``, with its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upscale_opt.experiments.study.easyocr import with_weights

SYMBOLS = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
"""Symbols in the order of the logits behind the first, which stands for none (the blank)."""


class Recogniser(nn.Module):
    """A convolutional recurrent network (Shi et al., 2017) on the features of a small VGG.

    Its modules are called as in EasyOCR, so that the weights fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = _Features()
        self.SequenceModeling = nn.Sequential(_Recurrent(), _Recurrent())
        self.Prediction = nn.Linear(256, len(SYMBOLS) + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, columns, symbols and the blank).

        Args:
            x: float images of shape (N, 1, 64, width), from -1 (black) to 1.
        """
        features = self.FeatureExtraction(x).mean(2)
        logits: Tensor = self.Prediction(self.SequenceModeling(features.transpose(1, 2)))
        return logits


class _Features(nn.Module):
    """Seven convolutions; 64 rows become three, four columns one."""

    def __init__(self) -> None:
        super().__init__()
        self.ConvNet = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),
            nn.Conv2d(128, 256, 3, padding=1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),
            nn.Conv2d(256, 256, 2),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ConvNet(x)
        return y


class _Recurrent(nn.Module):
    """An LSTM in both directions, and a layer that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(512, 256)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        y: Tensor = self.linear(states)
        return y


def recogniser() -> Recogniser:
    """The network with its weights, in eval mode.

    Raises:
        UpscaleError: if the package of the weights is missing, or they do not fit.
    """
    return with_weights(Recogniser(), "english_g2.pth")


def read(logits: Tensor) -> list[str]:
    """The texts that logits of shape (N, columns, symbols and the blank) say.

    In each column the likeliest symbol counts; repeats and blanks are then left out (best-path
    decoding; Graves et al., 2006).
    """
    texts = []
    for line in logits.argmax(2):
        symbols = torch.unique_consecutive(line)
        texts.append("".join(SYMBOLS[symbol - 1] for symbol in symbols.tolist() if symbol))
    return texts
