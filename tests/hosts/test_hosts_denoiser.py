"""The parts of a Denoiser one by one: prompts, noise, x0, latents, roles, fingerprint."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from hosts_fixtures import CLASSES, PROMPTS, VP, fresh_host, host_of, largest, pipeline_of
from palimpsest.core.delta import Dense
from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Denoiser
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.hosts import weights
from palimpsest.hosts.flux import pack, unpack
from palimpsest.hosts.sd import SDHost

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CLASSES)
def test_cut_states_equal_the_full_ones(family: str) -> None:
    host = host_of(family)
    full, cut = host.encode(PROMPTS), host.tokens(PROMPTS)
    assert torch.equal(full.lengths, cut.lengths)
    longest = int(cut.lengths.max())
    assert longest < full.states.shape[1]
    assert largest(cut.states[:, :longest], full.states[:, :longest]) <= 1e-5
    if family == "sd3":  # the states of T5 follow those of CLIP
        t5 = cut.states[:, longest:]
        assert t5.shape[1] == max(len(p.replace(" ", "")) + len(p.split()) for p in PROMPTS) + 1
        assert largest(t5, full.states[:, 24 : 24 + t5.shape[1]]) <= 1e-5
    else:
        assert cut.states.shape[1] == longest
    if full.pooled is not None and cut.pooled is not None:
        assert largest(full.pooled, cut.pooled) <= 1e-5


@pytest.mark.parametrize("family", CLASSES)
def test_a_prompts_states_do_not_depend_on_its_batch(family: str) -> None:
    host = host_of(family)
    prompts = [f"{word} star" for word in "abcdefghijklmnopqrstuvwxyz"] * 3  # more than one batch of the encoder
    many = host.encode(prompts)
    assert len(many) == len(prompts) == 78
    for row in (0, 64, 77):
        assert largest(many[[row]].states, host.encode([prompts[row]]).states) <= 1e-4
    assert largest(many[[0]].states, many[[1]].states) > 0.01


def test_lengths_count_start_and_end_token() -> None:
    lengths = host_of("sd").encode(["", "star", "a", "ab", "x" * 200]).lengths
    assert lengths.tolist() == [2, 3, 3, 4, 24]  # "star" is one token, letters are one each, 24 is the limit


def test_encoding_is_differentiable_where_asked() -> None:
    host = fresh_host("sd")
    table = next(iter(host.parts("token_embedding").values())).get_parameter("weight")
    assert not host.encode(["star"]).states.requires_grad
    table.requires_grad_(True)
    host.encode(["star"]).states.square().sum().backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


# -- noise and x0 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["sd", "sd_v"])
def test_x0_is_what_the_scheduler_makes_of_the_networks_output(prediction: str) -> None:
    host = host_of(prediction)
    x, cond = normal(3, 4, 8, 8), host.encode(PROMPTS)
    scheduler = DDIMScheduler(**VP, prediction_type=host.prediction)
    scheduler.set_timesteps(1000)
    for time in (999, 601, 40, 1):
        t = torch.full((3,), time)
        output = host.denoiser(x, t, encoder_hidden_states=cond.states).sample
        wanted = scheduler.step(output, torch.tensor(time), x).pred_original_sample
        assert largest(host.denoise(x, t, cond), wanted) <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_x0_of_flow_models_lies_on_the_straight_line(family: str) -> None:
    host = host_of(family)
    cond = host.encode(PROMPTS)
    x, t = normal(3, host.channels, 8, 8), torch.tensor([1000.0, 400.0, 0.0])
    velocity = host.predict(x, t, cond)
    noise = x + (1 - t.view(-1, 1, 1, 1) / 1000) * velocity
    x0 = host.denoise(x, t, cond)
    alpha, sigma = host.noise(t)
    assert largest(alpha * x0 + sigma * noise, x) <= 1e-5
    assert torch.equal(x0[2], x[2])  # at time 0, x is clean


@pytest.mark.parametrize("family", CLASSES)
def test_denoise_is_differentiable_and_rows_are_independent(family: str) -> None:
    host = host_of(family)
    cond = host.encode(PROMPTS)
    x = normal(3, host.channels, 8, 8).requires_grad_(True)
    t = host.times(3, torch.Generator().manual_seed(1))
    x0 = host.denoise(x, t, cond)
    assert x0.shape == x.shape
    (gradient,) = torch.autograd.grad(x0[1].sum(), x)
    assert gradient[1].abs().sum() > 0
    assert gradient[0].abs().sum() == 0
    alone = host.denoise(x[1:2], t[1:2], cond[[1]])
    assert largest(alone, x0[1:2]) <= 1e-4 * float(x0.detach().abs().max())


def test_noise_is_variance_preserving_and_exact_at_the_schedulers_times() -> None:
    scheduler = EulerDiscreteScheduler(**{k: v for k, v in VP.items() if k != "clip_sample"})
    pipeline = pipeline_of("sd")
    pipeline.scheduler = scheduler
    host = SDHost(pipeline, name="sd")
    scheduler.set_timesteps(7)  # times between the training times
    assert scheduler.timesteps[1] % 1 != 0
    alpha, sigma = host.noise(scheduler.timesteps)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-6)
    assert torch.allclose((sigma / alpha).flatten(), scheduler.sigmas[:-1].float(), rtol=1e-5)


def test_without_signal_velocity_still_gives_x0() -> None:
    pipeline = pipeline_of("sd_v", DDIMScheduler, rescale_betas_zero_snr=True)
    host = SDHost(pipeline, name="sd_v")
    alpha, sigma = host.noise(torch.tensor([999, 500]))
    assert alpha[0] == 0
    assert sigma[0] == 1
    x0 = host.denoise(normal(2, 4, 8, 8), torch.tensor([999, 500]), host.encode(PROMPTS[:2]))
    assert torch.isfinite(x0).all()


def test_training_times() -> None:
    draw = torch.Generator().manual_seed(0)
    uniform = host_of("sd").times(4000, draw)
    assert uniform.dtype == torch.int64
    assert uniform.min() >= 0
    assert uniform.max() <= 999
    assert abs(uniform.float().mean() - 499.5) < 5 * 1000 / math.sqrt(12 * 4000)
    again = host_of("sd").times(4000, torch.Generator().manual_seed(0))
    assert torch.equal(uniform, again)
    shifted = host_of("sd3").times(4000, draw) / 1000
    # The median of s is 1/2, so that of the shifted times is 3 * 0.5 / (1 + 2 * 0.5).
    assert abs(shifted.median() - 0.75) < 0.02
    assert abs(host_of("flux").times(4000, draw).median() / 1000 - 0.5) < 0.03


# -- latents and pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_latents_and_pixels_follow_the_autoencoder(family: str) -> None:
    host = host_of(family)
    vae = host.pipeline.vae
    shift = vae.config.shift_factor or 0.0
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean = vae.encode(images * 2 - 1).latent_dist.mean
    x = host.latents(images)
    assert x.shape == (2, host.channels, 8, 8)
    assert largest(x, (mean - shift) * vae.config.scaling_factor) <= 1e-5
    decoded = (vae.decode(mean).sample + 1) / 2
    assert largest(host.pixels(x), decoded.clamp(0, 1)) <= 1e-5
    assert torch.equal(host.decode(x, batch=1), torch.cat([host.pixels(x[:1]), host.pixels(x[1:])]))


def test_packing_is_that_of_the_pipeline() -> None:
    from diffusers import FluxPipeline

    x = normal(2, 4, 6, 8)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(x), 6, 8), x)


# -- roles -----------------------------------------------------------------------------------------------

COUNTS = {  # encoders, cross-attention, self-attention, key/value/query layers, output layers
    "sd": (1, 4, 4, 4, 4),
    "sdxl": (2, 8, 8, 8, 8),
    "sd3": (3, 3, 4, 3, 2),  # 3 joint blocks, the last writes no text; 1 more image-only attention
    "flux": (2, 3, 3, 2, 2),  # 2 joint blocks and a single-stream one
}


@pytest.mark.parametrize("family", COUNTS)
def test_parts_by_role(family: str) -> None:
    host = host_of(family)
    encoders, cross, own, layers, out = COUNTS[family]
    found = {role: len(host.parts(role)) for role in ("denoiser", "autoencoder", "backbone", "head", "nonsense")}
    assert found == {"denoiser": 1, "autoencoder": 1, "backbone": 0, "head": 0, "nonsense": 0}
    assert len(host.parts("text_encoder")) == len(host.parts("token_embedding")) == encoders
    assert len(host.parts("cross_attention")) == cross
    assert len(host.parts("self_attention")) == own
    alone = own - cross if family == "sd3" else 0 if family == "flux" else own  # layers in which text has no part
    text = (("cross_key", layers), ("cross_value", layers), ("cross_query", layers), ("cross_out", out))
    for role, count in (*text, *((f"self_{what}", alone) for what in ("query", "key", "value"))):
        parts = host.parts(role)
        assert len(parts) == count, role
        for name, module in parts.items():
            assert isinstance(module, nn.Linear)
            assert host.root.get_submodule(name) is module
            assert f"{name}.weight" in host.root.state_dict()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_without_cross_values_the_prompt_is_not_read(family: str) -> None:
    host = fresh_host(family)
    x, t = normal(2, 4, 8, 8), torch.tensor([500, 500])
    states = host.encode(PROMPTS[:2])
    same = states[[0, 0]]
    mixed = type(same)(states=states.states, lengths=same.lengths, pooled=same.pooled)
    assert largest(host.predict(x, t, same), host.predict(x, t, mixed)) > 1e-3
    with torch.no_grad():
        for layer in host.parts("cross_value").values():
            layer.get_parameter("weight").zero_()
    assert torch.equal(host.predict(x, t, same), host.predict(x, t, mixed))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_text_projections_of_joint_blocks_are_fed_by_text(family: str) -> None:
    host = host_of(family)
    cond, seen = host.encode(PROMPTS), []
    layers = [*host.parts("cross_key").values(), *host.parts("cross_value").values()]
    handles = [m.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1])) for m in layers]
    host.predict(normal(3, host.channels, 8, 8), torch.full((3,), 500.0), cond)
    for handle in handles:
        handle.remove()
    assert seen == [cond.states.shape[1]] * len(layers)


# -- fingerprint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_fingerprint_is_that_of_the_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, hashed = fresh_host(family), []
    original = weights.fingerprint
    monkeypatch.setattr(weights, "fingerprint", lambda root: hashed.append(1) or original(root))
    first = host.fingerprint()
    assert host.fingerprint() == first
    assert len(hashed) == 1  # not hashed twice in a row
    assert fresh_host(family).fingerprint() == first
    table = next(iter(host.parts("token_embedding").values())).get_parameter("weight")
    with torch.no_grad():
        bits = table.data.view(torch.int32)
        bits[0, 0] ^= 1
        changed = host.fingerprint()
        bits[0, 0] ^= 1
    assert changed != first
    assert host.fingerprint() == first


def test_names_of_text_encoder_tensors_do_not_depend_on_the_installed_version() -> None:
    names = host_of("sd").root.state_dict()
    assert "text_encoder.embeddings.token_embedding.weight" in names
    assert "text_encoder.encoder.layers.0.self_attn.k_proj.weight" in names


def test_a_patch_changes_what_is_drawn_and_is_reverted() -> None:
    host = fresh_host("sd")
    before = host.sample(["moon"], [1], Sampling(steps=2))
    names = [f"{name}.weight" for name in host.parts("cross_value")]
    tensors = host.root.state_dict()
    deltas = {name: Dense(value=-tensors[name]) for name in names}
    with Patch(base=host.fingerprint(), deltas=deltas).applied(host):
        assert largest(host.sample(["moon"], [1], Sampling(steps=2)), before) > 1e-3
    assert torch.equal(host.sample(["moon"], [1], Sampling(steps=2)), before)


@pytest.mark.parametrize("family", CLASSES)
def test_hosts_are_denoisers_at_rest(family: str) -> None:
    host = host_of(family)
    assert isinstance(host, Denoiser)
    assert not any(p.requires_grad for p in host.root.parameters())
    assert not any(m.training for m in host.root.modules())
    assert host.guide is None


def test_networks_that_are_no_text_to_image_denoisers_are_refused() -> None:
    from hosts_fixtures import unet

    pipeline = pipeline_of("sd")
    pipeline.register_modules(unet=unet(in_channels=9))
    with pytest.raises(Unsupported, match="inpainting"):
        SDHost(pipeline, name="painter")
    pipeline = pipeline_of("sd", DDIMScheduler, prediction_type="sample")
    with pytest.raises(Unsupported, match="predicts 'sample'"):
        SDHost(pipeline, name="direct")
    pipeline = pipeline_of("sd")
    pipeline.register_modules(unet=unet(time_cond_proj_dim=8))
    with pytest.raises(Unsupported, match="latent consistency"):
        SDHost(pipeline, name="lcm")
