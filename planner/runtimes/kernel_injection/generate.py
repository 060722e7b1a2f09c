"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

DeepSpeed's inference kernels replace every block and cut it over the plan's ranks, which this script starts.
CHECKPOINT is a Hugging Face folder or hub id, or what `reshard CHECKPOINT --tp RANKS --format deepspeed`
wrote; then a rank reads its own files only. Needs CUDA and the packages of requirements.txt.
Exit status: 0 done, 3 the checkpoint does not fit the plan, 4 out of memory or of GPUs, or wrong packages.
"""

import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

# First, because it sets torch's allocator up.
from generation import (
    DTYPE,
    LOCAL_RANK,
    NUM_RANKS,
    ON_CPU,
    PLAN,
    RANK,
    auto_class,
    check_loaded,
    main,
    read_json,
    stop,
)

# isort: split
import torch
import transformers

KERNELS = read_json("kernels.json")
BATCH_SIZE: int = PLAN["workload"]["batch_size"]
LONGEST: int = KERNELS["arguments"]["max_out_tokens"]
NEWEST_TRANSFORMERS = (4, 43)
RECUT = f"cut it with: reshard CHECKPOINT --tp {NUM_RANKS} --format deepspeed --dtype {str(DTYPE)[6:]}"
#: What DeepSpeed says its engine reads by itself, beside the names of those files.
INDEXES = ("ds_inference_config.json", "checkpoint.json")
#: Keeps the engines alive: their modules use what they own.
ENGINES: list[Any] = []


def load(checkpoint: str, offload_folder: str) -> Any:
    """This rank's part of the model, on its GPU."""
    check_environment()
    join()
    config = configuration(checkpoint)
    index = index_of(Path(checkpoint))
    if index is None:
        module = inject(with_weights(checkpoint, config), {})
    else:
        model = without_weights(checkpoint, config)
        stored = stored_names(index)
        if isinstance(index["checkpoints"], list):
            check_names(model, stored, index["base_dir"])
        module = inject(model, {"checkpoint": index, "base_dir": index["base_dir"]})
        if not isinstance(index["checkpoints"], list):
            check_names(module, stored, index["base_dir"])
    return guarded(module)


def check_environment() -> None:
    """Stop where DeepSpeed's kernels cannot run."""
    found = transformers.__version__
    if tuple(int(part) for part in found.split(".")[:2]) > NEWEST_TRANSFORMERS:
        stop(
            f"transformers {found} is installed, and DeepSpeed's blocks fit the models of 4.43 and older; "
            "make an environment of its own from requirements.txt",
            4,
        )
    if ON_CPU or not torch.cuda.is_available():
        stop("DeepSpeed's inference kernels run on CUDA alone, and there is none", 4)


def join() -> None:
    """Take this rank's GPU and meet the other ranks."""
    import deepspeed

    torch.cuda.set_device(LOCAL_RANK)
    if RANK:
        transformers.utils.logging.disable_progress_bar()
    if NUM_RANKS > 1:
        deepspeed.init_distributed()


