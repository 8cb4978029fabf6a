#!/usr/bin/env bash
# peft 0.21.2: on a bfloat16 model AdaLoRA trains the rank it divides by, and does not save it: another model is loaded.
#
# Expected: an adapter that is saved and loaded gives the logits it was trained to, in any precision, and what is frozen
#   stays frozen; in float32 both hold.
# Seen: PEFT keeps adapters of half-precision models in float32. Since 0.21 casting them makes every parameter that a
#   method keeps in a ParameterDict anew, and trainable. AdaLoRA's ranknum, the rank as a number, then has a gradient:
#   the optimiser moves it away from the rank, and save_pretrained leaves it out, being "always the rank". By the same
#   way adapters of some 25 methods (VeRA, IA3, LoHa, LoKr, SHiRA, HiRA, trainable tokens; not LoRA of linear layers)
#   that are loaded without is_trainable can be trained. No warning.
# Matters: what is evaluated in the run that trained is not what is served; a frozen adapter takes gradients, and an
#   optimiser over the parameters that ask for one changes it.
# Until that changes: set requires_grad anew after get_peft_model and after from_pretrained.
# Output seen (CPU):
#   float32:  ranks after training 12.00 12.00 12.00 12.00; loss 2.817, of the loaded adapter 2.817
#   bfloat16: ranks after training 9.22 9.88 8.63 9.57; loss 2.718, of the loaded adapter 3.153
#   VeRA loaded without is_trainable: parameters that can be trained, float32: 0, bfloat16: 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import tempfile
import warnings

import torch
from peft import AdaLoraConfig, PeftModel, VeraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
TOKENS = torch.randint(96, (8, 16), generator=torch.Generator().manual_seed(0))
LAYERS = ["q_proj", "v_proj"]


def base(dtype):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.1)).to(dtype)


@torch.no_grad()
def loss(model):
    logits = model.eval()(input_ids=TOKENS).logits[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()))


def saved_and_loaded(model, dtype):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return PeftModel.from_pretrained(base(dtype), folder)


def train_adalora(dtype):
    model = get_peft_model(
        base(dtype), AdaLoraConfig(target_modules=LAYERS, tinit=20, tfinal=20, total_step=200, task_type="CAUSAL_LM")
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for step in range(200):
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    ranks = [float(parameter) for name, parameter in model.named_parameters() if "ranknum" in name]
    here, loaded = loss(model), loss(saved_and_loaded(model, dtype))
    shown = " ".join(f"{rank:.2f}" for rank in ranks)
    print(f"{str(dtype)[6:] + ':':<9} ranks after training {shown}; loss {here:.3f}, of the loaded adapter {loaded:.3f}")
    return max(abs(rank - 12) for rank in ranks), abs(loaded - here)


def trainable_of_frozen(dtype):
    vera = get_peft_model(base(dtype), VeraConfig(target_modules=LAYERS, task_type="CAUSAL_LM"))
    return sum(parameter.requires_grad for parameter in saved_and_loaded(vera, dtype).parameters())


whole, half = train_adalora(torch.float32), train_adalora(torch.bfloat16)
frozen = [trainable_of_frozen(dtype) for dtype in (torch.float32, torch.bfloat16)]
print(
    f"VeRA loaded without is_trainable: parameters that can be trained, float32: {frozen[0]}, bfloat16: {frozen[1]}"
)
sound = whole[0] == 0.0 and whole[1] < 1e-5 and frozen[0] == 0
raise SystemExit(0 if sound and half[0] > 0.5 and half[1] > 0.02 and frozen[1] > 0 else "the behaviour has changed")
PYTHON
