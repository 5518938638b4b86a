"""Models of diffusers are read from folders and objects, and saved as models of ndm; nothing else is read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import ndm
from ndm.method.schedules import per_example
from ndm.networks import DiffusersUNet
from ndm.networks.pretrained import from_diffusers
from tests.networks.pipelines import N, ddpm, pixels, saved, unet


def bits(model: ndm.NDM, x: Tensor | None = None, steps: int | None = N - 1, **options) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return model.bound(pixels() if x is None else x, steps, generator=generator, **options).bits_per_dim.detach()


def test_a_folder_a_pipeline_and_a_pair_are_the_same_model_and_it_is_saved(tmp_path: Path) -> None:
    net, scheduler = unet(), ddpm()
    expected = bits(ndm.from_diffusers((net, scheduler)))
    assert expected.isfinite().all()
    assert torch.equal(bits(ndm.from_diffusers(DDPMPipeline(net, scheduler))), expected)
    model = ndm.from_diffusers(saved(tmp_path / "pipeline"))
    assert torch.equal(bits(model), expected)
    loaded = ndm.NDM.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert torch.equal(bits(loaded), expected)
    assert torch.equal(bits(loaded, steps=None), bits(model, steps=None))
    drawn = [m.sample(2, (3, 8, 8), steps=4, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)]
    assert torch.equal(*drawn)
    assert model.config() == loaded.config()


def test_a_folder_without_subfolders_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "pipeline")
    for name in ("unet", "scheduler"):
        for file in (folder / name).iterdir():
            shutil.move(file, folder / file.name)
        (folder / name).rmdir()
    assert torch.equal(bits(ndm.from_diffusers(folder)), bits(ndm.from_diffusers((unet(), ddpm()))))


def test_the_model_is_a_copy_in_evaluation_mode(tmp_path: Path) -> None:
    net = unet(dropout=0.5).train()
    model = ndm.from_diffusers((net, ddpm()))
    assert not model.training
    assert torch.equal(bits(model), bits(model))  # without dropout
    expected = bits(model)
    with torch.no_grad():
        net.conv_out.weight.zero_()
    assert torch.equal(bits(model), expected)
    assert net.training


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_half_precision_is_read_as_single(tmp_path: Path, variant: str | None) -> None:
    net = unet().half()
    expected = bits(ndm.from_diffusers((unet().half().float(), ddpm())))
    for source in ((net, ddpm()), saved(tmp_path / "pipeline", net, variant=variant)):
        model = ndm.from_diffusers(source)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(bits(model), expected)


def test_every_noise_level_of_the_network_is_one_it_was_trained_on() -> None:
    seen = []
    model = ndm.from_diffusers((unet(), ddpm()))
    model.denoiser.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[1]))
    bits(model)
    bits(model, steps=None)
    found = ndm.log_likelihood(model, pixels(1), samples=1, probes=1, tolerance=1e9)
    assert found.log_prob.isfinite().all()
    every = torch.cat(seen)
    assert every.min() >= 0
    assert every.max() <= N - 1
    assert 0 in every


def test_labels_reach_the_network_and_guidance_is_refused() -> None:
    model = ndm.from_diffusers((unet(num_class_embeds=4), ddpm()))
    assert model.num_classes == 4
    one, other = (bits(model, labels=[k] * 3) for k in (0, 1))
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="4 classes"):
        bits(model)
    with pytest.raises(ValueError, match=r"0 \.\.\. 3"):
        bits(model, labels=[0, 1, 4])
    drawn = ndm.sample(model, 2, (3, 8, 8), steps=3, labels=[0, 3])
    assert drawn.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="also trained without a class"):
        ndm.sample(model, 2, (3, 8, 8), steps=3, labels=[0, 3], guidance=1.0)


def test_samples_are_at_the_levels_of_pixels() -> None:
    x = ndm.from_diffusers((unet(), ddpm())).sample(2, (3, 8, 8), method="ancestral", steps=N - 1)
    whole = (x + 1) * 127.5
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-4)
    assert x.abs().max() <= 1


# ---- flow matching


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_noise_minus_data_at_a_time_in_thousandths(shift: float) -> None:
    net = unet().double().eval()
    model = ndm.from_diffusers((net, FlowMatchEulerDiscreteScheduler(1000, shift=shift)))
    x, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    t = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    z = per_example(1 - t, x) * x + per_example(t, x) * noise
    with torch.no_grad():
        velocity = net(z, t * 1000).sample
        found = model.denoiser(z, model.schedule(t))
        drift = model.drift(z, t, eta=0.0)  # dz/dt
    torch.testing.assert_close(found, z - per_example(t, x) * velocity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drift, velocity, rtol=1e-4, atol=1e-4)
    assert isinstance(model.decoder, ndm.DiscretizedDecoder)
    assert bits(model, steps=None).isfinite().all()


# ---- latents and other decoders


def test_a_network_of_latents_has_a_density_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="density of the latents"):
        model = ndm.from_diffusers((unet(4), ddpm(clip_sample=False)))
    assert model.decoder.levels is None
    assert model.bound(torch.randn(2, 4, 8, 8), N - 1).total.isfinite().all()
    folder = saved(tmp_path / "pipeline")
    (folder / "vqvae").mkdir()
    with pytest.warns(UserWarning, match="density of the latents"):
        assert ndm.from_diffusers(folder).decoder.levels is None


def test_the_decoder_and_the_clip_can_be_chosen() -> None:
    decoder = ndm.DiscretizedDecoder(256, ends=True)
    model = ndm.from_diffusers((unet(), ddpm()), decoder=decoder, clip=False)
    assert model.decoder is decoder
    assert model.denoiser.clip is None
    assert bits(model).isfinite().all()
    assert ndm.from_diffusers((unet(), ddpm(clip_sample_range=2.0))).denoiser.clip == 2.0
    assert ndm.from_diffusers((unet(), ddpm(clip_sample=False))).denoiser.clip is None


def test_the_decoders_variance_is_that_of_the_second_step() -> None:
    scheduler = ddpm(variance_type="learned_range")
    model = ndm.from_diffusers((unet(heads=2), scheduler))
    scheduler.set_timesteps(N)
    variance = scheduler._get_variance(1, variance_type="fixed_small")
    assert model.decoder.log_variance == pytest.approx(math.log(variance), 1e-5)
    assert model.decoder.largest == pytest.approx(math.log(scheduler.betas[0]), 1e-5)


# ---- what is refused


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (ddpm(variance_type="learned"), "The variance_type 'learned' is not read"),
        (ddpm(variance_type="learned_range"), "needs a network that returns twice its channels"),
        (ddpm(rescale_betas_zero_snr=True), "zero terminal signal-to-noise ratio"),
        (EulerDiscreteScheduler(), "must be one of DDPMScheduler, DDIMScheduler, FlowMatch.*got 'EulerDiscrete"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ],
)
def test_other_schedulers_are_refused(scheduler, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ndm.from_diffusers((unet(), scheduler))


def test_other_networks_and_sources_are_refused() -> None:
    for source in (3, SimpleNamespace(unet=unet()), (unet(),)):
        with pytest.raises(ValueError, match="Give the folder of a diffusers pipeline"):
            from_diffusers(source)
    with pytest.raises(ValueError, match="UNet2DModel of diffusers, got Linear"):
        from_diffusers((torch.nn.Linear(2, 2), ddpm()))
    with pytest.raises(ValueError, match="1 or 2 times its 3 channels; it returns 4"):
        from_diffusers((unet(out_channels=4), ddpm()))
    assert not issubclass(UNet2DConditionModel, DiffusersUNet)


def edited(folder: Path, file: str, **changes) -> Path:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "a UNet2DModel, got 'UNet2DCond"),
        ("unet/config.json", {"quantization_config": {}}, "no argument 'quantization_config'"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "Fourier features"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"down_block_types": ["Nothing"] * 2}, "does not describe a UNet2DModel"),
        ("unet/config.json", {"block_out_channels": [8192, 16384]}, "its weights are of a smaller network"),
        ("unet/config.json", {"block_out_channels": [8, 32]}, "cannot be read as the network|does not fit"),
        ("unet/config.json", {"layers_per_block": 2}, "cannot be read as the network|does not fit"),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "must be one of DDPMScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": ["x"]}, "must be one of DDPMScheduler"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "num_train_timesteps must be"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "num_train_timesteps must be"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "nothing"}, "does not describe a DDPMScheduler"),
        ("scheduler/scheduler_config.json", {"prediction_type": "nothing"}, "no prediction_type 'nothing'"),
        ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}, "no prediction_type"),
        ("scheduler/scheduler_config.json", {"variance_type": {}}, "variance_type {} is not read"),
        ("scheduler/scheduler_config.json", {"clip_sample_range": None}, "clip_sample_range .* a positive number"),
        ("scheduler/scheduler_config.json", {"trained_betas": []}, "betas .* between 0 and 1"),
        ("scheduler/scheduler_config.json", {"trained_betas": [[0.1, 0.2]]}, "betas .* between 0 and 1"),
        ("scheduler/scheduler_config.json", {"beta_end": 1.5}, "betas .* between 0 and 1"),
        ("scheduler/scheduler_config.json", {"beta_start": 0.0}, "betas .* between 0 and 1"),
        ("unet/config.json", {"time_embedding_type": "foo"}, "does not describe a UNet2DModel"),
        ("unet/config.json", {"freq_shift": "a"}, "freq_shift .* must be a number"),
        ("unet/config.json", {"norm_eps": None}, "norm_eps .* must be a number"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(tmp_path: Path, file: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ndm.from_diffusers(edited(saved(tmp_path / "pipeline"), file, **changes))


def test_missing_pickled_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nothing.*hf download"):
        ndm.from_diffusers(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config.json"):
        ndm.from_diffusers(str(tmp_path / "empty"))
    folder = saved(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model.bin is pickled"):
        ndm.from_diffusers(folder)
    folder = saved(tmp_path / "damaged")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != "conv_out.bias"}, weights)
    with pytest.raises(ValueError, match=r"missing keys, such as conv_out.bias"):
        ndm.from_diffusers(folder)
    save_file(tensors | {"conv_out.bias": torch.full_like(tensors["conv_out.bias"], math.nan)}, weights)
    with pytest.raises(ValueError, match=r"conv_out.bias contain NaN"):
        ndm.from_diffusers(folder)
    weights.write_bytes(b"\x80\x04" + b"x" * 100)
    with pytest.raises(ValueError, match="cannot be read as the network"):
        ndm.from_diffusers(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"scheduler_config.json cannot be read"):
        ndm.from_diffusers(folder)


def test_the_names_of_attention_weights_of_early_versions_are_read(tmp_path: Path) -> None:
    """Those of google/ddpm-cifar10-32 and its like."""
    folder = saved(tmp_path / "pipeline")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    early = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(weights)
    for new, old in early.items():
        assert any(new in name for name in tensors)
        tensors = {name.replace(new, old): value for name, value in tensors.items()}
    save_file(tensors, weights)
    assert torch.equal(bits(ndm.from_diffusers(folder)), bits(ndm.from_diffusers((unet(), ddpm()))))


def test_code_in_a_pipelines_folder_is_not_run(tmp_path: Path) -> None:
    folder = edited(saved(tmp_path / "pipeline"), "model_index.json", _class_name=["pipeline", "Mine"])
    for name in ("pipeline.py", "unet/model.py"):
        (folder / name).write_text("raise SystemExit('this code was run')")
    assert bits(ndm.from_diffusers(folder)).isfinite().all()


def test_a_schedulers_table_of_betas_is_used() -> None:
    betas = torch.linspace(0.01, 0.4, N).tolist()
    model = ndm.from_diffusers((unet(), DDPMScheduler(N, trained_betas=betas)))
    expected = torch.cumprod(1 - torch.tensor(betas), 0)
    torch.testing.assert_close(torch.tensor(model.schedule.alphas_cumprod), expected)
