from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.exceptions import NotFittedError

from lbutils.rivals import transduction
from lbutils.rivals.transduction import S3A, TRANSDUCTIVE, ConSE, DeViSE, TransCLIP

SCALE = 20.0
KNOWN = 5


def unit(rows):
    return F.normalize(torch.as_tensor(rows, dtype=torch.float32), dim=1)


def planted(seed=0, classes=12, images=40, noise=0.11, text=3.0, width=256):
    """Images about centres, texts that are centres with more noise, classes; known ones first."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width)) / width**0.5
    texts = unit(centres + text * rng.normal(size=centres.shape) / width**0.5)
    labels = np.tile(np.arange(classes), images)
    features = unit(centres[labels] + noise * rng.normal(size=(len(labels), width)))
    return features, labels, texts


def halves(seed=0):
    """Pool and its classes, held-out images and theirs, known texts and candidates'."""
    features, labels, texts = planted(seed)
    n = len(labels) // 2
    pool, held = (features[:n], labels[:n]), (features[n:], labels[n:])
    return pool, held, texts[:KNOWN], texts[KNOWN:]


def everything(seed=0, width=16):
    """All arguments of `fit`, small: 30 images of 3 known and 3 new classes."""
    features, _, texts = planted(seed, 6, 5, 0.05, 1.0, width)
    shown, theirs, _ = planted(seed, 6, 4, 0.05, 1.0, width)
    words = np.random.default_rng(seed).normal(size=(6, 7))
    old = theirs < 3
    return {
        "pool": features,
        "texts": texts[3:],
        "known": texts[:3],
        "labelled": shown[old],
        "labels": theirs[old],
        "vectors": (words[:3], words[3:]),
    }


# ---- all of them


@pytest.mark.parametrize("name", TRANSDUCTIVE)
def test_logits_cover_the_joint_vocabulary(name):
    given = everything()
    fitted = TRANSDUCTIVE[name](SCALE).fit(**given)
    said = fitted.logits(given["pool"][:4])
    assert said.shape == (4, 6) and said.dtype == torch.float32 and said.isfinite().all()
    assert fitted.pool_logits_.shape == (30, 6) and fitted.pool_logits_.isfinite().all()
    assert fitted.predict(given["pool"][:4]).tolist() == said.argmax(1).tolist()
    if name != "transclip":
        assert torch.allclose(fitted.pool_logits_[:4], said, atol=1e-4)
    assert fitted.logits(given["pool"][:0]).shape == (0, 6)


@pytest.mark.parametrize("name", TRANSDUCTIVE)
def test_same_seed_same_result_whatever_came_before(name):
    given = everything()
    first = TRANSDUCTIVE[name](SCALE, seed=3).fit(**given).pool_logits_
    torch.manual_seed(99)
    np.random.default_rng().random()
    again = TRANSDUCTIVE[name](SCALE, seed=3).fit(**given)
    assert torch.equal(again.pool_logits_, first)
    # An object that is fitted anew forgets what it was.
    again.fit(**everything(1)).fit(**given)
    assert torch.equal(again.pool_logits_, first)


def test_seed_counts_where_something_is_drawn():
    given = everything()
    for maker in (S3A, lambda *a, **b: DeViSE(*a, batch_size=4, **b)):
        first, second = (maker(SCALE, seed=seed).fit(**given).pool_logits_ for seed in (0, 1))
        assert not torch.equal(first, second)


@pytest.mark.parametrize("name", TRANSDUCTIVE)
def test_arguments_are_left_as_they_were(name):
    given = everything()
    before = {
        key: np.array(value[0] if key == "vectors" else value) for key, value in given.items()
    }
    TRANSDUCTIVE[name](SCALE).fit(**given)
    for key, value in given.items():
        assert np.array_equal(np.array(value[0] if key == "vectors" else value), before[key])


@pytest.mark.parametrize("name", ["transclip", "s3a"])
def test_labelled_images_and_word_vectors_are_not_looked_at(name):
    given = everything()
    full = TRANSDUCTIVE[name](SCALE).fit(**given)
    bare = TRANSDUCTIVE[name](SCALE).fit(given["pool"], given["texts"], given["known"])
    assert torch.equal(full.pool_logits_, bare.pool_logits_)


@pytest.mark.parametrize("name", ["conse", "devise"])
def test_the_pool_is_not_looked_at(name):
    given = everything()
    fitted = TRANSDUCTIVE[name](SCALE).fit(**given)
    other = TRANSDUCTIVE[name](SCALE).fit(**{**given, "pool": unit(np.eye(16))})
    assert torch.equal(other.logits(given["pool"]), fitted.logits(given["pool"]))


