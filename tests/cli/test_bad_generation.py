"""Wrong options of objectives, images and generation: one clear line as the error, and no file is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowchunk.cli.main import main
from tests.cli.folders import contents


@dataclass(frozen=True)
class Places:
    """What is there, and a folder for what a test makes."""

    toy: Path
    images: Path
    regression: Path
    torus: Path
    unguidable: Path
    policy: Path
    store: Path
    image_folder: Path
    folder: Path

    def train(self, task: str, *options: str) -> list[str]:
        return ["train", f"task={task}", f"output_dir={self.folder / 'new'}", "device=cpu", *options]

    def train_robot(self, *options: str) -> list[str]:
        return self.train("pusht_state", f"dataset.path={self.store}", *options)

    def train_images(self, *options: str) -> list[str]:
        return self.train_folder(f"dataset.path={self.image_folder}", *options)

    def generate(self, run: Path, *options: str) -> list[str]:
        return ["generate", str(run), f"output_dir={self.folder / 'new'}", "n=10", *options]

    def eval(self, run: Path, *options: str) -> list[str]:
        return ["eval", str(run), f"output_dir={self.folder / 'new'}", "video=0", "episodes=1", *options]

    def sweep(self, run: Path, *options: str) -> list[str]:
        return ["sweep", str(run), f"output_dir={self.folder / 'new'}", "n=10", "episodes=1", *options]

    def folder_of(self, *sizes: tuple[int, int]) -> str:
        """``dataset.path=`` a folder with an image of each size (width, height), or with none."""
        for number, (width, height) in enumerate(sizes):
            Image.fromarray(np.full((height, width), 9 * number, np.uint8)).save(self.folder / f"{number}.png")
        return f"dataset.path={self.folder}"

    def train_folder(self, folder: str, *options: str) -> list[str]:
        return self.train("images", "dataset=folder", folder, *options)

    @property
    def unreadable_folder(self) -> str:
        dataset = self.folder_of(*[(8, 8)] * 4)
        (self.folder / "2.png").write_bytes(b"\x89PNG, but no more")
        return dataset

    @property
    def file(self) -> Path:
        """A file where a folder would be needed."""
        path = self.folder / "a_file"
        path.write_text("not a folder")
        return path


@pytest.fixture(scope="session")
def runs(
    image_folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_generative: Sequence[str]
) -> dict[str, Path]:
    """Models that admit less than others: one number of calls, no Gaussian solver, no guidance."""
    options = {"regression": ("task=toy2d", "objective=regression"), "torus": ("task=torus",)}
    options["unguidable"] = ("task=images", "dataset=folder", f"dataset.path={image_folder}", "model.label_dropout=0")
    folder = tmp_path_factory.mktemp("runs")
    for name, chosen in options.items():
        assert main(["train", *chosen, f"output_dir={folder / name}", *tiny_generative, "training.steps=10"]) == 0
    return {name: folder / name for name in options}


@pytest.fixture(scope="session")
def regression_policy(pusht_store: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A robot's policy that admits only one network evaluation."""
    run = tmp_path_factory.mktemp("runs") / "regression_policy"
    command = ["train", "task=pusht_state", f"dataset.path={pusht_store}", f"output_dir={run}", *tiny]
    assert main([*command, "objective=regression"]) == 0
    return run


@pytest.fixture
def places(
    toy_run: Path,
    image_run: Path,
    regression_policy: Path,
    runs: dict[str, Path],
    pusht_store: Path,
    image_folder: Path,
    tmp_path: Path,
) -> Iterator[Places]:
    """Afterwards the runs are byte for byte what they were, and nothing new was made."""
    places = Places(
        toy=toy_run,
        images=image_run,
        policy=regression_policy,
        store=pusht_store,
        image_folder=image_folder,
        folder=tmp_path,
        **runs,
    )
    before = contents(toy_run, image_run, regression_policy, *runs.values())
    yield places
    assert contents(toy_run, image_run, regression_policy, *runs.values()) == before
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())


