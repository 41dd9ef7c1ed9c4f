"""PCGrad, GRU and OrthoGrad against hand-made cases; the gradients are of the plain losses, so g_r·g_f > 0 is a conflict."""

import pytest
import torch
from torch import Tensor

from hf_unlearn.methods.gru import gru_update
from hf_unlearn.methods.orthograd import orthograd_update
from hf_unlearn.methods.pcgrad import pcgrad_update

Gradients = list[Tensor]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dot(a: Gradients, b: Gradients) -> float:
    return sum((x.double() * y.double()).sum().item() for x, y in zip(a, b, strict=True))


def flat(a: Gradients) -> Tensor:
    return torch.cat([x.flatten() for x in a])


def pairs(n: int = 100, dtype=torch.float64, shapes=((3, 4), (4,), (2, 2, 3), (1,))):
    g = torch.Generator().manual_seed(0)
    for _ in range(n):
        retain, forget = ([torch.randn(shape, generator=g, dtype=dtype) for shape in shapes] for _ in range(2))
        lean = 2 * torch.rand((), generator=g).item() - 1
        yield retain, [f + lean * r for f, r in zip(forget, retain, strict=True)]


def conflicting(n: int = 100, conflict: bool = True, **options):
    for retain, forget in pairs(n, **options):
        if (dot(retain, forget) > 0) is conflict:
            yield retain, forget


class TestGru:
    def test_conflict(self):
        """Plain ascent would raise the retain loss by 0.8."""
        (found,) = gru_update([vector(1, 0)], [vector(0.8, 0.6)])
        assert found.tolist() == pytest.approx([0, -0.6], abs=1e-12)

    def test_no_conflict(self):
        (found,) = gru_update([vector(1, 0)], [vector(-0.8, 0.6)])
        assert found.tolist() == pytest.approx([0.8, -0.6], abs=1e-12)

    def test_right_angle(self):
        (found,) = gru_update([vector(2, 0)], [vector(0, 3)])
        assert found.tolist() == pytest.approx([0, -3], abs=1e-12)

    def test_does_not_raise_the_retain_loss(self):
        for retain, forget in pairs():
            found = gru_update(list(retain), list(forget))
            assert [x.shape for x in found] == [x.shape for x in retain]
            assert dot(retain, found) >= -1e-12  # a descent step lowers the retain loss, or leaves it
            assert dot(forget, found) < 0  # and raises the forget loss

    def test_projects_on_the_whole_gradient(self):
        """Not tensor by tensor: conflicts of one tensor may be made good by another."""
        count = 0
        for retain, forget in conflicting():
            found = flat(gru_update(list(retain), list(forget)))
            r, f = flat(retain), flat(forget)
            assert torch.allclose(found, (f @ r) / (r @ r) * r - f, atol=1e-12)
            assert abs((found @ r).item()) <= 1e-12
            count += 1
        assert count > 20

    def test_unchanged_without_conflict(self):
        count = 0
        for retain, forget in conflicting(conflict=False):
            found = gru_update(list(retain), list(forget))
            assert all(torch.equal(a, -b) for a, b in zip(found, forget, strict=True))
            count += 1
        assert count > 20


