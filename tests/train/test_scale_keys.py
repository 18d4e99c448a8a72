"""mixed_precision, channels_last, compile, fused_adamw: the same training, run otherwise."""

import pytest
import torch
from rfp.runtime import ConfigError
from trainings import draw_domains, final, finish, job, tiny


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    work = tmp_path_factory.mktemp("keys")
    draw_domains(work)
    finish(job(work, "plain"))
    return work


def flow(work, run):
    return [m["flow"] for m in final(work / run)[2] if m["phase"] == "velocity"]


@pytest.mark.parametrize("key", ["channels_last", "fused_adamw"])
def test_layout_and_fusion_change_the_rounding_alone(plain, key):
    finish(job(plain, key, **{key: False}))
    assert flow(plain, key) == pytest.approx(flow(plain, "plain"), rel=1e-3)
    assert any(not torch.equal(a, final(plain / key)[0][k]) for k, a in final(plain / "plain")[0].items())


def test_bf16_takes_the_velocity_net_and_leaves_weights_and_classifier_in_float32(plain, monkeypatch):
    seen = []
    convolve = torch.nn.Conv2d.forward

    def watch(self, x):
        out = convolve(self, x)
        seen.append((self.training, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watch)
    finish(job(plain, "bf16", mixed_precision="bf16", saliency_max_steps=2, saliency_accuracy_threshold=0))
    assert torch.bfloat16 in {dtype for training, dtype in seen if training}
    assert {dtype for training, dtype in seen if not training} == {torch.float32}  # the classifier and the average
    assert all(t.dtype in (torch.float32, torch.uint8) for t in final(plain / "bf16")[0].values())
    first = slice(5)  # then these toy losses are small, and the rounding of five steps large beside them
    assert flow(plain, "bf16")[first] == pytest.approx(flow(plain, "plain")[first], rel=0.2)
    assert flow(plain, "bf16") != flow(plain, "plain")


def test_a_compiled_net_learns_the_same_under_the_same_names(plain, monkeypatch):
    """With the graph captured and run eagerly; the C++ backend takes minutes and was run by hand (benchmarks)."""
    compile, compiled = torch.nn.Module.compile, []

    def watch(self):
        compiled.append(type(self).__name__)
        compile(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", watch)
    finish(job(plain, "compiled", compile=True))
    assert compiled == ["UNet"] and final(plain / "compiled")[0].keys() == final(plain / "plain")[0].keys()
    assert flow(plain, "compiled") == pytest.approx(flow(plain, "plain"), rel=1e-3)


def test_another_precision_is_a_mistake_in_the_config():
    with pytest.raises(ConfigError, match="mixed_precision: 'fp16' is not one of no, bf16"):
        tiny(mixed_precision="fp16")