@pytest.mark.parametrize("name", ["transclip", "s3a"])
@pytest.mark.parametrize("none", [None, []])
def test_an_oracle_leaves_no_known_names(name, none):
    given = everything()
    known = None if none is None else np.empty((0, 16))
    found = TRANSDUCTIVE[name](SCALE).fit(given["pool"], given["texts"], known, known, none)
    assert found.pool_logits_.shape == (30, 3)


@pytest.mark.parametrize("name", ["transclip", "s3a"])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_pools_of_few_or_of_equal_images(name, images):
    given = everything()
    for pool in (given["pool"][:images], given["pool"][:1].repeat(images, 1)):
        found = TRANSDUCTIVE[name](100.0).fit(pool, given["texts"], given["known"])
        assert found.pool_logits_.isfinite().all() and found.logits(pool).isfinite().all()


def broken(rows, value):
    changed = np.array(rows, dtype=np.float64)
    changed[1, 2] = value
    return changed


BAD = {
    "NaN in the pool": (lambda g: {"pool": broken(g["pool"], np.nan)}, "pool .*without NaN"),
    "infinite text": (
        lambda g: {"texts": broken(g["texts"], np.inf)},
        "texts must be of unit length",
    ),
    "NaN in a word": (
        lambda g: {"vectors": (broken(g["vectors"][0], np.nan), g["vectors"][1])},
        "word",
    ),
    "empty pool": (lambda g: {"pool": g["pool"][:0]}, "the pool holds no image"),
    "flat pool": (lambda g: {"pool": g["pool"][0]}, "pool are"),
    "long pool": (lambda g: {"pool": 2 * g["pool"]}, "pool must be of unit length"),
    "narrow texts": (lambda g: {"texts": unit(g["texts"][:, :9])}, "texts are .*16"),
    "narrow known": (lambda g: {"known": unit(g["known"][:, :9])}, "known are .*16"),
    "no labels": (lambda g: {"labels": None}, "give both or neither"),
    "few labels": (lambda g: {"labels": g["labels"][:-1]}, "one integer each"),
    "labels by halves": (lambda g: {"labels": g["labels"] / 2}, "one integer each"),
    "high label": (lambda g: {"labels": g["labels"] + 1}, "0 to 2"),
    "low label": (lambda g: {"labels": g["labels"] - 1}, "0 to 2"),
    "few vectors": (lambda g: {"vectors": (g["vectors"][0], g["vectors"][1][1:])}, "one each"),
    "one half": (lambda g: {"vectors": (g["vectors"][0],)}, "pair"),
    "widths": (lambda g: {"vectors": (g["vectors"][0][:, :5], g["vectors"][1])}, "equally wide"),
    "zero vector": (
        lambda g: {"vectors": (0 * g["vectors"][0], g["vectors"][1])},
        "word vectors .*row 0",
    ),
    "one name": (
        lambda g: {
            "texts": g["texts"][:1],
            **dict.fromkeys(("known", "labelled", "labels", "vectors")),
        },
        "1 names in all",
    ),
}


@pytest.mark.parametrize("name", TRANSDUCTIVE)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(name, case):
    given = everything()
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        TRANSDUCTIVE[name](SCALE).fit(**{**given, **change(given)})


@pytest.mark.parametrize("name", TRANSDUCTIVE)
def test_images_must_fit_and_come_after_fit(name):
    fitted = TRANSDUCTIVE[name](SCALE)
    with pytest.raises(NotFittedError, match="call fit first"):
        fitted.logits(everything()["pool"])
    fitted.fit(**everything())
    with pytest.raises(ValueError, match="expected .N, 16"):
        fitted.logits(unit(np.eye(3)))
    with pytest.raises(ValueError, match="NaN"):
        fitted.logits(broken(everything()["pool"], np.nan))


@pytest.mark.parametrize("name", ["conse", "devise"])
@pytest.mark.parametrize("lost", ["known", "vectors"])
def test_word_methods_need_known_names_and_vectors(name, lost):
    given = everything()
    given[lost] = None
    if lost == "known":
        given["vectors"] = (np.empty((0, 7)), given["vectors"][1])
        given["labelled"] = given["labels"] = None
    with pytest.raises(ValueError, match="known names and word vectors"):
        TRANSDUCTIVE[name](SCALE).fit(**given)


def test_devise_needs_labelled_images_of_two_classes():
    given = everything()
    one = given["labels"] == 1
    for labelled, labels in ((None, None), (given["labelled"][one], given["labels"][one])):
        with pytest.raises(ValueError, match="two known classes"):
            DeViSE(SCALE).fit(**{**given, "labelled": labelled, "labels": labels})