class TestPcgrad:
    @staticmethod
    def direction(retain: Tensor, forget: Tensor) -> list[float]:
        (found,) = pcgrad_update([retain], [forget])
        return (found / found.norm()).tolist()

    def test_conflict(self):
        # g_r becomes (.36, −.48), −g_f becomes (0, −.6).
        expected = vector(0.36, -1.08)
        assert self.direction(vector(1, 0), vector(0.8, 0.6)) == pytest.approx((expected / expected.norm()).tolist())

    def test_no_conflict(self):
        expected = vector(1.8, -0.6)
        assert self.direction(vector(1, 0), vector(-0.8, 0.6)) == pytest.approx((expected / expected.norm()).tolist())

    def test_right_angle(self):
        expected = vector(2, -3)
        assert self.direction(vector(2, 0), vector(0, 3)) == pytest.approx((expected / expected.norm()).tolist())

    def test_improves_both(self):
        for retain, forget in pairs():
            found = pcgrad_update(list(retain), list(forget))
            assert [x.shape for x in found] == [x.shape for x in retain]
            assert dot(retain, found) > 0 > dot(forget, found)

    @pytest.mark.parametrize("conflict", [True, False])
    def test_projects_whole_gradients(self, conflict):
        count, factors = 0, set()
        for retain, forget in conflicting(conflict=conflict):
            found, r, f = flat(pcgrad_update(list(retain), list(forget))), flat(retain), flat(forget)
            expected = r - f
            if conflict:  # both projections are of the gradients as they came
                expected = r - (r @ f) / (f @ f) * f - f + (r @ f) / (r @ r) * r
            factor = (found @ expected / (expected @ expected)).item()
            assert torch.allclose(found, factor * expected, atol=1e-12)
            factors.add(round(factor, 9))
            count += 1
        assert count > 20 and len(factors) == 1 and factors <= {0.5, 1.0}


@pytest.mark.parametrize("rule", [gru_update, pcgrad_update])
class TestBothRules:
    def test_zero_gradients(self, rule):
        some, zero = vector(1, -2), vector(0, 0)
        for retain, forget in [(zero, zero), (zero, some), (some, zero)]:
            (found,) = rule([retain], [forget])
            assert found.isfinite().all()
            if forget is some:
                assert torch.allclose(found / found.norm(), -some / some.norm())

    def test_same_gradient(self, rule):
        """Nothing is left that helps one loss and does not harm the other."""
        (found,) = rule([vector(1, -2)], [vector(1, -2)])
        assert found.norm().item() <= 1e-12

    def test_arguments_are_left_alone(self, rule):
        for retain, forget in pairs(10):
            copies = [x.clone() for x in (*retain, *forget)]
            rule(retain, forget)
            assert all(torch.equal(a, b) for a, b in zip((*retain, *forget), copies, strict=True))

    def test_bfloat16_gradients_are_measured_in_float32(self, rule):
        ((retain, forget),) = conflicting(1, dtype=torch.float32, shapes=((40_000,), (300,)))
        retain, forget = ([x.to(torch.bfloat16) for x in g] for g in (retain, forget))
        half = rule(list(retain), list(forget))
        single = rule([x.float() for x in retain], [x.float() for x in forget])
        for a, b in zip(half, single, strict=True):
            assert (a.float() - b).norm() <= 2**-8 * b.norm()  # elements may be rounded twice


