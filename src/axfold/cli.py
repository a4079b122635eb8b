"""The commands: arguments -> one call each."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from axfold import __version__
from axfold.errors import AxfoldError, WeightsError
from axfold.memory.allocator import without_gaps
from axfold.options import DEFAULT_MODEL, day

app = typer.Typer(
    name="axfold",
    help="Predicts protein structures with the AlphaFold 2 network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights = typer.Typer(
    help="The released parameters: where they are, and how they come here.", no_args_is_help=True
)
app.add_typer(weights, name="weights")
train = typer.Typer(help="Training: data, runs, and what comes of them.", no_args_is_help=True)
app.add_typer(train, name="train")

P = ParamSpec("P")


def main() -> None:
    """The console script."""
    without_gaps()
    app()


def _command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Ends the command with what `function` returns, or with an error's exit code and its message."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except AxfoldError as error:
            typer.echo(f"axfold: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo(
                "axfold: stopped. The same command (without --overwrite) continues with what is not finished.",
                err=True,
            )
            raise typer.Exit(130) from None
        raise typer.Exit(code or 0)

    return run


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"axfold {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


ModelName = Annotated[
    str, typer.Option("--model", help="Preset: model_1 to model_5, model_1_ptm to model_5_ptm, demo.")
]
Params = Annotated[
    str | None,
    typer.Option(
        "--params",
        help="Parameter file, a folder with it, or synthetic[:SEED], which is meaningless. Default: the cache.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str,
    typer.Option("--precision", help="auto, fp32, tf32, bf16 or fp16; auto is bf16 on GPUs that have it."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget", help="Use no more of the device's memory, such as 8GB. Default: what is free."
    ),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        "--profile", help="File for what each stage took, as JSON: seconds and memory. Runs slower."
    ),
]
Recycles = Annotated[int | None, typer.Option("--recycles", help="Passes after the first.")]
Ensembles = Annotated[
    int | None, typer.Option("--ensembles", help="Samples of the MSA in each pass; CASP14's runs had 8.")
]


@app.command()
@_command
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="FASTA, a3m, Stockholm or CSV files, or folders of them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model, several with commas or by repeating it. Default: model_1_ptm."),
    ] = None,
    num_models: Annotated[
        int | None, typer.Option("--num-models", help="The first N of model_1_ptm to model_5_ptm.")
    ] = None,
    params: Params = None,
    msa: Annotated[
        Path | None,
        typer.Option("--msa", help="Alignment of the protein, or a folder with NAME.a3m for each."),
    ] = None,
    single_sequence: Annotated[
        bool, typer.Option("--single-sequence", help="Leave out all alignments.")
    ] = False,
    templates: Annotated[
        list[Path] | None,
        typer.Option("--templates", help="Structure file, folder of them, or hhr; repeatable."),
    ] = None,
    template_mmcifs: Annotated[
        Path | None,
        typer.Option("--template-mmcifs", help="Folder with the mmCIF files of the hits in an hhr."),
    ] = None,
    max_template_date: Annotated[
        str | None, typer.Option("--max-template-date", help="Only templates released until YYYY-MM-DD.")
    ] = None,
    recycles: Recycles = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Å: stop recycling once C-alphas move less; 0 never does."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="First random seed.")] = 0,
    num_seeds: Annotated[int, typer.Option("--num-seeds", help="As many seeds, one after another.")] = 1,
    max_msa: Annotated[
        str | None, typer.Option("--max-msa", help="CLUSTERS:EXTRA, rows of the MSA, such as 512:1024.")
    ] = None,
    ensembles: Ensembles = None,
    precision: Precision = "auto",
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    profile: Profile = None,
    layout: Annotated[
        str, typer.Option("--layout", help="File names: colabfold or alphafold.")
    ] = "colabfold",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    save_recycles: Annotated[
        bool, typer.Option("--save-recycles", help="Write the structure after every pass.")
    ] = False,
    save_representations: Annotated[
        bool, typer.Option("--save-representations", help="Write the single and pair representations.")
    ] = False,
) -> int:
    """Predict the structure of every protein of INPUT. Run again, it continues."""
    from axfold import batch, console

    request = batch.Options(
        inputs=tuple(inputs),
        out=out,
        models=tuple(model or ()),
        num_models=num_models,
        params=params,
        msa=msa,
        templates=tuple(templates or ()),
        template_mmcifs=template_mmcifs,
        max_template_date=day("--max-template-date", max_template_date),
        single_sequence=single_sequence,
        recycles=recycles,
        tolerance=tolerance,
        max_msa=max_msa,
        ensembles=ensembles,
        seed=seed,
        num_seeds=num_seeds,
        device=device,
        precision=precision,
        memory_budget=memory_budget,
        profile=profile,
        layout=layout,
        overwrite=overwrite,
        save_recycles=save_recycles,
        save_representations=save_representations,
    )
    with console.display() as display:
        outcome = batch.run(request, display)
    typer.echo(batch.table(outcome))
    return 1 if outcome.failures else 0


@app.command()
@_command
def forward(
    inputs: Annotated[Path, typer.Option("--inputs", help="Processed features, an npz file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="npz file to write.")],
    params: Params = None,
    model: ModelName = DEFAULT_MODEL,
    recycles: Recycles = None,
    ensembles: Ensembles = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    profile: Profile = None,
) -> None:
    """Run the network on processed features; write what the last pass computes under the recorded names."""
    from axfold import console
    from axfold.forward import forward as run

    with console.display() as display:
        display.begin(model)
        run(
            inputs,
            params,
            model,
            out,
            recycles=recycles,
            ensembles=ensembles,
            precision=precision,
            device=device,
            memory_budget=memory_budget,
            profile=profile,
            report=display.event,
        )
    typer.echo(str(out))


@app.command()
@_command
def plan(
    length: Annotated[int, typer.Option("--length", help="Residues.")],
    memory: Annotated[str, typer.Option("--memory", help="Of the device, such as 80GB.")],
    precision: Annotated[str, typer.Option("--precision", help="fp32, tf32 or bf16.")] = "bf16",
    model: ModelName = DEFAULT_MODEL,
    msa: Annotated[
        str | None, typer.Option("--msa", "--max-msa", help="CLUSTERS:EXTRA, rows of the MSA.")
    ] = None,
    templates: Annotated[int, typer.Option("--templates", help="How many.")] = 0,
    ensembles: Ensembles = None,
    device: Annotated[
        str, typer.Option("--device", help="cuda, cpu, or a GPU's name, by which the time is guessed.")
    ] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Say how a protein would be folded and what that takes, on a device that need not be here."""
    from axfold import forecast

    found = forecast.forecast(
        length,
        memory,
        precision=precision,
        model=model,
        max_msa=msa,
        templates=templates,
        ensembles=ensembles,
        device=device,
    )
    typer.echo(forecast.as_json(found) if as_json else forecast.as_text(found))


Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder to keep parameters in. Default: AXFOLD_CACHE, or ~/.cache/axfold."),
]


