"""``study advise``: alpha and learning rate at a rank and a rule (docs/choose.md), and what may
have caused a failed run (``--symptom``)."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from study.analysis import advice
from study.analysis.advice import Advice, Answer, Span, committed, number, rounded
from study.analysis.law import USUAL_SIZE, USUAL_STEPS, Setting
from study.cli.given import (
    SYMPTOMS,
    Given,
    about_run,
    label_of,
    pasted,
    rate_text,
    read_run,
    rule_of,
    written_alpha,
)
from study.cli.group import PATH, cli
from study.cli.rate_check import Check, check_of
from study.errors import StudyError, command_line
from study.theory import family
from study.theory.rounding import BF16_REMEDY
from study.vocabulary.optimizers import OPTIMIZERS, label
from study.vocabulary.sources import model_label
from study.vocabulary.thresholds import MOST_RANK, MOST_STEPS

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 4
"""Of what ``--json`` prints (docs/choose.md)."""
DATA = ("examples", "tokens", "loss", "parameters")
"""Options on the data, for the rank that holds them (:mod:`study.cli.capacity`)."""
HEAD = 8
"""The columns of the word before a line."""


def own_rates(folders: Sequence[Path]) -> "pd.DataFrame | None":
    """The best rates of the user's studies. Raises :class:`StudyError` for one without any."""
    if not folders:
        return None
    import pandas as pd

    from study.analysis.rates import best_rates_of
    from study.store.tables import load_measured

    found = [best_rates_of(load_measured(folder), str(folder)) for folder in folders]
    for folder, own in zip(folders, found, strict=True):
        if own.empty:
            what = "has no rank with two learning rates for all of its seeds"
            raise StudyError(f"{folder} {what}: sweep over some, such as optimizer.lr=1e-4,1e-3")
    return pd.concat(found, ignore_index=True)


def span(found: Span, text: Callable[[float], str] = number) -> str:
    """``180 [90, 360]``; the value alone if it has no interval."""
    value, low, high = map(text, found)
    return value if low == high else f"{value} [{low}, {high}]"


def rate(value: float) -> str:
    """A learning rate with two digits."""
    return rate_text(rounded(value))


def rate_words(found: Advice | None) -> str:
    """The rate of one answer with its interval."""
    if found is None:
        return "not known: run the check"
    return f"{span(found.rate)} x yours" if found.is_relative else span(found.rate, rate)


def sentence(found: Advice, new: Setting, has_steps: bool) -> str:
    """One answer, what it rests on, and its condition."""
    rows = committed()["rows"]
    names = {"law": "the law", "run": "the law, if your rate is the best one of your run"}
    rests = names.get(found.rests, "best rates of your studies and the law")
    steps = f"{new.steps or USUAL_STEPS:.0f} steps" + ("" if has_steps else " (assumed)")
    if found.rests == "studies" and not new.steps:
        steps = "their steps"
    if found.rests == "law" and not new.size:
        steps += f" of a model of {USUAL_SIZE / 1e9:.0f} billion weights (assumed)"
    fitted = f"{rows['rates']} best rates of {rows['models']} models in {rows['studies']} studies"
    return f"{rate_words(found)} at {steps}, by {rests} ({fitted})."


def difference_lines(old: Setting, new: Setting) -> Iterator[str]:
    """What each difference of two runs changes in the best rate, and what the law does not know."""
    same = old.under(new.rule)

    def words(name: str) -> str:
        ends = (getattr(run, name) or "unknown" for run in (same, new))
        under = f" under {label_of(new.rule)}" if name == "alpha" and old.rule != new.rule else ""
        texts = (x if isinstance(x, str) else f"{x:.4g}" for x in ends)
        return f"{name}{under} " + " to ".join(texts)

    both = [name for name in ("model", "optimizer") if getattr(old, name) and getattr(new, name)]
    if said := [words(name) for name in both if getattr(old, name) != getattr(new, name)]:
        yield f"Your rate does not count, as these differ: {'; '.join(said)}."
        return
    if found := advice.parts(old, new):
        each = (f"{words(name)} x {number(factor)}" for name, factor in found.items())
        yield f"Factors: {'; '.join(each)}."
    if advice.keeps_rate(old, new):
        decays = "decays" if old.schedule and new.schedule else "decays (assumed)"
        yield f"The number of steps does not change the rate, as its schedule {decays}."
    if bool(old.steps) != bool(new.steps):
        yield f"Assumed: {USUAL_STEPS:.0f} steps where they are unknown (--steps)."
    if "batch" in found:
        power, error = committed()["law"]["batch"]
        ends = (found["batch"] ** (1 + sign * advice.WIDE * error / power) for sign in (0, -1, 1))
        factor = span(Span(next(ends), *sorted(ends)))
        yield f"The batch by itself: x {factor}. Three sweeps vary it."
    if family(new.optimizer) == "spectral" and old.rank != new.rank:
        yield "Under Muon this rests on 8 steps; a published sweep contradicts it."


