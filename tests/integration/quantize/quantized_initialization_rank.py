"""Builds a model under ZeRO-3 with `quantized_initialization`; says how large its parameters are.

Usage: `quantized_initialization_rank.py CHECKPOINT CONFIG OUT`, in one process; the checkpoint is bfloat16.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    """Write `{"parameters": {name: [elements, is quantized]}, "error": …, "largest": …}`."""
    checkpoint, config_file, out = sys.argv[1:]
    config = json.loads(Path(config_file).read_text())
    load = transformers.AutoModelForCausalLM.from_pretrained
    inputs = torch.full((1, 4), 7)
    with torch.no_grad():
        plain = load(checkpoint, dtype=torch.bfloat16).eval()(input_ids=inputs).logits
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    # The CPU's own all-reduce would be compiled first, and gloo's serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    scope = HfDeepSpeedConfig(config)  # as long as it lives, models are built in parts
    model = load(checkpoint, dtype=torch.bfloat16)
    sizes = {n: [p.ds_numel, hasattr(p, "weight_quantized")] for n, p in model.named_parameters()}
    engine = deepspeed.initialize(model=model, config=config)[0].module.eval()
    with torch.no_grad():
        logits = engine(input_ids=inputs).logits
    del scope
    answer = {
        "parameters": sizes,
        "error": (logits - plain).abs().max().item(),
        "largest": plain.abs().max().item(),
    }
    Path(out).write_text(json.dumps(answer))
    os._exit(0)


if __name__ == "__main__":
    main()