def samples(k: int, shapes=((3, 4), (6,)), dtype=torch.float64, seed: int = 0) -> tuple[Gradients, Gradients]:
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randn(k, *shape, generator=g, dtype=dtype) for shape in shapes]
    return rows, [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


def across(rows: Tensor, forget: Tensor) -> Tensor:
    """g_f without what lies in the span of the rows."""
    a = rows.flatten(1).double().T
    return (forget.flatten().double() - a @ torch.linalg.lstsq(a, forget.flatten().double(), driver="gelsd").solution
            ).view_as(forget)  # fmt: skip


class TestOrthograd:
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_closed_form_by_tensor(self, k, alpha):
        for seed in range(10):
            rows, forget = samples(k, seed=seed)
            found = orthograd_update(list(rows), list(forget), alpha)
            for r, f, x in zip(rows, forget, found, strict=True):
                assert x.shape == f.shape
                assert torch.allclose(x, alpha * r.mean(dim=0) - (1 - alpha) * across(r, f), atol=1e-10)

    def test_hand_made(self):
        rows = [torch.tensor([[1.0, 0, 0], [1.0, 1.0, 0]])]
        (found,) = orthograd_update(rows, [torch.tensor([5.0, 7.0, 2.0])], 0.25)
        assert found.tolist() == pytest.approx([0.25, 0.125, -1.5], abs=1e-6)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
    def test_forget_part_leaves_every_sample(self, dtype, tolerance):
        rows, forget = samples(8, shapes=((20, 30), (40,)), dtype=dtype)
        found = orthograd_update(list(rows), list(forget), 0.0)
        for r, f, x in zip(rows, forget, found, strict=True):
            directions = r.flatten(1).double()
            directions = directions / directions.norm(dim=1, keepdim=True)
            x, f = x.double().flatten(), f.double().flatten()
            assert (directions @ x).abs().max() <= tolerance * x.norm()
            assert x.norm() <= f.norm() and (x @ f).item() == pytest.approx(-(x @ x).item(), rel=1e-5)  # ascent

    def test_projecting_twice_is_projecting_once(self):
        rows, forget = samples(3)
        once = orthograd_update(list(rows), list(forget), 0.0)
        twice = orthograd_update(list(rows), [-x for x in once], 0.0)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(once, twice, strict=True))

    @pytest.mark.parametrize("kind", ["twice the same", "zero row", "all zero", "sum of two", "nearly the same"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
    def test_dependent_samples(self, kind, dtype, tolerance):
        """A basis of them must not hold a direction that is none of theirs."""
        independent, forget = samples(2, dtype=dtype)
        made = {
            "twice the same": lambda r: torch.cat([r, r[:1]]),
            "zero row": lambda r: torch.cat([torch.zeros_like(r[:1]), r]),
            "all zero": lambda r: torch.zeros_like(r),
            "sum of two": lambda r: torch.cat([r, r.sum(dim=0, keepdim=True)]),
            "nearly the same": lambda r: torch.cat([r, r[:1] * (1 + 1e-7)]),
        }
        rows = [made[kind](r) for r in independent]
        found = orthograd_update(list(rows), list(forget), 0.0)
        for r, f, x in zip(independent, forget, found, strict=True):
            wanted = -f.double() if kind == "all zero" else -across(r, f)
            assert x.isfinite().all() and (x.double() - wanted).abs().max() <= tolerance

    def test_samples_of_different_sizes(self):
        """Gradients of samples that are already fitted are smaller, and count as directions all the same."""
        rows, forget = samples(3, dtype=torch.float32)
        scaled = [r * torch.tensor([1.0, 1e-6, 1e3], dtype=r.dtype).view(-1, *[1] * (r.dim() - 1)) for r in rows]
        found = orthograd_update(scaled, list(forget), 0.0)
        for r, f, x in zip(rows, forget, found, strict=True):
            assert (x.double() + across(r, f)).abs().max() <= 1e-5

    def test_more_samples_than_numbers(self):
        rows, forget = samples(9, shapes=((4,), (1,)))
        found = orthograd_update(list(rows), list(forget), 0.5)
        assert all(torch.allclose(x, 0.5 * r.mean(dim=0), atol=1e-10) for x, r in zip(found, rows, strict=True))

    def test_samples_at_right_angles_change_nothing(self):
        rows = [torch.eye(5, dtype=torch.float64)[:2]]
        (found,) = orthograd_update(rows, [vector(0, 0, 1, 2, 3)], 0.0)
        assert found.tolist() == pytest.approx([0, 0, -1, -2, -3], abs=1e-12)

    def test_zero_forget_gradient(self):
        rows, forget = samples(2)
        found = orthograd_update(list(rows), [f * 0 for f in forget], 0.5)
        assert all(torch.allclose(x, 0.5 * r.mean(dim=0), atol=1e-12) for x, r in zip(found, rows, strict=True))

    def test_arguments_are_left_alone(self):
        rows, forget = samples(2)
        copies = [x.clone() for x in (*rows, *forget)]
        orthograd_update(rows, forget, 0.5)
        assert all(torch.equal(a, b) for a, b in zip((*rows, *forget), copies, strict=True))
