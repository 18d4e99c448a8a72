import pytest
import torch
from rfp.train.net_config import UNetConfig
from rfp.train.unet import Attention, GroupNorm32, ResBlock, UNet, timestep_embedding, whole

SMALL = {"model_channels": 8, "ch_mult": [1, 2], "num_res_blocks": 1}
FINE = {"patch_size": 2, "fine_channels": 8}
ATTENTION = {"attention_resolutions": [2], "num_attention_heads": 4}
GAIN = {"input_gain": "matrix"}


def net(seed=0, random=True, **changes):
    """A net with every weight drawn, so that nothing starts as zero."""
    torch.manual_seed(seed)
    v = UNet(UNetConfig(**(SMALL | changes)), 3).eval()
    for p in v.parameters() if random else ():
        torch.nn.init.normal_(p, std=0.1)
    return v.requires_grad_(False)


def x(b=2, h=16, w=16):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(1)) * 2 - 1


T = torch.tensor([0.3, 0.8])


@pytest.mark.parametrize("changes", [{}, ATTENTION, {"patch_size": 2}, FINE, FINE | GAIN, {"zero_res_blocks": True}])
def test_a_new_net_returns_exactly_0(changes):
    assert not net(random=False, **changes)(x(), T).any()


@pytest.mark.parametrize("changes", [{}, ATTENTION, {"patch_size": 4}, FINE, {"ch_mult": [1]}, {"ch_mult": [1, 1, 3]}])
def test_any_height_and_width_that_are_multiples(changes):
    v = net(**changes)
    m = v.config.multiple
    assert m == v.config.patch_size * 2 ** (len(v.config.ch_mult) - 1)
    for h, w in ((m, m), (m, 3 * m), (4 * m, 2 * m)):
        out = v(x(2, h, w), T)
        assert out.shape == (2, 3, h, w) and out.isfinite().all() and out.any()


@pytest.mark.parametrize("changes", [{}, ATTENTION])
def test_one_time_for_the_batch_is_that_time_for_each(changes):
    v = net(**changes)
    torch.testing.assert_close(v(x(), torch.full((1,), 0.3)), v(x(), torch.full((2,), 0.3)))


@pytest.mark.parametrize("changes", [{}, ATTENTION, FINE])
def test_pictures_of_a_batch_do_not_see_each_other(changes):
    v = net(**changes)
    torch.testing.assert_close(v(x(), T)[1:], v(x()[1:], T[1:]))


def test_training_leaves_the_share_dropout_of_each_blocks_features_out():
    plain = net()
    v = UNet(plain.config, 3, dropout=0.3).eval()
    v.load_state_dict(plain.state_dict())
    assert torch.equal(v(x(), T), plain(x(), T))
    blocks = [m for m in v.train().modules() if isinstance(m, ResBlock)]
    seen = []
    for block in blocks:
        block.act.register_forward_hook(lambda _m, _x, out: seen.append(out))
        block.conv2.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    v(x(64), T[:1])
    assert len(seen) == 3 * len(blocks)  # of each its first activation, its second, and what is left of that
    for all_of_it, left in zip(seen[1::3], seen[2::3], strict=True):
        out = left == 0
        assert out.float().mean().item() == pytest.approx(0.3, abs=0.03)
        torch.testing.assert_close(left[~out], all_of_it[~out] / 0.7)


def test_the_output_depends_on_t_from_the_first_steps_of_training_on():
    torch.manual_seed(0)
    v = UNet(UNetConfig(**SMALL), 3)
    optimizer = torch.optim.AdamW(v.parameters(), lr=0.01)
    for _ in range(2):  # the first step moves only the zero-initialised output
        (v(x(), T) - T[:, None, None, None]).square().mean().backward()
        optimizer.step()
        assert v.down[0][0].res.film.weight.grad is not None
        optimizer.zero_grad()
    early, late = (v(x(), torch.full((2,), t)) for t in (0.1, 0.9))
    assert (early - late).abs().mean() > 1e-3


def test_attention_is_each_heads_own_over_all_positions():
    """By hand, in the order in which checkpoints hold queries, keys and values."""
    block, h = Attention(net(**ATTENTION).config, 16).requires_grad_(False), torch.randn(2, 16, 3, 5)
    torch.nn.init.normal_(block.out.weight)
    q, k, v = block.qkv(block.norm(h)).flatten(2).split(16, dim=1)
    heads = []
    for i in (slice(4 * n, 4 * n + 4) for n in range(4)):
        weights = (q[:, i].transpose(1, 2) @ k[:, i] / 2).softmax(dim=2)
        heads.append((weights @ v[:, i].transpose(1, 2)).transpose(1, 2))
    wanted = h + block.out(torch.cat(heads, dim=1).unflatten(2, (3, 5)))
    torch.testing.assert_close(block(h), wanted, rtol=1e-4, atol=1e-5)


