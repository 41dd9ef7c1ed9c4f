"""Unlearning metrics as pure functions on arrays.

NumPy arrays, torch tensors (any device, any dtype) and lists are accepted, everything is computed in float64 with
natural logarithms, and plain Python numbers come back. Nothing here runs a model.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import torch

_EXPECTED = {
    "probabilities": ("N x K probabilities", "apply softmax in float32 and flatten to one row per sample"),
    "labels": ("N integer class ids", "take the argmax of logits, map class names to ids, and drop ignored samples"),
    "scores": ("N numbers", "pass one value per sample and drop samples without one"),
    "signal": ("N finite numbers", "pass one value per sample, and clip or drop infinite ones"),
}


def _checked(values: ArrayLike, name: str, kind: str, length: int | None = None) -> np.ndarray:
    """`values` as an array of the given kind (a key of `_EXPECTED`), or a ValueError that says what is wrong with it.

    Rows of probabilities may be off by 1e-3 (float16) and are rescaled to sum to 1.
    """

    def refuse(found: str) -> ValueError:
        expected, remedy = _EXPECTED[kind]
        return ValueError(f"`{name}` {found}, but {expected} were expected: {remedy}.")

    if hasattr(values, "detach"):  # a torch tensor; NumPy knows neither GPUs nor bfloat16
        values = values.detach().cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise refuse("does not convert to a rectangular array of numbers") from None

    dimensions = 1
    if kind == "probabilities":
        dimensions, array = 2, array[None] if array.ndim == 1 else array
    if array.ndim != dimensions:
        raise refuse(f"has shape {array.shape}")
    if array.size == 0:
        raise refuse("is empty")
    if length is not None and len(array) != length:
        raise refuse(f"has {len(array)} entries where the array it belongs to has {length}")
    if kind == "probabilities":
        totals = array.sum(axis=1, keepdims=True)  # NaN or infinite as soon as one entry is
        if not np.isfinite(totals).all():
            raise refuse("contains NaN or infinite values")
        if array.min() < 0:
            raise refuse(f"contains negative values (down to {array.min():.3g})")
        worst = np.abs(totals - 1).argmax()
        if abs(totals[worst, 0] - 1) > 1e-3:
            raise refuse(f"has a row that sums to {totals[worst, 0]:.6g} (row {worst})")
        return array / totals
    if np.isnan(array).any() or (kind != "scores" and np.isinf(array).any()):
        raise refuse("contains NaN or infinite values" if kind != "scores" else "contains NaN")
    if kind == "labels":
        if (array != np.floor(array)).any():
            raise refuse("contains fractions")
        return array.astype(np.int64)
    return array


def _checked_pair(p: ArrayLike, q: ArrayLike, p_name: str, q_name: str) -> tuple[np.ndarray, np.ndarray]:
    p, q = _checked(p, p_name, "probabilities"), _checked(q, q_name, "probabilities")
    if p.shape != q.shape:
        raise ValueError(
            f"`{p_name}` has shape {p.shape} and `{q_name}` {q.shape}, but they are compared row by row: pass the same "
            "samples (or classes) in the same order and over the same classes."
        )
    return p, q


def _number(values: Mapping[str, float], key: str, name: str) -> float:
    value = values.get(key)
    if value is None or not np.isfinite(value):
        found = f"{key!r} = {value}" if key in values else f"no {key!r}"
        raise ValueError(f"`{name}` has {found}, but a finite number was expected: measure it and pass it.")
    return float(value)


# ---- Distances between predictions ----------------------------------------------------------------------------------


def jsd_rows(p: ArrayLike, q: ArrayLike) -> np.ndarray:
    """Jensen-Shannon divergence of each row of `p` from the same row of `q`.

        JSD(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M),   M = (P + Q) / 2

    Natural logarithm and 0 · log 0 = 0, so a value lies in [0, ln 2]: 0 for equal rows, ln 2 for disjoint ones.
    A pair of 1-D arrays counts as one row.

    References:
        Lin, *Divergence measures based on the Shannon entropy*, IEEE Transactions on Information Theory 37(1), 1991.

    Example:
        >>> jsd_rows([[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]).round(4)
        array([0.    , 0.6931])
    """
    return _jsd_rows(*_checked_pair(p, q, "p", "q"))


def _jsd_rows(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    rows, step = (
        np.empty(len(p)),
        max(1, 2**14 // p.shape[1]),
    )  # some rows at a time, which the processor's cache holds
    for start in range(0, len(p), step):
        a, b = p[start : start + step], q[start : start + step]
        m = (a + b) / 2
        rows[start : start + step] = (_rel_entr(a, m).sum(axis=1) + _rel_entr(b, m).sum(axis=1)) / 2
    return rows.clip(0, np.log(2))  # the bounds are exact, rounding is not


def _rel_entr(p: np.ndarray, m: np.ndarray) -> np.ndarray:
    """p log(p/m), and 0 where p is; as that of scipy, in a fifth of the time."""
    tiny = np.finfo(np.float64).tiny
    return p * np.log(np.maximum(p / np.maximum(m, tiny), tiny))


def jsd(p: ArrayLike, q: ArrayLike) -> float:
    """Mean Jensen-Shannon divergence over the rows of `p` and `q`; see `jsd_rows` for the formula.

    A mean over samples: repeating rows changes nothing, and the value does not shrink as the forget set grows.
    In unlearning: `p` from the unlearned and `q` from the retrained model on the forget set. Lower is better.

    Example:
        >>> round(jsd([1.0, 0.0], [0.5, 0.5]), 6)
        0.215762
    """
    return float(jsd_rows(p, q).mean())


def class_means(probs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability vector of each class.

    Returns:
        `(classes, means)`: the C class ids that occur in `labels`, sorted, and a C x K array.

    Example:
        >>> class_means([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], [7, 7, 9])
        (array([7, 9]), array([[0.75, 0.25],
               [0.  , 1.  ]]))
    """
    probs = _checked(probs, "probs", "probabilities")
    labels = _checked(labels, "labels", "labels", length=len(probs))
    classes = np.unique(labels)
    return classes, np.stack([probs[labels == c].mean(axis=0) for c in classes])


def rf_jsd_from_means(
    forget_means: ArrayLike, unseen_means: ArrayLike, convention: Literal["standard", "lotus"] = "standard"
) -> float:
    """RF-JSD from two C x K arrays of class means, row c of both belonging to the same class.

    For callers that stream: class sums are all that has to be kept. See `rf_jsd` for the formula and the conventions.

    Example:
        >>> round(rf_jsd_from_means([[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]), 6)
        0.107881
    """
    p, q = _checked_pair(forget_means, unseen_means, "forget_means", "unseen_means")
    if convention == "standard":
        return float(_jsd_rows(p, q).mean())
    if convention != "lotus":
        raise ValueError(f"`convention` is {convention!r}: pass 'standard' or 'lotus'.")
    p, q = p.clip(1e-8), q.clip(1e-8)
    p, q = p / p.sum(), q / q.sum()  # the whole matrix becomes one distribution ...
    m = (p + q) / 2
    return float((_rel_entr(m, p) + _rel_entr(m, q)).sum() / 2 / len(p))  # ... and the classes are averaged once more


def rf_jsd(
    forget_probs: ArrayLike,
    forget_labels: ArrayLike,
    unseen_probs: ArrayLike,
    unseen_labels: ArrayLike,
    convention: Literal["standard", "lotus"] = "standard",
    missing: Literal["error", "skip"] = "error",
) -> float:
    """Retrain-free Jensen-Shannon divergence: does the unlearned model see the forget set as the original sees new data?

        P_c = mean over forget samples of class c of the *unlearned* model's probabilities
        Q_c = mean over unseen samples of class c of the *original* model's probabilities
        RF-JSD = mean over the classes c of the forget set of JSD(P_c, Q_c)

    Conventions:
        `"standard"`: the formula above, in [0, ln 2].
        `"lotus"`: the scale of the LoTUS tables (which show 1e4 times it). Means are clamped at 1e-8, each C x K matrix
        is divided by its sum, the KL terms are reversed, ½ KL(M‖P) + ½ KL(M‖Q), and the sum over everything is
        divided by C. It goes far beyond ln 2 and shrinks as 1/C, so compare it between equal sets of classes only.

    Lower is closer to unseen data, but a retrained model does not score 0; and when a whole class is forgotten the
    reference is how the original sees that class, which is the wrong target.

    Args:
        missing: a forget class without an unseen sample is an error, or left out of the mean with `"skip"`.

    References:
        Spartalis et al., *LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty*, CVPR 2025,
        arXiv 2503.18314.

    Example:
        >>> rf_jsd([[1.0, 0.0], [0.8, 0.2]], [0, 0], [[0.9, 0.1], [0.3, 0.7]], [0, 1])
        0.0
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"`missing` is {missing!r}: pass 'error' or 'skip'.")
    forget_probs = _checked(forget_probs, "forget_probs", "probabilities")
    unseen_probs = _checked(unseen_probs, "unseen_probs", "probabilities")
    forget_labels = _checked(forget_labels, "forget_labels", "labels", length=len(forget_probs))
    unseen_labels = _checked(unseen_labels, "unseen_labels", "labels", length=len(unseen_probs))
    forget_classes, forget_means = class_means(forget_probs, forget_labels)
    unseen_classes, unseen_means = class_means(unseen_probs, unseen_labels)

    common, in_forget, in_unseen = np.intersect1d(forget_classes, unseen_classes, return_indices=True)
    absent = np.setdiff1d(forget_classes, common).tolist()
    if not common.size:
        raise ValueError(
            f"none of the forget classes {absent} has an unseen sample, so RF-JSD cannot be judged: "
            "pass unseen samples of these classes."
        )
    if absent and missing == "error":
        raise ValueError(
            f"the forget classes {absent} have no unseen sample to compare with: pass unseen samples of these classes, "
            "or missing='skip' to leave them out."
        )
    return rf_jsd_from_means(forget_means[in_forget], unseen_means[in_unseen], convention)


def activation_distance(p: ArrayLike, q: ArrayLike) -> float:
    """Mean Euclidean distance between the probability vectors of the unlearned (`p`) and the retrained model (`q`).

        mean over the samples of D_f of ‖p_i - q_i‖₂,   in [0, √2]

    Example:
        >>> round(activation_distance([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]), 6)
        0.707107
    """
    p, q = _checked_pair(p, q, "p", "q")
    return float(np.linalg.norm(p - q, axis=1).mean())


def zrf(p: ArrayLike, q_random: ArrayLike) -> float:
    """Zero Retrain Forgetting: 1 - mean JSD between the unlearned (`p`) and a randomly initialised model on D_f.

    In [1 - ln 2, 1]; 1 when the unlearned model predicts on the forget set exactly as an untrained one.

    References:
        Chundawat et al., *Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent
        Teacher*, AAAI 2023, arXiv 2205.08096.

    Example:
        >>> zrf([0.5, 0.5], [0.5, 0.5])
        1.0
    """
    return 1 - jsd(p, q_random)


# ---- Per-sample statistics and the attacks on them ------------------------------------------------------------------


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Share of predicted class ids that equal the labels.

    Example:
        >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
        0.75
    """
    predictions = _checked(predictions, "predictions", "labels")
    labels = _checked(labels, "labels", "labels", length=len(predictions))
    return float((predictions == labels).mean())


def sample_statistics(
    logits: "ArrayLike | torch.Tensor", labels: "ArrayLike | torch.Tensor"
) -> "dict[str, np.ndarray] | dict[str, torch.Tensor]":
    """What a membership attack looks at, for every sample, from N x K logits z with p = softmax(z) and label y.

        loss        -log p_y                                (nats)
        entropy     -Σ_k p_k log p_k                        (nats)
        confidence  p_y
        margin      log p_y - log Σ_{k≠y} p_k               (the logit-scaled margin; unbounded, near normal)
        correct     1 if argmax_k z_k = y, else 0

    The margin comes straight from the logits, z_y - logsumexp_{k≠y} z_k, so it does not saturate where p_y rounds to 1.
    Torch logits stay torch, on their own device, for streaming loops; anything else gives NumPy arrays. All are
    float64 (float32 on MPS, which has no float64). A logit may be -inf (a masked class), not NaN.

    References:
        Carlini et al., *Membership Inference Attacks From First Principles*, S&P 2022, arXiv 2112.03570 (margin).

    Example:
        >>> {name: float(value[0].round(4)) for name, value in sample_statistics([[2.0, 0.0]], [0]).items()}
        {'loss': 0.1269, 'entropy': 0.3653, 'confidence': 0.8808, 'margin': 2.0, 'correct': 1.0}
    """
    import torch

    as_torch = isinstance(logits, torch.Tensor)
    z = logits.detach() if as_torch else torch.from_numpy(np.array(logits, dtype=np.float64))
    z = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
    y = labels.to(z.device) if isinstance(labels, torch.Tensor) else torch.tensor(labels, device=z.device)
    if z.ndim != 2 or z.shape[1] < 2 or y.shape != z.shape[:1]:
        raise ValueError(
            f"`logits` has shape {tuple(z.shape)} and `labels` {tuple(y.shape)}, but N x K (K at least 2) and N were "
            "expected: flatten to one row of logits and one class id per sample."
        )
    if y.is_floating_point() or bool(((y < 0) | (y >= z.shape[1])).any()):
        raise ValueError(
            f"`labels` must be integers from 0 to {z.shape[1] - 1}, the columns of `logits`: map them to class ids and "
            "drop ignored samples."
        )
    y = y.long()[:, None]
    log_p = z.log_softmax(dim=1)
    if bool(log_p.isnan().any()):
        raise ValueError("`logits` contains NaN or +inf: check the model, or run its forward pass in float32.")
    p, log_p_y = log_p.exp(), log_p.gather(1, y).squeeze(1)
    statistics = {
        "loss": -log_p_y,
        "entropy": -torch.xlogy(p, p).sum(dim=1),
        "confidence": log_p_y.exp(),
        "margin": z.gather(1, y).squeeze(1) - z.scatter(1, y, -torch.inf).logsumexp(dim=1),
        "correct": (z.argmax(dim=1) == y.squeeze(1)).to(z.dtype),
    }
    return statistics if as_torch else {name: value.numpy() for name, value in statistics.items()}


def rows_at_once(columns: int) -> int:
    """How many rows of so many float64 numbers are worked on at a time: 64 MB of them."""
    return max(1, 2**23 // columns)


def token_statistics(
    logits: "ArrayLike | torch.Tensor", labels: "ArrayLike | torch.Tensor"
) -> "dict[str, np.ndarray] | dict[str, torch.Tensor]":
    """`sample_statistics` for a language model: of every sample, means over the tokens that have a label.

    N x L x V logits and N x L labels, -100 where a token does not count; as in transformers, the logits at one place
    predict the label at the next.

        loss        mean of -log p_y                        (nats)
        entropy     mean of -Σ_k p_k log p_k                (nats)
        confidence  mean of p_y
        margin      -loss, for attacks that take a margin: one token of a sure p_y would outweigh all others in a mean of
                    logit-scaled margins, which have no bound
        correct     share of the tokens with argmax_k z_k = y

    Example:
        >>> logits = [[[2.0, 0.0], [0.0, 0.0], [9.0, 9.0]]]
        >>> {name: float(value[0].round(4)) for name, value in token_statistics(logits, [[-100, 0, 1]]).items()}
        {'loss': 0.41, 'entropy': 0.5292, 'confidence': 0.6904, 'margin': -0.41, 'correct': 0.5}
    """
    import torch

    as_torch = isinstance(logits, torch.Tensor)
    z = logits.detach() if as_torch else torch.from_numpy(np.array(logits, dtype=np.float64))
    y = labels.to(z.device) if isinstance(labels, torch.Tensor) else torch.tensor(labels, device=z.device)
    if z.ndim != 3 or y.shape != z.shape[:2]:
        raise ValueError(
            f"`logits` has shape {tuple(z.shape)} and `labels` {tuple(y.shape)}, but N x L x V and N x L were expected: "
            "pass padded batches, with the label -100 where a token does not count."
        )
    rows, places = (y[:, 1:] != -100).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(y))
    if bool((counts == 0).any()):
        raise ValueError(f"`labels` has no token that counts in row {int(counts.argmin())}: leave such samples out.")
    sums: dict[str, torch.Tensor] = {}
    step = rows_at_once(z.shape[2])
    for row, place in zip(rows.split(step), places.split(step), strict=True):
        for name, value in sample_statistics(z[row, place], y[row, place + 1]).items():
            sums.setdefault(name, value.new_zeros(len(y))).index_add_(0, row, value)
    statistics = {name: total / counts for name, total in sums.items()}
    statistics["margin"] = -statistics["loss"]
    return statistics if as_torch else {name: value.numpy() for name, value in statistics.items()}


def mia_attack(
    retain: ArrayLike,
    unseen: ArrayLike,
    forget: ArrayLike,
    signal_name: str = "entropy",
    attack: Literal["logistic", "svc"] = "logistic",
    seed: int = 0,
) -> dict[str, float]:
    """Population membership inference on one scalar signal, with a check of whether the attack works at all.

    Members are `retain` (the positive class), non-members `unseen`. Both are split at random into two halves; an attack
    is fitted on one half and tested on the other, then the halves are swapped, and both results are averaged.

    Attacks:
        `"logistic"`: logistic regression on the standardised signal, classes weighted to balance.
        `"svc"`: RBF support vector machine (C = 3, γ = 1) on the signal as it is, the larger side subsampled to the
        size of the smaller. Meant for the confidence; the paper that uses it reports 1 - score.

    Args:
        retain, unseen, forget: the signal of each sample (see `sample_statistics`), one value per sample.
        signal_name: what the signal is, for error messages.

    Returns:
        `score`: share of `forget` called member. Good is close to the retrained model's, not low.
        `attack_accuracy`: balanced accuracy on the held-out halves. Near 0.5 the attack cannot tell members from
        non-members, and the score is where its threshold happens to fall.

    References:
        Yeom et al., *Privacy Risk in Machine Learning*, CSF 2018, arXiv 1709.01604 (attacks on a population's loss).

    Example:
        >>> mia_attack(retain=[0.1, 0.2, 0.1, 0.2], unseen=[0.8, 0.9, 0.8, 0.9], forget=[0.1, 0.9, 0.9, 0.9])
        {'score': 0.25, 'attack_accuracy': 1.0}
    """
    if attack not in ("logistic", "svc"):
        raise ValueError(f"`attack` is {attack!r}: pass 'logistic' or 'svc'.")
    members = _checked(retain, f"retain {signal_name}", "signal")
    others = _checked(unseen, f"unseen {signal_name}", "signal")
    forget = _checked(forget, f"forget {signal_name}", "signal")
    if min(len(members), len(others)) < 4:
        raise ValueError(
            f"the membership attack got {len(members)} retain and {len(others)} unseen samples, but needs at least 4 of "
            "each to fit and test on separate halves: pass more samples."
        )
    rng = np.random.default_rng(seed)
    members, others = rng.permutation(members), rng.permutation(others)
    if attack == "svc":
        smaller = min(len(members), len(others))
        members, others = members[:smaller], others[:smaller]
    members, others, forget = called_members(members, others, forget, attack)
    return {"score": float(forget.mean()), "attack_accuracy": float((members.mean() + 1 - others.mean()) / 2)}


def called_members(
    members: np.ndarray, others: np.ndarray, forget: np.ndarray, attack: Literal["logistic", "svc"] = "logistic"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often the attack of `mia_attack` calls each sample a member.

    It is fitted to every other sample of `members` and `others`, which are in random order, and asked about those in
    between; then the halves are swapped: none of them is judged by an attack that knows it. Forget samples are judged by
    both.

    Returns:
        `(members, others, forget)`: 0 or 1, and for forget samples the mean of two answers.

    References:
        The swap: Tu et al., *A Reliable Cryptographic Framework for Empirical Machine Unlearning Evaluation*,
        arXiv 2404.11577.

    Example:
        >>> members, others, forget = called_members(*map(np.array, ([0.1, 0.2] * 4, [0.8, 0.9] * 4, [0.1, 0.9])))
        >>> float(members.mean()), float(others.mean()), forget.tolist()
        (1.0, 0.0, [1.0, 0.0])
    """
    from sklearn.linear_model import LogisticRegression  # here: it takes long to import
    from sklearn.svm import SVC

    called, answers = (np.empty(len(members)), np.empty(len(others))), []
    for i in (0, 1):
        x = np.concatenate([members[i::2], others[i::2]])
        is_member = np.arange(len(x)) < len(members[i::2])
        model, centre, spread = SVC(C=3, gamma=1.0), 0.0, 1.0
        if attack == "logistic":
            model, centre, spread = (
                LogisticRegression(class_weight="balanced", solver="newton-cholesky"),
                x.mean(),
                x.std() or 1.0,
            )
        model.fit((x[:, None] - centre) / spread, is_member)
        for answer, side in zip(called, (members, others), strict=True):
            answer[1 - i :: 2] = model.predict((side[1 - i :: 2, None] - centre) / spread)
        answers.append(model.predict((forget[:, None] - centre) / spread))
    return *called, np.mean(answers, axis=0)


def mia(
    retain: ArrayLike,
    unseen: ArrayLike,
    forget: ArrayLike,
    signal_name: str = "entropy",
    attack: Literal["logistic", "svc"] = "logistic",
    seed: int = 0,
) -> float:
    """Share of the forget set that a population membership attack calls member: the score of `mia_attack`.

    Example:
        >>> mia(retain=[0.1, 0.2, 0.1, 0.2], unseen=[0.8, 0.9, 0.8, 0.9], forget=[0.1, 0.9, 0.9, 0.9])
        0.25
    """
    return mia_attack(retain, unseen, forget, signal_name, attack, seed)["score"]


@dataclass(frozen=True)
class MatchedAUC:
    """Result of `matched_auc`. `auc` is None when no forget class has an unseen sample, and `reason` then says so."""

    auc: float | None
    low: float | None
    high: float | None
    n_forget: int  # samples compared, of classes present on both sides
    n_unseen: int
    unmatched_classes: list[int]  # forget classes without an unseen sample, left out
    reason: str | None = None


def matched_auc(
    forget_scores: ArrayLike,
    forget_labels: ArrayLike,
    unseen_scores: ArrayLike,
    unseen_labels: ArrayLike,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> MatchedAUC:
    """AUC of forget against unseen scores, compared only within a class.

        AUC_c = P(forget score > unseen score) + ½ P(equal),   both of class c
        AUC   = Σ_c n_c AUC_c / Σ_c n_c,   n_c forget samples, over the classes present on both sides

    With scores that are higher for members (margin, confidence): 0.5 when forget looks like unseen data, above when the
    model still knows it, below when forgetting left a trace of its own. Without matching, a perfectly retrained model
    scores far below 0.5 once a class was deleted, because other classes' unseen samples are the easier ones.

    The interval is the percentile bootstrap at `level`, resampling forget and unseen samples within each class; a side
    with a single sample in a class adds no width. `bootstrap=0` leaves it out.

    Example:
        >>> result = matched_auc([0.9, 0.4, 0.7], [0, 0, 1], [0.5, 0.1, 0.3], [0, 0, 2], bootstrap=0)
        >>> result.auc, result.n_forget, result.n_unseen, result.unmatched_classes
        (0.75, 2, 2, [1])
    """
    if bootstrap < 0 or not 0 < level < 1:
        raise ValueError(
            f"`bootstrap` is {bootstrap} and `level` {level}: pass at least 0 and a share between 0 and 1."
        )
    f, u = _checked(forget_scores, "forget_scores", "scores"), _checked(unseen_scores, "unseen_scores", "scores")
    f_class = _checked(forget_labels, "forget_labels", "labels", length=len(f))
    u_class = _checked(unseen_labels, "unseen_labels", "labels", length=len(u))

    matched = np.intersect1d(f_class, u_class)
    unmatched = np.setdiff1d(f_class, matched).tolist()
    if not matched.size:
        reason = f"none of the forget classes {unmatched} has an unseen sample to be compared with"
        return MatchedAUC(None, None, None, 0, 0, unmatched, reason)

    def by_class(scores, labels):  # samples of matched classes, classes as 0..C-1 in contiguous blocks
        order = np.argsort(labels, kind="stable")
        order = order[np.isin(labels[order], matched)]
        return scores[order], np.searchsorted(matched, labels[order])

    f, f_class = by_class(f, f_class)
    u, u_class = by_class(u, u_class)

    # Every distinct (class, score) is one bin, and all bins lie on one line, class after class. The mass of unseen
    # samples below a bin is then one running sum, and since n_c of the weights cancels n_c of the mean within a class,
    # the weighted AUC is simply the mean over forget samples of the share of its class's unseen samples below it.
    scores, classes = np.concatenate([f, u]), np.concatenate([f_class, u_class])
    order = np.lexsort((scores, classes))
    starts_bin = (np.diff(classes[order]) > 0) | (scores[order][1:] != scores[order][:-1])
    bins = np.empty(len(order), dtype=np.int64)
    bins[order] = np.concatenate([[0], np.cumsum(starts_bin)])
    f_bin, u_bin, n_bins = bins[: len(f)], bins[len(f) :], bins.max() + 1
    f_count, u_count = np.bincount(f_class), np.bincount(u_class)
    f_start, u_start = np.cumsum(f_count) - f_count, np.cumsum(u_count) - u_count  # resampling keeps them
    before, beside = u_start[f_class], u_count[f_class]  # of each forget sample's class

    def mean_share_below(
        counts, drawn
    ):  # unseen samples in each bin, and bins of forget ones, a row for each replicate
        places = drawn + np.arange(len(counts))[:, None] * n_bins
        below = np.cumsum(counts, axis=1).ravel()[places] - counts.ravel()[places] / 2
        return ((below - before) / beside).mean(axis=1)

    auc = float(mean_share_below(np.bincount(u_bin, minlength=n_bins)[None], f_bin[None])[0])
    if bootstrap == 0:
        return MatchedAUC(auc, None, None, len(f), len(u), unmatched)

    rng = np.random.default_rng(seed)

    def resample(count, start, rows):  # indices of samples drawn with replacement within each class's block
        count, start = np.repeat(count, count), np.repeat(start, count)
        return (rng.random((rows, len(count))) * count).astype(np.int64) + start

    replicates = []
    at_once = max(1, 200_000 // len(scores))  # replicates computed together; keeps the tables in the processor's cache
    for done in range(0, bootstrap, at_once):
        rows = min(at_once, bootstrap - done)
        drawn = u_bin[resample(u_count, u_start, rows)] + np.arange(rows)[:, None] * n_bins
        counts = np.bincount(drawn.ravel(), minlength=rows * n_bins).reshape(rows, n_bins)
        replicates.append(mean_share_below(counts, f_bin[resample(f_count, f_start, rows)]))
    low, high = np.quantile(np.concatenate(replicates), [(1 - level) / 2, (1 + level) / 2])
    return MatchedAUC(auc, float(low), float(high), len(f), len(u), unmatched)


def forget_quality(unlearned_stat: ArrayLike, retrained_stat: ArrayLike) -> float:
    """Two-sample Kolmogorov-Smirnov p-value of a per-sample statistic on D_f, unlearned against retrained model.

    High means that the two cannot be told apart, which also happens when there are few samples: compare p-values only
    at equal sample sizes.

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
        1.0
    """
    from scipy.stats import ks_2samp  # here: it takes longer to import than the rest of this file

    unlearned_stat = _checked(unlearned_stat, "unlearned_stat", "scores")
    retrained_stat = _checked(retrained_stat, "retrained_stat", "scores")
    return float(ks_2samp(unlearned_stat, retrained_stat).pvalue)


# ---- Scores that sum up a run ---------------------------------------------------------------------------------------


def _gaps(unlearned: Mapping[str, float], retrained: Mapping[str, float], keys: tuple[str, ...]) -> np.ndarray:
    values = np.array(
        [[_number(d, k, n) for k in keys] for d, n in ((unlearned, "unlearned"), (retrained, "retrained"))]
    )
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"{', '.join(keys)} must be fractions between 0 and 1, but one is outside: divide percentages by 100."
        )
    return np.abs(values[0] - values[1])


def avg_gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean absolute difference to the retrained model over forget, retain and unseen accuracy and the MIA score.

        AvgGap = mean over m in {forget_accuracy, retain_accuracy, unseen_accuracy, mia} of |m_unlearned - m_retrained|

    Fractions in, a fraction out; 0 is best. Other keys are ignored.

    References:
        Fan et al., *SalUn*, ICLR 2024, arXiv 2310.12508.

    Example:
        >>> unlearned = {"forget_accuracy": 0.99, "retain_accuracy": 0.99, "unseen_accuracy": 0.91, "mia": 0.83}
        >>> retrained = {"forget_accuracy": 0.91, "retain_accuracy": 0.99, "unseen_accuracy": 0.91, "mia": 0.76}
        >>> round(avg_gap(unlearned, retrained), 4)
        0.0375
    """
    keys = ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia")
    return float(_gaps(unlearned, retrained, keys).mean())


def tow(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Tug of war: forgetting and utility in one number, relative to the retrained model.

        ToW = Π over forget, retain and unseen accuracy of (1 - |unlearned - retrained|)

    In [0, 1] for accuracies given as fractions; 1 is best. Other keys are ignored.

    References:
        Zhao et al., *What makes unlearning hard and what to do about it*, NeurIPS 2024, arXiv 2406.01257.

    Example:
        >>> unlearned = {"forget_accuracy": 0.8, "retain_accuracy": 0.9, "unseen_accuracy": 0.7}
        >>> retrained = {"forget_accuracy": 0.7, "retain_accuracy": 1.0, "unseen_accuracy": 0.7}
        >>> round(tow(unlearned, retrained), 6)
        0.81
    """
    keys = ("forget_accuracy", "retain_accuracy", "unseen_accuracy")
    return float((1 - _gaps(unlearned, retrained, keys)).prod())


def uis(
    unlearned: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, Mapping[str, float]],
    targets: Collection[str],
    convention: Literal["original", "retrain"] = "original",
    class_unlearning: bool = False,
) -> dict[str, float | None]:
    """Unlearning Impact Score over tasks: damage on test data plus distance from the wanted forget-set performance.

        UIS_t = ½ ( |U_test - T| / T + |U_forget - F| / T ),   UIS = 100 · mean over tasks t of UIS_t

    with U the unlearned model's metric on task t, higher-is-better and positive, and the references

        `"original"`: T = original on test; F = T for a target task (or 0 with `class_unlearning`), and the original's
                      own value on the forget set for every other task, which has to keep it
        `"retrain"`:  T = retrained on test; F = retrained on the forget set

    Both parts are divided by T since F can be 0. Lower is better; with one target task and `"original"` this is the
    UIS of the literature, for which a retrained model scores above 0 in general. With `"retrain"` it scores 0 exactly.

    Args:
        unlearned, reference: task -> `{"test": x, "forget": y}`; `reference` comes from the model of `convention`.
        targets: the tasks whose supervision is to be forgotten.
        class_unlearning: the forget set is a whole class. Without effect on `"retrain"`, where F is measured.

    Returns:
        `uis` over all tasks, `uis_target` over `targets`, `uis_nontarget` over the others; None for a part without
        tasks.

    References:
        Shamsian et al., *Go Beyond Your Means: Unlearning with Per-Sample Gradient Orthogonalization*, arXiv
        2503.02312. Over several tasks: Huang et al., *Interference-Aware Multi-Task Unlearning*, arXiv 2605.19042.

    Example:
        >>> scores = uis({"depth": {"test": 0.76, "forget": 0.84}}, {"depth": {"test": 0.8, "forget": 1.0}}, ["depth"])
        >>> round(scores["uis"], 6), scores["uis_nontarget"]
        (5.0, None)
    """
    if convention not in ("original", "retrain"):
        raise ValueError(f"`convention` is {convention!r}: pass 'original' or 'retrain'.")
    if not reference or set(unlearned) != set(reference):
        raise ValueError(
            f"`unlearned` has the tasks {sorted(unlearned)} and `reference` {sorted(reference)}: "
            "pass the same tasks, at least one, in both."
        )
    targets = _known(targets, reference)

    def score(task: str) -> float:
        name = f"reference[{task!r}]"
        t = _number(reference[task], "test", name)
        if t <= 0:
            raise ValueError(
                f"`{name}` has 'test' = {t}, but UIS divides by it and needs a higher-is-better metric above 0: "
                "use another metric or leave the task out."
            )
        if convention == "original" and task in targets:
            f = 0.0 if class_unlearning else t
        else:
            f = _number(reference[task], "forget", name)
        name = f"unlearned[{task!r}]"
        u_test, u_forget = _number(unlearned[task], "test", name), _number(unlearned[task], "forget", name)
        return (abs(u_test - t) / t + abs(u_forget - f) / t) / 2

    by_task = {task: score(task) for task in reference}

    def mean(tasks: Collection[str]) -> float | None:
        return 100 * float(np.mean([by_task[task] for task in tasks])) if tasks else None

    return {
        "uis": mean(list(by_task)),
        "uis_target": mean([task for task in by_task if task in targets]),
        "uis_nontarget": mean([task for task in by_task if task not in targets]),
    }


def _known(targets: Collection[str], tasks: Collection[str]) -> set[str]:
    targets = {targets} if isinstance(targets, str) else set(targets)
    if unknown := sorted(targets - set(tasks)):
        raise ValueError(f"`targets` names the unknown tasks {unknown}: the known tasks are {sorted(tasks)}.")
    return targets


def interference(
    unlearned: Mapping[str, Mapping[str, float]],
    original: Mapping[str, Mapping[str, float]],
    targets: Collection[str],
) -> dict[str, float | None]:
    """How much unlearning disturbed what it should not have: other tasks, and other instances.

        task_interference     = mean over tasks t that are no target of (drop on test + drop on forget) / 2
        instance_interference = mean over all tasks of the drop on retained samples
        drop = (original - unlearned) / original

    Relative drops of higher-is-better metrics; negative where unlearning improved one. Both in percent.

    Args:
        unlearned, original: task -> `{"test": x, "forget": y, "retain": z}`.
        targets: the tasks whose supervision is to be forgotten.

    Returns:
        `task_interference`, None without another task, and `instance_interference`.

    Example:
        >>> original = {"depth": {"test": 0.8, "forget": 1.0, "retain": 1.0}}
        >>> interference({"depth": {"test": 0.8, "forget": 0.7, "retain": 0.75}}, original, ["depth"])
        {'task_interference': None, 'instance_interference': 25.0}
    """
    if not original or set(unlearned) != set(original):
        raise ValueError(
            f"`unlearned` has the tasks {sorted(unlearned)} and `original` {sorted(original)}: "
            "pass the same tasks, at least one, in both."
        )

    targets = _known(targets, original)

    def drop(task: str, key: str) -> float:
        before, after = (
            _number(original[task], key, f"original[{task!r}]"),
            _number(unlearned[task], key, f"unlearned[{task!r}]"),
        )
        if before <= 0:
            raise ValueError(
                f"`original[{task!r}]` has {key!r} = {before}, but a relative drop needs a metric above 0: use another "
                "metric or leave the task out."
            )
        return (before - after) / before

    others = [(drop(task, "test") + drop(task, "forget")) / 2 for task in original if task not in targets]
    return {
        "task_interference": 100 * float(np.mean(others)) if others else None,
        "instance_interference": 100 * float(np.mean([drop(task, "retain") for task in original])),
    }
