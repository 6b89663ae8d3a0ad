import pytest
import torch

from earlydrop.training.streams import seed_device


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_bits_are_those_of_manual_seed(device):
    for seed in (0, 2**62 + 1):
        torch.manual_seed(seed)
        expected = torch.rand(5), torch.random.get_rng_state()
        torch.manual_seed(7)
        seed_device(torch.device(device), seed)
        assert torch.equal(torch.rand(5), expected[0])
        assert torch.equal(torch.random.get_rng_state(), expected[1])


@pytest.mark.parametrize(("name", "seeded"), [("cuda", 1), ("cuda:2", 2)])
def test_on_a_gpu_its_own_generator_is_seeded_and_the_cpus(monkeypatch, name, seeded):
    generators = tuple(torch.Generator().manual_seed(99) for _ in range(3))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    seed_device(torch.device(name), 5)
    assert torch.initial_seed() == 5
    assert [each.initial_seed() for each in generators] == [
        5 if i == seeded else 99 for i in range(3)
    ]


@pytest.mark.gpu
def test_on_a_real_gpu_the_bits_are_those_of_manual_seed():
    torch.manual_seed(11)
    expected = torch.rand(1000, device="cuda")
    torch.manual_seed(7)
    seed_device(torch.device("cuda"), 11)
    assert torch.equal(torch.rand(1000, device="cuda"), expected)
