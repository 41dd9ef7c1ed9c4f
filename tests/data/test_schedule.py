"""The schedule of samples, and the random numbers that belong to a sample: nothing but coordinates decides them."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import gumbel_r, kstest

from hf_unlearn.data.batches import Batch
from hf_unlearn.data.randomness import gumbel, uniform
from hf_unlearn.data.schedule import Schedule
from tests.runs import make_trainer

KINDS = ["mixed", "paired", "forget", "retain", "forget-paired"]
N_FORGET, N_RETAIN = 13, 41


def schedule(*epochs: str, **settings) -> Schedule:
    return Schedule(
        list(epochs), **{"n_forget": N_FORGET, "n_retain": N_RETAIN, "batch_size": 8, "seed": 3} | settings
    )


def draws(plan: Schedule, epoch: int | None = None) -> list:
    """All draws of an epoch, or of all epochs, in order."""
    steps = range(len(plan)) if epoch is None else range(plan.starts[epoch], plan.starts[epoch + 1])
    return [draw for step in steps for group in plan.step(step).values() for draw in group]


def samples(drawn: list, source: str | None = None) -> list[tuple[str, int]]:
    return [(draw.source, draw.index) for draw in drawn if source in (None, draw.source)]


FORGET = [("forget", i) for i in range(N_FORGET)]
RETAIN = [("retain", i) for i in range(N_RETAIN)]
EVERY = {"mixed": FORGET + RETAIN, "forget": FORGET, "retain": RETAIN}


@pytest.mark.parametrize(
    "epochs", [["retain"], ["forget-paired"], ["mixed", "paired"], ["retain", "forget", "retain"], ["paired"] * 2]
)
def test_how_many_samples_steps_draw(epochs):
    plan = schedule(*epochs, retain_fraction=0.5)
    drawn = np.cumsum([sum(map(len, plan.step(step).values())) for step in range(len(plan))]).tolist()
    assert [plan.samples(steps) for steps in range(len(plan) + 1)] == [0, *drawn] and plan.samples() == drawn[-1]
    for limit in range(drawn[-1] + 2):
        assert plan.steps_within(limit) == sum(total <= limit for total in drawn)


class TestEpochs:
    @pytest.mark.parametrize("kind", EVERY)
    def test_every_sample_once(self, kind):
        plan = schedule(kind, kind, kind)
        orders = [samples(draws(plan, epoch)) for epoch in range(3)]
        for order in orders:
            assert sorted(order) == sorted(EVERY[kind])
            assert order != sorted(order)
        assert orders[0] != orders[1] != orders[2] != orders[0]
        assert {draw.group for draw in draws(plan)} == {kind}
        assert [draw.epoch for draw in draws(plan)] == sorted(draw.epoch for draw in draws(plan))

    @pytest.mark.parametrize("kind", EVERY)
    def test_full_steps_but_the_last(self, kind):
        plan = schedule(kind, kind)
        sizes = [len(plan.step(step)[kind]) for step in range(len(plan))]
        n = len(EVERY[kind])
        assert sizes == 2 * (n // 8 * [8] + [n % 8])

    def test_forget_and_retained_samples_are_mixed(self):
        plan = schedule("mixed", n_forget=400, n_retain=1200, batch_size=100)
        counts = [sum(draw.source == "forget" for draw in plan.step(step)["mixed"]) for step in range(len(plan))]
        assert sum(counts) == 400 and min(counts) > 10 and max(counts) < 40

    def test_pairs(self):
        """As many forget samples as retained ones; the forget set is cycled, each time in a new order."""
        plan = schedule("paired", "paired")
        for step in range(len(plan)):
            groups = plan.step(step)
            assert groups.keys() == {"forget", "retain"}
            assert len(groups["forget"]) == len(groups["retain"]) == (1 if step in (5, 11) else 8)
            assert all(draw.group == draw.source == group for group, drawn in groups.items() for draw in drawn)
        for epoch in range(2):
            drawn = draws(plan, epoch)
            assert sorted(samples(drawn, "retain")) == RETAIN
            cycled = samples(drawn, "forget")
            rounds = [cycled[i : i + N_FORGET] for i in range(0, N_RETAIN, N_FORGET)]
            assert [sorted(r) for r in rounds[:3]] == 3 * [FORGET]
            assert len(rounds[3]) == len(set(rounds[3])) == N_RETAIN - 3 * N_FORGET
            assert len({tuple(r) for r in rounds}) == 4
        assert samples(draws(plan, 0), "forget") != samples(draws(plan, 1), "forget")

    def test_pairs_with_a_few_forget_samples(self):
        cycled = [index for _, index in samples(draws(schedule("paired", n_forget=2)), "forget")]
        rounds = [tuple(cycled[i : i + 2]) for i in range(0, N_RETAIN - 1, 2)]
        assert set(rounds) == {(0, 1), (1, 0)}

    def test_pairs_by_the_forget_set(self):
        """One pass over the forget set; the retained samples go on from epoch to epoch, round after round."""
        plan = schedule(*4 * ["forget-paired"])
        assert plan.starts == [0, 2, 4, 6, 8] and plan.samples() == 8 * N_FORGET
        assert plan.used().tolist() == list(range(N_FORGET + N_RETAIN))
        for epoch in range(4):
            assert sorted(samples(draws(plan, epoch), "forget")) == FORGET
        retained = [draw for draw in draws(plan) if draw.group == "retain"]
        assert len(retained) == 4 * N_FORGET
        for start in range(0, len(retained), N_RETAIN):
            part = retained[start : start + N_RETAIN]
            assert len({draw.index for draw in part}) == len(part) and {draw.epoch for draw in part} == {
                start // N_RETAIN
            }
        for step in range(len(plan)):
            groups = plan.step(step)
            assert list(groups) == ["forget", "retain"] and len(groups["forget"]) == len(groups["retain"])

    def test_phases(self):
        plan = schedule("forget", "retain", "mixed")
        assert plan.starts == [0, 2, 8, 15]
        assert [plan.epoch(step) for step in (0, 1, 2, 7, 8, 14)] == [0, 0, 1, 1, 2, 2]
        assert [next(iter(plan.step(step))) for step in range(15)] == 2 * ["forget"] + 6 * ["retain"] + 7 * ["mixed"]
        assert [plan.progress(step) for step in (0, 1, 2, 5, 8, 15)] == [0, 0.5, 1, 1.5, 2, 3]

    @pytest.mark.parametrize(
        "kind, n_forget, n_retain", [("forget", 0, 4), ("retain", 4, 0), ("paired", 4, 0), ("forget-paired", 4, 0)]
    )
    def test_an_epoch_without_samples_is_refused(self, kind, n_forget, n_retain):
        with pytest.raises(ValueError, match=f"{kind!r} has no samples"):
            schedule(kind, n_forget=n_forget, n_retain=n_retain)

    def test_an_unknown_kind_is_refused(self):
        with pytest.raises(ValueError, match="'mixd'; expected one of mixed, paired, forget, retain"):
            schedule("mixed", "mixd")


class TestLength:
    def test_max_steps_shorter(self):
        whole, cut = schedule("mixed", "retain"), schedule("mixed", "retain", max_steps=9)
        assert (len(whole), len(cut)) == (13, 9)
        assert [cut.step(i) for i in range(9)] == [whole.step(i) for i in range(9)]
        assert len(list(cut.micro_batches(0, 0, 1, 1))) == 9

    def test_max_steps_longer_repeats_the_last_kind_of_epoch(self):
        whole, long = schedule("mixed", "retain"), schedule("mixed", "retain", max_steps=30)
        assert long.epochs == ["mixed", "retain", "retain", "retain", "retain"]
        assert len(long) == 30
        assert [long.step(i) for i in range(13)] == [whole.step(i) for i in range(13)]
        orders = [samples(draws(long, epoch)) for epoch in (1, 2, 3)]
        assert all(sorted(order) == RETAIN for order in orders)
        assert orders[0] != orders[1] != orders[2]
        assert list(long.step(29)) == ["retain"]

    @pytest.mark.parametrize("epochs, steps", [(2, 2 * 7), (1.5, 10), (0.5, 4), (0.01, 1)])
    def test_a_fraction_of_the_epochs(self, epochs, steps, tmp_path):
        """Of all that the method makes of them: here every epoch is one on forget and one on retained samples."""
        trainer = make_trainer("own_phases", "vit", tmp_path, num_train_epochs=epochs)
        assert (len(trainer.schedule), trainer.args.max_steps) == (steps, steps)

    def test_max_steps_of_a_trainer(self, tmp_path):
        for max_steps in (1, 9):
            trainer = make_trainer("lotus", "vit", tmp_path, max_steps=max_steps)
            trainer.train()
            assert trainer.state.global_step == len(trainer.schedule) == max_steps


class TestRetainSubset:
    @pytest.mark.parametrize("kind", ["mixed", "retain", "paired"])
    def test_one_subset_for_all_epochs(self, kind):
        plan = schedule(kind, kind, retain_fraction=0.3)
        subsets = [sorted(samples(draws(plan, epoch), "retain")) for epoch in range(2)]
        assert subsets[0] == subsets[1] and len(subsets[0]) == len(set(subsets[0])) == int(0.3 * N_RETAIN)
        assert sorted(samples(draws(plan, 0))) != sorted(samples(draws(schedule(kind, retain_fraction=0.3, seed=4))))

    @pytest.mark.parametrize(
        "fraction, n, size", [(0.3, 33, 9), (0.29, 100, 29), (0.7, 10, 7), (1.0, 7, 7), (0.3, 3, 0)]
    )
    def test_size(self, fraction, n, size):
        """⌊fraction · n⌋, where floating point has 0.29 · 100 = 28.999999999999996."""
        assert len(schedule("mixed", n_retain=n, retain_fraction=fraction).retain_subset) == size

    @pytest.mark.parametrize("streamed", [False, True])
    def test_others_in_its_place(self, streamed):
        plan = schedule("mixed", "mixed", retain_fraction=0.3, retain_is_stream=streamed)
        wanted = np.arange(len(plan.retain_subset))[::-1]
        plan.read_only(wanted)
        for epoch in range(2):
            assert sorted(samples(draws(plan, epoch), "retain")) == RETAIN[: len(wanted)]

    def test_is_drawn_uniformly(self):
        counts = Counter(
            i for seed in range(300) for i in schedule("retain", seed=seed, retain_fraction=0.5).retain_subset.tolist()
        )
        assert set(counts) == set(range(N_RETAIN))
        assert min(counts.values()) > 100 and max(counts.values()) < 200

    def test_used(self):
        retained = {index for _, index in samples(draws(schedule("mixed", retain_fraction=0.3)), "retain")}
        for kind, n_forget in (("mixed", N_FORGET), ("retain", 0), ("paired", N_FORGET)):
            used = schedule(kind, retain_fraction=0.3).used().tolist()
            assert used == list(range(n_forget)) + sorted(N_FORGET + i for i in retained)
        assert schedule("forget").used().tolist() == list(range(N_FORGET))


class TestPureFunction:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_seed_and_step(self, kind):
        plan, other = schedule(kind, kind, kind), schedule(kind, kind, kind)
        steps = range(len(plan))
        expected = [plan.step(step) for step in steps]
        assert [other.step(step) for step in reversed(steps)] == expected[::-1]
        np.random.seed(0)
        assert [schedule(kind, kind, kind).step(step) for step in steps] == expected
        assert [schedule(kind, kind, kind, seed=4).step(step) for step in steps] != expected

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_the_step_however_it_is_reached(self, kind):
        plan = schedule(kind, kind, max_steps=17)
        for layout in ((0, 1, 1), (0, 2, 2), (1, 2, 2), (3, 4, 1)):
            everything = list(plan.micro_batches(0, *layout))
            for first in (1, 5, 16):
                assert list(plan.micro_batches(first, *layout)) == everything[first * layout[2] :]

    @pytest.mark.parametrize("kind", ["mixed", "retain"])
    def test_a_stream_is_read_in_its_own_order(self, kind):
        plan = schedule(kind, kind, retain_is_stream=True, retain_fraction=0.5)
        for epoch in range(2):
            order = [index for _, index in samples(draws(plan, epoch), "retain")]
            assert order == plan.retain_subset.tolist()
        if kind == "mixed":
            places = [[draw.source for draw in draws(plan, epoch)] for epoch in range(2)]
            assert places[0] != places[1]
            forgotten = [samples(draws(plan, epoch), "forget") for epoch in range(2)]
            assert forgotten[0] != forgotten[1] and sorted(forgotten[0]) == FORGET


LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (3, 5), (1, 16)]


class TestMicroBatches:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("world_size, accumulation", LAYOUTS)
    def test_share_out_the_step(self, kind, world_size, accumulation):
        """Disjoint over processes and micro-batches, nearly equal in size, and together the whole step."""
        plan = schedule(kind, kind)
        ranks = [list(plan.micro_batches(0, rank, world_size, accumulation)) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(plan) * accumulation}
        for step in range(len(plan)):
            here = slice(step * accumulation, (step + 1) * accumulation)
            parts = [batch for batches in ranks for batch in batches[here]]
            for group, expected in plan.step(step).items():
                shares = [[draw for draw in part if draw.group == group] for part in parts]
                assert all(shares)
                counted = [[draw for draw in share if draw.weight > 0] for share in shares]
                assert [
                    draw._replace(weight=1.0, sample_weight=1.0) for share in counted for draw in share
                ] == expected
                assert max(map(len, counted)) - min(map(len, counted)) <= 1
                for share, real in zip(shares, counted, strict=True):
                    assert len(share) == max(1, len(real))
                weights = [draw.weight for share in shares for draw in share]
                assert set(weights) <= {0.0, world_size / len(expected)}
                assert sum(weights) == pytest.approx(world_size, rel=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 3, 7])
    def test_fewer_samples_than_micro_batches(self, n):
        plan = schedule("forget", n_forget=n)
        for rank in range(4):
            batches = list(plan.micro_batches(0, rank, 4, 2))
            assert [len(batch) for batch in batches] == [1, 1]
        real = [
            draw for rank in range(4) for batch in plan.micro_batches(0, rank, 4, 2) for draw in batch if draw.weight
        ]
        assert len(real) == n and sorted(draw.index for draw in real) == list(range(n))

    @pytest.mark.parametrize("world_size, accumulation", LAYOUTS)
    def test_the_mean_of_ones_is_one(self, world_size, accumulation):
        """And that of any numbers their mean: summed over micro-batches and averaged over processes."""
        plan = schedule("mixed")
        values = {draw[1:3]: float(i) for i, draw in enumerate(draws(plan))}
        ranks = [list(plan.micro_batches(0, rank, world_size, accumulation)) for rank in range(world_size)]
        for step in range(len(plan)):
            here = slice(step * accumulation, (step + 1) * accumulation)
            ones, means = 0.0, 0.0
            for part in itertools.chain.from_iterable(batches[here] for batches in ranks):
                batch = Batch(weight=torch.tensor([draw.weight for draw in part], dtype=torch.float64))
                ones += batch.mean(torch.ones(len(part), dtype=torch.float64)).item() / world_size
                numbers = torch.tensor([values[draw[1:3]] for draw in part], dtype=torch.float64)
                means += batch.mean(numbers).item() / world_size
            assert ones == pytest.approx(1, rel=1e-12)
            assert means == pytest.approx(np.mean([values[draw[1:3]] for draw in plan.step(step)["mixed"]]), rel=1e-12)


class TestRandomness:
    SAMPLES, EPOCHS, COLUMNS = torch.arange(2000), torch.zeros(2000, dtype=torch.int64), 10

    def test_same_bits_however_the_batch_is_split(self):
        whole = gumbel(3, self.EPOCHS + 1, self.SAMPLES, self.COLUMNS)
        order = torch.from_numpy(np.random.default_rng(0).permutation(2000))
        shuffled = torch.cat([gumbel(3, self.EPOCHS[part] + 1, part, self.COLUMNS) for part in order.split(7)])
        assert torch.equal(whole[order], shuffled)
        mixed = gumbel(3, torch.tensor([1, 0, 1]), torch.tensor([5, 5, 6]), self.COLUMNS)
        assert torch.equal(mixed[[0, 2]], whole[5:7]) and not torch.equal(mixed[1], whole[5])

    def test_the_global_generator_has_no_part_in_it(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = uniform(0, self.EPOCHS, self.SAMPLES, 3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(uniform(0, self.EPOCHS, self.SAMPLES, 3), first)

    @pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, 2**32 - 1])
    def test_uniform(self, seed):
        u = uniform(seed, self.EPOCHS, self.SAMPLES, self.COLUMNS)
        assert u.dtype == torch.float64 and u.shape == (2000, 10)
        assert u.min() > 0 and u.max() < 1
        assert len(u.unique()) == u.numel()
        assert u.mean().item() == pytest.approx(1 / 2, abs=0.01)
        assert u.var().item() == pytest.approx(1 / 12, abs=0.002)
        assert kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
        one_sample = uniform(seed, self.EPOCHS[:1], self.SAMPLES[:1], 2000)[0]
        for line in (u[:, 0], one_sample, uniform(seed, torch.arange(2000), self.EPOCHS, 1)[:, 0]):
            assert kstest(line.numpy(), "uniform").pvalue > 1e-3

    @pytest.mark.parametrize("seed", [0, 42])
    def test_gumbel(self, seed):
        """Mean: the constant of Euler and Mascheroni; variance: π²/6."""
        g = gumbel(seed, self.EPOCHS, self.SAMPLES, 50)
        assert torch.isfinite(g).all()
        assert g.mean().item() == pytest.approx(np.euler_gamma, abs=0.015)
        assert g.var().item() == pytest.approx(np.pi**2 / 6, abs=0.05)
        assert kstest(g.flatten().numpy(), gumbel_r.cdf).pvalue > 1e-3

    def test_gumbel_max_draws_from_the_softmax(self):
        logits = torch.tensor([2.0, 0.0, -1.0, 1.0], dtype=torch.float64)
        drawn = (logits + gumbel(0, torch.zeros(50_000, dtype=torch.int64), torch.arange(50_000), 4)).argmax(dim=-1)
        found = torch.bincount(drawn, minlength=4).double() / 50_000
        assert torch.allclose(found, logits.softmax(dim=0), atol=0.01)

    def test_nothing_is_correlated(self):
        """Neighbouring samples, columns, epochs and seeds; 5 standard errors of a correlation over 20,000 numbers."""
        u = uniform(0, self.EPOCHS, self.SAMPLES, self.COLUMNS)
        pairs = {
            "samples": (u[:-1], u[1:]),
            "columns": (u[:, :-1], u[:, 1:]),
            "diagonal": (u[:-1, :-1], u[1:, 1:]),
            "epochs": (u, uniform(0, self.EPOCHS + 1, self.SAMPLES, self.COLUMNS)),
            "seeds": (u, uniform(1, self.EPOCHS, self.SAMPLES, self.COLUMNS)),
            "sample and epoch": (u[1:], uniform(0, self.EPOCHS + 1, self.SAMPLES, self.COLUMNS)[:-1]),
        }
        for name, (a, b) in pairs.items():
            correlation = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(a.numel()), name
        across = np.corrcoef(u.T.numpy()) - np.eye(self.COLUMNS)
        assert np.abs(across).max() < 5 / np.sqrt(len(u))
