"""Augmentation, compared with Pillow, NumPy and the distributions of the draws."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from backspike.data import augment, autoaugment
from backspike.data.augment import (
    Crop,
    Cutout,
    EventDrop,
    Flip,
    OneOf,
    ResizedCrop,
    Roll,
    Rotate,
    Shear,
    Shift,
    rotation,
    shearing,
    warp,
)
from backspike.data.autoaugment import POLICY, AutoAugment
from backspike.data.mixing import CutMix, Mixup

ALL = (
    Crop(3),
    Shift(1),
    ResizedCrop(),
    Flip(),
    Cutout(5),
    Roll(3),
    Rotate(40.0),
    Shear(0.4),
    EventDrop(),
    OneOf(),
)


def images(B=7, C=3, H=12, W=10, dtype=torch.uint8):
    return torch.randint(1, 200, (B, C, H, W), generator=torch.Generator().manual_seed(0)).to(dtype)


def frames(B=6, T=4, H=12, W=10, dtype=torch.uint8):
    """The same picture at all timesteps, without zeros."""
    return images(B, 2, H, W, dtype).unsqueeze(1).repeat(1, T, 1, 1, 1)


# all values


@pytest.mark.parametrize("value", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shape_dtype_and_input_are_unchanged(value, dtype):
    x = frames(dtype=dtype)
    before = x.clone()
    out = value(x)
    assert (out.shape, out.dtype, out.device) == (x.shape, dtype, x.device)
    assert torch.equal(x, before)


@pytest.mark.parametrize("value", [v for v in ALL if not isinstance(v, EventDrop)], ids=repr)
def test_each_sample_gets_its_own_draw_the_same_at_all_timesteps(value):
    x = frames(B=40)
    x[:] = x[:1]
    out = value(x)
    assert (out == out[:, :1]).all()
    assert len(torch.unique(out.flatten(1), dim=0)) > 1


@pytest.mark.parametrize(
    "value", [*(v for v in ALL if not isinstance(v, EventDrop)), AutoAugment()], ids=repr
)
def test_images_are_accepted_and_the_seed_determines_the_draws(value):
    x = images(H=14, W=14)
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(value(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert outs[0].shape == x.shape


@pytest.mark.parametrize(
    "value",
    [Crop(2), ResizedCrop(), Flip(), Roll(3), Rotate(30.0), Shear(0.5), Cutout(4), EventDrop()],
    ids=repr,
)
def test_pixel_values_are_moved_or_removed_but_never_created(value):
    x = frames()
    torch.manual_seed(1)
    out = value(x)
    if isinstance(value, EventDrop):
        assert (out <= x).all()
    else:
        for sample, moved in zip(x, out):
            assert set(moved.unique().tolist()) <= {0, *sample.unique().tolist()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(0), "at least 1"),
        (lambda: ResizedCrop((0.0, 1.0)), "ResizedCrop: scale must rise from above 0 to at most 1"),
        (lambda: ResizedCrop((0.5, 1.5)), "ResizedCrop: scale must rise"),
        (lambda: ResizedCrop(ratio=(2.0, 0.5)), "ResizedCrop: ratio must rise from above 0, got"),
        (lambda: Flip(1.5), "Flip: p must lie in"),
        (lambda: Cutout(0), "Cutout: size must be above 0"),
        (lambda: Roll(0), "Roll: pixels must be above 0"),
        (lambda: Rotate(-1.0), "Rotate: degrees must be above 0"),
        (lambda: Shear(0.0), "Shear: amount must be above 0"),
        (lambda: EventDrop(2.0), "EventDrop: most must lie in"),
        (lambda: OneOf(()), "at least one choice"),
        (lambda: Mixup(0.0), "Mixup: alpha must be above 0"),
        (lambda: CutMix(-1.0), "CutMix: alpha must be above 0"),
        (lambda: EventDrop()(images()), "expected frames"),
        (lambda: AutoAugment()(frames()), "expected RGB images"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# geometry


def test_resized_crop_scales_a_part_to_the_full_size(monkeypatch):
    """A quarter of the image, centred at 5/8 of the height and 1/4 of the width: pixels double."""
    x = images(B=3, H=16, W=12)
    part = torch.tensor([[0.625, 0.25]]).expand(3, 2), torch.full((3, 2), 0.5)
    monkeypatch.setattr(ResizedCrop, "boxes", lambda self, n, width, height: part)
    want = x[:, :, 6:14, 0:6].repeat_interleave(2, -2).repeat_interleave(2, -1)
    assert torch.equal(ResizedCrop()(x), want)


@pytest.mark.parametrize(("width", "height"), [(20, 20), (60, 40)])
def test_resized_crops_have_the_requested_area_and_ratio_at_any_position(width, height):
    torch.manual_seed(0)
    centre, extent = ResizedCrop(scale=(0.1, 0.5), ratio=(0.5, 2.0)).boxes(4000, width, height)
    area, ratio = extent.prod(1), extent[:, 1] * width / (extent[:, 0] * height)
    assert 0.1 - 1e-6 < area.min() < 0.11
    assert 0.49 < area.max() < 0.5 + 1e-6
    assert 0.5 - 1e-6 < ratio.min() < 0.52
    assert 1.9 < ratio.max() < 2 + 1e-6
    # all of these fit, so the choice does not change their distribution
    small = ratio[area < 0.2]
    assert small.log().mean().abs() < 0.03  # log-uniform, about square
    free = (centre - extent / 2) / (1 - extent)  # uniform in [0, 1]
    assert ((free > -1e-4) & (free < 1 + 1e-4)).all()
    np.testing.assert_allclose(
        free.quantile(torch.tensor([0.25, 0.5, 0.75]), 0),
        [[0.25] * 2, [0.5] * 2, [0.75] * 2],
        atol=0.03,
    )


def test_if_no_crop_fits_the_largest_centred_one_is_used():
    """No part of 100 x 10 pixels has 90 % of the area and a ratio of 4/3; 13.3 x 10 is largest."""
    want = (0.5 - 4 / 60, 0.0, 0.5 + 4 / 60, 1.0)
    assert ResizedCrop(scale=(0.9, 1.0)).part(100, 10) == pytest.approx(want)
    assert ResizedCrop(scale=(0.9, 1.0)).part(10, 100) == pytest.approx(
        (0.0, 0.5 - 4 / 60, 1.0, 0.5 + 4 / 60)
    )
    assert ResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)).part(7, 7) == pytest.approx((0, 0, 1, 1))


@pytest.mark.parametrize("side", [9, 10])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_by_quarter_turns_is_exact(side, quarters):
    x = images(H=side, W=side)
    angle = torch.full((len(x),), quarters * np.pi / 2)
    assert torch.equal(warp(x, rotation(angle)), torch.rot90(x, quarters, (-2, -1)))


@pytest.mark.parametrize("degrees", [-33.0, 10.0, 71.0])
def test_rotation_equals_pillow(degrees):
    x = images(1, H=40, W=40)[0]
    rotated = Image.fromarray(x.permute(1, 2, 0).numpy()).rotate(degrees)
    theirs = np.array(rotated).transpose(2, 0, 1)
    angle = torch.tensor([np.deg2rad(degrees)], dtype=torch.float64)
    ours = warp(x[None], rotation(angle))[0].numpy()
    # points half-way between two pixels may take either
    assert (ours == theirs).mean() > 0.99


def test_rotation_angles_are_uniform_up_to_the_bound(monkeypatch):
    drawn = []
    monkeypatch.setattr(augment, "rotation", lambda angle: drawn.append(angle) or rotation(angle))
    Rotate(15.0)(torch.zeros(20_000, 1, 1, 1))
    angle = torch.rad2deg(drawn[0])
    assert -15 <= angle.min() < -14.9
    assert 14.9 < angle.max() <= 15
    assert angle.std() == pytest.approx(30 / 12**0.5, rel=0.02)


def test_shearing_shifts_rows_by_whole_pixels():
    """amount 1 on 5 rows: row r, counted from the middle, slides by r."""
    x = images(2, H=5, W=9)
    out = warp(x, shearing(torch.ones(2)))
    for row in range(5):
        by = row - 2
        wanted = torch.zeros(2, 3, 9, dtype=x.dtype)
        wanted[..., max(-by, 0) : 9 - max(by, 0)] = x[:, :, row, max(by, 0) : 9 - max(-by, 0)]
        assert torch.equal(out[:, :, row], wanted)
    assert torch.equal(
        warp(x.transpose(2, 3), shearing(torch.ones(2), vertical=True)), out.transpose(2, 3)
    )


def test_roll_equals_numpy_and_draws_all_shifts():
    x = images(1, H=6, W=5).repeat(400, 1, 1, 1)
    out = Roll(2)(x)
    shifts = {
        np.roll(x[0].numpy(), (i, j), (1, 2)).tobytes(): (i, j)
        for i in range(-2, 3)
        for j in range(-2, 3)
    }
    seen = [shifts[sample.numpy().tobytes()] for sample in out]
    assert len(set(seen)) == 25
    assert max(seen.count(way) for way in shifts.values()) < 40


def test_flip_and_crop():
    x = images(1, H=6, W=5).repeat(2000, 1, 1, 1)
    flipped = (Flip(0.3)(x) == x.flip(-1)).flatten(1).all(1)
    assert flipped.float().mean() == pytest.approx(0.3, abs=0.04)
    padded = np.pad(x[0].numpy(), ((0, 0), (2, 2), (2, 2)))
    places = {padded[:, i : i + 6, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    assert {sample.numpy().tobytes() for sample in Crop(2)(x)} == places


def test_cutout_clips_its_square_at_the_border():
    x = torch.ones(4000, 1, 9, 7, dtype=torch.uint8)
    holes = 1 - Cutout(4)(x)[:, 0]
    sides = torch.stack([holes.amax(2).sum(1), holes.amax(1).sum(1)], 1)
    assert torch.equal(holes.sum((1, 2)), sides.prod(1))  # a filled rectangle
    assert sides.max() == 4
    assert sides.min() == 2
    assert holes.float().mean(0)[4, 3] == pytest.approx(16 / 63, rel=0.1)  # centres are uniform


# events


def test_event_drop_drops_single_events_spans_or_areas():
    T = 10
    x = torch.full((4000, T, 2, 12, 12), 3, dtype=torch.uint8)
    kept = EventDrop(0.5)(x)
    untouched = (kept == x).flatten(1).all(1)
    # whole timesteps are dropped
    steps = (kept == 0).flatten(2).all(2)
    partly = ((kept > 0) & (kept < x)).flatten(1).any(1)
    area = ~untouched & ~partly & ~steps.any(1)
    # 0.25, and small draws that drop nothing
    assert untouched.float().mean() == pytest.approx(0.25, abs=0.08)
    assert partly.float().mean() == pytest.approx(0.25, abs=0.03)
    assert steps.any(1).float().mean() == pytest.approx(0.25, abs=0.06)
    assert (steps[steps.any(1)].sum(1) <= T // 2 + 1).all()
    edges = (steps[:, 1:] != steps[:, :-1]).sum(1)
    assert (edges <= 2).all()  # one span
    holes = (kept[area] == 0).flatten(1, 2)
    assert (holes == holes[:, :1]).all()  # the same area at all times
    assert holes.float().mean((1, 2, 3)).max() <= 0.25
    assert 1 - kept[partly].float().mean() / 3 == pytest.approx(0.25, abs=0.03)


def test_one_of_gives_each_sample_one_choice():
    def plus(n):
        return lambda x: x + n

    x = torch.zeros(3000, 1, 1, 1)
    out = OneOf((plus(1), plus(2), plus(3)))(x).flatten().int()
    shares = torch.bincount(out, minlength=4) / len(x)
    assert shares[0] == 0
    assert shares[1:].tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


# mixing


def labels(B, K=5):
    return torch.nn.functional.one_hot(torch.arange(B) % K, K).float()


@pytest.mark.parametrize(
    "x", [torch.rand(8, 3, 6, 5), torch.rand(8, 4, 2, 6, 5)], ids=["images", "frames"]
)
@pytest.mark.parametrize("value", [Mixup(1.0), CutMix(1.0)], ids=repr)
def test_mixed_labels_are_the_shares_of_the_mixed_samples(value, x):
    """Sample i has the value i everywhere, so its mean gives the shares."""
    y = torch.eye(8)
    coded = torch.arange(8.0).view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    torch.manual_seed(0)
    mixed, share = value.mix(coded, y)
    assert share.sum(1).tolist() == pytest.approx([1.0] * 8)
    np.testing.assert_allclose(mixed.flatten(1).mean(1), share @ torch.arange(8.0), atol=1e-5)
    if x.dim() == 5:
        assert (mixed == mixed[:, :1]).all()
    assert len(share[share > 0]) > 8


def test_mixup_is_linear_and_its_weights_are_beta():
    x, y = torch.rand(20_000, 1, 1, 1), torch.zeros(20_000, 2)
    y[:, 0] = x.view(-1)
    mixed, share = Mixup(0.5).mix(x, y)
    np.testing.assert_allclose(mixed.view(-1), share[:, 0], atol=1e-6)
    own = Mixup(0.5).mix(x, torch.eye(2).repeat(10_000, 1))[1].amax(1)
    own = own[own < 1]  # Beta(1/2, 1/2), the larger share: mean 1/2 + 1/pi
    assert own.mean() == pytest.approx(0.5 + 1 / np.pi, abs=0.01)


def test_cutmix_boxes_have_the_shape_of_the_image_and_the_drawn_area():
    x = torch.arange(2.0).view(2, 1, 1, 1).repeat(3000, 1, 20, 30)
    mixed, share = CutMix(1.0).mix(x, torch.eye(2).repeat(3000, 1))
    changed = (mixed != x)[:, 0]
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(changed.sum((1, 2)), rows * columns)
    np.testing.assert_allclose(
        changed.float().mean((1, 2)), 1 - (share * torch.eye(2).repeat(3000, 1)).sum(1), atol=1e-6
    )
    border = changed[:, [0, -1]].any((1, 2)) | changed[:, :, [0, -1]].any((1, 2))
    inner = ~border & (rows > 3)
    assert (columns[inner] / rows[inner]).mean() == pytest.approx(1.5, abs=0.05)
    # half the area: sides of 0.707
    even = (CutMix(1e6).mix(x, torch.eye(2).repeat(3000, 1))[0] != x)[:, 0]
    assert (even.any(2).sum(1).max(), even.any(1).sum(1).max()) == (14, 21)


# AutoAugment against Pillow


def pillow(name, image, m):
    """The operation by Pillow, called as in the paper's code; m in [-1, 1]."""
    affine = {
        "shear_x": (1, 0.3 * m, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * m, 1, 0),
        "translate_x": (1, 0, int(m * 150 / 331 * image.width), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, int(m * 150 / 331 * image.height)),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    enhance = {
        "color": "Color",
        "contrast": "Contrast",
        "brightness": "Brightness",
        "sharpness": "Sharpness",
    }
    if name in enhance:
        return getattr(ImageEnhance, enhance[name])(image).enhance(1 + 0.9 * m)
    return {
        "rotate": lambda: image.rotate(30 * m),
        "invert": lambda: ImageOps.invert(image),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - abs(m))),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * abs(m))),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


