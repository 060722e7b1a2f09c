"""Serves with DeepSpeed-MII: `python mii_serve.py CHECKPOINT --prompt "Once upon a time"`.

The deployment keeps running when this script ends; `python mii_serve.py CHECKPOINT --stop` ends it.
"""

import argparse
import json
from pathlib import Path

import mii

CONFIG = json.loads((Path(__file__).resolve().parent / "mii_config.json").read_text())


def main() -> None:
    """Start or stop the deployment, and generate from the prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("--prompt", action="append", default=[], help="text; repeat for a batch")
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--stop", action="store_true", help="end the deployment")
    args = parser.parse_args()
    if args.stop:
        mii.client(CONFIG["mii_config"]["deployment_name"]).terminate_server()
        return
    model_config = {**CONFIG["model_config"], "model_name_or_path": args.checkpoint}
    client = mii.serve(model_config=model_config, mii_config=dict(CONFIG["mii_config"]))
    if args.prompt:
        for answer in client.generate(args.prompt, max_new_tokens=args.new_tokens, do_sample=False):
            print(answer.generated_text)


if __name__ == "__main__":
    main()
