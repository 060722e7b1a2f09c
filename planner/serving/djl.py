"""A plan for DJL Serving: `serving.properties`, `model.py`, `requirements.txt`, the container's environment.

DJL starts Python processes, calls `handle` in them and batches requests. A plan's processes become:

one process      `engine=Python`; `option.tensor_parallel_degree` is the number of GPUs that the process sees,
                 whatever it does with them.
several ranks    `engine=MPI`: mpirun starts `option.tensor_parallel_degree` processes, which all see the same
                 GPUs. By default only rank 0 gets requests, but all ranks of a plan must step together, so
                 `option.use_passive_workers=false`; the server then takes the last rank's answer, and all
                 ranks give the same one. With `option.mpi_mode=true` it does not load once per GPU.

Source: djl-serving's PyModel, PyProcess, Connection and ModelInfo; `djl_keys.json` has the commit. Pure.
"""

from importlib import resources
from pathlib import PurePath
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError
from planner.graph.schema import ModuleGraph
from planner.models.shipped import hub_id, shipped_name
from planner.schema.plan import Plan
from planner.serving.properties import encode

IMAGE: Final = "deepjavalibrary/djl-serving:0.36.0"
_DTYPES: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_REQUIREMENTS: Final = "requirements.txt"

#: Packages that every runtime but kernel injection needs besides torch, pinned as in this project.
_COMMON: Final = ("transformers==5.23.*", "accelerate>=1.15,<1.16", "safetensors>=0.8,<1")
_DEEPSPEED: Final = ("deepspeed>=0.19.8,<0.20",)
_WITH_DEEPSPEED: Final = frozenset({"zero-inference", "deepspeed-tp"})

#: DJL's own limits on loading and on an answer in seconds; the limits of a plan are never shorter.
_LEAST_LOADING_S: Final = 1800
_LEAST_ANSWER_S: Final = 120
#: Limit on loading and on an answer as a multiple of the prediction: it allows for errors of the prediction
#: and for files that are not in the page cache.
_TIMEOUT_FACTOR: Final = 4
_BATCH_DELAY_MS: Final = 100
#: DJL numbers the requests of a batch with three digits.
_LARGEST_BATCH: Final = 999


def serve(emitted: Emitted, plan: Plan, graph: ModuleGraph) -> Emitted:
    """The runtime's files together with those of DJL Serving.

    Args:
        emitted: the runtime's files.
        plan: the plan.
        graph: the model's graph; not used, as every model is served alike.

    Raises:
        InvalidInputError: DJL Serving cannot run this plan.
    """
    _check(plan)
    files = {
        **emitted.files,
        "serving.properties": encode(properties_of(plan)),
        "model.py": (resources.files("planner.serving") / "djl_model.py").read_bytes(),
        _REQUIREMENTS: _requirements(plan, emitted),
        "docker.env": _environment(plan),
    }
    return Emitted(files=files, needs=emitted.needs, readme=f"{emitted.readme}\n{_readme(plan)}")


def properties_of(plan: Plan) -> dict[str, str]:
    """The keys and values of `serving.properties`."""
    workload, prediction = plan.workload, plan.prediction
    model_id = weights_of(plan)
    loading_s = max(_LEAST_LOADING_S, round(_TIMEOUT_FACTOR * prediction.load_s))
    answer_s = max(_LEAST_ANSWER_S, round(_TIMEOUT_FACTOR * prediction.total_s))
    return {
        "engine": "MPI" if plan.num_ranks > 1 else "Python",
        "option.entryPoint": "model.py",
        **({"option.model_id": model_id} if model_id is not None else {}),
        **_processes(plan),
        # The server batches requests, not a library inside the worker.
        "option.rolling_batch": "disable",
        "option.async_mode": "false",
        "batch_size": str(min(workload.batch_size, _LARGEST_BATCH)),
        "max_batch_delay": str(_BATCH_DELAY_MS),
        # The plan is for the whole machine.
        "minWorkers": "1",
        "maxWorkers": "1",
        "option.dtype": _DTYPES[workload.dtype],
        "option.model_loading_timeout": str(loading_s),
        "option.predict_timeout": str(answer_s),
    }