def warnings(found: Answer) -> Iterator[str]:
    """Why the rate of the run does not count: it is far from the law's."""
    run, law = found.run, found.law
    if not (law and run.lr):
        return
    times = f"{number(run.lr / law.value)} times the law's for this run"
    ends = f"90 %: {rate(law.low)} to {rate(law.high)}"
    yield f"learning rate {rate_text(run.lr)} is {times}, {rate(law.value)} ({ends})"
    if known := found.collapse:
        what = f"{known['model']}, {label_of(known['rule'])}, rank {known['rank']}"
        length = f"alpha {known['alpha']}, {known['steps']} steps of {known['batch']}"
        losses = f"held-out loss {known['loss']:.2f}, base {known['base']:.2f}"
        at = rate_text(known["lr"])
        yield f"a published run collapsed: {what}, {length} at {at}: {losses}"


def rate_comment(found: Answer) -> str:
    """The interval of the rate, and whether it is the file's."""
    if found.rate is None or found.rate.is_relative:
        return ""
    _, low, high = found.rate.rate
    ends = f"90 %: {rate(low)} to {rate(high)}" if low < high else ""
    return "; ".join(filter(None, ["kept" if found.keeps else "", ends]))


def unit_of(model: str) -> str:
    """The unit of losses of a model. The small one reads bytes."""
    return "nats a byte" if model == "small" else "nats a token"


def cost_text(row: Mapping[str, Any]) -> str:
    """A row of ``alphas``."""
    cost = span(Span(*row["cost"]), lambda value: f"{value:.3f}")
    where = f"{model_label(row['model'])}, rank {row['rank']}, {row['steps']} steps"
    seeds = f"{row['seeds']} seeds"
    against = f"against {row['against']:g}"
    return f"{row['alpha']:g} costs {cost} {unit_of(row['model'])} {against} ({where}, {seeds})"


def alpha_line(found: Answer) -> str:
    """What is known of the alpha of the run; empty if nobody asked."""
    if found.alpha:
        return cost_text(found.alpha)
    if not found.elsewhere:
        return ""
    ours, theirs = found.elsewhere
    pair = " and ".join(map(str, theirs["alphas"]))
    ends = f"{theirs['model']}, rank {theirs['rank']}: {pair} end within {theirs['apart']:.3f}"
    return f"kept. {cost_text(ours)}; {ends} ({theirs['data']} data sets, 1 seed)"


def cost_line(old: Setting, new: Setting, parameters: float | None) -> str:
    """What another rank costs. ``parameters``: of the adapter of ``new``."""
    if old.rank == new.rank:
        return ""
    size = 4 * (2 + OPTIMIZERS[new.optimizer].states)
    what = f"weights, gradients and states of {label(new.optimizer)}"
    if not parameters:
        times = f"x {number(new.rank / old.rank)} adapter parameters"
        return f"{times} and memory for them ({size} bytes each: {what})"
    before = parameters * old.rank / new.rank
    more = (parameters - before) * size / 1e9
    return f"{before / 1e6:.3g} M -> {parameters / 1e6:.3g} M adapter parameters, {more:+.2g} GB"