@weights.command("list")
@_command
def list_weights(cache: Cache = None) -> None:
    """The released models, and which of them are on this machine."""
    from axfold import console
    from axfold.weights import registry

    rows = [("model", "file")]
    for item in registry.listed(cache):
        missing = "not here" if item.supported else "not supported yet"
        rows.append((item.model, str(item.path or missing)))
    typer.echo(console.columns(rows))
    typer.echo(f"\nCache: {registry.cache_folder(cache)}\n{console.terms(registry.ALPHAFOLD)}")


@weights.command()
@_command
def download(
    cache: Cache = None,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", help="Address of the archive or of its folder. Or AXFOLD_WEIGHTS_MIRROR."),
    ] = None,
) -> None:
    """Fetch the released parameters (5.6 GB), check and unpack them. Run again, it continues."""
    from axfold import console
    from axfold.weights.download import download as run

    with console.display() as display:
        display.begin("AlphaFold's parameters")
        done = run(cache, mirror=mirror, progress=console.bytes_shown(display))
        display.end()
    typer.echo(f"{'Downloaded to' if done.fetched else 'They are there already:'} {done.folder}")
    typer.echo(console.terms(done.release))


@weights.command()
@_command
def verify(cache: Cache = None) -> int:
    """Check the parameters on this machine: checksums, and every tensor."""
    from axfold.weights import registry
    from axfold.weights.verify import verify as run

    problems, verdict = 0, None
    for verdict in run(cache):
        good = "whole" if verdict.recorded else "whole by its tensors; no checksum was recorded"
        typer.echo(verdict.problem or f"{verdict.path}: {good}")
        problems += verdict.problem is not None
    if verdict is None:
        folder = registry.cache_folder(cache)
        raise WeightsError(f"There are no parameters in {folder}. Run `axfold weights download`.")
    return 1 if problems else 0


