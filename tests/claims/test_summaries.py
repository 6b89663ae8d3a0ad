from earlydrop.claims.summaries import read_summaries
from tests.claims.made_up import made_up


def test_summaries_come_back_as_they_were_written(tmp_path):
    summaries = made_up()
    summaries.write(tmp_path)
    again = read_summaries(tmp_path)
    again.write(tmp_path / "again")
    for name in ("runs.csv", "history.csv.xz"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_settings_are_written_exactly(tmp_path):
    summaries = made_up(config={"optim.lr": 0.00123456789012})
    summaries.write(tmp_path)
    assert set(read_summaries(tmp_path).runs["config/optim.lr"]) == {0.00123456789012}
