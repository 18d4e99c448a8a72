import json
import pickle
import re
import resource
from dataclasses import replace

import pytest
import torch
from rfp.runtime import CheckpointError, UsageError
from rfp.train import checkpoint as ckpt
from rfp.train.config import to_json
from rfp.train.velocity_net import build_velocity_net
from safetensors.torch import save_file
from trainings import tiny


@pytest.fixture
def made(tmp_path):
    """A checkpoint of a net that nobody trained."""
    torch.manual_seed(0)
    net = build_velocity_net(tiny())
    tensors = {
        f"{part}.{k}": v.clone() for part in ("velocity_net", "velocity_ema") for k, v in net.state_dict().items()
    }
    checkpoint = ckpt.Checkpoint(tiny(), "velocity", 7, 3, ("cats", "dögs"), tensors, {"accuracy": 0.5})
    path = tmp_path / "run" / "checkpoints" / "velocity-00000007.safetensors"
    ckpt.save(path, checkpoint, {"optimizer.0.step": torch.ones(())})
    return path, checkpoint


def rewrite(path, **changes):
    """The same file with its description changed."""
    tensors, text = ckpt._read(path)
    save_file(tensors, path, {"rfp": json.dumps(json.loads(text) | changes)})


def test_a_checkpoint_comes_back_as_it_was(made):
    path, checkpoint = made
    loaded = ckpt.load(path)
    assert replace(loaded, tensors={}) == replace(checkpoint, tensors={})
    assert loaded.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(loaded.tensors[k], v) for k, v in checkpoint.tensors.items())
    assert ckpt.load_state(path).keys() == {"optimizer.0.step"}
    assert loaded.saliency() is None and not any(p.requires_grad for p in loaded.velocity().parameters())


def test_a_checkpoint_may_be_read_by_whom_the_umask_lets(made):
    made[0].with_name("any").touch()
    modes = {p.name: p.stat().st_mode for p in made[0].parent.iterdir()}
    assert len(modes) == 3 and len(set(modes.values())) == 1, modes


@pytest.mark.parametrize(
    ("key", "said", "value"),
    [
        ("coordinates", None, False),
        ("input_gain", None, "none"),
        ("input_gain", False, "none"),
        ("input_gain", True, "diagonal"),
        ("seamless", None, False),
    ],
)
def test_checkpoints_from_before_there_was_a_key_or_its_value_keep_their_net(made, key, said, value):
    path, checkpoint = made
    old = tiny(velocity_net=to_json(checkpoint.config)["velocity_net"] | {key: value})
    tensors = {f"velocity_ema.{k}": w.clone() for k, w in build_velocity_net(old).state_dict().items()}
    ckpt.save(path, replace(checkpoint, config=old, tensors=tensors), {})
    about = json.loads(ckpt._read(path)[1])["config"]
    del about["velocity_net"][key]
    if said is not None:
        about["velocity_net"][key] = said
    rewrite(path, config=about)
    assert ckpt.load(path).config == old and getattr(ckpt.load(path).velocity().config, key) == value


def test_loaded_tensors_are_as_aligned_as_torchs_own(made):
    """Kernels round differently on odd addresses, and resuming must not change a bit."""
    tensors = ckpt.load(made[0]).tensors.values()
    assert {t.data_ptr() % 64 for t in tensors} == {torch.empty(5).data_ptr() % 64}


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_file_cut_short_is_refused_and_passed_over(made, keep):
    path, checkpoint = made
    older = path.with_name("velocity-00000003.safetensors")
    ckpt.save(older, replace(checkpoint, step=3), {})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=path.name):
        ckpt.load(path)
    assert ckpt.find(path.parents[1]) == older


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"phase": "third"},
        {"phase": 1},
        {"step": "seven"},
        {"step": 1e999},
        {"step": -5},
        {"seed": -1},
        {"domains": ["one"]},
        {"domains": None},
        {"metrics": {"a": "b"}},
        {"metrics": 3},
        {"config": {"max_sise": 3}},
        {"config": []},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(made, changes):
    rewrite(made[0], **changes)
    with pytest.raises(CheckpointError, match=made[0].name):
        ckpt.load(made[0])


