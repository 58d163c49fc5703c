"""The code that callbacks share, without a framework."""

import pytest

from batchnorm.integrations.loop import Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_at": -1}, "freeze_at must be a whole number ≥ 0, or None; got -1"),
        ({"unfreeze_at": 1.5}, "unfreeze_at must be a whole number ≥ 0, or None; got 1.5"),
        ({"watch": 0}, "watch must be a whole number ≥ 1, or None; got 0"),
        ({"watch": True}, "watch must be a whole number ≥ 1, or None; got True"),
        ({"freeze_at": 3, "unfreeze_at": 3}, "unfreeze_at=3 must come after freeze_at=3"),
    ],
)
def test_settings_that_make_no_sense(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**options)


@pytest.mark.parametrize(
    ("options", "by_epoch"),
    [
        ({}, [None, None, None]),
        ({"freeze_at": 1}, [None, True, True]),
        ({"unfreeze_at": 1}, [None, False, False]),
        ({"freeze_at": 0, "unfreeze_at": 2}, [True, True, False]),
    ],
)
def test_which_epochs_are_frozen(options: dict, by_epoch: list[bool | None]) -> None:
    settings = Settings(**options)
    assert [settings.frozen_in(epoch) for epoch in range(3)] == by_epoch
