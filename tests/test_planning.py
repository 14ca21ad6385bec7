"""What a run on many GPUs needs: against real processes, torch's sharding of known shapes, and sums by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_multiscale import TWO

from byteloom import recipes
from byteloom.clusters import GPUS, Cluster
from byteloom.commands import UsageError, info
from byteloom.models.config import ModelConfig, StageConfig
from byteloom.planning import RankWatch, count_chunks, plan_run, resizes_noted
from byteloom.sizing import Plan, build, memory, stage_costs
from byteloom.train.loop import RunConfig, TrainConfig
from byteloom.train.optim import OptimConfig, is_matrix

SMALL = ModelConfig(
    stages=(
        StageConfig(dim=64, num_layers=2, num_heads=2, patch_size=4),
        StageConfig(dim=32, num_layers=3, num_heads=2, window=8),
    ),
    context=128,
)


def a_run(model: ModelConfig = SMALL, optimizer: str = "muon", **settings: object) -> RunConfig:
    """A run of a few rows in fp32 that keeps all activations."""
    chosen = {"batch_size": 8, "steps": 1, "precision": "fp32", "activation_memory": 64.0} | settings
    return RunConfig(model=model, optim=OptimConfig(optimizer=optimizer), train=TrainConfig(**chosen))  # type: ignore[arg-type]


def rows_here(size: int, ranks: int) -> int:
    """How many of `size` rows the first rank has."""
    return -(-size // ranks)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("cluster", [Cluster(gpus=1), Cluster(gpus=4), Cluster(gpus=8, replicas=2)])
def test_what_a_rank_holds_is_its_rows_of_every_parameter(optimizer: str, cluster: Cluster) -> None:
    held = plan_run(a_run(optimizer=optimizer), cluster).memory
    shards = cluster.gpus // cluster.replicas
    named = dict(build(SMALL).named_parameters())
    sizes = {name: 4 * rows_here(p.shape[0], shards) * p[0].numel() for name, p in named.items()}
    once = {name for name, p in named.items() if optimizer == "muon" and is_matrix(name, p)}
    assert held.weights == held.gradients == sum(sizes.values())
    state = sum(size * (1 if name in once else 2) for name, size in sizes.items())
    assert state <= held.optimizer <= state + 8 * len(named), "and AdamW counts its steps"


def test_traffic_is_that_of_rings() -> None:
    run, cluster = a_run(optimizer="adamw"), Cluster(gpus=8, replicas=2)
    traffic = plan_run(run, cluster).traffic
    padded = {name: 4 * 4 * rows_here(p.shape[0], 4) * p[0].numel() for name, p in build(SMALL).named_parameters()}
    inside = sum(size for name, size in padded.items() if name.startswith("stacks."))
    outside = sum(padded.values()) - inside
    # Stages are gathered before the forward and before the backward pass, the rest stays whole between them.
    assert traffic.all_gather == pytest.approx(3 / 4 * (2 * inside + outside))
    assert traffic.reduce_scatter == pytest.approx(3 / 4 * (inside + outside))
    assert traffic.all_reduce == pytest.approx(2 * 1 / 2 * (inside + outside) / 4)
    assert traffic.exchange == 0
    assert plan_run(a_run(optimizer="muon"), cluster).traffic.exchange > 0


def test_one_gpu_sends_nothing_and_keeps_what_sizing_says() -> None:
    plan = plan_run(a_run(), Cluster())
    assert set(vars(plan.traffic).values()) == {0} and plan.seconds.communication == 0
    alone = memory(SMALL, batch_size=8, precision="fp32")
    assert plan.memory.activations == pytest.approx(alone["activations"], rel=0.01)
    assert plan.caches == alone["caches"]
    assert plan.memory.total >= sum(alone[name] for name in ("weights", "optimizer", "activations"))


def test_accumulation_keeps_whole_gradients_and_sums_them_once() -> None:
    once, thrice = (plan_run(a_run(accumulation=passes), Cluster(gpus=4)) for passes in (1, 3))
    parameters = sum(p.numel() for p in build(SMALL).parameters())
    assert once.memory.unreduced == 0
    assert thrice.memory.unreduced == pytest.approx(4 * parameters, rel=0.05)
    assert thrice.traffic.reduce_scatter == once.traffic.reduce_scatter
    assert thrice.traffic.all_gather == 3 * once.traffic.all_gather
    assert thrice.memory.total > once.memory.total
    assert thrice.seconds.compute == pytest.approx(3 * once.seconds.compute)
    assert thrice.bytes_per_step == 3 * once.bytes_per_step == 3 * 8 * 128


def test_computing_again_saves_memory_and_takes_time() -> None:
    whole = plan_run(a_run(), Cluster(gpus=2))
    lean = plan_run(a_run(activation_memory=1e-6), Cluster(gpus=2))
    assert whole.recomputation == Plan() and lean.recomputation.recompute == (0,)
    assert lean.memory.activations < 0.85 * whole.memory.activations
    assert lean.seconds.compute > whole.seconds.compute
    forward = sum(cost.flops for cost in stage_costs(SMALL))
    assert whole.seconds.compute == pytest.approx(3 * forward * 4 * 128 / (GPUS["h100"].flops_fp32 * 0.4))


def test_chunks_are_counted_as_the_model_cuts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build(SMALL), []
    monkeypatch.setattr(model, "nats_of", lambda *given: (seen.append(1), given)[1] and (torch.zeros(1, 1), []))
    monkeypatch.setattr(model, "coarsest", lambda *given: torch.zeros(2, 32, 64))
    for chunk in (16, 60, 100, 255, 256):
        seen.clear()
        with torch.no_grad():
            if chunk < 256:
                model.nats(torch.zeros(2, 128, dtype=torch.long), chunk)
        assert count_chunks(SMALL, 2, Plan(chunk=chunk)) == max(len(seen), 1)


def test_live_bytes_follow_storages_that_change_their_size() -> None:
    own = torch.UntypedStorage.resize_
    with RankWatch() as watch, resizes_noted(watch):
        x = torch.zeros(100)
        y = x + 1
        assert watch.now == 800
        y.untyped_storage().resize_(0)
        assert watch.now == 400
        del x
        assert watch.now == 0 and watch.peak == 800
        y.untyped_storage().resize_(4000)
        assert watch.now == watch.peak == 4000
    assert torch.UntypedStorage.resize_ is own


def test_days_and_cost_follow_from_speed() -> None:
    plan = plan_run(a_run(), Cluster(gpus=2, price=3.0))
    run = plan.describe(1e9)["run"]
    assert run["days"] * 86400 * plan.bytes_per_second == pytest.approx(1e9)
    assert run["gpu_hours"] == pytest.approx(run["days"] * 48) and run["cost"] == pytest.approx(3 * run["gpu_hours"])
    json.dumps(plan.describe())
    assert not dist.is_initialized()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 8 sequences cannot be shared by 3 ranks; take a multiple of 3"):
        plan_run(a_run(), Cluster(gpus=3))


def test_a_plan_is_made_in_a_process_of_its_own(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="a process of its own"):
            plan_run(a_run(TWO), Cluster(gpus=2))
    finally:
        dist.destroy_process_group()


def test_the_command_plans_several_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["text-small", "--batch", "4", "--context", "64", "--bytes", "1e9", "--price", "2"]
    info.main([*options, "--gpus", "2", "4", "--json", "-"])
    numbers = json.loads(capsys.readouterr().out)
    assert [plan["gpus"] for plan in numbers["plans"]] == [2, 4] and numbers["context"] == 64
    assert all(plan["fits"] and plan["context"] == 64 and plan["run"]["cost"] > 0 for plan in numbers["plans"])
    info.main([*options, "--gpus", "2"])
    assert "all-gather a step" in (table := capsys.readouterr().out) and "GPU-hours" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "3", "--batch", "4"], "take a multiple of 3"),
        (["--gpus", "2", "--gpu", "tpu"], "known are a100"),
        (["--bytes", "1e12"], "add --gpus"),
    ],
)
def test_what_cannot_be_planned_is_bad_usage(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        info.main(["text-small", *options])


def check_against_processes(tmp_path: Path, *options: str) -> None:
    """Runs the benchmark, whose processes train for real: exact sizes of tensors, and the allocator's peak."""
    program = Path(__file__).parents[1] / "benchmarks" / "memory_plan.py"
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(program), *options, "--json", str(report)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for row in json.loads(report.read_text()):
        for name in ("weights", "gradients", "optimizer"):
            assert row["foreseen"][name] == row["measured"][name]
        assert abs(row["off"]) < 0.1
        assert row["measured"]["peak"] > 2 * row["measured"]["weights"]


