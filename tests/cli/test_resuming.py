"""Going on with a run: as if nothing had happened, with what makes no difference, and not with what does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from omegaconf import OmegaConf
from safetensors.torch import load_file

from flowchunk.cli.main import main
from flowchunk.cli.runs import write_options
from flowchunk.policy.chunk_policy import ChunkPolicy
from tests.cli.training_commands import description, metrics, pusht


def test_a_folder_that_holds_a_run_is_refused(
    trained_run: Path, pusht_store: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()}
    assert main(pusht(pusht_store, trained_run, *tiny)) == 1
    message = capsys.readouterr().err
    assert str(trained_run) in message
    assert "training.resume=true" in message
    assert {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()} == before


def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(
    trained_run: Path,
    interrupted_run: Path,
    pusht_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted_run, run)
    assert description(run / "checkpoints" / "last")["training"]["step"] == 2
    assert main(pusht(pusht_store, run, *tiny, "training.resume=true")) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    for name in ("last/model", "last/training_state", "best/model"):
        file = f"checkpoints/{name}.safetensors"
        ours, theirs = load_file(run / file), load_file(trained_run / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    timeless = [
        [{k: v for k, v in entry.items() if k != "steps_per_second"} for entry in metrics(one)]
        for one in (run, trained_run)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.learning_rate=0.002", "training.learning_rate: 0.001 then, 0.002 now"),
        ("seed=1", "seed: 0 then, 1 now"),
        ("env.physics_step=0.005", "env.physics_step: None then, 0.005 now"),
        ("network.width=16", "network.width: 32 then, 16 now"),
        ("dataset.symmetry=null", "dataset.symmetry.action.offset: [512, 512] then, None now"),
    ],
)
def test_resuming_with_other_options_is_refused(
    override: str,
    named: str,
    interrupted_run: Path,
    pusht_store: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(pusht(pusht_store, interrupted_run, *tiny, "training.resume=true", override)) == 1
    assert named in capsys.readouterr().err


def test_resuming_takes_what_makes_no_difference(
    trained_run: Path, interrupted_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """Another place of the data, another cache, device and evaluation, and an option that came with an upgrade."""
    run, moved = tmp_path / "run", tmp_path / "moved.zarr"
    shutil.copytree(interrupted_run, run)
    shutil.copytree(pusht_store, moved)
    saved = OmegaConf.load(run / "config.yaml")
    del saved.policy.mask_padding
    del saved.training.channels_last
    OmegaConf.save(saved, run / "config.yaml")
    few = [option for option in tiny if not option.startswith(("device", "training.checkpoint_every"))]
    more = ("dataset.cache=ram", "training.prefetch=true", "training.checkpoint_every=3", "training.evaluate_every=4")
    command = pusht(moved, run, *few, *more, "evaluation.seed=7", "logging.wandb=false", "training.resume=true")
    assert main(command) == 0
    ours, theirs = (load_file(one / "checkpoints/last/model.safetensors") for one in (run, trained_run))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_an_option_that_came_with_an_upgrade_was_as_it_is_by_default(
    interrupted_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted_run, run)
    saved = OmegaConf.load(run / "config.yaml")
    del saved.policy.mask_padding
    OmegaConf.save(saved, run / "config.yaml")
    assert main(pusht(pusht_store, run, *tiny, "training.resume=true", "policy.mask_padding=true")) == 1
    assert "(policy.mask_padding: False then, True now)" in capsys.readouterr().err


def test_an_mlp_of_before_the_skip_is_resumed_without_it(
    interrupted_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted_run, run)
    saved = OmegaConf.load(run / "config.yaml")
    del saved.network.skip
    OmegaConf.save(saved, run / "config.yaml")
    assert main(pusht(pusht_store, run, *tiny, "training.resume=true")) == 1
    assert "(network.skip: False then, True now); resume it with the same ones" in capsys.readouterr().err


def test_a_run_that_was_started_with_the_former_names_is_resumed(
    interrupted_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted_run, run)
    saved: Any = OmegaConf.load(run / "config.yaml")
    for section, old, new in (
        ("policy", "snr_cap", "min_snr_gamma"),
        ("policy", "noise_draws", "num_noise_samples"),
        ("training", "accumulate", "num_micro_batches"),
    ):
        saved[section][old] = saved[section].pop(new)
    OmegaConf.save(saved, run / "config.yaml")
    assert main(pusht(pusht_store, run, *tiny, "training.resume=true")) == 0
    assert "resuming from step 2" in capsys.readouterr().out


def test_a_model_of_a_folder_that_was_started_with_the_former_names_is_resumed(
    image_run: Path,
    image_folder: Path,
    tmp_path: Path,
    tiny_generative: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(image_run, run)
    saved: Any = OmegaConf.load(run / "config.yaml")
    dataset = saved.pop("dataset")
    saved.dataset = dataset.path
    for name in ("samples", "size", "invert", "half"):
        saved[name] = dataset[name]
    OmegaConf.save(saved, run / "config.yaml")
    options = (f"output_dir={run}", *tiny_generative, "training.resume=true")
    assert main(["train", "task=images", "dataset=folder", f"dataset.path={image_folder}", *options]) == 0
    assert "resuming from step 20" in capsys.readouterr().out
    others = f"dataset.path={image_folder / 'cats'}"
    assert main(["train", "task=images", "dataset=folder", others, *options]) == 1
    assert f"(dataset.path: {image_folder} then, {image_folder / 'cats'} now)" in capsys.readouterr().err


def test_resuming_on_other_data_is_refused(
    interrupted_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other.zarr"
    shutil.copytree(interrupted_run, run)
    shutil.copytree(pusht_store, other)
    states: Any = zarr.open_group(other, mode="a")["data/state"]
    states[:] = states[:] * 0.5 + 100
    before = (run / "checkpoints" / "last" / "model.safetensors").read_bytes()
    assert main(pusht(other, run, *tiny, "training.resume=true")) == 1
    assert "was trained on other data: normalizer differ" in capsys.readouterr().err
    assert (run / "checkpoints" / "last" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "training: [", "- 1"])
def test_resuming_without_its_options_does_not_start_over(
    content: str | None,
    interrupted_run: Path,
    pusht_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted_run, run)
    if content is None:
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_text(content)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(pusht(pusht_store, run, *tiny, "training.resume=true")) == 1
    message = capsys.readouterr().err
    assert "config.yaml" in message
    assert "restore it" in message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_plan_times_no_more_rows_at_once_than_a_step_has(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = ChunkPolicy.forward

    def watched(self: ChunkPolicy, batch: Any, draws: Any) -> Any:
        rows.append(len(batch["action"]))
        return forward(self, batch, draws)

    monkeypatch.setattr(ChunkPolicy, "forward", watched)
    assert main(pusht(pusht_store, tmp_path / "run", *tiny, "training.num_micro_batches=8")) == 0
    assert set(rows) == {2}


def test_resuming_where_nothing_is_starts_a_run(pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    assert main(pusht(pusht_store, tmp_path / "run", *tiny, "training.resume=true")) == 0
    assert [entry["step"] for entry in metrics(tmp_path / "run") if "loss" in entry] == [3, 6]


def test_a_crash_while_options_are_written_leaves_the_former_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_options(tmp_path, {"seed": 0})
    before = (tmp_path / "config.yaml").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_options(tmp_path, {"seed": 1})
    assert (tmp_path / "config.yaml").read_text() == before
    write_options(tmp_path, {"seed": 1})
    assert (tmp_path / "config.yaml").read_text() != before
