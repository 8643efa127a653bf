"""DiffAugment against golden values of the released code, the textbook form, finite differences and expected areas."""

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import textbook
from semaug.core import pixels
from semaug.methods.diffaugment import OPERATIONS, DiffAugment, Draws, ada_step, color, translation

ROOT = Path(__file__).parents[3]


def field(n, c, h, w):
    """x[n,c,i,j] = sin(0.1 n + 0.2 c + 0.05 i - 0.07 j), the images of the golden values."""
    n, c, i, j = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (n, c, h, w)), indexing="ij")
    return torch.sin(0.1 * n + 0.2 * c + 0.05 * i - 0.07 * j)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws_of(n, side, seed=0):
    """Draws over their whole ranges, float64."""
    b, s, c = torch.rand(3, n, generator=generator(seed), dtype=torch.float64)
    reach = int(side / 8 + 0.5)
    dy, dx = torch.randint(-reach, reach + 1, (2, n), generator=generator(seed))
    cy, cx = torch.randint(0, side + 1, (2, n), generator=generator(seed))
    return Draws(b - 0.5, 2 * s, c + 0.5, dy, dx, cy, cx)


# --- golden values ------------------------------------------------------------------------------------------------

BRIGHTNESS = torch.tensor([0.1, 0.9, 0.5, 0.3], dtype=torch.float64) - 0.5
SATURATION = 2 * torch.tensor([0.25, 0.5, 0.75, 0.1], dtype=torch.float64)
CONTRAST = torch.tensor([0, 0.6, 0.5, 0.99], dtype=torch.float64) + 0.5
ONE, ZERO = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("draws", "total", "squares", "first", "last"),
    [
        (
            (BRIGHTNESS, ONE, ONE),
            165.70160619726937,
            158.8500812360765,
            [-0.4, -0.4699428473375328, -0.5395431146442365, -0.6084598998460996],
            [0.4961352386273567, 0.444217687237691, 0.3891447579422695, 0.3311861979208834],
        ),
        (
            (BRIGHTNESS, SATURATION, ONE),
            165.70160619726937,
            156.83773886956288,
            [-0.30198538781604806, -0.371015703055928, -0.4401879833675577, -0.5091634229570108],
            [0.3651957728791482, 0.3072871194484005, 0.24689377396356557, 0.1843115430002352],
        ),
        (
            (BRIGHTNESS, SATURATION, CONTRAST),
            165.70160619726937,
            160.43868947188017,
            [-0.28827003559749964, -0.3227851932174396, -0.35737133337325444, -0.391859053167981],
            [0.44447541179491135, 0.3581915181830973, 0.2682054334106933, 0.17495790927533103],
        ),
    ],
)
def test_color_golden(draws, total, squares, first, last):
    out = color(field(4, 3, 8, 8), *draws)
    assert out.sum().item() == pytest.approx(total, rel=1e-10)
    assert out.square().sum().item() == pytest.approx(squares, rel=1e-10)
    assert out.flatten()[:4].tolist() == pytest.approx(first, abs=1e-10)
    assert out.flatten()[-4:].tolist() == pytest.approx(last, abs=1e-10)


def test_translation_golden():
    out = translation(field(4, 3, 8, 8), torch.tensor([1, -1, 0, 1]), torch.tensor([0, 1, -1, -1]))
    assert out.sum().item() == pytest.approx(174.7820190487672, rel=1e-10)
    assert out.square().sum().item() == pytest.approx(90.57825992835156, rel=1e-10)
    first = [0.04997916927067833, -0.019998666693333084, -0.08987854919801105, -0.159318206614246]
    assert out.flatten()[:4].tolist() == pytest.approx(first, abs=1e-10)
    assert out.flatten()[-4:].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("side", "reach"), [(128, 16), (224, 28), (256, 32), (28, 4), (32, 4), (4, 1), (64, 8), (8, 1), (96, 12)]
)
def test_the_largest_shift_golden(side, reach):
    drawn = DiffAugment("translation").draw(torch.zeros(1, 1, side, side).expand(4000, -1, -1, -1), generator())
    for shift in (drawn.dy, drawn.dx):
        assert (int(shift.min()), int(shift.max())) == (-reach, reach)


