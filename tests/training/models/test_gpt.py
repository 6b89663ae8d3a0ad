import pytest
import torch
import torch.nn.functional as F

import earlydrop
from earlydrop.training.config import ModelConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import Task, build_model

TEXT = Task(0, 256, 0, 0.1, 0.2, context=16)


def gpt(task=TEXT, **keys):
    return build_model(ModelConfig(name="gpt_micro", width=16, depth=2, **keys), task, 0)


def test_it_reads_nothing_ahead():
    model, tokens = gpt().eval(), torch.randint(256, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    one, other = model(tokens), model(changed)
    assert one.shape == (2, 16, 256)
    torch.testing.assert_close(one[:, :9], other[:, :9])
    assert not torch.allclose(one[:, 9], other[:, 9])


def test_fused_and_plain_attention_agree():
    tokens = torch.randint(256, (2, 16))
    torch.testing.assert_close(gpt(attention="fused").eval()(tokens), gpt().eval()(tokens))


def test_attention_against_a_loop():
    attention = gpt().blocks[0].attn.eval()
    x = torch.randn(1, 5, 16)
    q, k, v = attention.qkv(x).view(1, 5, 3, 2, 8).unbind(2)
    expected = torch.zeros(1, 5, 2, 8)
    for head in range(2):
        for t in range(5):
            weights = F.softmax(
                torch.stack([q[0, t, head] @ k[0, s, head] / 8**0.5 for s in range(t + 1)]), 0
            )
            expected[0, t, head] = sum(w * v[0, s, head] for s, w in enumerate(weights))
    torch.testing.assert_close(attention(x), attention.proj(expected.flatten(2)))


def test_dropout_is_where_gpt2_has_it_and_nothing_else_drops():
    model = gpt()
    units = {
        site.name
        for site in earlydrop.find_sites(model)
        if site.kind == "unit" and site.base_rate > 0
    }
    block = {"attn.attn_drop", "attn.proj_drop", "mlp.3"}
    assert units == {"pos_drop"} | {f"blocks.{i}.{name}" for i in range(2) for name in block}
    paths = {
        site.name: site.base_rate for site in earlydrop.find_sites(model) if site.kind == "path"
    }
    assert paths == {
        "blocks.0.drop_path1": 0.0,
        "blocks.0.drop_path2": 0.0,
        "blocks.1.drop_path1": 0.2,
        "blocks.1.drop_path2": 0.2,
    }
    earlydrop.DropoutScheduler(model, earlydrop.none(), kind="all")
    assert not earlydrop.audit(model, torch.randint(256, (2, 16))).undriven


def test_a_model_for_text_is_not_given_images_nor_the_other_way_round():
    with pytest.raises(
        ConfigError, match=r"it reads text, and the data is images; did you mean data=text\?"
    ):
        gpt(Task(1, 10, 28, 0.1, 0.0))
    with pytest.raises(
        ConfigError, match=r"it reads images, and the data is text; did you mean model=gpt_micro\?"
    ):
        build_model(ModelConfig(name="mlp"), TEXT, 0)
    with pytest.raises(ConfigError, match=r"model\.heads is 3"):
        gpt(heads=3)
