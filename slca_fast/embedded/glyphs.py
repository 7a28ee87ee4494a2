"""Letters rendered from the fonts that matplotlib ships: the pre-training images of the embedded weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Letters are fitted to a box, so of pairs that differ in size only (c/C, o/O, s/S ...) one is left out.
ALPHABETS = {
    "latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijmnqrtuy",
    "greek": "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφψω",
    "cyrillic": "БДЖЗИЛУЦЧШЩЪЫЬЭЮЯбЂЄЉЊЋЏѢ",
    "armenian": "ԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄՅՆՇՈՉՊՋՌՍՎՏՐՑՒՓՔՖ",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "hebrew": "אבגדהזחטילמנסעפצקרשת",
}
CHARACTERS = "".join(ALPHABETS.values())

UNICODE_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic",
)  # fmt: skip
# The Computer Modern files have their own code table: only their ASCII letters are where Unicode has them.
ASCII_FONTS = ("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10")

ATLAS_SIZE = 64
ATLAS_BOX = 44


@dataclass
class GlyphAtlas:
    """Signed distance fields of glyphs, grouped by class: `fields` float32 [G, 64, 64], in pixels, > 0 in the ink.

    `first` and `count` (int64 [C]) give each character's slice of `fields`.
    """

    fields: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    characters: str
    fonts: tuple[str, ...]


def _render(font, character: str) -> np.ndarray | None:
    """One glyph, its tight box scaled (aspect kept) and centred: uint8 [64, 64], or None if blank."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(canvas).text((64, 40), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    glyph = canvas.crop(box)
    ratio = ATLAS_BOX / max(glyph.size)
    size = (max(1, round(glyph.width * ratio)), max(1, round(glyph.height * ratio)))
    out = Image.new("L", (ATLAS_SIZE, ATLAS_SIZE), 0)
    out.paste(glyph.resize(size, Image.Resampling.BICUBIC), ((ATLAS_SIZE - size[0]) // 2, (ATLAS_SIZE - size[1]) // 2))
    return np.asarray(out)


def build_atlas(characters: str = CHARACTERS, fonts: tuple[str, ...] = UNICODE_FONTS + ASCII_FONTS) -> GlyphAtlas:
    """Render every character in every font that has it, as signed distance fields.

    Raises ValueError for a digit (the weights must not have seen any) or a character that no font has.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont
    from scipy.ndimage import distance_transform_edt

    if any(c.isnumeric() for c in characters):
        raise ValueError("characters must hold letters only, no digits")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    loaded = []
    for name in fonts:
        path = folder / f"{name}.ttf"
        loaded.append((name in ASCII_FONTS, set(FT2Font(str(path)).get_charmap()), ImageFont.truetype(str(path), 96)))
    fields, first, count = [], [], []
    for character in characters:
        first.append(len(fields))
        for ascii_only, covered, font in loaded:
            if ord(character) not in covered or (ascii_only and not character.isascii()):
                continue
            image = _render(font, character)
            if image is None:
                continue
            ink = image > 127
            inside, outside = (np.asarray(distance_transform_edt(part)) for part in (ink, ~ink))
            fields.append((inside - outside).astype(np.float32))
        count.append(len(fields) - first[-1])
        if not count[-1]:
            raise ValueError(f"no font has the character {character!r}")
    stacked = torch.from_numpy(np.stack(fields))
    return GlyphAtlas(stacked, torch.tensor(first), torch.tensor(count), characters, tuple(fonts))


def _upsample_matrix(low: int, high: int) -> torch.Tensor:
    """float32 [high, low]: bicubic enlargement along one axis with Pillow's kernel (a = -0.5)."""
    eye = torch.eye(low)[None, None]
    return F.interpolate(eye, size=(high, low), mode="bicubic", antialias=True)[0, 0]


def normalise(ink: torch.Tensor) -> torch.Tensor:
    """Grey images [B, H, W] in [0, 1] to ImageNet-normalised RGB float32 [B, 3, H, W]."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (ink[:, None] - mean) / std


class LetterBatches:
    """Endless random batches of distorted letters, drawn from one seeded generator.

    Each image imitates how the digits were made: an ink bitmap of 32 x 32, counted in 4 x 4 cells to
    8 x 8 grey levels 0..16, enlarged to `size` with bicubic interpolation.
    """

    def __init__(self, atlas: GlyphAtlas, size: int = 32, seed: int = 0):
        self.atlas, self.size = atlas, size
        self.generator = torch.Generator().manual_seed(seed)
        self.difficulty = 1.0  # scales rotation, shear, shift and warp; the curriculum raises it to 1
        self.up8 = _upsample_matrix(8, size)
        self.up32 = _upsample_matrix(32, size)
        self.up_warp = _upsample_matrix(4, 32)

    def _uniform(self, n: int, low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=self.generator) * (high - low) + low

    def _grid(self, n: int) -> torch.Tensor:
        """Sampling grid [n, 32, 32, 2]: affine map plus a smooth random warp, so type looks written."""
        hard = self.difficulty
        angle = self._uniform(n, -0.35, 0.35) * hard
        shear = self._uniform(n, -0.45, 0.45) * hard
        # The digits fill their box in height; widths vary more.
        sx, sy = self._uniform(n, 0.5, 0.95), self._uniform(n, 0.7, 1.0)
        cos, sin = angle.cos() * ATLAS_BOX / ATLAS_SIZE, angle.sin() * ATLAS_BOX / ATLAS_SIZE
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = cos / sx, (sin + shear * cos) / sx
        theta[:, 1, 0], theta[:, 1, 1] = -sin / sy, (cos - shear * sin) / sy
        theta[:, 0, 2] = self._uniform(n, -0.12, 0.12) * hard
        theta[:, 1, 2] = self._uniform(n, -0.08, 0.08) * hard
        grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
        warp = torch.randn(n, 2, 4, 4, generator=self.generator)
        warp = warp * self._uniform(n, 0.0, 0.16)[:, None, None, None] * hard
        return grid + (self.up_warp @ warp @ self.up_warp.T).permute(0, 2, 3, 1)

    def __call__(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(images float32 [n, 3, size, size], labels int64 [n])."""
        atlas = self.atlas
        label = torch.randint(len(atlas.characters), (n,), generator=self.generator)
        font = (torch.rand(n, generator=self.generator) * atlas.count[label]).long()
        field = atlas.fields[atlas.first[label] + font]
        field = F.grid_sample(field[:, None], self._grid(n), padding_mode="border", align_corners=False)[:, 0]
        # A threshold on the distance thickens or thins the stroke evenly.
        ink = torch.sigmoid((field + self._uniform(n, -0.8, 2.8)[:, None, None]) * 2.0)
        cells = F.avg_pool2d(ink[:, None], 4)[:, 0]
        cells = (cells * 16).round() / 16
        image = self.up8 @ cells @ self.up8.T
        # A few sharper images keep the first layers from tying themselves to one resolution.
        sharp = torch.rand(n, generator=self.generator) < 0.1
        image = torch.where(sharp[:, None, None], self.up32 @ ink @ self.up32.T, image)
        gain = self._uniform(n, 0.8, 1.0)[:, None, None]
        return normalise((image * gain).clamp_(0, 1)), label


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 % of `steps`, then a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
