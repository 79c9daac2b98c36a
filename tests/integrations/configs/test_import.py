"""What is read of a file of each tool, what is noted, and the line for each mistake."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig

from study.errors import StudyError
from study.integrations.configs import read_file

SHARED = Path(__file__).parents[4] / "shared/data/configs"
REAL = sorted(path for path in SHARED.rglob("*") if path.suffix in (".yml", ".yaml"))
EXACT = """
axolotl.yml:
  model: {path: HuggingFaceTB/SmolLM2-135M-Instruct, quant_bits: null}
  data: {sequence_length: 192, sample_packing: true, excess_length_strategy: drop}
  adapter: {rank: 16, alpha: 16, scaling: rslora, targets: all-linear, dropout: 0.05}
  optimizer: {lr: 0.0002, weight_decay: 0}
  train: {batch_size: 4, accumulation: 2, clip: 1, epochs: 3, schedule: cosine, warmup: 0.1}
  "": {precision: bf16, seed: 1}
llama_factory.yaml:
  model: {path: HuggingFaceTB/SmolLM2-135M-Instruct, quant_bits: null}
  data: {sequence_length: 192}
  adapter: {rank: 8, alpha: 16, scaling: lora, targets: all-linear, dropout: 0}
  optimizer: {lr: 0.0001, weight_decay: 0}
  train: {batch_size: 4, accumulation: 2, clip: 1, epochs: 3, schedule: cosine, warmup: 0.1}
  "": {precision: bf16, seed: 42}
trl.yaml:
  model: {path: HuggingFaceTB/SmolLM2-135M-Instruct, quant_bits: null}
  data: {sequence_length: 192}
  adapter:
    {rank: 8, alpha: 16, scaling: rslora, targets: [q_proj, k_proj, v_proj, o_proj], dropout: 0.05}
  optimizer: {lr: 0.0001, weight_decay: 0}
  train: {batch_size: 4, accumulation: 2, clip: 1, epochs: 3, schedule: cosine, warmup: 0.1}
  "": {precision: bf16, seed: 42}
unsloth.yaml:
  model: {path: unsloth/Qwen2.5-0.5B, quant_bits: 4}
  data: {sequence_length: 48}
  adapter:
    {rank: 64, alpha: 16, scaling: rslora, targets: [q_proj, k_proj, v_proj, o_proj], dropout: 0}
  optimizer: {lr: 0.0002, weight_decay: 0.01}
  train: {batch_size: 2, accumulation: 4, clip: 1, epochs: 1, schedule: linear, warmup: 5}
  "": {precision: bf16, seed: 3407}