@pytest.mark.parametrize(("side", "share"), [(8, 0.17361111111111113), (32, 0.18646694214876033)])
def test_the_share_that_cutout_takes_golden(side, share):
    """Over all middles of the range, each as likely; a window at the edge is cut."""
    middles = torch.arange(side + 1)
    cy, cx = (each.flatten() for each in torch.meshgrid(middles, middles, indexing="ij"))
    out = DiffAugment("cutout").apply_draws(torch.ones(len(cy), 1, side, side), Draws(cy=cy, cx=cx))
    assert (out == 0).double().mean().item() == pytest.approx(share, rel=1e-12)
    drawn = DiffAugment("cutout").draw(torch.zeros(1, 1, side, side).expand(4000, -1, -1, -1), generator())
    assert set(drawn.cy.tolist()) == set(drawn.cx.tolist()) == set(range(side + 1))


@pytest.mark.parametrize(("batch", "step"), [(16, 0.000128), (64, 0.000512)])
def test_ada_step_golden(batch, step):
    sure = torch.tensor([3.0, 0.2, 1.0, -0.1, 5.0])  # mean sign .6: where it is to stay
    assert ada_step(0.25, sure, 4 * batch).item() == 0.25
    assert ada_step(0.25, sure[:3], 4 * batch).item() == pytest.approx(0.25 + step, abs=1e-15)
    assert ada_step(0.25, sure[2:4], 4 * batch).item() == pytest.approx(0.25 - step, abs=1e-15)
    assert ada_step(step / 2, -sure, 4 * batch).item() == 0
    assert ada_step(torch.tensor(1 - step / 2), sure[:3], 4 * batch).item() == 1


# --- the textbook form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "translation,cutout", ",".join(OPERATIONS)])
def test_the_textbook_form(policy, channels):
    """Values, gradient and the gradient of its square, on images that are not square; cutout clipped on every side."""
    images = torch.randn(40, channels, 12, 16, dtype=torch.float64, generator=generator(), requires_grad=True)
    drawn = draws_of(40, 12)
    upstream = torch.randn(images.shape, dtype=torch.float64, generator=generator(1))
    expected = images
    wanted = dict.fromkeys(Draws._fields)
    if "color" in policy:
        expected = textbook.color(expected, *drawn[:3])
        wanted |= {name: getattr(drawn, name) for name in Draws._fields[:3]}
    if "translation" in policy:
        expected = textbook.translation(expected, *drawn[3:5])
        wanted |= {"dy": drawn.dy, "dx": drawn.dx}
    if "cutout" in policy:
        expected = textbook.cutout(expected, *drawn[5:], (6, 8))
        wanted |= {"cy": drawn.cy, "cx": drawn.cx}
    out = DiffAugment(policy).apply_draws(images, Draws(**wanted))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    slopes = [torch.autograd.grad(each, images, upstream, retain_graph=True)[0] for each in (out, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-14)


def test_color_keeps_the_sum_of_the_gradient_and_knows_its_identity():
    images = torch.randn(6, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    drawn = draws_of(6, 8)
    (slope,) = torch.autograd.grad(color(images, *drawn[:3]).sum(), images)
    torch.testing.assert_close(slope, torch.ones_like(slope))
    torch.testing.assert_close(color(images, torch.zeros(6), torch.ones(6), torch.ones(6)), images)


def test_half_precision_is_computed_in_float32():
    images, drawn = torch.randn(6, 3, 8, 8, generator=generator()), draws_of(6, 8)
    half = color(images.bfloat16(), *drawn[:3])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, color(images.bfloat16().float(), *drawn[:3]).bfloat16(), rtol=0, atol=0)


# --- derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", ",".join(OPERATIONS)])
def test_first_and_second_derivatives_by_finite_differences(policy):
    augment = DiffAugment(policy)
    images = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=generator(), requires_grad=True)
    drawn = augment.draw(images, generator())
    apply = lambda x: augment.apply_draws(x, drawn)  # noqa: E731
    assert torch.autograd.gradcheck(apply, (images,))
    assert torch.autograd.gradgradcheck(lambda x: apply(x.sin()).square(), (images,))
    assert torch.autograd.gradgradcheck(apply, (images,))


def test_color_is_differentiable_in_its_draws():
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    draws = [draw[:3].clone().requires_grad_() for draw in draws_of(3, 8)[:3]]
    assert torch.autograd.gradcheck(color, (images, *draws))
    assert torch.autograd.gradgradcheck(color, (images, *draws))


