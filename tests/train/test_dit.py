import math

import pytest
import torch
from rfp.train.dit import SPAN, DiT, modulate, patchify, placed, positions, unpatchify
from rfp.train.net_config import DiTConfig
from rfp.train.unet import timestep_embedding, whole

SMALL = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_attention_heads": 2, "mlp_ratio": 2.0}
T = torch.tensor([0.3, 0.8])


def net(random=True, channels=3, **changes):
    """A net with every weight drawn, so that nothing starts as zero."""
    torch.manual_seed(0)
    v = DiT(DiTConfig(**(SMALL | changes)), channels).eval()
    for p in v.parameters() if random else ():
        torch.nn.init.normal_(p, std=0.2)
    return v.requires_grad_(False)


def x(b=2, h=8, w=12, channels=3):
    return torch.rand(b, channels, h, w, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_new_net_returns_exactly_0_and_its_blocks_are_the_identity():
    v, tokens = net(random=False), torch.randn(2, 6, 16)
    assert not v(x(), T).any()
    for block in v.blocks:
        assert torch.equal(block(tokens, torch.randn(2, 16)), tokens)
        assert block.attend(tokens).any() and block.mlp(tokens).any()  # it is the gates that are closed


def test_training_leaves_the_share_dropout_of_each_mlps_features_out():
    plain = net()
    v = DiT(plain.config, 3, dropout=0.3).eval()
    v.load_state_dict(plain.state_dict())
    assert torch.equal(v(x(), T), plain(x(), T))
    seen = []
    for block in v.train().blocks:
        block.mlp[1].register_forward_hook(lambda _m, _x, out: seen.append(out))
        block.mlp[2].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    v(x(64), T[:1])
    assert len(seen) == 2 * len(v.blocks)
    for all_of_it, left in zip(seen[::2], seen[1::2], strict=True):
        out = left == 0
        assert out.float().mean().item() == pytest.approx(0.3, abs=0.03)
        torch.testing.assert_close(left[~out], all_of_it[~out] / 0.7)


def test_unpatchify_undoes_patchify_and_a_token_is_a_square_of_pixels():
    picture = x(2, 6, 9)
    tokens = patchify(picture, 3)
    assert tokens.shape == (2, 6, 27)
    assert torch.equal(unpatchify(tokens, 3, 2, 3), picture)
    square = picture[0, :, 3:6, 6:9]  # second row, third column: the last token
    assert sorted(tokens[0, 5].tolist()) == sorted(square.flatten().tolist())


def test_positions_are_sines_and_cosines_of_the_centres_of_the_tokens():
    grid = positions(3, 5, 8, torch.device("cpu")).view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            y, z = (row + 0.5) * SPAN / 3, (column + 0.5) * SPAN / 5
            angles = [y, y / 100, z, z / 100]  # 1 / 10000^(k/2) for k = 0, 1
            want = [f(a) for pair in (angles[:2], angles[2:]) for f in (math.sin, math.cos) for a in pair]
            torch.testing.assert_close(grid[row, column], torch.tensor(want), atol=2e-6, rtol=0)


def test_tokens_of_crops_are_where_they_are_said_to_be():
    """A whole square is seen as without a word, and the first quarter of it as what that is of twice as fine a net."""
    v, square = net(), x(2, 8, 8)
    place = whole(square)
    torch.testing.assert_close(v(square, T, place.expand(2, -1, -1, -1)), v(square, T))
    quarter = (place - 1) / 2  # its rows and columns go from -1 to 0
    tokens = placed(torch.nn.functional.avg_pool2d(quarter, v.config.patch_size), 8).view(-1, 8)
    n = 8 // v.config.patch_size
    finer = positions(2 * n, 2 * n, 8, torch.device("cpu")).view(2 * n, 2 * n, 8)[:n, :n].flatten(0, 1)
    torch.testing.assert_close(tokens, finer)
    both = torch.cat([place, quarter])
    assert (v(square, T, both)[1] - v(square, T)[1]).abs().max() > 1e-3


def test_no_two_places_look_alike():
    grid = positions(32, 32, 64, torch.device("cpu"))
    distances = torch.cdist(grid, grid) + 10 * torch.eye(len(grid))
    assert distances.min() > 0.5


def test_another_size_sees_places_between_those_of_training_never_beyond():
    small, large = (positions(n, n, 16, torch.device("cpu")).view(n, n, 16) for n in (8, 24))
    torch.testing.assert_close(large[1::3, 1::3], small)  # every third centre is one of theirs
    slow = large[:, 0, 3]  # the sine of the slowest frequency rises with the place
    assert (slow.diff() > 0).all() and slow.max() < math.sin(SPAN * 10_000 ** (-3 / 4))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_any_height_and_width_that_are_multiples(patch):
    v = net(patch_size=patch)
    m = v.config.multiple
    assert m == patch
    for h, w in ((m, m), (m, 3 * m), (4 * m, 2 * m)):
        out = v(x(2, h, w), T)
        assert out.shape == (2, 3, h, w) and out.isfinite().all() and out.any()


def test_any_number_of_channels():
    assert net(channels=4)(x(channels=4), T).shape == (2, 4, 8, 12)


def test_a_block_is_adaptive_layer_norm_attention_and_mlp_gated_by_time():
    """Figure 3 of the paper, by hand, with attention written out."""
    block, h, emb = net().blocks[1], torch.randn(2, 6, 16), torch.randn(2, 16)
    shift1, scale1, gate1, shift2, scale2, gate2 = (m[:, None] for m in block.modulation(emb).split(16, dim=1))

    def normed(a):
        return (a - a.mean(2, keepdim=True)) / (a.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()

    q, k, v = block.qkv(normed(h) * (1 + scale1) + shift1).split(16, dim=2)
    heads = []
    for i in (slice(0, 8), slice(8, 16)):
        weights = (q[..., i] @ k[..., i].transpose(1, 2) / math.sqrt(8)).softmax(dim=2)
        heads.append(weights @ v[..., i])
    want = h + gate1 * block.out(torch.cat(heads, dim=2))
    want = want + gate2 * block.mlp(normed(want) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(h, emb), want, rtol=1e-4, atol=1e-4)


def test_around_the_blocks_it_is_the_papers_net():
    """Tokens with their places, features of time and adaptive layer norm before the last layer, by hand."""
    v, picture = net(), x()

    def of_time(layer):
        first, second = v.time[0], v.time[2]
        return layer(silu(second(silu(first(timestep_embedding(T, 16))))))

    def silu(a):
        return a / (1 + (-a).exp())

    h = v.stem(patchify(picture, 2)) + positions(4, 6, 16, picture.device)
    for block in v.blocks:
        h = block(h, of_time(torch.nn.Identity()))
    normed = (h - h.mean(2, keepdim=True)) / (h.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
    shift, scale = (m[:, None] for m in of_time(v.modulation).split(16, dim=1))
    want = unpatchify(v.head(normed * (1 + scale) + shift), 2, 4, 6)
    torch.testing.assert_close(v(picture, T), want, rtol=1e-4, atol=1e-4)


def test_one_time_for_the_batch_is_that_time_for_each():
    torch.testing.assert_close(net()(x(), torch.full((1,), 0.3)), net()(x(), torch.full((2,), 0.3)))


def test_pictures_of_a_batch_do_not_see_each_other_but_places_do():
    v = net()
    torch.testing.assert_close(v(x(), T)[1:], v(x()[1:], T[1:]))
    other = x().clone()
    other[:, :, :2, :2] += 1
    assert (v(other, T) - v(x(), T))[:, :, -2:, -2:].abs().max() > 1e-4


def test_every_block_and_the_end_are_conditioned_on_t():
    v = net()
    for name, module in v.named_modules():
        if name.endswith("modulation"):
            before = v(x(), T)
            module.weight.zero_()
            assert not torch.equal(v(x(), T), before), name
    torch.testing.assert_close(v(x(), T), v(x(), 1 - T))  # nothing else is


def test_the_time_features_are_of_the_sinusoids_of_t():
    v, seen = net(), []
    v.time[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    v(x(), T)
    assert torch.equal(seen[0], timestep_embedding(T, 16))


def test_modulate_scales_around_one_and_shifts():
    h, shift, scale = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 4)
    out = modulate(h, shift, scale)
    torch.testing.assert_close(out[1, 2], h[1, 2] * (1 + scale[1]) + shift[1])
    assert torch.equal(modulate(h, torch.zeros(1, 4), torch.zeros(1, 4)), h)


def test_a_few_steps_teach_it_where_it_is_and_what_time_it_is():
    torch.manual_seed(0)
    v = DiT(DiTConfig(**SMALL), 3)
    optimizer = torch.optim.AdamW(v.parameters(), lr=0.01)
    ramp = torch.linspace(-1, 1, 12).expand(2, 3, 8, 12)
    target = ramp * T[:, None, None, None]
    losses = []
    for _ in range(150):
        loss = (v(x(), T) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("patch_size", 4), ("hidden_size", 32), ("depth", 3), ("num_attention_heads", 4), ("mlp_ratio", 3.0)],
)
def test_every_key_changes_the_net(key, value):
    assert not torch.equal(net()(x(), T), net(**{key: value})(x(), T))


def test_every_key_is_tried_above():
    (mark,) = (m for m in test_every_key_changes_the_net.pytestmark if m.name == "parametrize")
    assert {key for key, _ in mark.args[1]} == set(DiTConfig.model_fields) - {"type"}


def test_a_float64_net_computes_in_float64():
    v = net().double()
    assert v(x().double(), T).dtype == torch.float64
    torch.testing.assert_close(v(x().double(), T).float(), net()(x(), T), rtol=1e-3, atol=1e-4)
