"""Shared by the tests: parts of what was in test_pictures.py."""

import io

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")


def encoded(array, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def imagenet(folder, classes=("n01440764", "n01443537", "n01484850"), n=5, n_test=2):
    """Pictures of one colour, which says class and number."""
    for part, count in (("train", n), ("val", n_test)):
        for c, name in enumerate(classes):
            for i in range(count):
                path = folder / part / name / f"{name}_{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    encoded(np.full((20, 30, 3), (60 * c, 40 * i, 100), np.uint8), "PNG")
                )
