"""What users type and import: commands, configuration keys and their options, public names."""

import json
from pathlib import Path

import yaml

SURFACE = json.loads((Path(__file__).parent / "surface.json").read_text())


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        below = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        found |= below or {prefix + key: value}
    return found


def test_every_command_is_there(command):
    words = {line.split()[0] for line in command("--help").splitlines() if line.startswith("  ")}
    assert set(SURFACE["commands"]) <= words


def test_every_key_is_there_with_its_default(command):
    printed = yaml.safe_load(command("train", "--cfg", "job"))
    assert SURFACE["keys"].items() <= flat(printed).items()


def test_every_option_of_every_group_is_there():
    conf = Path(__file__).parents[2] / "conf"
    for group, options in SURFACE["options"].items():
        assert set(options) <= {path.stem for path in (conf / group).glob("*.yaml")}, group


def test_the_public_names_are_importable():
    import study
    from study.integrations.axolotl import NormProbePlugin
    from study.integrations.transformers import NormProbeCallback
    from study.probes import NormProbe

    assert callable(study.load)
    assert callable(study.record)
    assert all(map(callable, (NormProbe, NormProbeCallback, NormProbePlugin)))
