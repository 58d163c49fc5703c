"""The scikit-learn estimator passes scikit-learn's own checks."""

import pytest

pytest.importorskip("sklearn", reason="the estimator is for scikit-learn")

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from batchnorm.integrations.sklearn import StandardizeTransformer


@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks([StandardizeTransformer()])
def test_estimator_checks(estimator: StandardizeTransformer, check) -> None:
    check(estimator)


def test_in_a_pipeline() -> None:
    x = np.random.default_rng(0).normal(1e5, [[1.0, 100.0]], (200, 2))
    y = x[:, 0] > 1e5
    assert make_pipeline(StandardizeTransformer(), LogisticRegression()).fit(x, y).score(x, y) > 0.95


def test_attributes_as_the_standard_scaler() -> None:
    from sklearn.preprocessing import StandardScaler

    x = np.random.default_rng(0).normal(3.0, 2.0, (50, 2))
    x[3, 1] = np.nan
    ours, theirs = StandardizeTransformer().fit(x), StandardScaler().fit(x)
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-13)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(x)), x)


def test_clips_and_what_was_fitted_first_stays_as_it_was() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (50, 2))
    ours = StandardizeTransformer(clip=1.0).fit(x[:20])
    first = ours.mean_
    assert np.abs(ours.transform(x)).max() == 1.0
    ours.partial_fit(x[20:])
    np.testing.assert_allclose(first, x[:20].mean(0))
    np.testing.assert_allclose(ours.mean_, x.mean(0))
    np.testing.assert_allclose(ours.fit(x[:20]).mean_, x[:20].mean(0))
    x.flags.writeable = False
    assert ours.transform(x).dtype == np.float64
    assert ours.transform(x.astype(np.float32)).dtype == np.float32
    assert set(ours.__sklearn_tags__().transformer_tags.preserves_dtype) == {"float32", "float64"}
