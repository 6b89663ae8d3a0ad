import earlydrop


def test_resolve_rounds_down_and_is_idempotent():
    assert earlydrop.early(0.1, "20%").resolve(1_009).cutoff == 201
    assert earlydrop.late(0.1, "1.5ep").resolve(1_000, steps_per_epoch=25).cutoff == 37
    assert earlydrop.early(0.1, "0.7%").resolve(1_000).cutoff == 7  # exactly, not 6.999...
    resolved = earlydrop.early(0.1, 50).resolve(100)
    assert resolved.resolve(100) == resolved == earlydrop.early(0.1, 50)
    assert earlydrop.early(0.1, "100%").resolve(77).cutoff == 77
