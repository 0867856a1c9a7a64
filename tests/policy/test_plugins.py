"""Plug-ins: predictions, objectives, solvers and networks of one file and one line have all features of built-in ones."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.data_model import DataConfig, DataModel
from flowchunk.policy.diffusion.objectives import OBJECTIVES, PathObjective, objective_names
from flowchunk.policy.diffusion.predictions import PREDICTIONS, Endpoints, Prediction
from flowchunk.policy.diffusion.schedules import Schedule
from flowchunk.policy.diffusion.solvers import SOLVERS, Solver, VectorField
from flowchunk.policy.flow import Loss
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.registry import Registry
from flowchunk.policy.sampling import SamplingOptions
from tests.policy.small_policies import make_policy, observe

# The four plug-ins: what a file of somebody else would hold.


@dataclass(frozen=True)
class Sum(Prediction):
    """The network predicts x_0 + x_1."""

    default_schedule = "linear"

    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_0 + x_1

    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        difference = torch.where((alpha - sigma).abs() < 1e-3, 1e-3, alpha - sigma)
        x_1 = (x_t - sigma * output) / difference
        return Endpoints(x_1, output - x_1)


class Robust(PathObjective):
    """The velocity, with the error instead of its square."""

    @classmethod
    def make(cls, name: str, **options: Any) -> Robust:
        made = PathObjective.make("flow", **options)
        return cls(name, made.path, made.time_density)

    def loss(self, network: Any, x_1: Tensor, **options: Any) -> Loss:
        squared = super().loss(network, x_1, **options)
        return Loss(squared.errors.sqrt(), squared.weight)


def lazy_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Euler, twice as carefully."""
    half = (t_end - t) / 2
    x = field.step(x, half * field(x, t))
    return field.step(x, half * field(x, t + half))


class Linear(nn.Module):
    """One layer."""

    def __init__(self, *, action_size: int, horizon: int, condition_size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.shape, self.gain = (horizon, action_size), gain
        self.layer = nn.Linear(horizon * action_size + 1 + condition_size, horizon * action_size)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, *, t_end: Tensor | None = None) -> Tensor:
        inputs = torch.cat([x.flatten(1), t.reshape(len(t), -1)[:, :1], condition], dim=1)
        return self.gain * self.layer(inputs).view(-1, *self.shape)


PLUGINS: dict[str, tuple[Registry[Any], str, Any, dict[str, Any]]] = {
    "prediction": (PREDICTIONS, "sum", Sum, {"objective": "sum"}),
    "objective": (OBJECTIVES, "robust", Robust, {"objective": "robust"}),
    "solver": (SOLVERS, "careful", Solver(lazy_step, 2), {"solver": "careful"}),
    "network": (NETWORKS, "linear", Linear, {"network": "linear", "network_options": {"gain": 2.0}}),
}

each_plugin = pytest.mark.parametrize("kind", PLUGINS)


@pytest.fixture
def config(kind: str) -> Iterator[dict[str, Any]]:
    """The options that choose the plug-in, while it is registered."""
    registry, name, thing, options = PLUGINS[kind]
    registry.register(name, thing)
    yield options
    if name in registry:
        registry.unregister(name)


def batch_of_policy() -> dict[str, Tensor]:
    observation = {f"observation.{key}": torch.tensor(values).float() for key, values in observe(6).items()}
    action = 200 + 50 * torch.randn(6, 8, 2, generator=torch.Generator().manual_seed(0))
    return {**observation, "action": action, "mask": torch.ones(6, 8, dtype=torch.bool)}