def test_two_processes_need_what_was_foreseen(tmp_path: Path) -> None:
    options = ("--recipe", "text-small", "--processes", "2", "--context", "256", "--accumulation", "2")
    check_against_processes(tmp_path, *options)


@pytest.mark.benchmark
@pytest.mark.parametrize(
    "options", [(), ("--optimizer", "adamw", "--accumulation", "2", "--replicas", "2"), ("--precision", "bf16")]
)
def test_one_two_and_four_processes_need_what_was_foreseen(tmp_path: Path, options: tuple[str, ...]) -> None:
    check_against_processes(tmp_path, *options)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["paper-s6", "unified-8b"])
@pytest.mark.parametrize("cluster", [Cluster(gpus=64), Cluster(gpus=1024), Cluster(gpus=1024, replicas=128)])
def test_the_largest_recipes_fit_in_80_gb(name: str, cluster: Cluster) -> None:
    check_fit(name, cluster)


def test_a_large_recipe_fits_in_80_gb() -> None:
    """Sharded over 64 ranks, with a forward pass, a backward pass and an update; the longer proof has more of them."""
    check_fit("paper-s6", Cluster(gpus=64))


def check_fit(name: str, cluster: Cluster) -> None:
    """Plans a recipe, one row a rank, on a cluster, and checks the sizes that follow from its parameters."""
    run = recipes.by_name(name)
    run = replace(run, train=replace(run.train, batch_size=cluster.gpus))
    plan = plan_run(run, cluster)
    parameters = sum(p.numel() for p in build(run.model).parameters())
    assert parameters > 6e9
    share = 4 * parameters * cluster.replicas / cluster.gpus
    assert plan.memory.weights == pytest.approx(share, rel=0.05)
    assert plan.memory.optimizer == pytest.approx(2 * share, rel=0.05)
    assert plan.fits and plan.memory.total < 77e9
    assert 16 * parameters > plan.cluster.device.memory, "weights, gradients and AdamW's state alone fill one GPU"
