"""Multi-task unlearning: the projections against what they promise, and the method step by step."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_unlearn import UnlearningError, unlearn
from hf_unlearn.data.digits import Samples
from hf_unlearn.methods import Multitask, MultitaskConfig
from hf_unlearn.methods.ascent import OFFSET
from hf_unlearn.methods.gradients import blockwise, orthonormal, project, strongest
from hf_unlearn.methods.multitask import objective, project_out, project_within
from hf_unlearn.methods.orthograd import orthograd_update
from hf_unlearn.metrics import interference, uis
from hf_unlearn.training.context import Context
from tests import runs
from tests.runs import HEADS, SIZES, Runs, StopAt, launch, make_trainer, same_bits, weights
from tests.samples import arguments
from tests.training.test_trajectory import Run, case, check_same, run

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-6}
each_dtype = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def overlapping(d: int = 400, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A gradient, gradients of other tasks and gradients of instances, all with something in common."""
    common = random(4, d, seed=seed)
    q, r = (random(n, d, seed=seed + n) + random(n, 4, seed=seed + n + 1) @ common for n in (12, 9))
    return (*(x.to(dtype) for x in (random(d, seed=seed + 50) + common.sum(dim=0), q, r)),)


def hand_made(gradients: dict[str, Tensor], **config) -> Multitask:
    """The method at a step, with one block of weights, `t` to forget, and nothing to protect yet."""
    method = Multitask(MultitaskConfig(**{"rank_guard": 1.0, "clip": 0.0, **config}))
    method.active = method.targets = [name.removeprefix("forget_") for name in gradients if name != "retain"]
    method.groups, method.block_names = [[0]], ["weight"]
    method.bases, method.own, method.rows, method.kept = {t: [] for t in method.active}, {}, [], {}
    method.context = SimpleNamespace(log_step=lambda values: None)
    return method


def forget_part(method: Multitask, g: Tensor, retain: Tensor | None = None) -> Tensor:
    """ĝ_t of the method at this step."""
    return method._free("t", [g], [torch.zeros_like(g) if retain is None else retain])[0]


# ---------------------------------------------------------------------------------------------------------------------
# The projection


def by_function(g: Tensor, q: Tensor, r: Tensor) -> Tensor:
    return project_out(g, torch.cat([q, r]))


def by_method(g: Tensor, q: Tensor, r: Tensor) -> Tensor:
    method = hand_made({"forget_t": g})
    method.bases["t"], method.rows = [orthonormal(q)], [r]
    return forget_part(method, g)


def in_sequence(g: Tensor, q: Tensor, r: Tensor) -> Tensor:
    return project(project(g, orthonormal(q)), orthonormal(r))


def residuals(free: Tensor, q: Tensor, r: Tensor) -> tuple[float, float]:
    return tuple(((orthonormal(x) @ free).abs().max() / free.norm()).item() for x in (q, r))


@each_dtype
@pytest.mark.parametrize("joint", [by_function, by_method])
def test_projection(joint, dtype):
    for seed in range(5):
        g, q, r = overlapping(dtype=dtype, seed=100 * seed)
        free, tolerance = joint(g, q, r), PRECISION[dtype]
        assert 0.1 < free.norm() / g.norm() <= 1
        assert max(residuals(free, q, r)) < tolerance
        assert (joint(free, q, r) - free).norm() <= 1e-6 * free.norm()
        assert (free @ g).item() == pytest.approx((free @ free).item(), rel=10 * tolerance) and free @ g >= 0


def test_one_joint_projection_and_not_two_in_sequence():
    g, q, r = overlapping()
    assert residuals(in_sequence(g, r, q), q, r)[1] > 1e-3
    assert residuals(in_sequence(g, q, r), q, r)[0] > 1e-3
    assert max(residuals(by_method(g, q, r), q, r)) < 1e-6
    free, kept = by_method(g, q, r), in_sequence(g, q, r)
    assert (free.norm() / g.norm()).item() == pytest.approx((kept.norm() / g.norm()).item(), abs=0.05)


@each_dtype
@pytest.mark.parametrize("joint", [by_function, by_method])
def test_nothing_in_common(joint, dtype):
    basis = torch.linalg.qr(random(60, 60))[0].to(dtype)
    g = 3 * basis[0] - basis[1]
    free = joint(g, 7 * basis[2:10], basis[10:20] * 1e-4)
    assert (free - g).norm() <= 1e-6 * g.norm()


@each_dtype
def test_the_same_task_twice_is_infeasible(dtype):
    g, others, retain = (random(50, seed=i, dtype=dtype) for i in range(3))
    method = hand_made({"forget_t": g, "retain": retain})
    method.bases["t"] = [orthonormal(torch.stack([g, others]))]
    update = method.combine({"forget_t": [g.clone()], "retain": [retain]})[0]
    assert torch.equal(update, method.config.alpha * retain)
    assert len(method.notes) == 1 and method.notes[0].startswith("t: forgetting is infeasible")
    method.combine({"forget_t": [g.clone()], "retain": [retain]})
    assert len(method.notes) == 1  # said once


def test_hardly_feasible():
    g, retain = random(50), random(50, seed=1)
    method = hand_made({"forget_t": g})
    method.bases["t"] = [orthonormal((g + 0.01 * random(50, seed=2))[None])]
    method.combine({"forget_t": [g.clone()], "retain": [retain]})
    assert "hardly feasible" in method.notes[0]