def test_the_way_up_sees_what_comes_from_below_and_then_what_was_there_on_the_way_down():
    v, seen = net(num_res_blocks=2), {}
    ways = {"below": v.mid[1], "first": v.down[1][0], "second": v.down[1][1]}
    for name, module in ways.items():
        module.register_forward_hook(lambda _m, _x, out, name=name: seen.update({name: out}))
    for block in v.up[0]:
        block.register_forward_hook(lambda _m, x, out: seen.setdefault("up", []).append((x[0], out)))
    v(x(), T)
    (one, made), (other, _) = seen["up"]
    assert torch.equal(one, torch.cat([seen["below"], seen["second"]], dim=1))
    assert torch.equal(other, torch.cat([made, seen["first"]], dim=1))


@pytest.mark.parametrize(
    ("patch", "at", "levels"),
    [(1, [1], [1, 0]), (1, [2], [0, 1]), (2, [2], [1, 0]), (2, [4], [0, 1]), (1, [1, 2], [1, 1])],
)
def test_attention_is_where_positions_are_so_many_pixels_wide(patch, at, levels):
    v = net(patch_size=patch, attention_resolutions=at, num_attention_heads=2)
    for ways in (v.down, v.up[::-1]):
        assert [isinstance(blocks[0].attention, Attention) for blocks in ways] == levels
    assert [isinstance(block.attention, Attention) for block in v.mid] == [levels[-1], False]


@pytest.mark.parametrize(
    ("channels", "groups"), [(5, 1), (8, 1), (16, 2), (20, 2), (24, 3), (128, 16), (256, 32), (320, 32), (1024, 32)]
)
def test_groups_have_8_or_more_channels(channels, groups):
    assert GroupNorm32(channels).num_groups == groups


def test_every_block_is_conditioned_on_t():
    v = net()
    for name, block in v.named_modules():
        if name.endswith("film"):
            before = v(x(), T)
            block.weight.zero_()
            assert not torch.equal(v(x(), T), before), name


def test_time_scales_and_shifts_each_channel():
    block = net().down[0][0].res
    seen = []
    block.act.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    h, emb = x(2, 8, 8).repeat(1, 3, 1, 1)[:, :8], torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    block(h, emb)
    scale, shift = block.film(emb)[:, :, None, None].split(8, dim=1)
    normed = block.norm2(block.conv1(block.act(block.norm1(h))))
    torch.testing.assert_close(seen[1], normed * (1 + scale) + shift)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_channels", 16),
        ("ch_mult", [1, 4]),
        ("num_res_blocks", 2),
        ("normalization", "LayerNorm"),
        ("activation", "GELU"),
        ("activation", "ReLU"),
        ("zero_res_blocks", True),
        ("attention_resolutions", [1]),
        ("num_attention_heads", 2),
        ("patch_size", 2),
        ("fine_channels", 4),
        ("coordinates", True),
        ("input_gain", "diagonal"),
        ("input_gain", "matrix"),
        ("seamless", True),
    ],
)
def test_every_key_changes_the_net(key, value):
    base = {"model_channels": 16} | (ATTENTION if key == "num_attention_heads" else {})  # 16 channels: two groups
    base = base | (FINE if key == "fine_channels" else {})
    base = base | ({"model_channels": 32} if key == "model_channels" else {})
    random = key != "zero_res_blocks"  # says how a net starts
    one, other = net(random=random, **base), net(random=random, **(base | {key: value}))
    if not random:
        assert other.down[0][0].res.conv2.weight.abs().sum() == 0 < one.down[0][0].res.conv2.weight.abs().sum()
        return
    assert not torch.equal(one(x(), T), other(x(), T))


def test_fine_channels_see_each_pixel_where_it_is():
    """With the coarse net silent what is left of it are two or three 3×3 convolutions: 4 pixels far and no further."""
    v = net(**FINE)
    for p in v.head.parameters():
        p.zero_()
    v.fine.norm1, v.fine.norm2, v.fine_head[0] = (torch.nn.Identity() for _ in range(3))
    there, here = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    here[:, :, 7, 8] = 1
    moved = (v(here, T) - v(there, T)).abs().sum(dim=(0, 1)) > 0
    rows, columns = (moved.any(dim=d).nonzero().flatten().tolist() for d in (1, 0))
    assert rows == list(range(3, 12)) and columns == list(range(4, 13))


