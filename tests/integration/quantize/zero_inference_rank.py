"""One rank of ZeRO-Inference: quantizes model after model as a configuration says, beside a plain one.

Usage: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment; `zero_inference_rank.py JOBS RESULTS`.
A job has `checkpoint` (float16), `decoded` (the same model with its weights encoded and decoded), `config`
(DeepSpeed's), `order`, `auto_class`, `prompt` and `new_tokens`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def compute(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Logits of the prompt, and greedy tokens."""
    inputs = {name: torch.tensor(rows, device=device()) for name, rows in job["prompt"].items()}
    with torch.no_grad():
        logits = model(**inputs).logits
        inputs.pop("decoder_input_ids", None)
        tokens = model.generate(**inputs, max_new_tokens=job["new_tokens"], do_sample=False)
    return {"logits": logits.tolist(), "tokens": tokens.tolist()}


def device() -> str:
    """Where DeepSpeed will run, found without importing it: a GPU if there is one, unless told not to."""
    wanted = os.environ.get("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}" if wanted == "cuda" else "cpu"


def build(folder: str, job: dict[str, Any]) -> Any:
    """The model in half precision, as it is saved."""
    return getattr(transformers, job["auto_class"]).from_pretrained(folder, dtype=torch.float16).eval()


def has_fp16() -> bool:
    """Whether DeepSpeed takes `fp16` on this processor; every GPU has it. Weights may be float16 anyway."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def quantized(job: dict[str, Any]) -> Any:
    """The engine's model."""
    import deepspeed
    from deepspeed.inference.quantization.quantization import _init_group_wise_weight_quantization

    config = json.loads(Path(job["config"]).read_text())
    if not has_fp16():
        del config["fp16"]
    if job["order"] == "under-zero":
        from transformers.integrations import HfDeepSpeedConfig

        scope = HfDeepSpeedConfig(config)  # as long as it lives, models are built in parts
        model = _init_group_wise_weight_quantization(build(job["checkpoint"], job), config)
        del scope
    else:
        alone = {name: value for name, value in config.items() if name != "zero_optimization"}
        model = _init_group_wise_weight_quantization(build(job["checkpoint"], job), alone)
        if job["order"] == "zero-init":
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
    return deepspeed.initialize(model=model, config=config)[0].module.eval()


def account(model: Any) -> dict[str, list[int]]:
    """Every module that was replaced → how many elements of float16 are kept of it, and how many are here."""
    return {
        name: [module.weight.ds_numel, module.weight.ds_tensor.numel(), module.weight.numel()]
        for name, module in model.named_modules()
        if type(module).__name__ == "QuantizedLinear"
    }


def run(job: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """What both models compute, or why DeepSpeed's does not."""
    try:
        model = quantized(job)
        kept = account(model)
        return {"plain": plain, "quantized": compute(model, job), "kept": kept}
    # What DeepSpeed raises is what the test wants to know.
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), "has_fp16": has_fp16()}


def main() -> None:
    """Compute every job; the plain models first: DeepSpeed replaces functions of torch's."""
    jobs, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    plain = [compute(build(job["decoded"], job).to(device()), job) for job in jobs]
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler, and no GPU has it
    deepspeed.init_distributed("gloo" if device() == "cpu" else "nccl")
    for job, found in zip(jobs, plain, strict=True):
        (results / f"{job['name']}-{os.environ['RANK']}.json").write_text(json.dumps(run(job, found)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