def gain_line(found: Answer) -> str:
    """What a higher rank gained under the same rule; empty at the same rank."""
    if found.run.rank == found.advice.rank:
        return ""
    row = found.gain
    if row is None:
        return "not known for this rule, alpha and these ranks"
    low, high = row["ranks"]
    gap = span(Span(*row["gap"]), lambda value: f"{value:.3f}")
    run = f"{label_of(row['rule'])}, alpha {row['alpha']:g}, {row['steps']} steps"
    where = f"{model_label(row['model'])}, {run}, each at its best rate"
    return f"loss of rank {high} less that of {low}: {gap} {unit_of(row['model'])} ({where})"


def sure_line(found: Answer, given: Given, has_steps: bool) -> str:
    """How far the answer was off for sweeps of others, and what it assumes."""
    if found.rate is None:
        return "no: the law has no rate of this optimizer"
    known, new = committed()["test"], found.advice
    off = known["rate"] if found.rate.rests == "law" else known["ratio"]
    what = "a rate" if found.rate.rests == "law" else "a ratio between ranks"
    said = [f"{known['sweeps']} published sweeps left out: {what} off by {off:.2g} in the median"]
    if new.size and new.size > known["largest"]:
        times = number(new.size / known["largest"])
        said.append(f"your model is {times} times larger than the largest of them")
    assumed = [*given.assumed]
    if not has_steps:
        word = "epoch" if new.epochs == 1 else "epochs"
        epochs = f"your file has {new.epochs:g} {word}: give --steps" if new.epochs else "--steps"
        assumed.append(f"{new.steps or USUAL_STEPS:.0f} steps ({epochs})")
    if not new.size:
        assumed.append(f"{USUAL_SIZE / 1e9:.0f} billion weights (--model)")
    return "; ".join([*said, *([f"assumed: {', '.join(assumed)}"] if assumed else [])])


def notes_on(given: Given, found: Answer, own: "pd.DataFrame | None") -> Iterator[str]:
    """What the numbers do not cover, what the file lacks, and what studies do not tell."""
    new = found.advice
    yield from given.notes
    run, keys = given.run, ("adapter.rank", "adapter.alpha", "optimizer.lr")
    defaults = zip(keys, (run.rank, run.alpha, run.lr), strict=True)
    if tool := given.tool:
        used = [f"{tool.key(key)} {x:g}" for key, x in defaults if key in given.absent and x]
        if used:
            yield f"Not in the file, so the default of {tool.name}: {', '.join(used)}."
    if own is not None:
        for row in own[own["edge"] != ""].to_dict("records")[:1]:
            at = f"{row['source']}: the {row['edge']} rate is best at rank {row['rank']:g}"
            yield f"{at}: {command_line('rates', row['source'], '--refine')}"
        if new.model and (others := sorted(set(own["model"]) - {new.model})):
            yield f"Studies of {', '.join(others)} do not count for {new.model}."
    if found.lost:
        end = f"at the end of {new.steps or USUAL_STEPS:.0f} steps"
        yield (
            f"bf16 rounding takes about {found.lost:.0%} of the adapter's output {end}: "
            f"{BF16_REMEDY}"
        )


def headed(head: str, lines: Sequence[str]) -> Iterator[str]:
    """Lines of one subject, with its name before the first one."""
    yield from (f"{head if not n else '':<{HEAD}}{line}" for n, line in enumerate(lines) if line)


def answer_lines(said: Mapping[str, Any], block: Sequence[str], is_whole: bool) -> Iterator[str]:
    """The answer for people: at most 14 lines for a file. ``block``: the lines to paste, with their
    comments. ``is_whole``: with the factor of each difference, and all evidence."""
    yield from headed("Warning", said["warning"])
    yield said["words"]
    yield from (f"  {line}" for line in block)
    for head in ("Alpha", "Note", "Cost", "Gain", "Sure?", "Data"):
        found = said[head.lower().rstrip("?")]
        yield from headed(head, [found] if isinstance(found, str) else found)
    if is_whole:
        yield from headed("Why", said["why"])
        yield from headed("Other", [each["words"] for each in said["evidence"][1:]])
    if said["check"]:
        check = said["check"]
        yield from headed("Test", [f"{check['ask']}   # {check['cost']}"])


