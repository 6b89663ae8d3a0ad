import torch

from earlydrop.training.data.order import training_order


def test_each_epoch_is_its_own_permutation_and_any_step_can_be_first():
    whole = list(training_order(3, images=103, batch_size=10, start=0, stop=25))
    for epoch in range(2):
        seen = torch.cat([indices for step, indices in whole if step // 10 == epoch])
        assert len(seen.unique()) == 100
    assert not torch.equal(whole[0][1], whole[10][1])
    for (step, indices), (step_too, again) in zip(
        whole[13:], training_order(3, 103, 10, 13, 25), strict=True
    ):
        assert step == step_too
        assert torch.equal(indices, again)
