"""`Standardize` as a scikit-learn estimator. Needs scikit-learn; nothing else of the package imports this module."""

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import FLOAT_DTYPES, check_is_fitted, validate_data

from batchnorm.tools.standardize import Standardize


class StandardizeTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Bring every column to mean 0 and standard deviation 1, as a scikit-learn transformer; NaN is a missing value.

    After fitting, `layer_` is the `Standardize` to put in front of a network, and `mean_`, `var_` and `scale_` are as
    in scikit-learn's StandardScaler.

    Args:
        clip: the largest absolute value of the output, or None.

    Examples:
        >>> import numpy as np
        >>> from batchnorm.integrations.sklearn import StandardizeTransformer
        >>> StandardizeTransformer().fit_transform(np.array([[1.0], [2.0], [3.0]])).ravel().round(4)
        array([-1.2247,  0.    ,  1.2247])

    Source: the merge of `partial_fit` is that of Chan, Golub & LeVeque 1983 (`Moments.merge`).
    """

    def __init__(self, *, clip: float | None = None) -> None:
        self.clip = clip

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 (scikit-learn's names)
        """Compute the statistics of `X: (N, C)`, and forget earlier ones."""
        return self._add(X, first=True)

    def partial_fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Add the statistics of `X: (N, C)`."""
        return self._add(X, first=not hasattr(self, "layer_"))

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """(X − mean) / σ."""
        return self._through(X, inverse=False)

    def inverse_transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """X·σ + mean."""
        return self._through(X, inverse=True)

    def _add(self, X: Any, first: bool) -> Self:  # noqa: N803
        X = validate_data(self, X, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan", reset=first)
        if first:
            self.layer_ = Standardize(X.shape[1], clip=self.clip)
        self.layer_.partial_fit(X)
        self.mean_, self.scale_ = self.layer_.mean.numpy().copy(), self.layer_.scale.numpy()
        self.var_ = self.layer_.moments.variance.numpy()
        count = self.layer_.count.numpy().astype(np.int64)
        self.n_samples_seen_ = int(count[0]) if (count == count[0]).all() else count
        return self

    def _through(self, X: Any, inverse: bool) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan", reset=False)
        with torch.no_grad():
            x = torch.from_numpy(X if X.flags.writeable else X.copy())
            return (self.layer_.inverse(x) if inverse else self.layer_(x)).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