def test_a_task_without_a_gradient_is_not_called_infeasible():
    """None of the step's samples is to be forgotten on it, or all are as bad as unseen ones; others go on."""
    gradients = {"forget_a": [random(50)], "forget_b": [torch.zeros(50)], "forget_c": [torch.zeros(50)]}
    gradients = {name: [g[0].double()] for name, g in gradients.items()}
    method = hand_made({**gradients, "retain": None}, alpha=0.0)
    update = method.combine({**gradients, "retain": [random(50, seed=1)]})[0]
    assert torch.allclose(update, -random(50), atol=1e-12) and method.notes == []


@each_dtype
def test_repeated_and_zero_gradients_add_nothing(dtype):
    rows = random(3, 40, dtype=dtype)
    many = torch.cat([rows, rows[:1], torch.zeros_like(rows[:2]), 1e-3 * rows[1:2], rows.sum(dim=0, keepdim=True)])
    assert len(orthonormal(many)) == 3 and len(strongest(many, 0.9999)) == 3
    assert orthonormal(torch.zeros_like(rows)).shape == strongest(torch.zeros_like(rows), 0.9).shape == (0, 40)
    g = random(40, seed=5, dtype=dtype)
    assert torch.allclose(project_out(g, many), project_out(g, rows), atol=PRECISION[dtype] * 10)
    assert torch.equal(project_out(g, torch.zeros_like(rows)), g)


def test_half_precision_is_projected_in_full():
    g, q, r = (x.to(torch.bfloat16) for x in overlapping())
    free = by_method(g, q.float(), r)
    assert max(residuals(free, q.float(), r.float())) < 1e-6
    assert (free - by_method(g.double(), q.double(), r.double())).norm() < 1e-3 * free.norm()
    assert torch.equal(by_function(g, q, r), by_function(g.float(), q.float(), r.float()))


def test_energy():
    """The fewest directions with this share of the energy, after every row was made equally long."""
    axes = torch.eye(6, dtype=torch.float64)
    rows = torch.cat([5 * axes[:1].expand(6, 6), axes[1:2].expand(3, 6), 1e-3 * axes[2:3]])
    for energy, rank in ((0.0, 0), (0.6, 1), (0.61, 2), (0.9, 2), (0.91, 3), (1.0, 3)):
        basis = strongest(rows, energy)
        assert basis.shape == (rank, 6)
        assert torch.allclose(basis @ axes[:rank].T @ axes[:rank], basis, atol=1e-12)


@each_dtype
def test_within_the_own_subspace(dtype):
    g, q, r = overlapping(dtype=dtype)
    q, tolerance = orthonormal(q), PRECISION[dtype]
    own = orthonormal(strongest(random(20, 400, seed=9, dtype=dtype), 1.0), q)
    method = hand_made({"forget_t": g}, mode="within")
    method.bases["t"], method.own["t"], method.rows = [q], [own], [r]
    free = forget_part(method, g, retain=r.mean(dim=0))
    assert torch.equal(free, project_within(g, own, orthonormal(torch.cat([r, r.mean(dim=0)[None]]))))
    assert free.norm() > 0.01 * g.norm()
    assert max(residuals(free, q, r)) < 10 * tolerance
    assert project(free, own).norm() < 10 * tolerance * free.norm()  # in the span of V
    assert (free @ g).item() == pytest.approx((free @ free).item(), rel=1e-4)

    method.own["t"] = [own[:6]]  # 9 instances need more than the 6 directions there are
    assert forget_part(method, g).norm() < 1e-5 * g.norm()
    assert torch.equal(project_within(g, own[:0], r), torch.zeros_like(g))
    assert torch.allclose(project_within(g, own, r[:0]), (own @ g) @ own)


def test_the_rank_guard_holds_small_blocks():
    large, small = random(100), random(10, seed=1)
    method = hand_made({"forget_t": None}, rank_guard=0.5, block="tensor")
    method.groups, method.block_names = [[0], [1]], ["large", "small"]
    method.rows = [random(6, 100, seed=2), random(6, 10, seed=3)]
    free = method._free("t", [large.view(20, 5), small], [torch.zeros(20, 5).double(), torch.zeros(10).double()])
    assert [part.shape for part in free] == [(20, 5), (10,)]
    assert not free[1].any() and free[0].any()
    assert method.report["kept"]["t"] == {"large": pytest.approx((free[0].norm() / large.norm()).item()), "small": 0.0}
    method.config.rank_guard = 0.6
    assert method._free("t", [large.view(20, 5), small], [torch.zeros(20, 5).double(), small * 0])[1].any()


# ---------------------------------------------------------------------------------------------------------------------
# The update


def test_restore_makes_up_for_length_but_not_for_all_of_it():
    g, retain = random(60), random(60, seed=1)
    for protected, factor in ((0.6 * g + random(60, seed=2), None), (g + 0.1 * random(60, seed=3), 3.0)):
        updates = {}
        for restore in (0.0, 3.0):
            method = hand_made({"forget_t": g}, restore=restore, alpha=0.0)
            method.bases["t"] = [orthonormal(protected[None])]
            updates[restore] = method.combine({"forget_t": [g.clone()], "retain": [retain]})[0]
        plain = project_out(g, protected[None])
        assert torch.allclose(updates[0.0], -plain, atol=1e-12)
        factor = factor or (g.norm() / plain.norm()).item()
        assert 1 < factor <= 3 and torch.allclose(updates[3.0], -factor * plain, atol=1e-10)


def test_clip():
    g, retain = random(60), random(60, seed=1)
    plain = hand_made({"forget_t": g}).combine({"forget_t": [g.clone()], "retain": [retain]})[0]
    assert plain.norm() > 1
    for longest in (0.5, 1.0, 1000.0):
        found = hand_made({"forget_t": g}, clip=longest).combine({"forget_t": [g.clone()], "retain": [retain]})[0]
        assert torch.allclose(found, plain * min(1, longest / plain.norm().item()), atol=1e-12)


