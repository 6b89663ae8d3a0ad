"""The first training forward tells of drops that no name tells of, once, and changes nothing."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from torch import nn

from earlydrop import DropoutScheduler, constant, early, restore


class Odd(nn.Module):
    """A layer whose rate no name tells of."""

    def __init__(self, function, amount=0.25):
        super().__init__()
        self.function, self.amount = function, amount

    def forward(self, x):
        return self.function(x, self.amount, self.training)


def model_with(function, amount=0.25):
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), Odd(function, amount))


def told(model, schedule=None, **options):
    """The warnings of the first training forward."""
    DropoutScheduler(model, schedule or early(0.1, 2), **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(torch.randn(8, 4)).sum().backward()
    return [str(each.message) for each in caught]


CALLS = {
    "dropout": lambda x, p, training: nn.functional.dropout(x, p, training),
    "alpha_dropout": lambda x, p, training: nn.functional.alpha_dropout(x, p, training),
    "dropout2d": lambda x, p, training: nn.functional.dropout2d(x[None, :, :, None], p, training),
    "torch.dropout": lambda x, p, training: torch.dropout(x, p, training),
    "torch.dropout_": lambda x, p, training: torch.dropout_(1 * x, p, training),
    "bernoulli_": lambda x, p, training: x * torch.empty_like(x).bernoulli_(1 - p),
    "bernoulli": lambda x, p, training: x * torch.bernoulli(torch.full_like(x, 1 - p)),
    "scaled_dot_product_attention": lambda x, p, training: (
        nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=p)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_drop_that_no_name_tells_of_is_warned_of_with_its_line(name):
    (message,) = told(model_with(CALLS[name]))
    operation = name.removeprefix("torch.").strip("_")
    rate = " at rate 0.25"
    if operation == "bernoulli":  # takes the probability to keep or to drop: nobody knows which
        rate = "" if name == "bernoulli" else " with probability 0.75"
    assert (
        f"no scheduler drives: module 2 calls {operation}{rate} (test_first_forward.py:" in message
    )
    assert "earlydrop.audit(model, inputs) lists every drop" in message


QUIET = {
    "switched off": lambda x, p, training: nn.functional.dropout(x, p, training=False),
    "switched off, torch's own": lambda x, p, training: torch.dropout(x, p, train=False),
    "a mask of ones": lambda x, p, training: x * torch.bernoulli(torch.ones_like(x)),
    "a mask of zeros": lambda x, p, training: x * torch.bernoulli(torch.zeros_like(x)),
    "a rate that is a tensor": lambda x, p, training: (
        x * torch.empty_like(x).bernoulli_(torch.ones(4))
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_a_call_that_drops_nothing_is_not_warned_of(name):
    assert told(model_with(QUIET[name])) == []


@pytest.mark.parametrize("name", CALLS)
def test_at_a_rate_of_0_nothing_is_said(name):
    assert told(model_with(CALLS[name], amount=0.0)) == []


def test_it_is_said_once_and_only_of_a_training_forward():
    model = model_with(CALLS["dropout"])
    scheduler = DropoutScheduler(model, early(0.1, 2))
    x = torch.randn(8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(x)
    with pytest.warns(UserWarning, match="no scheduler drives"):
        model.train()(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        model(x)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_rate_in_a_tensor_is_warned_of():
    def tensor(x, p, training):
        return nn.functional.dropout(x, torch.tensor(p), training)

    (message,) = told(model_with(tensor))
    assert "calls dropout at rate 0.25 (test_first_forward.py:" in message


def test_the_warning_is_shown_at_the_call_of_the_model():
    model = model_with(CALLS["dropout"])
    DropoutScheduler(model, early(0.1, 2))
    with pytest.warns(UserWarning, match="no scheduler drives") as caught:
        model(torch.randn(8, 4))
    assert caught[0].filename == __file__


def test_what_is_chosen_by_name_is_not_checked():
    assert told(model_with(CALLS["dropout"]), sites="1") == []


def test_a_mask_from_dropout_with_one_number_a_sample_may_be_of_both_kinds():
    def path(x, p, training):
        return x * nn.functional.dropout(torch.ones(len(x), 1), p, training)

    for kind in ("unit", "all"):
        assert len(told(model_with(path), kind=kind)) == 1
    model = nn.Sequential(nn.Linear(4, 4), timm.layers.DropPath(0.1), Odd(path))
    assert len(told(model, kind="path")) == 1


def test_a_driven_rate_that_bernoulli_takes_is_no_surprise():
    class MaskedDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.1)
            self.dropout = 0.1

        def forward(self, x):
            x = nn.functional.dropout(self.drop(x), self.dropout, self.training)
            return x * (1 - torch.empty_like(x).bernoulli_(self.dropout))

    model = MaskedDropout()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DropoutScheduler(model, constant(0.1))
        model(torch.ones(3, 4))


def test_a_line_typed_at_a_prompt_is_named(tmp_path):
    code = (
        "import torch, earlydrop\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, x): return torch.nn.functional.dropout(x, 0.25)\n"
        "model = torch.nn.Sequential(torch.nn.Dropout(0.1), Odd())\n"
        "earlydrop.DropoutScheduler(model, earlydrop.early(0.1, 2))\n"
        "model(torch.ones(2, 4))\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, check=True
    )
    assert "module 1 calls dropout at rate 0.25 (<stdin>:3)" in done.stderr


def interrupt(x, p, training):
    raise KeyboardInterrupt


def test_a_watch_that_ctrl_c_left_behind_ends_at_the_next_forward_or_restore():
    model = model_with(interrupt)
    DropoutScheduler(model, early(0.1, 2))
    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(3, 4))
    assert torch._C._len_torch_function_stack() == 1  # torch calls no hook after Ctrl-C
    model[2].function = CALLS["dropout"]
    with pytest.warns(UserWarning, match="no scheduler drives"):
        model(torch.ones(3, 4))
    assert torch._C._len_torch_function_stack() == 0

    model = model_with(interrupt)
    scheduler = DropoutScheduler(model, early(0.1, 2))
    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(3, 4))
    scheduler.restore()
    assert torch._C._len_torch_function_stack() == 0

    DropoutScheduler(interrupted := model_with(interrupt), early(0.1, 2))
    with pytest.raises(KeyboardInterrupt):
        interrupted(torch.ones(3, 4))
    assert len(told(model_with(CALLS["dropout"]))) == 1  # of another model
    assert torch._C._len_torch_function_stack() == 0


def test_the_other_kind_is_not_warned_of():
    def path(x, p, training):
        return x * torch.empty(len(x), 1).bernoulli_(1 - p)

    assert told(model_with(path), kind="unit") == []
    assert len(told(model_with(path), kind="all")) == 1


def test_driven_rates_that_a_module_reads_are_no_surprise():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.1)
            self.dropout = 0.1

        def forward(self, x):
            return nn.functional.dropout(self.drop(x), self.dropout, self.training)

    model = Block()
    DropoutScheduler(model, constant(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(3, 4))


@pytest.mark.parametrize(
    "rates", [{"proj_drop_rate": 0.1, "attn_drop_rate": 0.1}, {"drop_path_rate": 0.1}]
)
def test_timm_models_have_nothing_to_tell(rates):
    model = timm.create_model("test_vit", num_classes=2, **rates)
    kind = "path" if "drop_path_rate" in rates else "unit"
    DropoutScheduler(model, early(0.1, 2), kind=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 3, 160, 160)).sum().backward()


def test_the_numbers_are_those_without_the_check():
    def gradients(checked):
        torch.manual_seed(0)
        model = model_with(CALLS["dropout"])
        DropoutScheduler(model, early(0.1, 2))
        if not checked:
            model._forward_pre_hooks.clear()
            model._forward_hooks.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(torch.randn(8, 4)).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_an_error_in_the_forward_leaves_no_watch_behind():
    def broken(x, p, training):
        raise KeyError("a bug in the model")

    model = model_with(broken)
    DropoutScheduler(model, early(0.1, 2))
    with pytest.raises(KeyError):
        model(torch.ones(3, 4))
    assert torch._C._len_torch_function_stack() == 0


def test_restore_takes_the_hooks_away():
    model = model_with(CALLS["dropout"])
    scheduler = DropoutScheduler(model, early(0.1, 2))
    scheduler.restore()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_earlydrop_restore_leaves_a_model_that_is_not_watched():
    model = model_with(CALLS["dropout"])
    DropoutScheduler(model, early(0.1, 2))
    restore(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(3, 4))


def test_copies_have_no_hooks_and_pickles_load_without_earlydrop(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    DropoutScheduler(model, early(0.1, 2))
    twin = copy.deepcopy(model)
    assert not twin._forward_pre_hooks
    assert not twin._forward_hooks
    assert len(model._forward_pre_hooks) == 1
    assert torch.equal(twin.eval()(torch.ones(1, 4)), model.eval()(torch.ones(1, 4)))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    script = (
        "import pickle, sys, torch; sys.modules['earlydrop'] = None; "
        "model = pickle.load(open(sys.argv[1], 'rb')); print(model(torch.ones(1, 4)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pickle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "torch.Size([1, 4])\n", done.stderr


def test_a_compiled_model_is_left_alone_and_compiles_no_graph_more(needs_compiler):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    scheduler = DropoutScheduler(model, early(0.1, 3))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(5):
        compiled(torch.ones(3, 4)).sum().backward()
        scheduler.step()
    assert counter.frame_count == 2  # on and off


def test_fake_tensors_and_transforms_are_left_alone():
    from torch._subclasses import FakeTensorMode

    model = model_with(CALLS["dropout"])
    DropoutScheduler(model, early(0.1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.ones(3, 4))
        torch.func.vmap(model, randomness="different")(torch.ones(2, 3, 4))
    with pytest.warns(UserWarning, match="no scheduler drives"):
        model(torch.ones(3, 4))
