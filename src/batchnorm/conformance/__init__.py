"""A conformance suite that any batch norm for torch can run.

    pytest --pyargs batchnorm.conformance --impl package:Class [--sync package:Class]

The class is made and called as torch's `BatchNorm2d`: ``Class(num_features, eps=1e-5, momentum=0.1)`` on (N, C, H, W).
`--sync` names a class that shares statistics between ranks, if there is one. Tests of options that a class does not
have, such as masks, are skipped with the reason. `python -m batchnorm.conformance` runs the suite on several classes,
and prints a table of the outcomes.

The oracle is float64 arithmetic on the values of the input, written out here: the suite uses nothing of this package.
"""