def train(model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
    """The losses of some steps on one batch, always with the same noise."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    noise = model.sample_noise(6, torch.Generator().manual_seed(0))  # type: ignore[operator]
    for _ in range(30):
        error, weight = model(batch, noise)
        optimizer.zero_grad()
        (error / weight).backward()
        optimizer.step()
        losses.append(float((error / weight).detach()))
    return losses


@each_plugin
def test_policies_train_sample_save_and_load_with_it(config: dict[str, Any], tmp_path: Path) -> None:
    policy = make_policy(**config)
    losses = train(policy, batch_of_policy())
    assert losses[-1] < 0.9 * losses[0]
    chunk = policy.predict_chunk(observe(), nfe=4, seed=0)
    assert np.isfinite(chunk).all()
    policy.save(tmp_path / "policy")
    loaded = ChunkPolicy.load(tmp_path / "policy")
    assert loaded.config == policy.config
    np.testing.assert_array_equal(loaded.predict_chunk(observe(), nfe=4, seed=0), chunk)


@each_plugin
def test_data_models_do_too(config: dict[str, Any], tmp_path: Path) -> None:
    options = {"network_options": {"width": 16, "blocks": 1}} | config
    sampling = SamplingOptions(solver=options.pop("solver", None))
    made = DataConfig(shape=(3, 2), sampling=sampling, **options)
    model = DataModel(made, Normalizer({"x": Scaling.fit("min_max", [np.array([[-1.0] * 2, [1.0] * 2])])}))
    losses = train(model, {"x": torch.rand(6, 3, 2, generator=torch.Generator().manual_seed(0))})
    assert losses[-1] < 0.9 * losses[0]
    model.save(tmp_path / "model")
    assert torch.equal(DataModel.load(tmp_path / "model").generate(4, nfe=4), model.generate(4, nfe=4))


@each_plugin
def test_a_checkpoint_names_the_plugin_that_is_absent(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    make_policy(**config).save(tmp_path / "policy")
    registry, name, _, _ = PLUGINS[kind]
    registry.unregister(name)
    message = (
        rf"needs the {kind} '{name}' of the plug-in {__name__}, which is not available: install it, or import it before"
    )
    with pytest.raises(CheckpointError, match=message):
        ChunkPolicy.load(tmp_path / "policy")


def test_checkpoints_without_plugins_name_none(tmp_path: Path) -> None:
    make_policy(objective="v", solver="heun").save(tmp_path / "policy")
    assert '"plugins": []' in (tmp_path / "policy" / "checkpoint.json").read_text()


@each_plugin
def test_its_name_is_listed_among_the_others(kind: str, config: dict[str, Any]) -> None:
    _, name, _, _ = PLUGINS[kind]
    wrong: dict[str, Any] = {key: "nonsense" for key in config if key != "network_options"}
    with pytest.raises(ConfigurationError, match=rf"unknown \w+ 'nonsense'; there are .*\b{name}\b"):
        make_policy(**wrong)


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is already a solver 'euler'; choose another name"):
        SOLVERS.register("euler", Solver(lazy_step))
    mine = SOLVERS.register("mine", Solver(lazy_step, 2))
    try:
        assert SOLVERS.register("mine", mine) is mine  # imported twice
        with pytest.raises(ConfigurationError, match="there is already a solver 'mine'"):
            SOLVERS.register("mine", Solver(lazy_step, 2, keeps_prefix=False))
    finally:
        SOLVERS.unregister("mine")


# Installed plug-ins.

PLUGIN = """
from flowchunk.policy.diffusion.objectives import PathObjective


class Mine(PathObjective):
    @classmethod
    def make(cls, name, **options):
        flow = PathObjective.make("flow", **options)
        return cls(name, flow.path, flow.time_density)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed distribution that has two entry points, one of them broken."""
    site = tmp_path / "site"
    information = site / "their_package-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "their_package.py").write_text(PLUGIN)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[flowchunk.objectives]\nmine = their_package:Mine\n[flowchunk.solvers]\nbroken = their_package:missing\n"
    )
    return site


def run_with(site: Path, code: str) -> str:
    root = str(Path(__file__).parents[2])  # for ``tests``, which PYTHONSAFEPATH would not find
    code = f"import sys; sys.path.insert(0, {str(site)!r}); sys.path.append({root!r})\n" + textwrap.dedent(code)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_entry_points_are_found_and_imported_on_first_use(site: Path, tmp_path: Path) -> None:
    out = run_with(
        site,
        f"""
        from flowchunk.policy.diffusion.objectives import make_objective, objective_names
        print("mine" in objective_names(), "their_package" in sys.modules)
        from tests.policy.small_policies import make_policy
        policy = make_policy(objective="mine")
        print("their_package" in sys.modules, policy.objective.name)
        policy.save({str(tmp_path / "policy")!r})
        """,
    )
    assert out.split("\n")[:2] == ["True False", "True mine"]
    assert "mine" not in objective_names()
    with pytest.raises(CheckpointError, match="needs the objective 'mine' of the plug-in their_package, which is not"):
        ChunkPolicy.load(tmp_path / "policy")


def test_a_plugin_that_cannot_be_imported_is_named(site: Path) -> None:
    out = run_with(
        site,
        """
        from flowchunk.datasets.errors import ConfigurationError
        from flowchunk.policy.diffusion.solvers import SOLVERS
        try:
            SOLVERS["broken"]
        except ConfigurationError as error:
            print(error)
        """,
    )
    assert "the solver 'broken' of the installed plug-in their_package:missing cannot be imported" in out


def test_an_objective_says_whether_its_samples_start_from_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(objective="regression")
    with pytest.raises(ConfigurationError, match="does not start from noise"):
        policy.with_sampling(noise_scale=0.5)
    monkeypatch.setattr(type(policy.objective), "starts_from_noise", True)
    assert policy.with_sampling(noise_scale=0.5).config.sampling.noise_scale == 0.5
