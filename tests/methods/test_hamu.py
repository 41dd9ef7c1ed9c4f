"""HAMU's update against its closed forms, written here a second time, and on a small network."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from hf_unlearn.methods.hamu import HamuConfig, Hardness, hamu_update
from tests.marks import slow_but

Gradients = list[Tensor]


def update(retain: Gradients, forget: Gradients, **options) -> tuple[Gradients, Hardness]:
    """The lists are the test's own: it needs the gradients afterwards."""
    return hamu_update(list(retain), list(forget), **options)


def dot(a: Gradients, b: Gradients) -> float:
    return sum((x.double() * y.double()).sum().item() for x, y in zip(a, b, strict=True))


def norm(a: Gradients) -> float:
    return math.sqrt(dot(a, a))


def angle(a: Gradients, b: Gradients) -> float:
    """θ, with all its digits also where cos θ is near ±1."""
    u, v = ([x.double() / norm(g) for x in g] for g in (a, b))
    return 2 * math.atan2(
        norm([x - y for x, y in zip(u, v, strict=True)]), norm([x + y for x, y in zip(u, v, strict=True)])
    )


def negated(a: Gradients) -> Gradients:
    return [-x for x in a]


def flat(a: Gradients) -> Tensor:
    return torch.cat([x.flatten() for x in a])


def largest(a: Gradients) -> float:
    return max(x.double().abs().max().item() for x in a)


def difference(a: Gradients, b: Gradients) -> float:
    return largest([x.double() - y.double() for x, y in zip(a, b, strict=True)])


def optimum(g_r: Tensor, g_f: Tensor, radius: float, q: float) -> Tensor:
    """argmin g_r·Δ such that g_f·Δ ≥ Q and ‖Δ‖ ≤ R, in float64 and the letters Q and R."""
    g_r, g_f = g_r.double(), g_f.double()
    kappa = (g_r * g_f).sum()
    if kappa <= -q * g_r.norm() / radius:
        return -(radius / g_r.norm()) * g_r
    across = g_r - kappa / g_f.norm() ** 2 * g_f
    along = math.sqrt(max(0.0, radius**2 - q**2 / g_f.norm().item() ** 2))
    return q / g_f.norm() ** 2 * g_f - along * across / across.norm()


def expected(retain: Gradients, forget: Gradients, lr: float, q: float, quota: str = "norm_product") -> Gradients:
    """Every tensor a block with its own quota."""
    shares = [
        r.norm().item() * f.norm().item() if quota == "norm_product" else 1
        for r, f in zip(retain, forget, strict=True)
    ]
    return [
        optimum(r, f, lr * r.norm().item(), q * share / sum(shares))
        for r, f, share in zip(retain, forget, shares, strict=True)
    ]


def free_gain(retain: Gradients, forget: Gradients, lr: float) -> float:
    """Σ G_i: the gain that every tensor can have without a rise of the retain loss."""
    gain = 0.0
    for r, f in zip(retain, forget, strict=True):
        reach = lr * r.double().norm().item() * f.double().norm().item()
        gain += reach * (1 if reach == 0 or dot([r], [f]) <= 0 else math.sin(angle([r], [f])))
    return gain


def products(retain: Gradients, forget: Gradients) -> float:
    """S."""
    return sum(r.double().norm().item() * f.double().norm().item() for r, f in zip(retain, forget, strict=True))


@dataclass
class Draw:
    """A feasible problem."""

    retain: Gradients
    forget: Gradients
    lr: float
    c: float

    @property
    def ratio(self) -> float:
        return self.c * products(self.retain, self.forget)

    @property
    def q(self) -> float:
        return self.lr * self.ratio

    @property
    def given(self) -> tuple[Gradients, Gradients]:
        return self.retain, self.forget

    def radius(self, i: int) -> float:
        return self.lr * self.retain[i].double().norm().item()

    def solve(self, **options) -> tuple[Gradients, Hardness]:
        return update(*self.given, lr=self.lr, ratio=self.ratio, **options)


