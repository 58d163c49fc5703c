"""Writes digits.js: 600 of scikit-learn's 8×8 digits, 60 of each class, one letter (base 17) a pixel.

python src/batchnorm/play/page/network/make_digits.py > src/batchnorm/play/page/network/digits.js
"""

from sklearn.datasets import load_digits

HEAD = """\
// Written by make_digits.py: 600 handwritten digits of 8×8 pixels, [label, pixels from 0 to g], 60 of each class.
// Source: scikit-learn's load_digits, which is the test set of "Optical Recognition of Handwritten Digits" by
// E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0).
"""
LEVELS = "0123456789abcdefg"
OF_EACH = 60


def module() -> str:
    """The text of digits.js."""
    data = load_digits()
    taken = sorted(i for digit in range(10) for i in (data.target == digit).nonzero()[0][:OF_EACH])
    rows = ("".join(LEVELS[int(pixel)] for pixel in data.data[i]) for i in taken)
    lines = (f'  [{data.target[i]}, "{row}"],\n' for i, row in zip(taken, rows, strict=True))
    return f"{HEAD}export const DIGITS = [\n{''.join(lines)}];\n"


if __name__ == "__main__":
    print(module(), end="")