def photographs(B=4, side=32):
    """Smooth random pictures; one has a narrow range of levels, one a constant channel."""
    rng = np.random.default_rng(0)
    coarse = torch.tensor(rng.random((B, 3, 5, 5)))
    x = torch.nn.functional.interpolate(coarse, side, mode="bicubic") + 0.05 * torch.tensor(
        rng.random((B, 3, side, side))
    )
    x[1] = x[1] * 0.2 + 0.4
    x[2, 1] = 0.5
    return (x.clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize("name", autoaugment.OPERATIONS)
def test_operations_equal_pillow(name):
    x = photographs()
    for strength in range(10):
        for sign in (-1, 1):
            m = sign * strength / 9
            ours = autoaugment.OPERATIONS[name](
                x, torch.full((len(x),), m, dtype=torch.float64)
            ).numpy()
            theirs = [
                np.array(
                    pillow(name, Image.fromarray(image.permute(1, 2, 0).numpy()), m)
                ).transpose(2, 0, 1)
                for image in x
            ]
            difference = np.abs(ours.astype(int) - np.stack(theirs))
            # points half-way between two pixels, as at strengths 2 and 6, may take either
            if name in ("rotate", "shear_x", "shear_y"):
                assert (difference == 0).mean() > (0.85 if strength in (2, 6) else 0.995)
            else:
                assert difference.max() <= 1  # float32 against C's float
                assert (difference > 0).mean() < 0.01


def test_each_image_gets_its_own_sub_policy():
    """One operation per sub-policy marks its number: all 25 occur, with their probability."""
    x = torch.zeros(20_000, 3, 1, 1, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        marks = [
            ((f"mark{i}", p, 0), ("nothing", 1.0, 0)) for i, ((_, p, _), _) in enumerate(POLICY)
        ]
        patch.setattr(autoaugment, "POLICY", tuple(marks))
        operations = {f"mark{i}": lambda x, m, i=i: x + i + 1 for i in range(25)} | {
            "nothing": lambda x, m: x
        }
        patch.setattr(autoaugment, "OPERATIONS", operations)
        out = AutoAugment()(x)
    seen = torch.bincount(out[:, 0, 0, 0].long(), minlength=26)[1:] / len(x)
    assert seen.tolist() == pytest.approx([p / 25 for (_, p, _), _ in POLICY], abs=0.006)


def test_signs_are_balanced_and_strengths_are_those_of_the_policy(monkeypatch):
    drawn = {}
    for name in autoaugment.OPERATIONS:
        monkeypatch.setitem(
            autoaugment.OPERATIONS,
            name,
            lambda x, m, name=name: drawn.setdefault(name, []).append(m) or x,
        )
    for _ in range(20):
        AutoAugment()(photographs(200, 4))
    translate = torch.cat(drawn["translate_y"])
    assert set((translate.abs() * 9).round().int().tolist()) == {3, 9}
    assert (translate > 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_auto_augment_gives_the_same_result_for_floats_and_bytes():
    x = photographs()
    torch.manual_seed(0)
    bytes_ = AutoAugment()(x)
    torch.manual_seed(0)
    floats = AutoAugment()(x.float() / 255)
    assert floats.dtype == torch.float32
    np.testing.assert_array_equal((floats * 255).round().to(torch.uint8), bytes_)