def draws(n: int, blocks: int | None = None, size: int | None = None, dtype=torch.float64, seed: int = 0):
    """Random gradients of 2 to 30 numbers a block, of norms that differ between blocks, in all angles."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=g).item()

    for _ in range(n):
        retain, forget = [], []
        for _ in range(blocks or int(uniform(1, 6))):
            d = size or int(uniform(2, 31))
            a, b = (torch.randn(d, generator=g, dtype=torch.float64) for _ in range(2))
            if uniform(0, 1) < 0.5:  # in many dimensions nearly all draws are at right angles
                b = b + uniform(-3, 3) * a
            retain.append((a * 10 ** uniform(-1, 1)).to(dtype))
            forget.append((b * 10 ** uniform(-1, 1)).to(dtype))
        yield Draw(retain, forget, 10 ** uniform(-4, 0), uniform(0.001, 0.999))


def test_config():
    ours, paper = HamuConfig(), HamuConfig.paper()
    assert (ours.variant, ours.ratio, ours.quota_scale, ours.on_infeasible) == ("q", None, "relative", "cap")
    assert (paper.variant, paper.ratio, paper.quota_scale, paper.on_infeasible) == ("q", 0.5, "absolute", "stop")
    assert ours.block == paper.block == "tensor" and ours.quota == paper.quota == "norm_product"


class TestOneStep:
    def test_meets_quota_and_radius(self):
        for draw in draws(400):
            delta, hardness = draw.solve()
            assert not hardness.infeasible
            assert dot(draw.forget, delta) >= draw.q - 1e-9
            for i, part in enumerate(delta):
                assert part.norm().item() <= draw.radius(i) * (1 + 1e-9)

    def test_meets_quota_and_radius_in_float32(self):
        for draw in draws(400, dtype=torch.float32):
            delta, hardness = draw.solve()
            scale = draw.lr * products(*draw.given)
            assert not hardness.infeasible and all(part.dtype == torch.float32 for part in delta)
            assert dot(draw.forget, delta) >= draw.q - 1e-5 * scale
            for i, part in enumerate(delta):
                assert part.norm().item() <= draw.radius(i) * (1 + 1e-5)

    def test_no_direction_in_the_plane_is_better(self):
        phi = torch.arange(400_000, dtype=torch.float64) * (2 * math.pi / 400_000)
        for draw in draws(25, blocks=1):
            (g_r,), (g_f,) = draw.given
            delta, hardness = draw.solve()
            plane, _ = torch.linalg.qr(torch.stack([g_r, g_f], dim=1))
            circle = draw.radius(0) * torch.stack([phi.cos(), phi.sin()])
            cost, gain = (g_r @ plane) @ circle, (g_f @ plane) @ circle
            best = cost[gain >= draw.q].min().item()
            scale = draw.radius(0) * g_r.norm().item()
            found = dot(draw.retain, delta)
            assert best - 2e-5 * scale <= found <= best + 1e-6 * scale  # the grid's step is 1.6e-5
            assert hardness.predicted_retain == pytest.approx(found, abs=1e-12 * scale)

    @pytest.mark.parametrize("blocks", [1, None], ids=["one block", "several"])
    def test_closed_form(self, blocks):
        branches = {"direct": 0, "rectified": 0}
        for draw in draws(400, blocks):
            delta, hardness = draw.solve()
            wanted = expected(*draw.given, draw.lr, draw.q)
            for i in range(len(delta)):
                assert difference([delta[i]], [wanted[i]]) <= 1e-9 * draw.radius(i)
            assert sum(hardness.branches.values()) == len(delta)
            branches = {name: n + hardness.branches[name] for name, n in branches.items()}
        assert min(branches.values()) >= 50

    def test_relative_quota_is_the_same_problem(self):
        for draw in draws(50):
            absolute, _ = draw.solve()
            relative, hardness = update(*draw.given, lr=draw.lr, ratio=draw.c, quota_scale="relative")
            assert difference(absolute, relative) <= 1e-12 * largest(absolute)
            assert hardness.c == pytest.approx(draw.c, rel=1e-12)

    @pytest.mark.slow
    def test_flag_is_a_rise_of_the_retain_loss(self):
        flags = 0
        for draw in draws(20_000, blocks=1, size=5):
            _, hardness = draw.solve()
            theta, psi = angle(*draw.given), math.acos(draw.c)
            cost = math.cos(min(theta + psi, math.pi))
            assert hardness.unavoidable is (cost > 0), (theta, psi)
            assert (hardness.predicted_retain > 0) is hardness.unavoidable
            assert not hardness.infeasible
            flags += hardness.unavoidable
        assert 2_000 < flags < 18_000

    @pytest.mark.parametrize("excess", [1.0001, 2.0, 1000.0])
    @pytest.mark.parametrize("variant", ["q", "u"])
    def test_infeasible_is_another_flag(self, variant, excess):
        for draw in draws(100):
            ratio = excess * products(*draw.given)
            _, hardness = update(*draw.given, lr=draw.lr, ratio=ratio, variant=variant)
            assert hardness.infeasible is True and hardness.unavoidable is False
            assert hardness.shortfall == pytest.approx(draw.lr * (ratio - products(*draw.given)), rel=1e-9)

    @pytest.mark.parametrize("n", slow_but([300], [300, 2_000]))
    def test_cost_of_the_optimum(self, n):
        for draw in draws(n, blocks=1):
            delta, hardness = draw.solve()
            scale = draw.radius(0) * draw.retain[0].norm().item()
            cost = math.cos(min(angle(*draw.given) + math.acos(draw.c), math.pi))
            assert dot(draw.retain, delta) / scale == pytest.approx(cost, abs=1e-9)
            assert hardness.unavoidable_cost == pytest.approx(max(0, cost), abs=1e-9)

    @pytest.mark.parametrize("c", [0.1, 0.3, 0.5, 0.7, 0.9])
    def test_continuous_where_the_branch_changes(self, c):
        g_r, lr = torch.tensor([1.0, 0, 0], dtype=torch.float64), 0.1
        found = []
        for cosine in (-c - 1e-9, -c + 1e-9):
            g_f = 2 * torch.tensor([cosine, math.sqrt(1 - cosine**2), 0], dtype=torch.float64)
            delta, hardness = update([g_r], [g_f], lr=lr, ratio=c, quota_scale="relative")
            found.append((delta, hardness.branches))
        (direct, first), (rectified, second) = found
        assert first["direct"] == 1 and second["rectified"] == 1
        assert difference(direct, rectified) <= 2e-8 * lr

    @pytest.mark.parametrize("c", [0.0, 0.1, 0.5, 0.9, 1.0])
    def test_right_angle(self, c):
        g_r = torch.tensor([3.0, 0, 0], dtype=torch.float64)
        g_f = torch.tensor([0, 0, 4.0], dtype=torch.float64)
        delta, hardness = update([g_r], [g_f], lr=0.5, ratio=c * 12)
        assert dot([g_r], delta) == pytest.approx(-math.sqrt(1 - c**2) * 1.5 * 3, rel=1e-12, abs=1e-12)
        assert hardness.predicted_retain == pytest.approx(dot([g_r], delta), rel=1e-12, abs=1e-12)
        assert not hardness.unavoidable and not hardness.infeasible
        assert hardness.kappa == 0 and hardness.cosine == 0 and hardness.hardness01 == 0.5

    def test_no_quota_and_no_conflict_is_plain_descent(self):
        for draw in draws(100):
            forget = [-f if (r * f).sum() > 0 else f for r, f in zip(*draw.given, strict=True)]
            delta, hardness = update(draw.retain, forget, lr=draw.lr, ratio=0.0)
            for part, g_r in zip(delta, draw.retain, strict=True):
                assert difference([part], [-draw.lr * g_r]) <= 1e-12 * draw.lr * largest([g_r])
            assert hardness.branches["direct"] == len(delta) and not hardness.unavoidable

    def test_no_quota_in_conflict_keeps_the_forget_loss(self):
        for draw in draws(100):
            forget = [-f if (r * f).sum() < 0 else f for r, f in zip(*draw.given, strict=True)]
            delta, hardness = update(draw.retain, forget, lr=draw.lr, ratio=0.0)
            scale = draw.lr * products(draw.retain, forget)
            assert abs(dot(forget, delta)) <= 1e-12 * scale and dot(draw.retain, delta) < 0
            assert not hardness.unavoidable and hardness.branches["rectified"] == len(delta)


class TestQuotas:
    def test_every_block_gives_its_share(self):
        for draw in draws(300):
            delta, hardness = draw.solve()
            total = products(*draw.given)
            assert hardness.c == pytest.approx(draw.c, rel=1e-12)
            shares = [r.norm().item() * f.norm().item() / total for r, f in zip(*draw.given, strict=True)]
            gains = [dot([f], [part]) for f, part in zip(draw.forget, delta, strict=True)]
            for i, (gain, share) in enumerate(zip(gains, shares, strict=True)):
                reach = draw.radius(i) * draw.forget[i].norm().item()
                assert gain >= draw.q * share - 1e-12 * reach
                if math.cos(angle([draw.retain[i]], [draw.forget[i]])) > -draw.c:
                    assert gain / reach == pytest.approx(draw.c, abs=1e-12)
            assert sum(gains) >= draw.q * (1 - 1e-12)
            assert hardness.predicted_forget == pytest.approx(sum(gains), rel=1e-9)

    def test_uniform(self):
        for draw in draws(200):
            reaches = [r.norm().item() * f.norm().item() for r, f in zip(*draw.given, strict=True)]
            ratio = draw.c * len(reaches) * min(reaches)
            delta, hardness = update(*draw.given, lr=draw.lr, ratio=ratio, quota="uniform")
            wanted = expected(*draw.given, draw.lr, draw.lr * ratio, "uniform")
            assert not hardness.infeasible
            for i, (part, target) in enumerate(zip(delta, wanted, strict=True)):
                assert difference([part], [target]) <= 1e-9 * draw.radius(i)
                assert dot([draw.forget[i]], [part]) >= draw.lr * ratio / len(reaches) * (1 - 1e-9)

    def test_uniform_counts_usable_blocks_only(self):
        (draw,) = draws(1, blocks=3, size=6)
        ratio = 0.3 * 3 * min(r.norm().item() * f.norm().item() for r, f in zip(*draw.given, strict=True))
        zero, some = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
        alone, _ = update(*draw.given, lr=0.1, ratio=ratio, quota="uniform")
        delta, _ = update([*draw.retain, zero, some], [*draw.forget, some, zero], lr=0.1, ratio=ratio, quota="uniform")
        assert difference(alone, delta[:3]) <= 1e-12 and all(part.isfinite().all() for part in delta)

    def test_uniform_capped_in_the_block_that_cannot(self):
        retain = [torch.tensor([1.0, 0.0]), torch.tensor([1e-3, 0.0])]
        forget = [torch.tensor([0.6, 0.8]), torch.tensor([0.6e-3, 0.8e-3])]
        delta, hardness = update(retain, forget, lr=0.1, ratio=0.5, quota="uniform", on_infeasible="cap")
        assert hardness.infeasible and not hardness.unavoidable
        assert dot(forget[:1], delta[:1]) == pytest.approx(0.1 * 0.25, rel=1e-5)
        assert difference(delta[1:], [0.1 * 1e-3 * torch.tensor([0.6, 0.8])]) <= 1e-9

    @pytest.mark.parametrize("variant", slow_but(["q"], ["q", "u"]))
    def test_free_gain(self, variant):
        seen = set()
        for draw in draws(500):
            _, hardness = draw.solve(variant=variant)
            free = free_gain(*draw.given, draw.lr)
            scale = draw.lr * products(*draw.given)
            assert hardness.slack == pytest.approx(free - draw.q, abs=1e-9 * scale)
            assert hardness.unavoidable is (draw.q > free)
            seen.add(hardness.unavoidable)
        assert seen == {True, False}

    def test_flagged_steps_are_still_the_best_ones(self):
        flagged = [draw for draw in draws(200) if draw.solve()[1].unavoidable]
        assert len(flagged) > 10
        for draw in flagged:
            assert difference(draw.solve()[0], expected(*draw.given, draw.lr, draw.q)) <= 1e-9

    def test_easiest_case_is_not_flagged(self):
        """At a stationary point of the joint loss the gradients are opposite; |sin θ| alone would stop here."""
        (draw,) = draws(1, blocks=4)
        noise = torch.Generator().manual_seed(1)
        forget = [-9 * g + 1e-3 * torch.randn(g.shape, generator=noise, dtype=g.dtype) for g in draw.retain]
        delta, hardness = update(draw.retain, forget, lr=0.1, ratio=0.9, quota_scale="relative")
        assert not hardness.unavoidable and hardness.unavoidable_cost == 0 and hardness.branches["direct"] == 4
        assert dot(draw.retain, delta) < 0 < dot(forget, delta)


class TestInfeasible:
    @pytest.mark.parametrize("variant", ["q", "u"])
    @pytest.mark.parametrize("on_infeasible", ["stop", "skip"])
    def test_stop_and_skip_stay(self, on_infeasible, variant):
        for draw in draws(20):
            ratio = 3 * products(*draw.given)
            delta, hardness = update(
                *draw.given, lr=draw.lr, ratio=ratio, on_infeasible=on_infeasible, variant=variant
            )
            assert hardness.infeasible and largest(delta) == 0
            assert hardness.predicted_forget == 0 and hardness.predicted_retain == 0
            assert [part.shape for part in delta] == [g.shape for g in draw.retain]

    @pytest.mark.parametrize("excess", [1.01, 30.0, 1e6])
    def test_cap_goes_as_far_as_the_radius(self, excess):
        for draw in draws(100):
            total = products(*draw.given)
            delta, hardness = update(*draw.given, lr=draw.lr, ratio=excess * total, on_infeasible="cap")
            for i, part in enumerate(delta):
                assert part.norm().item() <= draw.radius(i) * (1 + 1e-9)
                ascent = draw.radius(i) * draw.forget[i] / draw.forget[i].norm()
                assert difference([part], [ascent]) <= 1e-7 * draw.radius(i)
            assert hardness.infeasible and not hardness.unavoidable
            assert hardness.shortfall == pytest.approx(draw.lr * (excess - 1) * total, rel=1e-9)
            assert hardness.predicted_forget == pytest.approx(draw.lr * total, rel=1e-9)

    @pytest.mark.parametrize("on_infeasible", ["stop", "skip", "cap"])
    def test_feasible_steps_do_not_depend_on_it(self, on_infeasible):
        for draw in draws(20):
            delta, hardness = draw.solve(on_infeasible=on_infeasible)
            assert hardness.shortfall == 0 and not hardness.infeasible
            assert difference(delta, draw.solve()[0]) == 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_all_that_is_reachable_is_feasible(self, dtype):
        for draw in draws(100, dtype=dtype):
            delta, hardness = update(*draw.given, lr=draw.lr, ratio=1.0, quota_scale="relative")
            assert not hardness.infeasible
            assert dot(draw.forget, delta) == pytest.approx(draw.lr * products(*draw.given), rel=1e-5)


class TestReciprocal:
    def test_is_the_same_problem_with_the_roles_swapped(self):
        for draw in draws(200):
            delta, hardness = draw.solve(variant="u")
            swapped, other = update(negated(draw.forget), negated(draw.retain), lr=draw.lr, ratio=draw.ratio)
            assert difference(delta, swapped) <= 1e-12 * largest(swapped)
            assert hardness.kappa == pytest.approx(other.kappa, rel=1e-12, abs=1e-12)
            assert (hardness.unavoidable, hardness.branches) == (other.unavoidable, other.branches)
            assert hardness.unavoidable_cost == pytest.approx(other.unavoidable_cost, abs=1e-9)

    def test_written_out(self):
        for draw in draws(200, blocks=1):
            (g_r,), (g_f,) = draw.given
            u, radius = draw.q, draw.lr * g_f.norm()
            kappa = (g_r * g_f).sum()
            if kappa <= -u / draw.lr:
                wanted = draw.lr * g_f
            else:
                across = g_f - kappa / g_r.norm() ** 2 * g_r
                along = (radius**2 - u**2 / g_r.norm() ** 2).sqrt()
                wanted = -u / g_r.norm() ** 2 * g_r + along * across / across.norm()
            delta, hardness = draw.solve(variant="u")
            assert difference(delta, [wanted]) <= 1e-9 * radius
            # The losses are the retain and the forget loss in both variants.
            assert hardness.predicted_retain == pytest.approx(dot([g_r], [wanted]), rel=1e-9, abs=1e-9 * u)
            gain = radius.item() * g_f.norm().item()
            assert hardness.predicted_forget == pytest.approx(dot([g_f], [wanted]), abs=1e-9 * gain)
            assert -hardness.predicted_retain >= u * (1 - 1e-9)
            assert hardness.unavoidable is (hardness.predicted_forget < 0)

    def test_no_quota_in_conflict_is_ascent_across_the_retain_gradient(self):
        g_r, g_f = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.0], [0.8, 0.6]))
        delta, hardness = update([g_r], [g_f], lr=0.1, ratio=0.0, variant="u")
        assert delta[0].tolist() == pytest.approx([0, 0.1], abs=1e-12)
        assert hardness.kappa == pytest.approx(0.8)
        easy, _ = update([g_r], [-g_f], lr=0.1, ratio=0.0, variant="u")
        assert easy[0].tolist() == pytest.approx([-0.08, -0.06], abs=1e-12)

    def test_dead_blocks(self):
        retain = [torch.tensor([3.0, 0.0]), torch.zeros(3), torch.ones(2)]
        forget = [torch.tensor([1.0, 1.0]), torch.ones(3), torch.zeros(2)]
        delta, hardness = update(retain, forget, lr=0.1, ratio=0.5, quota_scale="relative", variant="u")
        assert largest(delta[2:]) == 0 and hardness.branches["skipped"] == 1
        assert difference(delta[1:2], [0.1 * torch.ones(3)]) <= 1e-7  # nothing is asked of it: plain ascent


class TestBlocks:
    """One block of six tensors is one problem, with one norm and one direction across g_f."""

    shapes = [(3, 4), (4,), (4, 2, 2), (2,), (1,), (5, 1)]

    def gradients(self, seed: int) -> tuple[Gradients, Gradients]:
        g = torch.Generator().manual_seed(seed)
        retain = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in self.shapes]
        return retain, [torch.randn(shape, generator=g, dtype=torch.float64) + 0.5 * r for shape, r in
                        zip(self.shapes, retain, strict=True)]  # fmt: skip

    @pytest.mark.parametrize("c", [0.0, 0.3, 0.9])
    def test_global_is_exact(self, c):
        for seed in range(10):
            retain, forget = self.gradients(seed)
            delta, hardness = update(
                retain, forget, lr=0.1, ratio=c, quota_scale="relative", groups=[list(range(len(retain)))]
            )
            radius = 0.1 * norm(retain)
            assert [part.shape for part in delta] == [g.shape for g in retain]
            assert norm(delta) == pytest.approx(radius, rel=1e-12)
            assert dot(forget, delta) == pytest.approx(c * radius * norm(forget), rel=1e-12, abs=1e-14)
            wanted = optimum(flat(retain), flat(forget), radius, c * radius * norm(forget))
            assert difference([flat(delta)], [wanted]) <= 1e-12
            assert hardness.branches["rectified"] == 1 and sum(hardness.branches.values()) == 1

    @pytest.mark.parametrize("variant", ["q", "u"])
    def test_groups_are_problems_of_their_own(self, variant):
        groups = [[0, 1], [5, 2], [3, 4]]
        for seed in range(10):
            retain, forget = self.gradients(seed)
            delta, hardness = update(retain, forget, lr=0.1, ratio=0.7, groups=groups, variant=variant)
            joined = [[flat([g[i] for i in group]) for group in groups] for g in (retain, forget)]
            wanted, other = update(*joined, lr=0.1, ratio=0.7, variant=variant)
            for group, target in zip(groups, wanted, strict=True):
                assert difference([flat([delta[i] for i in group])], [target]) <= 1e-12
            assert hardness.branches == other.branches
            assert hardness.slack == pytest.approx(other.slack, rel=1e-9)
            assert hardness.kappa == pytest.approx(dot(retain, forget), rel=1e-12)
            assert hardness.cosine == pytest.approx(dot(retain, forget) / norm(retain) / norm(forget), rel=1e-9)
            assert hardness.hardness01 == pytest.approx((1 + hardness.cosine) / 2, rel=1e-12)


class TestDegenerate:
    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [
            *itertools.product([torch.float32, torch.float64], [1.0, 1e-3, 0.37]),
            *itertools.product([torch.bfloat16], [1.0, 0.5]),  # without rounding
        ],
    )
    @pytest.mark.parametrize("c", [1e-6, 1e-3, 0.1, 0.5, 0.9, 1.0])
    def test_collinear(self, c, scale, dtype):
        """Rounding leaves something across g_f; of the length of the radius it would be a random direction."""
        g = torch.Generator().manual_seed(0)
        retain = [torch.randn(n, generator=g).to(dtype) for n in (3, 64, 1000)]
        forget = [scale * r for r in retain]
        delta, hardness = update(retain, forget, lr=0.1, ratio=c, quota_scale="relative")
        assert hardness.branches["collinear"] == 3 and hardness.unavoidable and not hardness.infeasible
        tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
        for g_r, g_f, part in zip(retain, forget, delta, strict=True):
            g_r, g_f, part = g_r.double(), g_f.double(), part.double()
            radius = 0.1 * g_r.norm().item()
            along = (part * g_r).sum() / g_r.norm() ** 2 * g_r
            assert (part - along).norm().item() <= tolerance * radius
            assert part.norm().item() <= radius * (1 + tolerance)
            assert dot([g_f], [part]) == pytest.approx(c * radius * g_f.norm().item(), rel=10 * tolerance)

    @pytest.mark.parametrize("d", [10, 1000])
    @pytest.mark.parametrize("sine", [2e-5, 1e-4, 1e-3, 1e-2, 0.1])
    def test_nearly_parallel(self, sine, d):
        """The direction across g_f is badly known; the error in the constraints is that of rounding, over sin θ."""
        g = torch.Generator().manual_seed(0)
        for _ in range(20):
            g_r = torch.randn(d, generator=g)
            g_f = g_r + sine * torch.randn(d, generator=g)
            ((part,), _) = update([g_r], [g_f], lr=0.1, ratio=0.5, quota_scale="relative")
            radius, tolerance = 0.1 * g_r.norm().item(), self.rounding(g_r, g_f)
            assert part.norm().item() <= radius * (1 + tolerance)
            assert dot([g_f], [part]) >= (0.5 - tolerance) * radius * g_f.norm().item()

    @pytest.mark.parametrize("d", [10, 1000])
    @pytest.mark.parametrize("sine", [1e-3, 1e-2, 0.1])
    def test_nearly_parallel_in_bfloat16(self, sine, d):
        """The change is exact up to the rounding of its own elements."""
        g = torch.Generator().manual_seed(0)
        for _ in range(20):
            g_r = torch.randn(d, generator=g).to(torch.bfloat16)
            g_f = g_r + (sine * torch.randn(d, generator=g)).to(torch.bfloat16)
            ((part,), _) = update([g_r], [g_f], lr=0.1, ratio=0.5, quota_scale="relative")
            radius = 0.1 * norm([g_r])
            assert norm([part]) <= radius * (1 + 2**-8)
            assert dot([g_f], [part]) >= (0.5 - 2**-8) * radius * norm([g_f])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_opposite_gradients(self, dtype):
        g = torch.Generator().manual_seed(0)
        retain = [torch.randn(n, generator=g).to(dtype) for n in (3, 64, 1000)]
        for c in (0.0, 0.1, 0.9):
            delta, hardness = update(retain, [-0.37 * r for r in retain], lr=0.1, ratio=c, quota_scale="relative")
            assert hardness.branches["direct"] == 3 and not hardness.unavoidable
            assert difference(delta, [-0.1 * r for r in retain]) <= 1e-6

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("ratio", [1e-9, 1e-6, 0.01, 0.5, 0.99])
    def test_forget_set_is_the_retain_set(self, ratio, dtype):
        g = torch.Generator().manual_seed(0)
        gradients = [torch.randn(n, generator=g).to(dtype) for n in (5, 7, 1)]
        _, hardness = update(gradients, gradients, lr=0.1, ratio=ratio)
        assert hardness.unavoidable and not hardness.infeasible and hardness.branches["collinear"] == 3
        assert hardness.cosine == pytest.approx(1, abs=1e-6) and hardness.hardness01 == pytest.approx(1, abs=1e-6)
        assert hardness.kappa == pytest.approx(norm(gradients) ** 2, rel=1e-6)
        _, without = update(gradients, gradients, lr=0.1, ratio=0.0)
        assert not without.unavoidable and not without.infeasible

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
    @pytest.mark.parametrize(("r", "f"), [(0.3, 0.7), (0.3, -0.7), (-0.3, 0.7), (-0.3, -0.7)])
    def test_one_element(self, r, f, shape):
        delta, hardness = update(
            [torch.full(shape, r)], [torch.full(shape, f)], lr=0.1, ratio=0.5, quota_scale="relative"
        )
        assert delta[0].shape == shape
        assert delta[0].item() == pytest.approx(0.5 * 0.1 * r if r * f > 0 else -0.1 * r, rel=1e-5)
        assert hardness.branches["collinear" if r * f > 0 else "direct"] == 1
        assert hardness.unavoidable is (r * f > 0)

    def test_block_without_retain_gradient_is_skipped(self):
        (draw,) = draws(1, blocks=2, size=5)
        zero, some = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        alone, reference = draw.solve()
        delta, hardness = update(
            [draw.retain[0], zero, draw.retain[1]],
            [draw.forget[0], some, draw.forget[1]],
            lr=draw.lr,
            ratio=draw.ratio,
        )
        assert largest(delta[1:2]) == 0 and hardness.branches["skipped"] == 1
        assert difference([delta[0], delta[2]], alone) <= 1e-12 * draw.lr
        assert hardness.c == pytest.approx(reference.c) and hardness.slack == pytest.approx(reference.slack)

    def test_block_without_forget_gradient_descends(self):
        (draw,) = draws(1, blocks=2, size=5)
        zero, some = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        alone, _ = draw.solve()
        delta, _ = update([*draw.retain, some], [*draw.forget, zero], lr=draw.lr, ratio=draw.ratio)
        assert difference(delta[:2], alone) <= 1e-12 * draw.lr
        assert difference(delta[2:], [-draw.lr * some]) <= 1e-12 * draw.lr

    @pytest.mark.parametrize("variant", ["q", "u"])
    @pytest.mark.parametrize("quota", ["norm_product", "uniform"])
    @pytest.mark.parametrize("quota_scale", ["absolute", "relative"])
    @pytest.mark.parametrize("on_infeasible", ["stop", "skip", "cap"])
    @pytest.mark.parametrize("ratio", [0.0, 0.5])
    def test_nothing_reachable(self, ratio, on_infeasible, quota_scale, quota, variant):
        zero, some = torch.zeros(4), torch.ones(4)
        options = {"on_infeasible": on_infeasible, "quota": quota, "quota_scale": quota_scale, "variant": variant}
        for retain, forget in [(zero, zero), (zero, some), (some, zero)]:
            delta, hardness = update([retain, retain], [forget, forget], lr=0.1, ratio=ratio, **options)
            r = norm([retain if variant == "q" else forget])
            assert all(part.isfinite().all() and part.norm() <= 0.1 * r * (1 + 1e-6) for part in delta)
            asked = ratio > 0 and quota_scale == "absolute"
            assert hardness.infeasible is asked and hardness.unavoidable is False
            assert hardness.shortfall == pytest.approx(0.1 * ratio if asked else 0)
            if asked and on_infeasible != "cap":
                assert largest(delta) == 0
            elif not asked and r > 0:  # nothing is asked: the plain step of the own objective
                assert difference(delta, [-0.1 * retain] * 2 if variant == "q" else [0.1 * forget] * 2) <= 1e-8
            numbers = (hardness.kappa, hardness.cosine, hardness.hardness01, hardness.c, hardness.slack)
            assert all(math.isfinite(x) for x in (*numbers, hardness.unavoidable_cost))
            assert hardness.predicted_forget == hardness.predicted_retain == 0 or (some is retain or some is forget)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
    @pytest.mark.parametrize(("of_retain", "of_forget"), [(1e-8, 1.0), (1.0, 1e-8), (1e-8, 1e-8), (1e6, 1e-6)])
    def test_gradients_of_any_size(self, of_retain, of_forget, dtype, tolerance):
        """Only unit vectors and the length of g_r count; converged models have tiny gradients."""
        for draw in draws(30, dtype=dtype):
            options = {"lr": draw.lr, "ratio": draw.c, "quota_scale": "relative"}
            delta, hardness = update(*draw.given, **options)
            scaled, other = update(
                [of_retain * g for g in draw.retain], [of_forget * g for g in draw.forget], **options
            )
            assert difference([part / of_retain for part in scaled], delta) <= tolerance * largest(delta)
            assert other.branches == hardness.branches
            assert other.kappa == pytest.approx(of_retain * of_forget * hardness.kappa, rel=1e-3)

    def test_bfloat16_gradients_are_measured_in_float32(self):
        g = torch.Generator().manual_seed(0)
        retain, forget = ([torch.randn(n, generator=g).to(torch.bfloat16) for n in (40_000, 300)] for _ in range(2))
        forget = [f + 0.3 * r for r, f in zip(retain, forget, strict=True)]
        assert all(f.dtype == torch.bfloat16 for f in forget)
        for ratio, variant in itertools.product((0.1, 0.9), "qu"):
            options = {"lr": 0.1, "ratio": ratio, "quota_scale": "relative", "variant": variant}
            half, hardness = update(retain, forget, **options)
            single, reference = update([r.float() for r in retain], [f.float() for f in forget], **options)
            for a, b in zip(half, single, strict=True):
                assert (a.float() - b).norm() <= 2**-8 * b.norm()  # elements may be rounded twice
            for name in ("kappa", "cosine", "slack", "predicted_forget", "predicted_retain"):
                assert getattr(hardness, name) == pytest.approx(getattr(reference, name), rel=1e-4), name
            assert hardness.kappa == pytest.approx(dot(retain, forget), rel=1e-4)

    def test_arguments_are_left_alone(self):
        (draw,) = draws(1, blocks=3)
        retain, forget = list(draw.retain), list(draw.forget)
        copies = [g.clone() for g in (*retain, *forget)]
        delta, _ = hamu_update(retain, forget, lr=0.1, ratio=0.5, quota_scale="relative")
        assert delta is not retain and delta is not forget
        assert all(torch.equal(a, b) for a, b in zip((*retain, *forget), copies, strict=True))

    @staticmethod
    def rounding(g_r: Tensor, g_f: Tensor) -> float:
        """What float32 knows of the direction across g_f is as much worse as sin θ is smaller."""
        known = g_r.norm() > 0 and g_f.norm() > 0 and g_r.numel() > 1 and g_r.dtype == torch.float32
        sine = math.sin(angle([g_r], [g_f])) if known else 1.0
        return 1e-5 + (1e-6 / sine if sine > 5e-6 else 0)

    @pytest.mark.parametrize("n", slow_but([200], [200, 800]))
    def test_sweep(self, n):
        """What holds for all gradients and all options."""
        g = torch.Generator().manual_seed(0)

        def pick(options: list):
            return options[int(torch.randint(len(options), (), generator=g))]

        for _ in range(n):
            dtype = pick([torch.float32, torch.float64])
            retain, forget = [], []
            for _ in range(pick([1, 2, 5])):
                shape = pick([(), (1,), (2,), (3, 4), (30,)])
                a, b = (10.0 ** pick([-4, -1, 0, 2]) * torch.randn(shape, generator=g).to(dtype) for _ in range(2))
                kind = pick(["any", "any", "any", "no retain", "no forget", "parallel", "opposite", "nearly"])
                b = {"parallel": 0.3 * a, "opposite": -0.3 * a, "nearly": a + 1e-3 * b}.get(kind, b)
                retain.append(a * 0 if kind == "no retain" else a)
                forget.append(b * 0 if kind == "no forget" else b)
            variant, quota = pick(["q", "u"]), pick(["norm_product", "norm_product", "uniform"])
            lr, ratio = pick([1.0, 1e-2]), pick([0.0, 1e-3, 0.3, 0.5, 0.99, 1.7])
            on_infeasible = pick(["stop", "skip", "cap"])
            options = {"variant": variant, "quota": quota, "on_infeasible": on_infeasible, "quota_scale": "relative"}
            delta, hardness = update(retain, forget, lr=lr, ratio=ratio, **options)

            total = products(retain, forget)
            assert [part.shape for part in delta] == [r.shape for r in retain]
            assert all(part.isfinite().all() for part in delta)
            assert not (hardness.infeasible and hardness.unavoidable)
            assert sum(hardness.branches.values()) == len(retain)
            own, gained = (retain, forget) if variant == "q" else (forget, negated(retain))
            rounding = max(self.rounding(r, f) for r, f in zip(retain, forget, strict=True))
            for part, of_radius in zip(delta, own, strict=True):
                assert part.double().norm().item() <= lr * of_radius.double().norm().item() * (1 + rounding)
            q = lr * ratio * total
            if not hardness.infeasible:
                assert dot(gained, delta) >= q - rounding * lr * total
                assert hardness.shortfall == 0
            elif on_infeasible != "cap":
                assert largest(delta) == 0
            if quota == "norm_product":
                assert hardness.infeasible is (ratio > 1 and total > 0)
                assert hardness.shortfall == pytest.approx(max(0, q - lr * total), rel=1e-5, abs=1e-7 * lr * total)
            free = free_gain(retain, forget, lr)
            assert hardness.slack == pytest.approx(free - q, abs=2e-5 * lr * total)
            if abs(free - q) > 2e-5 * lr * total:
                assert hardness.unavoidable is (q > free and not hardness.infeasible)
            assert 0 <= hardness.unavoidable_cost <= 1 and 0 <= hardness.hardness01 <= 1
            size = rounding * lr * (norm(own) ** 2 + total)
            assert hardness.predicted_forget == pytest.approx(dot(forget, delta), abs=size)
            assert hardness.predicted_retain == pytest.approx(dot(retain, delta), abs=size)


class Network:
    """A perceptron on the digits, in float64, and the gradients of whole sets."""

    def __init__(self, seed: int, steps: int = 40):
        digits = load_digits()
        self.x, self.y = torch.tensor(digits.data) / 16, torch.tensor(digits.target)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
        self.model.double()
        self.weights = list(self.model.parameters())
        optimizer = torch.optim.Adam(self.weights, lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()
            optimizer.step()
        self.start = [w.detach().clone() for w in self.weights]
        self.accuracy = (self.model(self.x).argmax(dim=1) == self.y).double().mean().item()

    def loss(self, of: Tensor) -> Tensor:
        return F.cross_entropy(self.model(self.x[of]), self.y[of])

    def gradient(self, of: Tensor) -> Gradients:
        return list(torch.autograd.grad(self.loss(of), self.weights))

    @torch.no_grad()
    def move(self, delta: Gradients) -> None:
        for w, d in zip(self.weights, delta, strict=True):
            w += d

    @torch.no_grad()
    def reset(self) -> None:
        for w, start in zip(self.weights, self.start, strict=True):
            w.copy_(start)

    def split(self, rho: float, seed: int) -> tuple[Tensor, Tensor]:
        """Class 0 with the share ρ of it swapped for other images."""
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(seed))
        zero, others = order[self.y[order] == 0], order[self.y[order] != 0]
        swapped = round(rho * len(zero))
        is_forget = torch.zeros(len(self.y), dtype=torch.bool)
        is_forget[zero[swapped:]] = True
        is_forget[others[:swapped]] = True
        return ~is_forget, is_forget

    def run(self, rho: float, steps: int, lr: float, seed: int = 0, **options) -> tuple[float, float, list[Hardness]]:
        """How much both losses rise over some full-batch steps."""
        self.reset()
        retain, forget = self.split(rho, seed)
        with torch.no_grad():
            before = self.loss(retain).item(), self.loss(forget).item()
        history = []
        for _ in range(steps):
            delta, hardness = update(self.gradient(retain), self.gradient(forget), lr=lr, **options)
            self.move(delta)
            history.append(hardness)
        with torch.no_grad():
            return self.loss(retain).item() - before[0], self.loss(forget).item() - before[1], history


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(seed=0)


class TestNetwork:
    def test_is_trained(self, network):
        assert network.accuracy > 0.95

    @pytest.mark.parametrize("variant", ["q", "u"])
    @pytest.mark.parametrize("rho", [0.0, 1.0])
    def test_predictions_are_of_first_order(self, network, rho, variant):
        """Their relative error falls with η."""
        errors = []
        for lr in (1e-1, 1e-2, 1e-3, 1e-4):
            options = {"ratio": 0.3, "quota_scale": "relative", "variant": variant}
            rise_r, rise_f, (hardness,) = network.run(rho, 1, lr, **options)
            errors.append(
                (
                    abs(hardness.predicted_retain - rise_r) / abs(rise_r),
                    abs(hardness.predicted_forget - rise_f) / abs(rise_f),
                )
            )
        for larger, smaller in itertools.pairwise(errors[1:]):
            assert smaller[0] == pytest.approx(larger[0] / 10, rel=0.2)
            assert smaller[1] == pytest.approx(larger[1] / 10, rel=0.2)
        assert errors[-1][1] < 1e-2

    def test_gain_is_linear_in_the_ratio(self, network):
        """Where the quota binds: this random forget set looks like the retain set to both weight matrices."""
        retain, forget = network.split(1.0, 11)
        network.reset()
        g_r, g_f = network.gradient(retain), network.gradient(forget)
        matrices = [i for i, g in enumerate(g_r) if g.dim() == 2]
        assert all(dot([g_r[i]], [g_f[i]]) > 0 for i in matrices)
        ratios = [c * products(g_r, g_f) for c in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
        gains, costs = [], []
        for ratio in ratios:
            rise_r, rise_f, history = network.run(1.0, 5, 1e-2, seed=11, ratio=ratio)
            assert all(h.branches["rectified"] >= 2 and h.kappa > 0 for h in history)
            gains.append(rise_f)
            costs.append(rise_r)
        assert np.corrcoef(ratios, gains)[0, 1] ** 2 >= 0.99
        assert all(a < b for a, b in itertools.pairwise(gains)) and all(a < b for a, b in itertools.pairwise(costs))
        assert gains[-1] == pytest.approx(5 * 1e-2 * ratios[-1], rel=0.1)  # T·Q, as promised

    def test_hardness_rises_with_the_random_share(self, network):
        shares = [0, 0.25, 0.5, 0.75, 1]
        kappa = []
        for rho in shares:
            runs = [network.run(rho, 1, 1e-3, seed=seed, ratio=0.0)[2][0] for seed in range(12)]
            kappa.append(np.mean([hardness.kappa for hardness in runs]))
        assert np.corrcoef(shares, kappa)[0, 1] >= 0.9
        assert kappa[0] < kappa[1] < kappa[2] < 0

    @pytest.mark.parametrize("variant", ["q", "u"])
    def test_easy_case_improves_both(self, network, variant):
        options = {"ratio": 0.5, "quota_scale": "relative", "variant": variant}
        rise_r, rise_f, history = network.run(0.0, 20, 1e-2, **options)
        assert rise_r < 0 < rise_f
        assert history[0].kappa < 0 and not history[0].unavoidable and history[0].hardness01 < 0.5

    def test_same_sets_are_flagged_at_once(self, network):
        network.reset()
        _, forget = network.split(0.0, 0)
        gradient = network.gradient(forget)
        total = products(gradient, gradient)
        for c in (1e-9, 1e-3, 0.1, 0.5, 0.99):
            assert update(gradient, gradient, lr=1e-2, ratio=c * total)[1].unavoidable
        assert not update(gradient, gradient, lr=1e-2, ratio=0.0)[1].unavoidable
