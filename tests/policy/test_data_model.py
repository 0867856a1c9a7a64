"""Models of generated data: shapes, units, the same data from the same seed and checkpoint, guidance, and errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.checkpoint import write_checkpoint
from flowchunk.policy.data_model import DataConfig, DataModel
from flowchunk.policy.diffusion.objectives import objective_names
from flowchunk.policy.networks.angles import AngleNetwork
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.sampling import SamplingOptions

TOKENS, IMAGE = (3, 2), (1, 8, 8)
LOW, HIGH = 100.0, 300.0
SMALL = {"width": 16, "blocks": 1}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturb(model: torch.nn.Module) -> None:
    """Networks start as the zero velocity; so this one does something."""
    generator = seeded(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


def make_model(*, perturbed: bool = True, **config: Any) -> DataModel:
    """A small model of data from 100 to 300, or of angles."""
    options: dict[str, Any] = {"shape": TOKENS, "network_options": SMALL} | config
    sampling = {name: options.pop(name) for name in ("solver", "eta") if name in options}
    made = DataConfig(**options, sampling=SamplingOptions(**sampling))
    ends = np.stack([np.full(made.shape, LOW), np.full(made.shape, HIGH)])
    scalings = {"x": Scaling.fit("identity" if made.is_wrapped else "min_max", [ends])}
    if made.condition_size:
        scalings["condition"] = Scaling.fit("min_max", [np.array([[0.0], [10.0]]).repeat(made.condition_size, 1)])
    model = DataModel(made, Normalizer(scalings))
    if perturbed:
        perturb(model)
    return model.eval()


def count_calls(model: DataModel) -> list[Tensor]:
    """A list that grows with the condition of every network call from now on."""
    calls: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[2]))
    return calls


# Data.


@pytest.mark.parametrize(
    ("shape", "network", "options"),
    [
        (TOKENS, "mlp", SMALL),
        (IMAGE, "mlp", SMALL),
        ((2, 8, 8), "mixer", SMALL),
        (IMAGE, "patch_dit", SMALL | {"heads": 2}),
    ],
)
def test_data_have_their_shape(shape: tuple[int, ...], network: str, options: dict[str, Any]) -> None:
    model = make_model(shape=shape, network=network, network_options=options)
    data = model.generate(5, nfe=2)
    assert data.shape == (5, *shape)
    assert data.dtype == torch.float32
    assert data.isfinite().all()


@pytest.mark.parametrize("objective", objective_names())
def test_every_objective_trains_and_generates(objective: str) -> None:
    model = make_model(objective=objective, classes=2)
    batch = {"x": LOW + (HIGH - LOW) * torch.rand(6, *TOKENS, generator=seeded(0)), "label": torch.arange(6) % 2}
    noise = model.sample_noise(6, seeded(1))
    total, number = model(batch, noise)
    assert float(number) == 6
    halves = [
        model({key: value[rows] for key, value in batch.items()}, noise.rows(rows))
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(total, halves[0][0] + halves[1][0])
    total.backward()
    assert all(parameter.grad is not None for parameter in model.network.parameters())
    assert model.generate(4, label=1).isfinite().all()


def test_generated_data_are_unnormalized() -> None:
    data = make_model(perturbed=False).generate(2000)  # zero velocity: what comes out is the noise
    assert float(data.mean()) == pytest.approx((LOW + HIGH) / 2, abs=5)
    assert float(data.std()) == pytest.approx((HIGH - LOW) / 2, rel=0.05)


def test_the_callback_gets_unnormalized_data_at_every_time() -> None:
    seen: list[tuple[float, Tensor]] = []
    data = make_model().generate(4, nfe=4, callback=lambda t, x: seen.append((float(t), x)))
    assert [t for t, _ in seen] == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(seen[-1][1], data)
    assert float(seen[0][1].mean()) == pytest.approx((LOW + HIGH) / 2, abs=60)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "diffusers_ddpm"])
def test_the_same_seed_gives_the_same_data(solver: str) -> None:
    model, before = make_model(objective="data_prediction", solver=solver), torch.get_rng_state()
    first, same, different = (model.generate(3, seed=seed, nfe=4) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.allclose(first, different)
    assert not torch.allclose(first[0], first[1])


def test_conditions_and_labels_matter() -> None:
    model = make_model(condition_size=2, classes=3)
    condition = torch.tensor([[1.0, 9.0]]).expand(4, -1)
    data = model.generate(4, condition=condition, label=1)
    assert torch.equal(data, model.generate(4, condition=condition, label=torch.full((4,), 1)))
    for different in (
        model.generate(4, condition=condition + 1, label=1),
        model.generate(4, condition=condition, label=2),
        model.generate(4, condition=condition),
    ):
        assert not torch.allclose(data, different)


def test_labels_may_be_numbers_lists_arrays_or_tensors() -> None:
    model = make_model(classes=3)
    expected = model.generate(2, label=torch.tensor([1, 2]), seed=0)
    for labels in ([1, 2], np.array([1, 2]), np.array([1, 2], dtype=np.uint8), torch.tensor([1, 2], dtype=torch.int32)):
        assert torch.equal(model.generate(2, label=labels, seed=0), expected)
    first = model.generate(2, label=1, seed=0)
    for label in (torch.tensor(1), np.array(1), np.arange(2)[1]):
        assert torch.equal(model.generate(2, label=label, seed=0), first)
    wrong: Any
    for wrong in (1.0, [1.5, 2.0], True):
        with pytest.raises(ConfigurationError, match="must be integers from 0 to 2"):
            model.generate(2, label=wrong, seed=0)


def test_the_network_gets_normalized_conditions_and_one_hot_labels() -> None:
    model = make_model(condition_size=2, classes=2)
    calls = count_calls(model)
    model.generate(1, condition=torch.tensor([[0.0, 10.0]]), label=1, nfe=1)
    model.generate(1, condition=torch.tensor([[0.0, 10.0]]), nfe=1)
    assert [call.tolist() for call in calls] == [[[-1, 1, 0, 1, 0]], [[-1, 1, 0, 0, 1]]]


def test_training_hides_the_configured_fraction_of_labels() -> None:
    model = make_model(classes=2, label_dropout=0.25, network_options=SMALL)
    noise = model.sample_noise(4000, seeded(0))
    hidden = noise.is_label_hidden
    assert hidden is not None
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.03)
    calls = count_calls(model)
    model({"x": torch.full((4000, *TOKENS), 200.0), "label": torch.ones(4000, dtype=torch.long)}, noise)
    assert torch.equal(calls[0][:, 2].bool(), hidden)
    assert torch.equal(calls[0][:, 1].bool(), ~hidden)


def test_coupled_noise_is_closer_to_its_data() -> None:
    data, losses = {"x": LOW + (HIGH - LOW) * torch.rand(64, *TOKENS, generator=seeded(0))}, []
    for coupling in ("independent", "ot"):
        model = make_model(coupling=coupling, perturbed=False)  # zero velocity: the loss is the squared distance
        noise = model.sample_noise(64, seeded(1))
        noise = noise if model.pair_noise is None else model.pair_noise(data, noise)
        losses.append(float(model.loss(data, noise).mean().detach()))
    assert losses[1] < 0.8 * losses[0]


# Guidance.


def test_guidance_of_one_has_no_effect() -> None:
    model = make_model(classes=3)
    calls = count_calls(model)
    data = model.generate(4, label=1, nfe=4)
    assert torch.equal(model.generate(4, label=1, nfe=4, guidance=1.0), data)
    assert len(calls) == 8
    torch.testing.assert_close(model.generate(4, label=1, nfe=8, guidance=1 + 1e-6), data, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(model.generate(4, label=1, nfe=8, guidance=0.0), model.generate(4, nfe=4))
    assert not torch.allclose(model.generate(4, label=1, nfe=8, guidance=3.0), data)


@pytest.mark.parametrize(
    ("objective", "nfe"), [("flow", None), ("flow", 6), ("mip", None), ("flow_map", 2), ("data_prediction", 8)]
)
def test_guided_network_calls_count_twice(objective: str, nfe: int | None) -> None:
    model = make_model(classes=3, objective=objective)
    calls = count_calls(model)
    model.generate(2, label=1, nfe=nfe, guidance=2.0)
    assert len(calls) == (nfe or (4 if objective == "mip" else 16))
    assert sum(bool(call[0, 3]) for call in calls) == len(calls) / 2  # half of them without the label


def test_guided_data_may_also_have_a_condition() -> None:
    model = make_model(classes=3, condition_size=2)
    calls = count_calls(model)
    model.generate(2, label=1, condition=torch.tensor([[10.0, 0.0]] * 2), nfe=2, guidance=2.0)
    assert [call[0].tolist() for call in calls] == [[1, -1, 0, 0, 0, 1], [1, -1, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"guidance": 2.0}, "guidance=2.0: this model has no classes, so it has no unconditional"),
        ({"classes": 3, "label_dropout": 0.0}, {"guidance": 2.0, "label": 1}, "was trained with label_dropout=0, so"),
        (
            {"classes": 3},
            {"guidance": 2.0, "label": 1, "nfe": 5},
            "nfe=5: .* two network evaluations; give an even number",
        ),
        ({"classes": 3, "objective": "mip"}, {"guidance": 2.0, "label": 1, "nfe": 2}, "nfe=1: .*mip admits only 2"),
        ({"objective": "mip"}, {"nfe": 4}, "nfe=4: a model trained with objective=mip admits only 2"),
        ({"objective": "regression"}, {"nfe": 2}, "nfe=2: a model trained with objective=regression admits only 1"),
        ({"solver": "rk4"}, {"nfe": 6}, "nfe=6: rk4 needs a positive multiple of 4"),
        ({}, {"nfe": 0}, "nfe=0"),
        ({}, {"label": 1}, "label=1: this model has no classes"),
        ({"classes": 3}, {"label": 3}, "label=3 must be from 0 to 2"),
        ({"classes": 3}, {"label": -1}, "label=-1 must be from 0 to 2"),
        ({"classes": 3}, {"label": torch.tensor([0, 1, 3])}, "must be from 0 to 2"),
        ({"classes": 3}, {"label": torch.tensor([0, 1])}, r"labels of shape \(2,\) for 3 samples"),
        ({"condition_size": 2}, {}, r"needs a condition of shape \(3, 2\), but got None"),
        ({"condition_size": 2}, {"condition": torch.zeros(3, 3)}, r"of shape \(3, 2\), but got \(3, 3\)"),
        ({"condition_size": 2}, {"condition": torch.zeros(2, 2)}, r"of shape \(3, 2\), but got \(2, 2\)"),
        ({}, {"condition": torch.zeros(3, 2)}, r"but got \(3, 2\)"),
    ],
)
def test_what_a_model_was_not_trained_for_is_refused(
    config: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(**config).generate(3, **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coupling": "sinkhorn"}, "unknown coupling 'sinkhorn'; there are independent, ot"),
        ({"coupling": "ot", "classes": 3}, "coupling=ot is for unconditional data: .* depend on the condition"),
        ({"coupling": "ot", "condition_size": 2}, "coupling=ot is for unconditional data"),
        ({"coupling": "ot", "is_wrapped": True}, "coupling=ot uses Euclidean distances; angles need"),
        ({"label_dropout": 1.0}, "label_dropout=1.0 must be at least 0 and below 1"),
        ({"augment": True}, "augment=true is only for images"),
        ({"objective": "flow", "schedule": "cosine"}, "objective=flow with schedule=cosine"),
        ({"is_wrapped": True, "objective": "v"}, "objective=v needs a Gaussian path; on angles there are"),
        ({"time_density": "mode", "time_density_options": {"std": 1.0}}, "does not know std"),
        ({"network": "patch_dit"}, r"network 'patch_dit' cannot make data of shape \(3, 2\); there are mlp"),
        ({"network_options": {"depth": 3}}, "cannot make network 'mlp': .*depth"),
        ({"shape": (4,)}, "cannot make network 'mlp'"),
    ],
)
def test_impossible_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(**config)


def test_another_solver_must_fit_the_objective() -> None:
    model = make_model(objective="v")
    data, different = model.generate(3, nfe=4), model.with_sampling(solver="heun").generate(3, nfe=4)
    assert not torch.equal(data, different)
    with pytest.raises(ConfigurationError, match="solver=flow_map needs objective=flow_map, not this v"):
        model.with_sampling(solver="flow_map")


# Angles.

angles = st.lists(st.floats(-math.pi, math.pi), min_size=6, max_size=6)
turns = st.lists(st.integers(-3, 3), min_size=6, max_size=6)


@given(angles, turns, st.booleans())
@settings(max_examples=20, deadline=None)
def test_full_turns_do_not_change_the_output_of_an_angle_network(
    angle: list[float], turn: list[int], with_t_end: bool
) -> None:
    model = make_model(is_wrapped=True, objective="flow_map")
    assert isinstance(model.network, AngleNetwork)
    x, whole = torch.tensor(angle).view(1, *TOKENS), math.tau * torch.tensor(turn).view(1, *TOKENS)
    t, known = torch.tensor([0.3]), model.encode(1)
    t_end = torch.tensor([0.8]) if with_t_end else None
    velocity = model.network(x, t, known, t_end=t_end)
    assert velocity.shape == x.shape
    torch.testing.assert_close(model.network(x + whole, t, known, t_end=t_end), velocity, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["flow", "flow_map"])
def test_generated_angles_are_on_the_torus(objective: str) -> None:
    model = make_model(is_wrapped=True, objective=objective)
    data = model.generate(50, nfe=4)
    assert float(data.abs().max()) <= math.pi
    total, _ = model({"x": data}, model.sample_noise(50, seeded(0)))
    turned, _ = model({"x": data + math.tau}, model.sample_noise(50, seeded(0)))
    torch.testing.assert_close(turned, total, rtol=1e-3, atol=1e-3)


# Checkpoints.


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"objective": "posterior", "solver": "ancestral", "eta": 0.5},
        {"objective": "data_prediction", "schedule": "sigmoid", "min_snr_gamma": 5.0},
        {"objective": "mip", "condition_size": 2},
        {"is_wrapped": True, "objective": "flow_map"},
        {"shape": IMAGE, "network": "patch_dit", "network_options": SMALL | {"heads": 2}, "classes": 3},
        {"shape": IMAGE, "classes": 2, "time_density": "mode", "time_density_options": {"scale": 1.0}},
    ],
)
def test_a_loaded_model_generates_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**config)
    model.save(tmp_path / "model", training={"step": 3})
    loaded = DataModel.load(tmp_path / "model")
    assert not loaded.training
    assert loaded.objective.path == model.objective.path or model.config.is_wrapped
    options: dict[str, Any] = {"condition": torch.ones(3, 2)} if model.config.condition_size else {}
    assert torch.equal(loaded.generate(3, seed=4, **options), model.generate(3, seed=4, **options))


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "policy", kind="chunk_policy", description={}, weights={"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="is a 'chunk_policy', but a 'generative_model' was expected"):
        DataModel.load(tmp_path / "policy")


@pytest.mark.parametrize("damage", ["nothing", "unknown option", "impossible option", "missing weight"])
def test_a_checkpoint_that_describes_no_model_is_refused(damage: str, tmp_path: Path) -> None:
    model = make_model()
    config: dict[str, Any] = {"shape": TOKENS, "network_options": SMALL, "sampling": {}}
    if damage == "unknown option":
        config["colour"] = "red"
    if damage == "impossible option":
        config["schedule"] = "cosine"
    weights = dict(model.state_dict())
    if damage == "missing weight":
        weights.popitem()
    description = {"config": config, "normalizer": model.normalizer.to_json()} if damage != "nothing" else {}
    write_checkpoint(tmp_path / "model", kind="generative_model", description=description, weights=weights)
    with pytest.raises(CheckpointError, match="does not describe a generative model"):
        DataModel.load(tmp_path / "model")