def test_tasks_are_balanced():
    """w_t = median ‖g_s‖ / ‖g_t‖: each counts as one of the median's length."""
    gradients = {f"forget_{t}": [c * F.normalize(random(60, seed=i), dim=0)] for i, (t, c) in enumerate(
        {"a": 1e-3, "b": 2.0, "c": 100.0}.items())}  # fmt: skip
    retain = random(60, seed=7)
    update = hand_made(gradients, alpha=0.25).combine({**gradients, "retain": [retain]})[0]
    expected = 0.25 * retain - 0.75 * sum(2 * F.normalize(random(60, seed=i), dim=0) for i in range(3))
    assert torch.allclose(update, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["classification", "regression", "segmentation", "depth", "normals", None])
def test_objective(kind):
    losses = torch.tensor([0.1, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
    for of_classes in ("ce", "bounded"):
        (slope,) = torch.autograd.grad(objective(losses, kind, 2.0, of_classes).sum(), losses)
        if kind != "classification":
            assert objective(losses, kind, 2.0, of_classes).tolist() == pytest.approx([-1.9, -1.0, 0.0])
            assert slope.tolist() == [1, 1, 0]
        elif of_classes == "bounded":
            p = torch.exp(-losses.detach())
            assert slope.tolist() == pytest.approx((p / (1 + OFFSET - p)).tolist())
        else:
            assert slope.tolist() == [1, 1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# A model of one's own: three tasks on what two smooth layers say


class Net(nn.Module):
    def __init__(self, tasks=("a", "b", "c"), d: int = 10, h: int = 24, classes: int = 3, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(d, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(h, classes) for task in tasks})

    def forward(self, x):
        features = self.body(x)
        return {task: head(features) for task, head in self.heads.items()}


def losses_of(model, batch) -> dict[str, tuple[Tensor, Tensor]]:
    outputs = model(batch.inputs["x"])
    labels = {task: batch.labels[task].long() for task in outputs}
    return {
        task: (F.cross_entropy(out, labels[task], reduction="none"), (out.argmax(1) == labels[task]).double())
        for task, out in outputs.items()
    }


def own_data(tasks=("a", "b", "c"), dtype=torch.float64, forget: int = 8, retain: int = 24, unseen: int = 16) -> dict:
    """Random labels: what is right of them is remembered."""
    sets = {}
    for i, (name, n) in enumerate({"forget": forget, "retain": retain, "unseen": unseen}.items()):
        labels = torch.randint(3, (n, len(tasks)), generator=torch.Generator().manual_seed(i))
        sets[name] = Samples(x=random(n, 10, seed=10 + i, dtype=dtype), **dict(zip(tasks, labels.T, strict=True)))
    return sets


def fit(net: Net, sets: list[Samples], steps: int = 60) -> Net:
    x = torch.cat([s.columns["x"] for s in sets])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(steps):
        outputs = net(x)
        sum(F.cross_entropy(o, torch.cat([s.columns[t] for s in sets])) for t, o in outputs.items()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


@functools.cache
def _known(tasks: tuple[str, ...]) -> dict[str, Tensor]:
    data = own_data(tasks)
    return fit(Net(tasks).double(), [data["forget"], data["retain"]]).state_dict()


class Watched(Multitask):
    """Keeps what went into every step and came out of it."""

    def __init__(self, tasks=("a", "b", "c"), losses=losses_of, **config):
        super().__init__(MultitaskConfig(**config), losses=losses, tasks=list(tasks))
        self.bases_at, self.steps, self.looks = [], [], []

    def _take_bases(self, step):
        self.bases_at.append(step)
        super()._take_bases(step)

    def _still_active(self):
        self.looks.append(self.context._trainer.state.global_step)
        return super()._still_active()

    def combine(self, gradients):
        copies = {name: [g.clone() for g in gradient] for name, gradient in gradients.items()}
        update = super().combine(gradients)
        self.steps.append((copies, self.rows, dict(self.bases), [u.clone() for u in update]))
        return update


def run_own(
    folder: Path,
    tasks=("a", "b", "c"),
    asked=None,
    method=None,
    data=None,
    model=None,
    args=None,
    overlap="error",
    **config,
):
    model = model or Net(tasks).double()
    if not config.pop("fresh", False):
        model.load_state_dict(_known(tuple(tasks)))
    method = method or Watched(tasks, **{"batches": 6, "basis_batch_size": 4, **config})
    settings = {"learning_rate": 0.03, "max_steps": 3, **(args or {})}
    data = data or own_data(tasks)
    return unlearn(model, **data, tasks=asked, method=method, args=arguments(folder, **settings), overlap=overlap)


@pytest.mark.parametrize("mode", ["joint", "plain"])
def test_first_order(mode, tmp_path):
    """Protected instances feel a step of η from the forget part only as η², an unprotected step as η."""
    plain = {"energy": 0.0, "samples": 0} if mode == "plain" else {"energy": 0.0, "samples": 8}
    changes = []
    for rate in (4e-3, 2e-3):
        result = run_own(tmp_path, asked=["a"], alpha=0.0, clip=0.0, rank_guard=1.0, block="global", **plain,
                         args={"max_steps": 1, "learning_rate": rate})  # fmt: skip
        trainer, model = result.trainer, result.model
        n_retain, samples = 24, [d.index for d in trainer.schedule.step(0)["retain"]]
        places = [i if i < n_retain else list(trainer.request.kept)[i - n_retain] for i in samples]
        data = own_data()
        x = torch.stack([data["retain" if i < n_retain else "forget"].columns["x"][p] for i, p in zip(
            samples, places, strict=True)])  # fmt: skip
        labels = {t: torch.stack([data["retain" if i < n_retain else "forget"].columns[t][p] for i, p in zip(
            samples, places, strict=True)]) for t in "abc"}  # fmt: skip
        kept = torch.tensor([i < n_retain for i in samples])
        before = Net().double()
        before.load_state_dict(_known(("a", "b", "c")))
        total = [
            sum((F.cross_entropy(o, labels[t], reduction="none") * (kept if t == "a" else 1)).mean()
                for t, o in net(x).items()).item()
            for net in (before, model)
        ]  # fmt: skip
        changes.append(total[1] - total[0])
    ratio = changes[0] / changes[1]
    assert ratio == pytest.approx(4, abs=0.6) if mode == "joint" else ratio == pytest.approx(2, abs=0.2)


def test_one_task_with_blocks_of_tensors_is_orthograd(tmp_path):
    result = run_own(tmp_path, ["a"], block="tensor", rank_guard=1.0, clip=0.0, samples=8)
    method = result.trainer.method
    assert len(method.steps) == 3
    for gradients, rows, bases, update in method.steps:
        assert bases == {"a": []} and all(len(r) == 8 for r in rows)
        rows = [r.view(-1, *g.shape) for r, g in zip(rows, gradients["retain"], strict=True)]
        for r, g in zip(rows, gradients["retain"], strict=True):
            assert torch.allclose(r.mean(dim=0), g, rtol=1e-5, atol=1e-12)  # per-sample gradients make up the batch's
        expected = orthograd_update(rows, gradients["forget_a"], 0.5)
        for found, wanted, g in zip(update, expected, gradients["forget_a"], strict=True):
            assert (found - wanted).norm() <= 1e-10 * g.norm()


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_without_protection_it_is_neggrad(alpha, tmp_path):
    result = run_own(tmp_path, asked=["a", "b"], energy=0.0, samples=0, clip=0.0, alpha=alpha)
    for gradients, rows, bases, update in result.trainer.method.steps:
        assert rows == [] and bases == {"a": [], "b": []}
        lengths = {t: torch.cat([g.flatten() for g in gradients[f"forget_{t}"]]).norm() for t in "ab"}
        middle = (lengths["a"] + lengths["b"]) / 2
        for i, found in enumerate(update):
            ascent = sum(middle / lengths[t] * gradients[f"forget_{t}"][i] for t in "ab")
            expected = alpha * gradients["retain"][i] - (1 - alpha) * ascent
            assert (found - expected).norm() <= 1e-12 * max(expected.norm(), 1e-12)


def test_what_a_step_protects(tmp_path):
    """Q_t and R of real steps: each is orthogonal to the forget part, and protected heads get none of it."""
    result = run_own(tmp_path, asked=["a"], alpha=0.0, rank_guard=1.0, clip=0.0, block="global")
    for gradients, rows, bases, update in result.trainer.method.steps:
        groups = result.trainer.method.groups
        assert len(groups) == 4 and len(groups[0]) == len(update) - 6  # what is shared, and three heads
        steps, retain = (blockwise(gradient, groups) for gradient in (update, gradients["retain"]))
        assert len(bases["a"][0]) >= 2 and len(rows[0]) >= 8
        for i, step in enumerate(steps):
            for protected in (bases["a"][i], rows[i], retain[i][None]):
                if len(protected) and step.any():
                    assert ((F.normalize(protected, dim=1) @ step).abs().max() / step.norm()).item() < 1e-10
        assert steps[0].any()


@pytest.mark.parametrize("block", ["module", "tensor"])
def test_heads_of_other_tasks_are_only_trained_to_retain(block, tmp_path):
    before = _known(("a", "b", "c"))
    for alpha in (0.0, 0.5):
        result = run_own(tmp_path, asked=["a"], alpha=alpha, block=block, rank_guard=1.0)
        after = weights(result.model)
        for name, tensor in after.items():
            if name.startswith(("heads.b", "heads.c")):
                assert torch.equal(tensor, before[name]) == (alpha == 0), name
            elif name.endswith("weight"):
                assert not torch.equal(tensor, before[name]), name
        for gradients, *_ in result.trainer.method.steps:
            names = [name for name, _ in result.trainer.trained()]
            for name, g in zip(names, gradients["forget_a"], strict=True):
                assert g.any() != name.startswith(("heads.b", "heads.c"))


def test_the_same_task_twice_in_a_run(tmp_path):
    """`b` says of every sample what `a` says, and stays: `a` cannot be forgotten, and the run says so."""

    def twins(model, batch):
        loss = F.cross_entropy(model(batch.inputs["x"])["a"], batch.labels["a"].long(), reduction="none")
        return {"a": loss, "b": loss}

    data = {k: Samples(x=s.columns["x"], a=s.columns["a"], b=s.columns["a"]) for k, s in own_data().items()}
    model = fit(Net(["a"]).double(), [own_data(["a"])["forget"], own_data(["a"])["retain"]])
    method = Watched(["a", "b"], twins, energy=1.0, block="global", samples=8, rank_guard=1.0)
    result = run_own(tmp_path, asked=["a"], method=method, data=data, model=model, fresh=True)
    assert any(note.startswith("a: forgetting is infeasible") for note in method.notes)
    assert "infeasible" in result.summary()
    assert all(tensor.isfinite().all() for tensor in weights(result.model).values())
    for gradients, _, _, update in method.steps:
        alone = [0.5 * g for g in gradients["retain"]]
        scale = min(1.0, 1 / torch.cat([g.flatten() for g in alone]).norm().item())
        assert all(torch.allclose(u, scale * g, atol=1e-12) for u, g in zip(update, alone, strict=True))


def test_bases_are_taken_every_few_steps(tmp_path):
    result = run_own(
        tmp_path, asked=["a"], refresh=3, class_unlearning=True, args={"max_steps": 8, "learning_rate": 1e-5}
    )
    method = result.trainer.method
    assert result.trainer.state.global_step == 8
    assert method.bases_at == [0, 3, 6] and method.looks == [0, 3, 6, 8]  # and at the end
    by_step = [bases["a"] for _, _, bases, _ in method.steps]
    for step in range(1, 8):
        same = all(torch.equal(x, y) for x, y in zip(by_step[step], by_step[step - 1], strict=True))
        assert same == (step % 3 != 0)


def test_forget_instances_are_a_third_of_the_batches_of_tasks_they_keep(tmp_path):
    method = Watched(batches=10, basis_batch_size=4)
    run_own(tmp_path, asked=["a"], method=method, args={"max_steps": 1})
    rng = np.random.default_rng(0)
    kept = set(method.context.kept.values())
    assert kept == set(range(24, 32))
    for task, of_kept in (("b", 4), ("c", 4), ("a", 0)):
        batches = method._basis_batches(task, rng)
        assert len(batches) == 10 and all(len(set(batch)) == 4 for batch in batches)
        assert sum({i for _, i in batch} <= kept for batch in batches) == of_kept
        assert all({i for _, i in batch} <= kept or not {i for _, i in batch} & kept for batch in batches)


@pytest.mark.parametrize("protect, others", [("all", ["b", "c"]), ("kept", ["c"])])
def test_which_tasks_are_protected(protect, others, tmp_path):
    method = Watched(protect=protect, batches=3)
    run_own(tmp_path, asked=["a", "b"], method=method, args={"max_steps": 1})
    assert method.others["a"] == others


def test_a_protected_task_without_any_label_that_stays(tmp_path):
    data = own_data()
    for name in ("retain", "unseen"):
        data[name].columns["c"] = torch.full((len(data[name]),), float("nan"))

    def masked(model, batch):
        outputs, found = model(batch.inputs["x"]), {}
        for t, out in outputs.items():
            present = ~batch.labels[t].double().isnan()
            loss = F.cross_entropy(out, batch.labels[t].double().nan_to_num().long(), reduction="none")
            found[t] = torch.where(present, loss, 0.0)
        return found

    result = run_own(tmp_path, asked=["a"], method=Watched(losses=masked, batches=3), data=data)
    assert result.trainer.state.global_step == 3
    with pytest.raises(UnlearningError, match="'c'.*unseen"):  # there is nothing to say when it is forgotten
        run_own(tmp_path, method=Watched(losses=masked, batches=3), data=data)


class TestStopping:
    def method(self, aims, scores, whole=None):
        """A method whose looks at the forget set find these scores, one after the other."""
        found = iter(scores)
        method = Multitask(MultitaskConfig(refresh=2))
        method.targets = method.active = list(aims)
        method.aim, method.column = aims, {t: i for i, t in enumerate(aims)}

        def measure(split, at_most=None):
            """Of a part of the samples the next scores, of all of them the same once more."""
            self.now = next(found) if at_most else whole or self.now
            return SimpleNamespace(scores=self.now)

        method.context = SimpleNamespace(measure=measure, log=lambda v: None, schedule=range(100))
        return method

    def test_each_task_for_itself(self):
        looks = [{"a": 0.9, "b": 0.9}, {"a": 0.6, "b": 0.8}, {"a": 0.7, "b": 0.8}, {"a": 0.6, "b": 0.4}]
        method = self.method({"a": 0.6, "b": 0.5}, looks)
        ones = lambda task: lambda model, part: torch.ones(())  # noqa: E731
        method._forget_loss, method._retain_loss = ones, ones("")
        assert method.on_epoch_begin(0) is True and method.on_epoch_begin(1) is None
        assert [name for name, _ in method.losses(None, {"forget": 0, "retain": 0})] == [
            "forget_a", "forget_b", "retain"]  # fmt: skip
        assert method.on_step_end(1) is None
        assert method.on_step_end(2) is True
        assert method.active == ["b"]
        assert [name for name, _ in method.losses(None, {"forget": 0, "retain": 0})] == ["forget_b", "retain"]
        assert method.on_step_end(4) is True and method.active == ["a", "b"]  # it has come back
        assert method.on_step_end(6) is False and method.active == []

    def test_it_rests_by_all_of_the_samples(self):
        for looked in (0.5, float("nan")):  # of nothing, where none of those looked at is to lose its label
            method = self.method({"a": 0.6}, [{"a": 0.9}, {"a": looked}], whole={"a": 0.7})
            assert method.on_epoch_begin(0) is True and method.on_step_end(2) is True and method.active == ["a"]

    def test_nothing_to_do(self, tmp_path):
        result = run_own(tmp_path, asked=["a"], fresh=True, data=own_data() | {"unseen": own_data()["retain"]},
                         method=Watched(), overlap="allow", model=fit(Net().double(), [own_data()["retain"]], 200))  # fmt: skip
        assert result.trainer.state.global_step == 0

    @pytest.mark.slow
    def test_of_a_run(self, tmp_path):
        """It ends at the first look at which every target has fallen to the control half's score of the original."""
        limits = {"max_steps": 400, "learning_rate": 0.1}
        result = run_own(tmp_path, asked=["a", "b"], data=own_data(unseen=120), refresh=2, args=limits)
        trainer, method = result.trainer, result.trainer.method
        aim = trainer.original["control"].scores
        assert method.aim == {t: aim[t] for t in "ab"}
        assert trainer.state.global_step < 400 and trainer.state.global_step % 2 == 0
        assert method.active == [] and method.looks[-1] == trainer.state.global_step
        present = [[t for t in "ab" if f"forget_{t}" in gradients] for gradients, *_ in method.steps]
        assert present[0] == ["a", "b"] and all(present)
        for (gradients, _, bases, _), tasks in zip(method.steps, present, strict=True):
            assert list(bases) == tasks and len(gradients) == len(tasks) + 1
        scores = trainer.evaluator.measure(trainer.model, *trainer.indices["forget"]).scores
        assert all(scores[t] <= method.aim[t] for t in "ab")

    def test_says_that_the_aim_is_missed(self, tmp_path):
        result = run_own(tmp_path, asked=["a"], args={"learning_rate": 1e-7})
        aim, score = result.trainer.method.aim["a"], result.metrics["after"]["forget_a"]
        (note,) = result.trainer.method.notes
        assert note.startswith("multitask has used up its 3 steps") and note in result.summary()
        assert f"a is at {score:.3g}, and the aim is {aim:.3g}" in note

    def test_a_class(self, tmp_path):
        method = Watched(class_unlearning=True, batches=3)
        run_own(tmp_path, asked=["a"], method=method)
        assert method.aim == {"a": 0.0}


@pytest.mark.parametrize("values, expected", [
    ({"mode": "outside"}, "null or within"), ({"energy": 1.1}, "share"), ({"batches": 0}, "at least 1"),
    ({"basis_batch_size": 0}, "at least 1"), ({"refresh": 0}, "at least 1"), ({"samples": -1}, "at least 0"),
    ({"alpha": 1.0}, "weight"), ({"block": "layer"}, "module, tensor or global"), ({"protect": "none"}, "all or kept"),
    ({"rank_guard": 0.0}, "share"), ({"restore": 0.5}, "at least 1"), ({"clip": -1.0}, "0 or more"),
])  # fmt: skip
def test_config(values, expected):
    name = next(iter(values))
    with pytest.raises(UnlearningError, match=f"multitask: {name} is .*; expected .*{expected}"):
        MultitaskConfig(**values)


# ---------------------------------------------------------------------------------------------------------------------
# What is supervised: a partial request that differs from sample to sample, with labels that are missing

N = SIZES["forget"]
ASKED = {"colour": [i % 3 != 2 for i in range(N)], "shape": [i % 3 == 2 or i < 2 for i in range(N)]}
SETTINGS = {"family": "multitask", "tasks": ASKED, "learning_rate": 0.05}
TASKS = sorted(HEADS)
MASK = np.stack([ASKED.get(name, [False] * N) for name in TASKS], axis=1)


def labelled(rows: list[dict]) -> np.ndarray:
    return np.array([[row[name] is not None for name in TASKS] for row in rows])


@pytest.fixture
def trainer(tmp_path):
    return make_trainer("multitask_often", folder=tmp_path, dtype="float64", **SETTINGS)


def test_supervision(trainer):
    """Every label goes or stays; what stays of a forget sample is trained on with the retained ones."""
    data = runs.rows("multitask")
    forget, retain = labelled(data["forget"]), labelled(data["retain"])
    assert not forget.all() and trainer.tasks.names == TASKS
    kept = list(trainer.request.kept)
    assert kept == [i for i in range(N) if (forget & ~MASK)[i].any()]
    gone, stayed = np.zeros_like(forget), np.zeros((len(retain) + N, len(TASKS)), bool)
    steps = len(trainer.schedule) // 2  # one epoch
    for step, batch in enumerate(trainer.get_train_dataloader()):
        if step == steps:
            break
        for group, part in batch.items():
            for j, index in enumerate(part.sample_index.tolist()):
                place = index - N
                of_forget = index if group == "forget" else kept[place - len(retain)] if place >= len(retain) else None
                row = data["retain"][place] if of_forget is None else data["forget"][of_forget]
                assert torch.equal(part["pixel_values"][j], row["pixel_values"])
                for name in TASKS:
                    if row[name] is not None:
                        assert part.labels[name][j].item() == pytest.approx(row[name])
                counts = part.weight[j].numpy() > 0
                if group == "forget":
                    assert (counts == (forget & MASK)[index]).all()
                    gone[index] |= counts
                elif of_forget is None:
                    assert (counts == retain[place]).all()
                    stayed[place] |= counts
                else:
                    assert (counts == (forget & ~MASK)[of_forget]).all()
                    stayed[len(retain) + of_forget] |= counts
            total = part.weight.sum(dim=0)
            assert ((total - 1).abs() < 1e-12).logical_or(total == 0).all()  # a mean for each task
    assert (gone == (forget & MASK)).all()
    assert (stayed == np.concatenate([retain, forget & ~MASK])).all()


def test_gradients_of_single_samples(trainer):
    """They average to the batch's, also where that is cut; a forget loss has none on the heads of other tasks."""
    context, method = Context(trainer), trainer.method
    method.prepare(context)
    samples = [("retain", i) for i in range(20) if labelled(runs.rows("multitask")["retain"])[i].all()]
    assert len(samples) > 8
    for loss in (method._retain_loss, method._task_loss("size")):
        single = context.gradients(loss, [[sample] for sample in samples])
        (whole,) = context.gradients(loss, [samples])
        for columns, g in zip(zip(*single, strict=True), whole, strict=True):
            assert torch.allclose(torch.stack(columns).mean(dim=0), g, rtol=1e-5, atol=1e-12)
    heads = {name.split(".")[1]: i for i, name in enumerate(context.parameter_names) if name.startswith("heads.")}
    for task in ("colour", "shape"):
        (whole,) = context.gradients(method._forget_loss(task), [[("forget", i) for i in range(N)]])
        for name, i in heads.items():
            assert whole[i].any() == (name == task)
            assert whole[i].any() or torch.equal(whole[i], torch.zeros_like(whole[i]))


def test_a_sample_without_the_label_has_no_gradient(trainer):
    context = Context(trainer)
    trainer.method.prepare(context)
    missing = [i for i, row in enumerate(runs.rows("multitask")["retain"]) if row["size"] is None]
    for gradient in context.gradients(trainer.method._task_loss("size"), [[("retain", i)] for i in missing]):
        assert all(not g.any() for g in gradient)


# ---------------------------------------------------------------------------------------------------------------------
# The same run, however it is cut

MULTITASK = {name: case(name, logging_steps=1, **SETTINGS) for name in ("multitask_often", "multitask_within")}


@pytest.mark.slow
@pytest.mark.parametrize("name", MULTITASK)
def test_accumulation(name):
    check_same(run(MULTITASK[name], batch=4, accumulation=2), run(MULTITASK[name]), "float64")
    kept = [
        line.get(f"multitask_kept_{task}") for line in run(MULTITASK[name]).logs for task in ASKED if "loss" in line
    ]
    assert len(kept) == 24 and kept.count(None) == 2  # two steps draw no sample that must forget one of the tasks
    assert all(part is None or 0.05 < part < 1 for part in kept)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "cases.json").write_text(json.dumps({k: v | {"batch": 4} for k, v in MULTITASK.items()}))
    launch("trajectories", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MULTITASK)
def test_two_processes(name, two_processes):
    about = json.loads((two_processes / f"{name}.json").read_text())
    assert about["world_size"] == 2
    found = Run(load_file(two_processes / f"{name}.safetensors"), about["metrics"], about["logs"])
    check_same(found, run(MULTITASK[name]), "float64")


@pytest.mark.parametrize(
    ("name", "killed_at"),
    [
        ("multitask_often", 7),
        pytest.param("multitask_often", 5, marks=pytest.mark.slow),
        pytest.param("multitask_within", 5, marks=pytest.mark.slow),
        pytest.param("multitask_within", 7, marks=pytest.mark.slow),
    ],
)
def test_resumed(name, killed_at, tmp_path):
    """Between two looks, and at one: bases, and which tasks rest, are in the checkpoint."""
    settings = MULTITASK[name] | {"measure": False, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(UnlearningError, match="killed"):
        make_trainer(folder=tmp_path, callbacks=[StopAt(killed_at)], **settings).train()
    resumed = make_trainer(folder=tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == len(resumed.schedule) > 7
    assert same_bits(weights(resumed.model), run(MULTITASK[name]).weights)
    assert not same_bits(weights(resumed.model), weights(runs.original("multitask")))


@pytest.mark.slow
def test_killed(tmp_path):
    settings = {"method": "multitask_often", "save_strategy": "steps", "save_steps": 2, **SETTINGS}
    expected = Runs(tmp_path / "a", **settings).finish()
    killed = Runs(tmp_path / "b", **settings)
    killed.killed("optimizer", 6)
    result = killed.finish(resume=True)
    assert result.first_step == 4
    assert same_bits(result.weights, expected.weights)


def test_state():
    method = hand_made({"forget_a": None, "forget_b": None})
    method.bases = {"a": [random(3, 20), random(0, 4)], "b": []}
    method.own = {"a": [random(2, 20), random(1, 4)]}
    method.groups, method.active = [[0], [1]], ["a"]
    state = method.state_dict()
    other = hand_made({"forget_a": None, "forget_b": None})
    other.groups = method.groups
    other.context = SimpleNamespace(parameters=[torch.zeros(1)])
    other.load_state_dict(state)
    assert other.active == ["a"]
    for name in ("bases", "own"):
        found, expected = getattr(other, name)["a"], getattr(method, name)["a"]
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert other.bases["b"] == other.own["b"] == []


# ---------------------------------------------------------------------------------------------------------------------
# The figures


ORIGINAL = {"a": {"test": 0.8, "forget": 1.0, "retain": 1.0}, "b": {"test": 0.5, "forget": 0.9, "retain": 0.8}}
ORIGINAL |= {"c": {"test": 0.6, "forget": 0.7, "retain": 0.9}}
IDEAL = ORIGINAL | {"a": {"test": 0.8, "forget": 0.8, "retain": 1.0}}


def changed(task: str, **values: float) -> dict:
    return IDEAL | {task: IDEAL[task] | values}


class TestFigures:
    def test_a_retrained_model_against_itself(self):
        retrained = changed("a", test=0.78, forget=0.75)
        assert uis(retrained, retrained, ["a"], "retrain") == {"uis": 0, "uis_target": 0, "uis_nontarget": 0}
        assert uis(retrained, ORIGINAL, ["a"])["uis"] > 0

    def test_one_task(self):
        found = uis({"t": {"test": 0.76, "forget": 0.84}}, {"t": {"test": 0.8, "forget": 1.0}}, ["t"])
        assert found["uis"] == pytest.approx(5.0, abs=1e-12)

    def test_a_class(self):
        reference, unlearned = {"t": {"test": 0.8, "forget": 1.0}}, {"t": {"test": 0.8, "forget": 0.0}}
        assert uis(unlearned, reference, ["t"], class_unlearning=True)["uis"] == 0

    @pytest.mark.parametrize("task", ["b", "c"])
    @pytest.mark.parametrize("split", ["test", "forget"])
    def test_slope(self, task, split):
        drops = np.array([0.0, 0.05, 0.1, 0.3])
        found = [uis(changed(task, **{split: ORIGINAL[task][split] - d}), ORIGINAL, ["a"])["uis"] for d in drops]
        assert np.allclose(found, drops * 100 / (2 * 3 * ORIGINAL[task]["test"]), atol=1e-12)

    def test_v(self):
        levels = np.linspace(0, 1, 21)
        found = [uis(changed("a", forget=level), ORIGINAL, ["a"])["uis"] for level in levels]
        assert np.allclose(found, abs(levels - 0.8) * 100 / (2 * 3 * 0.8))

    @pytest.mark.parametrize("convention", ["original", "retrain"])
    def test_scale(self, convention):
        percent = [
            {t: {k: 100 * x for k, x in v.items()} for t, v in m.items()} for m in (changed("b", test=0.4), ORIGINAL)
        ]
        assert uis(*percent, ["a"], convention) == pytest.approx(
            uis(changed("b", test=0.4), ORIGINAL, ["a"], convention)
        )

    def test_interference(self):
        found = interference(changed("b", test=0.4, forget=0.81, retain=0.6), ORIGINAL, ["a"])
        assert found["task_interference"] == pytest.approx(100 * (0.2 + 0.1) / 2 / 2)
        assert found["instance_interference"] == pytest.approx(100 * 0.25 / 3)
        assert interference(IDEAL, ORIGINAL, ["a"]) == {"task_interference": 0, "instance_interference": 0}
        assert interference(IDEAL, ORIGINAL, ["a", "b", "c"])["task_interference"] is None
        assert interference(changed("b", retain=0.9), ORIGINAL, ["a"])["instance_interference"] < 0


# ---------------------------------------------------------------------------------------------------------------------
# What it is for: three tasks on a shared perceptron, which knows noisy labels by heart

TOY = ("a", "b", "c")
NEGGRAD = {"energy": 0.0, "samples": 0}


class Looking(Multitask):
    """Keeps what it saw at every look."""

    def prepare(self, context):
        super().prepare(context)
        self.looks = []

    def _still_active(self):
        going_on = super()._still_active()
        self.looks.append(self.context.measure("forget").scores)
        return going_on


def toy_data(seed: int, n: int = 600, forget: int = 60, unseen: int = 600, test: int = 2000) -> dict[str, Samples]:
    generator = torch.Generator().manual_seed(seed)
    total = n + unseen + test
    x = torch.randn(total, 20, generator=generator)
    planes = {task: torch.randn(20, 4, generator=generator) for task in TOY}
    noise = {task: 0.6 * 20**0.5 * torch.randn(total, 4, generator=generator) for task in TOY}
    columns = {"x": x, **{task: (x @ planes[task] + noise[task]).argmax(1) for task in TOY}}
    ends = {"forget": (0, forget), "retain": (forget, n), "unseen": (n, n + unseen), "test": (n + unseen, total)}
    return {name: Samples(**{k: v[slice(*part)] for k, v in columns.items()}) for name, part in ends.items()}


@functools.cache
def toy_original(seed: int) -> Net:
    data, net = toy_data(seed), Net(TOY, d=20, h=128, classes=4, seed=seed)
    columns = {k: torch.cat([data[name].columns[k] for name in ("forget", "retain")]) for k in ("x", *TOY)}
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(150):
        for part in torch.randperm(len(columns["x"]), generator=generator).split(64):
            outputs = net(columns["x"][part])
            sum(F.cross_entropy(outputs[task], columns[task][part]) for task in TOY).backward()
            optimizer.step()
            optimizer.zero_grad()
    return net


def toy_run(folder: Path, seed: int, targets: tuple[str, ...], learning_rate: float = 0.01, **config):
    net = Net(TOY, d=20, h=128, classes=4)
    net.load_state_dict(toy_original(seed).state_dict())
    method = Looking(MultitaskConfig(**config), losses=losses_of, tasks=dict.fromkeys(TOY, "classification"))
    args = arguments(folder, seed=seed, learning_rate=learning_rate, max_steps=1500, per_device_train_batch_size=32)
    return unlearn(net, **toy_data(seed), tasks=list(targets), method=method, args=args, overlap="allow")


# With the bounded objective, which forgets in fewer steps, a task may rest further below its aim than is asked for here.
CROSS_ENTROPY = {"objective": "ce", "refresh": 10}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "rate", "settings"),
    [(("a",), 0.08, {}), (TOY, 0.03, CROSS_ENTROPY | {"learning_rate": 0.03})],
    ids=["partial", "full"],
)
def test_behaviour(targets, rate, settings, tmp_path):
    """At equal forgetting, less is lost than by NegGrad+, at its rate. Of 60 samples one is 1.7 percentage points."""
    scores = {"joint": [], "neggrad": []}
    for seed in range(3):
        for name, config in (("joint", settings), ("neggrad", NEGGRAD | CROSS_ENTROPY | {"learning_rate": rate})):
            result = toy_run(tmp_path / f"{name}-{seed}", seed, targets, **config)
            method, before, after = result.trainer.method, result.metrics["before"], result.metrics["after"]
            scores[name].append(after["uis"])
            assert method.active == [] and method.notes == []
            assert all(before[f"forget_{task}"] == before[f"retain_{task}"] == 1 for task in TOY)
            if name == "joint":
                for task in targets:
                    reached, aim = after[f"forget_{task}"], method.aim[task]
                    one_look_before = method.looks[-2][task]
                    assert aim - 0.03 <= reached <= aim or reached <= aim < one_look_before, (seed, task)
                for task in set(TOY) - set(targets):
                    assert after[f"forget_{task}"] >= 0.98
    share = np.mean(scores["joint"]) / np.mean(scores["neggrad"])
    # With all tasks to forget there is no task whose protection could help; what is left is that of retained instances.
    assert share <= (0.9 if targets == TOY else 0.8), scores