@pytest.mark.parametrize(
    ("maker", "options"),
    [
        (TransCLIP, {"scale": 0}),
        (TransCLIP, {"scale": np.nan}),
        (TransCLIP, {"confident": 0}),
        (TransCLIP, {"neighbours": -1}),
        (S3A, {"votes": 0}),
        (S3A, {"instance": -1.0}),
        (S3A, {"realign": "cluster"}),
        (ConSE, {"top": 0}),
        (DeViSE, {"lr": -0.1}),
        (DeViSE, {"epochs": 0}),
    ],
)
def test_bad_options_are_named(maker, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        maker(**{"scale": SCALE, **options})


# ---- TransCLIP


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("maker", [TransCLIP, S3A])
def test_the_pool_corrects_noisy_texts(maker, seed):
    (pool, classes), (held, theirs), known, texts = halves(seed)
    fitted = maker(SCALE, **({"batch_size": 32} if maker is S3A else {})).fit(pool, texts, known)
    joint = torch.cat([known, texts])
    plain = ((pool @ joint.T).argmax(1).numpy() == classes).mean()
    unseen = ((held @ joint.T).argmax(1).numpy() == theirs).mean()
    assert plain < 0.9 and unseen < 0.9
    assert (fitted.pool_logits_.argmax(1).numpy() == classes).mean() > plain + 0.1
    assert (fitted.predict(held) == theirs).mean() > unseen + 0.1


def softmax(rows):
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def looped_z(evidence, z, weights, inner):
    """The z-update of Zanella et al., written out; `weights` (N, N) has neighbours of each row."""
    n, k = z.shape
    for _ in range(inner):
        new = np.zeros((n, k))
        for i in range(n):
            for c in range(k):
                near = sum(weights[i, j] * z[j, c] + weights[j, i] * z[j, c] for j in range(n))
                new[i, c] = evidence[i, c] + near
        z = softmax(new)
    return z


def nearest(features, neighbours):
    cosines = features @ features.T
    weights = np.zeros_like(cosines)
    for i, row in enumerate(cosines):
        others = [j for j in np.argsort(-row) if j != i][:neighbours]
        weights[i, others] = np.maximum(row[others], 0) / (2 * neighbours)
    return weights


@pytest.mark.parametrize(("neighbours", "inner"), [(3, 1), (3, 5), (2, 4)])
def test_assignments_are_those_of_a_plain_loop(neighbours, inner):
    rng = np.random.default_rng(neighbours)
    features = unit(np.concatenate([rng.normal(size=(8, 9)), -np.ones((1, 9))]))
    features[:8] = features[:8].abs()
    evidence, z = rng.normal(size=(9, 4)), softmax(rng.normal(size=(9, 4)))
    graph = transduction._affinities(features, neighbours)
    weights = nearest(features.numpy().astype(np.float64), neighbours)
    # The last image has no neighbour at a positive cosine.
    assert not weights[8].any() and (weights[:8] > 0).sum() == 8 * neighbours
    assert np.allclose(graph.toarray() / (2 * neighbours), weights, atol=1e-6)
    found = transduction._update_assignments(
        torch.tensor(evidence).float(), torch.tensor(z).float(), graph, neighbours, inner
    )
    assert np.allclose(found.exp(), looped_z(evidence, z, weights, inner), atol=1e-5)
    without = transduction._update_assignments(
        torch.tensor(evidence).float(), torch.tensor(z).float(), 0 * graph, neighbours, inner
    )
    assert not np.allclose(found, without, atol=1e-2)


def test_blocks_of_images_change_nothing(monkeypatch):
    features = unit(np.random.default_rng(0).normal(size=(23, 6)))
    whole = transduction._affinities(features, 3).toarray()
    monkeypatch.setattr(transduction, "_BLOCK", 5)
    assert np.allclose(transduction._affinities(features, 3).toarray(), whole, atol=1e-6)
    assert (whole > 0).sum() <= 3 * 23 and not whole.diagonal().any()


def test_transclip_is_the_published_procedure():
    """All of it against loops in float64: 8 sure images, shared variances, eleven z-updates."""
    pool, _, texts = planted(3, 4, 6, 0.2, 2.0, 12)
    fitted = TransCLIP(SCALE).fit(pool, texts)
    x, t = pool.numpy().astype(np.float64), texts.numpy().astype(np.float64)
    prior = softmax(SCALE * x @ t.T)
    z, weights, (n, d), k = prior.copy(), nearest(x, 3), x.shape, len(t)
    means = np.zeros((k, d))
    for c in range(k):
        best = np.argsort(-z[:, c])[:8]
        means[c] = (z[best, c, None] * x[best]).mean(axis=0)
        means[c] /= np.linalg.norm(means[c])
    variance = np.full(d, 1 / d)
    for step in range(11):
        likelihood = np.zeros((n, k))
        for i in range(n):
            for c in range(k):
                likelihood[i, c] = -0.5 * ((x[i] - means[c]) ** 2 / variance).sum()
        z = looped_z(np.log(prior) + likelihood / 50, z, weights, 5)
        if step == 10:
            break
        means = np.stack([(z[:, c, None] * x).sum(axis=0) / z[:, c].sum() for c in range(k)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        variance = np.zeros(d)
        for i in range(n):
            for c in range(k):
                variance += z[i, c] * (x[i] - means[c]) ** 2 / z.sum()
    assert np.allclose(fitted.means_, means, atol=1e-4)
    assert np.allclose(fitted.variances_, variance, rtol=1e-3)
    assert np.allclose(fitted.pool_logits_.exp(), z, atol=1e-3)
    unseen = softmax(np.log(prior) + likelihood / 50)
    assert np.allclose(fitted.logits(pool).exp(), unseen, atol=1e-3)


def test_means_start_at_the_surest_images_by_their_certainty():
    pool, _, texts = planted(3, 4, 6, 0.2, 2.0, 12)
    found = TransCLIP(SCALE, confident=3, iterations=0).fit(pool, texts)
    prior = softmax(SCALE * (pool @ texts.T).double().numpy())
    for c, mean in enumerate(found.means_.numpy()):
        best = np.argsort(-prior[:, c])[:3]
        expected = prior[best, c] @ pool[best].numpy()
        assert np.allclose(mean, expected / np.linalg.norm(expected), atol=1e-5)


def test_transclip_without_likelihood_and_neighbours_is_zero_shot():
    given = everything()
    joint = torch.cat([given["known"], given["texts"]])
    found = TransCLIP(SCALE, likelihood_weight=0, neighbours=0).fit(**given)
    expected = (SCALE * given["pool"] @ joint.T).log_softmax(1)
    assert torch.allclose(found.pool_logits_, expected, atol=1e-4)


def test_a_name_that_no_image_shows_keeps_a_unit_mean():
    given = everything()
    far = -given["pool"].mean(0, keepdim=True)
    found = TransCLIP(200.0).fit(given["pool"], torch.cat([given["texts"], F.normalize(far)]))
    assert torch.allclose(found.means_.norm(dim=1), torch.ones(4), atol=1e-5)
    assert (found.pool_logits_.argmax(1) < 3).all()


# ---- S3A


def test_votes_are_matched_one_to_one():
    rng = np.random.default_rng(0)
    parts, choices = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    found = transduction._vote(parts, choices, 4)

    def agreed(names):
        own = [(choices[parts == p] == names[p]).mean() for p in range(4)]
        return sum(own)

    best = max(permutations(range(4)), key=agreed)
    assert found.tolist() == [best[p] for p in parts]


def test_parts_beyond_the_names_take_their_favourite():
    parts = np.array([7, 7, 7, 2, 2, 2, 5, 5, 5, 5])
    choices = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 0])
    assert transduction._vote(parts, choices, 2).tolist() == [0] * 3 + [1] * 3 + [0] * 4


def test_clusters_name_images_better_than_texts_do():
    (pool, classes), _, known, texts = halves()
    joint = torch.cat([known, texts])
    first = (pool @ joint.T).argmax(1).numpy()
    found = S3A(SCALE, epochs=1).fit(pool, texts, known)
    assert (found.structural_labels_ == classes).mean() > (first == classes).mean() + 0.15
    plain = S3A(SCALE, epochs=1, realign="images").fit(pool, texts, known)
    assert (plain.structural_labels_ == first).all()


def test_few_clusters_leave_few_names():
    (pool, _), _, known, texts = halves()
    for realign in ("images", "clusters"):
        found = S3A(SCALE, k=4, realign=realign, epochs=1).fit(pool, texts, known)
        assert len(np.unique(found.structural_labels_)) == 4
        if realign == "images":
            names = np.unique(found.structural_labels_)
            cosines = pool @ torch.cat([known, texts])[names].T
            assert (names[cosines.argmax(1).numpy()] == found.structural_labels_).all()


def test_the_teacher_votes_after_the_warm_up():
    (pool, _), _, known, texts = halves()
    first = (pool @ torch.cat([known, texts]).T).argmax(1).numpy()
    early, late = (
        S3A(SCALE, realign="images", batch_size=32, warm_up=warm_up).fit(pool, texts, known)
        for warm_up in (2, 99)
    )
    assert (late.structural_labels_ == first).all()
    assert (early.structural_labels_ != first).any()


def test_s3a_starts_at_the_texts_and_learns():
    (pool, _), _, known, texts = halves()
    joint = torch.cat([known, texts])
    still = S3A(SCALE, lr=0.0, epochs=1).fit(pool, texts, known)
    assert torch.allclose(still.classifier_, joint, atol=1e-6)
    learned = S3A(SCALE, batch_size=32).fit(pool, texts, known)
    assert len(learned.history_) == 10 and learned.history_[-1] < learned.history_[0] / 2
    # A teacher with a memory moves less than one without.
    lasting = S3A(SCALE, batch_size=32, memory=10.0).fit(pool, texts, known)
    assert (lasting.classifier_ - joint).norm() < (learned.classifier_ - joint).norm()


def test_s3a_loss_is_that_of_both_labels():
    learner = S3A(SCALE, threshold=0.5, structural=0.25, instance=2.0)
    said = torch.tensor([[0.3, 1.0, -0.5], [2.0, 0.1, 0.0]])
    taught = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]])
    logs = np.log(softmax(said.double().numpy()))
    expected = -0.25 * (logs[0, 1] + logs[1, 0]) / 2 - 2.0 * logs[1, 2]
    assert float(learner._loss(said, taught, torch.tensor([1, 0]))) == pytest.approx(expected)
    unsure = learner._loss(said, torch.full((2, 3), 1 / 3), torch.tensor([1, 0]))
    assert float(unsure) == pytest.approx(-0.25 * (logs[0, 1] + logs[1, 0]) / 2)


