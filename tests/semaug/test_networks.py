"""Networks against the papers' parameter counts, torchvision's ResNet-18, and their own composition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from semaug import networks

# One of each family, as small as it goes, for what every network has to do.
TINY = {
    "small": lambda **options: networks.small(5, width=8, **options),
    "resnet": lambda **options: networks.resnet(5, 8, channels=1, **options),
    "resnet18": lambda **options: networks.resnet18(5, channels=1, **options),
    "resnext": lambda **options: networks.resnext(5, 1, blocks=(1, 1), groups=4, group_width=2, **options),
    "wide_resnet": lambda **options: networks.wide_resnet(5, 10, 1, channels=1, **options),
}
FEATURES = {"small": 32, "resnet": 64, "resnet18": 512, "resnext": 512, "wide_resnet": 64}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Millions, to the digits He et al. (table 6) and Zagoruyko and Komodakis print. ResNet-18: torchvision's count for 1000
# classes and large images, less what a 3x3 stem has not of a 7x7 one, and less 990 rows of the head with their bias.
@pytest.mark.parametrize(
    ("network", "millions", "digits"),
    [
        (lambda: networks.resnet(10, 20), 0.27, 2),
        (lambda: networks.resnet(10, 32), 0.46, 2),
        (lambda: networks.resnet(10, 44), 0.66, 2),
        (lambda: networks.resnet(10, 56), 0.85, 2),
        (lambda: networks.resnet(10, 110), 1.7, 1),
        (lambda: networks.wide_resnet(10, 16, 8), 11.0, 1),
        (lambda: networks.wide_resnet(10, 40, 4), 8.9, 1),
        (lambda: networks.wide_resnet(10, 40, 2), 2.2, 1),
        (lambda: networks.wide_resnet(10, 28, 10, dropout=0.3), 36.5, 1),
        (lambda: networks.resnet18(10), 11.689512 - 64 * 3 * (49 - 9) / 1e6 - 513 * 990 / 1e6, 6),
    ],
)
def test_parameter_counts_of_the_papers(network, millions, digits):
    with torch.device("meta"):  # shapes alone: WRN-28-10 would take a second to draw
        assert round(parameters(network()) / 1e6, digits) == pytest.approx(millions, abs=1e-9)


def test_resnet_shortcuts_have_no_parameters():
    """Option A: twice n blocks of each width, two 3x3 convolutions and their norms, and nothing else."""
    n, widths = 5, (16, 32, 64)
    count = 3 * 9 * 16 + 2 * 16 + 64 * 10 + 10
    for before, width in zip((16, *widths), widths, strict=False):
        count += 9 * width * (before + (2 * n - 1) * width) + 2 * n * 2 * width
    assert parameters(networks.resnet(10, 6 * n + 2)) == count


def test_resnet_shortcuts_of_the_releases():
    """New channels after, on both sides as F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, C // 4, C // 4)) has them, or 1x1."""
    maps = torch.rand(2, 16, 6, 6)
    after, both = (networks.resnet(10, 8, shortcut=kind).stages[2][0].shortcut for kind in ("pad", "pad both"))
    assert torch.equal(after(maps), F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16)))
    assert torch.equal(both(maps), F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
    project = networks.resnet(10, 8, shortcut="project")
    assert parameters(project) == parameters(networks.resnet(10, 8)) + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    names = [networks.resnet(10, 8, shortcut=kind).name for kind in networks.SHORTCUTS]
    assert names == ["resnet8", "resnet8(shortcut=pad both)", "resnet8(shortcut=project)"]
    assert networks.resnet(10, 8, shortcut="pad both")(torch.rand(2, 3, 12, 12)).shape == (2, 10)


def test_quick_network_size():
    assert parameters(networks.small(10)) == 77_754


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(torchvision.models.resnet18, networks.resnet18), (torchvision.models.resnext50_32x4d, networks.resnext)],
)
def test_torchvisions_with_another_stem(theirs, ours):
    theirs = theirs(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = ours(10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    values = list(theirs.state_dict().values())
    names = [name for name in ours.state_dict() if not name.endswith((".mean", ".std"))]  # Normalise has these two
    assert len(names) == len(values)
    ours.load_state_dict(dict(zip(names, values, strict=True)), strict=False)

    images = torch.rand(4, 3, 32, 32)
    normalised = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    for train in (True, False):
        # float32 through 18 or 50 layers: the same operations, perhaps by other kernels
        torch.testing.assert_close(ours.train(train)(images), theirs.train(train)(normalised), rtol=1e-4, atol=1e-4)


def test_vit_layer_is_torchvisions_and_places_are_maps():
    from torchvision.models.vision_transformer import EncoderBlock

    torch.manual_seed(0)
    encoder = networks.Encoder(16, 1, 4, last=True).train()
    block = EncoderBlock(4, 16, 64, 0.0, 0.0)
    names = {"self_attn": "self_attention", "linear1": "mlp.0", "linear2": "mlp.3", "norm1": "ln_1", "norm2": "ln_2"}
    state = {}
    for name, value in encoder.layers[0].state_dict().items():
        part, rest = name.split(".", 1)
        state[f"{names[part]}.{rest}"] = value
    block.load_state_dict(state)
    maps = torch.randn(2, 16, 3, 5)
    places = block(maps.flatten(2).transpose(1, 2))
    expected = F.layer_norm(places, (16,)).transpose(1, 2).reshape(2, 16, 3, 5)
    torch.testing.assert_close(encoder(maps), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # torch has another way to compute it then
        torch.testing.assert_close(encoder.eval()(maps), expected, rtol=1e-4, atol=1e-5)


def test_vit_positions_by_hand():
    maps = torch.rand(1, 8, 3, 4)
    added = (networks.Positions()(maps) - maps)[0]
    for y in range(3):
        for x in range(4):
            angles = [(y, 1.0), (y, 1e-4), (x, 1.0), (x, 1e-4)]
            sines, cosines = ([f(place * rate) for place, rate in angles] for f in (math.sin, math.cos))
            expected = [*sines[:2], *cosines[:2], *sines[2:], *cosines[2:]]
            torch.testing.assert_close(added[:, y, x], torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_vit_composes_takes_any_size_and_trains():
    torch.manual_seed(0)
    network = networks.vit(5, 1, width=16, depth=3, heads=2)
    for side in (16, 28):
        maps = images = torch.rand(3, 1, side, side)
        for stage in network.stages:
            maps = stage(maps)
        assert maps.shape == (3, 16, side // 4, side // 4)
        torch.testing.assert_close(network.features(images), maps.mean((2, 3)))
    assert len(network.stages) == 4
    assert network.static
    assert round(parameters(networks.vit(10, 1)) / 1e6, 1) == 0.3
    images, target = torch.rand(10, 1, 16, 16), torch.arange(10) % 5
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), target)
        loss.backward()
        optimizer.step()
    assert loss < 0.3, "ten images by heart"
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.usefixtures("unchecked")
def test_vit_takes_whole_patches():
    """A convolution would leave out what is over, without a word."""
    network = networks.vit(5, 1, width=16, depth=3, heads=2)
    for shape in ((18, 16), (16, 30)):
        with pytest.raises(ValueError, match=f"images: got {shape[0]} x {shape[1]} pixels; takes multiples"):
            network(torch.rand(2, 1, *shape))


def test_names_of_resnext_and_vit_tell_them_apart():
    with torch.device("meta"):
        made = [networks.resnext(2), networks.resnext(2, blocks=(1, 1, 1), groups=8), networks.vit(2, width=32)]
        made += [networks.resnext(2, group_width=8), networks.vit(2, mean=0.4)]
    assert [network.name for network in made] == [
        "resnext50-32x4d",
        "resnext11-1.1.1-8x4d",
        "vit-4-32-6-4",
        "resnext50-32x8d",
        "vit-4-64-6-4(mean=0.4)",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.resnext(2, blocks=()), "blocks: got 0; takes a whole number from 1"),
        (lambda: networks.resnext(2, groups=0), "groups: got 0"),
        (lambda: networks.vit(2, width=10), "width: got 10; takes a multiple of 4 and of heads, 4"),
        (lambda: networks.vit(2, depth=4), "depth: got 4; takes a multiple of 3"),
        (lambda: networks.vit(2, patch=0), "patch: got 0"),
    ],
)
def test_resnext_and_vit_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pad_shortcut_by_hand():
    maps = torch.rand(2, 3, 5, 4)
    out = networks.PadShortcut(3, 7, 2)(maps)
    assert out.shape == (2, 7, 3, 2)
    for i in range(3):
        for j in range(2):
            assert torch.equal(out[:, :3, i, j], maps[:, :, 2 * i, 2 * j])
    assert not out[:, 3:].any()


def test_pre_activation_block_by_hand():
    """The projection sees the activated input, the identity the raw one."""
    maps = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    for outputs, stride in [(16, 1), (32, 2)]:
        block = networks.PreActivationBlock(16, outputs, stride, 0.0, "batch").double()

        def normalised(x):
            return (
                (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            ).relu()

        active = normalised(maps)
        residual = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
        residual = F.conv2d(normalised(residual), block.conv2.weight, padding=1)
        shortcut = maps if block.project is None else F.conv2d(active, block.project.weight, stride=stride)
        torch.testing.assert_close(block(maps), shortcut + residual)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("norm", networks.NORMS)
def test_parts_compose_to_the_whole(family, norm):
    network = TINY[family](norm=norm).eval()
    images = torch.rand(3, 1, 16, 16)
    maps = images
    for stage in network.stages:
        maps = stage(maps)
    features = network.features(images)
    assert features.shape == (3, FEATURES[family]) == (3, network.num_features)
    assert torch.equal(network.pool(maps), features)
    torch.testing.assert_close(features, maps.flatten(2).mean(2))
    torch.testing.assert_close(network(images), features @ network.head.weight.T + network.head.bias)
    assert network(images).shape == (3, 5) == (3, network.num_classes)
    assert (maps >= 0).all()  # class activation maps need the last relu inside the last stage


@pytest.mark.parametrize("family", TINY)
def test_normalisation_is_the_first_layer(family):
    """A network told mean and std equals one that is not, on images normalised by hand."""
    images = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    network = TINY[family](mean=0.3, std=0.2).double().eval()
    plain = TINY[family](mean=0.0, std=1.0).double().eval()
    state = {name: value for name, value in network.state_dict().items() if not name.endswith((".mean", ".std"))}
    plain.load_state_dict(state, strict=False)
    # the two numbers are float32 in the network: .3 and .2 hold to 6e-8
    torch.testing.assert_close(network(images), plain((images - 0.3) / 0.2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", TINY)
def test_same_seed_same_bits(family):
    def gradients():
        torch.manual_seed(3)
        network = TINY[family]()
        F.cross_entropy(network(torch.rand(6, 1, 16, 16)), torch.arange(6) % 5).backward()
        return [parameter.grad for parameter in network.parameters()]

    for one, two in zip(gradients(), gradients(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("family", TINY)
def test_training_and_evaluation_mode(family):
    network = TINY[family]()
    images = torch.rand(4, 1, 16, 16)
    before = copy.deepcopy(network.state_dict())
    network.eval()
    # BatchNorm in evaluation mode: an image's logits do not depend on its batch; other batch sizes, other kernels
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()(images)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "running" in name or "num_batches" in name}


def test_dropout_drops_in_training_alone():
    network = networks.wide_resnet(5, 10, 1, dropout=0.3, channels=1, norm="group")
    images = torch.rand(4, 1, 16, 16)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("family", TINY)
def test_group_norm_knows_no_batch(family):
    """In training mode too: what two data-parallel processes need to equal one, here to float64's rounding."""
    network = TINY[family](norm="group").double()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    images = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    halves = torch.cat([network(images[:2]), network(images[2:])])
    torch.testing.assert_close(network(images), halves, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [28, 32, 17])
def test_image_sides(side):
    for make in TINY.values():
        assert make()(torch.rand(2, 1, side, side)).shape == (2, 5)


def test_float_images_of_any_precision_are_taken():
    network = TINY["small"]().double()
    assert network(torch.rand(2, 1, 16, 16)).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert TINY["small"]()(torch.rand(2, 1, 16, 16)).isfinite().all()


def test_convolutions_start_as_he_et_al():
    """Standard deviation sqrt(2 / (k^2 c_out)): 147,456 draws estimate it to 1 / sqrt(2 n) = .2%, tested at 5 sigma."""
    for name, parameter in networks.resnet18(10).named_parameters():
        if parameter.ndim == 4 and parameter.shape[1] > 3:
            outputs, _, size, _ = parameter.shape
            expected = math.sqrt(2 / (size * size * outputs))
            tolerance = 5 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=tolerance), name


@pytest.mark.parametrize("family", TINY)
def test_channels_last_gives_the_same(family):
    network = TINY[family]().eval()
    images = torch.rand(3, 1, 16, 16)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_whole_graph_compiles():
    """No graph break, checks included; the eager backend leaves out only code generation, which takes half a minute."""
    for make in TINY.values():
        torch.compiler.reset()  # what other tests of the process compiled counts against a limit
        network = make().eval()
        images = torch.rand(2, 1, 16, 16)
        compiled = torch.compile(network.features, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), network.features(images))


def test_name_tells_what_differs_from_the_default():
    assert networks.small(10).name == "small"
    assert networks.resnet(10, 110).name == "resnet110"
    assert networks.wide_resnet(10, 28, 10).name == "wrn-28-10"
    assert networks.wide_resnet(10, 16, 1, 0.3, norm="group").name == "wrn-16-1(dropout=0.3, norm=group)"
    assert networks.small(10, mean=0.2860, std=0.3530).name == "small(mean=0.286, std=0.353)"


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize("part", [lambda network: network, lambda network: network.features])
    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (
                torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
                TypeError,
                r"images: got torch\.uint8; takes floats in \[0, 1\]",
            ),
            (torch.zeros(2, 1, 16, 16, dtype=torch.int64), TypeError, r"images: got torch\.int64"),
            (torch.zeros(2, 3, 16, 16), ValueError, r"images: got shape \(2, 3, 16, 16\); takes \(N, 1, H, W\)"),
            (torch.zeros(1, 16, 16), ValueError, r"images: got shape \(1, 16, 16\); takes \(N, 1, H, W\)"),
            (torch.zeros(2, 1, 16, 16, device="meta"), ValueError, "images: got device meta; takes cpu"),
        ],
    )
    def test_images(self, part, images, error, message):
        with pytest.raises(error, match=message):
            part(TINY["small"]())(images)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: networks.small(0), "num_classes: got 0; takes a whole number from 1"),
            (lambda: networks.small(10, 0), "channels: got 0"),
            (lambda: networks.small(10, width=1.5), "width: got 1.5"),
            (lambda: networks.small(10, norm="layer"), "norm: got 'layer'; takes one of batch, group"),
            (
                lambda: networks.small(10, 3, mean=(0.5, 0.5)),
                "mean: got .*; takes one number, or one for each of 3 channels",
            ),
            (lambda: networks.small(10, std=0.0), "std: got 0.0; takes a finite number above 0"),
            (lambda: networks.small(10, 2, std=(0.2, math.nan)), "std: got nan"),
            (lambda: networks.resnet(10, 33), r"depth: got 33; takes 6n \+ 2"),
            (lambda: networks.resnet(10, 2), "depth: got 2"),
            (lambda: networks.resnet(10, shortcut="A"), "shortcut: got 'A'; takes one of pad, pad both, project"),
            (lambda: networks.small(10, mean=math.inf), "mean: got inf; takes a finite number"),
            (lambda: networks.wide_resnet(10, 30), r"depth: got 30; takes 6n \+ 4"),
            (lambda: networks.wide_resnet(10, 28, 0), "width: got 0"),
            (lambda: networks.wide_resnet(10, 28, 1, 1.0), r"dropout: got 1.0; takes a finite number in \[0, 1\)"),
        ],
    )
    def test_construction(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