def even(v, side):
    """What a net makes of a picture that is the same everywhere: [3, side, side]."""
    return v(torch.full((1, 3, side, side), 0.3), T[:1])[0]


@pytest.mark.parametrize("changes", [{}, {"patch_size": 2}, FINE, FINE | GAIN])
def test_the_first_level_of_a_seamless_net_draws_no_frame(changes):
    """With what comes from below silent, nothing but the first level can: an even picture stays even to its edge."""
    for seamless in (True, False):
        v = net(seamless=seamless, **changes)
        for w in v.grow[0].parameters():
            w.zero_()
        out, p = even(v, 16), v.config.patch_size
        blocks = out.reshape(3, 16 // p, p, 16 // p, p)
        assert torch.allclose(blocks, blocks[:, :1, :, :1], atol=1e-4) == seamless


def test_between_patches_a_seamless_net_draws_no_grid():
    """Far from the border of an even picture, where nothing but the way from patches to pixels can."""
    for seamless in (True, False):
        out = even(net(seamless=seamless, **FINE), 128)[:, 60:68, 60:68]
        assert torch.allclose(out, out[:, :1, :1], atol=1e-4) == seamless


@pytest.mark.parametrize("changes", [{}, {"patch_size": 2}, FINE])
def test_input_gain_is_what_x_is_multiplied_by_and_added(changes):
    """Of a net that makes the same everywhere: y = 1, 2, 3 of the channels, and A or its diagonal."""
    y, a = torch.tensor([1.0, 2, 3]), torch.tensor([[-1.0, 0.25, 0], [2, 0, 0.75], [-0.5, 1, 0.5]])
    for gain, made in (("none", [y]), ("diagonal", [y, a.diagonal()]), ("matrix", [y, *a.T])):
        v, bias = net(**changes, input_gain=gain), torch.cat(made)
        last = v.fine_head[-1] if v.config.fine_channels else v.head[-1]
        last.weight.zero_()
        last.bias.copy_(bias.repeat_interleave(last.bias.numel() // len(bias)))
        matrix = {"none": torch.zeros(3, 3), "diagonal": a.diagonal().diag(), "matrix": a}[gain]
        torch.testing.assert_close(v(x(), T), y[:, None, None] + torch.einsum("ij,bjhw->bihw", matrix, x()))


def test_whole_pictures_go_from_minus_1_to_1_over_their_middle_square():
    place = whole(torch.zeros(3, 5, 4, 8))
    assert place.shape == (1, 2, 4, 8)
    line = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    assert torch.equal(place[0, 0], line[:, None].expand(4, 8))
    assert torch.equal(place[0, 1, 0], torch.tensor([-1.0, -1.0, *line.tolist(), 1.0, 1.0]))
    assert torch.equal(whole(torch.zeros(1, 3, 8, 4)), place.flip(1).transpose(2, 3))


@pytest.mark.parametrize("changes", [{}, {"patch_size": 2}, FINE])
def test_coordinates_tell_the_net_where_each_picture_of_a_batch_lies(changes):
    v, blind = net(coordinates=True, **changes), net(**changes)
    there = whole(x()).repeat(2, 1, 1, 1)
    there[1] = 0.5 * there[1] + 0.25
    here, elsewhere = v(x(), T), v(x(), T, there)
    torch.testing.assert_close(elsewhere[:1], here[:1])
    assert (elsewhere[1] - here[1]).abs().max() > 1e-3
    assert torch.equal(blind(x(), T, there), blind(x(), T))


def test_every_key_is_tried_above():
    (mark,) = (m for m in test_every_key_changes_the_net.pytestmark if m.name == "parametrize")
    assert {key for key, _ in mark.args[1]} == set(UNetConfig.model_fields) - {"type"}


def test_the_time_embedding_is_sinusoids_of_1000_t():
    e = timestep_embedding(torch.tensor([0.0, 0.5]), 4)
    angles = torch.tensor([500.0, 5.0])
    torch.testing.assert_close(e[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(e[1], torch.cat([angles.cos(), angles.sin()]))


def test_a_float64_net_computes_in_float64():
    v = net(**ATTENTION).double()
    assert v(x().double(), T).dtype == torch.float64
    torch.testing.assert_close(v(x().double(), T).float(), net(**ATTENTION)(x(), T), rtol=1e-3, atol=1e-5)
