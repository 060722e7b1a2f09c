"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

DeepSpeed's inference kernels replace every block, sharded over the plan's ranks, which this script starts.
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

# First, because it configures torch's allocator.
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
#: Names of the files in which DeepSpeed lists the checkpoint files that its engine reads by itself.
INDEXES = ("ds_inference_config.json", "checkpoint.json")
#: Keeps the engines referenced: their modules use objects that the engines own.
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
    """Stop if DeepSpeed's kernels cannot run in this environment."""
    installed = transformers.__version__
    if tuple(int(part) for part in installed.split(".")[:2]) > NEWEST_TRANSFORMERS:
        stop(
            f"transformers {installed} is installed, and DeepSpeed's blocks are compatible with the models "
            "of 4.43 and older; make a separate environment from requirements.txt",
            4,
        )
    if ON_CPU or not torch.cuda.is_available():
        stop("DeepSpeed's inference kernels need CUDA, which is not available", 4)


def join() -> None:
    """Select this rank's GPU and join the process group of all ranks."""
    import deepspeed

    torch.cuda.set_device(LOCAL_RANK)
    if RANK:
        transformers.utils.logging.disable_progress_bar()
    if NUM_RANKS > 1:
        deepspeed.init_distributed()


def configuration(checkpoint: str) -> Any:
    """The model's configuration; stops if DeepSpeed's blocks compute something else."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    if config.model_type != KERNELS["model_type"]:
        stop(f"{checkpoint} is a {config.model_type}; the plan is for a {KERNELS['model_type']}", 3)
    # transformers 5 writes the rotary settings under one key, which 4.43 does not know.
    rope = getattr(config, "rope_parameters", None) or {}
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            setattr(config, old, rope[new])
    for key, computed in KERNELS["computes"].items():
        value = getattr(config, key, computed[0])
        if value not in computed:
            words = " or ".join(map(json.dumps, computed))
            stop(f"DeepSpeed's block ignores {key} = {json.dumps(value)} and computes {words}", 3)
    # In decoding, the kernel counts local attention's window from the end of the keys (0.19.8, softmax.cu).
    if "local" in getattr(config, "attention_layers", ()) and config.window_size <= LONGEST:
        stop(f"DeepSpeed misplaces a window of {config.window_size} tokens in sequences of {LONGEST}", 3)
    return config


def index_of(folder: Path) -> dict[str, Any] | None:
    """The list of files that DeepSpeed reads by itself: pre-shards or PyTorch archives; None for others."""
    if not folder.is_dir():
        return None
    for name in INDEXES:
        if (folder / name).is_file():
            index: dict[str, Any] = json.loads((folder / name).read_text())
            check_index(folder / name, index)
            # The file may have a `base_dir` of the machine that wrote it, which would take precedence.
            return {**index, "base_dir": str(folder)}
    if any(folder.glob("*.safetensors")):
        return None
    if any(folder.rglob("mp_rank_*")):
        stop(f"{folder} is Megatron's, for which DeepSpeed's engine does not call its loader; {RECUT}", 3)
    archives = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not archives or not KERNELS["reads_archives"]:
        return None
    # A whole model with transformers' names, which DeepSpeed reads one file at a time.
    whole = {"type": "ds_model", "checkpoints": archives, "version": 1.0, "parallelization": "pp"}
    return {**whole, "base_dir": str(folder)}


def check_index(path: Path, index: dict[str, Any]) -> None:
    """Stop if DeepSpeed would split, merge or misread the files."""
    kind = str(index.get("type"))
    if kind.lower() not in ("ds_model", "bloom"):
        stop(f"{path} is of type {kind}, for which DeepSpeed 0.19.8 does not call its loader; {RECUT}", 3)
    if isinstance(index["checkpoints"], list):
        if not KERNELS["reads_archives"]:
            family = KERNELS["model_type"]
            stop(f"{path} lists whole archives, which DeepSpeed cuts wrongly for {family}; {RECUT}", 3)
        return
    degree = index.get("tp_size", index.get("mp_size"))
    if degree != NUM_RANKS:
        stop(f"{path} is cut for {degree} ranks, and the plan has {NUM_RANKS}; {RECUT}", 3)
    if index.get("dtype", str(DTYPE)[6:]) not in (str(DTYPE), str(DTYPE)[6:]):
        stop(f"{path} is written in {index['dtype']}, and the plan is in {str(DTYPE)[6:]}; {RECUT}", 3)


def stored_names(index: dict[str, Any]) -> set[str]:
    """Names of the tensors that this rank will read.

    DeepSpeed unpickles any object, so the script stops at a file of anything but tensors.
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
    """Stop if a parameter would stay uninitialized.

    Args:
        model: the model that is filled; its tied parameters need not be stored.
        stored: names of the stored tensors.
        folder: the checkpoint, for the message.
    """
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    missing = []
    for name, _ in model.named_parameters(remove_duplicate=False):
        # DeepSpeed's norms contain a norm from their construction, whose parameters are not used.
        is_spare = ".norm." in name
        # BLOOM's own archives name the tensors of the model without its head.
        names = {name, name.partition(".")[2]}
        if not names & stored and name not in tied and not is_spare:
            missing.append(name)
    if missing:
        stop(f"{folder} lacks {', '.join(missing[:3])} ({len(missing)} in all); {RECUT}", 3)


def with_weights(checkpoint: str, config: Any) -> Any:
    """The whole model on the host."""
    # The kernels need an explicit mask; with sdpa, transformers omits a causal one.
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
    """The model on the meta device."""
    with torch.device("meta"):
        model = auto_class().from_config(config, torch_dtype=DTYPE, attn_implementation="eager").eval()
    if (Path(checkpoint) / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint)
    return model


def inject(model: Any, source: dict[str, Any]) -> Any:
    """Let DeepSpeed replace the blocks, and fill them from `source` where the model has no weights."""
    import deepspeed

    with contextlib.redirect_stdout(sys.stderr):
        engine = deepspeed.init_inference(model, **{**KERNELS["arguments"], "dtype": DTYPE}, **source)
    ENGINES.append(engine)
    # DeepSpeed creates a head that it fills in float32.
    return engine.module.to(DTYPE)


def guarded(module: Any) -> Any:
    """The module with a `generate` that refuses batches and lengths beyond the kernels' reserved memory.

    The kernels reserve memory at the first forward, for its batch, and do not check later ones; so the first
    forward is run here with the planned batch.
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
