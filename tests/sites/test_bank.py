import pytest

from earlydrop.sites.bank import RateBank


def test_a_rate_set_while_silenced_acts_only_afterwards():
    bank = RateBank(["a", "b"], [0.2, 0.1], ["unit", "unit"])
    bank.set(0.4)
    with bank.silenced():
        bank.set(0.1)
        assert not bank.on
        assert [bank.rate(i) for i in range(2)] == [0.0, 0.0]
        bank.hold_base_rates()
        assert not bank.on
        bank.set(0.3)
        assert not bank.on
    assert bank.on
    assert [bank.rate(i) for i in range(2)] == pytest.approx([0.3, 0.15])


def test_a_bank_that_was_off_is_on_after_a_rate_was_set_while_silenced():
    bank = RateBank(["a"], [0.5], ["unit"])
    with bank.silenced():
        bank.set(0.2)
        assert not bank.on
    assert bank.on
    with bank.silenced():
        bank.set(0.0)
    assert not bank.on
