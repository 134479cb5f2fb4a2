"""Quantise with GPTQModel: `PYTHON benchmarks/gptqmodel_peer.py MODEL IDS OPTIONS OUT`.

PYTHON is that of an environment of its own. IDS is a JSON file of sequences of ids, OPTIONS the
JSON of what QuantizeConfig is given. Imports nothing of starpack, which that environment need not
have.
"""

import json
import sys

from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Load, quantise, save."""
    model, ids, options, out = sys.argv[1:]
    with open(ids) as stream:
        batches = [dict(input_ids=i, attention_mask=[1] * len(i)) for i in json.load(stream)]
    loaded = GPTQModel.load(model, QuantizeConfig(**json.loads(options)), device="cpu")
    loaded.quantize(batches, batch_size=1)
    loaded.save(out)


if __name__ == "__main__":
    main()