def test_r1_through_the_transformation():
    """|grad_x D(T(x))|^2 and its gradient in the parameters, as through the textbook form."""
    images, drawn = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator()), draws_of(6, 8)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=generator(), requires_grad=True)
    augment = DiffAugment()

    def penalty(transform):
        x = images.clone().requires_grad_()
        scores = F.conv2d(transform(x), weight).square().sum()
        (slope,) = torch.autograd.grad(scores, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    def by_the_book(x):
        x = textbook.translation(textbook.color(x, *drawn[:3]), *drawn[3:5])
        return textbook.cutout(x, *drawn[5:], (4, 4))

    torch.testing.assert_close(penalty(lambda x: augment.apply_draws(x, drawn)), penalty(by_the_book))


def test_the_gradient_never_scatters():
    """Its transpose is a gather: the same on every device, run after run."""
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    out = DiffAugment("translation,cutout")(images, generator())
    names, queue = set(), [out.grad_fn]
    while queue:
        node = queue.pop()
        names.add(node.name())
        queue += [following for following, _ in node.next_functions if following is not None]
    assert "_GatherBackward" in names
    assert not any("Scatter" in name or name in ("GatherBackward0", "IndexBackward0") for name in names)


def test_torch_func_agrees_with_autograd():
    augment, images = DiffAugment(), torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    drawn = augment.draw(images, generator())

    def energy(x):
        return augment.apply_draws(x, drawn).square().sum()

    expected = torch.autograd.grad(energy(images), images)[0]
    torch.testing.assert_close(torch.func.grad(energy)(images.detach()), expected)


def test_compiles_whole_without_a_break():
    """In a process of its own: the shape checks of the tests cannot be captured inside an autograd function."""
    script = """
import torch
from semaug.methods.diffaugment import DiffAugment
augment, images = DiffAugment(), torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
drawn = augment.draw(images, torch.Generator().manual_seed(0))
def energy(x):
    return augment.apply_draws(x, drawn).square().sum()
compiled = torch.compile(energy, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(torch.autograd.grad(compiled(images), images), torch.autograd.grad(energy(images), images))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# --- draws --------------------------------------------------------------------------------------------------------


def test_every_image_has_draws_of_its_own_over_the_released_ranges():
    n = 20000
    drawn = DiffAugment().draw(torch.zeros(n, 3, 32, 32), generator())
    for draw, low, high in ((drawn.brightness, -0.5, 0.5), (drawn.saturation, 0.0, 2.0), (drawn.contrast, 0.5, 1.5)):
        assert low <= draw.min() < low + 0.01
        assert high - 0.01 < draw.max() < high
        # the mean of n uniform draws is off by (high - low) / sqrt(12 n); four of these
        assert draw.mean().item() == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * n))
    shifts = torch.bincount(drawn.dy + 4, minlength=9)
    assert len(shifts) == 9
    assert shifts.min() > 0.85 * n / 9  # 6 standard deviations of a count
    pairs = torch.stack([draw.double() for draw in drawn])
    off_diagonal = torch.corrcoef(pairs) - torch.eye(7)
    assert off_diagonal.abs().max() < 5 / math.sqrt(n), "draws of one image are independent of each other"


def test_a_generator_decides_everything_and_the_global_one_is_left_alone():
    images, before = torch.rand(5, 3, 16, 16), torch.get_rng_state()
    augment = DiffAugment()
    first, again, other = (augment(images, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    one = generator(3)
    augment(images, one)
    assert not torch.equal(augment(images, one), first), "the generator moves on"


def test_a_pair_moves_alike():
    augment, images = DiffAugment(), torch.rand(6, 3, 16, 16) + 0.1
    mask = (images[:, :1] > 0.6).float()
    drawn = augment.draw(images, generator())
    moved = augment.apply_draws(mask, drawn._replace(brightness=None))
    expected = pixels.cutout(translation(mask, drawn.dy, drawn.dx), drawn.cy, drawn.cx, 8)
    assert torch.equal(moved, expected)
    both = augment.apply_draws(torch.cat([images, images]), Draws(*(torch.cat([d, d]) for d in drawn)))
    assert torch.equal(*both.chunk(2))


POLICIES = [",".join(names) for k in (1, 2, 3) for names in itertools.permutations(OPERATIONS, k)]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_of_the_policy_is_that_of_draws_and_operations(policy):
    """The textbook's operations one after the other, each with its draws before it, as the released loop has them."""
    images = torch.randn(30, 3, 12, 16, generator=generator()).clamp(-1, 1).requires_grad_()
    draws, expected, n = generator(5), images, 30
    for name in policy.split(","):
        if name == "color":
            b, s, c = (torch.rand(n, generator=draws) for _ in range(3))
            expected = textbook.color(expected, b - 0.5, 2 * s, c + 0.5)
        elif name == "translation":
            shifts = [torch.randint(-reach, reach + 1, (n,), generator=draws) for reach in (2, 2)]
            expected = textbook.translation(expected, *shifts)
        else:
            centres = [torch.randint(0, side + 1, (n,), generator=draws) for side in (12, 16)]
            expected = textbook.cutout(expected, *centres, (6, 8))
    augment = DiffAugment(policy)
    found = augment(images, generator(5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    upstream = torch.randn(images.shape, generator=generator(1))
    slopes = [torch.autograd.grad(each, images, upstream)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-6)
    assert augment.policy == policy
    assert DiffAugment(augment.policy).names == augment.names


def test_colour_after_cutout_fills_the_window():
    images = torch.rand(6, 3, 16, 16) + 0.1
    black = {policy: int((DiffAugment(policy)(images, generator()) == 0).sum()) for policy in POLICIES}
    assert black["color,cutout"] > 500
    assert black["cutout,color"] == 0
    assert DiffAugment(" cutout, color ").policy == "cutout,color"


FIELDS = {"color": ("brightness", "saturation", "contrast"), "translation": ("dy", "dx"), "cutout": ("cy", "cx")}


@pytest.mark.parametrize(
    ("operation", "name"), [(operation, name) for operation in FIELDS for name in FIELDS[operation]]
)
def test_an_operation_that_lacks_a_draw_is_left_out(operation, name):
    images, augment = torch.rand(5, 3, 16, 16), DiffAugment()
    draws = augment.draw(images, generator())
    others = DiffAugment(",".join(other for other in OPERATIONS if other != operation))
    found = augment.apply_draws(images, draws._replace(**{name: None}))
    assert torch.equal(found, others.apply_draws(images, draws))


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_each_operation_is_applied_with_a_probability(probability):
    n, images = 4000, torch.full((4000, 1, 8, 8), 0.5)
    augment = DiffAugment(probability=probability)
    drawn = augment.draw(images, generator())
    changed = {
        "brightness": drawn.brightness != 0,
        "saturation": drawn.saturation != 1,
        "contrast": drawn.contrast != 1,
        "cutout": (pixels.cutout(torch.ones(n, 1, 8, 8), drawn.cy, drawn.cx, 4) == 0).flatten(1).any(1),
    }
    for name, each in changed.items():
        deviation = math.sqrt(probability * (1 - probability) / n)
        assert each.double().mean().item() == pytest.approx(probability, abs=4 * deviation), name
    if not probability:
        assert torch.equal(augment.apply_draws(images, drawn), images)
        assert torch.equal(DiffAugment("cutout,color,translation", probability=0.0)(images, generator()), images)
    augment.probability.copy_(ada_step(augment.probability, torch.ones(4), 100_000))
    moved = augment.draw(images, generator()).brightness != 0
    assert moved.double().mean().item() == pytest.approx(probability + 0.2, abs=4 * math.sqrt(0.25 / n))
    assert augment.state_dict()["probability"] == pytest.approx(probability + 0.2)


@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_the_probability_may_move_to_any_value_wherever_it_started(start):
    images, augment = torch.rand(64, 1, 8, 8) + 0.1, DiffAugment(probability=start)
    augment.probability.fill_(0)
    assert torch.equal(augment(images, generator()), images)
    augment.probability.fill_(1)
    assert torch.equal(augment(images, generator()), DiffAugment()(images, generator()))


def test_without_a_probability_there_is_none_to_move():
    augment = DiffAugment()
    assert augment.probability is None
    assert augment.state_dict() == {}
    assert repr(augment) == "DiffAugment(color,translation,cutout)"
    draws, plain = generator(), generator()
    augment.draw(torch.zeros(3, 1, 8, 8), draws)
    DiffAugment(probability=0.5).draw(torch.zeros(3, 1, 8, 8), plain)
    assert not torch.equal(draws.get_state(), plain.get_state()), "nothing is drawn for it"


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["", "  ", "colour", "color,color", "color,,cutout", "none"])
def test_a_policy_that_is_none_is_named(policy):
    message = f"policy: got {policy!r}; takes one or more of color, translation, cutout, each once, joined by commas"
    with pytest.raises(ValueError, match=message):
        DiffAugment(policy)


@pytest.mark.parametrize(
    ("magnitude", "message"),
    [
        ({"cutout": 1.0}, r"cutout: got 1.0; takes a finite number in \(0, 1\)"),
        ({"translation": 0}, r"translation: got 0; takes a finite number in \(0, 1\)"),
        ({"contrast": 1.0}, r"contrast: got 1.0; takes a finite number in \[0, 1\)"),
        ({"saturation": -0.1}, r"saturation: got -0.1; takes a finite number in \[0, 1\]"),
        ({"brightness": float("nan")}, r"brightness: got nan; takes a finite number in \[0, 1\]"),
        ({"brightness": True}, r"brightness: got True; takes a finite number in \[0, 1\]"),
        ({"cutout": "0.5"}, r"cutout: got '0.5'; takes a finite number in \(0, 1\)"),
        ({"probability": 1.5}, r"probability: got 1.5; takes a finite number in \[0, 1\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_magnitude_that_erases_the_image(magnitude, message):
    with pytest.raises(ValueError, match=message):
        DiffAugment(**magnitude)


def test_a_magnitude_that_erases_a_small_image():
    with pytest.raises(ValueError, match=r"cutout: got 0.9; takes less than all of the 4 pixels"):
        DiffAugment("cutout", cutout=0.9)(torch.rand(2, 1, 4, 4), generator())
    with pytest.raises(ValueError, match=r"translation: got 0.9; takes less than all of the 4 pixels"):
        DiffAugment("translation", translation=0.9)(torch.rand(2, 1, 4, 4), generator())


def test_every_batch_is_looked_at():
    """On the CPU, where a look does not wait."""
    augment, images = DiffAugment(), torch.rand(2, 1, 8, 8)
    augment(images, generator())
    for spoiled in (images - math.nan, 255 * images):
        with pytest.raises(ValueError, match="images: got values up to"):
            augment(spoiled, generator())


def test_what_was_refused_once_is_refused_again_and_colour_asks_nothing_of_cutouts_window():
    augment = DiffAugment()
    for _ in range(2):
        with pytest.raises(ValueError, match="images: got values up to"):
            augment(255 * torch.ones(2, 1, 8, 8), generator())
    assert augment(torch.ones(2, 1, 8, 8), generator()).shape == (2, 1, 8, 8)
    assert DiffAugment("color")(torch.rand(2, 3, 1, 1), generator()).shape == (2, 3, 1, 1)


@dataclass
class Bad:
    call: object
    error: type
    message: str


FLOATS, WHOLE = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
IMAGES = torch.rand(2, 3, 8, 8)
BAD = [
    Bad(lambda: DiffAugment()(IMAGES.mul(255).byte(), generator()), TypeError, "images: got torch.uint8; takes floats"),
    Bad(lambda: DiffAugment()(IMAGES[0], generator()), ValueError, r"images: got shape \(3, 8, 8\); takes \(N, channe"),
    Bad(lambda: DiffAugment()(255 * IMAGES, generator()), ValueError, r"images: got values up to 25.* in size; takes"),
    Bad(lambda: DiffAugment()(IMAGES / 0, generator()), ValueError, r"images: got values up to inf in size; takes \[0"),
    Bad(lambda: DiffAugment()(IMAGES - math.nan, generator()), ValueError, r"images: got values up to nan in size"),
    Bad(lambda: color(IMAGES.int(), FLOATS, FLOATS, FLOATS), TypeError, "images: got torch.int32; takes floats"),
    Bad(lambda: color(IMAGES, FLOATS[:1], FLOATS, FLOATS), ValueError, r"brightness: got torch.float32 \(1,\); takes"),
    Bad(lambda: color(IMAGES, FLOATS, WHOLE, FLOATS), ValueError, r"saturation: got torch.int64 \(2,\); takes floats"),
    Bad(lambda: translation(IMAGES, FLOATS, WHOLE), ValueError, r"dy: got torch.float32 \(2,\); takes int64 \(2,\)"),
    Bad(lambda: translation(IMAGES, WHOLE, WHOLE - 8), ValueError, r"dx: got 8; takes pixels below the side, 8"),
    Bad(
        lambda: DiffAugment().apply_draws(IMAGES, Draws(cy=WHOLE, cx=WHOLE[:1])),
        ValueError,
        r"cx: got torch.int64 \(1,\)",
    ),
    Bad(lambda: DiffAugment(None), ValueError, "policy: got None; takes one or more of color"),
    Bad(lambda: ada_step(-0.1, FLOATS, 4), ValueError, r"probability: got -0.1; takes a finite number in \[0, 1\]"),
    Bad(lambda: ada_step(0.1, FLOATS / 0, 4), ValueError, "real_logits: got nan; takes numbers"),
    Bad(lambda: ada_step(0.1, FLOATS, 4, target=math.nan), ValueError, "target: got nan; takes a finite number"),
    Bad(lambda: ada_step(0.1, FLOATS, 4, span=0.5), ValueError, "span: got 0.5; takes a finite number from 1"),
    Bad(lambda: ada_step(0.1, FLOATS[:0], 4), ValueError, r"real_logits: got \(0,\); takes one at least"),
    Bad(lambda: ada_step(0.1, FLOATS, 0), ValueError, "images: got 0; takes a whole number from 1"),
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(bad):
    with pytest.raises(bad.error, match=bad.message):
        bad.call()
