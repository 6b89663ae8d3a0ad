"""No model of transformers or torchvision drops silently at rate 0.

Every model is audited. Those of timm are audited in tests/training/models/test_library.py, where
they are also trained. The drops that are left are known, with the reason. A model that draws at
random for another purpose than dropout (a list entry) still shows in its audit: it is named, not
silent.
"""

import collections
import signal
import time
import warnings
from contextlib import contextmanager

import pytest

from earlydrop import DropoutScheduler, audit, constant
from earlydrop.sites.audit import call
from tests.sites import small_models

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("ignore")]

SPEC_AUGMENT = "SpecAugment: masks of the input, not of units (config.apply_spec_augment)"
TRANSFORMERS = dict.fromkeys(
    (
        "data2vec-audio",
        "hubert",
        "sew",
        "sew-d",
        "unispeech",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-bert",
        "wav2vec2-conformer",
        "wavlm",
    ),
    SPEC_AUGMENT,
) | {
    "dinov3_vit": "augments its positions (config.pos_embed_rescale)",
    "groupvit": "draws the noise of a Gumbel softmax",
    "phimoe": "noise in the routing to experts (config.router_jitter_noise, input_jitter_noise)",
    "reformer": "seeds the generator in each layer, to run it a second time in the backward",
    "switch_transformers": "noise in the routing to experts (config.router_jitter_noise)",
    "univnet": "a vocoder: its input is noise",
    "vilt": "chooses patches at random (config.max_image_length)",
    "vit_mae": "masks patches, its training task (config.mask_ratio)",
    "vits": "a variational model: samples its latents and durations (config.noise_scale)",
}
PROPOSALS = "samples proposals for the loss of a detector"
TORCHVISION = dict.fromkeys(
    (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
    ),
    PROPOSALS,
)


@contextmanager
def limit(seconds):
    def late(*_):
        raise TimeoutError(f"{seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def first_forward_says(model, inputs):
    """What the check of the first training forward warns of, of a model whose audit is clean."""
    try:
        scheduler = DropoutScheduler(model, constant(0.1), kind="all")
    except ValueError:  # nothing to drive
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(model.train(), inputs)
    scheduler.restore()
    return [str(each.message) for each in caught if "no scheduler drives" in str(each.message)]


def sweep(names, build, known, at_least):
    """Audit each model that builds and runs; every one of them is clean or known."""
    left, unbuilt, failed, clean, start = {}, {}, {}, [], time.time()
    for name in names:
        try:
            with limit(60), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, inputs = build(name)[:2]
        except Exception as error:
            unbuilt[name] = f"{type(error).__name__}: {error}"
            continue
        try:
            with limit(120):
                report = audit(model, inputs)
        except Exception as error:
            failed[name] = error
            continue
        if report.undriven:
            left[name] = report
        else:
            clean.append(name)
            said = first_forward_says(model, inputs)
            if said:
                failed[name] = said
    reasons = collections.Counter(text.partition(":")[0] for text in unbuilt.values())
    print(
        f"\n{len(clean)} clean, {len(left)} known, {len(unbuilt)} not built {dict(reasons)}, "
        f"{time.time() - start:.0f} s"
    )
    assert not failed
    unknown = {name: str(report) for name, report in left.items() if name not in known}
    assert not unknown, "\n".join(unknown.values())
    assert not set(known) & set(clean), "these drop nothing any more: take them off the list"
    assert len(clean) + len(left) >= at_least, f"fewer models build than before: {unbuilt}"


@pytest.mark.parametrize("part", range(4))
def test_every_transformers_architecture_that_builds_from_a_small_config(part):
    """In four parts, so that two processes share the work."""
    names = small_models.transformers_names()[part::4]
    sweep(names, small_models.transformers_model, TRANSFORMERS, at_least=100)


def test_the_torchvision_models():
    names = small_models.torchvision_names()
    sweep(names, small_models.torchvision_model, TORCHVISION, at_least=len(names))