def asked_again() -> str:
    """The command that runs, without options of its output."""
    context, words = click.get_current_context(), list[str]()
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not is_given or name in ("as_json", "has_evidence", "check"):
            continue
        for each in value if isinstance(value, tuple) else [value]:
            is_option = isinstance(parameter, click.Option)
            text = f"{each:g}" if isinstance(each, float) else str(each)
            words += [*([parameter.opts[0]] if is_option else []), text]
    return command_line("advise", *words)


def runs_of(
    config: Path | None, new_config: Path | None, options: Mapping[str, Any]
) -> tuple[Given, Given, Setting]:
    """The run that is given, the one whose file is changed, and that one as it is asked for."""
    rank, rule, alpha, steps = (options[key] for key in ("rank", "rule", "alpha", "steps"))
    own = {**options, "steps": None} if new_config else options  # only where a file has none
    given = read_run(config, own)
    if options["data"]:
        from study.cli.capacity import with_data

        given = with_data(given, options["data"])
    given = replace(given, run=replace(given.run, steps=given.run.steps or steps))
    into = read_run(new_config, own) if new_config else given
    new = into.run.under(rule_of(rule) if rule else into.run.rule)
    new = replace(new, rank=rank or new.rank, alpha=alpha or new.alpha, steps=new.steps or steps)
    return given, into, new


def in_tool(given: Given, run: Setting) -> Setting:
    """The run with the alpha and the rule that its tool can write."""
    whole, is_rslora = written_alpha(given, run)
    return replace(run, rule=run.rule if is_rslora else "lora", alpha=whole).under(run.rule)


def data_lines(given: Given, rank: int, options: Mapping[str, Any]) -> tuple[list[str], Any]:
    """The line on the rank that holds the data, and the parameters of the adapter of ``rank``."""
    about = {**given.data, **{name: options[name] for name in DATA if options[name]}}
    if not about:
        return [], None
    from study.cli.capacity import rank_lines

    if "parameters" in about:
        about["parameters"] *= rank / given.run.rank
    is_asked = bool(given.data or [name for name in DATA[:3] if options[name]])
    lines = list(rank_lines(rank, about)) if is_asked else []
    return lines, about.get("parameters")


def asked(check: Check | None, ask: str) -> dict[str, Any] | None:
    """The check for ``--json``."""
    if check is None:
        return None
    cost = f"{check.runs} runs of {check.steps} steps; sh check.sh --plan prints time and memory"
    return asdict(check) | {"ask": f"{ask} --check check.sh", "cost": cost}


@cli.command()
@click.argument("config", type=PATH, metavar="[CONFIG]", required=False)
@click.argument("new_config", type=PATH, metavar="[NEW]", required=False)
@click.option("--rank", type=click.IntRange(1, MOST_RANK), help="The new rank; or the run's own.")
@click.option("--rule", help="The new rule: lora, rslora, crossover or p.  [default: the same]")
@click.option("--alpha", type=float, help="The new alpha.  [default: that of the run]")
@click.option("--lr", type=float, help="The learning rate of the run.")
@click.option("--optimizer", metavar="NAME", help="The optimizer of the run.")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), help="The steps of the run.")
@click.option("--model", "--base", "model", help="Its model: gemma3, a folder, a hub name, ...")
@click.option("--study", "studies", type=PATH, multiple=True, help="A study on this model.")
@click.option("--entry", help="The configuration to read, if the file holds several.")
@click.option("--check", type=PATH, metavar="FILE", help="Write the test of the answer to FILE.")
@click.option("--data", help="Your data, to print the rank that holds them.")
@click.option("--examples", type=int, help="Examples of your data, for the rank that holds them.")
@click.option("--tokens", type=float, help="Their supervised tokens, per example.")
@click.option(
    "--loss", type=float, help="The base's loss on them, in nats per token: that of step 0."
)
@click.option(
    "--parameters",
    type=int,
    help="Parameters of the adapter at the run's own rank, as PEFT prints them.",
)
@click.option("--symptom", type=click.Choice(list(SYMPTOMS)), help="What goes wrong.")
@click.option("--evidence", "has_evidence", is_flag=True, help="Print all evidence too.")
@click.option("--json", "as_json", is_flag=True, help="Print the advice as JSON.")
def advise(
    config: Path | None, new_config: Path | None, symptom: str | None, as_json: bool, **options: Any
) -> None:
    """CONFIG is a configuration of PEFT, Axolotl, LLaMA-Factory, TRL, Unsloth, torchtune or
    FinLoRA, a cell (RESULTS/NAME/cells/ID) or a recorded run. NEW is the run that gets the rate.
    Options can also describe a run: --rank 64 --optimizer adamw.
    """
    if symptom is not None:
        from study.cli.diagnose import causes_in, symptom_lines  # loads pandas

        lines = symptom_lines(symptom, *(causes_in(config, options) if config else ()))
        text = json.dumps({"schema": SCHEMA, "lines": lines}) if as_json else "\n".join(lines)
        click.echo(text)
        return
    if config is None and options["rank"] is None:
        raise StudyError("give a configuration, or the rank of the run: study advise --rank 64")
    said, block, check = answered(config, new_config, options)
    if options["check"]:
        write_check(options["check"], check, said)
    is_whole = options["has_evidence"] or new_config is not None
    click.echo(json.dumps(said) if as_json else "\n".join(answer_lines(said, block, is_whole)))


