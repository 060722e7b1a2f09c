"""Serves with DeepSpeed-MII's legacy form: `python mii_deploy.py CHECKPOINT --prompt "Once upon a time"`.

With ZeRO-Inference the model is in this script's own processes, which DeepSpeed's launcher starts, because it
must be partitioned as it is built: MII's server would copy all of it to the GPU first. Otherwise MII starts a
server.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import mii
from transformers.integrations.deepspeed import HfDeepSpeedConfig

CONFIG = json.loads((Path(__file__).resolve().parent / "mii_legacy.json").read_text())
NAME: str = CONFIG["mii_config"]["deployment_name"]


def deploy(checkpoint: str, offload_folder: str) -> Any:
    """Start the deployment.

    Returns:
        An object that must be kept as long as the model is used, or None.
    """
    model_config = {**CONFIG["model_config"], "model": checkpoint}
    mii_config = dict(CONFIG["mii_config"])
    if not model_config["enable_zero"]:
        mii.deploy(deployment_name=NAME, model_config=model_config, mii_config=mii_config)
        return None
    ds_config = model_config["ds_config"]
    offload = ds_config["zero_optimization"].get("offload_param", {})
    if offload.get("device") == "nvme":
        offload["nvme_path"] = offload_folder
    # While this object exists, transformers partitions a model as it builds it.
    scope = HfDeepSpeedConfig(ds_config)
    mii_config["deployment_type"] = mii.DeploymentType.NON_PERSISTENT
    mii.deploy(deployment_name=NAME, model_config=model_config, mii_config=mii_config)
    return scope


def main() -> None:
    """Start or stop the deployment, and generate from the prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("--prompt", action="append", default=[], help="text; repeat for a batch")
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--offload-folder", help="folder on the fastest disk, for weights that stay there")
    parser.add_argument("--local_rank", type=int, default=0, help="of DeepSpeed's launcher; not used")
    parser.add_argument("--stop", action="store_true", help="end the server")
    args = parser.parse_args()
    if args.stop:
        mii.terminate(NAME)
        return
    with tempfile.TemporaryDirectory(prefix="offload-", dir=args.offload_folder) as offload_folder:
        scope = deploy(args.checkpoint, offload_folder)
        if args.prompt:
            query = mii.mii_query_handle(NAME)
            print(query.query({"query": args.prompt}, do_sample=False, max_new_tokens=args.new_tokens))
        del scope


if __name__ == "__main__":
    main()