def weights_of(plan: Plan) -> str | None:
    """Hub id or folder of the plan's model; None when the weights are expected in the served folder."""
    short = shipped_name(plan.model.name)
    if short is not None:
        return hub_id(short)
    return plan.model.name if "/" in plan.model.name else None


def _processes(plan: Plan) -> dict[str, str]:
    if plan.main_device == "cpu":
        return {"load_on_devices": "-1"}
    if plan.num_ranks > 1:
        return {
            "option.mpi_mode": "true",
            "option.tensor_parallel_degree": str(plan.num_ranks),
            "option.use_passive_workers": "false",
        }
    return {"load_on_devices": "0", "option.tensor_parallel_degree": str(num_gpus_of(plan))}


def num_gpus_of(plan: Plan) -> int:
    """GPUs that the plan uses."""
    used = {device for placement in plan.placements for device in (placement.stored_on, placement.runs_on)}
    return max(plan.num_ranks, len({device for device in used if device.startswith("gpu:")}))


def _check(plan: Plan) -> None:
    if plan.model.auto_class == "masked-lm":
        raise InvalidInputError(
            f"{plan.model.name} does not generate text, and DJL Serving's handler answers with generated text"
        )
    if plan.num_ranks > 1 and plan.main_device == "cpu":
        raise InvalidInputError(
            "DJL Serving starts several ranks on GPUs only, and the plan's ranks run on the CPU"
        )
    most = plan.hardware.host_gpus
    if plan.num_ranks > most:
        raise InvalidInputError(
            f"the plan has {plan.num_ranks} ranks, and the files for DJL Serving are for one host; plan for "
            f"at most {most} GPUs, or start generate.py on several hosts"
        )


def _requirements(plan: Plan, emitted: Emitted) -> bytes:
    """The runtime's own list of packages where it has one, or the packages as this project pins them."""
    own = emitted.files.get(_REQUIREMENTS)
    if own is not None:
        return own
    lines = _COMMON + (_DEEPSPEED if plan.runtime in _WITH_DEEPSPEED else ())
    return "".join(f"{line}\n" for line in lines).encode()


def _environment(plan: Plan) -> bytes:
    """The container's environment; it has the degree too, for deployments configured by environment only."""
    lines = ["HF_HOME=/tmp/huggingface"]
    if plan.main_device != "cpu":
        lines.append(f"TENSOR_PARALLEL_DEGREE={num_gpus_of(plan)}")
    if any(place.stored_on == "disk" for place in plan.placements):
        lines.append("OFFLOAD_FOLDER=/offload")
    return "".join(f"{line}\n" for line in lines).encode()


def _readme(plan: Plan) -> str:
    weights = weights_of(plan)
    where = (
        f"The weights are those of `{weights}` (`option.model_id`; a folder or an `s3://` address will do)."
        if weights is not None
        else "Put the checkpoint's files into this folder, or set `option.model_id` to their address."
    )
    offload = ""
    if any(place.stored_on == "disk" for place in plan.placements):
        offload = ' -v "$OFFLOAD":/offload'
    gpus, image = ("", IMAGE) if plan.main_device == "cpu" else (" --gpus all", f"{IMAGE}-pytorch-gpu")
    path = PurePath("/opt/ml/model")
    return f"""
To serve with DJL Serving:

    docker run{gpus} --shm-size 2g --env-file docker.env -v "$PWD":{path}{offload} -p 8080:8080 {image}
    curl -X POST http://127.0.0.1:8080/predictions/model -H "content-type: application/json" \\
      -d '{{"inputs": "Once upon a time", "parameters": {{"max_new_tokens": 20}}}}'

{where}
The server answers at most {plan.workload.batch_size} texts together. A text may have
{plan.workload.prompt_tokens} tokens, and an answer {plan.workload.new_tokens}.
"""