def write_check(file: Path, check: Check | None, said: Mapping[str, Any]) -> None:
    """Write the script of ``--check``."""
    if check is None:
        why = "; ".join(said["note"]) or "your studies have measured the rate"
        raise StudyError(f"there is no check: {why}")
    try:
        file.write_text(check.script(file.name))
    except OSError as error:
        raise StudyError(f"cannot write {file} ({error.strerror}): give another file") from None


def answered(
    config: Path | None, new_config: Path | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], Check | None]:
    """The answer for ``--json``, the lines to paste with their comments, and the check."""
    given, into, new = runs_of(config, new_config, options)
    is_free = not (options["alpha"] or options["rule"] or new_config)
    row = None
    if is_free:
        new, row = advice.with_best_alpha(new)
    new = in_tool(into, new)
    known_steps = new.steps or given.run.steps
    old, new = advice.in_steps(given.run, new)
    has_steps = bool(known_steps and new.steps)
    own = own_rates(options["studies"])
    is_covered = not (given.untrainable or into.untrainable)
    about = {"is_free": is_free, "is_bf16": into.is_bf16, "is_covered": is_covered}
    found = advice.answer(old, new, own, alpha=row, **about)
    new, words = found.advice, rate_words(found.rate)
    check = None
    if own is None and not into.untrainable:
        check = check_of(into, found, asked_again(), has_steps)
    comments = {
        "adapter.alpha": f"{number(old.alpha)} costs more, see Alpha" if row else "",
        "optimizer.lr": rate_comment(found),
    }
    data, parameters = data_lines(given, new.rank, options)
    why = [sentence(found.evidence[0], new, has_steps)] if found.evidence else []
    notes = list(notes_on(into, found, own))
    differences = list(difference_lines(old, new))
    before = None if new_config else old.rank
    evidence = [asdict(x) | {"words": sentence(x, new, has_steps)} for x in found.evidence]
    said: dict[str, Any] = {
        "schema": SCHEMA,
        "words": f"{into.origin}: {about_run(replace(new, lr=into.run.lr), before)}",
        "run": asdict(old) | {"origin": given.origin, "words": about_run(old)},
        "advice": asdict(new) | {"lr": None, "origin": into.origin},
        "warning": list(warnings(found)),
        "paste": pasted(into, new, words, {}),
        "alpha": alpha_line(found),
        "note": notes,
        "cost": cost_line(old, new, parameters),
        "gain": gain_line(found),
        "sure": sure_line(found, into, has_steps),
        "data": data,
        "why": [*(why or ["The law has no rate of this optimizer."]), *differences],
        "check": asked(check, asked_again()),
        "evidence": evidence,
    }
    if found.rate:
        value = new.lr if new.lr and not found.rate.is_relative else found.rate.rate.value
        said["advice"]["lr"] = asdict(replace(found.rate.rate, value=value))
    return said, pasted(into, new, words, comments), check
