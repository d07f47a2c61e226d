"""Pictures of printed words, to be read: drawn in many fonts, and spoilt a little."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from upscale_opt.experiments.study.fonts import font

HEIGHT = 64
WIDTH = 192

FONTS = (
    *(f"DejaVu{kind}{style}" for kind in ("Sans", "SansMono") for style in ("", "-Bold")),
    *(f"DejaVu{kind}{style}Oblique" for kind in ("Sans", "SansMono") for style in ("-", "-Bold")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
"""Files of fonts that come with Matplotlib."""

_SIZE = 48
"""Of the letters, in pixels, before the picture is brought to its height."""

_TESTED = 400
_HELD_OUT = 96
"""Words to read, and to calibrate with."""


@dataclass(frozen=True)
class Words:
    """Pictures of words, and what they say.

    Attributes:
        pixels: of shape (words, 1, 64, 192), float32, from -1 (black) to 1.
        texts: one for each.
    """

    pixels: Tensor
    texts: tuple[str, ...]

    def __len__(self) -> int:
        """The number of words."""
        return len(self.texts)


def words_to_read() -> Words:
    """Four hundred words to read; the same at every call."""
    return _drawn(tuple(_shuffled()[:_TESTED]), 0)


def words_to_calibrate(seed: int = 0) -> Words:
    """Ninety-six words to calibrate with; none of them is among :func:`words_to_read`.

    Args:
        seed: which words, fonts and faults; one of 0, 1 and 2, which share no words.
    """
    start = _TESTED + seed * _HELD_OUT
    return _drawn(tuple(_shuffled()[start : start + _HELD_OUT]), seed + 1)


def _shuffled() -> list[str]:
    words = _WORDS.split()
    random.Random(0).shuffle(words)
    return words


@lru_cache(maxsize=4)
def _drawn(words: tuple[str, ...], seed: int) -> Words:
    chance = random.Random(seed)
    texts = tuple(cased(word, chance) for word in words)
    return Words(torch.stack([_picture(text, chance) for text in texts]), texts)


def shuffled_words(chance: random.Random) -> Iterator[str]:
    """All words in an order drawn by ``chance``, again and again."""
    words = _WORDS.split()
    while True:
        chance.shuffle(words)
        yield from words


def cased(word: str, chance: random.Random) -> str:
    """A word as it is, with a capital, in capitals, or a number instead."""
    kind = chance.random()
    if kind < 0.1:
        return str(chance.randrange(100, 1_000_000))
    return word if kind < 0.6 else word.capitalize() if kind < 0.8 else word.upper()


def _picture(text: str, chance: random.Random) -> Tensor:
    """One picture, of shape (1, 64, 192): cropped tightly, as high, at most as wide."""
    own = font(chance.choice(FONTS), _SIZE)
    from PIL import Image, ImageDraw, ImageFilter

    left, top, right, bottom = (int(edge) for edge in own.getbbox(text))
    margin = _SIZE
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    ink = Image.new("L", size, 0)
    ImageDraw.Draw(ink).text((margin - left, margin - top), text, fill=255, font=own)
    turned = ink.rotate(chance.uniform(-3, 3), Image.Resampling.BICUBIC)
    box = turned.point([255 if value > 64 else 0 for value in range(256)]).getbbox()
    assert box is not None  # for no word is blank
    air = [chance.randrange(1, 6) for _ in range(4)]
    tight = turned.crop((box[0] - air[0], box[1] - air[1], box[2] + air[2], box[3] + air[3]))
    width = min(WIDTH, max(1, round(tight.width * HEIGHT / tight.height)))
    fitted = tight.resize((width, HEIGHT), Image.Resampling.BICUBIC)
    blurred = fitted.filter(ImageFilter.GaussianBlur(chance.uniform(0, 1.2)))
    paper, letters = chance.uniform(170, 255), chance.uniform(0, 90)
    values = paper + (letters - paper) * np.asarray(blurred, dtype=np.float64) / 255
    noise = np.random.default_rng(chance.randrange(2**32)).normal(size=values.shape)
    values = (values + chance.uniform(2, 14) * noise).clip(0, 255)
    pixels = torch.tensor(values / 127.5 - 1, dtype=torch.float32)
    rest = pixels[:, -1:].expand(-1, WIDTH - width)  # as EasyOCR pads
    return torch.cat([pixels, rest], 1)[None]


_WORDS = """
able about above absence abstract accept access account achieve acid across action active actual
address advance affect after again against agree almost alone along already also always among amount
ancient anger animal annual another answer anyone appear apple apply april argue around arrive
article assume attack august autumn avoid away baby back bacon balance band bank base basic basket
bath beach bear beauty become before begin behind being believe bell below bench between bicycle
bird birth black blanket block blood blue board boat body bone book border borrow both bottle bottom
bowl brain branch brass bread breath brick bridge bright bring broken brother brown brush bucket
build burn busy butter button cake camera candle capital carbon card careful carpet carry castle
catch cattle cause central century certain chain chair chalk chance change cheap cheese chemical
chest chief child church circle city clean clear clock cloth cloud coal coat coffee cold collar
colour comb comfort common company compare complete complex condition connect control cook copper
copy cord cork cotton cough country cover crack credit crime cruel crush current curtain curve
damage danger dark daughter dead dear death debt decision deep degree delicate depend design desire
detail different digestion direction dirty discovery disease distance division door doubt drain
drawer dream dress drink driving drop dust early earth east edge education effect elastic electric
engine enough equal error even event every example exchange existence expansion expert fact fall
false family farm father fear feather feeble feeling female fertile fiction field fight finger fire
first fish fixed flag flame flat flight floor flower fold food foolish foot force fork form forward
fowl frame free frequent friend from front fruit full future garden general girl give glass glove
goat gold good grain grass great green grey grip group growth guide hair hammer hand hanging happy
harbour hard harmony hate head healthy heart heat help high history hole hollow hook hope horn horse
hospital hour house humour idea important impulse increase industry insect insurance interest
invention iron island jelly jewel join journey judge jump keep kettle kick kind kiss knee knife knot
knowledge land language last late laugh lead leaf learning leather left letter level library lift
light like limit linen liquid list little living lock long look loose loss loud love machine make
male manager mark market married mass match material meal measure meat medical meeting memory metal
middle military milk mind mine minute mist mixed money monkey month moon morning mother motion
mountain mouth move much muscle music nail name narrow nation natural near necessary neck need
needle nerve news night noise normal north nose note number observe offer office only open operation
opinion opposite orange order organ ornament other oven over owner page pain paint paper parallel
parcel part past paste payment peace pencil person physical picture pipe place plane plant plate
play please pleasure plough pocket point poison polish political poor porter position possible
potato powder power present price print prison private probable process produce profit property
prose protest public pull pump punish purpose push quality question quick quiet quite rail rain
range rate reaction reading ready reason receipt record regret regular relation religion request
respect rest reward rhythm rice right ring river road roll roof room root rough round rule safe sail
salt same sand scale school science scissors screw seat second secret secretary seed seem selection
self send sense separate serious servant shade shake shame sharp sheep shelf ship shirt shock shoe
short shut side sign silk silver simple sister size skin skirt sleep slip slope slow small smash
smell smile smoke smooth snake sneeze snow soap society sock soft solid some song sort sound soup
south space spade special sponge spoon spring square stage stamp star start statement station steam
steel stem step stick sticky stiff still stitch stocking stomach stone stop store story straight
strange street stretch strong structure substance such sudden sugar summer support surprise sweet
swim system table tail take talk tall taste teaching tendency test than that then theory there thick
thin thing this thought thread throat through thumb thunder ticket tight till time tired together
tomorrow tongue tooth touch town trade train transport tray tree trick trouble trousers true turn
twist umbrella under unit value verse very vessel view violent voice waiting walk wall warm wash
waste watch water wave weather week weight well west wheel when where while whip whistle white wide
will wind window wine wing winter wire wise with woman wood wool word work world worm wound writing
wrong year yellow yesterday young
"""
"""Common words of four to nine letters."""