def configuration(checkpoint: str) -> Any:
    """The model's configuration, once it is certain that the blocks compute it."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    if config.model_type != KERNELS["model_type"]:
        stop(f"{checkpoint} is a {config.model_type}; the plan is for a {KERNELS['model_type']}", 3)
    # transformers 5 writes the rotary numbers under one key, of which 4.43 knows nothing.
    rope = getattr(config, "rope_parameters", None) or {}
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            setattr(config, old, rope[new])
    for key, computed in KERNELS["computes"].items():
        value = getattr(config, key, computed[0])
        if value not in computed:
            words = " or ".join(map(json.dumps, computed))
            stop(f"DeepSpeed's block ignores {key} = {json.dumps(value)} and computes {words}", 3)
    # When it generates, the kernel counts local attention's window from the keys' end (0.19.8, softmax.cu).
    if "local" in getattr(config, "attention_layers", ()) and config.window_size <= LONGEST:
        stop(f"DeepSpeed misplaces a window of {config.window_size} tokens in sequences of {LONGEST}", 3)
    return config


def index_of(folder: Path) -> dict[str, Any] | None:
    """What DeepSpeed shall read by itself: pre-shards, or archives of PyTorch; None for anything else."""
    if not folder.is_dir():
        return None
    for name in INDEXES:
        if (folder / name).is_file():
            index: dict[str, Any] = json.loads((folder / name).read_text())
            check_index(folder / name, index)
            # What is written there names the machine that wrote it, and would win over ours.
            return {**index, "base_dir": str(folder)}
    if any(folder.glob("*.safetensors")):
        return None
    if any(folder.rglob("mp_rank_*")):
        stop(f"{folder} is Megatron's, which DeepSpeed's engine does not reach its loader for; {RECUT}", 3)
    archives = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not archives or not KERNELS["reads_archives"]:
        return None
    # A whole model under transformers' names, of which DeepSpeed reads one file at a time.
    whole = {"type": "ds_model", "checkpoints": archives, "version": 1.0, "parallelization": "pp"}
    return {**whole, "base_dir": str(folder)}


def check_index(path: Path, index: dict[str, Any]) -> None:
    """Stop where DeepSpeed would split, join or misread."""
    kind = str(index.get("type"))
    if kind.lower() not in ("ds_model", "bloom"):
        stop(f"{path} is of type {kind}, which DeepSpeed 0.19.8 does not get to its loader for; {RECUT}", 3)
    if isinstance(index["checkpoints"], list):
        if not KERNELS["reads_archives"]:
            family = KERNELS["model_type"]
            stop(f"{path} lists whole archives, which DeepSpeed does not cut right for {family}; {RECUT}", 3)
        return
    degree = index.get("tp_size", index.get("mp_size"))
    if degree != NUM_RANKS:
        stop(f"{path} is cut for {degree} ranks, and the plan has {NUM_RANKS}; {RECUT}", 3)
    if index.get("dtype", str(DTYPE)[6:]) not in (str(DTYPE), str(DTYPE)[6:]):
        stop(f"{path} is written in {index['dtype']}, and the plan is in {str(DTYPE)[6:]}; {RECUT}", 3)


def stored_names(index: dict[str, Any]) -> set[str]:
    """Names of the tensors that this rank will read.

    DeepSpeed unpickles whatever it is given, so a file of anything but tensors ends here.
    """
    listed = index["checkpoints"]
    files = (
        listed if isinstance(listed, list) else [*listed["tp"][RANK::NUM_RANKS], *listed.get("non_tp", ())]
    )
    names: set[str] = set()
    for path in (Path(index["base_dir"], file) for file in files):
        if not path.is_file():
            stop(f"{path} is not there; {RECUT}", 3)
        try:
            names |= torch.load(path, map_location="meta", weights_only=True, mmap=True).keys()
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            stop(f"{path} is no archive of plain tensors: {str(error).splitlines()[0]}", 3)
    return names


def check_names(model: Any, stored: set[str], folder: str) -> None:
    """Stop if a parameter would be left as memory happens to be. A tied head needs no name of its own."""
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    missing = []
    for name, _ in model.named_parameters(remove_duplicate=False):
        # DeepSpeed's norms keep what they were made with beside what they were given.
        is_spare = ".norm." in name
        # BLOOM's own archives name the tensors of the model without its head.
        names = {name, name.partition(".")[2]}
        if not names & stored and name not in tied and not is_spare:
            missing.append(name)
    if missing:
        stop(f"{folder} lacks {', '.join(missing[:3])} ({len(missing)} in all); {RECUT}", 3)


def with_weights(checkpoint: str, config: Any) -> Any:
    """The whole model on the host."""
    # The kernels read a mask that is spelled out; with sdpa, transformers leaves a causal one away.
    model, info = auto_class().from_pretrained(
        checkpoint,
        config=config,
        torch_dtype=DTYPE,
        attn_implementation="eager",
        low_cpu_mem_usage=True,
        output_loading_info=True,
    )
    check_loaded(info, checkpoint)
    return model.eval()


def without_weights(checkpoint: str, config: Any) -> Any:
    """The model's modules with nothing in them."""
    with torch.device("meta"):
        model = auto_class().from_config(config, torch_dtype=DTYPE, attn_implementation="eager").eval()
    if (Path(checkpoint) / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint)
    return model


def inject(model: Any, source: dict[str, Any]) -> Any:
    """Have DeepSpeed replace the blocks, and fill them where the model has no weights."""
    import deepspeed

    with contextlib.redirect_stdout(sys.stderr):
        engine = deepspeed.init_inference(model, **{**KERNELS["arguments"], "dtype": DTYPE}, **source)
    ENGINES.append(engine)
    # Where it fills a head, DeepSpeed makes it in float32.
    return engine.module.to(DTYPE)


def guarded(module: Any) -> Any:
    """The module, whose `generate` refuses what the kernels' memory was not reserved for.

    It is reserved at the first forward for that one's batch, and nothing checks what comes later; so one of
    the planned batch comes first.
    """
    plain = module.generate

    def generate(*, input_ids: torch.Tensor, max_new_tokens: int, **options: Any) -> Any:
        batch_size, prompt_tokens = input_ids.shape
        if batch_size > BATCH_SIZE or prompt_tokens + max_new_tokens > LONGEST:
            asked = f"{batch_size} sequences of {prompt_tokens + max_new_tokens} tokens"
            stop(f"{asked} exceed the kernels' memory, planned for {BATCH_SIZE} of {LONGEST}; plan again", 3)
        if prompt_tokens < 2:
            stop("the kernels take a prompt of one token for the next token of the sequence before", 3)
        module.reset_cache()
        return plain(input_ids=input_ids, max_new_tokens=max_new_tokens, **options)

    ids = torch.ones(BATCH_SIZE, 2, dtype=torch.int64, device=torch.cuda.current_device())
    with torch.no_grad():
        module(input_ids=ids, attention_mask=torch.ones_like(ids))
    module.generate = generate
    return module


if __name__ == "__main__":
    main(load, __doc__)