torchtune.yaml:
  model: {path: /tmp/Llama-3.2-1B-Instruct, quant_bits: null}
  data: {sequence_length: 192, sample_packing: false}
  adapter:
    targets: [q_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    rank: 8
    alpha: 16
    scaling: lora
    dropout: 0
  optimizer: {lr: 0.0003, weight_decay: 0.01}
  train: {batch_size: 4, accumulation: 2, clip: null, epochs: 1, schedule: cosine, warmup: 10}
  "": {precision: bf16, seed: 1}
finlora.yaml:
  model: {path: meta-llama/Llama-3.1-8B-Instruct, quant_bits: 8}
  adapter: {rank: 64, alpha: 16, scaling: rslora}
adapter_config.json:
  model: {path: org/model, quant_bits: null}
  adapter: {rank: 8, alpha: 16, scaling: lora, targets: [q_proj], dropout: 0}
finetune_configs.json:
  model: {path: meta-llama/Llama-3.1-8B-Instruct, quant_bits: 8}
  data: {sequence_length: 4096, excess_length_strategy: drop}
  adapter: {rank: 8, alpha: 16, scaling: rslora, targets: [q_proj, v_proj, k_proj], dropout: 0.05}
  optimizer: {lr: 0.0001, weight_decay: 0}
  train: {batch_size: 8, accumulation: 2, clip: 1, epochs: 4, schedule: cosine, warmup: 10}
  "": {precision: bf16}
"""
OF_ROWS = ("data.path", "data.format", "data.prompt", "data.heldout")


@pytest.mark.parametrize(("name", "expected"), yaml.safe_load(EXACT).items())
def test_every_setting(name, expected):
    entry = "formula_llama_3_1_8b_8bits_r8_rslora" if name == "finetune_configs.json" else None
    found = {k: v for k, v in read_file(Path(name), entry).values.items() if k not in OF_ROWS}
    dotted = {f"{group}.{k}".strip("."): v for group, of in expected.items() for k, v in of.items()}
    assert found == dotted


A, L, T, U, F = "axolotl.yml", "llama_factory.yaml", "trl.yaml", "unsloth.yaml", "torchtune.yaml"
P = "adapter_config.json"


def typed(kind):
    return {"datasets": [{"path": "train.jsonl", "type": kind}]}


def chat(**keys):
    return {"datasets": [{"path": "org/chats", "type": "chat_template", **keys}]}


ALPACA, CHAT, NOTHING = ({"data.format": name} for name in ("alpaca", "messages", None))
FROM_VALUE = {"role": "from", "content": "value"}
OWN_FIELDS = {"field_instruction": "instruction", "field_output": "output", "format": "Q: {x}"}
NO_RATIO = {"warmup_ratio": None}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SILENT = """lora_target lora_rank lora_alpha cutoff_len per_device_train_batch_size learning_rate
    gradient_accumulation_steps lr_scheduler_type num_train_epochs warmup_steps bf16"""
CASES = [
    (A, typed("alpaca"), ALPACA, ""),
    (A, typed("alpaca:chat"), ALPACA, "prompts are those of alpaca"),
    (A, typed("completion"), {"data.format": "completion"}, "longer texts are cut"),
    (A, typed(OWN_FIELDS), ALPACA, 'datasets[0].type: {"format": "Q: {x}", '),
    (A, typed("input_output"), NOTHING, "datasets[0]: train.jsonl of type input_output (convert"),
    (A, chat() | {"chat_template": "chatml"}, {"data.chat_template": "chatml"}, ""),
    (A, chat() | {"chat_template": "llama3"}, CHAT, "chat_template: llama3, of Axolotl"),
    (A, chat() | {"chat_template_jinja": "mine.jinja"}, {"data.chat_template": "mine.jinja"}, ""),
    (A, chat() | {"chat_template_jinja": "{{ x }}"}, CHAT, "write the template to a file"),
    (
        A,
        {"datasets": [{"path": name, "type": "alpaca"} for name in ("train.jsonl", "org/b")]},
        {"data.path": ["train.jsonl", "org/b"], "data.format": "alpaca"},
        "",
    ),
    (
        A,
        chat(field_messages="conversations", message_property_mappings=FROM_VALUE)
        | {"roles_to_train": ["assistant"], "train_on_eos": "turn"},
        CHAT,
        "",
    ),
    (A, chat(message_property_mappings={"role": "who"}), NOTHING, '{"role": "who"}} (messages or'),
    (A, chat(roles_to_train=["user"]), CHAT, "datasets[0].roles_to_train"),
    (
        A,
        chat(split="train[:20%]", name="english"),
        {"data.path": "org/chats", "data.split": "train[:20%]", "data.subset": "english"},
        "",
    ),
    (A, chat() | {"val_set_size": 0.1}, CHAT, "val_set_size: 0.1 (of rows that are not here"),
    (A, NO_RATIO | {"warmup_steps": 5}, {"train.warmup": 5}, ""),
    (A, NO_RATIO | {"warmup_steps": 1}, {"train.warmup": 2}, ""),  # Axolotl makes two of one
    (A, NO_RATIO, {"train.warmup": 0.03}, "warmup_ratio 0.03"),
    (A, {"lr_scheduler": "constant"}, {"train.warmup": 0}, ""),
    (A, {"lr_scheduler": "polynomial"}, {"train.schedule": "linear"}, ""),
    (A, {"lr_scheduler": "inverse_sqrt"}, {"train.schedule": "cosine"}, "inverse_sqrt (cosine ins"),
    (A, {"optimizer": "ao_adamw_8bit"}, {}, "ao_adamw_8bit (adamw, with states in 32 bits)"),
    (A, {"peft": {"backend": "bnb", "weight_dtype": "nf4"}}, {"model.quant_bits": 4}, ""),
    (A, {"batch_size": 12, "gradient_accumulation_steps": None}, {"train.accumulation": 3}, ""),
    (A, {"max_steps": 7}, {"train.steps": 7, "train.epochs": None}, "num_epochs (max_steps"),
    (A, {"lr_groups": [{"lr": 0.1}]}, {}, "(the learning rate is one for A and one for B)"),
    (A, {"plugins": ["my.Plugin"]}, {}, 'plugins: ["my.Plugin"] (no plugin is run)'),
    (A, {"peft_init_lora_weights": "gaussian"}, {}, "adapter.init=kaiming, PEFT's default"),
    (A, {"adam_beta2": 0.95, "loraplus_lr_ratio": 16}, {"optimizer.betas": [0.9, 0.95]}, ""),
    (A, {"optimizer": "paged_adamw_8bit"}, {}, "paged_adamw_8bit (adamw, with states in 32 bits)"),
    (A, {"load_in_4bit": True, "adapter": "qlora"}, {"model.quant_bits": 4}, ""),
    (A, {"bf16": False}, {"precision": "float32"}, ""),
    (A, {"bf16": None, "fp16": True}, {"precision": "float32"}, "fp16: true"),
    (A, {"seed": None}, {"seed": None}, "seed: Axolotl draws adapters without one (seed=0)"),
    (L, {}, {"data.path": None}, "dataset: opposites (give data.path=... when you train)"),
    (L, {"packing": True}, {"data.sample_packing": True}, "each example is attended to alone"),
    (L, {"quantization_bit": 4, "max_samples": 9}, {"model.quant_bits": 4}, ""),
    (
        L,
        dict.fromkeys(SILENT.split()),
        {"adapter.targets": "all-linear", "adapter.rank": 8, "adapter.alpha": 16.0}
        | {"data.sequence_length": 2048, "train.batch_size": 8, "train.accumulation": 1}
        | {"train.epochs": 3.0, "train.schedule": "linear", "optimizer.lr": 5e-05}
        | {"train.warmup": None, "precision": "float32"},
        "lora_alpha 16.0",
    ),
    (T, {"max_length": None, "max_seq_length": 64}, {"data.sequence_length": 64}, ""),
    (T, {}, {}, "assistant_only_loss: false (of a chat, the loss is on the assistant's turns"),
    (T, {"completion_only_loss": False}, {}, "completion_only_loss: false (the loss is on the"),
    (U, {"training__warmup_steps": None, "training__warmup_ratio": 0.1}, {"train.warmup": 0.1}, ""),
    (T, {"loss_type": "dft"}, {}, "loss_type: dft (the mean cross entropy of the targets is"),
    (U, {"lora__finetune_mlp_modules": False}, {}, "adapters are on all target modules"),
    (F, {"model__quantize_base": True}, {"model.quant_bits": 4}, ""),
    (F, {"tokenizer__max_seq_len": None}, {}, "max_seq_len: null (cut at data.sequence_length)"),
    (F, {"lr_scheduler": None}, {"train.schedule": "constant", "train.warmup": 0}, ""),
    (P, {"target_parameters": EXPERTS}, {"adapter.targets": ["q_proj", *EXPERTS]}, ""),
    (P, {"target_modules": None, "target_parameters": EXPERTS}, {"adapter.targets": EXPERTS}, ""),
    (P, {"target_modules": None}, {"adapter.targets": ["q_proj", "v_proj"]}, "target_modules q_"),
    (
        P,
        {"target_modules": r".*\.(q|v)_proj", "target_parameters": EXPERTS[:1]},
        {"adapter.targets": r"(.*\.(q|v)_proj)|(.*\.)?(mlp\.experts\.gate_up_proj)"},
        "",
    ),
]


@pytest.mark.parametrize(("name", "keys", "expected", "says"), CASES)
def test_other_values(edit, name, keys, expected, says):
    """``says`` is noted; if it is empty, no note on the data is new."""
    edit(name, **keys)
    experiment = read_file(Path(name))

    def name_of(path):
        if isinstance(path, list) and name == A:
            return list(map(name_of, path))
        return Path(path).name if isinstance(path, str) and Path(path).is_file() else path

    found = {key: name_of(experiment.values.get(key)) for key in expected}
    assert list(map(repr, found.values())) == list(map(repr, expected.values()))
    assert says in "\n".join(experiment.lines())
    if "datasets" in keys and not says:
        assert not [note for note in experiment.differs if note.startswith("datasets[0]")]


@pytest.mark.parametrize(("name", "clip"), [(A, 1), (L, None), (T, None)])
def test_what_null_turns_off(name, clip):
    """The Trainer does not clip then, and TRL does not cut. Axolotl drops the key."""
    nulls = {"max_grad_norm": None, "max_length": None}
    Path("null.yaml").write_text(json.dumps(yaml.safe_load(Path(name).read_text()) | nulls))
    experiment = read_file(Path("null.yaml"))
    assert experiment.values["train.clip"] == clip
    note = "max_length: null (cut at data.sequence_length)"
    assert (note in experiment.differs) == (name == T)


def test_notes_are_sorted_and_kept_in_the_file(works, edit):
    edit(A, peft_use_dora=True, datasets=[{"path": "here.json", "type": "alpaca"}], tf32=True)
    notes = works("import-config", A).err.partition("wrote ")[0]
    headings = [line.split()[0] for line in notes.splitlines() if not line.startswith(" ")]
    assert headings == ["Trained", "Different", "To", "Not", "Ignored:"]
    assert "  peft_use_dora: true (plain LoRA is trained)\n" in notes
    assert "  datasets[0].path: here.json is no file here: give data.path=... when you" in notes
    text = Path("conf/experiment/axolotl.yaml").read_text()
    assert "".join(f"# {line}\n" for line in notes.splitlines()) in text


@pytest.mark.parametrize("path", [Path(A), Path(L), *REAL], ids=lambda path: path.name[:40])
def test_no_key_is_lost_in_silence(path):
    """A changed value changes what is trained or noted, or the key is ignored by name."""
    values = yaml.safe_load(path.read_text())

    def read(**changed):
        Path("changed.yml").write_text(json.dumps(values | changed))
        return read_file(Path("changed.yml"))

    try:
        before = read()
    except StudyError:
        return  # nothing is imported
    for key in values:
        try:
            after = read(**{key: "changed"})
        except StudyError:
            continue  # the value was looked at
        was, now = (
            (each.settings(), each.differs, each.details, each.missing) for each in (before, after)
        )
        assert now != was or any(key in note for note in after.ignored), key


# What recipes for images and sound have, in the examples of the tools.
VISION = [
    (A, {"processor_type": "AutoProcessor"}),  # also Gemma 3, Ministral 3 and SmolVLM 2
    (A, {"chat_template": "llama3_2_vision"}),
    (A, chat() | {"chat_template": "qwen2_vl"}),
    (A, {"datasets": [{"path": "HuggingFaceH4/llava-instruct-mix-vsft", "type": "chat_template"}]}),
    (A, {"datasets": [{"path": "NanoBit/text-audio-2k-test", "type": "chat_template"}]}),
    (A, {"datasets": [{"path": "org/rows", "type": "chat_template", "field_images": "pictures"}]}),
    (L, {"template": "qwen3_vl"}),
    (L, {"template": "qwen2_audio"}),
    (L, {"image_max_pixels": 262144}),
    (L, {"dataset": "mllm_demo,identity,alpaca_en_demo"}),
    (T, {"model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}),
    (U, {"model": "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit"}),
    (U, {"lora__vision_all_linear": True}),
    (F, {"model___component_": "torchtune.models.llama3_2_vision.lora_llama3_2_vision_11b"}),
    (F, {"dataset___component_": "torchtune.datasets.multimodal.the_cauldron_dataset"}),
]


@pytest.mark.parametrize(("name", "keys"), VISION)
def test_a_recipe_for_images_or_sound_is_refused(refused, edit, name, keys):
    edit(name, **keys)
    for command in ("import-config", "sweep-from", "advise"):
        line = refused(command, name, *(["--rank", "64"] if command == "advise" else []))
        assert "images and sound are not read" in line


def test_text_for_a_base_that_also_reads_images_is_imported(edit):
    edit(T, model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct")
    found = read_file(Path(T), base="Qwen/Qwen2.5-VL-3B-Instruct")
    assert found.values["model.path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    edit(A, base_model="mistralai/Voxtral-Mini-3B-2507")  # Axolotl reads images with a processor
    edit(L, model_name_or_path="Qwen/Qwen3.5-35B-A3B", template="qwen3_5", dataset="Omni-MATH")
    edit(U, lora__finetune_vision_layers=True)  # Unsloth's default
    for name in (A, L, U):
        assert read_file(Path(name)).values["adapter.rank"] > 0


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name[:40])
def test_none_of_text_is_refused_as_one_of_images(path):
    said = ""
    try:
        read_file(path)
    except StudyError as error:
        said = str(error)
    assert ("images and sound" in said) == ("qwen3vl" in path.name)


def test_an_adapter_that_peft_saved(works, trained):
    config = LoraConfig(r=16, lora_alpha=8, use_rslora=True, rank_pattern={"v_proj": 4})
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", "org/model"
    config.save_pretrained("saved")
    imported = works("import-config", "saved/adapter_config.json", "--name", "saved")
    # PEFT writes all of its defaults; they differ in nothing.
    assert read_file(Path("saved/adapter_config.json")).differs == [
        'rank_pattern: {"v_proj": 4} (one rank for all layers)'
    ]
    [row] = trained(imported.out).cells[["rank", "alpha", "scaling", "targets"]].values.tolist()
    assert row == [16.0, 8.0, "rslora", "q_proj,v_proj"]


def test_studio_of_unsloth_names_no_base_and_no_data(works, refused, edit):
    edit(U, model=None, data=None)
    imported = works("import-config", U, "--base", "org/model")
    assert "data (give data.path=... when you train)" in imported.err
    line = refused(*shlex.split(imported.out)[1:], "model=tiny", "data.sequence_length=48")
    assert "data.path is not set: give data.path=" in line


def test_sweep_from_trains_ranks_and_rules_in_one_line(works, trained):
    """A number among the rules is an exponent."""
    words = ("--ranks", "2,4", "--rules", "rslora,0.75", "--seeds", "0,1")
    imported = works("sweep-from", "finlora.yaml", *words)
    cells = trained(imported.out, "probes.steps=null").cells
    gammas = {("rslora", r): 16 / r**0.5 for r in (2, 4)}
    gammas |= {("power", r): 16 / r**0.75 for r in (2, 4)}
    for seed in (0, 1):
        found = cells[cells["seed"] == seed].set_index(["scaling", "rank"])["gamma"].to_dict()
        assert found == pytest.approx(gammas)


def test_an_existing_file_is_kept_unless_forced(works, refused):
    works("import-config", "finlora.yaml")
    mine = Path("conf/experiment/finlora.yaml")
    mine.write_text("# mine\n")
    line = refused("import-config", "finlora.yaml")
    assert "already exists: give another --name, or --force" in line
    assert mine.read_text() == "# mine\n"
    works("import-config", "finlora.yaml", "--force")
    assert "lora" in mine.read_text()


# Wrong configurations and options get one line. No model is loaded and no file is written.

FILES = [
    ("finlora.yaml", {"model_name": None}, "model_name is missing: give one with --base"),
    ("finlora.yaml", {"dataset": None}, "dataset is missing: add a value"),
    ("finlora.yaml", {"load_in_4bit": True}, "contradict each other: keep one"),
    (A, {"adapter": "qlora"}, "adapter: qlora and no load_in_4bit contradict"),
    (A, {"adapter": "ia3"}, "adapter=ia3: study train trains LoRA: set adapter: lora or qlora"),
    (A, {"adapter": None}, "adapter is missing: study train trains LoRA"),
    (A, {"rl": "dpo"}, "rl=dpo: study train trains on targets, not on preferences"),
    (A, {"peft_init_lora_weights": "pissa"}, "changes the base's weights"),
    (A, {"lora_target_linear": None}, "lora_target_modules is missing"),
    (A, {"lora_r": None}, "lora_r is missing: add a value"),
    (A, {"lora_r": "many"}, "lora_r='many': give a valid integer"),
    (A, {"micro_batch_size": 0}, "train.batch_size=0 should be"),
    (L, {"stage": "dpo"}, "stage=dpo: study train trains on targets, not on preferences or rew"),
    (L, {"finetuning_type": "full"}, "finetuning_type=full: it is not LoRA"),
    (L, {"dataset": None}, "dataset is missing, so it trains nothing"),
    (T, {"use_peft": None}, "use_peft is missing: without it all weights are trained"),
    (T, {"beta": 0.01}, "beta=0.01: study train trains on targets"),
    (U, {"training__training_type": "full"}, "training.training_type=full: it is not LoRA"),
    (U, {"training__lora_r": 4}, "training.lora_r=4: Unsloth has it in the section lora"),
    (F, {"loss___component_": "torchtune.rlhf.loss.DPOLoss"}, "loss=torchtune.rlhf.loss.DPOLoss: "),
    ("adapter_config.json", {"base_model_name_or_path": None}, "give one with --base"),
    ("adapter_config.json", {"use_dora": True}, "use_dora=True is not plain LoRA"),
]


@pytest.mark.parametrize(("name", "keys", "says"), FILES, ids=[says for *_, says in FILES])
def test_in_a_file(refused, edit, name, keys, says):
    edit(name, **keys)
    assert says in refused("import-config", name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("- 1\n- 2\n", "holds no keys"),
        ("color: red\n", "is none of the known configurations"),
        ("lora_rank: 8\nlora_alpha: 32\n", "is none of the known configurations"),  # ms-swift's
    ],
)
def test_in_the_form_of_a_file(refused, text, says):
    Path("bad.yaml").write_text(text)
    assert says in refused("import-config", "bad.yaml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import-config finetune_configs.json", "has 2 entries: choose one with --entry, from"),
        ("import-config finetune_configs.json --entry x", "'x': choose from formula_llama"),
        ("import-config finlora.yaml --entry x", "has no entry: leave out --entry"),
        ("import-config finlora.yaml --name quick", "experiment=quick is a name of the toolkit"),
        ("import-config finlora.yaml --to train.jsonl", "cannot write"),
        ("sweep-from finlora.yaml --rules lorra", "unknown adapter.scaling 'lorra'"),
    ],
)
def test_in_a_command(refused, line, says):
    assert says in refused(*line.split())