def test_foreign_files_are_refused_and_passed_over(made):
    path, _ = made
    save_file({"a": torch.ones(1)}, path.with_name("foreign.safetensors"))
    save_file({"a": torch.ones(1)}, path.with_name("other.safetensors"), {"rfp": "not json"})
    path.with_name("pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    path.with_name("folder.safetensors").mkdir()
    for name in ("foreign", "other", "pickle", "folder", "nowhere"):
        with pytest.raises(CheckpointError, match=name):
            ckpt.load(path.with_name(f"{name}.safetensors"))
    assert ckpt.checkpoints(path.parents[1]) == [path]


def test_the_newest_is_by_the_phase_and_step_inside_not_by_name(made):
    path, checkpoint = made
    folder = path.parent
    ckpt.save(folder / "a.safetensors", replace(checkpoint, step=10), {})
    ckpt.save(folder / "z.safetensors", replace(checkpoint, step=900, phase="saliency"), {})
    assert [p.name for p in ckpt.checkpoints(path.parents[1])] == ["z.safetensors", path.name, "a.safetensors"]
    with pytest.raises(UsageError, match="nowhere"):
        ckpt.find(folder / "nowhere")
    with pytest.raises(CheckpointError, match="a folder without checkpoints"):
        ckpt.find(folder)


def test_tensors_that_do_not_fit_the_config_are_refused(made):
    path, checkpoint = made
    name = "velocity_ema.stem.weight"
    good = checkpoint.tensors
    for bad in (
        {k: v for k, v in good.items() if k != name},
        good | {name: good[name][:4]},
        good | {name: good[name].double()},
        good | {"velocity_ema.more": torch.ones(1)},
    ):
        ckpt.save(path, replace(checkpoint, tensors=bad), {})
        with pytest.raises(CheckpointError, match="do not fit its config: 1 differ"):
            ckpt.load(path).velocity()


def test_a_checkpoint_says_which_file_it_is_where_its_nets_fail(made):
    """Whoever loads one has nothing to add: `rfp split`, `rfp evaluate`, a training that goes on."""
    path, checkpoint = made
    name = "velocity_ema.stem.weight"
    ckpt.save(path, replace(checkpoint, tensors=checkpoint.tensors | {name: torch.ones(1)}), {})
    loaded = ckpt.load(path)
    for use in (loaded.velocity, lambda: loaded.give(build_velocity_net(tiny()), "velocity_ema")):
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: the checkpoint's tensors do not fit"):
            use()
    ckpt.save(path, replace(checkpoint, phase="saliency", tensors={}), {})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: this checkpoint is from the saliency phase"):
        ckpt.load(path).velocity()


def test_a_config_that_asks_for_a_huge_net_gets_no_memory(made):
    path, _ = made
    huge = {"type": "UNet", "model_channels": 16384, "ch_mult": [64, 64], "num_res_blocks": 2}  # 10^14 weights
    resnet = {"type": "ResNetSaliencyNet", "backbone": "resnet152"}
    rewrite(path, config=to_json(tiny()) | {"velocity_net": huge, "saliency_net": resnet})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="do not fit its config"):
        ckpt.load(path).velocity()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_an_optimiser_comes_back_with_its_moments():
    torch.manual_seed(0)
    nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    one, other = (torch.optim.AdamW(net.parameters(), 0.1) for net in nets)
    nets[0](torch.ones(1, 3)).sum().backward()
    one.step()
    tensors = ckpt.optimizer_tensors(one)
    assert tensors.keys() == {f"optimizer.{i}.{n}" for i in (0, 1) for n in ("step", "exp_avg", "exp_avg_sq")}
    ckpt.restore_optimizers(tensors, other)
    assert all(torch.equal(a, b) for a, b in zip(tensors.values(), ckpt.optimizer_tensors(other).values(), strict=True))


def test_a_failure_while_writing_leaves_the_old_checkpoint(made, monkeypatch):
    path, checkpoint = made
    before = path.read_bytes()
    monkeypatch.setattr(ckpt, "save_file", lambda tensors, partial, about: partial.write_bytes(b"x") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ckpt.save(path, checkpoint, {})
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))


def test_a_checkpoint_that_is_there_has_its_state(made, monkeypatch):
    path, checkpoint = made
    path, there = path.with_name("velocity-00000008.safetensors"), []
    state = ckpt.state_path(path)
    monkeypatch.setattr(
        ckpt, "save_file", lambda *file: there.append((state.is_file(), path.is_file())) or save_file(*file)
    )
    ckpt.save(path, checkpoint, {"optimizer.0.step": torch.ones(())})
    assert there == [(False, False), (True, False)]


@pytest.mark.parametrize("value", [torch.ones(7), torch.ones(1, 1)])
def test_a_count_of_steps_that_is_none_is_refused(value):
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = ckpt.optimizer_tensors(optimizer)
    ckpt.restore_optimizers(state, optimizer)
    with pytest.raises(CheckpointError, match="another net"):
        ckpt.restore_optimizers(state | {"optimizer.0.step": value}, optimizer)


def test_a_description_that_no_reader_understands_spoils_no_run(made):
    path, _ = made
    for i, text in enumerate(('{"phase": "velocity", "step": Infinity}', "[" * 100_000)):
        save_file({"a": torch.ones(1)}, path.with_name(f"odd{i}.safetensors"), {"rfp": text})
    assert ckpt.find(path.parents[1]) == path