# ---- by word vectors


@pytest.mark.parametrize("top", [1, 2, 10])
def test_conse_is_its_formula(top):
    given = everything()
    found = ConSE(SCALE, top=top).fit(**given).logits(given["pool"])
    words = np.concatenate(given["vectors"])
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    for image, row in zip(given["pool"].numpy(), found.numpy(), strict=True):
        shares = softmax(SCALE * image[None] @ given["known"].numpy().T)[0]
        best = np.argsort(-shares)[:top]
        mixed = shares[best] @ words[best] / shares[best].sum()
        assert np.allclose(row, SCALE * words @ mixed / np.linalg.norm(mixed), atol=1e-4)


def test_hinge_rank_loss_and_its_gradient_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    images, words = rng.normal(size=(5, 4)), rng.normal(size=(3, 6))
    matrix, labels = 0.1 * rng.normal(size=(6, 4)), np.array([0, 2, 1, 1, 0])

    def loop(m):
        total = 0.0
        for image, label in zip(images, labels, strict=True):
            for j in range(3):
                if j != label:
                    total += max(0.0, 0.1 - words[label] @ m @ image + words[j] @ m @ image)
        return total / len(images)

    moved = torch.tensor(matrix, requires_grad=True)
    loss = transduction._hinge_rank_loss(
        torch.tensor(images) @ moved.T, torch.tensor(words), torch.tensor(labels), 0.1
    )
    loss.backward()
    assert loss.item() == pytest.approx(loop(matrix))
    for place in np.ndindex(*matrix.shape):
        step = np.zeros_like(matrix)
        step[place] = 1e-6
        slope = (loop(matrix + step) - loop(matrix - step)) / 2e-6
        assert float(moved.grad[place]) == pytest.approx(slope, abs=1e-6)


def test_devise_starts_at_zero_and_finds_a_linear_map():
    features, labels, texts = planted(0, 30, 20, 0.02, 1.0, 24)
    words = texts.numpy() @ np.random.default_rng(1).normal(size=(24, 16))
    old = labels < 24
    seen, new = np.arange(len(labels)) < 300, labels >= 24
    given = (features, texts[24:], texts[:24], features[old & seen], labels[old & seen])
    vectors = (words[:24], 3 * words[24:])
    first = DeViSE(SCALE, epochs=1, batch_size=1000).fit(*given, vectors)
    assert first.history_ == [pytest.approx(0.1 * 23)]
    found = DeViSE(SCALE, lr=0.02, batch_size=64).fit(*given, vectors)
    assert found.history_[-1] < 0.1
    assert (found.predict(features[old & ~seen]) == labels[old & ~seen]).mean() > 0.95
    # New names are found by vectors alone, far above the chance of one in thirty.
    assert (found.predict(features[new]) == labels[new]).mean() > 0.3