@weights.command()
@_command
def convert(
    source: Annotated[str, typer.Argument(help="Parameter file, folder with it, or synthetic[:SEED].")],
    out: Annotated[Path, typer.Argument(help="File to write; it ends in .safetensors.")],
    model: ModelName = DEFAULT_MODEL,
) -> None:
    """Write parameters in axfold's own format, which loads fastest."""
    from axfold.weights.convert import convert as run
    from axfold.weights.source import find

    done = run(find(model, source), model, out)
    typer.echo(f"{done.path}: {done.model}, {done.parameters} parameters of {done.values:,} numbers")


@app.command()
@_command
def compare(
    predicted: Annotated[Path, typer.Argument(help="A predicted structure, PDB or mmCIF.")],
    true: Annotated[Path, typer.Argument(help="The experimental one.")],
) -> None:
    """Say how near a predicted structure is to an experimental one: lDDT, TM-score, GDT, RMSD."""
    from axfold.compare import compare as run

    typer.echo(run(predicted, true).text())


@train.callback(invoke_without_command=True)
def _train(
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Learn four small proteins by heart, in minutes on a CPU.")
    ] = False,
) -> None:
    if smoke:
        _train_smoke()  # and nothing else


@_command
def _train_smoke() -> None:
    from axfold.train import smoke

    for line in smoke.told():
        typer.echo(line)


@train.command("prepare")
@_command
def train_prepare(
    structures: Annotated[
        list[Path],
        typer.Argument(
            metavar="STRUCTURES",
            help="mmCIF and PDB files, folders and tar files of them, and tables (.csv) of which to take.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, the store.")],
    msas: Annotated[
        list[Path] | None,
        typer.Option("--msas", help="Folder or tar file of NAME.a3m or of folders of a search; repeatable."),
    ] = None,
    duplicates: Annotated[
        Path | None,
        typer.Option("--duplicates", help="File whose lines name chains of one sequence and alignment."),
    ] = None,
    clusters: Annotated[
        Path | None, typer.Option("--clusters", help="File whose lines name chains of similar sequences.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--set", help="experimental, or any name for predictions (self-distillation)."),
    ] = "experimental",
    split: Annotated[
        str, typer.Option("--split", help="Of chains for which no table says another.")
    ] = "train",
    template_mmcifs: Annotated[
        Path | None,
        typer.Option("--template-mmcifs", help="Folder with the mmCIF files of the hits in searches' hhr."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="First rows to keep of each alignment.", min=1)
    ] = None,
    min_length: Annotated[int, typer.Option("--min-length", help="Residues with a backbone.", min=1)] = 16,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Residues.", min=1)] = None,
    min_plddt: Annotated[
        float, typer.Option("--min-plddt", help="Mask residues of predictions below this.")
    ] = 50.0,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes. Default: one for each core.", min=0)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that is there.")] = False,
) -> None:
    """Make a training store of structures and their alignments; say what is left out, and why."""
    from axfold import console
    from axfold.train import prepare

    request = prepare.Options(
        structures=tuple(structures),
        out=out,
        msas=tuple(msas or ()),
        duplicates=duplicates,
        clusters=clusters,
        set=kind,
        split=split,
        max_rows=max_rows,
        min_length=min_length,
        max_length=max_length,
        template_mmcifs=template_mmcifs,
        min_plddt=min_plddt,
        workers=workers,
        overwrite=overwrite,
    )
    with console.display() as display:
        display.begin(out.name)
        summary = prepare.prepare(
            request, lambda done, total: display.progress(done / total, f"{done:,} of {total:,} files")
        )
        display.end()
    typer.echo(summary.text())


Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder that `axfold train prepare` made.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Processes that make samples. Default: the cores that there are.", min=0),
]


