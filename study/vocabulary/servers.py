"""What servers read of a PEFT adapter: the rows of ``servers.csv``, as texts.

``reads``: keys of ``adapter_config.json`` that change its factor; ``rank_pattern`` if it divides by
the tensors' rank. ``unknown``: keys of which nothing is known. ``whole``: whether ``lora_alpha``
must be written without a point. ``since``: the change or file that says so.
"""

import csv
from pathlib import Path

SERVERS = list(csv.DictReader(Path(__file__).with_name("servers.csv").read_text().splitlines()))
