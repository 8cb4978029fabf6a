"""Training mode gives the numbers of evaluation mode, wherever a model keeps its dropout."""

import pytest
import torch
import transformers as hf

from rlhf_core.errors import ModelError
from rlhf_core.models import load_causal, save_model, scalar_from_causal
from rlhf_core.models.probe import require_repeatable
from tests.models.conftest import _LLAMA, _SMALL
from tests.models.test_saved_model import tokenizer

WITH_DROPOUT = {
    # A function called by the layers, no module.
    "starcoder2": lambda: hf.Starcoder2Config(
        **_LLAMA, residual_dropout=0.5, embedding_dropout=0.5, attention_dropout=0.5
    ),
    "opt": lambda: hf.OPTConfig(
        **_SMALL, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5,
        layerdrop=0.5,
    ),
    # Modules.
    "gpt2": lambda: hf.GPT2Config(
        **_SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.5, embd_pdrop=0.5
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(WITH_DROPOUT))
def noisy_directory(request, tmp_path):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(WITH_DROPOUT[request.param]())
    model.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@torch.no_grad()
@pytest.mark.parametrize(
    "load", [load_causal, lambda path: scalar_from_causal(path, seed=0)], ids=["causal", "scalar"]
)
def test_dropout_is_off_in_training_mode(load, noisy_directory):
    tokens = torch.arange(5, 25)[None]
    model = load(noisy_directory)
    expected = model.eval()(input_ids=tokens, use_cache=False).logits
    model.train()
    for _ in range(3):
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits, expected)


def test_noise_that_cannot_be_switched_off_is_refused(llama_directory):
    model = load_causal(llama_directory)

    def shake(module, _inputs, output):
        return output + 0.1 * torch.randn_like(output) if module.training else output

    model.model.norm.register_forward_hook(shake)
    with pytest.raises(ModelError, match="training mode does not repeat"):
        require_repeatable(model)


@torch.no_grad()
def test_experts_that_share_a_token_share_it_in_every_mode(tmp_path):
    torch.manual_seed(0)
    config = hf.PhimoeConfig(
        **_LLAMA, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.5
    )
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokens = torch.arange(5, 25)[None]
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = plain(input_ids=tokens, use_cache=False).logits
    model = load_causal(tmp_path)
    for mode in (False, True, True):
        model.train(mode)
        logits = model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert model.config.router_jitter_noise == 0.5


@torch.no_grad()
def test_weights_that_evaluation_mode_divides_are_saved_as_they_are(tmp_path):
    torch.manual_seed(0)
    config = hf.RwkvConfig(**_SMALL, hidden_size=32, num_hidden_layers=4, rescale_every=2)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokens = torch.arange(5, 25)[None]
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    expected = plain(input_ids=tokens, use_cache=False).logits
    model = load_causal(tmp_path / "base")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits = model.eval()(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
    save_model(model, tokenizer(), tmp_path / "saved")
    saved = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    assert saved.config.rescale_every == 2
    assert all(torch.equal(weight, before[name]) for name, weight in saved.state_dict().items())