@train.command("run")
@_command
def train_run(
    store: Store,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the run. One that has a checkpoint is gone on with."),
    ],
    model: Annotated[str, typer.Option("--preset", "--model", help="The network: model_1, demo, ...")],
    stage: Annotated[
        str | None, typer.Option("--stage", help="initial, fine_tuning or demo: what is not set below.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Parameters to begin with, as --params. Default: random.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Stop after so many, earlier runs' included.", min=1)
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Stop after so many.", min=0)] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Samples in a step.", min=1)] = None,
    at_once: Annotated[
        int | None, typer.Option("--at-once", help="Of them, through the network together.", min=1)
    ] = None,
    crop: Annotated[int | None, typer.Option("--crop", help="Residues.", min=4)] = None,
    max_msa: Annotated[
        str | None, typer.Option("--max-msa", help="CLUSTERS:EXTRA, rows of the MSA, such as 128:1024.")
    ] = None,
    recycles: Annotated[int | None, typer.Option("--recycles", help="At most.", min=0)] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="At its highest.")] = None,
    warm_up: Annotated[
        int | None, typer.Option("--warm-up", help="Samples over which it rises.", min=0)
    ] = None,
    clip: Annotated[float | None, typer.Option("--clip", help="Norm of a gradient, at most.")] = None,
    average: Annotated[
        float | None, typer.Option("--average", help="Share the moving average keeps in a step.", max=1)
    ] = None,
    validate_every: Annotated[int, typer.Option("--validate-every", help="Steps; 0: never.", min=0)] = 1000,
    validation_chains: Annotated[
        int | None, typer.Option("--validation-chains", help="At most. Default: all.", min=1)
    ] = None,
    save_every: Annotated[float, typer.Option("--save-every", help="Minutes.", min=0)] = 5.0,
    keep: Annotated[int, typer.Option("--keep", help="Checkpoints, beside the best.", min=1)] = 2,
    compact: Annotated[
        bool, typer.Option("--compact", help="Smaller checkpoints, not exact: Adam's moments in bf16.")
    ] = False,
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute/--no-recompute",
            help="Compute blocks again rather than keep what their gradients need. Default: in deep networks.",
        ),
    ] = None,
    workers: Workers = None,
    precision: Annotated[
        str, typer.Option("--precision", help="auto, fp32, tf32 or bf16 (with fp32 masters).")
    ] = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Of parameters, samples and dropout.", min=0)] = 0,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic/--fast", help="Add up in one order, so that a run can be repeated bit for bit."
        ),
    ] = True,
) -> None:
    """Train a network. The same command again goes on where it stopped; by torchrun, on several GPUs."""
    from axfold import console
    from axfold.options import depths
    from axfold.train import run

    clusters, extra = (None, None) if max_msa is None else depths(max_msa)
    request = run.Options(
        store=store,
        out=out,
        model=model,
        stage=stage,
        changes={
            "batch": batch,
            "at_once": at_once,
            "crop": crop,
            "msa_clusters": clusters,
            "extra_msa": extra,
            "recycles": recycles,
            "learning_rate": learning_rate,
            "warm_up": warm_up,
            "clip": clip,
            "average": average,
        },
        steps=steps,
        minutes=minutes,
        device=device,
        precision=precision,
        seed=seed,
        start=start,
        recompute=recompute,
        workers=workers,
        validate_every=validate_every,
        validation_chains=validation_chains,
        save_every=save_every,
        keep=keep,
        compact=compact,
        deterministic=deterministic,
    )
    with console.display() as display:
        run.run(request, display)


@train.command("evaluate")
@_command
def train_evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint, a run's folder (its best), or parameters, as --params."
        ),
    ],
    store: Store,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose parameters they are, where it is no checkpoint.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which chains of the store.")] = "valid",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the scores of every chain, as JSON.")
    ] = None,
    chains: Annotated[int | None, typer.Option("--chains", help="At most. Default: all.", min=1)] = None,
    workers: Workers = None,
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Predict chains of known structure, and say how near they come."""
    from axfold import console
    from axfold.train import run

    with console.display() as display:
        text = run.evaluate(
            checkpoint,
            store,
            model=model,
            split=split,
            out=out,
            device=device,
            precision=precision,
            processes=workers,
            chains=chains,
            display=display,
        )
    typer.echo(text)


@train.command("export")
@_command
def train_export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run's folder (its best).")
    ],
    out: Annotated[Path, typer.Argument(help="File to write; it ends in .safetensors.")],
    half: Annotated[bool, typer.Option("--half", help="As float16: half as large.")] = False,
    licence: Annotated[
        str, typer.Option("--licence", help="What the file says of it.")
    ] = "that of whoever trained them",
) -> None:
    """Write the moving average of a run's parameters, for --params."""
    from axfold.train import run

    typer.echo(run.export(checkpoint, out, half=half, licence=licence))


@app.command()
@_command
def doctor(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that results would go to.")] = Path("."),
    cache: Cache = None,
) -> int:
    """Say what works on this machine, what doesn't, and the one thing to do."""
    from axfold import doctor as doctors

    marks = {"works": "ok    ", "absent": "absent", "broken": "BROKEN"}
    findings = []
    for finding in doctors.examine(out, cache):
        findings.append(finding)
        typer.echo(f"{marks[finding.state]}  {finding.subject}: {finding.detail}")
    typer.echo(f"\n{doctors.advice(findings)}")
    return 1 if any(finding.prevents for finding in findings) else 0