ALL_OBJECTIVES = "flow, noise_prediction, data_prediction, v, posterior, regression, mip, flow_map"
NORMAL = "time_density=logit_normal"
STD = "time_density_options.std"

Command = Callable[[Places], list[str]]
WRONG_COMMANDS: dict[str, tuple[Command, list[str]]] = {
    # objectives and schedules, on toys and on robots
    "unknown objective": (lambda at: at.train("toy2d", "objective=flwo"), ["'flwo'", ALL_OBJECTIVES]),
    "unknown objective of a robot": (lambda at: at.train_robot("objective=flwo"), ["'flwo'", ALL_OBJECTIVES]),
    "unknown schedule": (
        lambda at: at.train("toy2d", "objective=v", "schedule=quadratic"),
        ["'quadratic'", "linear, linear_beta, cosine, sigmoid"],
    ),
    "unknown schedule of a robot": (
        lambda at: at.train_robot("objective=v", "schedule=quadratic"),
        ["'quadratic'", "linear, linear_beta, cosine, sigmoid"],
    ),
    "impossible pair": (
        lambda at: at.train("toy2d", "objective=flow", "schedule=cosine"),
        ["objective=flow", "schedule=cosine", "infinite", "schedule=linear", "objective=v"],
    ),
    "impossible pair of a robot": (
        lambda at: at.train_robot("objective=flow", "schedule=cosine"),
        ["objective=flow", "schedule=cosine", "infinite", "schedule=linear", "objective=v"],
    ),
    "flow map on a curve": (
        lambda at: at.train("toy2d", "objective=flow_map", "schedule=sigmoid"),
        ["objective=flow_map", "schedule=sigmoid"],
    ),
    "schedule of what has none": (
        lambda at: at.train_robot("objective=mip", "schedule=linear"),
        ["objective=mip has no schedule", "leave it out"],
    ),
    "noise on angles": (
        lambda at: at.train("torus", "objective=v"),
        ["objective=v", "Gaussian path", "flow, flow_map"],
    ),
    "schedule on angles": (lambda at: at.train("torus", "schedule=linear"), ["schedule=linear", "leave it out"]),
    "weight of another objective": (
        lambda at: at.train("toy2d", "model.min_snr_gamma=5"),
        ["min_snr_gamma=5", "objective=data_prediction, not flow"],
    ),
    "noise of the ancestral sampler": (lambda at: at.train("toy2d", "model.eta=2"), ["eta=2", "from 0 to 1"]),
    "prefix of a regression": (
        lambda at: at.train_robot("objective=regression", "policy.prefix_max=4"),
        ["prefix_max=4", "objective=regression cannot take a prefix"],
    ),
    # time densities
    "unknown density": (
        lambda at: at.train("toy2d", "model.time_density=gamma"),
        ["'gamma'", "uniform, beta, logit_normal, mode"],
    ),
    "negative width": (
        lambda at: at.train("toy2d", f"model.{NORMAL}", f"model.{STD}=-1"),
        ["logit_normal", "std=-1", "above 0"],
    ),
    "negative width of a robot": (
        lambda at: at.train_robot(f"policy.{NORMAL}", f"policy.{STD}=-1"),
        ["logit_normal", "std=-1", "above 0"],
    ),
    "width as text": (
        lambda at: at.train("toy2d", f"model.{NORMAL}", f"model.{STD}=wide"),
        ["logit_normal", "std=wide", "must be a number"],
    ),
    "unknown parameter": (
        lambda at: at.train("toy2d", f"model.{NORMAL}", "model.time_density_options.sdt=1"),
        ["logit_normal", "sdt", "it takes mean, std"],
    ),
    "parameter of what takes none": (
        lambda at: at.train_robot("policy.time_density_options.mean=1"),
        ["beta", "mean", "takes no parameters"],
    ),
    "mode too sharp": (
        lambda at: at.train("toy2d", "model.time_density=mode", "model.time_density_options.scale=3"),
        ["mode", "scale=3", "1.752"],
    ),
    # data
    "unknown domain": (lambda at: ["train", "task=toy3d"], ["'toy3d'", "images, metaworld, obstacle", "torus, toy2d"]),
    "unknown toy": (
        lambda at: at.train("toy2d", "dataset=rings"),
        ["'rings'", "8gaussians, checkerboard, spiral, two_moons"],
    ),
    "unknown obstacle": (lambda at: at.train("obstacle", "dataset=wall"), ["'wall'", "task=obstacle", "two_sides"]),
    "unknown arm": (lambda at: at.train("torus", "dataset=ur5"), ["'ur5'", "task=torus", "planar_arm"]),
    "path of a robot's data": (
        lambda at: at.train("toy2d", "dataset.path=some.zarr"),
        ["unknown option 'dataset.path'", "did you mean dataset"],
    ),
    "toys to collect": (
        lambda at: ["collect", "task=toy2d", f"output_dir={at.folder / 'new'}"],
        ["task=toy2d is not a robot's task", "flowchunk train"],
    ),
    "no images": (lambda at: at.train_folder(at.folder_of()), ["expected images (.png, .jpg, .jpeg)", "none"]),
    "images that are not there": (
        lambda at: at.train_folder("dataset.path=no/such/folder"),
        ["no/such/folder", "found nothing", "check the path"],
    ),
    "file that is no archive": (lambda at: at.train_folder(f"dataset.path={at.file}"), ["a_file", ".zip archive"]),
    "unreadable image": (
        lambda at: at.train_folder(at.unreadable_folder),
        ["2.png: is not a readable image", "replace or remove"],
    ),
    "mixed sizes": (
        lambda at: at.train_folder(at.folder_of((8, 8), (8, 8), (9, 8), (8, 8))),
        ["one size", "0.png is 8x8", "2.png is 9x8", "size=32"],
    ),
    "oblong images": (
        lambda at: at.train_folder(at.folder_of(*[(12, 8)] * 4)),
        ["12x8", "not square", "give dataset.size=8"],
    ),
    "too few images": (lambda at: at.train_folder(at.folder_of((8, 8), (8, 8))), ["2 images", "at least 9"]),
    "no pixels": (lambda at: at.train_images("dataset.size=0"), ["size", "at least 1", "not 0"]),
    "half of points": (lambda at: at.train("toy2d", "dataset.half=0"), ["half=0", "task=toy2d has no such option"]),
    "size of angles": (lambda at: at.train("torus", "dataset.size=8"), ["size=8", "task=torus has no such option"]),
    "third half": (lambda at: at.train_images("dataset.half=3"), ["dataset.half=3", "must be 0, 1 or null"]),
    "more images than there are": (lambda at: at.train_images("dataset.samples=65"), ["samples=65", "43 images"]),
    "more images than in a half": (
        lambda at: at.train_images("dataset.half=1", "dataset.samples=33"),
        ["samples=33", "21 images"],
    ),
    "a single sample": (lambda at: at.train("toy2d", "dataset.samples=1"), ["dataset.samples=1", "at least 2"]),
    "samples as text": (lambda at: at.train("toy2d", "dataset.samples=some"), ["samples=some", "a whole number"]),
    # models
    "misspelt option": (
        lambda at: at.train("toy2d", "model.couplin=ot"),
        ["'model.couplin'", "did you mean model.coupling"],
    ),
    "misspelt option beside a network": (
        lambda at: at.train("images", "network=local_conv", "network.receptive_field=3", "training.stpes=5"),
        ["'training.stpes'", "did you mean training.steps"],
    ),
    "option of robots": (lambda at: at.train("toy2d", "policy.horizon=8"), ["unknown option 'policy.horizon'"]),
    "unknown coupling": (lambda at: at.train("toy2d", "model.coupling=tight"), ["'tight'", "independent, ot"]),
    "coupling with classes": (
        lambda at: at.train_images("model.coupling=ot"),
        ["coupling=ot is for unconditional data", "skewed", "coupling=independent"],
    ),
    "coupling with a condition": (
        lambda at: at.train("obstacle", "model.coupling=ot"),
        ["coupling=ot is for unconditional data", "skewed", "coupling=independent"],
    ),
    "augmented toys": (lambda at: at.train("toy2d", "model.augment=true"), ["augment=true", "only for images"]),
    "class always hidden": (
        lambda at: at.train_images("model.label_dropout=1"),
        ["label_dropout=1", "at least 0 and below 1"],
    ),
    "image network on toys": (
        lambda at: at.train("toy2d", "network=unet2d"),
        ["'unet2d'", "(1, 2)", "mlp, mixer, dit, unet1d, gru"],
    ),
    "image network on a robot": (
        lambda at: at.train_robot("network=patch_dit"),
        ["'patch_dit'", "mlp, mixer, dit, unet1d, gru"],
    ),
    "images that cannot be halved": (
        lambda at: at.train_images("dataset.size=6", "network.widths=[8,16,16]"),
        ["size=6", "multiple of 4", "fewer widths"],
    ),
    "widths as a number": (lambda at: at.train_images("network.widths=64"), ["network.widths=64", "a list"]),
    "even field of view": (
        lambda at: at.train_images("network=local_conv", "network.receptive_field=4"),
        ["receptive_field=4", "odd"],
    ),
    "solver that does not fit": (
        lambda at: at.train("torus", "model.solver=ddim"),
        ["solver=ddim", "Gaussian path", "euler, midpoint, heun, rk4"],
    ),
    "nfe of the selection": (
        lambda at: at.train("toy2d", "objective=mip", "evaluation.nfe=4"),
        ["nfe=4", "objective=mip admits only 2"],
    ),
    "negative selection": (
        lambda at: at.train("toy2d", "evaluation.samples=-1"),
        ["evaluation.samples=-1", "at least 0"],
    ),
    "weights to start from": (
        lambda at: at.train("toy2d", f"training.init_from={at.toy}"),
        ["training.init_from is for policies only"],
    ),
    "run in the way": (
        lambda at: at.train("toy2d", f"output_dir={at.toy}"),
        ["holds a training run", "training.resume=true"],
    ),
    # generate
    "nothing to generate": (lambda at: ["generate"], ["flowchunk generate CHECKPOINT"]),
    "options without a model": (lambda at: ["generate", "n=3"], ["flowchunk generate CHECKPOINT"]),
    "model that is not there": (lambda at: ["generate", "no/such/run"], ["no/such/run", "no such path"]),
    "option of nothing": (lambda at: at.generate(at.toy, "gidance=2"), ["'gidance'", "did you mean guidance"]),
    "policy to generate": (lambda at: at.generate(at.policy), ["'chunk_policy'", "'generative_model' was expected"]),
    "no samples": (lambda at: at.generate(at.toy, "n=0"), ["n=0", "at least 2"]),
    "no floor": (lambda at: at.generate(at.toy, "floor_pairs=0"), ["floor_pairs=0", "at least 1"]),
    "no calls": (lambda at: at.generate(at.toy, "nfe=0"), ["nfe=0", "positive"]),
    "calls as text": (lambda at: at.generate(at.toy, "nfe=many"), ["nfe=many", "a whole number"]),
    "nfe of a regression": (
        lambda at: at.generate(at.regression, "nfe=4"),
        ["nfe=4", "objective=regression admits only 1"],
    ),
    "odd nfe of Heun": (lambda at: at.generate(at.toy, "solver=heun", "nfe=3"), ["nfe=3", "heun", "multiple of 2"]),
    "odd nfe with guidance": (
        lambda at: at.generate(at.images, "guidance=1.5", "nfe=3"),
        ["nfe=3", "two network evaluations", "even number"],
    ),
    "guidance of a model without classes": (
        lambda at: at.generate(at.toy, "guidance=1.5"),
        ["guidance=1.5", "has no classes"],
    ),
    "guidance of what was never without": (
        lambda at: at.generate(at.unguidable, "guidance=1.5"),
        ["guidance=1.5", "label_dropout=0"],
    ),
    "label of a model without classes": (lambda at: at.generate(at.toy, "label=3"), ["label=3", "has no classes"]),
    "unknown label": (lambda at: at.generate(at.images, "label=cows"), ["'cows'", "0 to 1", "cats, dogs"]),
    "label too high": (lambda at: at.generate(at.images, "label=2"), ["label 2", "0 to 1", "cats, dogs"]),
    "fraction of a label": (
        lambda at: at.generate(at.images, "label=0.5"),
        ["label=0.5", "a whole number or a name"],
    ),
    "too few of a class": (
        lambda at: at.generate(at.images, "label=1", "n=2", "nfe=2"),
        ["label=1", "too few", "larger n"],
    ),
    "unknown solver": (
        lambda at: at.generate(at.toy, "solver=verlet"),
        ["'verlet'", "euler, midpoint", "diffusers_ddim"],
    ),
    "solver of flow maps": (
        lambda at: at.generate(at.toy, "solver=flow_map"),
        ["solver=flow_map needs objective=flow_map, not this flow"],
    ),
    "solver of diffusers": (
        lambda at: at.generate(at.toy, "solver=diffusers_ddpm"),
        ["diffusers_ddpm", "not this flow"],
    ),
    "solver of a Gaussian path": (
        lambda at: at.generate(at.torus, "solver=dpm_solver"),
        ["dpm_solver", "Gaussian path"],
    ),
    "samples below a file": (lambda at: at.generate(at.toy, f"output_dir={at.file}/new"), ["a_file/new"]),
    # eval
    "toy in simulation": (lambda at: at.eval(at.toy), ["'generative_model'", "'chunk_policy' was expected"]),
    "nfe of a robot's regression": (lambda at: at.eval(at.policy, "nfe=4"), ["nfe=4", "admits only 1"]),
    "solver of what has none": (
        lambda at: at.eval(at.policy, "solver=heun"),
        ["objective=regression has no solver", "solver=heun"],
    ),
    "task of a checkpoint": (lambda at: at.eval(at.policy, "task=pusht_state"), ["unknown option 'task'"]),
    # sweep
    "nothing to sweep": (lambda at: ["sweep", "nfe=[1]"], ["flowchunk sweep CHECKPOINT"]),
    "sweep of no calls": (lambda at: at.sweep(at.toy, "nfe=[0]"), ["nfe=[0]", "whole numbers of at least 1"]),
    "sweep of nothing": (lambda at: at.sweep(at.toy, "nfe=[]"), ["nfe=[]", "whole numbers of at least 1"]),
    "sweep of fractions": (lambda at: at.sweep(at.policy, "nfe=[1.5]"), ["nfe=[1.5]", "whole numbers"]),
    "sweep of a word": (lambda at: at.sweep(at.toy, "nfe=many"), ["nfe=many", "a list"]),
    "sweep of a number": (lambda at: at.sweep(at.toy, "nfe=4"), ["nfe=4", "a list"]),
    "sweep of what is refused": (
        lambda at: at.sweep(at.regression, "nfe=[2,4]"),
        ["none of nfe=[2, 4] is valid", "objective=regression admits only 1"],
    ),
    "sweep of what a policy refuses": (
        lambda at: at.sweep(at.policy, "nfe=[2,4]"),
        ["none of nfe=[2, 4] is valid", "admits only 1"],
    ),
    "sweep with guidance of no class": (lambda at: at.sweep(at.toy, "guidance=2"), ["guidance=2", "has no classes"]),
    "sweep of no samples": (lambda at: at.sweep(at.toy, "n=0"), ["n=0", "at least 2"]),
    "sweep of no episodes": (lambda at: at.sweep(at.policy, "episodes=0"), ["episodes=0", "at least 1"]),
}


@pytest.mark.parametrize("name", WRONG_COMMANDS)
def test_a_wrong_command_is_explained(name: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    command, expected = WRONG_COMMANDS[name]
    arguments = command(places)
    capsys.readouterr()
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, f"more than one line:\n{captured.err}"
    assert "Traceback" not in captured.err + captured.out
    assert all(part in captured.err for part in expected), f"{captured.err!r} does not say all of {expected}"
    assert len(captured.err) < 1000
